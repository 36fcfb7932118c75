"""Train runs at full budget and score each on the test split, once.

The state of a run is written into its folder after every epoch, `result.json` last: a run that was killed goes on
after the last whole epoch, and a finished run is not repeated.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from fbsearch.config.models import AugmentConfig, DataConfig
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.errors import ConfigError, DataError, StorageError
from fbsearch.files import write_whole
from fbsearch.messages import EpochStats
from fbsearch.training.devices import choose_device, is_out_of_memory, prepare_device
from fbsearch.training.distributed import Team
from fbsearch.training.loop import train
from fbsearch.training.run import TrainState
from fbsearch.winners.checkpoint import check_weights, load_state, save_state
from fbsearch.winners.plan import Run, RunError
from fbsearch.winners.progress import View
from fbsearch.winners.records import SeedResult, to_csv
from fbsearch.winners.results import compare_settings, finish, read_result

STATE_NAME = "training.pt"


class Loader:
    """Load data sets to one device, which computes the same numbers for the same seed; keep the newest."""

    def __init__(self, device: str, *, say: Callable[[str], None]) -> None:
        self.device = choose_device(device)
        prepare_device(self.device)
        self._say = say
        self._newest: tuple[DataConfig, Dataset] | None = None

    def __call__(self, config: DataConfig) -> Dataset:
        """Return the data set of a configuration. DataError where it cannot be loaded."""
        images = config.model_copy(update={"augment": AugmentConfig()})  # which changes nothing that is loaded
        if self._newest is None or self._newest[0] != images:
            self._newest = None  # the memory may not hold two
            self._newest = (images, load_dataset(images, device=self.device, on_progress=self._say))
        return self._newest[1]


def retrain(runs: Sequence[Run], *, load: Loader, view: View, team: Team | None = None) -> list[SeedResult]:
    """Train every run that has no result yet, and return all results in order; in a `team`, rank 0 alone returns them.

    Raises FbsearchError for a folder with a run of other settings, a damaged state, data that have changed or have no
    test split, and a full disk. The results of finished runs stay.
    """
    results = []
    team = team or Team()
    for run in runs:
        with lock_folder(run.folder) if team.leads else nullcontext(), _explain_out_of_memory(run):
            result = read_result(run)
            before = result is not None
            if result is None:
                result = _run(run, prepare(load(run.config.data), run), view=view, team=team)
            if result is not None and team.leads:
                view.finished(run, result, before=before)
                results.append(result)
    return results


def prepare(data: Dataset, run: Run) -> Dataset:
    """Return the data of a run: the validation images join the training images unless the run keeps them apart.

    Mean and deviation stay those of the search's training split. DataError where the data have changed since the export
    or have no images to score.
    """
    info, config = data.info, run.config
    for name in ("num_classes", "in_channels", "image_size"):
        if getattr(info, name) != getattr(config, name):
            raise DataError(
                f"data.name: {config.data.name} now has {name} {getattr(info, name)}, at the export it had "
                f"{getattr(config, name)}: the data have changed; search and export anew"
            )
    if data.test is None and not run.keep_validation:
        raise DataError(
            f"data.name: {config.data.name} has no test split, so the validation split must give the score: "
            "--keep-validation keeps it apart"
        )
    if run.keep_validation:
        return data
    images_NHWC = torch.cat([split.images_NCHW.permute(0, 2, 3, 1) for split in (data.train, data.val)])
    train_split = Split(images_NHWC.permute(0, 3, 1, 2), torch.cat([data.train.labels_N, data.val.labels_N]))
    nothing = Split(data.val.images_NCHW[:0], data.val.labels_N[:0])
    merged = dataclasses.replace(info, num_train=info.num_train + info.num_val, num_val=0)
    return dataclasses.replace(data, info=merged, train=train_split, val=nothing)


def _run(run: Run, data: Dataset, *, view: View, team: Team) -> SeedResult | None:
    """Train one run from its last state, score it and write its files; in a team, rank 0 alone returns the result."""
    device = data.device
    torch.manual_seed(run.config.seed)
    net = run.build().to(device)
    state, history = _read_state(run, net, device)
    view.started(run, len(history))

    def save(stats: EpochStats, state: TrainState) -> None:
        history.append(stats)
        rows = [dataclasses.asdict(one) for one in history]
        content = {"settings": json.dumps(run.settings()), "device": device.type, "history": rows, "state": state}
        save_state(run.folder / STATE_NAME, content)
        write_whole(run.folder / "metrics.csv", to_csv(rows))

    save_here = save if team.leads else None
    for stats in train(
        net, run.trial, data, resume_from=state, save_state=save_here, on_execution=view.execution, team=team
    ):
        view.epoch(run, stats)
    if not team.leads:
        return None
    result = finish(run, data, net, history)
    (run.folder / STATE_NAME).unlink(missing_ok=True)
    return result


@contextmanager
def _explain_out_of_memory(run: Run) -> Iterator[None]:
    """Turn an out-of-memory error into a RunError with a way out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the exported file" if run.baseline is None else "another recipe"
        raise RunError(
            f"{run.name}: out of memory with train.batch_size {run.config.train.batch_size}; close what else uses the "
            f"device's memory, take another --device, or lower the batch size in {where}. Whole epochs are kept, and "
            "the same command goes on after them"
        ) from error


def _read_state(run: Run, net: nn.Module, device: torch.device) -> tuple[TrainState | None, list[EpochStats]]:
    """Return the state to go on from and its epochs; None and no epochs where there is no state."""
    path = run.folder / STATE_NAME
    if not path.exists():
        return None, []
    content = load_state(path, keys=("settings", "device", "history", "state"))
    try:
        settings = json.loads(content["settings"])
        history = [EpochStats(**one) for one in content["history"]]
        weights = content["state"]["model"]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: is damaged ({error}); delete it to train this seed from its first epoch") from None
    compare_settings(run, settings, path)
    if content["device"] != device.type:
        raise ConfigError(
            f"{path}: was started on {content['device']}: continue with --device {content['device']}, or delete it to "
            "start again"
        )
    check_weights(path, weights, net)
    return content["state"], history


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create a run's folder and lock it against other processes; the lock ends with its process.

    Raises StorageError where another process has the lock or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{folder}: another fbsearch is at work there") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}; --output names another folder") from None
    try:
        yield
    finally:
        lock.release()
