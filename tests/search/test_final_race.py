"""The final race: who is named, exactly N, kills, time limits, failures, a damaged result. Runs are from a table."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_table import make_run, write_table
from optuna.trial import TrialState

from fbsearch.bench.table_executor import TableExecutor, order_runs
from fbsearch.bench.table_file import Table, read_table
from fbsearch.cli.status import print_end, print_status
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.study_file import SearchConfig, StudyConfig
from fbsearch.errors import StorageError
from fbsearch.messages import Event, FailureKind, Finished
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.final_race import NUM_NEW_RUNS
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage
from fbsearch.study.export import export_best, export_trial, listed_trials
from fbsearch.study.locks import claim_study
from fbsearch.study.queries import best_trial
from fbsearch.study.race_result import FINAL_RACE, race_runs, read_race
from fbsearch.study.study import best_trials, create_study, status
from fbsearch.study.trial_record import TrialRecord, is_finished, is_race_run

RATES = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]
# The lucky rate is ahead by its first run alone.
STEADY, LUCKY = 0.004, 0.002
N = len(RATES)


def accuracy(rate: float, run: int) -> float:
    if rate == LUCKY:
        return 0.95 if run == 0 else 0.4
    return 0.9 if rate == STEADY else 0.6 + rate


def make_table(path: Path, *, rates: list[float] = RATES, failing: float | None = None) -> Table:
    """Write a table in which the first run that a search sees, and the later ones, have the accuracies above."""
    space = {"train.learning_rate": {"choices": rates}}
    seeds = range(1 + NUM_NEW_RUNS)
    made = [make_run(8, rate, seed) for rate in rates for seed in seeds]
    made = [
        run.model_copy(update={"values": {"train.learning_rate": run.values["train.learning_rate"]}}) for run in made
    ]
    runs = []
    # The order is drawn by what the configurations are, so that it is known once they are read.
    for row in read_table(write_table(path, made, space=space)).rows.values():
        for number, run in enumerate(order_runs(row, draw=0)):
            rate = run.values["train.learning_rate"]
            changes: dict[str, Any] = {"value": accuracy(rate, number)}
            if rate == failing and number:
                changes |= {"value": None, "failure_kind": FailureKind.NON_FINITE_LOSS, "failure": "not finite"}
            runs.append(run.model_copy(update=changes))
    return read_table(write_table(path, runs, space=space))


class Searches:
    """Searches of one study in one database, each with workers of its own on a virtual clock."""

    def __init__(self, table: Table, url: str) -> None:
        self.table, self.storage = table, open_storage(url, create=True)
        self.executor: TableExecutor | None = None

    def config(self, **search: Any) -> StudyConfig:
        fields = SearchConfig.model_validate({"sampler": "grid", "pruner": "none", "final_race": 3} | search)
        return self.table.study.model_copy(update={"search": fields})

    def run(
        self,
        num_trials: int | None = N,
        *,
        show: Callable[[SearchState, Event | None], None] = lambda state, event: None,
        num_workers: int = 2,
        timeout: float | None = None,
        **search: Any,
    ) -> tuple[optuna.Study, SearchState]:
        config = self.config(**search)
        executor = TableExecutor(self.table, num_workers=num_workers, draw=0)
        if self.executor is not None:
            executor._num_runs = self.executor._num_runs  # a run that was stopped has been seen, too
        self.executor = executor
        study = create_study(self.storage, config)
        coordinator = Coordinator(
            study, config, executor, num_trials=num_trials, timeout=timeout, trial_timeout=1e9, show=show,
            num_with_attention=0, clock=executor.clock,
        )  # fmt: skip
        return study, coordinator.run()


@pytest.fixture
def searches(tmp_path: Path) -> Iterator[Searches]:
    found = Searches(make_table(tmp_path / "t.jsonl.xz"), f"sqlite:///{tmp_path / 'search.db'}")
    yield found
    found.storage.engine.dispose()


def rate_of(trial: optuna.trial.FrozenTrial) -> float:
    return float(TrialRecord.of(trial).config["train"]["learning_rate"])  # type: ignore[index]


def first_runs(study: optuna.Study) -> list[int]:
    """Return for each raced trial the number of its runs in the race, attempts that were stopped not counted."""
    runs = race_runs(study).values()
    return [sum(TrialRecord.of(run).race_accuracy is not None for run in own) for own in runs]


@pytest.mark.parametrize(("sampler", "num_workers"), [("random", 1), ("grid", 3)])
def test_race_names_the_best_mean_and_keeps_exactly_n(searches: Searches, sampler: str, num_workers: int) -> None:
    study, state = searches.run(sampler=sampler, num_workers=num_workers)
    assert (state.end, state.num_complete, state.num_pruned, state.num_finished) == ("finished", N, 0, N)
    trials = study.get_trials(deepcopy=False)
    assert sum(map(is_finished, trials)) == N and sum(map(is_race_run, trials)) == 3 * NUM_NEW_RUNS
    seeds = [TrialRecord.of(trial).config["seed"] for trial in study.get_trials()]  # type: ignore[index]
    assert len(set(seeds)) == len(trials), "each run has a seed of its own"
    assert state.best is not None and state.race is not None
    named = best_trials(study, N)
    assert [rate_of(trial) for trial in named[:2]] == [STEADY, 0.006] and rate_of(named[2]) == LUCKY
    assert named[0].number == state.best.number == best_trial(study).number  # type: ignore[union-attr]
    assert rate_of(study.best_trial) == LUCKY, "the values of complete trials are those of the search"
    assert state.race.mean(named[0].number) == pytest.approx(0.9)
    counts = status(study, url="sqlite:///x")
    assert (counts["num_complete"], counts["num_pruned"]) == (N, 0)
    assert counts["best"]["trial"] == named[0].number == counts["race"][0]["trial"]
    assert counts["race"][0]["accuracies"] == pytest.approx([0.9] * (1 + NUM_NEW_RUNS))
    assert export_best(study, top=2).configs[0].train.learning_rate == STEADY
    assert len(listed_trials(study)) == N
    with pytest.raises(StorageError, match="in the final race: export that one"):
        export_trial(study, next(trial.number for trial in trials if is_race_run(trial)))


def test_race_is_shown_at_the_end_and_in_the_status(searches: Searches, capsys: pytest.CaptureFixture[str]) -> None:
    study, state = searches.run()
    line = f"chosen among 3 by {1 + NUM_NEW_RUNS} runs each: 90.00% on average"
    print_end(SafeConsole(), state)
    shown = capsys.readouterr().out
    assert line in shown and "final race" not in shown
    print_status(SafeConsole(), status(study, url=""), best_trial(study), read_race(study))
    assert line in capsys.readouterr().out


def test_search_without_a_race_names_the_best_run(searches: Searches) -> None:
    study, state = searches.run(final_race=0)
    assert state.race is None and read_race(study) is None and race_runs(study) == {}
    assert rate_of(best_trials(study, 1)[0]) == LUCKY


def test_race_of_a_finished_study_is_run_later(searches: Searches) -> None:
    searches.run(final_race=0)
    study, state = searches.run(final_race=2)
    assert (state.num_finished, first_runs(study)) == (N, [NUM_NEW_RUNS] * 2)
    assert rate_of(best_trials(study, 1)[0]) == STEADY
    before = len(study.get_trials())
    study, state = searches.run(final_race=2)
    assert state.race is not None and len(study.get_trials()) == before, "it is over"


@pytest.mark.parametrize("num_ended", [0, 1, 4])
def test_race_goes_on_after_a_kill(searches: Searches, num_ended: int) -> None:
    def kill(state: SearchState, event: Event | None) -> None:
        ended = sum(map(is_race_run, study_trials(searches)))
        if state.is_complete and ended >= num_ended and state.running:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run(show=kill)
    stopped = create_study(searches.storage, searches.config())
    assert read_race(stopped) is None and rate_of(best_trials(stopped, 1)[0]) == LUCKY, "nobody is named by half a race"
    study, state = searches.run()
    assert (state.num_finished, state.num_failed, first_runs(study)) == (N, 0, [NUM_NEW_RUNS] * 3)
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert read_race(study) == state.race is not None


def study_trials(searches: Searches) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=searches.storage, study_name="made").get_trials(deepcopy=False)


def test_further_trials_end_the_result_and_race_runs_are_used_again(searches: Searches) -> None:
    searches.run(4, seed=1)
    seen = []

    def note(state: SearchState, event: Event | None) -> None:
        if isinstance(event, Finished) and not state.is_complete:
            seen.append(read_race(optuna.load_study(storage=searches.storage, study_name="made")))

    study, state = searches.run(N, seed=1, show=note)
    assert seen and set(seen) == {None}
    assert state.num_finished == N and state.race is not None
    assert set(first_runs(study)) == {NUM_NEW_RUNS}, "a trial that was raced before is not run again"


def test_race_with_a_failed_run_does_not_name_it(tmp_path: Path) -> None:
    searches = Searches(make_table(tmp_path / "t.jsonl.xz", failing=STEADY), f"sqlite:///{tmp_path / 's.db'}")
    study, state = searches.run()
    assert state.race is not None and len(state.race.accuracies) == 2 and state.num_failed == NUM_NEW_RUNS
    assert rate_of(best_trials(study, 1)[0]) == 0.006 and state.num_finished == N
    again, state = searches.run()
    assert len(again.get_trials()) == len(study.get_trials()), "the same failure is not tried again"
    searches.storage.engine.dispose()


def test_race_comes_before_the_end_of_the_time(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t.jsonl.xz", rates=[round(0.0001 * number, 4) for number in range(1, 61)])
    searches = Searches(table, f"sqlite:///{tmp_path / 's.db'}")
    study, state = searches.run(None, timeout=60, final_race=2, num_workers=4)
    assert state.end == "timeout" and state.race is not None and first_runs(study) == [NUM_NEW_RUNS] * 2
    assert searches.executor is not None and 50 <= searches.executor.clock() <= 60, "a run takes 4 seconds"
    assert state.num_complete > 30
    searches.storage.engine.dispose()


def test_race_that_would_take_most_of_the_time_is_left_out_and_why(
    searches: Searches, capsys: pytest.CaptureFixture[str]
) -> None:
    study, state = searches.run(None, timeout=9, final_race=3)
    assert state.end == "timeout" and state.race is None and race_runs(study) == {}
    assert 0 < state.num_complete < N
    print_end(SafeConsole(), state)
    assert "no final race: it would have taken about 19 s, more than a quarter" in capsys.readouterr().out


def test_race_without_two_configurations_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(tmp_path / "t.jsonl.xz", rates=[STEADY, LUCKY], failing=STEADY)
    searches = Searches(table, f"sqlite:///{tmp_path / 's.db'}")
    for num_trials, reason in ((1, "no final race: fewer than two trials"), (2, "the final race names nobody: fewer")):
        _, state = searches.run(num_trials)
        print_end(SafeConsole(), state)
        assert state.race is None and reason in capsys.readouterr().out
    searches.storage.engine.dispose()


def test_two_coordinators_run_one_race_together(postgres_url: str, tmp_path: Path) -> None:
    table, states = make_table(tmp_path / "t.jsonl.xz"), []
    config = Searches(table, f"sqlite:///{tmp_path / 's.db'}").config()
    storages = [open_storage(postgres_url, create=True) for _ in range(2)]

    def search(storage: optuna.storages.RDBStorage) -> None:
        with claim_study(storage, config.name) as claim:
            with claim.lock():
                study = create_study(storage, config)
            executor = TableExecutor(table, num_workers=2, draw=0)
            coordinator = Coordinator(
                study, config, executor, num_trials=N, trial_timeout=1e9, show=lambda state, event: None, claim=claim,
                num_with_attention=0, clock=executor.clock,
            )  # fmt: skip
            states.append(coordinator.run())

    threads = [threading.Thread(target=search, args=(storage,), daemon=True) for storage in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert [(state.end, state.num_finished) for state in states] == [("finished", N)] * 2
    study = optuna.load_study(storage=storages[0], study_name=config.name)
    assert sum(map(is_finished, study.get_trials())) == N and first_runs(study) == [NUM_NEW_RUNS] * 3
    assert states[0].race == states[1].race == read_race(study) is not None
    for storage in storages:
        storage.engine.dispose()


def test_damaged_result_of_a_race_is_named(searches: Searches) -> None:
    study, _ = searches.run()
    study.set_user_attr(FINAL_RACE, {"first": "all"})
    with pytest.raises(StorageError, match="damaged: its attribute 'final_race' is no race"):
        best_trials(study, 1)
