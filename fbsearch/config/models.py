"""The settings of a network, its training and its data: frozen pydantic models of all that a user can set.

The description of a field is its comment in the file that `fbsearch init` writes, and its text in the JSON schema.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class FractalPatternType(StrEnum):
    """The five fractals of the source documents."""

    MANDELBROT = "mandelbrot"
    SIERPINSKI = "sierpinski"
    JULIA = "julia"
    CANTOR = "cantor"
    DRAGON_CURVE = "dragon_curve"


NO_PATTERN: Literal["none"] = "none"


def _check_pattern(value: object) -> FractalPatternType | Literal["none"]:
    if value == NO_PATTERN:
        return NO_PATTERN
    if isinstance(value, str) and value in {*FractalPatternType}:
        return FractalPatternType(value)
    raise ValueError(f"must be {', '.join(FractalPatternType)} or none")


Pattern = Annotated[
    FractalPatternType | Literal["none"],
    BeforeValidator(_check_pattern, json_schema_input_type=Literal[(*map(str, FractalPatternType), NO_PATTERN)]),
]
DataName = Literal["digits", "folder", "arrays", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"]
Activation = Literal[
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "selu", "gelu", "silu", "swish", "mish", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "softsign", "threshold", "softmax", "maxout", "apl",
]  # fmt: skip
Precision = Literal["auto", "fp32", "bf16"]

COMMON_NETWORK = "a common convolutional network: no block of level 2 or more, and no masks"
# The largest image size, in pixels, for which `stem: auto` keeps full resolution (CIFAR's size).
SMALL_IMAGE = 32
# The largest side to which images are resized. More is a mistake, which would only be noticed when memory has run out.
MAX_IMAGE_SIZE = 8192
# Pillow decodes no larger images.
MAX_PIXELS = 178_956_970
USUAL_PIXELS = 100_000_000
# NumPy's generators take 32 bits. A trial's seed is the study's plus its number.
MAX_STUDY_SEED, MAX_SEED = 2**31 - 1, 2**32 - 1


class StrictModel(BaseModel):
    """Base of all models here: frozen; unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class AugmentConfig(StrictModel):
    """Random changes of the training images, drawn again for each image in each epoch."""

    flip: bool = Field(False, description="mirror left-right with probability 1/2")
    shift: int = Field(0, ge=0, description="pixels; shift by up to this many each way, edges reflected")
    cutout: int = Field(0, ge=0, description="pixels; side of a square that is blanked at a random place, 0 is off")
    rotation: float = Field(0, ge=0, le=180, description="degrees; rotate by up to this many each way, edges reflected")
    scale: float = Field(0, ge=0, lt=1, description="shrink or enlarge: 0.2 is 0.8 to 1.2 times, edges reflected")
    colour: float = Field(
        0, ge=0, le=1, description="brightness, contrast and saturation: 0.4 is 0.6 to 1.4 times of each"
    )
    erasing: float = Field(
        0, ge=0, le=1, description="probability that a rectangle of 2 to 33% of the image is blanked within it"
    )
    mixup: float = Field(
        0, ge=0, le=100, description="alpha, usually 0.2; blend images and labels by shares from Beta(alpha, alpha)"
    )
    cutmix: float = Field(
        0, ge=0, le=100, description="alpha, usually 1; paste a part of another image, labels mixed by area"
    )


class DataConfig(StrictModel):
    """The images, their size and their split."""

    name: DataName = Field(
        "digits", description="digits | folder | arrays | mnist | fashion_mnist | kmnist | cifar10 | cifar100 | svhn"
    )
    root: str = Field(
        "data",
        description="where downloads go; `folder`: train/<class>/*, optional val/, test/; `arrays`: an .npz file",
    )
    image_size: Annotated[int, Field(gt=0, le=MAX_IMAGE_SIZE)] | None = Field(
        None, description="pixels; images are resized to this square, null keeps their own size"
    )
    max_pixels: int = Field(
        USUAL_PIXELS, gt=0, le=MAX_PIXELS, description="width x height; an image file of more counts as broken"
    )
    value_range: tuple[float, float] | None = Field(
        None,
        strict=False,
        description="[black, white]: the ends of the values of arrays that are not uint8; null is [0, 1]",
    )
    limit: PositiveInt | None = Field(None, description="at most this many training images, stratified; null takes all")
    validation_share: float = Field(
        0.2, gt=0, lt=1, description="share of the training images that chooses between trials, stratified"
    )
    augment: AugmentConfig = Field(AugmentConfig(), description="random changes of the training images")
    skip_broken: bool = Field(False, description="skip and count images that cannot be read, instead of stopping")
    seed: int = Field(0, ge=0, le=MAX_STUDY_SEED, description="of the split into training and validation")

    @model_validator(mode="after")
    def _check_range(self) -> "DataConfig":
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} must be [black, white], the lower value first")
        return self


class ModelConfig(StrictModel):
    """The FractalBrainNet. The defaults are those of the source documents."""

    fractal_levels: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1, max_length=8)] = Field(
        (2, 3, 4, 5),
        strict=False,
        description="one level for each stage; a block of level n has 2^n - 1 convolutions, 2^(n-1) deep",
    )
    base_channels: int = Field(
        64,
        ge=4,
        le=2**20,
        multiple_of=4,
        description="channels of the first stage; `width_growth` times as many in each of the next four",
    )
    width_growth: float = Field(
        2.0, ge=1, le=4, description="channels of a stage, as a multiple of the stage's before; rounded to fours"
    )
    pattern: Pattern = Field(
        FractalPatternType.MANDELBROT,
        description="mandelbrot | sierpinski | julia | cantor | dragon_curve | none (bands without masks)",
    )
    pattern_resolution: int = Field(
        32, ge=1, le=4096, description="the pattern is drawn at this size, then resized to each feature map"
    )
    dynamics: Literal["all", "last", "none"] = Field(
        "all", description="all: a dynamics module after each convolution | last: one at the end of each block | none"
    )
    join: Literal["gates", "mean"] = Field(
        "gates", description="of two branches: gates: learned weights at each position | mean: as FractalNet joins"
    )
    scale_processor: Literal["full", "stem", "none"] = Field(
        "full", description="full: after the stem and each block | stem: after the stem only | none"
    )
    downsample: Literal["conv", "pool", "stride"] = Field(
        "conv",
        description="between stages: conv (3x3, stride 2) | pool (maximum of 2x2 within the block) | stride (of the "
        "next block)",
    )
    stem: Literal["auto", "conv7", "conv3", "pool3", "patch2", "patch4"] = Field(
        "auto",
        description="conv7 (7x7, stride 2) | conv3 (3x3, stride 1) | pool3 (conv3 and the maximum of 2x2) | patch2, "
        "patch4 (2x2, 4x4, its size as stride) | auto: conv3 up to 32 pixels",
    )
    global_attention: Literal["spatial", "coarse", "pooled", "none"] = Field(
        "spatial",
        description="spatial: over the positions of the last map | coarse: over at most 16 averaged positions | "
        "pooled: over one token, as the reference | none",
    )
    drop_path: Literal["none", "local", "global", "mixed", "channel"] = Field(
        "local",
        description="none | local | global | mixed (half and half) | channel (the reference's channel dropout)",
    )
    drop_path_prob: float = Field(0.15, ge=0, lt=1, description="probability with which a path is dropped at a join")
    activation: Activation = Field(
        "gelu", description="any hidden-layer function of the documents: relu, gelu, silu, mish, maxout, ..."
    )
    continuous_learning: bool = Field(True, description="the meta-learner: features + 0.1 * meta(features)")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="before the classifier's first layer; half of it before the second"
    )
    init: Literal["fan_in", "identity", "reference"] = Field(
        "fan_in",
        description="fan_in: He for gates, bands and head | identity: the same, dynamics begin as nothing | reference: "
        "as documented, learns slowly",
    )

    @property
    def uses_mask(self) -> bool:
        """Whether the pattern takes part in the computation."""
        return self.pattern != "none" and self.dynamics != "none"

    @property
    def has_fractal_block(self) -> bool:
        """Whether a stage repeats itself: of level 2 or more. A block of level 1 is one convolution."""
        return max(self.fractal_levels) >= 2

    @property
    def is_fractal(self) -> bool:
        """Whether the network keeps the fractal: its blocks in at least one stage, and its masks."""
        return self.has_fractal_block and self.uses_mask

    @property
    def is_common(self) -> bool:
        """Whether the network has neither the blocks nor the masks: it is a COMMON_NETWORK."""
        return not self.has_fractal_block and not self.uses_mask

    def stage_channels(self) -> list[int]:
        """Return the channels of each stage; from the fifth on they grow no more."""
        widths = [self.base_channels * self.width_growth ** min(i, 4) for i in range(len(self.fractal_levels))]
        return [4 * int(width / 4 + 0.5) for width in widths]

    def resolve_stem(self, image_size: int) -> "ModelConfig":
        """Return the configuration with `stem: auto` replaced by the stem for images of `image_size` pixels."""
        if self.stem != "auto":
            return self
        return self.model_copy(update={"stem": "conv3" if image_size <= SMALL_IMAGE else "conv7"})


class BudgetConfig(StrictModel):
    """What the training steps of one run may cost, in one of the two units."""

    seconds: float | None = Field(
        None,
        gt=0,
        description="of training steps: of the processor for one thread, else of the clock",
    )
    flops: float | None = Field(None, gt=0, description="of training steps, three forward passes for each image")

    @model_validator(mode="after")
    def _check_one(self) -> "BudgetConfig":
        if (self.seconds is None) == (self.flops is None):
            raise ValueError("give either seconds or flops")
        return self

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.seconds is not None else f"{self.flops:g} FLOPs"

    @model_serializer(mode="wrap")
    def _leave_other_out(self, serialize: SerializerFunctionWrapHandler) -> dict[str, float]:
        return {unit: value for unit, value in serialize(self).items() if value is not None}


class TrainConfig(StrictModel):
    """One training run."""

    epochs: PositiveInt = Field(
        8, description="passes over the training images; with a budget, its equal parts; validated after each"
    )
    budget: BudgetConfig | None = Field(
        None,
        description="{seconds: 20} or {flops: 1e12} of training steps; a cheap network takes more of them. null: whole "
        "passes",
    )
    batch_size: int = Field(64, ge=2, description="images a step")
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "muon"] = Field(
        "adamw",
        description="adamw | adam | sgd (Nesterov) | rmsprop | muon (turns kernels by 10 rates; adamw elsewhere)",
    )
    learning_rate: float = Field(0.01, gt=0, description="highest learning rate of the schedule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and rmsprop")
    weight_decay: float = Field(0.01, ge=0, description="of weights; biases and normalisation are left alone")
    schedule: Literal["one_cycle", "cosine", "constant", "halving"] = Field(
        "one_cycle", description="one_cycle | cosine | constant | halving (a tenth whenever the epochs left halve)"
    )
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up; one_cycle has its own")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target given to all classes evenly")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="none | balanced (rare classes weigh more in the loss, so that all weigh the same)"
    )
    clip_grad_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null leaves it")
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better validation accuracy"
    )
    keep_best: bool = Field(False, description="score and keep the best epoch's weights instead of the last's")
    precision: Precision = Field(
        "auto", description="auto | fp32 | bf16 (matrix products and convolutions in bfloat16)"
    )
    cuda_graph: bool = Field(
        True, description="on a GPU, replay each step as one captured CUDA graph; false launches its kernels one by one"
    )
    tensorboard: str | None = Field(
        None, min_length=1, description="folder for curves that TensorBoard shows, one run a trial; null writes none"
    )

    @model_validator(mode="after")
    def _check_warmup(self) -> "TrainConfig":
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError("warmup_epochs goes with cosine, constant and halving; one_cycle has its own warm-up")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be below epochs {self.epochs}")
        return self


class LimitsConfig(StrictModel):
    """The highest costs of a configuration that is trained. null: no limit."""

    parameters: int | None = Field(None, gt=0, description="of the network")
    flops: int | None = Field(None, gt=0, description="of one image's forward pass, two for each multiply-add")
    memory_mib: float | None = Field(
        None, gt=0, description="estimated peak of training: network, optimizer, one batch and its activations"
    )

    def excess(self, costs: dict[str, float | None]) -> dict[str, float]:
        """Return the share by which each cost exceeds its limit, for the limits that are set; 0 or less is within."""
        found = {}
        for key, limit in self.model_dump(include=set(costs), exclude_none=True).items():
            cost = costs[key]
            assert cost is not None, "a cost with a limit is measured"
            found[key] = cost / limit - 1
        return found


class TrialConfig(StrictModel):
    """The whole configuration of a trial, which is stored with it: a run can be repeated from this alone."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of weights, batches and augmentation")
    # Sent to the worker, which measures the costs, but neither stored nor exported: it is a setting of the search.
    limits: LimitsConfig = Field(LimitsConfig(), exclude=True)
    # The same: what the worker measures beside accuracy and loss.
    goals: tuple[str, ...] = Field(("val_accuracy",), exclude=True, description="what the worker measures")
