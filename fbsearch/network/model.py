"""FractalBrainNet: the whole network, its documented sizes, its columns, and loading the reference's weights.

Attribute names are those of the public reference `FractalBrainNet-v2.py` (J. R. F. Junior), so that its state dicts
load. The parts are in `blocks`.

Suffixes: B batch, C channels, H height, W width, K classes, N tokens (positions); digits stand for themselves.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.config.models import SMALL_IMAGE, FractalPatternType, ModelConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.analysis import PatternAnalysis, analyze_maps
from fbsearch.network.blocks import AdaptiveScaleProcessor, CerebralDynamicsModule, FractalMask, FractalNeuralBlock
from fbsearch.network.fused_ops import ConvNormActivation, mean_attention
from fbsearch.network.patterns import generate_pattern

# Global drop-path: the share of the samples that pass a single column (half, as in the FractalNet paper).
GLOBAL_SHARE = 0.5

# The kernel size of each stem's convolution, and the pixels along a side that become one position of its map.
STEMS = {"conv7": (7, 2), "conv3": (3, 1), "pool3": (3, 2), "patch2": (2, 2), "patch4": (4, 4)}

# `coarse` attention: the largest number of tokens along a side, and the fewest channels of a head.
COARSE_SIDE = 4
COARSE_HEAD_CHANNELS = 16

# The sizes of the source documents, with the reference's stem; fields that they leave open have ModelConfig's defaults.
SIZES = {
    "small": ModelConfig(fractal_levels=(2, 3), base_channels=32, pattern_resolution=16, stem="conv7"),
    "medium": ModelConfig(fractal_levels=(2, 3, 4), base_channels=64, pattern_resolution=32, stem="conv7"),
    "large": ModelConfig(fractal_levels=(2, 3, 4, 5), base_channels=96, pattern_resolution=64, stem="conv7"),
    "xlarge": ModelConfig(fractal_levels=(3, 4, 5, 6), base_channels=128, pattern_resolution=128, stem="conv7"),
}


class _Headed(nn.Module):
    """The head, from the last feature map to the logits.

    A base class and not a module of its own, because a submodule's name would become part of the state dict's keys.
    """

    config: ModelConfig
    global_attention: nn.MultiheadAttention | None
    meta_learner: nn.Sequential | None
    classifier: nn.Sequential

    def _classify(self, x_BCHW: Tensor) -> Tensor:
        features_BC = x_BCHW.mean(dim=(2, 3))
        if self.global_attention is not None:
            if self.config.global_attention == "coarse":
                x_BCHW = average_cells(x_BCHW)
            pooled = self.config.global_attention == "pooled"
            tokens_BNC = features_BC[:, None] if pooled else x_BCHW.flatten(2).transpose(1, 2)
            features_BC = mean_attention(self.global_attention, tokens_BNC)
        if self.meta_learner is not None:
            features_BC = features_BC + 0.1 * self.meta_learner(features_BC)
        logits_BK: Tensor = self.classifier(features_BC)
        return logits_BK


def average_cells(x_BCHW: Tensor) -> Tensor:
    """Return the map averaged over square cells, so that at most COARSE_SIDE of them lie along a side."""
    cell = -(-max(x_BCHW.shape[2:]) // COARSE_SIDE)
    return x_BCHW if cell == 1 else F.avg_pool2d(x_BCHW, cell, ceil_mode=True, count_include_pad=False)


class FractalColumn(_Headed):
    """One column of a FractalBrainNet as a network, [B, C, H, W] -> logits [B, K]; it shares that net's parameters."""

    def __init__(self, net: "FractalBrainNet", depth: int) -> None:
        super().__init__()
        self.config = net.config
        stages = []
        for stage in net.fractal_stages:
            block, *others = cast("FractalStage", stage)
            stages.append(nn.Sequential(cast("FractalNeuralBlock", block).column(depth), *others))
        self.features = nn.Sequential(net.stem, *stages)
        self.global_attention, self.meta_learner = net.global_attention, net.meta_learner
        self.classifier = net.classifier
        self.training = net.training

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits."""
        return self._classify(self.features(x_BCHW))


class FractalStage(nn.Sequential):
    """A fractal block and the parts after it, each of which maps a feature map to one: dynamics, scales, downsampling.

    The scale processor is child 1 and the downsampling child 2, as in the reference; an absent part is an Identity.
    `downsample: pool` has its maximum within the block.
    """

    def forward(self, x_BCHW: Tensor, columns_B: Tensor | None = None) -> Tensor:
        """Return the map after the stage; `columns_B` as in FractalNeuralBlock."""
        block, *others = self
        x_BCHW = block(x_BCHW, columns_B)
        for part in others:
            x_BCHW = part(x_BCHW)
        return x_BCHW


class FractalBrainNet(_Headed):
    """The whole network: images [B, in_channels, H, W] -> logits [B, num_classes].

    A stem; for each level of `config.fractal_levels` a stage (block, scale processor, and a convolution of stride 2
    except after the last) with C_i = base_channels * width_growth^min(i, 4) channels; attention, meta-learner and
    classifier. For S stages, H and W must be at least 2^(S - 1) times the stem's stride. `image_size` (pixels) is used
    only to resolve `stem: auto`; without it, auto means conv7. The resolved configuration is the attribute `config`.
    ModelConfig's fields leave parts out or replace them by cheaper ones; its defaults are the documented network.

    Deviations from the reference, with the values of `config` that give its form: attention over positions (`pooled`),
    drop-path of whole paths (`channel`), fan-in initialisation of gates, bands and head (`reference`), the small stem
    (`conv7`).
    """

    def __init__(
        self, config: ModelConfig, *, num_classes: int = 10, in_channels: int = 3, image_size: int | None = None
    ) -> None:
        super().__init__()
        self.config = config = config.resolve_stem(SMALL_IMAGE + 1 if image_size is None else image_size)
        for name, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; allowed: 1 or more")
        self.in_channels = in_channels
        resolution = config.pattern_resolution
        absent = config.pattern == "none"
        self.mask = FractalMask(None if absent else generate_pattern(config.pattern, resolution, resolution))
        self.stem = self._make_stem()
        channels = config.stage_channels()
        self.fractal_stages = nn.ModuleList(
            self._make_stage(i, channels[max(i - 1, 0)], channels[i]) for i in range(len(channels))
        )
        self._build_head(channels[-1], num_classes)
        _initialise(self)
        # The blocks' memory format: the kernels then need no conversion in every forward pass.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def for_images(cls, config: ModelConfig, shape: ImageShape) -> "FractalBrainNet":
        """Return the network for images of `shape`, its weights drawn from torch's global generator."""
        return cls(config, num_classes=shape.num_classes, in_channels=shape.in_channels, image_size=shape.image_size)

    @property
    def fractal_pattern(self) -> Tensor:
        """The mask as drawn, [r, r] in [0, 1], float32 on the CPU."""
        return self.mask.pattern_HW

    def forward(self, x_BCHW: Tensor, return_attention_maps: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return the logits [B, K]; on request also the mean over channels after each stage, a list of [B, 1, h, w].

        Raise ConfigError for images with other than `in_channels` channels or too small for the stages.
        """
        self._check_images(x_BCHW)
        columns_B = self._draw_columns(x_BCHW)
        x_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        attention_maps = []
        for stage in self.fractal_stages:
            x_BCHW = stage(x_BCHW, columns_B)
            if return_attention_maps:
                attention_maps.append(x_BCHW.mean(dim=1, keepdim=True))
        logits_BK = self._classify(x_BCHW)
        return (logits_BK, attention_maps) if return_attention_maps else logits_BK

    def column(self, depth: int) -> FractalColumn:
        """Return the sub-network of one column: images -> logits [B, K], its parameters shared with this net.

        `depth` counts from 1 to the highest level; column d is a chain of 2^(d - 1) convolutions in every block, or
        the deepest column of a block with fewer. It computes what this net computes for a sample whose column global
        drop-path keeps, so it is accurate only after training with drop_path `global` or `mixed`.
        Raise ConfigError for other depths.
        """
        deepest = max(self.config.fractal_levels)
        if not 1 <= depth <= deepest:
            raise ConfigError(f"column depth is {depth}; allowed: 1 to {deepest}")
        return FractalColumn(self, depth)

    def analyze_fractal_patterns(self, x_BCHW: Tensor) -> PatternAnalysis:
        """Return the response of the stages to a batch, in eval mode, without gradients; training flags are restored.

        `fractal_pattern` [r, r]; `attention_maps`, one [B, 1, h, w] for each stage; `pattern_complexity`, one float
        for each stage: entropy in nats of the softmax over positions; `hierarchical_organization`: `correlation`, the
        mean of `correlate_neighbours`, and `hierarchy_score`, 1 - correlation; both 0 with a single stage.
        Deviation: the reference flattens the batch into one map; here the figures are means over the images, so that
        they do not depend on the batch's size.
        """
        training_flags = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                _, attention_maps = self(x_BCHW, return_attention_maps=True)
        finally:
            for module, flag in training_flags.items():
                module.training = flag
        return analyze_maps(self.fractal_pattern, attention_maps)

    def _make_stem(self) -> nn.Sequential:
        config, channels = self.config, self.config.base_channels
        kernel_size, stride = STEMS[config.stem]
        pooled = config.stem == "pool3"
        stem = ConvNormActivation(
            self.in_channels, channels, kernel_size, stride=1 if pooled else stride, activation=config.activation,
            padding=0 if kernel_size == stride else kernel_size // 2, pool=pooled,
        )  # fmt: skip
        if config.scale_processor != "none":
            stem.append(AdaptiveScaleProcessor(channels, activation=config.activation))
        return stem

    def _make_stage(self, index: int, in_channels: int, channels: int) -> FractalStage:
        config = self.config
        is_last = index == len(config.fractal_levels) - 1
        block = FractalNeuralBlock(
            config.fractal_levels[index], in_channels, channels, self.mask, config.drop_path,
            drop_path_prob=config.drop_path_prob, activation=config.activation, dynamics=config.dynamics == "all",
            join=config.join, stride=2 if index and config.downsample == "stride" else 1,
            pool=config.downsample == "pool" and not is_last,
        )  # fmt: skip
        scale_processor: nn.Module = nn.Identity()
        if config.scale_processor == "full":
            scale_processor = AdaptiveScaleProcessor(channels, activation=config.activation)
        downsample: nn.Module = nn.Identity()
        if config.downsample == "conv" and not is_last:
            downsample = ConvNormActivation(channels, channels, 3, stride=2, activation=config.activation)
        parts: OrderedDict[str, nn.Module] = OrderedDict({"0": block})
        if config.dynamics == "last":
            parts["dynamics"] = CerebralDynamicsModule(channels, self.mask)
        return FractalStage(OrderedDict(**parts, **{"1": scale_processor, "2": downsample}))

    def _build_head(self, channels: int, num_classes: int) -> None:
        config = self.config
        self.global_attention = None
        if config.global_attention != "none":
            widest = channels // COARSE_HEAD_CHANNELS if config.global_attention == "coarse" else 8
            num_heads = max(heads for heads in range(1, max(1, min(8, widest)) + 1) if channels % heads == 0)
            self.global_attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.meta_learner = None
        if config.continuous_learning:
            self.meta_learner = nn.Sequential(
                nn.Linear(channels, channels // 4), nn.GELU(), nn.Linear(channels // 4, channels)
            )
        self.classifier = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(channels, channels // 2),
            nn.GELU(),
            nn.Dropout(config.dropout / 2),
            nn.Linear(channels // 2, num_classes),
        )

    def _check_images(self, x_BCHW: Tensor) -> None:
        smallest = STEMS[self.config.stem][1] * 2 ** (len(self.config.fractal_levels) - 1)
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] != self.in_channels or min(x_BCHW.shape[2:]) < smallest:
            raise ConfigError(
                f"images have shape {list(x_BCHW.shape)}; allowed: [B, {self.in_channels}, H, W] with H and W of "
                f"{smallest} or more ({len(self.config.fractal_levels)} stages, stem {self.config.stem})"
            )

    def _draw_columns(self, x_BCHW: Tensor) -> Tensor | None:
        """Draw global drop-path's columns, int64 [B]: 0 keeps all, else the depth of the one column kept, uniform."""
        if not self.training or self.config.drop_path not in ("global", "mixed"):
            return None
        batch, device = len(x_BCHW), x_BCHW.device
        depths_B = torch.randint(1, max(self.config.fractal_levels) + 1, (batch,), device=device)
        return depths_B * (torch.rand(batch, device=device) < GLOBAL_SHARE)


def create_fractal_brain_net(
    model_size: str = "medium",
    num_classes: int = 10,
    fractal_pattern: FractalPatternType = FractalPatternType.MANDELBROT,
    in_channels: int = 3,
) -> FractalBrainNet:
    """Return a network of a documented size: small, medium, large or xlarge (see SIZES).

    Raise ConfigError for any other size. Deviation: for an unknown size the reference takes medium.
    """
    if model_size not in SIZES:
        raise ConfigError(f"model_size is {model_size!r}; allowed: {', '.join(SIZES)}")
    config = SIZES[model_size].model_copy(update={"pattern": fractal_pattern})
    return FractalBrainNet(config, num_classes=num_classes, in_channels=in_channels)


def load_reference_state_dict(model: FractalBrainNet, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of the public reference into a net built with conv7, pooled attention and gelu.

    The reference's mask copies (keys ending in `.fractal_pattern`) replace the net's mask, if there are any. In eval
    mode the outputs then agree with the reference's to 1e-4.
    Raise ConfigError for a net of another kind, mask copies that differ, and keys that are missing, unexpected or of
    another shape; the error lists them all.
    """
    parts = ("dynamics", "join", "scale_processor", "downsample", "width_growth")
    needed = {"stem": "conv7", "global_attention": "pooled", "activation": "gelu"}
    needed |= {name: ModelConfig.model_fields[name].default for name in parts}
    for name, value in needed.items():
        if getattr(model.config, name) != value:
            raise ConfigError(
                f"model.{name} is {getattr(model.config, name)!r}; allowed with a reference state dict: {value!r}"
            )
    masks = [value for key, value in state_dict.items() if key.endswith(".fractal_pattern")]
    if any(not torch.equal(mask_HW, masks[0]) for mask_HW in masks):
        raise ConfigError("the state dict's fractal_pattern copies differ; allowed: one pattern for the whole net")
    weights = {key: value for key, value in state_dict.items() if not key.endswith(".fractal_pattern")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"the state dict does not fit the net: {error}") from error
    if masks:
        model.mask.replace(masks[0])


def _initialise(net: FractalBrainNet) -> None:
    """Initialise all weights by `config.init`.

    `reference`: convolutions He normal, fan-out; Linear truncated normal, std 0.02. `fan_in`: He normal with fan-in
    for the gates, the bands and every Linear; with fan-out half of the gates' sigmoids start saturated, and with std
    0.02 the logits start at 5e-4. In both, norms are 1 and 0, biases 0; attention's input projection stays Xavier.
    `identity`: `fan_in` with the norms of the dynamics modules at 0, so that each returns its input at first.
    """
    fan_in = net.config.init != "reference"
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            is_gate_or_band = ".fractal_attention." in name or name.endswith("_processing")
            mode: Literal["fan_in", "fan_out"] = "fan_in" if fan_in and is_gate_or_band else "fan_out"
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        elif isinstance(module, nn.Linear) and fan_in:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            is_nothing = net.config.init == "identity" and isinstance(module, nn.LayerNorm)  # dynamics' alone
            nn.init.constant_(module.weight, 0.0 if is_nothing else 1.0)
        else:
            continue
        nn.init.zeros_(module.bias)
