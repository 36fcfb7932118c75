"""Where retrained networks err: classes, confusions, calibration and the most confident mistakes.

All figures come from stored predictions (`winners.predictions`), those of several seeds together: a share is the mean
over the seeds, and its interval counts each image once, since all seeds are scored on the same images.

Shapes: N images, T images of all seeds, S seeds, K classes, U different rows of predictions, R resamples, B bins,
H height, W width, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fbsearch.errors import ConfigError
from fbsearch.winners.intervals import wilson_interval
from fbsearch.winners.predictions import NUM_PICTURES, Pixels, Predictions, load_predictions
from fbsearch.winners.records import ScoredOn

# Of confidence, all of one width: as many as the definition of the expected calibration error has (Guo et al., 2017).
NUM_BINS = 15
NUM_RESAMPLES = 1000
RESAMPLE_SEED = 0
# Numbers of one piece of the resamples, which bounds the memory.
PIECE = 2**22


@dataclass(frozen=True)
class Calibration:
    """The agreement of confidence and accuracy.

    `error` is the expected calibration error in [0, 1], the mean over the seeds: the mean distance of a bin's accuracy
    from its mean confidence. `by_chance` is what it stays below in 95% of the cases for a network of these confidences
    that is perfectly calibrated. `mean_gap` is mean confidence less accuracy: above 0, the networks are too sure.
    `bins` has a row for each bin with images: mean confidence, accuracy, its 95% interval, number of images.
    """

    error: float
    by_chance: float
    mean_gap: float
    bins: pd.DataFrame

    @property
    def verdict(self) -> str:
        """Return `too sure`, `not sure enough`, or `no evidence that it is off`."""
        if self.error <= self.by_chance:
            return "no evidence that it is off"
        return "too sure" if self.mean_gap > 0 else "not sure enough"


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that a network was wrong about: its row in the split, the true class and the one that was said.

    `confidence` is the probability of that class in the surest of the networks that were wrong, `share_of_truth` the
    one it gave to the true class. `num_wrong` counts the seeds that were wrong.
    """

    row: int
    truth: str
    said: str
    confidence: float
    share_of_truth: float
    num_wrong: int
    image_HWC: Pixels


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """The mistakes of one configuration's networks, one for each seed, on the images that gave their score."""

    seeds: tuple[Predictions, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the K classes."""
        return self.seeds[0].class_names

    @property
    def scored_on(self) -> ScoredOn:
        """Return the split of the images."""
        return self.seeds[0].scored_on

    @property
    def num_images(self) -> int:
        """Return the number of images, on which each seed was scored."""
        return len(self.seeds[0].labels_N)

    @cached_property
    def confusion_KK(self) -> NDArray[np.float64]:
        """Return the mean number of images, a row for each true class, a column for each predicted one."""
        from sklearn.metrics import confusion_matrix

        num_classes = len(self.class_names)
        labels_T, said_T = self._join()
        counts_KK = confusion_matrix(labels_T, said_T, labels=range(num_classes))
        return counts_KK / len(self.seeds)  # type: ignore[no-any-return]

    @cached_property
    def classes(self) -> pd.DataFrame:
        """Return a row for each class: precision, recall (accuracy on its images), F1, their 95% intervals, support.

        Intervals are Wilson's: of the share of the class's images, of the images that were said to be of it, and for F1
        of the share TP / (TP + FP + FN), of which F1 is a function (Hand et al., 2021). NaN stands for what nothing is
        known of: all of a class without images, and the precision of a class that was never said.
        """
        from sklearn.metrics import precision_recall_fscore_support

        labels_T, said_T = self._join()
        precision_K, recall_K, f1_K, _ = precision_recall_fscore_support(
            labels_T, said_T, labels=range(len(self.class_names)), zero_division=np.nan
        )
        right_K, support_K, said_K = (
            self.confusion_KK.diagonal(), self.confusion_KK.sum(axis=1), self.confusion_KK.sum(axis=0)
        )  # fmt: skip
        f1_K = np.where(support_K > 0, f1_K, np.nan)
        columns: dict[str, Any] = {"class": self.class_names}
        for name, share_K, count_K in (("precision", precision_K, said_K), ("recall", recall_K, support_K)):
            columns |= {name: share_K} | _intervals(name, share_K, count_K)
        jaccard = _intervals("f1", f1_K / (2 - f1_K), support_K + said_K - right_K)
        columns |= {"f1": f1_K} | {name: 2 * ends_K / (1 + ends_K) for name, ends_K in jaccard.items()}
        return pd.DataFrame(columns | {"support": support_K.round().astype(int)})

    @property
    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that have images."""
        return float(self.classes["f1"].mean())

    @cached_property
    def macro_f1_interval(self) -> tuple[float, float] | None:
        """Return the 95% interval of macro-F1: percentiles over resamples of the images (bootstrap).

        None where no image was predicted wrong, so that there is nothing to resample.
        """
        if all(one.is_right_N.all() for one in self.seeds):
            return None
        low, high = np.percentile(_resample_macro_f1(self.seeds), [2.5, 97.5])
        return float(low), float(high)

    def hardest(self, count: int) -> pd.DataFrame:
        """Return the rows of `classes` with the lowest F1, the lowest first."""
        return self.classes.dropna(subset=["f1"]).sort_values("f1", kind="stable").head(count)

    def confusions(self, count: int) -> list[tuple[str, str, float, int]]:
        """Return the most frequent confusions: true class, class said, mean number of images, images of that class."""
        wrong_KK = self.confusion_KK - np.diag(self.confusion_KK.diagonal())
        support_K = self.confusion_KK.sum(axis=1).round().astype(int)
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:count].tolist()
        cells = [divmod(place, len(support_K)) for place in order]
        names = self.class_names
        return [(names[i], names[j], float(wrong_KK[i, j]), int(support_K[i])) for i, j in cells if wrong_KK[i, j] > 0]

    @cached_property
    def calibration(self) -> Calibration:
        """Return how far the networks' probabilities can be believed."""
        confidence_T = np.concatenate([one.confidence_N for one in self.seeds]).astype(np.float64)
        right_T = np.concatenate([one.is_right_N for one in self.seeds])
        bins = _bin(confidence_T, right_T)
        counts = bins["images"] / len(self.seeds)
        ends = [wilson_interval(share, count) for share, count in zip(bins["accuracy"], counts, strict=True)]
        bins["low"], bins["high"] = zip(*ends, strict=True)
        bins["images"] = counts
        errors = [_calibration_error(_bin(one.confidence_N.astype(np.float64), one.is_right_N)) for one in self.seeds]
        return Calibration(
            error=float(np.mean(errors)),
            by_chance=_calibration_error_by_chance(self.seeds[0]),
            mean_gap=float(confidence_T.mean() - right_T.mean()),
            bins=bins,
        )

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """Return the most confident mistakes, one for each image, NUM_PICTURES at most."""
        num_wrong_N = np.sum([~one.is_right_N for one in self.seeds], axis=0)
        found: dict[int, Mistake] = {}
        for one in self.seeds:
            for row, image_HWC in zip(one.rows_M.tolist(), one.pictures_MHWC, strict=True):
                mistake = Mistake(
                    row=row,
                    truth=one.class_names[one.labels_N[row]],
                    said=one.class_names[one.said_N[row]],
                    confidence=float(one.confidence_N[row]),
                    share_of_truth=float(one.shares_NK[row, one.labels_N[row]]),
                    num_wrong=int(num_wrong_N[row]),
                    image_HWC=image_HWC,
                )
                if row not in found or mistake.confidence > found[row].confidence:
                    found[row] = mistake
        return sorted(found.values(), key=lambda mistake: (-mistake.confidence, mistake.row))[:NUM_PICTURES]

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for `--json`: of all classes together, the three hardest classes and confusions."""
        interval = self.macro_f1_interval
        return {
            "num_seeds": len(self.seeds),
            "macro_f1": self.macro_f1,
            "macro_f1_interval": None if interval is None else list(interval),
            "calibration_error": self.calibration.error,
            "calibration_error_by_chance": self.calibration.by_chance,
            "hardest_classes": self.hardest(3)[["class", "f1"]].to_dict("records"),
            "confusions": [dict(zip(("is", "said", "images", "of"), one, strict=True)) for one in self.confusions(3)],
        }

    def _join(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return labels and predictions of all seeds, one after another."""
        return (
            np.concatenate([one.labels_N for one in self.seeds]),
            np.concatenate([one.said_N for one in self.seeds]),
        )


def read_analysis(folders: Sequence[Path]) -> ErrorAnalysis | None:
    """Read the predictions in the folders of a configuration's seeds; None where none of them has any.

    Raises ConfigError for a file that is damaged, or that is of other images than the first.
    """
    seeds: list[Predictions] = []
    for folder in folders:
        one = load_predictions(folder)
        if one is None:  # trained by an older version
            continue
        first = seeds[0] if seeds else one
        if one.class_names != first.class_names or not np.array_equal(one.labels_N, first.labels_N):
            raise ConfigError(f"{folder}: was scored on other images than the seeds before it; delete one of the two")
        seeds.append(one)
    return ErrorAnalysis(tuple(seeds)) if seeds else None


def _intervals(name: str, share_K: NDArray[np.float64], count_K: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the ends of Wilson's intervals, NaN where a share is."""
    pairs = zip(share_K.tolist(), count_K.tolist(), strict=True)
    ends = [wilson_interval(share, count) if share == share else (np.nan, np.nan) for share, count in pairs]
    low_K, high_K = np.array(ends, dtype=float).T
    return {f"{name}_low": low_K, f"{name}_high": high_K}


def _resample_macro_f1(seeds: Sequence[Predictions]) -> NDArray[np.float64]:
    """Return macro-F1 of NUM_RESAMPLES draws of the images with replacement, [R].

    Images of the same class with the same predictions are interchangeable: their numbers are multinomial.
    """
    from scipy.sparse import csr_array

    num_images, num_classes = len(seeds[0].labels_N), len(seeds[0].class_names)
    rows_NS = np.stack([seeds[0].labels_N, *(one.said_N for one in seeds)], axis=1)
    rows_US, counts_U = np.unique(rows_NS, axis=0, return_counts=True)
    labels_U, said_US = rows_US[:, 0], rows_US[:, 1:]

    def place(numbers_U: NDArray[Any], classes_U: NDArray[np.int32]) -> Any:
        """Return a sparse matrix [U, K] with the number of each row of predictions in the column of its class."""
        return csr_array((numbers_U, (np.arange(len(rows_US)), classes_U)), shape=(len(rows_US), num_classes))

    ones_U = np.ones(len(rows_US), dtype=np.int64)
    images_UK = place(ones_U, labels_U)
    right_UK = place((said_US == labels_U[:, None]).sum(axis=1), labels_U)
    # F1 is 2 TP / (images of the class + images said to be of it).
    both_UK = sum((place(ones_U, said_U) for said_U in said_US.T), start=len(seeds) * images_UK)
    rng = np.random.default_rng(RESAMPLE_SEED)
    found = []
    step = max(1, PIECE // max(len(rows_US), num_classes))
    for start in range(0, NUM_RESAMPLES, step):
        times_RU = rng.multinomial(num_images, counts_U / num_images, size=min(step, NUM_RESAMPLES - start))
        has_images_RK = times_RU @ images_UK > 0
        f1_RK = 2 * (times_RU @ right_UK) / np.maximum(times_RU @ both_UK, 1)
        found.append((f1_RK * has_images_RK).sum(axis=1) / has_images_RK.sum(axis=1))
    return np.concatenate(found)


def _bin(confidence_T: NDArray[np.float64], right_T: NDArray[np.bool_]) -> pd.DataFrame:
    """Return mean confidence, accuracy and number of images of each bin ((b - 1) / B, b / B] that has images."""
    bins_T = np.clip(np.ceil(confidence_T * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    frame = pd.DataFrame({"bin": bins_T, "confidence": confidence_T, "accuracy": right_T.astype(float)})
    grouped = frame.groupby("bin")
    return grouped.mean().assign(images=grouped.size()).reset_index(drop=True)


def _calibration_error(bins: pd.DataFrame) -> float:
    return float(((bins["accuracy"] - bins["confidence"]).abs() * bins["images"]).sum() / bins["images"].sum())


def _calibration_error_by_chance(one: Predictions) -> float:
    """Return the 95th percentile of the error of a network that is right as often as its confidences say."""
    bins = _bin(one.confidence_N.astype(np.float64), one.is_right_N)
    counts_B, confidence_B = bins["images"].to_numpy(), bins["confidence"].to_numpy()
    rng = np.random.default_rng(RESAMPLE_SEED)
    right_RB = rng.binomial(counts_B, np.clip(confidence_B, 0, 1), size=(NUM_RESAMPLES, len(bins)))
    errors_R = np.abs(right_RB - counts_B * confidence_B).sum(axis=1) / counts_B.sum()
    return float(np.percentile(errors_R, 95))
