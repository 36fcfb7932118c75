"""Train baselines for a search's result on the same data, with the same trainer and seeds.

`cnn`, `resnet8`, `fractalnet` and `resnet18` are other networks, trained as rank 1 is (or FractalNet by its paper's
recipe); `small` and `medium` are the documented sizes, trained with the documents' optimiser and learning rate;
`random_search` spends the search's compute on random configurations. A baseline that cannot be built, diverges or runs
out of memory fails alone.
"""

import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch

from fbsearch.config.choices import BaselineName, BaselineRecipe
from fbsearch.config.export_file import Export, ExportedConfig
from fbsearch.config.models import ModelConfig, TrainConfig
from fbsearch.errors import ConfigError, TrialError
from fbsearch.messages import ImageShape
from fbsearch.network.baselines import NET_NAMES, NetName, describe_net
from fbsearch.network.model import SIZES
from fbsearch.training.devices import is_out_of_memory
from fbsearch.training.requirements import measure_cost
from fbsearch.winners.comparison import Outcome
from fbsearch.winners.plan import Run, RunError, Settings, plan_seeds, study_folder, train_config
from fbsearch.winners.progress import View
from fbsearch.winners.random_search import search_randomly
from fbsearch.winners.retrain import Loader, retrain

DOCUMENTED_RATE = 0.001
BASELINES: tuple[str, ...] = tuple(BaselineName)


@dataclass(frozen=True)
class Baselines:
    """The baselines of one exported configuration."""

    export: Export
    path: Path
    config: ExportedConfig
    settings: Settings
    recipe: BaselineRecipe
    _: KW_ONLY
    names: Sequence[str] = BASELINES
    load: Loader
    view: View

    def train(self) -> list[Outcome]:
        """Train the named baselines in the order of BASELINES. Raises FbsearchError as `retrain` does."""
        plans: dict[str, Callable[[], tuple[list[Run], str]]] = {
            **{name: functools.partial(self._plan_net, name) for name in NET_NAMES},
            "small": lambda: self._plan_size("small"),
            "medium": lambda: self._plan_size("medium"),
            "random_search": self._plan_random_search,
        }
        return [self._train(name, plans[name]) for name in BASELINES if name in self.names]

    def _train(self, name: str, plan: Callable[[], tuple[list[Run], str]]) -> Outcome:
        try:
            runs, note = plan()
            _check(runs)
            return Outcome(name, note, tuple(retrain(runs, load=self.load, view=self.view)))
        except (RunError, TrialError) as error:
            failure = str(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = "out of memory; a smaller batch size, or another machine, may hold it"
        gc.collect()
        if self.load.device.type == "cuda":
            torch.cuda.empty_cache()
        self.view.ended(f"{name}: failed: {failure}")
        return Outcome(name, "", failure=failure)

    @property
    def _trained(self) -> TrainConfig:
        """Return the training of the configuration itself."""
        return train_config(self.config.train, self.settings, label=f"rank {self.config.rank}")

    def _runs(self, name: str, *, net: NetName | None = None, **changes: Any) -> list[Run]:
        """Return the runs of a baseline. RunError, which ends this baseline alone, where the flags contradict it."""
        config = self.config.model_copy(update=changes)
        try:
            return plan_seeds(self.export.study, config, self.settings, baseline=name, net=net)
        except ConfigError as error:
            raise RunError(str(error)) from None

    def _plan_net(self, name: NetName) -> tuple[list[Run], str]:
        try:
            what = describe_net(name, image_size=self.config.image_size)
        except ConfigError as error:
            raise RunError(str(error)) from None
        if name != "fractalnet" or self.recipe is BaselineRecipe.SAME:
            return self._runs(name, net=name), f"{what}; trained as rank {self.config.rank}"
        runs = self._runs(name, net=name, train=paper_recipe(self._trained))
        return runs, f"{what}; its paper's recipe, {_describe_length(runs)}"

    def _plan_size(self, name: str) -> tuple[list[Run], str]:
        model, change = fit_size(SIZES[name], self.config.shape)
        runs = self._runs(name, model=model, train=untuned(self._trained))
        return runs, f"the documented size{change}, Adam at {DOCUMENTED_RATE:g}; {_describe_length(runs)}"

    def _plan_random_search(self) -> tuple[list[Run], str]:
        search = self.export.search
        if search is None:
            raise RunError(
                f"{self.path} has no section `search`; export the study again: `fbsearch export` writes it now"
            )
        if not search.compute.train_flops:
            raise RunError(f"{self.path}: search.compute.train_flops is 0: so the random search has no budget")
        folder = study_folder(self.settings.output, self.export.study) / "random-search"
        found = search_randomly(self.export.study, search, self.config, folder, load=self.load, view=self.view)
        best = found.best
        runs = self._runs("random_search", model=best.config.model, train=best.config.train)
        draws = f"{len(found.draws)} draw{'s' if len(found.draws) > 1 else ''}"
        how = f"trained as it was drawn, {_describe_length(runs)}"
        share = f"{found.spent:.0%} of the search's FLOPs"
        return runs, f"best of {draws} (validation {best.val_accuracy:.2%}) for {share}; {how}"


def _describe_length(runs: Sequence[Run]) -> str:
    train = runs[0].config.train
    if train.budget is not None:
        return f"{train.budget} of training steps"
    epochs = train.epochs
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"


def _check(runs: Sequence[Run]) -> None:
    """Raise a RunError where the network cannot be built for these images."""
    try:
        runs[0].cost()
    except (ConfigError, RuntimeError, ValueError) as error:
        raise RunError(f"cannot be built: {error}") from None


def untuned(train: TrainConfig) -> TrainConfig:
    """Return the documents' training: Adam with learning rate 0.001 and no weight decay, TrainConfig's other defaults.

    (TrainConfig's learning rate suits the small networks of the default study: medium does not learn with it.) Epochs,
    budget, kept weights and precision are those of `train`.
    """
    same = {name: getattr(train, name) for name in ("epochs", "budget", "early_stopping", "keep_best", "precision")}
    return TrainConfig(optimizer="adam", learning_rate=DOCUMENTED_RATE, weight_decay=0, **same)


def paper_recipe(train: TrainConfig) -> TrainConfig:
    """Return the training of the FractalNet paper (Larsson et al., 2017); dropout and drop-path are in the network.

    The paper names no weight decay and no label smoothing, so there is none. Deviation: this sgd is Nesterov's. Kept
    weights and precision are those of `train`; `--epochs` shortens the training and its schedule.
    """
    return TrainConfig(
        epochs=400,
        batch_size=100,
        optimizer="sgd",
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=0,
        schedule="halving",
        label_smoothing=0,
        early_stopping=train.early_stopping,
        keep_best=train.keep_best,
        precision=train.precision,
    )


def fit_size(size: ModelConfig, shape: ImageShape) -> tuple[ModelConfig, str]:
    """Return a documented size that can be built for images of `shape`, and the changes in words.

    Where it cannot be built, the stem becomes `auto`; then the last stages are left out one by one. RunError where no
    stage is left.
    """
    whole = size.fractal_levels
    candidates = [(size, "")] + [
        (
            size.model_copy(update={"stem": "auto", "fractal_levels": whole[:num_stages]}),
            ", stem auto" + (f", only {num_stages} of {len(whole)} stages" if num_stages < len(whole) else ""),
        )
        for num_stages in range(len(whole), 0, -1)
    ]
    reason = ""
    for config, change in candidates:
        try:
            measure_cost(config, shape)
        except ConfigError as error:
            reason = str(error)
        else:
            return config, change
    raise RunError(f"cannot be built: {reason}")
