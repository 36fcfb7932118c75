"""A network's predictions for the split that gave its score, in a file beside its result: what it was wrong about.

The split is scored once; whatever is asked about its mistakes later is answered from this file. It is a safetensors
file, so nothing in it is unpickled, and its sizes are checked when it is opened.

Shapes: N images of a split, K classes, M stored pictures, H height, W width, C channels.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast, get_args

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fbsearch.errors import ConfigError
from fbsearch.files import write_whole
from fbsearch.winners.records import ScoredOn

PREDICTIONS_NAME = "predictions.safetensors"
PREDICTIONS_FORMAT: Final = "fbsearch-predictions/1"
NUM_PICTURES = 24

Labels: TypeAlias = NDArray[np.int32]
Shares: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]

# Names in the file, with their types and shapes in letters. Probabilities have 11 bits: half the space, and enough for
# all but the likeliest class, whose differences from 1 need the full ones of `confidence`.
_TENSORS = {
    "labels": ("int32", "N"),
    "predicted": ("int32", "N"),
    "confidence": ("float32", "N"),
    "probabilities": ("float16", "NK"),
    "picture_rows": ("int32", "M"),
    "pictures": ("uint8", "MHWC"),
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one network. `said_N` are the likeliest classes, `confidence_N` their probabilities.

    `pictures_MHWC` are the images in the rows `rows_M`: those of the most confident mistakes.
    """

    class_names: tuple[str, ...]
    scored_on: ScoredOn
    labels_N: Labels
    said_N: Labels
    confidence_N: Shares
    shares_NK: NDArray[np.floating[Any]]
    rows_M: Labels
    pictures_MHWC: Pixels

    @property
    def is_right_N(self) -> NDArray[np.bool_]:
        """Return true for each image that is predicted right."""
        right_N: NDArray[np.bool_] = self.said_N == self.labels_N
        return right_N


def most_confident_mistakes(labels_N: Labels, said_N: Labels, confidence_N: Shares) -> Labels:
    """Return the rows of the NUM_PICTURES most confident mistakes, the most confident first; of equals the first."""
    wrong_W = np.flatnonzero(said_N != labels_N)
    order_W = np.argsort(-confidence_N[wrong_W], kind="stable")
    return wrong_W[order_W][:NUM_PICTURES].astype(np.int32)


def save_predictions(folder: Path, predictions: Predictions) -> None:
    """Write predictions into the folder of a run. StorageError if they cannot be written."""
    one = predictions
    arrays = (one.labels_N, one.said_N, one.confidence_N, one.shares_NK, one.rows_M, one.pictures_MHWC)
    tensors = {
        name: np.ascontiguousarray(array, dtype=kind)
        for (name, (kind, _)), array in zip(_TENSORS.items(), arrays, strict=True)
    }
    metadata = {
        "format": PREDICTIONS_FORMAT,
        "scored_on": one.scored_on,
        "class_names": json.dumps(one.class_names),  # ASCII, also of names that are no UTF-8
    }
    write_whole(folder / PREDICTIONS_NAME, safetensors.numpy.save(tensors, metadata=metadata))


def load_predictions(folder: Path) -> Predictions | None:
    """Read the predictions in the folder of a run; None where an older version has trained it and stored none.

    Raises ConfigError for a file that is damaged or of a newer format.
    """
    path = folder / PREDICTIONS_NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return _check(file.metadata() or {}, {name: file.get_tensor(name) for name in _TENSORS})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); delete it, and the mistakes of this network are left out"
        ) from None


def _check(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> Predictions:
    """Return what a file holds. ValueError where its parts do not fit together."""
    if metadata.get("format") != PREDICTIONS_FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, this fbsearch reads {PREDICTIONS_FORMAT!r}")
    names = json.loads(metadata["class_names"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is no list of names")
    if metadata.get("scored_on") not in get_args(ScoredOn):
        raise ValueError(f"scored_on is {metadata.get('scored_on')!r}")
    sizes = {"K": len(names)}
    for name, (kind, letters) in _TENSORS.items():
        array = tensors[name]
        if array.dtype != kind or array.ndim != len(letters):
            raise ValueError(f"{name} has type {array.dtype} and shape {list(array.shape)}")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{name} has shape {list(array.shape)}, which does not fit the others")
    _check_values(sizes, tensors)
    return Predictions(tuple(names), cast(ScoredOn, metadata["scored_on"]), *tensors.values())


def _check_values(sizes: dict[str, int], tensors: dict[str, NDArray[Any]]) -> None:
    if not sizes["N"] or sizes["C"] not in (1, 3) or not sizes["H"] * sizes["W"]:
        raise ValueError("it holds no images")
    for name, top in {"labels": sizes["K"], "predicted": sizes["K"], "picture_rows": sizes["N"]}.items():
        if len(tensors[name]) and not (tensors[name].min() >= 0 and tensors[name].max() < top):
            raise ValueError(f"{name} are not all in 0 to {top - 1}")
    for name in ("confidence", "probabilities"):
        if not ((tensors[name] >= 0) & (tensors[name] <= 1)).all():
            raise ValueError(f"{name}: not all are in 0 to 1")
