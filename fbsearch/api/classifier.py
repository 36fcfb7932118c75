"""A scikit-learn classifier: `fit` searches for a network and trains it, `predict` uses it.

Shapes: N images, H height, W width, C channels (1 grey, 3 RGB), K classes.
"""

import math
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state, check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fbsearch.api.search import search
from fbsearch.config.models import MAX_STUDY_SEED, DataConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.study.database import close_connections

# Of an image's shorter side: what the default study's networks take, which halve it twice.
MIN_SIDE = 4


class FractalBrainNetClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of images that searches for its network, by scikit-learn's contract.

    X is [N, H, W], [N, H, W, C] or [N, C, H, W], or rows of pixels [N, H * W], as scikit-learn keeps its digits: of
    square grey images, or of `image_shape`. The search and its database live in a temporary folder and end with `fit`;
    `fbsearch.search` keeps them. With one worker the same `random_state` gives the same network.

    Args:
        trials: Finished trials of the search.
        epochs: Passes over the data of each trial; None is the study's.
        final_epochs: Passes of the final training; None is the trial's.
        config: A StudyConfig, whose space, network, training and search are used, and of `data` augmentation and split.
        image_shape: (H, W) or (H, W, C) of the images whose pixels are the rows of X.
        image_size: Pixels of the square to which images are resized; None leaves them.
        timeout: Seconds after which the search stops.
        workers, device: As in `fbsearch.search`.
        random_state: An integer, or a generator of NumPy; None is 0.
        progress: Show the search and the training on standard error, or in the notebook.

    Attributes:
        classes_: The classes, in the order of `predict_proba`.
        model_: The trained `fbsearch.Model`. A fifth of the images (`config.data.validation_share`) chose its
            configuration and gave its score; it was not trained on.
        trials_: The trials of the search as a DataFrame.
        n_features_in_: The length of the rows, where X was rows of pixels.
    """

    def __init__(
        self,
        *,
        trials: int = 50,
        epochs: int | None = None,
        final_epochs: int | None = None,
        config: StudyConfig | None = None,
        image_shape: tuple[int, ...] | None = None,
        image_size: int | None = None,
        timeout: float | None = None,
        workers: int | None = None,
        device: str = "auto",
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.trials = trials
        self.epochs = epochs
        self.final_epochs = final_epochs
        self.config = config
        self.image_shape = image_shape
        self.image_size = image_size
        self.timeout = timeout
        self.workers = workers
        self.device = device
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any) -> Self:
        """Search for a network, train it and keep it. Raise ValueError and FbsearchError for X or y that cannot be."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        values, labels = self._validate(X, y)
        check_classification_targets(labels)
        self.classes_, numbers_N = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has {len(self.classes_)} class, {self.classes_}; at least 2 classes are needed")
        images = self._lay_out(values)
        if self.image_size is None and min(_sides(images)) < MIN_SIDE:
            height, width = _sides(images)
            raise ValueError(
                f"X has {math.prod(values.shape[1:])} feature(s) an image: {height} x {width} pixels, and {MIN_SIDE} x "
                f"{MIN_SIDE} are the fewest; image_size= enlarges them"
            )
        with tempfile.TemporaryDirectory(prefix="fbsearch-") as folder:
            study = search(
                (images, numbers_N),
                study=self._config(),
                name="fit",
                trials=self.trials,
                timeout=self.timeout,
                workers=self.workers,
                device=self.device,
                storage=Path(folder) / "study.db",
                progress=self.progress,
            )
            self.trials_ = study.trials
            self.model_ = study.train(
                seeds=1,
                epochs=self.final_epochs,
                device=self.device,
                output=folder,
                progress=self.progress,
            )
            close_connections(study.optuna)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float32]:
        """Return the probability of each class, float32 [N, K]."""
        check_is_fitted(self)
        return self.model_.predict_proba(self._lay_out(self._validate(X)[0]))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest class of each image, [N]."""
        shares_NK = self.predict_proba(X)
        labels_N: npt.NDArray[Any] = self.classes_[shares_NK.argmax(axis=1)]
        return labels_N

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _config(self) -> StudyConfig:
        """Return the settings of the search, of which the data are still to be named."""
        config = self.config or StudyConfig()
        seed = check_random_state(0 if self.random_state is None else self.random_state).randint(MAX_STUDY_SEED)
        epochs = {} if self.epochs is None else {"epochs": self.epochs, "budget": None}
        kept = {name: getattr(config.data, name) for name in ("augment", "validation_share", "seed", "limit")}
        return StudyConfig.model_validate(
            dict(config)
            | {
                "data": DataConfig(**kept, image_size=self.image_size),
                "train": config.train.model_dump() | epochs,
                "search": config.search.model_dump() | {"seed": int(seed)},
            }
        )

    def _validate(self, X: Any, y: Any = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return X and y as arrays. Without y, rows must be as long as those of `fit`.

        Raise ValueError for what scikit-learn's contract refuses: other shapes, and what are no finite numbers.
        """
        is_rows = len(getattr(X, "shape", (0, 0))) <= 2
        if y is None:
            values = validate_data(self, X, reset=False) if is_rows else check_array(X, allow_nd=True)
        elif is_rows:
            values, y = validate_data(self, X, y)
        else:
            values, y = check_X_y(X, y, allow_nd=True)
        return values, y

    def _lay_out(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return rows of pixels as images, and images as they are. ValueError if no image has so many pixels."""
        if values.ndim != 2:
            return values
        num_pixels = values.shape[1]
        side = math.isqrt(num_pixels)
        shape = (side, side) if self.image_shape is None else tuple(self.image_shape)
        if math.prod(shape) != num_pixels:
            known = "square images" if self.image_shape is None else f"images of {shape}"
            raise ValueError(
                f"X has rows of {num_pixels} pixels, which are no {known}; image_shape=(height, width) or (height, "
                "width, channels) says how they are laid out"
            )
        return values.reshape(-1, *shape)


def _sides(images: npt.NDArray[Any]) -> tuple[int, int]:
    """Return height and width of images [N, H, W], [N, H, W, C] or [N, C, H, W]."""
    is_channels_first = images.ndim == 4 and images.shape[-1] not in (1, 3)
    height, width = images.shape[2:] if is_channels_first else images.shape[1:3]
    return height, width
