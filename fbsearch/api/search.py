"""A search from Python: what `fbsearch run` does, with a callback in place of a terminal."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from fbsearch.api.progress import make_progress
from fbsearch.api.sources import Data, make_config
from fbsearch.api.study import Study, open_study, python_words, storage_url
from fbsearch.config.models import DataConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.sources import check_source
from fbsearch.errors import ConfigError, printable
from fbsearch.messages import Event
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage, storage_errors
from fbsearch.study.locks import claim_study
from fbsearch.study.study import create_study
from fbsearch.workers.executor import Executor

Callback: TypeAlias = Callable[[SearchState, Event], None]


def search(
    data: Data = None,
    *,
    trials: int | None = 100,
    study: str | Path | StudyConfig | None = None,
    test: tuple[Any, Any] | None = None,
    image_size: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    workers_per_gpu: int = 1,
    ray: str | None = None,
    gpus_per_worker: float | None = None,
    storage: str | Path | None = None,
    timeout: float | None = None,
    trial_timeout: float | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> Study:
    """Search until the study has `trials` finished trials, and return it. The same call goes on with a study.

    Args:
        data: A folder of images (train/<class>/*, optional val/ and test/), a study file (.yaml), a `StudyConfig`, the
            name of a data set such as `cifar10`, an .npz file, or (images, labels): arrays [N, H, W] or [N, H, W, C]
            of uint8 or float, and N labels, which are written once, beside the database. Without it: scikit-learn's
            digits.
        trials: Finished trials the study has in the end, earlier ones counted; None is no limit.
        study: A study file or `StudyConfig` that says what to search in a folder or in arrays; of its `data` all but
            name and root are used. Without it a folder gets what `fbsearch init --images` chooses, arrays the default
            study's space.
        test: (images, labels) that are set aside for `Study.train`, beside arrays.
        image_size: Pixels of the square to which images are resized, instead of the study's.
        name: The study's name instead of the file's or folder's. Arrays are named after their content.
        seed: Of the search, instead of the study file's.
        workers: Processes that train; None is one for each GPU, else for each CPU core; 0 trains in this process.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
        workers_per_gpu: Where `workers` is None.
        ray, gpus_per_worker: The address of a Ray cluster, as `fbsearch run --ray`.
        storage: A database: sqlite:///FILE, postgresql+psycopg://..., or the path of an SQLite file. Without it
            $FBSEARCH_STORAGE, or sqlite:///studies/fbsearch.db.
        timeout: Stop after this many seconds.
        trial_timeout: End a worker that finishes no epoch for this many seconds.
        callback: Called with the state of the search and each event (`fbsearch.messages`). What it raises ends the
            search.
        progress: Show a table, in a terminal or a notebook, or lines elsewhere on standard error.

    Ctrl-C ends the search in order and raises KeyboardInterrupt: what is finished stays in the study, which
    `open_study` opens and the same call goes on with. Worker processes do not import the caller's script.

    Raise FbsearchError for data, settings, devices and databases that cannot be used.
    """
    with python_words():
        url = storage_url(storage)
        config = make_config(
            data, study=study, test=test, image_size=image_size, name=name, seed=seed, url=url,
            say=lambda line: print(printable(line), file=sys.stderr) if progress else None,
        )  # fmt: skip
        if trials is not None and trials < 1:
            raise ConfigError(f"trials: {trials} is too few; 1 or more, or None without a limit")
        check_source(config.data)
        executor = _make_executor(
            config.data, workers=workers, device=device, per_gpu=workers_per_gpu, ray=ray, gpus=gpus_per_worker
        )
        limits = {"num_trials": trials, "timeout": timeout, "trial_timeout": trial_timeout}
        with _hidden_storage():
            state = _run(config, executor, url=url, callback=callback, progress=progress, **limits)
        if state.end == "interrupted":
            raise KeyboardInterrupt(
                f"the search was interrupted at {state.progress}; the same call goes on with it, and "
                f"fbsearch.open_study({config.name!r}) opens what is finished"
            )
        return open_study(config.name, storage=url)


@contextlib.contextmanager
def _hidden_storage() -> Iterator[None]:
    """Take the database out of the environment, which workers inherit: it may hold a password."""
    url = os.environ.pop("FBSEARCH_STORAGE", None)
    try:
        yield
    finally:
        if url is not None:
            os.environ["FBSEARCH_STORAGE"] = url


def _run(
    config: StudyConfig, executor: Executor, *, url: str, callback: Callback | None, progress: bool, **limits: Any
) -> SearchState:
    with make_progress(config, shown=progress) as view:

        def show(state: SearchState, event: Event | None) -> None:
            view(state, event)
            if callback is not None and event is not None:
                callback(state, event)

        database = open_storage(url, create=True, retries=True)
        with storage_errors(url), claim_study(database, config.name) as claim:
            with claim.lock():
                study = create_study(database, config, is_searched=claim.num_other_claims() > 0)
            return Coordinator(study, config, executor, show=show, claim=claim, **limits).run()


def _make_executor(
    data: DataConfig, *, workers: int | None, device: str, per_gpu: int, ray: str | None, gpus: float | None
) -> Executor:
    if ray is not None:
        from fbsearch.workers.ray_cluster import make_ray_executor

        return make_ray_executor(data, address=ray, device=device, workers=workers, gpus_per_worker=gpus)
    from fbsearch.workers.local import make_executor

    return make_executor(data, device=device, workers=workers, workers_per_gpu=per_gpu)
