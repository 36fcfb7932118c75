"""Steps of the blocks in fewer passes: several convolutions as one, and norms that autograd need not remember.

Each gives what the parts' own forwards give, up to rounding, and only its first derivatives. Plain torch, without
kernels of its own and without a compiler. This file must not know the network. Figures: one core of an AMD EPYC
(Zen 5, no AMX), torch 2.15, medians. Suffixes as in `blocks`, and O output channels, N positions (B * H * W).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Normalised maps of less than this are not computed again: there the calls cost more than the work, and the digits'
# default net, whose maps have 256 KiB and whose step holds 7 MiB, would lose 5% of its speed.
KEPT_BYTES = 2**19


def merge_convolutions(convolutions: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one convolution that gives all outputs of several on the same input."""
    biases = [cast("Tensor", convolution.bias) for convolution in convolutions]
    return torch.cat([convolution.weight for convolution in convolutions]), torch.cat(biases)


def fold_convolutions(fusion: nn.Conv2d, convolutions: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of the one convolution that is `fusion` (1x1) over several side by side.

    All are C -> C with odd kernels and full padding; the widest comes last and gives the kernel its size. Under
    autocast too, all in the parameters' own precision: the convolution then rounds once, and casts one kernel.
    """
    kernel: Tensor = _FoldKernels.apply(fusion.weight, *(convolution.weight for convolution in convolutions))
    biases_I = torch.cat([cast("Tensor", convolution.bias) for convolution in convolutions])
    return kernel, cast("Tensor", fusion.bias) + (fusion.weight.flatten(1) * biases_I).sum(dim=1)


class _FoldKernels(torch.autograd.Function):
    """Written by hand, because autograd's own way takes about forty small operations a kernel."""

    @staticmethod
    def forward(ctx: Any, fusion_weight: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(fusion_weight, *weights)
        channels = len(fusion_weight)
        size = weights[-1].shape[-1]
        kernel_OHWI = fusion_weight.new_zeros(channels, size, size, channels)
        for part, weight in zip(fusion_weight.flatten(1).chunk(len(weights), dim=1), weights, strict=True):
            width = weight.shape[-1]
            product = part.new_empty(channels, width * width * channels)
            # With `out`, autocast stays away.
            torch.mm(part, weight.permute(0, 2, 3, 1).flatten(1), out=product)
            _centre(kernel_OHWI, width).add_(product.view(channels, width, width, channels))
        return kernel_OHWI.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        fusion_weight, *weights = ctx.saved_tensors
        grad_OHWI = grads[0].permute(0, 2, 3, 1)
        part_grads, weight_grads = [], []
        for part, weight in zip(fusion_weight.flatten(1).chunk(len(weights), dim=1), weights, strict=True):
            product_grad = _centre(grad_OHWI, weight.shape[-1]).flatten(1)
            part_grads.append(product_grad @ weight.permute(0, 2, 3, 1).flatten(1).t())
            weight_grads.append((part.t() @ product_grad).view_as(weight.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return torch.cat(part_grads, dim=1).view_as(fusion_weight), *weight_grads


def _centre(kernel_OHWI: Tensor, size: int) -> Tensor:
    margin = (kernel_OHWI.shape[1] - size) // 2
    return kernel_OHWI.narrow(1, margin, size).narrow(2, margin, size)


def rows(x_BCHW: Tensor) -> Tensor:
    """Return the map as one row of channels for each position, [N, C]; a view where it is channels_last."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution's weight and bias.

    As a matrix product, which takes 0.6 times a convolution's time for 16 channels, 0.8 times in bfloat16; but in
    float32, where a CPU's product is slow (MKL on AMD: 90 of the 200 GFLOP/s of a convolution), only up to 16 channels.
    """
    if x_BCHW.dtype == torch.float32 and not x_BCHW.is_cuda and x_BCHW.shape[1] > 16:
        return F.conv2d(x_BCHW, weight, bias)
    return F.linear(x_BCHW.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def activate(activation: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Apply an activation module.

    A channels_last map goes through GELU as [B, H, W, C], since torch's fast GELU takes contiguous memory only: 1M
    elements take 0.32 instead of 0.39 ms in float32, 0.23 instead of 0.49 in bfloat16.
    """
    if isinstance(activation, nn.GELU):
        y_BHWC: Tensor = activation(x_BCHW.permute(0, 2, 3, 1))
        return y_BHWC.permute(0, 3, 1, 2)
    return cast("Tensor", activation(x_BCHW))


@contextmanager
def normalised(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Iterator[Tensor]:
    """Yield norm(x); what autograd saves of it within the context is computed again from x instead of being kept.

    A training step of the small net at 32x32 so needs 0.68 instead of 0.81 times the reference's memory, for about
    3% of its time. In eval mode everything is kept, and so are maps below KEPT_BYTES, and those whose statistics are of
    several processes. torch.compile makes this choice itself. The norm's weights must not change before the backward.
    """
    y_BCHW: Tensor = norm(x_BCHW)
    kept = not (norm.training and torch.is_grad_enabled()) or y_BCHW.nbytes < KEPT_BYTES
    kept = kept or isinstance(norm, nn.SyncBatchNorm)
    if kept or torch.compiler.is_compiling():
        yield y_BCHW
        return
    x_BCHW, storage = x_BCHW.detach(), y_BCHW.untyped_storage()._cdata

    def pack(saved: Tensor) -> Any:
        # GELU saves a view of y, so that storages are compared, not objects; fake tensors have storages, no addresses.
        return (saved.shape, saved.stride()) if saved.untyped_storage()._cdata == storage else saved

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        again_BCHW = F.batch_norm(x_BCHW, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        return again_BCHW.detach().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield y_BCHW


class ConvNormActivation(nn.Sequential):
    """A convolution, its BatchNorm, its activation, and what may follow in sequence."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the output of the last part."""
        convolution, norm, activation, *others = self
        with normalised(cast("nn.BatchNorm2d", norm), convolution(x_BCHW)) as y_BCHW:
            out_BCHW = activate(activation, y_BCHW)
        for other in others:
            out_BCHW = other(out_BCHW)
        return out_BCHW
