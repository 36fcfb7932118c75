"""The section "Where it errs" of a report: figures, sentences, tables and pictures of a training's mistakes.

Shapes: K classes, H height, W width, C channels.
"""

import base64
import html
import io
import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from fbsearch.pictures.maps import draw_photos
from fbsearch.report import style
from fbsearch.winners.error_analysis import ErrorAnalysis, Mistake
from fbsearch.winners.records import ColumnScore, Retraining

# A confusion matrix of more classes shows the hardest alone, one of more than MAX_NUMBERS no numbers.
MAX_CLASSES, MAX_NUMBERS = 40, 16
# The rows of a table that are seen at once.
MAX_ROWS, MAX_CONFUSIONS = 20, 10
# Pictures of fewer pixels a side are enlarged in squares.
COARSE_PIXELS = 64
LONGEST_LABEL = 18
PHOTOS_A_ROW = 6


@dataclass(frozen=True)
class Errors:
    """A training and where its networks err."""

    training: Retraining
    analysis: ErrorAnalysis


def plot_confusion(errors: Errors) -> go.Figure:
    """Draw the confusion matrix: true classes down, predicted ones across; right ones blue, wrong ones orange."""
    analysis = errors.analysis
    num_classes = len(analysis.class_names)
    shown = np.arange(num_classes)
    if num_classes > MAX_CLASSES:
        shown = np.sort(analysis.hardest(MAX_CLASSES).index.to_numpy())
    counts_KK = analysis.confusion_KK[np.ix_(shown, shown)]
    shares_KK = counts_KK / np.maximum(analysis.confusion_KK.sum(axis=1)[shown], 1)[:, None]
    names = [analysis.class_names[place] for place in shown]
    title = "Confusion matrix" if len(shown) == num_classes else f"Confusion matrix of the {len(shown)} hardest classes"
    figure = style.figure_of(title, height=max(340, 130 + 26 * len(shown)), x="said", y="is")
    numbers = [[_format_count(count) for count in row] for row in counts_KK.tolist()]
    diagonal_KK = np.eye(len(shown), dtype=bool)
    for name, color, is_drawn_KK in (("right", style.COMPLETE, diagonal_KK), ("wrong", style.BEST, ~diagonal_KK)):
        # The square root makes single mistakes visible.
        z_KK = np.where(is_drawn_KK & (counts_KK > 0), np.sqrt(shares_KK), np.nan)
        figure.add_heatmap(
            z=z_KK, zmin=0, zmax=1, name=name, showscale=False, xgap=1, ygap=1, hoverongaps=False,
            colorscale=[[0, style.faded(color, 0.08)], [1, style.faded(color, 0.62)]],
            text=numbers,
            customdata=(100 * shares_KK).round(1),
            hovertemplate="is %{y}, said %{x}: %{customdata}%, %{text} images<extra></extra>",
        )  # fmt: skip
    # Annotations have the colour of the page's text; plotly's own numbers suit a cell as if it were opaque.
    for i, row in enumerate(numbers if len(shown) <= MAX_NUMBERS else ()):
        for j, number in enumerate(row):
            if number:
                figure.add_annotation(x=j, y=i, text=number, showarrow=False, bgcolor="rgba(0,0,0,0)", font_size=12)
    ticks = {"tickvals": list(range(len(shown))), "ticktext": [_label(name) for name in names], "showgrid": False}
    is_short = sum(len(name) for name in names) <= 40
    figure.update_layout(
        margin={"t": 12},
        xaxis={**ticks, "side": "bottom", "tickangle": 0 if is_short else -90, "constrain": "domain"},
        yaxis={**ticks, "autorange": "reversed"},
    )
    return figure


def plot_reliability(errors: Errors) -> go.Figure:
    """Draw accuracy over confidence with 95% intervals, a mark for each bin of confidences that has images."""
    bins = errors.analysis.calibration.bins
    figure = style.figure_of("Reliability", height=400, x="confidence", y="accuracy")
    figure.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", name="perfectly calibrated", hoverinfo="skip",
        line={"color": style.NEUTRAL, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    columns = ("confidence", "accuracy", "low", "high")
    confidence, accuracy, low, high = (100 * bins[name].to_numpy() for name in columns)
    share = (bins["images"] / bins["images"].sum()).to_numpy()
    figure.add_scatter(
        x=confidence, y=accuracy, mode="markers", name="this network",
        marker={"color": style.BEST, "size": 7 + 17 * np.sqrt(share), "opacity": 0.9, "line": {"width": 0}},
        error_y={"array": high - accuracy, "arrayminus": accuracy - low, "width": 0, "color": style.NEUTRAL},
        customdata=np.stack([low, high, 100 * share], axis=1),
        hovertemplate="confidence %{x:.1f}%: right in %{y:.1f}%, interval %{customdata[0]:.1f} to "
        "%{customdata[1]:.1f}%, %{customdata[2]:.1f}% of the images<extra></extra>",
    )  # fmt: skip
    axis = {"ticksuffix": "%", "range": [-3, 103], "dtick": 20}
    return figure.update_layout(xaxis=axis, yaxis=axis, margin_t=48)


def describe_errors(errors: Errors) -> dict[str, Any]:
    """Return what the section shows beside its figures."""
    analysis, training = errors.analysis, errors.training
    num_seeds = len(analysis.seeds)
    wrong_SN = np.stack([~one.is_right_N for one in analysis.seeds])
    classes = analysis.hardest(len(analysis.class_names)).to_dict("records")
    return {
        "training": training,
        "num_seeds": num_seeds,
        "num_images": analysis.num_images,
        "scored_on": analysis.scored_on,
        "macro_f1": analysis.macro_f1,
        "macro_f1_interval": analysis.macro_f1_interval,
        "num_wrong": _format_count(wrong_SN.sum() / num_seeds),
        "num_always_wrong": int(wrong_SN.all(axis=0).sum()),
        "calibration": analysis.calibration,
        "believe": describe_calibration(errors),
        "classes": classes[:MAX_ROWS],
        "more_classes": classes[MAX_ROWS:],
        "num_absent": len(analysis.class_names) - len(classes),
        "confusions": [
            (truth, said, _format_count(images), count, images / count)
            for truth, said, images, count in analysis.confusions(MAX_CONFUSIONS)
        ],
        "mistakes": [(mistake, _picture(mistake)) for mistake in analysis.mistakes],
        "is_coarse": all(max(one.image_HWC.shape[:2]) < COARSE_PIXELS for one in analysis.mistakes),
        "columns": _mean_columns(training),
    }


def describe_calibration(errors: Errors) -> str:
    """Say whether the probabilities can be believed, and in which direction they err."""
    found = errors.analysis.calibration
    if found.error <= found.by_chance:
        return (
            "There is no evidence that its probabilities are wrong: on as many images, a perfectly calibrated network "
            f"stays below {found.by_chance:.2%} in 95 of 100 cases."
        )
    return (
        f"It is {found.verdict}: on average its confidence lies {100 * abs(found.mean_gap):.1f} points "
        f"{'above' if found.mean_gap > 0 else 'below'} its accuracy. On as many images, a perfectly calibrated network "
        f"stays below {found.by_chance:.2%} in 95 of 100 cases."
    )


def error_files(errors: Errors) -> dict[str, bytes]:
    """Return the files that the dashboard shows with the trained trial: the classes as CSV, the mistakes as PNG."""
    analysis = errors.analysis
    files = {"classes.csv": analysis.hardest(len(analysis.class_names)).round(4).to_csv(index=False).encode()}
    if analysis.mistakes:
        labels = [
            f"is {_clip(one.truth)}\nsaid {_clip(one.said)}\n{one.confidence:.1%}, {one.share_of_truth:.1%}"
            for one in analysis.mistakes
        ]
        photos = [one.image_HWC for one in analysis.mistakes]
        files["most-confident-mistakes.png"] = draw_photos(photos, labels=labels, a_row=PHOTOS_A_ROW)
    return files


def _mean_columns(training: Retraining) -> list[ColumnScore]:
    """Return the mean scores of the columns over the seeds, the shallowest first, the whole network last."""
    found: dict[int, list[ColumnScore]] = {}
    for result in training.results:
        for column in result.columns:
            found.setdefault(column.depth, []).append(column)
    return [
        columns[0].model_copy(
            update={
                "accuracy": statistics.mean(column.accuracy for column in columns),
                "latency_ms": statistics.mean(column.latency_ms for column in columns),
            }
        )
        for _, columns in sorted(found.items(), key=lambda item: item[0] or math.inf)
    ]


def _picture(mistake: Mistake) -> str:
    """Return the image as the address of a PNG."""
    image_HWC = mistake.image_HWC
    file = io.BytesIO()
    Image.fromarray(image_HWC if image_HWC.shape[2] == 3 else image_HWC[..., 0]).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _label(name: str) -> str:
    return html.escape(_clip(name))


def _clip(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _format_count(number: float) -> str:
    """Format a mean number of images: `412`, `12`, `3.3`, nothing for 0."""
    if number >= 9.95 or number == round(number):
        return f"{number:,.0f}" if number else ""
    return f"{number:.1f}"
