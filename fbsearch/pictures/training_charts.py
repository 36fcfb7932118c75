"""SVG charts of one training: learning curves and a confusion matrix.

Shapes: K classes.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fbsearch.messages import EpochStats
from fbsearch.pictures.svg import FAINT, INK, RULE, Canvas

TRAIN_COLOR, VAL_COLOR = "#2171b5", "#e6550d"
MAX_CELL_LABELS = 30  # classes: above, a confusion matrix shows colours alone


def draw_curves(history: Sequence[EpochStats], *, title: str, caption: str) -> str:
    """Return the SVG of loss and accuracy over the epochs, on the training and validation split."""
    canvas = Canvas()
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    for i, line in enumerate(textwrap.wrap(caption, 120)):
        canvas.text(30, 56 + 16 * i, line, size=12, anchor="start", fill=FAINT)
    epochs = [stats.epoch for stats in history]
    names = {"train": TRAIN_COLOR, "val": VAL_COLOR}
    for panel, (measure, factor, label) in enumerate([("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)")]):
        curves = {name: [factor * getattr(stats, f"{name}_{measure}") for stats in history] for name in names}
        curves = {name: values for name, values in curves.items() if not math.isnan(values[-1])}
        _draw_panel(canvas, 70 + 440 * panel, 110, epochs, [(names[n], v) for n, v in curves.items()], label=label)
    for i, (color, label) in enumerate(zip(names.values(), ("training", "validation"), strict=True)):
        if i == 0 or not math.isnan(history[-1].val_loss):
            canvas.line([(70 + 110 * i, 410), (92 + 110 * i, 410)], stroke=color, width=2.5)
            canvas.text(98 + 110 * i, 414, label, anchor="start")
    return canvas.render(900, 436, title=title)


def _draw_panel(
    canvas: Canvas,
    left: float,
    top: float,
    epochs: Sequence[int],
    curves: Sequence[tuple[str, list[float]]],
    *,
    label: str,
) -> None:
    width, height = 370.0, 240.0
    low, high = min(min(v) for _, v in curves), max(max(v) for _, v in curves)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def place(epoch: float, value: float) -> tuple[float, float]:
        return left + width * (epoch - first) / (last - first), top + height * (high - value) / (high - low)

    for tick in ticks:
        y = place(first, tick)[1]
        canvas.line([(left, y), (left + width, y)], stroke=RULE, width=1)
        canvas.text(left - 8, y + 4, f"{tick:g}", size=11, anchor="end", fill=FAINT)
    for epoch in (tick for tick in nice_ticks(first, last) if tick == int(tick) and first <= tick <= last):
        canvas.text(place(epoch, low)[0], top + height + 18, f"{epoch:g}", size=11, fill=FAINT)
    canvas.text(left + width / 2, top + height + 36, "epoch", size=12, fill=FAINT)
    canvas.text(left, top - 12, label, size=13, anchor="start", bold=True)
    for color, values in curves:
        points = [place(epoch, value) for epoch, value in zip(epochs, values, strict=True)]
        canvas.line(points, stroke=color, width=2)
        for x, y in points if len(points) <= 60 else []:
            canvas.dot(x, y, fill=color)


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers, the first at most `low`, the last at least `high`."""
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def draw_confusion(confusion_KK: npt.NDArray[np.int64], names: Sequence[str], *, title: str) -> str:
    """Return the SVG of a confusion matrix: rows are true classes, columns predicted ones; errors red, hits blue."""
    canvas = Canvas()
    num_classes = len(names)
    labelled = num_classes <= MAX_CELL_LABELS
    cell = 44.0 if num_classes <= 12 else max(4.0, 528 / num_classes)
    margin = min(160.0, 26 + 6.5 * max(map(len, names))) if labelled else 20.0
    left, top = 36 + margin, 78.0
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    canvas.text(30, 56, "Rows: the true class. Columns: what the network said.", anchor="start", fill=FAINT)
    shares_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    for row in range(num_classes):
        for column in range(num_classes):
            share, x, y = float(shares_KK[row, column]), left + cell * column, top + cell * row
            canvas.rect(x, y, cell - 1, cell - 1, fill=_shade(share, right=row == column), radius=0)
            if labelled and confusion_KK[row, column]:
                fill = "white" if share > 0.5 else INK
                count, size = str(confusion_KK[row, column]), min(12, cell / 2.2)
                canvas.text(x + cell / 2, y + cell / 2 + 4, count, size=size, fill=fill)
    for label, name in enumerate(names if labelled else ()):
        clipped = name if len(name) <= 20 else name[:19] + "\N{HORIZONTAL ELLIPSIS}"
        middle, size = cell * label + cell / 2, min(12, cell * 0.6)
        canvas.text(left - 8, top + middle + 4, clipped, size=size, anchor="end")
        below = top + cell * num_classes + 10
        canvas.text(left + middle + 4, below, clipped, size=size, anchor="end", turned=True)
    side = left + cell * num_classes + 30
    return canvas.render(max(side, 40 + 9.5 * len(title)), top + cell * num_classes + margin + 10, title=title)


def _shade(share: float, *, right: bool) -> str:
    """Mix near white with blue (right) or red (wrong); the square root makes single errors visible."""
    light, dark = (246, 248, 250), (33, 113, 181) if right else (203, 24, 29)
    weight = math.sqrt(share)
    return "#" + "".join(f"{round(a + weight * (b - a)):02x}" for a, b in zip(light, dark, strict=True))
