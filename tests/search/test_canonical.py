"""Equal configurations have equal canonical keys; where training can show that they are equal, they are trained."""

from typing import Any

import pytest
import torch

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.network.model import FractalBrainNet
from fbsearch.search.proposals import canonical
from fbsearch.training.loop import train

JOINS = {"fractal_levels": (2,)}
NO_JOINS = {"fractal_levels": (1, 1)}
Pair = tuple[dict[str, Any], dict[str, Any]]

SAME_MODELS: list[Pair] = [
    ({"activation": "swish"}, {"activation": "silu"}),
    ({"drop_path": "none", "drop_path_prob": 0.1}, {"drop_path": "none", "drop_path_prob": 0.5}),
    ({"drop_path": "global", "drop_path_prob": 0.1}, {"drop_path": "global", "drop_path_prob": 0.5}),
    ({"drop_path": "local", "drop_path_prob": 0.0}, {"drop_path": "none"}),
    ({"drop_path": "channel", "drop_path_prob": 0.0}, {"drop_path": "none"}),
    ({"drop_path": "mixed", "drop_path_prob": 0.0}, {"drop_path": "global"}),
    (NO_JOINS | {"drop_path": "local"}, NO_JOINS | {"drop_path": "none"}),
    (NO_JOINS | {"drop_path": "none", "join": "mean"}, NO_JOINS | {"drop_path": "none", "join": "gates"}),
    ({"downsample": "pool"}, {"downsample": "conv"}),
    ({"width_growth": 1.0}, {"width_growth": 2.0}),
    ({"dynamics": "none", "pattern": "julia"}, {"dynamics": "none", "pattern": "none"}),
    ({"pattern": "none", "pattern_resolution": 8}, {"pattern": "none", "pattern_resolution": 16}),
]
# The same training, with other random numbers drawn.
ALIKE_MODELS: list[Pair] = [(NO_JOINS | {"drop_path": "global"}, NO_JOINS | {"drop_path": "none"})]
SAME_TRAININGS: list[Pair] = [
    ({"momentum": 0.5}, {"momentum": 0.9}),
    ({"optimizer": "muon", "momentum": 0.5}, {"optimizer": "muon", "momentum": 0.9}),
    ({"optimizer": "adam", "weight_decay": 0.0}, {"optimizer": "adamw", "weight_decay": 0.0}),
    ({"early_stopping": 2}, {"early_stopping": None}),
    ({"tensorboard": None}, {}),
]
OTHER: list[Pair] = [
    ({"drop_path": "local", "drop_path_prob": 0.1}, {"drop_path": "local", "drop_path_prob": 0.2}),
    (NO_JOINS | {"drop_path": "channel"}, NO_JOINS | {"drop_path": "none"}),
    ({"pattern": "julia"}, {"pattern": "cantor"}),
    ({"fractal_levels": (1, 2)}, {"fractal_levels": (2, 1)}),
    ({"fractal_levels": (1, 2), "downsample": "pool"}, {"fractal_levels": (1, 2), "downsample": "conv"}),
    ({"join": "mean"}, {"join": "gates"}),
    ({"pattern": "none"}, {"pattern": "cantor"}),
]
OTHER_TRAININGS: list[Pair] = [
    ({"optimizer": "sgd", "momentum": 0.5}, {"optimizer": "sgd", "momentum": 0.9}),
    ({"optimizer": "adam"}, {"optimizer": "adamw"}),
    ({"optimizer": "muon", "weight_decay": 0.0}, {"optimizer": "adamw", "weight_decay": 0.0}),
    ({"early_stopping": 1}, {"early_stopping": None}),
    ({"learning_rate": 0.01}, {"learning_rate": 0.010000000001}),
]


def make_trial(model: dict[str, Any], training: dict[str, Any], *, seed: int = 0) -> TrialConfig:
    model = JOINS | {"base_channels": 4, "stem": "conv3", "pattern_resolution": 8} | model
    training = {"epochs": 3, "batch_size": 32, "precision": "fp32"} | training
    return TrialConfig(data=DataConfig(limit=100), model=ModelConfig(**model), train=TrainConfig(**training), seed=seed)


@pytest.mark.parametrize(("one", "other"), SAME_MODELS + ALIKE_MODELS)
def test_canonical_merges_models_that_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical(make_trial(one, {})) == canonical(make_trial(other, {}, seed=7))


@pytest.mark.parametrize(("one", "other"), SAME_TRAININGS)
def test_canonical_merges_trainings_that_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert canonical(make_trial({}, one)) == canonical(make_trial({}, other))


def test_canonical_keeps_apart_what_differs() -> None:
    for one, other in OTHER:
        assert canonical(make_trial(one, {})) != canonical(make_trial(other, {})), (one, other)
    for one, other in OTHER_TRAININGS:
        assert canonical(make_trial({}, one)) != canonical(make_trial({}, other)), (one, other)


@pytest.mark.slow
def test_canonical_same_form_trains_to_the_same_numbers() -> None:
    data = load_dataset(DataConfig(limit=100), with_test=False)

    def losses(config: TrialConfig) -> list[float]:
        torch.manual_seed(0)
        model = FractalBrainNet(config.model, in_channels=1, image_size=8)
        return [stats.train_loss for stats in train(model, config, data)]

    pairs = [(make_trial(one, {}), make_trial(other, {})) for one, other in SAME_MODELS]
    pairs += [(make_trial({}, one), make_trial({}, other)) for one, other in SAME_TRAININGS]
    for one, other in pairs:
        assert losses(one) == losses(other), (one, other)
