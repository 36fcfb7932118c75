"""Budgets of a run: as many steps as they pay for, in equal parts, and the rest of them when it is resumed."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fbsearch.config.models import BudgetConfig, DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.space import FIELDS
from fbsearch.data.dataset import Dataset, load_dataset
from fbsearch.messages import EpochStats
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.budget import SecondsBudget, measure_steps
from fbsearch.training.loop import train
from fbsearch.training.requirements import measure_cost
from fbsearch.training.run import TrainState

MODEL = ModelConfig(fractal_levels=(1,), base_channels=4, stem="patch4", drop_path="local", dropout=0.2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(limit=200), device=CPU)


def make_config(*, epochs: int = 4, schedule: str = "one_cycle", **budget: float) -> TrialConfig:
    settings: Any = {"epochs": epochs, "batch_size": 32, "schedule": schedule, "budget": BudgetConfig(**budget)}
    return TrialConfig(data=DataConfig(limit=200), model=MODEL, train=TrainConfig(**settings))


def run(config: TrialConfig, data: Dataset, **arguments: Any) -> tuple[FractalBrainNet, list[EpochStats]]:
    torch.manual_seed(config.seed)
    net = FractalBrainNet.for_images(config.model, data.info.shape)
    return net, list(train(net, config, data, **arguments))


def test_train_with_a_budget_of_flops_takes_the_steps_that_it_pays_for(digits: Dataset) -> None:
    step = 3 * measure_cost(MODEL, digits.info.shape).flops * 32
    _, history = run(make_config(flops=10.5 * step), digits)
    # 160 images are five batches: ten steps are two passes, in four parts of two or three steps.
    assert [stats.num_images for stats in history] == [64, 96, 64, 96]
    assert [stats.epoch for stats in history] == [1, 2, 3, 4]
    assert history[-1].learning_rate < 0.001, "the schedule has its end at the last of these steps"


def test_train_with_a_budget_of_more_than_a_pass_an_epoch_goes_on_into_the_next_pass(digits: Dataset) -> None:
    step = 3 * measure_cost(MODEL, digits.info.shape).flops * 32
    _, history = run(make_config(flops=40 * step), digits)
    assert [stats.num_images for stats in history] == [320] * 4
    assert history[-1].train_loss < history[0].train_loss


def test_train_with_a_budget_of_less_than_a_step_takes_one_an_epoch(digits: Dataset) -> None:
    assert [stats.num_images for stats in run(make_config(flops=1), digits)[1]] == [32] * 4


def test_train_with_a_budget_of_seconds_takes_more_steps_for_more_of_them(digits: Dataset) -> None:
    few, many = (sum(s.num_images for s in run(make_config(seconds=one), digits)[1]) for one in (0.05, 2))
    assert few < many and few >= 4 * 32


def test_train_with_a_budget_of_seconds_computes_what_the_same_number_of_steps_computes(digits: Dataset) -> None:
    config = make_config(seconds=0.2, epochs=1)
    net, history = run(config, digits)
    num_steps = sum(stats.num_images for stats in history) // 32
    step = 3 * measure_cost(MODEL, digits.info.shape).flops * 32
    same, _ = run(make_config(flops=(num_steps + 0.5) * step, epochs=1), digits)
    for name, value in net.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), f"{name}: measuring has changed something"


def test_train_with_a_budget_of_flops_resumes_bit_for_bit(digits: Dataset) -> None:
    states: list[TrainState] = []
    config = make_config(flops=3e7)
    whole, history = run(config, digits, save_state=lambda _, state: states.append(copy.deepcopy(state)))
    resumed, rest = run(config, digits, resume_from=states[1])
    assert [(s.num_images, s.train_loss) for s in rest] == [(s.num_images, s.train_loss) for s in history[2:]]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "halving"])
def test_train_with_a_budget_of_seconds_goes_on_with_those_that_are_left(digits: Dataset, schedule: str) -> None:
    """The state is changed as a pause on a busy machine would have: no second is left, or steps cost nothing."""
    states: list[TrainState] = []
    config = make_config(seconds=0.2, schedule=schedule)
    _, whole = run(config, digits, save_state=lambda _, state: states.append(copy.deepcopy(state)))
    assert [state["budget"] is not None for state in states] == [True] * 4
    left = [state["budget"]["left"] for state in states if state["budget"]]
    assert left == sorted(left, reverse=True) and left[0] < 0.2

    none_left = states[1] | {"budget": {"left": 0.0, "seconds_a_step": 1.0}}
    _, rest = run(config, digits, resume_from=none_left)
    assert [stats.num_images for stats in rest] == [32, 32]
    # However many steps a part has, the schedule is where the parts are.
    assert [stats.learning_rate for stats in rest][-1] == pytest.approx(whole[-1].learning_rate, abs=3e-4)

    cheap = states[1] | {"budget": {"left": 10.0, "seconds_a_step": 0.05}}
    _, rest = run(config, digits, resume_from=cheap)
    assert rest[0].num_images == 100 * 32, "half of 10 s are 100 steps of 0.05 s"


def test_seconds_budget_gives_equal_parts_of_what_is_left() -> None:
    budget = SecondsBudget(left=10.0, seconds_a_step=0.5)
    assert budget.count_steps(num_parts=4) == 5
    budget.spend(7.0, num_steps=7)  # a busy machine: a second a step
    assert budget.count_steps(num_parts=3) == 1
    budget.spend(4.0, num_steps=1)
    assert (budget.left, budget.count_steps(num_parts=2)) == (0.0, 1)


def test_measure_steps_takes_what_was_spent_on_measuring_from_the_budget() -> None:
    taken = []

    def spin() -> None:
        taken.append(sum(i * i for i in range(20_000)))

    budget = measure_steps(1e-9, spin, device=CPU)
    assert budget.left == 0
    assert len(taken) == 6  # two to warm up, one to choose the number that is timed, and the fewest
    budget = measure_steps(60, spin, device=CPU, num_timed=3)
    assert 0 < budget.left < 60 and budget.seconds_a_step < 60


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        ({}, "give either seconds or flops"),
        ({"seconds": 1.0, "flops": 1.0}, "give either seconds or flops"),
        ({"seconds": 0.0}, "greater than 0"),
        ({"flops": -1.0}, "greater than 0"),
        ({"hours": 1.0}, "hours"),
    ],
)
def test_budget_that_is_none_is_refused(budget: dict[str, float], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        BudgetConfig.model_validate(budget)


def test_budget_is_stored_as_it_is_written_and_cannot_be_searched() -> None:
    assert TrainConfig(budget=BudgetConfig(seconds=20)).model_dump(mode="json")["budget"] == {"seconds": 20}
    assert "train.budget" not in FIELDS and "train.batch_size" in FIELDS
