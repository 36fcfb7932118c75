"""Operations of the network fused into fewer passes, in plain torch without a compiler.

Merged and folded convolutions, 1x1 convolutions as matrix products, norms that are recomputed in the backward pass,
attention that is averaged early. Each equals the modules' own forwards up to rounding and has first derivatives only.
Figures: one core of an AMD EPYC (Zen 5, no AMX), torch 2.15, medians. Suffixes as in `blocks`, and O output channels,
N positions (B * H * W).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.config.models import Activation
from fbsearch.network.activations import make_activation

# Normalised maps of fewer bytes are kept and not recomputed: the calls would cost more than the work. The default net
# for digits, whose maps have 256 KiB and whose step holds 7 MiB, would lose 5% of its speed.
MIN_RECOMPUTED_BYTES = 2**19
# Convolutions in float32 use the whole width of the vectors, matrix products half of it.
CONVOLVES_FASTER = torch.backends.cpu.get_cpu_capability() == "AVX512"


def merge_convolutions(convolutions: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of one convolution whose output is that of several on the same input, concatenated."""
    biases = [cast("Tensor", convolution.bias) for convolution in convolutions]
    return torch.cat([convolution.weight for convolution in convolutions]), torch.cat(biases)


def fold_convolutions(fusion: nn.Conv2d, convolutions: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of one convolution that equals `fusion` (1x1) on the concatenation of several.

    All are C -> C with odd kernels and full padding; the last has the widest kernel, the size of the result. Computed
    in the parameters' own precision, under autocast too: the convolution then rounds once, and casts one kernel.
    """
    kernel: Tensor = _FoldKernels.apply(fusion.weight, *(convolution.weight for convolution in convolutions))
    biases_I = torch.cat([cast("Tensor", convolution.bias) for convolution in convolutions])
    return kernel, cast("Tensor", fusion.bias) + (fusion.weight.flatten(1) * biases_I).sum(dim=1)


class _FoldKernels(torch.autograd.Function):
    """The folded kernel with a backward by hand: autograd would take about forty small operations a kernel."""

    @staticmethod
    def forward(ctx: Any, fusion_weight: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(fusion_weight, *weights)
        channels = len(fusion_weight)
        size = weights[-1].shape[-1]
        kernel_OHWI = fusion_weight.new_zeros(channels, size, size, channels)
        for part, weight in zip(fusion_weight.flatten(1).chunk(len(weights), dim=1), weights, strict=True):
            width = weight.shape[-1]
            product = part.new_empty(channels, width * width * channels)
            # Autocast does not change operations with `out`.
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


def flatten_positions(x_BCHW: Tensor) -> Tensor:
    """Return the map as [N, C], one row for each position; a view if the map is channels_last."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def pointwise(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution's weight and bias, as a matrix product where that is faster.

    The product takes 0.6 times a convolution's time for 16 channels, 0.8 times in bfloat16. In float32 on a CPU with
    AVX-512 the product is slow (MKL on AMD: 90 of the 200 GFLOP/s of a convolution), so there it serves up to 16
    channels only. With AVX2 it took 0.5 to 1.1 times the convolution's time (32 to 256 channels, forward and backward).
    """
    if CONVOLVES_FASTER and x_BCHW.dtype == torch.float32 and not x_BCHW.is_cuda and x_BCHW.shape[1] > 16:
        return F.conv2d(x_BCHW, weight, bias)
    return F.linear(x_BCHW.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def activate(activation: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Apply an activation module.

    GELU gets a channels_last map as [B, H, W, C], because torch's fast GELU needs contiguous memory: 1M elements take
    0.32 instead of 0.39 ms in float32, 0.23 instead of 0.49 in bfloat16.
    """
    if isinstance(activation, nn.GELU):
        y_BHWC: Tensor = activation(x_BCHW.permute(0, 2, 3, 1))
        return y_BHWC.permute(0, 3, 1, 2)
    return cast("Tensor", activation(x_BCHW))


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a LayerNorm over the last dimension in the dtype of its input.

    Autocast on CUDA would compute and return it in float32, and with it all that follows until the next convolution:
    130 of the 398 kernels of small's forward pass were casts. The kernel adds up in float32 either way.
    """
    if x.dtype == torch.float32 or not x.is_cuda:
        return cast("Tensor", norm(x))
    with torch.autocast("cuda", enabled=False):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


@contextmanager
def recomputed_norm(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Iterator[Tensor]:
    """Yield norm(x); autograd does not save it within the context but recomputes it from x in the backward pass.

    A training step of the small net at 32x32 then needs 0.68 instead of 0.81 times the reference's memory, for about
    3% of its time. The output is kept in eval mode, below MIN_RECOMPUTED_BYTES, by a SyncBatchNorm, and under
    torch.compile, which decides by itself. The norm's weights must not change before the backward pass.
    """
    y_BCHW: Tensor = norm(x_BCHW)
    kept = not (norm.training and torch.is_grad_enabled()) or y_BCHW.nbytes < MIN_RECOMPUTED_BYTES
    if kept or isinstance(norm, nn.SyncBatchNorm) or torch.compiler.is_compiling():
        yield y_BCHW
        return
    x_BCHW, storage = x_BCHW.detach(), y_BCHW.untyped_storage()._cdata

    def pack(saved: Tensor) -> Any:
        # GELU saves a view of y, so storages are compared, not objects; fake tensors have storages but no addresses.
        return (saved.shape, saved.stride()) if saved.untyped_storage()._cdata == storage else saved

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        again_BCHW = F.batch_norm(x_BCHW, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        return again_BCHW.detach().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield y_BCHW


def mean_attention(attention: nn.MultiheadAttention, tokens_BNC: Tensor) -> Tensor:
    """Return the mean of self-attention's output over the N tokens, [B, C].

    The mean is taken before the output projection, which is linear: one token to project instead of N. A single token
    attends to itself with weight 1, so the result is its value vector, projected.
    """
    weight, bias = cast("Tensor", attention.in_proj_weight), attention.in_proj_bias
    num_tokens, channels = tokens_BNC.shape[1:]
    if num_tokens == 1:
        attended_BC = F.linear(tokens_BNC[:, 0], weight[2 * channels :], bias[2 * channels :])
    else:
        heads = F.linear(tokens_BNC, weight, bias).view(-1, num_tokens, 3, attention.num_heads, attention.head_dim)
        if heads.dtype == torch.bfloat16 and heads.is_cpu:
            # On this CPU torch's attention is slower in bfloat16: forward and backward over the digits' 64 tokens take
            # 20 ms instead of 11, over small's 105 instead of 34.
            heads = heads.float()
        with torch.autocast("cpu", enabled=False):
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            attended_BC = F.scaled_dot_product_attention(query, key, value).mean(dim=2).flatten(1)
    out_BC: Tensor = attention.out_proj(attended_BC)
    return out_BC


class ConvNormActivation(nn.Sequential):
    """A convolution with padding, its BatchNorm, its activation, and the modules appended to them.

    With `pool` the maximum of 2x2 is taken before the norm, which with the activation then takes a quarter of the time:
    on a CPU they were half of a small net's step at full resolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, activation: Activation,
        padding: int | None = None, pool: bool = False,
    ) -> None:  # fmt: skip
        padding = kernel_size // 2 if padding is None else padding
        parts: dict[str, nn.Module] = {
            "0": nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding),
            "pool": nn.MaxPool2d(2, ceil_mode=True),
            "1": nn.BatchNorm2d(out_channels),
            "2": make_activation(activation, out_channels),
        }
        if not pool:
            del parts["pool"]
        super().__init__(OrderedDict(parts))
        self.pools = pool

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the output of the last part."""
        convolution, *others = self
        x_BCHW = convolution(x_BCHW)
        if self.pools:
            pool, *others = others
            x_BCHW = pool(x_BCHW)
        norm, activation, *others = others
        with recomputed_norm(cast("nn.BatchNorm2d", norm), x_BCHW) as y_BCHW:
            out_BCHW = activate(activation, y_BCHW)
        for other in others:
            out_BCHW = other(out_BCHW)
        return out_BCHW
