"""The figures of all kinds of studies."""

import json
import math

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import pytest
from made_studies import NUM_VAL, make_study
from optuna.storages import RDBStorage

from fbsearch.report import figures, parameter_figures, style
from fbsearch.report.page import draw_figures
from fbsearch.report.statistics import parameters
from fbsearch.report.trials_table import trials_frame
from fbsearch.report.worth import Difference, PartWorth, estimate_worth
from fbsearch.study.trial_record import fail


@pytest.fixture
def frame(storage: RDBStorage) -> pd.DataFrame:
    return trials_frame(make_study(storage, 60))


def draw_all(frame: pd.DataFrame) -> dict[str, go.Figure]:
    return dict(draw_figures(frame, estimate_worth(frame), num_images=NUM_VAL, top=10))


def test_figures_of_a_study_are_all_there(frame: pd.DataFrame) -> None:
    drawn = draw_all(frame)
    slices = [f"slice {name}" for name in parameters(frame)]
    costs = [f"cost {cost}" for cost in figures.COSTS]
    expected = {"intervals", "history", "curves", "worth", "parallel", "timeline", *slices, *costs}
    assert expected <= drawn.keys()
    assert sum(name.startswith("pair ") for name in drawn) == 6
    for figure in drawn.values():
        json.loads(figure.to_json())
        assert figure.layout.title.text
        assert figure.layout.height >= 140


def test_figures_do_without_webgl(frame: pd.DataFrame) -> None:
    kinds = {trace.type for figure in draw_all(frame).values() for trace in figure.data}
    assert kinds <= {"scatter", "bar", "heatmap", "contour"}


def test_history_shows_every_trial_and_the_best_so_far(frame: pd.DataFrame) -> None:
    traces = {trace.name: trace for trace in figures.plot_history(frame).data}
    assert (len(traces["complete"].x), len(traces["pruned"].x)) == (20, 40)
    assert (np.diff(traces["best so far"].y) >= 0).all()
    assert traces["best so far"].customdata[-1] == pytest.approx(100 * frame["value"][frame["rank"] == 1].item())


def test_learning_curves_are_one_trace_a_state(frame: pd.DataFrame) -> None:
    figure = figures.plot_learning_curves(frame)
    pruned, complete, *best = figure.data
    assert [trace.meta for trace in (pruned, complete)] == ["pruned", "complete"]
    assert pruned.opacity < complete.opacity
    assert np.isnan(pruned.x).sum() == 40
    assert np.isfinite(pruned.y).sum() == 40 * 4
    assert np.isfinite(complete.y).sum() == 20 * 8
    assert len(best) == 3


def test_learning_curves_of_many_trials_are_sampled_and_say_so(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MAX_CURVES", 15)
    pruned, complete, *_ = figures.plot_learning_curves(frame).data
    assert (pruned.name, complete.name) == ("pruned (15 of 40)", "complete (15 of 20)")
    best = frame["trial"][frame["rank"] <= 10]
    assert set(best) <= set(complete.customdata)


def test_intervals_hold_their_scores(frame: pd.DataFrame) -> None:
    (trace,) = figures.plot_intervals(frame, num_images=NUM_VAL, top=5).data
    low, high = np.array(trace.customdata).T
    assert len(trace.x) == 5
    assert ((low < trace.x) & (trace.x <= high)).all()


def test_worth_has_a_row_for_each_choice_below_its_part() -> None:
    rows = (Difference("julia", 0.01, -0.02, 0.04, 9), Difference("cantor", -0.03, -0.04, -0.02, 9))
    figure = figures.plot_worth([PartWorth("model.pattern", "none", rows)])
    assert list(figure.layout.yaxis.ticktext) == ["", "julia", "cantor"]
    assert [note.text for note in figure.layout.annotations] == ["<b>pattern</b>, against none"]
    unsure, sure = figure.data
    assert (unsure.marker.color, list(unsure.y), list(unsure.x)) == (style.NEUTRAL, [1], [1])
    assert (sure.marker.color, list(sure.y), list(sure.x)) == (style.FAILED, [2], [-3])
    assert (list(sure.error_x.array), list(sure.error_x.arrayminus)) == (pytest.approx([1]), pytest.approx([1]))


def test_stretch_divides_the_error() -> None:
    assert style.stretch([0.0, 0.9, 0.99]) == pytest.approx([0, 1, 2])
    assert math.isfinite(style.stretch(1.0))


def test_slice_of_choices_has_their_names(frame: pd.DataFrame) -> None:
    figure = parameter_figures.plot_slice(frame, "model.base_channels")
    assert list(figure.layout.xaxis.ticktext) == ["8", "16", "24"]
    assert {trace.name for trace in figure.data} == {"complete", "pruned", "median of complete"}
    figure = parameter_figures.plot_slice(frame, "train.learning_rate")
    assert "0.01" in figure.layout.xaxis.ticktext


def test_pair_is_a_contour_of_numbers_and_cells_of_choices(frame: pd.DataFrame) -> None:
    frame["train.dropout"] = np.linspace(0, 0.5, len(frame))
    pairs = [("train.dropout", "train.learning_rate"), ("model.pattern", "model.base_channels")]
    shared = parameter_figures.find_pair_range(frame, pairs)
    contour, cells = (parameter_figures.plot_pair(frame, *pair, shared=shared).data[0] for pair in pairs)
    assert (contour.type, cells.type, np.shape(cells.z)) == ("contour", "heatmap", (3, 5))
    assert (contour.zmin, contour.zmax) == (cells.zmin, cells.zmax), "one colour scale for all"
    drawn = np.concatenate([np.ravel(contour.z), np.ravel(cells.z)])
    assert np.nanmin(drawn) == pytest.approx(cells.zmin) and np.nanmax(drawn) == pytest.approx(cells.zmax)


def test_timeline_has_a_bar_for_each_trial(frame: pd.DataFrame) -> None:
    figure = figures.plot_timeline(frame)
    assert sum(len(trace.x) for trace in figure.data) == len(frame)
    assert list(figure.layout.yaxis.ticktext) == ["lane 1", "lane 2"]


def test_template_is_light_or_dark() -> None:
    light, dark = style.template(dark=False), style.template(dark=True)
    assert light.layout.font.color != dark.layout.font.color
    assert light.layout.paper_bgcolor == dark.layout.paper_bgcolor == "rgba(0,0,0,0)"


# Studies that have little to show.


def test_figures_of_a_study_without_trials(storage: RDBStorage) -> None:
    assert draw_all(trials_frame(make_study(storage, 0))) == {}


def test_figures_of_one_trial(storage: RDBStorage) -> None:
    drawn = draw_all(trials_frame(make_study(storage, 1)))
    assert drawn.keys() == {"intervals", "history", "curves", "timeline", *(f"cost {cost}" for cost in figures.COSTS)}


def test_figures_of_one_parameter(frame: pd.DataFrame) -> None:
    others = [name for name in frame.columns if "." in name and name != "train.learning_rate"]
    drawn = draw_all(frame.drop(columns=others))
    assert {"slice train.learning_rate", "parallel"} <= drawn.keys()
    assert not any(name.startswith("pair ") for name in drawn)


def test_figures_of_failed_trials_alone_are_the_timeline(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    for _ in range(2):
        fail(study, study.ask().number, kind="non_finite_loss", message="the loss is nan")
    assert draw_all(trials_frame(study)).keys() == {"timeline"}


def test_figures_of_values_that_are_no_numbers(storage: RDBStorage) -> None:
    study = make_study(storage, 6)
    trial = study.ask()
    trial.report(math.nan, step=1)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    frame = trials_frame(study)
    for figure in draw_all(frame).values():
        assert "NaN" not in figure.to_json()
    (pruned, *_) = figures.plot_history(frame).data
    assert len(pruned.x) == 4
