"""The training of a study's winner from Python, as `fbsearch export` and `fbsearch train` do it."""

import io
from pathlib import Path

import optuna

from fbsearch.api.model import Model
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.choices import BaselineRecipe
from fbsearch.config.export_file import EXPORT, ExportedConfig, dump_export
from fbsearch.data.sources import has_test_split
from fbsearch.files import write_output
from fbsearch.study.export import export_best
from fbsearch.training.devices import choose_device
from fbsearch.winners.checkpoint import choose_config, load_model
from fbsearch.winners.final_training import train_export
from fbsearch.winners.plan import Settings, study_folder


def train_winner(
    study: optuna.Study,
    *,
    num_seeds: int,
    epochs: int | None,
    seconds: float | None,
    rank: int,
    keep_validation: bool | None,
    device: str,
    output: Path,
    progress: bool,
) -> Model:
    """Export the best configurations into the folder of the results, train that of `rank`, and return its first seed.

    `Study.train` describes the arguments.
    """
    path = study_folder(output, study.study_name) / "best.yaml"
    export = export_best(study, top=max(rank, 5))
    config = choose_config(export, path, rank=rank)
    write_output(path, dump_export(export), kind=EXPORT, force=False, way_out="; output= names another folder")
    settings = Settings(
        num_seeds=num_seeds,
        epochs=epochs,
        seconds=seconds,
        keep_validation=_must_keep(config) if keep_validation is None else keep_validation,
        output=output,
    )
    done = train_export(
        path,
        settings,
        rank=rank,
        top=None,
        baselines=[],
        recipe=BaselineRecipe.SAME,
        device=device,
        untrusted=False,
        console=SafeConsole(stderr=True) if progress else SafeConsole(file=io.StringIO()),
    )
    assert done is not None, "torchrun starts a command, and no call in Python"
    (row,) = (row for row in done.summary if (row.rank, row.trial) == (rank, config.trial))
    folder = done.folder / f"rank-{rank}" / f"seed-{config.seed}"
    return Model(load_model(folder, device=choose_device(device)), training=row)


def _must_keep(config: ExportedConfig) -> bool:
    """Return True where the validation images are needed: for the score, or to choose an epoch."""
    chooses = config.train.keep_best or config.train.early_stopping is not None
    return chooses or not has_test_split(config.data)
