"""The parts of a FractalBrainNet: mask, dynamics, fractal block with drop-path, scale processor.

The modules, their names and their order are those of the public reference `FractalBrainNet-v2.py` (J. R. F. Junior), so
that its state dicts load. The forwards compute the same in fewer passes; they are fastest on channels_last maps. The
plain form, one line for each formula, is in `tests/plain_model.py`. Sources: the project's documents, and for
drop-path FractalNet (Larsson, Maire, Shakhnarovich, ICLR 2017, arXiv 1605.07648).

Suffixes: B batch, C channels, H height, W width, N positions (B * H * W); digits stand for themselves.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.config.models import Activation
from fbsearch.errors import ConfigError
from fbsearch.network.activations import make_activation
from fbsearch.network.fused_ops import (
    activate,
    flatten_positions,
    fold_convolutions,
    layer_norm,
    merge_convolutions,
    pointwise,
    recomputed_norm,
)

DropPath: TypeAlias = Literal["none", "local", "global", "mixed", "channel"]
Join: TypeAlias = Literal["gates", "mean"]

# AdaptiveScaleProcessor is folded if it has more positions (B * H * W) than this times its channels. Folding saves
# 13 C^2 multiplications for each position and costs 35 C^3: equal at 2.7 C. But matrix products run at 0.4 times a
# convolution's speed; forward and backward took equal times at 6 to 16 C (16, 64 and 256 channels, float32).
FOLD_POSITIONS_PER_CHANNEL = 8


class FractalMask(nn.Module):
    """A fractal pattern, resized once to each feature-map size that occurs; shared by all modules of a net.

    `pattern_HW` is an array or tensor [h, w] with values in [0, 1]; others raise ConfigError. None means no mask: all
    factors are 1. The pattern stays on the CPU in float32. The resized masks are non-persistent buffers, which no state
    dict contains. The first forward at a new size creates them, so a CUDA graph is captured after a warm-up.
    Deviation: the reference keeps a copy as a parameter of every module and resizes it in every forward.
    """

    pattern_HW: Tensor

    def __init__(self, pattern_HW: NDArray[Any] | Tensor | None) -> None:
        super().__init__()
        self.replace(np.ones((1, 1), np.float32) if pattern_HW is None else pattern_HW)
        self.is_absent = pattern_HW is None

    def replace(self, pattern_HW: NDArray[Any] | Tensor) -> None:
        """Replace the pattern and drop the masks made from the old one."""
        if isinstance(pattern_HW, Tensor):
            pattern_HW = pattern_HW.detach().float().cpu().numpy()
        values_HW = np.array(pattern_HW, np.float32)
        if values_HW.ndim != 2 or not ((values_HW >= 0) & (values_HW <= 1)).all():
            raise ConfigError(f"mask has shape {values_HW.shape}; allowed: [h, w] with values in [0, 1]")
        self.is_absent = False
        # from_numpy, because the pattern is needed on the CPU even if the net is built on the meta device.
        self.pattern_HW = torch.from_numpy(values_HW)
        for name in list(self._buffers):
            delattr(self, name)

    def forward(self, like_BCHW: Tensor) -> Tensor:
        """Return the factor of the bands, [C, H, W], for maps of the argument's shape, dtype and device.

        The four quarters of the channels hold m, 1 - m, m / 2 and sin(pi m); channels_last in memory.
        """
        channels, height, width = like_BCHW.shape[1:]
        name = f"factor_{channels}x{height}x{width}_{str(like_BCHW.dtype).removeprefix('torch.')}"
        if self.is_absent:
            return like_BCHW.new_ones(channels, height, width)
        if name not in self._buffers:
            # A buffer created in inference mode could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                pattern_11HW = self.pattern_HW[None, None]
                m_HW = F.interpolate(pattern_11HW, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
                masks_HW4 = torch.stack([m_HW, 1 - m_HW, 0.5 * m_HW, torch.sin(math.pi * m_HW)], dim=2)
                factor_HWC = masks_HW4.to(like_BCHW.device, like_BCHW.dtype).repeat_interleave(channels // 4, dim=2)
            self.register_buffer(name, factor_HWC.permute(2, 0, 1), persistent=False)
        return self.get_buffer(name)

    def extra_repr(self) -> str:
        """Return the pattern's size, for printing a net."""
        return "{} x {}".format(*self.pattern_HW.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Buffers that were moved, cast or emptied (bfloat16 and back, to_empty) are dropped and recomputed when needed;
        # calls that change nothing keep them, since a captured CUDA graph reads them.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            if self._buffers[name] is not buffer:
                delattr(self, name)
        return self


class CerebralDynamicsModule(nn.Module):
    """Four bands under four masks, [B, C, H, W] -> same; C a multiple of 4.

    With m the mask: alpha * m (8-12 Hz), beta * (1 - m) (13-30 Hz), gamma * m / 2 (30-100 Hz), theta * sin(pi m)
    (4-8 Hz); integrated (1x1 convolution), normalised over the channels, added to the input. `mask` is [h, w] in
    [0, 1] or a FractalMask.
    """

    def __init__(self, channels: int, mask: NDArray[Any] | Tensor | FractalMask) -> None:
        super().__init__()
        assert channels % 4 == 0, f"{channels} channels cannot be split into four bands"
        self.mask = mask if isinstance(mask, FractalMask) else FractalMask(mask)
        self.alpha_processing = nn.Conv2d(channels, channels // 4, 1)
        self.beta_processing = nn.Conv2d(channels, channels // 4, 1)
        self.gamma_processing = nn.Conv2d(channels, channels // 4, 1)
        self.theta_processing = nn.Conv2d(channels, channels // 4, 1)
        self.integration = nn.Conv2d(channels, channels, 1)
        self.normalization = nn.LayerNorm(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the input plus its normalised, integrated bands."""
        bands = [self.alpha_processing, self.beta_processing, self.gamma_processing, self.theta_processing]
        weight, bias = merge_convolutions(bands)
        bands_BCHW = pointwise(x_BCHW, weight, bias)
        if not self.mask.is_absent:
            bands_BCHW = bands_BCHW * self.mask(bands_BCHW)
        integrated_BHWC = pointwise(bands_BCHW, self.integration.weight, self.integration.bias).permute(0, 2, 3, 1)
        return layer_norm(self.normalization, integrated_BHWC).permute(0, 3, 1, 2) + x_BCHW


def draw_local_factors(batch: int, prob: float, device: torch.device) -> Tensor:
    """Return random factors of local drop-path for the two inputs of a join, [B, 2]: 0 if dropped, else 1 / q.

    Each input is dropped with probability `prob`; if both would be, the one with the larger draw is kept. An input is
    therefore kept with probability q = 1 - prob + prob^2 / 2, and 1 / q preserves the expectation of the join.
    Deviation: the paper's joins are means over the survivors; these are sums with learned gates.
    """
    draws_B2 = torch.rand(batch, 2, device=device)
    kept_B2 = (draws_B2 >= prob) | (draws_B2 >= draws_B2.flip(1))
    return kept_B2 / (1 - prob + prob**2 / 2)


class FractalNeuralBlock(nn.Module):
    """A fractal of convolutions, [B, in_channels, H, W] -> [B, out_channels, H, W].

    A block of level n has 2^n - 1 leaf convolutions and n columns; column d is a chain of 2^(d - 1) convolutions.
    Level 1 is a single leaf: convolution, BatchNorm, dynamics, activation. Higher levels join `deep_branch` (two blocks
    of level n - 1) and `shallow_branch` (convolution, dynamics, BatchNorm, activation) as a * deep + b * shallow, with
    the gates a, b in (0, 1) computed from both branches at each position.

    `drop_path`, active in training only: `local` multiplies the gates by `draw_local_factors`, for each sample and
    join; `global` follows the `columns_B` that the net passes: the kept column passes each join unscaled; `mixed` does
    both; `channel` is the reference's dropout of whole channels after every block. The gates are computed before
    anything is dropped. A block of level 1 has no join.

    Cheaper forms: without `dynamics` the convolutions have none; `join` "mean" is FractalNet's mean of the branches
    that survive, without gates; `stride` 2 halves the map in the convolutions that read the block's input; `pool`
    halves it after the last convolution of each path, so that the norms and joins behind see a quarter of it.
    """

    def __init__(
        self,
        level: int,
        in_channels: int,
        out_channels: int,
        mask: NDArray[Any] | Tensor | FractalMask,
        drop_path: DropPath = "none",
        *,
        drop_path_prob: float = 0.15,
        activation: Activation = "gelu",
        dynamics: bool = True,
        join: Join = "gates",
        stride: int = 1,
        pool: bool = False,
    ) -> None:
        super().__init__()
        mask = mask if isinstance(mask, FractalMask) else FractalMask(mask)
        self.level, self.stride = level, stride
        self.local_prob = drop_path_prob if drop_path in ("local", "mixed") else 0.0
        self.drop_path = nn.Dropout2d(drop_path_prob) if drop_path == "channel" else nn.Identity()
        make_dynamics = partial(CerebralDynamicsModule, out_channels, mask) if dynamics else nn.Identity
        if level == 1:
            self.base_conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
            self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool else nn.Identity()
            self.norm = nn.BatchNorm2d(out_channels)
            self.cerebral_dynamics = make_dynamics()
            self.activation = make_activation(activation, out_channels)
            return
        inner = partial(
            FractalNeuralBlock, level - 1, out_channels=out_channels, mask=mask, drop_path=drop_path,
            drop_path_prob=drop_path_prob, activation=activation, dynamics=dynamics, join=join,
        )  # fmt: skip
        self.deep_branch = nn.Sequential(inner(in_channels, stride=stride), inner(out_channels, pool=pool))
        self.shallow_branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
            nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), make_dynamics()) if pool else make_dynamics(),
            nn.BatchNorm2d(out_channels),
            make_activation(activation, out_channels),
        )
        if join == "mean":
            self.fractal_attention = None
            return
        self.fractal_attention = nn.Sequential(
            nn.Conv2d(2 * out_channels, out_channels // 4, 1),
            nn.GELU(),
            nn.Conv2d(out_channels // 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, x_BCHW: Tensor, columns_B: Tensor | None = None) -> Tensor:
        """Return the block's output; `columns_B` (int64) is the one column that each sample keeps.

        Columns count from 1; 0 or less keeps all; a depth beyond this block's level means its deepest column.
        """
        weight, bias = merge_convolutions(self._entry_convolutions())
        entered_BCHW = F.conv2d(x_BCHW, weight, bias, self.stride, padding=1)
        entered = [one.contiguous(memory_format=torch.channels_last) for one in entered_BCHW.chunk(self.level, dim=1)]
        return self._forward_from(entered, columns_B)

    def _entry_convolutions(self) -> list[nn.Conv2d]:
        """Return the convolutions that read the block's input: the first of each column, shallowest to deepest.

        Merged into one they take 7 to 20% less time on small maps, and the longest path has 2^(n-1) convolutions.
        """
        if self.level == 1:
            return [self.base_conv]
        return [cast("nn.Conv2d", self.shallow_branch[0]), *self._deep_blocks()[0]._entry_convolutions()]

    def _deep_blocks(self) -> list["FractalNeuralBlock"]:
        return cast("list[FractalNeuralBlock]", list(self.deep_branch))

    def _forward_from(self, entered: list[Tensor], columns_B: Tensor | None) -> Tensor:
        """Compute the block from the outputs of its entries."""
        if self.level == 1:
            with recomputed_norm(self.norm, self.pool(entered[0])) as x_BCHW:
                out_BCHW = activate(self.activation, self.cerebral_dynamics(x_BCHW))
        else:
            # The deep branch goes first, so that random numbers are drawn in the reference's order.
            deeper_B = None if columns_B is None else columns_B - 1
            first, second = self._deep_blocks()
            deep_BCHW = second(first._forward_from(entered[1:], deeper_B), deeper_B)
            _, dynamics, norm, activation = self.shallow_branch
            with recomputed_norm(cast("nn.BatchNorm2d", norm), dynamics(entered[0])) as x_BCHW:
                shallow_BCHW = activate(activation, x_BCHW)
            out_BCHW = self._join(deep_BCHW, shallow_BCHW, columns_B)
        return self.drop_path(out_BCHW)  # type: ignore[no-any-return]

    def column(self, depth: int) -> nn.Module:
        """Return the chain of 2^(depth - 1) convolutions that is column `depth`, sharing this block's parameters."""
        if self.level == 1:
            return self
        if depth == 1:
            return self.shallow_branch
        return nn.Sequential(*(block.column(depth - 1) for block in self._deep_blocks()))

    def _join(self, deep_BCHW: Tensor, shallow_BCHW: Tensor, columns_B: Tensor | None) -> Tensor:
        batch, channels, height, width = deep_BCHW.shape
        if self.fractal_attention is None:
            return self._mean(deep_BCHW, shallow_BCHW, columns_B)
        deep_NC, shallow_NC = flatten_positions(deep_BCHW), flatten_positions(shallow_BCHW)
        gates_N2 = self._gates(deep_NC, shallow_NC)
        if columns_B is not None or (self.training and self.local_prob):
            gates_N2 = self._drop_paths(gates_N2.view(batch, -1, 2), columns_B).view(-1, 2)
        out_NC = gates_N2[:, :1] * deep_NC + gates_N2[:, 1:] * shallow_NC
        return out_NC.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _mean(self, deep_BCHW: Tensor, shallow_BCHW: Tensor, columns_B: Tensor | None) -> Tensor:
        """Return the mean of the branches that drop-path keeps, as FractalNet joins."""
        if columns_B is None and not (self.training and self.local_prob):
            return torch.lerp(deep_BCHW, shallow_BCHW, 0.5)
        shares_B12 = torch.full((len(deep_BCHW), 1, 2), 0.5, dtype=deep_BCHW.dtype, device=deep_BCHW.device)
        shares_B12 = self._drop_paths(shares_B12, columns_B)
        # Autocast on CUDA sums in float32, which would make the mean float32, too.
        shares_B12 = (shares_B12 / shares_B12.sum(dim=2, keepdim=True)).to(deep_BCHW.dtype)
        shares_2B111 = shares_B12.permute(2, 0, 1)[..., None, None]
        return shares_2B111[0] * deep_BCHW + shares_2B111[1] * shallow_BCHW

    def _gates(self, deep_NC: Tensor, shallow_NC: Tensor) -> Tensor:
        """Compute `fractal_attention`, [N, 2], as matrix products and unconcatenated: 30% less time, 2C less memory."""
        hidden, gelu, output, sigmoid = cast(
            "tuple[nn.Conv2d, nn.GELU, nn.Conv2d, nn.Sigmoid]", tuple(cast("nn.Sequential", self.fractal_attention))
        )
        deep_weight, shallow_weight = hidden.weight.flatten(1).chunk(2, dim=1)
        hidden_NC = F.linear(deep_NC, deep_weight, hidden.bias)
        hidden_NC = torch.addmm(hidden_NC, shallow_NC, shallow_weight.t())
        gates_N2: Tensor = sigmoid(F.linear(gelu(hidden_NC), output.weight.flatten(1), output.bias))
        return gates_N2

    def _drop_paths(self, gates_BN2: Tensor, columns_B: Tensor | None) -> Tensor:
        """Apply local, then global drop-path to the gates; N here counts the positions of one sample."""
        if self.training and self.local_prob:
            factors_B2 = draw_local_factors(len(gates_BN2), self.local_prob, gates_BN2.device)
            gates_BN2 = gates_BN2 * factors_B2.to(gates_BN2.dtype)[:, None]
        if columns_B is not None:
            # A single input passes unscaled, as in the paper's mean of one: its gate's share a / (a + 0) is 1.
            lone_B2 = torch.stack([columns_B > 1, columns_B == 1], dim=1).to(gates_BN2.dtype)
            gates_BN2 = torch.where((columns_B > 0)[:, None, None], lone_B2[:, None], gates_BN2)
        return gates_BN2


class AdaptiveScaleProcessor(nn.Module):
    """Three neighbourhoods at once, [B, C, H, W] -> same: 1x1, 3x3 and 5x5 convolutions, fused, added to the input."""

    def __init__(self, channels: int, *, activation: Activation = "gelu") -> None:
        super().__init__()
        self.local_processor = nn.Conv2d(channels, channels, 1)
        self.regional_processor = nn.Conv2d(channels, channels, 3, padding=1)
        self.global_processor = nn.Conv2d(channels, channels, 5, padding=2)
        self.scale_fusion = nn.Sequential(
            nn.Conv2d(3 * channels, channels, 1), nn.BatchNorm2d(channels), make_activation(activation, channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the input plus the fusion of its three scales."""
        processors = [self.local_processor, self.regional_processor, self.global_processor]
        fusion, norm, activation = cast("tuple[nn.Conv2d, nn.BatchNorm2d, nn.Module]", tuple(self.scale_fusion))
        batch, channels, height, width = x_BCHW.shape
        if batch * height * width > FOLD_POSITIONS_PER_CHANNEL * channels:
            kernel, bias = fold_convolutions(fusion, processors)
            fused_BCHW = F.conv2d(x_BCHW, kernel, bias, padding=2)
        else:
            fused_BCHW = fusion(torch.cat([process(x_BCHW) for process in processors], dim=1))
        with recomputed_norm(norm, fused_BCHW) as y_BCHW:
            return activate(activation, y_BCHW) + x_BCHW
