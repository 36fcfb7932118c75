"""The goals of a search: what is maximised or minimised, and how each is called and written."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Metric = Literal["val_accuracy", "macro_f1", "balanced_accuracy"]
Objective = Literal[
    "val_accuracy", "macro_f1", "balanced_accuracy", "val_loss", "parameters", "flops", "seconds_per_image", "memory"
]
# What names the best trial: shares in [0, 1], measured on the validation split after each epoch.
METRICS: tuple[str, ...] = get_args(Metric)
# Those that are means over the classes: of one class they say nothing.
OF_CLASSES = ("macro_f1", "balanced_accuracy")
# Samplers that cannot search for several objectives.
SINGLE_SAMPLERS = ("cmaes",)
# Pruners that can. Optuna's pruners cannot: it refuses to report a trial's epochs.
PARETO_PRUNERS = ("successive_halving", "none")


class Goal(NamedTuple):
    """The names of a goal for people; `is_cost` is what differs by factors from one network to another."""

    label: str
    short: str
    is_maximized: bool = False
    is_cost: bool = False


GOALS: dict[str, Goal] = {
    "val_accuracy": Goal("validation accuracy", "val acc", is_maximized=True),
    "macro_f1": Goal("validation macro-F1", "macro-F1", is_maximized=True),
    "balanced_accuracy": Goal("balanced validation accuracy", "bal acc", is_maximized=True),
    "val_loss": Goal("validation loss", "val loss"),
    "parameters": Goal("parameters", "parameters", is_cost=True),
    "flops": Goal("FLOPs an image", "FLOPs", is_cost=True),
    "seconds_per_image": Goal("seconds an image", "s/image", is_cost=True),
    "memory": Goal("MiB to train (estimated)", "MiB", is_cost=True),
}


def format_goal(name: str, value: float) -> str:
    """Return a value of a goal without its name: `97.21%`, `0.1234`, `657,120`, `1.25e-05`."""
    if name in METRICS:
        return f"{value:.2%}"
    if name in ("parameters", "flops", "memory"):
        return f"{value:,.0f}"
    return f"{value:.3g}" if name == "seconds_per_image" else f"{value:.4f}"


def describe_values(goals: Sequence[str], values: Sequence[float]) -> str:
    """Return values with their names: `97.21% validation accuracy, 657,120 FLOPs an image`."""
    pairs = zip(goals, values, strict=True)
    return ", ".join(f"{format_goal(name, value)} {GOALS[name].label}" for name, value in pairs)
