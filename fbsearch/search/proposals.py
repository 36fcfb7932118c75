"""Propose the next trial: draw a configuration, check it, and answer it from the study if its outcome is known."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.config.unused_fields import unused_model_fields
from fbsearch.errors import ConfigError
from fbsearch.messages import FailureKind
from fbsearch.search.quota import Quota
from fbsearch.search.state import Exhausted
from fbsearch.study.sampling import enqueue_grid_point, sample
from fbsearch.study.trial_record import FINISHED, TrialRecord, is_duplicate, tell_duplicate, trial_config

# A configuration with a failure of these kinds would fail in the same way again.
SURE_FAILURES = (FailureKind.NON_FINITE_LOSS,)
# After this many known configurations in a row the space is taken for exhausted. A grid has its own end.
MAX_DUPLICATES_IN_A_ROW = 200
# After this many the next ones are drawn at random: each duplicate makes TPE surer of the point that it repeats. While
# nothing feasible is known, TPE may repeat the least infeasible configuration for ever.
MAX_DUPLICATES_OF_SAMPLER = 10


class InvalidProposal(Exception):
    """The configuration of a `trial` cannot be built."""

    def __init__(self, trial: optuna.Trial, message: str) -> None:
        super().__init__(message)
        self.trial = trial


class Proposals:
    """Draw trials from the study; `exhausted` says why there are no more."""

    def __init__(
        self, study: optuna.Study, config: StudyConfig, *, quota: Quota, max_duplicates: int = MAX_DUPLICATES_IN_A_ROW
    ) -> None:
        self.num_duplicates = 0
        self.exhausted: Exhausted | None = None
        self._study, self._config, self._is_grid = study, config, config.search.sampler == "grid"
        self._quota, self._max_duplicates = quota, max_duplicates
        trials = study.get_trials(deepcopy=False)
        self._random = optuna.samplers.RandomSampler(seed=config.search.seed + len(trials))
        # The trials with an outcome (trained, infeasible or diverged), by configuration.
        self._numbers: dict[str, int] = {}
        for trial in trials:
            record = TrialRecord.of(trial)
            is_known = trial.state in FINISHED or (record.failure and record.failure.kind in SURE_FAILURES)
            if is_duplicate(trial):
                self.num_duplicates += 1
            elif is_known and record.config is not None:
                self.remember(trial, trial_config(trial))

    @property
    def num_distinct(self) -> int:
        """The number of different configurations that have an outcome."""
        return len(self._numbers)

    def remember(self, trial: FrozenTrial | optuna.Trial, config: TrialConfig) -> None:
        """Add a trial that has ended. Of several with the same configuration the first one is kept."""
        self._numbers.setdefault(canonical(config), trial.number)

    def propose(self, *, image_size: int) -> tuple[optuna.Trial, TrialConfig] | None:
        """Return the next trial to train and its configuration, which is stored; None if there is none now.

        `image_size` is in pixels. InvalidProposal if the configuration cannot be built.
        """
        num_duplicates = 0
        while self._is_grid or num_duplicates < self._max_duplicates:
            with self._drawing(at_random=num_duplicates >= MAX_DUPLICATES_OF_SAMPLER):
                trial = self._quota.ask(self._fill_queue)
                if trial is None:
                    return None
                config = self.configure(trial, image_size=image_size)
            same = self._numbers.get(canonical(config))
            if same is None or TrialRecord.of(trial).race_of is not None:  # left over from a race that was stopped
                return trial, config
            tell_duplicate(self._study, trial, of=self._study.get_trials(deepcopy=False)[same])
            self.num_duplicates += 1
            num_duplicates += 1
        self.exhausted = "space_exhausted"
        return None

    def _fill_queue(self) -> bool:
        """Put the next point of a grid into the queue if the queue is empty; False if no point is left."""
        if not self._is_grid or self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return True
        if enqueue_grid_point(self._study, self._config):
            return True
        self.exhausted = "grid_exhausted"
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

    def configure(self, trial: optuna.Trial, *, image_size: int) -> TrialConfig:
        """Draw the configuration of a trial that was taken, and store it. InvalidProposal if it cannot be built."""
        values = sample(trial, self._config)
        try:
            config = self._config.trial(values, seed=self._config.search.seed + trial.number)
        except ConfigError as error:
            raise InvalidProposal(trial, str(error)) from None
        config = config.model_copy(update={"model": config.model.resolve_stem(image_size)})
        TrialRecord(config=config.model_dump(mode="json")).store(trial)
        return config


SAME_ACTIVATION = {"swish": "silu"}
# Ways to drop paths, with the way that is the same if the probability is 0.
SAME_AT_ZERO = {"local": "none", "channel": "none", "mixed": "global"}


def canonical(config: TrialConfig) -> str:
    """Return a short key that is equal for configurations that train equally; the seed is no part of it."""
    form = config.model_dump(mode="json", exclude={"seed": True, "train": {"tensorboard"}})
    _normalize_model(form["model"])
    _normalize_train(form["train"])
    return hashlib.blake2b(json.dumps(form, sort_keys=True).encode(), digest_size=16).hexdigest()


def _normalize_model(model: dict[str, Any]) -> None:
    model["activation"] = SAME_ACTIVATION.get(model["activation"], model["activation"])
    if model["drop_path_prob"] == 0:
        model["drop_path"] = SAME_AT_ZERO.get(model["drop_path"], model["drop_path"])
    model.update(dict.fromkeys(unused_model_fields(model)))


def _normalize_train(train: dict[str, Any]) -> None:
    if train["optimizer"] in ("adamw", "adam", "muon"):
        train["momentum"] = None
        if train["optimizer"] == "adam" and train["weight_decay"] == 0:
            train["optimizer"] = "adamw"
    patience = train["early_stopping"]
    if patience is not None and patience >= train["epochs"] - 1:  # the first epoch is always the best so far
        train["early_stopping"] = None
