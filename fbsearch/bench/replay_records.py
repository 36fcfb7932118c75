"""Schema of replay.json, which `fbsearch bench replay` writes: the fields are the keys, in this order.

Seconds are virtual: those that the table's runs took where they were recorded. A regret is the accuracy of the table's
best configuration, the mean of its seeds, less that of the configuration a search would have named by then, judged by
the seeds that the search did not see; it can be below 0.
"""

from typing import Any, Literal

from fbsearch.winners.records import Accuracy, Record

REPLAY_NAME = "replay.json"


class Replay(Record):
    """One search of a table. `incumbents` are the best trials so far: (seconds, accuracy of the unseen seeds).

    With several objectives they are (seconds, hypervolume of the front so far, judged by the unseen seeds, as a share
    of the table's), which can be above 1.
    `repeat` is the seed of the search and of the runs that it is shown. `exact` is the share of its trials whose
    configuration is in the table; `search_seconds` is the processor's time for all decisions.
    """

    arm: str
    num_workers: int
    repeat: int
    incumbents: tuple[tuple[float, float], ...]
    num_trials: int
    num_complete: int
    exact: float
    search_seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        return self.arm, self.num_workers, self.repeat


class ArmScore(Record):
    """All repeats of an arm with a number of workers; intervals are of 95%, by bootstrap over the repeats.

    `ratio` is the time until the arm has the final regret of the reference, as a multiple of the reference's own time
    until then; None if it never does. `curve` has (seconds, interquartile mean of the regret, its interval).
    """

    name: str
    workers: int
    repeats: int
    ratio: float | None
    interval: tuple[float | None, float | None]
    regret: float
    regret_interval: tuple[float, float]
    num_trials: float
    num_complete: float
    exact: float
    search_seconds_per_trial: float
    curve: tuple[tuple[float, float, float, float], ...]


class Replays(Record):
    """The content of replay.json. `budget` is in whole runs of mean length, shared by all workers.

    `exhaustive_regret` is the interquartile mean of a search's regret that has trained every configuration once. With
    `objectives` a regret is the share of the table's hypervolume that is missing.
    """

    format: Literal["fbsearch-replay/1"] = "fbsearch-replay/1"
    table: str
    table_sha256: str
    command: str
    machine: dict[str, Any]
    table_machine: dict[str, Any]
    study: str
    num_configs: int
    num_runs: int
    seconds_of_run: float
    best_accuracy: Accuracy
    mean_accuracy: Accuracy
    exhaustive_regret: float
    budget: float
    reference: str
    objectives: tuple[str, ...] | None = None
    arms: tuple[ArmScore, ...] = ()
    replays: tuple[Replay, ...] = ()
