"""Where networks err: figures that agree with scikit-learn, with published intervals, and with what is known."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from made_predictions import make_predictions
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, precision_recall_fscore_support

from fbsearch.errors import ConfigError
from fbsearch.winners.error_analysis import ErrorAnalysis, read_analysis
from fbsearch.winners.intervals import wilson_interval
from fbsearch.winners.predictions import NUM_PICTURES, Predictions, save_predictions


@pytest.fixture(scope="module")
def one() -> Predictions:
    return make_predictions(500)


def of_labels(labels: list[int], said: list[int], names: str = "abc") -> ErrorAnalysis:
    """An analysis of given predictions, all of a confidence of 0.9."""
    count, labels_N, said_N = len(labels), np.array(labels, dtype=np.int32), np.array(said, dtype=np.int32)
    shares_NK = np.full((count, len(names)), 0.1 / (len(names) - 1), dtype=np.float32)
    shares_NK[np.arange(count), said_N] = 0.9
    nothing = (np.zeros(0, dtype=np.int32), np.zeros((0, 8, 8, 1), dtype=np.uint8))
    return ErrorAnalysis((Predictions(tuple(names), "test", labels_N, said_N, shares_NK.max(1), shares_NK, *nothing),))


def test_classes_agree_with_scikit_learn(one: Predictions) -> None:
    classes = ErrorAnalysis((one,)).classes
    expected = precision_recall_fscore_support(one.labels_N, one.said_N)
    np.testing.assert_allclose(classes[["precision", "recall", "f1", "support"]].to_numpy().T, expected)
    assert ErrorAnalysis((one,)).macro_f1 == pytest.approx(f1_score(one.labels_N, one.said_N, average="macro"))


def test_intervals_of_classes_are_wilsons() -> None:
    # Of class a: 8 right, 2 missed, 4 of others said to be a.
    analysis = of_labels([0] * 10 + [1] * 10, [0] * 8 + [1] * 2 + [0] * 4 + [1] * 6)
    first = analysis.classes.iloc[0]
    assert (first["recall_low"], first["recall_high"]) == pytest.approx(wilson_interval(8 / 10, 10))
    assert (first["precision_low"], first["precision_high"]) == pytest.approx(wilson_interval(8 / 12, 12))
    low, high = wilson_interval(8 / 14, 14)
    assert first["f1"] == pytest.approx(2 * 8 / (2 * 8 + 2 + 4))
    assert (first["f1_low"], first["f1_high"]) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_class_without_images_or_never_said_has_no_figures() -> None:
    analysis = of_labels([0, 0, 2, 2], [0, 2, 0, 0])
    a, b, c = analysis.classes.to_dict("records")
    assert (a["precision"], a["recall"], a["support"]) == (1 / 3, 1 / 2, 2)
    assert math.isnan(b["f1"]) and math.isnan(b["recall"]) and math.isnan(b["precision_low"]) and b["support"] == 0
    assert (c["precision"], c["recall"], c["f1"], c["f1_low"]) == (0, 0, 0, 0) and c["f1_high"] < 1
    assert analysis.macro_f1 == (a["f1"] + 0) / 2
    never = of_labels([0, 1], [0, 0]).classes.iloc[1]
    assert math.isnan(never["precision"]) and (never["recall"], never["f1"]) == (0, 0)
    assert list(analysis.hardest(3)["class"]) == ["c", "a"]


def test_seeds_together_are_means_and_count_each_image_once(one: Predictions) -> None:
    alone, twice = ErrorAnalysis((one,)), ErrorAnalysis((one, one))
    assert np.array_equal(alone.confusion_KK, twice.confusion_KK) and alone.confusion_KK.sum() == 500
    np.testing.assert_allclose(alone.classes.iloc[:, 1:].to_numpy(), twice.classes.iloc[:, 1:].to_numpy())
    assert alone.macro_f1_interval == pytest.approx(twice.macro_f1_interval)
    assert dataclasses.replace(alone.calibration, bins=None) == dataclasses.replace(twice.calibration, bins=None)
    np.testing.assert_allclose(alone.calibration.bins, twice.calibration.bins)
    other = make_predictions(500, seed=1)
    both = ErrorAnalysis((one, other))
    mean = (alone.confusion_KK + ErrorAnalysis((other,)).confusion_KK) / 2
    np.testing.assert_allclose(both.confusion_KK, mean)


def test_interval_of_macro_f1_is_that_of_a_plain_bootstrap(one: Predictions) -> None:
    """Against drawing rows, as a reader would write it: the ends agree within the noise of 1,000 draws."""
    rng = np.random.default_rng(1)
    drawn = [rng.integers(0, 500, 500) for _ in range(1000)]
    plain = [f1_score(one.labels_N[rows], one.said_N[rows], average="macro") for rows in drawn]
    found = ErrorAnalysis((one,)).macro_f1_interval
    assert found == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.004)
    assert found is not None and found[1] - found[0] > 0.03


def test_nothing_wrong_has_no_interval_and_no_confusions() -> None:
    analysis = of_labels([0, 1, 2], [0, 1, 2])
    assert analysis.macro_f1 == 1 and analysis.macro_f1_interval is None
    assert analysis.confusions(3) == [] and analysis.mistakes == []
    assert analysis.as_dict()["macro_f1_interval"] is None


def test_confusions_are_the_most_frequent_first() -> None:
    analysis = of_labels([0] * 6 + [1] * 4, [0, 0, 0, 1, 1, 2, 0, 0, 0, 1])
    assert analysis.confusions(2) == [("b", "a", 3.0, 4), ("a", "b", 2.0, 6)]


def test_reliability_agrees_with_scikit_learn(one: Predictions) -> None:
    bins = ErrorAnalysis((one,)).calibration.bins
    accuracy, confidence = calibration_curve(one.is_right_N, one.confidence_N, n_bins=15)
    np.testing.assert_allclose(bins["accuracy"], accuracy)
    np.testing.assert_allclose(bins["confidence"], confidence, rtol=1e-6)
    assert bins["images"].sum() == 500 and (bins["low"] < bins["accuracy"] + 1e-12).all()


def test_calibration_error_tells_the_calibrated_from_the_too_sure(one: Predictions) -> None:
    calibrated = ErrorAnalysis((make_predictions(3000, sureness=1.5),)).calibration
    assert calibrated.error < calibrated.by_chance < 0.05
    analysis = of_labels([0] * 10, [0] * 6 + [1] * 4)  # right in 6 of 10, and always 90% sure
    assert analysis.calibration.error == pytest.approx(0.3) and analysis.calibration.mean_gap == pytest.approx(0.3)
    assert analysis.calibration.error > analysis.calibration.by_chance


def test_mistakes_of_several_seeds_are_the_surest_of_each_image(one: Predictions) -> None:
    other = make_predictions(500, seed=1)
    mistakes = ErrorAnalysis((one, other)).mistakes
    assert len(mistakes) == len({mistake.row for mistake in mistakes}) == NUM_PICTURES
    assert [mistake.confidence for mistake in mistakes] == sorted((m.confidence for m in mistakes), reverse=True)
    surest = np.max([np.where(p.is_right_N, 0, p.confidence_N) for p in (one, other)], axis=0)
    assert {mistake.row for mistake in mistakes} == set(np.argsort(-surest)[:NUM_PICTURES].tolist())
    assert {mistake.num_wrong for mistake in mistakes} == {1, 2}
    assert all(mistake.truth == one.class_names[one.labels_N[mistake.row]] != mistake.said for mistake in mistakes)


def test_seeds_of_other_images_are_not_mixed_and_old_ones_left_out(tmp_path: Path, one: Predictions) -> None:
    folders = [tmp_path / name for name in ("old", "first", "second")]
    assert read_analysis(folders) is None
    save_predictions(folders[1], one)
    save_predictions(folders[2], make_predictions(500, seed=1))
    found = read_analysis(folders)
    assert found is not None and len(found.seeds) == 2
    save_predictions(folders[2], make_predictions(400))
    with pytest.raises(ConfigError, match="second: was scored on other images"):
        read_analysis(folders)
