"""An SQLite file that has several names, or is deleted or replaced under a search: real files, links and processes."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from fbsearch.bench.search import SimulatedExecutor
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import StorageError
from fbsearch.messages import Event, Finished
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.sqlite_file import SqliteFile
from fbsearch.study.study import create_study, load_study
from fbsearch.study.trial_record import is_finished
from tests.study.test_database import claimed, opened

CONFIG = StudyConfig(name="digits")


@pytest.mark.slow
@pytest.mark.usefixtures("holder")
def test_claim_study_through_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.db").symlink_to("../fbsearch.db")
    with (
        pytest.raises(StorageError, match="another `fbsearch run` is searching"),
        claimed(f"sqlite:///{tmp_path}/elsewhere/b.db", "digits"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="locks of inodes are Linux's")
def test_claim_study_whose_lock_file_was_deleted_is_refused_until_the_holder_ends(
    tmp_path: Path, url: str, holder: "subprocess.Popen[str]"
) -> None:
    for lock in tmp_path.glob("fbsearch.db-*.lock"):
        lock.unlink()
    with pytest.raises(StorageError, match="another `fbsearch run` is searching"), claimed(url, "digits"):
        pass
    with claimed(url, "another"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(url, "digits"):
        pass


def test_open_storage_file_with_a_hard_link_is_refused_before_sqlite_opens_it(tmp_path: Path, url: str) -> None:
    with opened(url, create=True) as storage:
        create_study(storage, CONFIG)
        (tmp_path / "b.db").hardlink_to(tmp_path / "fbsearch.db")
        with pytest.raises(StorageError, match=r"b\.db: the file has 2 names \(hard links\).*`cp`"):
            open_storage(f"sqlite:///{tmp_path}/b.db", create=True)
        (tmp_path / "b.db").unlink()
        assert not list(tmp_path.glob("b.db*"))


def search(url: str, *, num_trials: int, after: int, happens: Callable[[], object]) -> SearchState:
    """Search with simulated workers; something happens once `after` trials are finished."""
    storage = open_storage(url, create=True, retries=True)
    ended: list[Event] = []

    def show(_state: SearchState, event: Event | None) -> None:
        if isinstance(event, Finished):
            ended.append(event)
            if len(ended) == after:
                happens()

    config = CONFIG.model_copy(update={"search": CONFIG.search.model_copy(update={"pruner": "none"})})
    executor = SimulatedExecutor(num_workers=2, trial_seconds=0.01)
    try:
        with claim_study(storage, config.name) as claim:
            study = create_study(storage, config)
            return Coordinator(study, config, executor, num_trials=num_trials, show=show, claim=claim).run()
    finally:
        storage.engine.dispose()


def finished(path: Path) -> list[optuna.trial.FrozenTrial]:
    with opened(f"sqlite:///{path}") as storage:
        return [trial for trial in load_study(storage, "digits").trials if is_finished(trial)]


def test_search_whose_database_is_deleted_saves_it_and_goes_on_from_the_copy(tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    url = f"sqlite:///{folder}/s.db"

    def delete() -> None:
        for path in folder.iterdir():  # with its log, its index and its lock, as `rm -r` does it
            path.unlink()
        folder.rmdir()

    with pytest.raises(
        StorageError, match=r"s\.db: the database was deleted or moved while it was in use; what it held is in"
    ):
        search(url, num_trials=12, after=5, happens=delete)
    (saved,) = folder.iterdir()
    assert saved.name.startswith("s-saved-")
    # The fifth and the trial whose end found the database gone.
    assert len(finished(saved)) >= 5
    state = search(f"sqlite:///{saved}", num_trials=12, after=100, happens=lambda: None)
    assert state.end == "finished" and len(finished(saved)) == 12


def test_search_whose_database_is_replaced_leaves_the_other_one_alone(tmp_path: Path, url: str) -> None:
    path, other = tmp_path / "fbsearch.db", tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE studies (precious TEXT)")
    content = other.read_bytes()
    with pytest.raises(StorageError, match="the database was replaced by another file while it was in use"):
        search(url, num_trials=12, after=5, happens=lambda: other.replace(path))
    assert path.read_bytes() == content
    (saved,) = tmp_path.glob("fbsearch-saved-*.db")
    assert len(finished(saved)) >= 5


def test_search_whose_database_is_deleted_and_cannot_be_saved_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "studies"

    def delete() -> None:
        folder.rename(tmp_path / "moved")
        folder.write_text("a file where the folder was")

    with pytest.raises(StorageError, match="was deleted or moved while it was in use; it cannot be saved as"):
        search(f"sqlite:///{folder}/s.db", num_trials=12, after=5, happens=delete)


def test_database_deleted_while_optuna_opens_it_is_saved(tmp_path: Path, url: str) -> None:
    with opened(url, create=True) as storage:
        create_study(storage, CONFIG)
    path = tmp_path / "fbsearch.db"
    file = SqliteFile(path, busy_seconds=1, holds_one=True)
    with contextlib.closing(file.connect()):
        path.unlink()
        with pytest.raises(StorageError, match=r"was deleted or moved.*what it held is in .*-saved-"):
            file.connect()
    (saved,) = tmp_path.glob("fbsearch-saved-*.db")
    with opened(f"sqlite:///{saved}") as copy:
        assert load_study(copy, "digits").study_name == "digits"


def test_search_whose_database_is_replaced_when_its_pool_holds_no_connection_saves_it(tmp_path: Path, url: str) -> None:
    storage = open_storage(url, create=True, retries=True)
    study = create_study(storage, CONFIG)
    study.set_user_attr("before", "kept")
    storage.engine.dispose()  # as after a rollback that failed on a full disk
    (tmp_path / "fbsearch.db").unlink()
    with pytest.raises(StorageError, match=r"was deleted or moved.*what it held is in .*-saved-"):
        study.set_user_attr("after", 1)
    (saved,) = tmp_path.glob("fbsearch-saved-*.db")
    with opened(f"sqlite:///{saved}") as copy:
        assert load_study(copy, "digits").user_attrs["before"] == "kept"
    storage.engine.dispose()
