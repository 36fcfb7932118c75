"""What a search trains next: drawn by the sampler, checked, and answered from the study where the outcome is known."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.study.sampling import enqueue_grid_point, sample
from fbsearch.study.trial_record import FINISHED, is_duplicate, tell_duplicate

# Failures that are the configuration's own: tried again, it would end in the same way.
SURE_FAILURES = ("non_finite_loss",)
# So many known configurations drawn in a row: the sampler finds no other. A grid has an end of its own.
MAX_DUPLICATES_IN_A_ROW = 200
# After so many the next ones are drawn at random: each duplicate makes TPE surer of the point that it repeats; where
# nothing feasible is known yet, it may repeat the least infeasible one for ever.
MAX_DUPLICATES_OF_SAMPLER = 10


class Unusable(Exception):
    """A trial was drawn whose configuration cannot be built."""

    def __init__(self, trial: optuna.Trial, message: str) -> None:
        super().__init__(message)
        self.trial = trial


class Known:
    """The configurations whose outcome a study has by their canonical form: trained, infeasible, or diverging."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._ids: dict[str, int] = {}  # Optuna's own; its trials carry whole learning curves
        for trial in study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.FAIL)):
            is_known = trial.state in FINISHED or trial.user_attrs.get("failure", {}).get("kind") in SURE_FAILURES
            if is_known and "config" in trial.user_attrs and not is_duplicate(trial):
                self.add(trial, TrialConfig.model_validate(trial.user_attrs["config"]))

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, trial: FrozenTrial | optuna.Trial, config: TrialConfig) -> None:
        """Remember the trial that has ended with a configuration; the first one stays."""
        self._ids.setdefault(canonical(config), trial._trial_id)

    def find(self, config: TrialConfig) -> FrozenTrial | None:
        """The trial that has ended with the same configuration, if one has."""
        found = self._ids.get(canonical(config))
        return None if found is None else self._study._storage.get_trial(found)


class Proposals:
    """Draws trials; `end` says why there are no more."""

    def __init__(self, study: optuna.Study, config: StudyConfig) -> None:
        self.known = Known(study)
        self.num_duplicates = sum(map(is_duplicate, study.get_trials(deepcopy=False, states=FINISHED)))
        self.end: Literal["grid_exhausted", "space_exhausted"] | None = None
        self._random = optuna.samplers.RandomSampler(seed=config.search.seed + len(study.get_trials(deepcopy=False)))
        self._study, self._config, self._is_grid = study, config, config.search.sampler == "grid"

    def next(
        self, take: Callable[[], optuna.Trial | None], *, image_size: int
    ) -> tuple[optuna.Trial, TrialConfig] | None:
        """The next trial to train, with its configuration, which is stored; None where there is none.

        `take` gives a new trial of the study, None where none may be had. Unusable if the trial cannot be built.
        """
        self.end = None
        num_duplicates = 0
        while self._is_grid or num_duplicates < MAX_DUPLICATES_IN_A_ROW:
            with self._drawing(at_random=num_duplicates >= MAX_DUPLICATES_OF_SAMPLER):
                trial = take()
                if trial is None:
                    return None
                config = self._configure(trial, image_size)
            same = self.known.find(config)
            if same is None:
                return trial, config
            tell_duplicate(self._study, trial, of=same)
            self.num_duplicates += 1
            num_duplicates += 1
        self.end = "space_exhausted"
        return None

    def fill_queue(self) -> bool:
        """Put the grid's next point into the queue where none waits; False, and `end`, where there is none left."""
        if not self._is_grid or self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return True
        if enqueue_grid_point(self._study, self._config):
            return True
        self.end = "grid_exhausted"
        return False

    @contextlib.contextmanager
    def _drawing(self, *, at_random: bool) -> Iterator[None]:
        chosen = self._study.sampler
        if at_random and not self._is_grid:
            self._study.sampler = self._random
        try:
            yield
        finally:
            self._study.sampler = chosen

    def _configure(self, trial: optuna.Trial, image_size: int) -> TrialConfig:
        values = sample(trial, self._config)
        try:
            config = self._config.trial(values, seed=self._config.search.seed + trial.number)
        except ConfigError as error:
            raise Unusable(trial, str(error)) from None
        config = config.model_copy(update={"model": config.model.resolve_stem(image_size)})
        trial.set_user_attr("config", config.model_dump(mode="json"))
        return config


SAME_ACTIVATION = {"swish": "silu"}


def canonical(config: TrialConfig) -> str:
    """A short key of a configuration's canonical form. Where it writes and how it is seeded is no part of it."""
    form = config.model_dump(mode="json", exclude={"seed": True, "train": {"tensorboard"}})
    _merge_model(form["model"])
    _merge_train(form["train"])
    return hashlib.blake2b(json.dumps(form, sort_keys=True).encode(), digest_size=16).hexdigest()


def _merge_model(model: dict[str, Any]) -> None:
    model["activation"] = SAME_ACTIVATION.get(model["activation"], model["activation"])
    joins = max(model["fractal_levels"]) > 1
    if model["drop_path"] in ("local", "channel") and model["drop_path_prob"] == 0:
        model["drop_path"] = "none"
    if model["drop_path"] == "mixed" and model["drop_path_prob"] == 0:
        model["drop_path"] = "global"
    if model["drop_path"] in ("local", "global", "mixed") and not joins:
        model["drop_path"] = "none"
    if model["drop_path"] in ("none", "global"):  # a global path is dropped with a share of its own
        model["drop_path_prob"] = None


def _merge_train(train: dict[str, Any]) -> None:
    if train["optimizer"] in ("adamw", "adam"):
        train["momentum"] = None
        if train["weight_decay"] == 0:
            train["optimizer"] = "adamw"
    patience = train["early_stopping"]
    if patience is not None and patience >= train["epochs"] - 1:  # the first epoch is always the best so far
        train["early_stopping"] = None
