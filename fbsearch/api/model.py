"""A trained network from Python. Its preprocessing is part of it: images may have any size, type and colours.

Shapes: N images, H height, W width, C channels (1 grey, 3 RGB), K classes.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fbsearch.config.choices import ModelFormat
from fbsearch.data.arrays import crop_square, to_bytes, to_channels
from fbsearch.data.dataset import resize
from fbsearch.data.decode import Bytes, fit_image
from fbsearch.errors import ConfigError, DataError
from fbsearch.files import FileKind, check_output
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, choose_dtype
from fbsearch.winners.checkpoint import CARD_NAME, WEIGHTS_NAME, ModelCard, TrainedModel, save_model
from fbsearch.winners.checkpoint import load_model as load_trained
from fbsearch.winners.error_analysis import ErrorAnalysis, read_analysis
from fbsearch.winners.model_export import EXPORT_ENDINGS, export_model
from fbsearch.winners.predict import compute_logits, find_images, read_image
from fbsearch.winners.records import Retraining

# One image, or several of them. An array holds several: [N, H, W], [N, H, W, C] or [N, C, H, W].
Images: TypeAlias = (
    "str | Path | Image.Image | npt.NDArray[Any] | Tensor | Sequence[str | Path | Image.Image | npt.NDArray[Any]]"
)
SAVED_MODEL = FileKind("trained model of fbsearch", b"fbsearch-model/")


class Model:
    """A trained network with its preprocessing.

    Images are prepared as in training: cropped to the largest centred square, resized to the network's size, converted
    to grey or colour, normalised. They are given as

    - an array or tensor [N, H, W], [N, H, W, C] or [N, C, H, W] of uint8, or of other numbers in the range of those
      that the network was trained on (`card.data.value_range`), which is [0, 1] without one;
    - a PIL image, or the path of an image file or of a folder of them, turned upright;
    - a list of such paths, PIL images, or arrays [H, W] or [H, W, C], also of different sizes.
    """

    def __init__(self, trained: TrainedModel, *, training: Retraining | None = None) -> None:
        """Wrap a trained network. `training` has the scores of all seeds of its configuration."""
        self._trained, self.training = trained, training

    @property
    def card(self) -> ModelCard:
        """Return the configuration as it was trained, and what prediction needs."""
        return self._trained.card

    @property
    def net(self) -> FractalBrainNet:
        """Return the network as a torch module, in eval mode. It takes normalised images."""
        return self._trained.net

    @cached_property
    def errors(self) -> ErrorAnalysis | None:
        """Return where the network errs on the images that gave its score, from predictions that were stored then.

        After `Study.train` those of all its seeds together: `errors.classes` is a table of precision, recall and F1
        with their intervals, `errors.macro_f1`, `errors.calibration` and `errors.mistakes` are there too. None where
        none are stored: for a model of an older version, or one that `save` has copied. Raise ConfigError for a file
        that is damaged.
        """
        folder = self._trained.folder
        return read_analysis([folder] if self.training is None else self.training.folders(folder.parent.parent))

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Return the K classes, in the order of `predict_proba`: their names, as integers where all names are."""
        names = self.card.class_names
        is_integer = all(name.removeprefix("-").isdecimal() and str(int(name)) == name for name in names)
        return np.array([int(name) for name in names] if is_integer else names)

    def predict_proba(self, images: Images) -> npt.NDArray[np.float32]:
        """Return the probability of each class, float32 [N, K]. Raise DataError for what is no image."""
        device = next(self.net.parameters()).device
        images_NCHW = prepare_images(images, self.card).to(device)
        dtype = choose_dtype(self.card.train.precision, device)
        logits_NK = compute_logits(self.net, images_NCHW, normalise=self._trained.normalise, dtype=dtype)
        shares_NK: npt.NDArray[np.float32] = logits_NK.softmax(dim=1).cpu().numpy()
        return shares_NK

    def predict(self, images: Images) -> npt.NDArray[Any]:
        """Return the likeliest class of each image, [N], of `classes_`. Raise DataError for what is no image."""
        labels_N: npt.NDArray[Any] = self.classes_[self.predict_proba(images).argmax(axis=1)]
        return labels_N

    def score(self, images: Images, labels: Any) -> float:
        """Return the share of the images whose class is predicted right. Raise DataError for unknown classes."""
        said, wanted = self.predict(images).astype(str), np.asarray(labels).astype(str)
        if said.shape != wanted.shape:
            raise DataError(f"labels: have the shape {wanted.shape}, and there are {len(said)} images")
        if unknown := sorted(set(wanted.tolist()) - set(self.card.class_names)):
            raise DataError(f"labels: {unknown[0]!r} is none of the classes {', '.join(self.card.class_names)}")
        return float((said == wanted).mean())

    def save(self, folder: str | Path) -> Path:
        """Write `model.yaml` and `model.safetensors` into a folder, which `load_model` and the commands read.

        Raise ConfigError if there are files of these names that are no model's, StorageError if they cannot be written.
        """
        folder = Path(folder)
        for name in (CARD_NAME, WEIGHTS_NAME):
            check_output(folder / name, kind=SAVED_MODEL, force=False, way_out="name another folder")
        save_model(folder, self.net, self.card)
        return folder

    def export(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the network for other programs: .onnx, or .pt2 for torch.export. Images in [0, 1] become logits.

        The file is kept only if its outputs are those of the network. Raise ConfigError for another ending, if packages
        are missing, and if the file is there and no exported model, without `force`.
        """
        path = Path(path)
        kinds = {ending: kind for kind, ending in EXPORT_ENDINGS.items()}
        if path.suffix not in kinds:
            raise ConfigError(f"{path}: ends in none of {', '.join(kinds)}")
        export_model(self._trained, path, kind=ModelFormat(kinds[path.suffix]), force=force)
        return path

    def __repr__(self) -> str:
        card = self.card
        scores = "" if self.training is None else f", {_describe(self.training)}"
        return f"<Model {card.study!r}, rank {card.rank}, seed {card.seed}: {card.num_classes} classes{scores}>"


def load_model(path: str | Path, *, device: str = "cpu") -> Model:
    """Open a trained model: the folder that `Study.train`, `fbsearch train` or `Model.save` has written.

    Raise ConfigError where there is none, or its files are damaged.
    """
    return Model(load_trained(Path(path), device=choose_device(device)))


def prepare_images(images: Images, card: ModelCard) -> Tensor:
    """Return images as the network of a card takes them, uint8 [N, C, H, H], not normalised yet."""
    if isinstance(images, str | Path):
        images = find_images([Path(images)])
    elif isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple):
        if not images:
            raise DataError("images: there is none")
        images_NHWC = np.concatenate([_prepare_one(image, card) for image in images])
    else:
        images_NHWC = _prepare_array(np.asarray(images), card)
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)


def _prepare_one(image: object, card: ModelCard) -> Bytes:
    if isinstance(image, str | Path):
        pixels = read_image(Path(image), card)
        if isinstance(pixels, str):
            raise DataError(f"{image}: {pixels}")
        return pixels[None]
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return fit_image(upright, side=card.image_size, channels=card.in_channels)[None].copy()
    return _prepare_array(np.asarray(image)[None], card)


def _prepare_array(images: npt.NDArray[Any], card: ModelCard) -> Bytes:
    images_NHWC = to_bytes(images, card.data.value_range)
    side, channels = card.image_size, card.in_channels
    if images_NHWC.shape[1:3] == (side, side) or not len(images_NHWC):
        return np.array(to_channels(images_NHWC, channels))  # a copy in C order, which torch may write to
    if card.data.name == "folder":  # Pillow has resized its training images
        return np.stack([fit_image(_to_pillow(image_HWC), side=side, channels=channels) for image_HWC in images_NHWC])
    square_NHWC = np.ascontiguousarray(to_channels(crop_square(images_NHWC), channels))
    resized: Bytes = resize(torch.from_numpy(square_NHWC), side).numpy()
    return resized


def _to_pillow(image_HWC: Bytes) -> Image.Image:
    return Image.fromarray(image_HWC if image_HWC.shape[2] == 3 else image_HWC[..., 0])


def _describe(training: Retraining) -> str:
    spread = "" if training.accuracy_std is None else f" \N{PLUS-MINUS SIGN} {training.accuracy_std:.2%}"
    return f"{training.scored_on} accuracy {training.accuracy_mean:.2%}{spread} over {training.num_seeds} seeds"
