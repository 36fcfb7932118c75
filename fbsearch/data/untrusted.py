"""The check of `--untrusted`: paths in somebody else's file, and links below them, stay in the current folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from fbsearch.config.models import DataConfig, TrainConfig
from fbsearch.data.image_tree import PARTS, walk
from fbsearch.errors import ConfigError


def check_paths(file: Path, *, data: DataConfig, train: TrainConfig) -> None:
    """Raise ConfigError for a path that leaves the current folder: absolute, with `~` or `..`, or through a link.

    All links below a path count, at any depth; of an image tree those below its parts.
    """
    here = Path.cwd().resolve()
    for key, value in {"data.root": data.root, "train.tensorboard": train.tensorboard}.items():
        if value is None:
            continue
        path = Path(value)
        tops = [path / part for part in PARTS] if key == "data.root" and data.name == "folder" else [path]
        leaves = path.is_absolute() or value.startswith("~") or ".." in path.parts or "\0" in value
        outside = "" if leaves else next(_links_out([path, *tops], here=here), None)
        if outside is not None:
            through = f" through {outside}" if outside and Path(outside) != path else ""
            raise ConfigError(
                f"{file}: {key}: {value!r} leaves the current folder{through}, which --untrusted does not allow; put "
                f"the data below {here} and name them from there, or leave --untrusted away if you trust the file"
            )


def _links_out(paths: list[Path], *, here: Path) -> Iterator[str]:
    """Yield those of the paths, and of the links below all but the first, that lead out of `here`.

    A link to a folder inside is followed, since what is below it is read too.
    """
    top, *left = [str(path) for path in paths]
    if not _is_inside(top, here):
        yield top
    seen = set()
    while left:
        name = left.pop()
        if not _is_inside(name, here):
            yield name
            continue
        folder = Path(os.path.realpath(name))
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        try:
            left += [entry.path for entry in walk(folder, with_hidden=True) if entry.is_symlink()]
        except OSError as error:
            raise ConfigError(f"{error.filename}: cannot be listed: {error.strerror}") from None


def _is_inside(name: str, here: Path) -> bool:
    return Path(os.path.realpath(name)).is_relative_to(here)  # Path.resolve raises for links in a circle
