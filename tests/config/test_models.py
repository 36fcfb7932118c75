"""What a network, its data and its training may be: defaults of the documents, bounds, rules between fields."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fbsearch.config.models import (
    AugmentConfig,
    BudgetConfig,
    DataConfig,
    FractalPatternType,
    ModelConfig,
    StrictModel,
    TrainConfig,
    TrialConfig,
)

TRIAL = TrialConfig(data=DataConfig(), model=ModelConfig(), train=TrainConfig())
MODELS = [AugmentConfig(), DataConfig(), ModelConfig(), TrainConfig(), TRIAL]
ACTIVATIONS = [
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "selu", "gelu", "silu", "swish", "mish", "hardswish", "hardsigmoid",
    "sigmoid", "tanh", "softplus", "softsign", "threshold", "softmax", "maxout", "apl",
]  # fmt: skip
BOUNDS: list[tuple[type[StrictModel], str, list[Any], list[Any]]] = [
    (AugmentConfig, "shift", [0, 4], [-1, 0.5]),
    (AugmentConfig, "cutout", [0, 8], [-1]),
    (AugmentConfig, "rotation", [0, 15, 180], [-1, 181, float("nan")]),
    (AugmentConfig, "scale", [0, 0.3], [-0.1, 1]),
    (AugmentConfig, "colour", [0, 1], [-0.1, 1.1]),
    (AugmentConfig, "erasing", [0, 0.25, 1], [-0.1, 1.1]),
    (AugmentConfig, "mixup", [0, 0.2, 100], [-0.2, 101, float("inf")]),
    (AugmentConfig, "cutmix", [0, 1.0], [-1]),
    (DataConfig, "name", ["digits", "folder", "svhn"], ["imagenet", "", None]),
    (DataConfig, "image_size", [1, 224, None], [0, -8]),
    (DataConfig, "limit", [1, None], [0]),
    (TrainConfig, "budget", [None, BudgetConfig(seconds=0.5), BudgetConfig(flops=1)], [{}, 20, {"seconds": 0}]),
    (DataConfig, "validation_share", [0.01, 0.99], [0, 1, -0.1]),
    (DataConfig, "seed", [0], [-1]),
    (ModelConfig, "fractal_levels", [(1,), (8,) * 8], [(), (0,), (2, 0), (9,), (1,) * 9, 3]),
    (ModelConfig, "base_channels", [4, 8, 100], [0, 2, 10, -4, 63]),
    (ModelConfig, "pattern", list(FractalPatternType), ["koch", None]),
    (ModelConfig, "pattern_resolution", [1, 4096], [0, 4097]),
    (ModelConfig, "stem", ["auto", "conv7", "conv3"], ["conv5"]),
    (ModelConfig, "global_attention", ["spatial", "pooled", "none"], ["full", None]),
    (ModelConfig, "drop_path", ["none", "local", "global", "mixed", "channel"], ["both"]),
    (ModelConfig, "drop_path_prob", [0, 0.99], [1, -0.1]),
    (ModelConfig, "activation", ACTIVATIONS, ["step", "GELU"]),
    (ModelConfig, "dropout", [0, 0.99], [1, -0.1]),
    (ModelConfig, "dynamics", ["all", "last", "none"], ["first"]),
    (ModelConfig, "join", ["gates", "mean"], ["sum"]),
    (ModelConfig, "scale_processor", ["full", "stem", "none"], ["all"]),
    (ModelConfig, "downsample", ["conv", "pool", "stride"], ["none"]),
    (ModelConfig, "width_growth", [1, 1.5, 4], [0.5, 5]),
    (ModelConfig, "pattern", ["cantor", "none"], ["fern"]),
    (ModelConfig, "init", ["fan_in", "identity", "reference"], ["zeros"]),
    (TrainConfig, "epochs", [1], [0, -1, 1.5]),
    (TrainConfig, "batch_size", [2], [1, 0]),
    (TrainConfig, "optimizer", ["adamw", "adam", "sgd", "rmsprop", "muon"], ["lion"]),
    (TrainConfig, "learning_rate", [1e-9, 10], [0, -1, float("nan"), float("inf")]),
    (TrainConfig, "momentum", [0, 0.99], [1, -0.1]),
    (TrainConfig, "weight_decay", [0, 1], [-0.1, float("inf")]),
    (TrainConfig, "schedule", ["one_cycle", "cosine", "constant", "halving"], ["linear"]),
    (TrainConfig, "label_smoothing", [0, 0.99], [1, -0.1]),
    (TrainConfig, "class_weights", ["none", "balanced"], ["inverse", None]),
    (TrainConfig, "clip_grad_norm", [0.1, None], [0, -1]),
    (TrainConfig, "early_stopping", [1, None], [0]),
    (TrainConfig, "precision", ["auto", "fp32", "bf16"], ["fp16"]),
]


def by_field(case: Any) -> str | None:
    return case.__name__ if isinstance(case, type) else case if isinstance(case, str) else None


def test_model_config_defaults_are_the_documents() -> None:
    model = ModelConfig()
    assert model.fractal_levels == (2, 3, 4, 5)
    assert (model.base_channels, model.pattern, model.pattern_resolution) == (64, "mandelbrot", 32)
    assert (model.activation, model.drop_path, model.drop_path_prob) == ("gelu", "local", 0.15)
    assert (model.continuous_learning, model.dropout) == (True, 0.2)


def test_patterns_are_the_five_of_the_documents() -> None:
    assert sorted(FractalPatternType) == ["cantor", "dragon_curve", "julia", "mandelbrot", "sierpinski"]


@pytest.mark.parametrize(
    ("levels", "pattern", "dynamics", "is_fractal", "is_common"),
    [
        ((1, 2), "julia", "last", True, False),
        ((1, 1), "julia", "all", False, False),
        ((2,), "none", "all", False, False),
        ((2,), "julia", "none", False, False),
        ((1, 1), "none", "all", False, True),
        ((1,), "julia", "none", False, True),
    ],
)
def test_network_is_fractal_with_blocks_and_masks_and_common_with_neither(
    levels: tuple[int, ...], pattern: str, dynamics: Any, is_fractal: bool, is_common: bool
) -> None:
    model = ModelConfig.model_validate({"fractal_levels": levels, "pattern": pattern, "dynamics": dynamics})
    assert (model.is_fractal, model.is_common) == (is_fractal, is_common)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: type(config).__name__)
def test_config_cannot_be_changed(config: StrictModel) -> None:
    name = next(iter(type(config).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, getattr(config, name))


@pytest.mark.parametrize("config", MODELS, ids=lambda config: type(config).__name__)
def test_config_unknown_key_is_refused(config: StrictModel) -> None:
    content = config.model_dump()
    type(config).model_validate(content)
    with pytest.raises(ValidationError, match=r"extra_key\n.*not permitted"):
        type(config).model_validate(content | {"extra_key": 1})


@pytest.mark.parametrize("config", MODELS, ids=lambda config: type(config).__name__)
def test_config_every_field_has_a_description_or_is_a_section(config: StrictModel) -> None:
    for name, field in type(config).model_fields.items():
        assert field.description or isinstance(getattr(config, name), StrictModel), name


@pytest.mark.parametrize(("model", "field", "allowed", "refused"), BOUNDS, ids=by_field)
def test_field_within_its_bounds_is_taken_beyond_refused(
    model: type[StrictModel], field: str, allowed: list[Any], refused: list[Any]
) -> None:
    for value in allowed:
        assert getattr(model.model_validate({field: value}), field) == value
    for value in refused:
        with pytest.raises(ValidationError) as caught:
            model.model_validate({field: value})
        assert {error["loc"][0] for error in caught.value.errors()} == {field}


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (TrainConfig, "epochs", True),
        (TrainConfig, "batch_size", "8"),
        (TrainConfig, "learning_rate", True),
        (ModelConfig, "continuous_learning", "yes"),
        (DataConfig, "skip_broken", 1),
        (AugmentConfig, "shift", True),
    ],
    ids=str,
)
def test_field_of_the_wrong_type_is_refused(model: type[StrictModel], field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        model.model_validate({field: value})


@pytest.mark.parametrize("schedule", ["cosine", "constant", "halving"])
def test_warmup_with_a_schedule_without_its_own_is_taken(schedule: str) -> None:
    assert TrainConfig.model_validate({"schedule": schedule, "warmup_epochs": 0.5}).warmup_epochs == 0.5


def test_warmup_with_one_cycle_is_refused() -> None:
    with pytest.raises(ValidationError, match="one_cycle has its own warm-up"):
        TrainConfig(warmup_epochs=1)


@pytest.mark.parametrize(("warmup", "fits"), [(2.5, True), (3, False), (4, False)])
def test_warmup_must_end_before_the_training_does(warmup: float, fits: bool) -> None:
    content = {"epochs": 3, "schedule": "cosine", "warmup_epochs": warmup}
    if fits:
        TrainConfig.model_validate(content)
        return
    with pytest.raises(ValidationError, match=f"warmup_epochs {warmup:g} must be below epochs 3"):
        TrainConfig.model_validate(content)


@pytest.mark.parametrize(("image_size", "stem"), [(8, "conv3"), (32, "conv3"), (33, "conv7"), (224, "conv7")])
def test_resolve_stem_auto_takes_conv3_up_to_32_pixels(image_size: int, stem: str) -> None:
    config = ModelConfig(base_channels=8)
    assert config.resolve_stem(image_size) == ModelConfig.model_validate({"base_channels": 8, "stem": stem})
    assert config.stem == "auto"


@pytest.mark.parametrize("stem", ["conv3", "conv7"])
def test_resolve_stem_named_stays(stem: str) -> None:
    config = ModelConfig.model_validate({"stem": stem})
    assert config.resolve_stem(8) == config.resolve_stem(224) == config


@given(
    levels=st.lists(st.integers(1, 8), min_size=1, max_size=8),
    base_channels=st.integers(1, 64).map(lambda n: 4 * n),
    pattern=st.sampled_from(FractalPatternType),
    learning_rate=st.floats(1e-300, 1e300),
    clip=st.none() | st.floats(1e-3, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_trial_config_survives_json(
    levels: list[int],
    base_channels: int,
    pattern: FractalPatternType,
    learning_rate: float,
    clip: float | None,
    seed: int,
) -> None:
    model = ModelConfig(fractal_levels=tuple(levels), base_channels=base_channels, pattern=pattern)
    train = TrainConfig(learning_rate=learning_rate, clip_grad_norm=clip)
    trial = TrialConfig(data=DataConfig(), model=model, train=train, seed=seed)
    assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial
    assert TrialConfig.model_validate(trial.model_dump(mode="json")) == trial
