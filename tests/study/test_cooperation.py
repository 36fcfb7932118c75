"""Several coordinators on one PostgreSQL study: real server, real `fbsearch run` processes, SIGKILL among them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import PostgresServer

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.study import locks as cooperation
from fbsearch.study.database import open_storage
from fbsearch.study.locks import StudyClaim, claim_study
from fbsearch.study.queries import count_trials
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, flush, load_study
from fbsearch.study.trial_record import is_finished

SMALL = """
name: small
data: {limit: 100}
model: {base_channels: 4, pattern_resolution: 8}
train: {epochs: 8}
space:
  model.fractal_levels: {num_stages: [1, 2], level: [1]}
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
search: {pruner: none}
"""


@contextlib.contextmanager
def opened(url: str) -> Iterator[optuna.storages.RDBStorage]:
    storage = open_storage(url, create=True)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def wait_until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


# Processes.


@pytest.fixture
def start(tmp_path: Path) -> "Iterator[Callable[[str], subprocess.Popen[str]]]":
    """Start one coordinator of a storage URL, with one worker."""
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "fbsearch", "run", "small.yaml", "--trials", "16", "--workers", "1", "--json"]
    processes = []

    def start_one(url: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"FBSEARCH_STORAGE": url},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start_one
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with process:  # closes its pipes
            pass


def owners(study: optuna.Study, state: TrialState) -> set[str]:
    """Return the coordinators of the trials in one state."""
    return {trial.user_attrs.get("coordinator", "") for trial in study.trials if trial.state == state}


def is_stopped_with_a_trial(process: "subprocess.Popen[str]", study: optuna.Study) -> bool:
    """Stop a coordinator, and let it go on unless it has a running trial, which it then keeps."""
    process.send_signal(signal.SIGSTOP)
    if any(f":{process.pid}:" in owner for owner in owners(study, TrialState.RUNNING)):
        return True
    process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.slow
def test_run_two_coordinators_started_at_once_one_killed_finish_exactly_n(
    postgres: PostgresServer, start: "Callable[[str], subprocess.Popen[str]]"
) -> None:
    """Two make tables and study at the same moment, then one of them dies and a third comes."""
    url = postgres.new_database()
    first, killed = start(url), start(url)
    with opened(url) as storage:
        wait_until(
            lambda: any("config" in study.user_attrs for study in storage.get_all_studies()),
            seconds=240, what="no study was made",
        )  # fmt: skip
        study = load_study(storage, "small")
        # Each has finished a trial, so that both are among the owners however soon the rest is done.
        wait_until(lambda: len(owners(study, TrialState.COMPLETE)) == 2, seconds=240, what="two never shared a study")
        wait_until(lambda: is_stopped_with_a_trial(killed, study), seconds=240, what="one never ran a trial")
        later = start(url)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        for process in (first, later):
            output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
            assert postgres.password not in output + errors
            told = json.loads(output.strip().splitlines()[-1])
            assert (told["end"], told["num_complete"], told["num_running"]) == ("finished", 16, 0)
        trials = study.trials
    states = [trial.state for trial in trials]
    assert sum(map(is_finished, trials)) == 16
    assert TrialState.RUNNING not in states and TrialState.WAITING not in states
    assert [trial.number for trial in trials] == list(range(len(trials)))
    complete = [trial for trial in trials if is_finished(trial)]
    assert all([epoch["epoch"] for epoch in trial.user_attrs["history"]] == list(range(1, 9)) for trial in complete)
    assert len({trial.user_attrs["coordinator"] for trial in complete}) >= 2
    put_back = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert {trial.user_attrs["failure"]["kind"] for trial in put_back} == {"interrupted"}
    for trial in put_back:
        # Trained again, or by then answered from an equal one. The kill may come before all parameters are drawn.
        origin = trial.user_attrs.get("retry_of", trial.number)
        ended = [other for other in trials if other.state == TrialState.COMPLETE]
        equal = [other for other in ended if trial.params.items() <= other.params.items()]
        assert origin in {other.user_attrs.get("retry_of") for other in equal}


# In one process: two coordinators are two storages and two memberships.

CONFIG = StudyConfig()


class Member:
    """A coordinator's study and claim, without its workers."""

    def __init__(self, url: str) -> None:
        self.storage = open_storage(url, create=True)
        self.study = create_study(self.storage, CONFIG)
        self._joined = claim_study(self.storage, CONFIG.name)
        self.claim: StudyClaim = self._joined.__enter__()

    def ask(self) -> optuna.Trial:
        with self.claim.lock():
            trial = self.claim.ask(self.study)
        sample(trial, CONFIG)
        flush(self.study)
        return trial

    def leave(self) -> None:
        self._joined.__exit__(None, None, None)
        self.storage.engine.dispose()


@pytest.fixture
def two(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Member, Member]]:
    monkeypatch.setattr(cooperation, "SECONDS_UNTIL_GONE", 0.0)
    members = Member(postgres_url), Member(postgres_url)
    yield members
    for member in members:
        member.leave()


def test_claim_counts_the_others_until_they_leave(two: tuple[Member, Member]) -> None:
    one, other = two
    assert (one.claim.num_other_claims(), other.claim.num_other_claims()) == (1, 1)
    other.leave()
    wait_until(lambda: one.claim.num_other_claims() == 0, seconds=60, what="who has left is still counted")


def test_claim_puts_back_trials_of_the_gone_only(two: tuple[Member, Member]) -> None:
    one, other = two
    own, others = one.ask(), other.ask()
    assert one.claim.put_back_abandoned(one.study) == 0
    other.leave()
    wait_until(lambda: one.claim.put_back_abandoned(one.study) == 1, seconds=60, what="its trial was not put back")
    assert one.claim.put_back_abandoned(one.study) == 0
    counts = count_trials(one.study)
    assert (counts[TrialState.RUNNING], counts[TrialState.WAITING], counts[TrialState.FAIL]) == (1, 1, 0)
    again = one.ask()
    assert again.user_attrs["retry_of"] == others.number and again.params == others.params
    assert one.study.trials[own.number].state == TrialState.RUNNING


def test_claim_a_member_taken_for_dead_loses_its_trial_and_not_more(two: tuple[Member, Member]) -> None:
    one, other = two
    kept, lost = other.ask(), other.ask()
    other.study.trials  # noqa: B018 (both are in its memory)
    with one.claim.lock():
        one.study.tell(lost.number, state=TrialState.FAIL)
    kept.report(0.5, step=1)
    lost.report(0.5, step=1)
    assert flush(other.study) == [lost.number]
    other.study.tell(kept, 0.5)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        lost.report(0.6, step=2)
    trials = one.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert [trial.intermediate_values for trial in trials] == [{1: 0.5}, {}]


def test_claim_a_result_after_the_trial_was_put_back_is_refused(two: tuple[Member, Member]) -> None:
    one, other = two
    trial = other.ask()
    with one.claim.lock():
        one.study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        other.study.tell(trial, 0.9)
    assert one.study.trials[0].state == TrialState.FAIL and one.study.trials[0].value is None


def test_claim_is_back_after_the_server_was_restarted(two: tuple[Member, Member], postgres: PostgresServer) -> None:
    one, other = two
    trial = one.ask()
    for member in two:
        member.storage.engine.dispose()  # idle connections; whoever is in a transaction waits (test_patience)
    postgres.restart("immediate")
    assert one.claim.num_other_claims() == 0
    assert other.claim.num_other_claims() == 1
    assert one.claim.num_other_claims() == 1
    assert other.claim.put_back_abandoned(other.study) == 0
    one.study.tell(trial, 0.5)
    assert other.study.trials[0].value == 0.5


def test_claim_knows_that_its_turn_ended_with_the_server(two: tuple[Member, Member], postgres: PostgresServer) -> None:
    first, _ = two
    with first.claim.lock():
        assert first.claim.holds_lock()
        postgres.restart("immediate")
        assert not first.claim.holds_lock()
    assert not first.claim.holds_lock()
    with first.claim.lock():
        assert first.claim.holds_lock()


def test_create_study_that_others_search_with_other_settings_is_refused(postgres_url: str) -> None:
    changed = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 99})})
    with opened(postgres_url) as storage:
        create_study(storage, CONFIG)
        create_study(storage, changed)  # nobody searches it, and it has no trial
        with pytest.raises(ConfigError, match=r"train\.epochs: 99 -> "):
            create_study(storage, CONFIG, is_searched=True)


def test_claim_study_on_sqlite_is_exclusive(url: str) -> None:
    with opened(url) as storage, claim_study(storage, "digits") as claim:
        assert not claim.is_shared
