"""The classifier keeps scikit-learn's contract, as far as images allow."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from fbsearch import FractalBrainNetClassifier
from fbsearch.config.models import DataConfig
from fbsearch.config.space import ChoiceSpace
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.sources import read_dataset

TINY = StudyConfig(space={"model.base_channels": ChoiceSpace(choices=(4,))})
QUICK: dict[str, Any] = {"trials": 1, "epochs": 1, "config": TINY, "workers": 0, "device": "cpu"}
EXPECTED_FAILURES = {
    "check_classifiers_train": "asks for an accuracy of 83%, which one epoch of one trial does not reach",
}


class OfAnyRow(FractalBrainNetClassifier):
    """The rows of scikit-learn's checks, of 1 to 20 numbers, are no images: repeat them until they fill one."""

    def _lay_out(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([np.resize(row, (8, 8)) for row in rows])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """200 digits [N, 8, 8] and their names."""
    part = read_dataset(DataConfig(), with_test=False, notice=print).train
    return part.images_NHWC[part.rows_M, :, :, 0][:200], np.array([f"digit {label}" for label in part.labels_M[:200]])


@pytest.mark.slow
def test_classifier_passes_scikit_learns_checks() -> None:
    """All but one; skipped is the check of array libraries, which needs $SCIPY_ARRAY_API."""
    results = check_estimator(OfAnyRow(**QUICK), expected_failed_checks=EXPECTED_FAILURES, on_skip=None)
    assert len(results) > 50
    assert {row["check_name"] for row in results if row["status"] == "xfail"} == EXPECTED_FAILURES.keys()
    assert {row["check_name"] for row in results if row["status"] == "skipped"} <= {"check_array_api_input"}


def test_classifier_takes_rows_and_images_alike(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, names = digits
    rows = images.reshape(len(images), -1)
    classifier = FractalBrainNetClassifier(**QUICK, final_epochs=3, random_state=7)
    shares = classifier.fit(rows, names).predict_proba(rows)
    assert shares.shape == (200, 10) and classifier.n_features_in_ == 64
    assert classifier.classes_.tolist() == [f"digit {label}" for label in range(10)]
    assert set(classifier.predict(rows)) <= set(classifier.classes_) and len(classifier.trials_) == 1
    assert classifier.model_.card.train.epochs == 3 and classifier.trials_["epochs"][0] == 1
    other = clone(classifier).fit(images[..., None], names)
    assert np.array_equal(other.predict_proba(images), shares)
    assert not np.array_equal(clone(classifier).set_params(random_state=8).fit(rows, names).predict_proba(rows), shares)


def test_classifier_refuses_what_is_no_image(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, names = digits
    with pytest.raises(ValueError, match="rows of 63 pixels, which are no square images; image_shape="):
        FractalBrainNetClassifier().fit(images.reshape(200, -1)[:, 1:], names)
    with pytest.raises(ValueError, match=r"rows of 64 pixels, which are no images of \(4, 4, 3\)"):
        FractalBrainNetClassifier(image_shape=(4, 4, 3)).fit(images.reshape(200, -1), names)
    with pytest.raises(ValueError, match="at least 2 classes"):
        FractalBrainNetClassifier().fit(images, ["one"] * 200)
    with pytest.raises(NotFittedError):
        FractalBrainNetClassifier().predict(images)
