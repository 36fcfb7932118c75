"""A search from Python: what `fbsearch run` does, with a callback in place of a terminal."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import optuna

from fbsearch.api.budget import NUM_SEEDS, START_UP_WEIGHT, Budget, Winner, choose_winner, make_budget
from fbsearch.api.progress import View, make_progress
from fbsearch.api.sources import Data, make_config
from fbsearch.api.study import Study, open_study, python_words, storage_url
from fbsearch.config.choices import DEFAULT_TRIALS, REPORTS
from fbsearch.config.durations import parse_duration
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
    trials: int | Literal["auto"] | None = "auto",
    budget: float | str | None = None,
    output: str | Path = REPORTS,
    study: str | Path | StudyConfig | None = None,
    test: tuple[Any, Any] | None = None,
    image_size: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    workers_per_gpu: int | Literal["auto"] = 1,
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
        trials: Finished trials the study has in the end, earlier ones counted; None is no limit. auto is 100, with a
            budget as many as there is time for.
        budget: Search, train the best configuration with three seeds and score each once, within about this time:
            seconds, or text such as "10m" or "1h30m". The first seed's network is then `Study.model`.
        output: With a budget the folder of the results: output/<study>/rank-1/seed-<S>.
        study: A study file or `StudyConfig` that says what to search in a folder or in arrays; of its `data` all but
            name and root are used. Without it a folder gets what `fbsearch init --images` chooses, arrays the default
            study's space.
        test: (images, labels) that are set aside for `Study.train`, beside arrays.
        image_size: Pixels of the square to which images are resized, instead of the study's.
        name: The study's name instead of the file's or folder's. Arrays are named after their content.
        seed: Of the search, instead of the study file's.
        workers: Processes that train; None is one for each GPU, else for each CPU core; 0 trains in this process.
        device: auto, cpu, cuda (all GPUs) or cuda:N.
        workers_per_gpu: Where `workers` is None: a number, or auto: from free memory and what the largest trial is
            measured to use.
        ray, gpus_per_worker: The address of a Ray cluster, as `fbsearch run --ray`.
        storage: A database: sqlite:///FILE, postgresql+psycopg://..., or the path of an SQLite file. Without it
            $FBSEARCH_STORAGE, or sqlite:///studies/fbsearch.db.
        timeout: Stop after this many seconds; not with a budget.
        trial_timeout: End a worker that finishes no epoch for this many seconds.
        callback: Called with the state of the search and each event (`fbsearch.messages`). What it raises ends the
            search.
        progress: Show a table, in a terminal or a notebook, or lines elsewhere on standard error.

    Ctrl-C ends the search in order and raises KeyboardInterrupt: what is finished stays in the study, which
    `open_study` opens and the same call goes on with. Worker processes do not import the caller's script.

    Raise FbsearchError for data, settings, devices and databases that cannot be used.
    """
    started = time.monotonic()
    with python_words():
        url = storage_url(storage)
        say = _say if progress else _say_nothing
        config = make_config(
            data, study=study, test=test, image_size=image_size, name=name, seed=seed, url=url, say=say
        )
        limits = _make_limits(trials, timeout=timeout, trial_timeout=trial_timeout, has_budget=budget is not None)
        check_source(config.data)
        whole = None
        if budget is not None:
            whole = _make_budget(config, budget, started=started, output=output, device=device, limits=limits, ray=ray)
            say(whole.announce())
        executor = _make_executor(
            config, workers=workers, device=device, per_gpu=workers_per_gpu, ray=ray, gpus=gpus_per_worker, say=say
        )
        with (
            _hidden_storage(),
            claimed_search(
                config,
                executor,
                url=url,
                view=_make_view(config, callback, shown=progress),
                limits=limits,
                budget=whole,
            ) as found,
        ):
            if found.state.end == "interrupted":
                raise KeyboardInterrupt(
                    f"the search was interrupted at {found.state.progress}; the same call goes on with it, and "
                    f"fbsearch.open_study({config.name!r}) opens what is finished"
                )
            winner = None if whole is None else choose_winner(whole, found.study, start_up=found.start_up)
        opened = open_study(config.name, storage=url)
        if winner is not None:
            _train(opened, winner, say=say, progress=progress)
        return opened


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a search. None is no limit; with a budget `timeout` is of no use."""

    num_trials: int | None
    timeout: float | None
    trial_timeout: float | None


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A study whose search has ended; the seconds until the first worker was ready, None where none was."""

    study: optuna.Study
    state: SearchState
    start_up: float | None


@contextlib.contextmanager
def claimed_search(
    config: StudyConfig,
    executor: Executor,
    *,
    url: str,
    view: contextlib.AbstractContextManager[View],
    limits: Limits,
    budget: Budget | None,
) -> Iterator[Searched]:
    """Search with a claim on the study, which holds until the `with` block ends, and give the study.

    `view` is entered while the search runs. With a `budget`, raise ConfigError if others search the study too.
    """
    database = open_storage(url, create=True, retries=True)
    with storage_errors(url), claim_study(database, config.name) as claim:
        if budget is not None:
            budget.check_alone(claim)
        with claim.lock():
            study = create_study(database, config, is_searched=claim.num_other_claims() > 0)
        started = time.monotonic()
        with view as show:
            state = Coordinator(
                study,
                config,
                executor,
                num_trials=limits.num_trials,
                timeout=limits.timeout if budget is None else budget.search_seconds,
                start_up_weight=0.0 if budget is None else START_UP_WEIGHT,
                trial_timeout=limits.trial_timeout,
                show=show,
                claim=claim,
            ).run()
        yield Searched(study=study, state=state, start_up=state.started - started if state.dataset else None)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _say_nothing(_line: str) -> None:
    pass


def _make_limits(
    trials: int | Literal["auto"] | None, *, timeout: float | None, trial_timeout: float | None, has_budget: bool
) -> Limits:
    if trials == "auto":
        trials = None if has_budget else DEFAULT_TRIALS
    if trials is not None and trials < 1:
        raise ConfigError(f"trials: {trials} is too few; 1 or more, or None without a limit")
    return Limits(num_trials=trials, timeout=timeout, trial_timeout=trial_timeout)


def _make_budget(
    config: StudyConfig,
    budget: float | str,
    *,
    started: float,
    output: str | Path,
    device: str,
    limits: Limits,
    ray: str | None,
) -> Budget:
    if ray is not None:
        raise ConfigError("budget: cannot be combined with ray, as the winner is trained on this machine; use timeout")
    if limits.timeout is not None:
        raise ConfigError("budget: cannot be combined with timeout; the budget is the time of all")
    seconds = parse_duration(budget) if isinstance(budget, str) else float(budget)
    if not 0 < seconds < math.inf:
        raise ConfigError(f"budget: {budget} is no time; give seconds above 0, or text such as '10m' or '1h30m'")
    return make_budget(config, seconds=seconds, started=started, output=Path(output), device=device, untrusted=False)


def _train(study: Study, winner: Winner, *, say: Callable[[str], None], progress: bool) -> None:
    """Train the winner of a budget, which becomes `Study.model`."""
    say(f"training {NUM_SEEDS} networks for {winner.seconds:g} s each")
    if winner.note:
        say(winner.note)
    try:
        study.train(
            seeds=NUM_SEEDS,
            seconds=winner.seconds,
            keep_validation=winner.keep_validation,
            device=winner.budget.device,
            output=winner.budget.output,
            progress=progress,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the training was interrupted; fbsearch.open_study({study.name!r}).train(seeds={NUM_SEEDS}, "
            f"seconds={winner.seconds:g}, keep_validation={winner.keep_validation}, "
            f"output={str(winner.budget.output)!r}) goes on after the last whole epoch"
        ) from None


@contextlib.contextmanager
def _hidden_storage() -> Iterator[None]:
    """Take the database out of the environment, which workers inherit: it may hold a password."""
    url = os.environ.pop("FBSEARCH_STORAGE", None)
    try:
        yield
    finally:
        if url is not None:
            os.environ["FBSEARCH_STORAGE"] = url


@contextlib.contextmanager
def _make_view(config: StudyConfig, callback: Callback | None, *, shown: bool) -> Iterator[View]:
    """Give what shows the progress of a search, and calls `callback` with each event."""
    with make_progress(config, shown=shown) as view:

        def show(state: SearchState, event: Event | None) -> None:
            view(state, event)
            if callback is not None and event is not None:
                callback(state, event)

        yield show


def _make_executor(
    config: StudyConfig,
    *,
    workers: int | None,
    device: str,
    per_gpu: int | Literal["auto"],
    ray: str | None,
    gpus: float | None,
    say: Callable[[str], None],
) -> Executor:
    if per_gpu != 1 and (workers is not None or ray is not None):
        other = "workers, which is their number" if ray is None else "ray; use gpus_per_worker"
        raise ConfigError(f"workers_per_gpu: cannot be combined with {other}")
    if per_gpu != "auto" and per_gpu < 1:
        raise ConfigError(f"workers_per_gpu: {per_gpu} is neither auto nor a number of 1 or more")
    if ray is not None:
        from fbsearch.workers.ray_cluster import make_ray_executor

        return make_ray_executor(config.data, address=ray, device=device, workers=workers, gpus_per_worker=gpus)
    if gpus is not None:
        raise ConfigError("gpus_per_worker: only with ray")
    from fbsearch.workers.local import make_executor

    if per_gpu == "auto":
        from fbsearch.workers.gpu_sharing import measure_workers_per_gpu

        per_gpu = measure_workers_per_gpu(config, device, say=say)
    return make_executor(config.data, device=device, workers=workers, workers_per_gpu=per_gpu)
