"""What a study file or an export of somebody else may do: its paths stay below the current folder."""

from pathlib import Path

from fbsearch.config.models import DataConfig, TrainConfig
from fbsearch.errors import ConfigError


def check_paths(file: Path, *, data: DataConfig, train: TrainConfig) -> None:
    """Refuse paths that leave the current folder: absolute ones, `~`, `..`, and links that lead out.

    ConfigError names file, key, path and way out.
    """
    here = Path.cwd().resolve()
    for key, value in {"data.root": data.root, "train.tensorboard": train.tensorboard}.items():
        if value is None:
            continue
        path = Path(value)
        if path.is_absolute() or value.startswith("~") or ".." in path.parts or not _leads_below(path, here):
            raise ConfigError(
                f"{file}: {key}: {value!r} leaves the current folder, which --untrusted does not allow; put the data "
                f"below {here} and name them from there, or leave --untrusted away if you trust the file"
            )


def _leads_below(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder once its links are followed, those inside an image tree too."""
    return all(found.resolve().is_relative_to(folder) for found in (path, *_links(path)))


def _links(folder: Path) -> list[Path]:
    """The symbolic links at most three levels down: train, its classes, their images."""
    return [found for pattern in ("*", "*/*", "*/*/*") for found in folder.glob(pattern) if found.is_symlink()]
