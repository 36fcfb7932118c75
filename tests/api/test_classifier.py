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


# The checks train on rows of 2, 3, 5 or 10 numbers, which are no square images: `fit` refuses them by a ValueError, as
# it should, and the checks do not get to what they are about. With `OfAnyRow` they do.
NO_IMAGE = "its rows of 2, 3, 5 or 10 numbers are no square images, and are refused"
TOO_SMALL = "its rows of 4 numbers are images of 2 x 2 pixels, and are refused"
REFUSED = dict.fromkeys(
    [
        "check_classifier_data_not_an_array", "check_classifiers_classes", "check_classifiers_train",
        "check_dict_unchanged", "check_dont_overwrite_parameters", "check_dtype_object", "check_estimators_dtypes",
        "check_estimators_fit_returns_self", "check_estimators_nan_inf", "check_estimators_overwrite_params",
        "check_estimators_pickle", "check_f_contiguous_array_estimator", "check_fit2d_predict1d",
        "check_fit_check_is_fitted", "check_fit_idempotent", "check_fit_score_takes_y",
        "check_methods_sample_order_invariance", "check_methods_subset_invariance", "check_n_features_in",
        "check_pipeline_consistency", "check_readonly_memmap_input", "check_supervised_y_2d",
    ],
    NO_IMAGE,
) | dict.fromkeys(["check_n_features_in_after_fitting", "check_positive_only_tag_during_fit"], TOO_SMALL)  # fmt: skip


class OfAnyRow(FractalBrainNetClassifier):
    """The rows of scikit-learn's checks, of 1 to 20 numbers, are no images: repeat them until they fill one."""

    def _lay_out(self, values: np.ndarray) -> np.ndarray:
        return np.stack([np.resize(row, (8, 8)) for row in values]) if values.ndim == 2 else values


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """200 digits [N, 8, 8] and their names."""
    part = read_dataset(DataConfig(), with_test=False, notice=print).train
    return part.images_NHWC[part.rows_M, :, :, 0][:200], np.array([f"digit {label}" for label in part.labels_M[:200]])


def test_classifier_passes_scikit_learns_checks_that_need_no_fit_or_a_refusal() -> None:
    """The classifier as it is. Nothing is trained."""
    results = check_estimator(FractalBrainNetClassifier(**QUICK), expected_failed_checks=REFUSED, on_skip=None)
    assert {row["check_name"] for row in results if row["status"] == "xfail"} == REFUSED.keys()
    passed = {row["check_name"] for row in results if row["status"] == "passed"}
    assert len(passed) >= 25 and {"check_fit2d_1feature", "check_fit2d_1sample", "check_complex_data"} <= passed


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
