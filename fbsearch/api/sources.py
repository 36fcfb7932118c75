"""The study of the data that a Python user names: a folder, a study file, a file of arrays, or arrays."""

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sqlalchemy
from pydantic import ValidationError

from fbsearch.api.folder import choose_for_folder
from fbsearch.config.models import DataName
from fbsearch.config.study_file import MAX_NAME, StudyConfig, load_study_file
from fbsearch.config.yaml_format import describe_errors
from fbsearch.data import arrays
from fbsearch.errors import ConfigError, DataError

# What a search accepts as its data. None is the default study, on scikit-learn's digits.
Data: TypeAlias = str | Path | StudyConfig | tuple[Any, Any] | None

# To this size the images of a folder are resized where the study names none.
FOLDER_SIZE = 64


def make_config(
    data: Data,
    *,
    study: str | Path | StudyConfig | None,
    test: tuple[Any, Any] | None,
    image_size: int | None,
    name: str | None,
    seed: int | None,
    url: str,
    say: Callable[[str], None],
) -> StudyConfig:
    """Return the study of `data`, as `search` describes it; arrays are written beside the database of `url`.

    `say` gets lines about a folder: what there is in it, and what was chosen for it.
    Raise ConfigError for what is no data, DataError for arrays that are no images with labels.
    """
    if test is not None and not isinstance(data, tuple):
        raise ConfigError("test=(images, labels): only beside arrays; a folder has its own test/")
    settings = study if isinstance(study, StudyConfig) else None if study is None else load_study_file(Path(study))
    if isinstance(data, tuple):
        config = _of_arrays(data, test, settings or StudyConfig(), folder=_folder_beside(url))
    elif settings is not None and (data is None or isinstance(data, StudyConfig)):
        raise ConfigError("study=...: says what to search in a folder or in arrays, which the first argument names")
    elif isinstance(data, StudyConfig):
        config = data
    else:
        config = StudyConfig() if data is None else _of_path(Path(data).expanduser(), settings, say=say)
    if name is not None and not 1 <= len(name) <= MAX_NAME:
        raise ConfigError(f"name: has {len(name)} characters; 1 to {MAX_NAME} are allowed")
    if name is not None:
        config = config.model_copy(update={"name": name})
    if seed is not None:
        config = _replace(config, "search", seed=seed)
    return config if image_size is None else _replace(config, "data", image_size=image_size)


def _replace(config: StudyConfig, section: str, **fields: Any) -> StudyConfig:
    """Return a study with some fields of a section replaced. ConfigError for values that are not allowed."""
    part = getattr(config, section)
    try:
        changed = type(part).model_validate(part.model_dump() | fields)
    except ValidationError as error:
        lines = describe_errors(error, type(part))
        raise ConfigError("; ".join(lines)) from None
    return config.model_copy(update={section: changed})


def _of_path(path: Path, settings: StudyConfig | None, *, say: Callable[[str], None]) -> StudyConfig:
    """Return the study of an image folder, a study file, a file of arrays, or the name of a data set."""
    if path.is_dir() and settings is None:
        found = choose_for_folder(path, notice=say)
        for line in found.notes:
            say(line)
        return found.config
    base = settings or StudyConfig()
    if path.is_dir():
        size = base.data.image_size or FOLDER_SIZE
        config = _replace(base, "data", name="folder", root=str(path), image_size=size)
        return config.model_copy(update={"name": path.resolve().name[:MAX_NAME] or "images"})
    if path.suffix == ".npz":
        config = _replace(base, "data", name="arrays", root=str(path))
        return config.model_copy(update={"name": path.stem[:MAX_NAME]})
    known = [name for name in typing.get_args(DataName) if name not in ("folder", "arrays")]
    if str(path) in known:
        return _replace(base, "data", name=str(path)).model_copy(update={"name": str(path)})
    if settings is None and (path.suffix in (".yaml", ".yml") or path.is_file()):
        return load_study_file(path)
    raise ConfigError(
        f"{path}: there is no such folder of images, study file (.yaml) or file of arrays (.npz), and no data set of "
        f"this name; known are {', '.join(known)}"
    )


def _of_arrays(data: tuple[Any, Any], test: tuple[Any, Any] | None, base: StudyConfig, *, folder: Path) -> StudyConfig:
    """Return the study of (images, labels), named after their content, so that the same ones go on with it."""
    images, labels = _check_pair(data, what="data")
    value_range = base.data.value_range or arrays.find_value_range(images)
    content = {arrays.IMAGES: arrays.to_bytes(images, value_range), arrays.LABELS: labels}
    if test is not None:
        test_images, content[arrays.TEST_LABELS] = _check_pair(test, what="test")
        content[arrays.TEST_IMAGES] = arrays.to_bytes(test_images, value_range, name=arrays.TEST_IMAGES)
    path = arrays.write_arrays(folder, content)
    config = _replace(base, "data", name="arrays", root=str(path), value_range=value_range)
    return config.model_copy(update={"name": path.stem})


def _check_pair(pair: tuple[Any, Any], *, what: str) -> tuple[Any, Any]:
    """Return images and labels as arrays. DataError if they are not as many, or labels are no numbers and no text."""
    images, labels = (np.asarray(part) for part in pair)
    if labels.dtype == np.object_:  # text of pandas; other objects would be pickled
        labels = np.array(list(map(str, labels.ravel()))).reshape(labels.shape)
    if labels.ndim != 1 or images.shape[:1] != labels.shape:
        raise DataError(
            f"{what}: images have the shape {images.shape} and labels {labels.shape}; needed are N images and N labels"
        )
    return images, labels


def _folder_beside(url: str) -> Path:
    """Return the folder of an SQLite database, `studies` for a server's."""
    parsed = sqlalchemy.make_url(url)
    return Path(parsed.database).parent if parsed.drivername == "sqlite" and parsed.database else Path("studies")
