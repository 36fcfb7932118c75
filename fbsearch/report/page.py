"""The report of a study: one HTML file that opens offline, or every figure as a picture.

Reads the study and writes nothing into it.
"""

import base64
import datetime
import importlib.util
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from fbsearch.config.durations import format_duration
from fbsearch.config.goals import GOALS
from fbsearch.errors import StorageError
from fbsearch.files import FileKind, check_output, file_name, write_output
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import MASK_PIXELS, draw_maps, mask_png, row_label, split_bands
from fbsearch.report import figures, parameter_figures
from fbsearch.report import text as sections
from fbsearch.report.contact_sheet import make_contact_sheet
from fbsearch.report.final_results import Retrained, plot_comparison, plot_trainings, read_retrained
from fbsearch.report.fronts import draw_fronts, front_rows
from fbsearch.report.mistakes import describe_errors, plot_confusion, plot_reliability
from fbsearch.report.statistics import metric_label, parameters, ranked, short
from fbsearch.report.style import template
from fbsearch.report.timeline import timeline
from fbsearch.report.trials_table import trials_frame
from fbsearch.report.worth import CHANNELS, COMPUTE, Worths, estimate_worth
from fbsearch.study.front import read_front
from fbsearch.study.race_result import read_race
from fbsearch.study.study import best_trials, goals_of, stored_dataset, stored_samples
from fbsearch.study.trial_record import TrialRecord

# Figures of two parameters are drawn for each pair of the first MAX_PAIRED parameters.
MAX_PAIRED = 4
MAX_FAILURES = 30
STATIC_PIXELS = 900
REPORT = FileKind("report of fbsearch", b"fbsearch report</title>")


def write_report(
    study: optuna.Study,
    output: Path | None = None,
    *,
    top: int = 10,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the report of a study to `output`, by default to reports/<study>.html, and return its path.

    The results of `train` and `analyze` are read from reports/<study>/; `say` gets a line for each damaged file there.
    Raises StorageError if the file cannot be written; ConfigError if `output` is there and no report, without `force`.
    """
    path = output or Path("reports") / f"{file_name(study.study_name)}.html"
    check_output(path, kind=REPORT, force=force)
    folder = Path("reports") / file_name(study.study_name)
    frame = trials_frame(study)
    retrained = read_retrained(folder, frame)
    for line in retrained.damaged:
        say(line)
    page = render(study, frame, retrained, top=top, analysis=folder / "analysis")
    # The names of classes are those of folders, which need not be UTF-8.
    write_output(path, page.encode("utf-8", "backslashreplace"), kind=REPORT, force=force)
    return path


def render(study: optuna.Study, frame: pd.DataFrame, retrained: Retrained, *, top: int, analysis: Path) -> str:
    """Return the HTML of the report. `analysis` is the folder to which `fbsearch analyze` writes its pictures."""
    dataset = stored_dataset(study)
    worths = estimate_worth(frame)
    num_images, goals = sections.images_of_interval(frame, dataset), goals_of(study)
    drawn = dict(draw_figures(frame, worths, num_images=num_images, top=top))
    drawn |= draw_retrained(retrained)
    front = read_front(study, goals) if len(goals) > 1 else None
    has_front = front is not None and len(front.values) > 0
    drawn |= dict(draw_fronts(frame, front)) if front is not None and has_front else {}
    best = ranked(frame).head(top)
    stored_attention = next((TrialRecord.of(trial).attention for trial in best_trials(study, 1)), None)
    environment = Environment(
        loader=PackageLoader("fbsearch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": sections.count,
        "percent": sections.percent,
        "duration": format_duration,
        "short": short,
    }
    return environment.get_template("report.html").render(
        name=study.study_name,
        made=datetime.datetime.now(datetime.UTC),
        headline=sections.headline(frame, dataset, read_race(study)),
        figures=drawn,
        max_failures=MAX_FAILURES,
        data=_embed(drawn),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=Markup(plotly.offline.get_plotlyjs()),
        worths=worths,
        worth=list(map(sections.describe_part, worths.parts)),
        comparison=sections.describe_comparison(worths, label=metric_label(frame)),
        front=front_rows(frame, front) if front is not None else [],
        goals=[GOALS[goal].label for goal in goals],
        has_knee=front is not None and front.knee is not None,
        importance=sections.describe_importance(),
        best=sections.top_rows(study, best, dataset),
        sampled={name: short(name) for name in parameters(frame, varied=False)},
        retrained=retrained,
        retrained_winner=retrained.winner(frame),
        errors=retrained.errors and describe_errors(retrained.errors),
        winner=winner_masks(best),
        attention=attention_picture(analysis, stored_attention, dataset.get("class_names", ())),
        contact_sheet=make_contact_sheet(stored_samples(study), dataset.get("class_names", ())),
        workers=sections.describe_workers(frame),
        failures=sections.failures(frame),
        conditions=sections.conditions(study, frame, dataset),
        missing=sections.missing(frame, dataset),
    )


def draw_figures(
    frame: pd.DataFrame, worths: Worths, *, num_images: int | None, top: int
) -> Iterator[tuple[str, go.Figure]]:
    """Yield (name, figure) for every figure that the frame has data for, of parameters the surest worth first.

    `worths` is the result of `worth.estimate_worth`; `num_images` the size of the validation split, None if unknown.
    """
    states = set(frame["state"])
    if "complete" in states and num_images:
        yield "intervals", figures.plot_intervals(frame, num_images=num_images, top=top)
    if states & {"complete", "pruned"} and frame["score"].notna().any():
        yield "history", figures.plot_history(frame)
        yield "curves", figures.plot_learning_curves(frame)
        if worths.parts:
            yield "worth", figures.plot_worth(worths.parts, label=metric_label(frame))
        by_worth = [CHANNELS if part.part == COMPUTE else part.part for part in worths.parts]
        names = sorted(parameters(frame), key=[*by_worth, *parameters(frame)].index)
        for name in names:
            yield f"slice {name}", parameter_figures.plot_slice(frame, name)
        if "complete" in states:
            pairs = list(itertools.combinations(names[:MAX_PAIRED], 2))
            shared = parameter_figures.find_pair_range(frame, pairs) if pairs else (0.0, 1.0)
            for x, y in pairs:
                yield f"pair {x} {y}", parameter_figures.plot_pair(frame, x, y, shared=shared)
        if names:
            yield "parallel", parameter_figures.plot_parallel(frame)
        for cost in figures.COSTS:
            if frame[cost].notna().any():
                yield f"cost {cost}", figures.plot_cost(frame, cost)
    if len(timeline(frame).lanes):
        yield "timeline", figures.plot_timeline(frame)


def draw_retrained(retrained: Retrained) -> dict[str, go.Figure]:
    """Return the figures of what was trained after the search, by name."""
    drawn = {}
    if retrained.trainings:
        drawn["trainings"] = plot_trainings(retrained.trainings)
    if retrained.comparison is not None:
        drawn["comparison"] = plot_comparison(retrained.comparison)
    if retrained.errors is not None:
        drawn["confusion"] = plot_confusion(retrained.errors)
        drawn["reliability"] = plot_reliability(retrained.errors)
    return drawn


def write_static(study: optuna.Study, folder: Path, *, top: int = 10) -> list[Path]:
    """Write every figure of the report as PNG and as SVG into a folder, and return their paths.

    Raises StorageError if plotly's kaleido or a browser for it is not installed, or the folder cannot be written.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise StorageError("--static needs plotly's kaleido and Chromium or Chrome: pip install 'fbsearch[static]'")
    frame = trials_frame(study)
    num_images = sections.images_of_interval(frame, stored_dataset(study))
    drawn = dict(draw_figures(frame, estimate_worth(frame), num_images=num_images, top=top))
    if len(goals := goals_of(study)) > 1 and (front := read_front(study, goals)).values:
        drawn |= dict(draw_fronts(frame, front))
    drawn |= draw_retrained(read_retrained(Path("reports") / file_name(study.study_name), frame))
    for figure in drawn.values():
        figure.update_layout(paper_bgcolor="white", margin={"r": 24, "b": 24})
    pairs = [(name, kind) for name in drawn for kind in ("png", "svg")]
    paths = [folder / f"{file_name(name.replace(' ', '_'))}.{kind}" for name, kind in pairs]
    pictures = [drawn[name] for name, _ in pairs]
    heights = [figure.layout.height for figure in pictures]  # plotly does not take the height from the layout
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plotly.io.write_images(pictures, paths, scale=2, width=STATIC_PIXELS, height=heights)
    except OSError as error:
        raise StorageError(f"--static {folder}: cannot be written: {error.strerror}") from None
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise StorageError("--static needs a browser: install Chromium or Chrome (apt-get install chromium)") from None
    return paths


def _embed(drawn: dict[str, go.Figure]) -> Markup:
    """Return JSON for a script element: {"figures": {name: figure}, "templates": {"light": ..., "dark": ...}}."""
    parts = []
    for name, figure in drawn.items():
        content = figure.to_dict()
        # The page shows the title as a heading, and sets the template when the reader chooses light or dark.
        del content["layout"]["title"], content["layout"]["template"]
        content["layout"]["margin"]["t"] = 36
        if name.startswith(("slice ", "cost ", "pair ")):
            content["layout"]["margin"]["t"] = 12
            content["layout"]["showlegend"] = False  # the page has one legend for all these figures
        parts.append(f"{json.dumps(name)}: {plotly.io.to_json(content, validate=False)}")
    themes = {theme: template(dark=theme == "dark").to_plotly_json() for theme in ("light", "dark")}
    text = f'{{"figures": {{{", ".join(parts)}}}, "templates": {json.dumps(themes)}}}'
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _resource(name: str) -> Markup:
    return Markup(resources.files("fbsearch.report").joinpath("templates", name).read_text(encoding="utf-8"))


def winner_masks(best: pd.DataFrame) -> dict[str, Any] | None:
    """Return the pattern of the best network and the masks of its four frequency bands, as pictures."""
    model = best.iloc[0]["config"].get("model", {}) if len(best) else {}
    if not {"pattern", "pattern_resolution"} <= model.keys():
        return None
    if "none" in (model["pattern"], model.get("dynamics")):
        return None
    side = model["pattern_resolution"]
    mask_HW = generate_pattern(model["pattern"], side, side)
    fine_HW = generate_pattern(model["pattern"], MASK_PIXELS, MASK_PIXELS)
    bands = split_bands(mask_HW)
    masks = {f"{model['pattern']}, at a high resolution": fine_HW} | bands
    pictures = [(label, _data_uri(mask_png(one_HW))) for label, one_HW in masks.items()]
    return {
        "pattern": model["pattern"],
        "side": side,
        "pictures": pictures,
        "blind": bands["theta: sin(pi m)"].max() < 1e-6,
    }


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def attention_picture(folder: Path, stored: dict[str, Any] | None, class_names: Sequence[str]) -> dict[str, Any] | None:
    """Return the best network's attention maps: those of `fbsearch analyze` in `folder`, else those of its trial."""
    path = folder / "attention.png"
    if path.is_file():
        drawn = datetime.datetime.fromtimestamp(path.stat().st_mtime)
        return {"picture": _data_uri(path.read_bytes()), "drawn": f"{drawn:%Y-%m-%d %H:%M}", "path": str(path)}
    picture = stored and draw_stored_attention(stored, class_names)
    return {"picture": _data_uri(picture), "path": None} if picture else None


def draw_stored_attention(stored: dict[str, Any], class_names: Sequence[str]) -> bytes | None:
    """Draw a stored `messages.Attention` as PNG; None if it has a form that this version does not read."""
    names = dict(enumerate(map(str, class_names)))
    try:
        images_NHWC, *stages = (_array(pixels) for pixels in (stored["images"], *stored["stages"]))
        results = zip(stored["labels"], stored["said"], stored["shares"], strict=True)
        rows = [row_label(names.get(a, str(a)), names.get(b, str(b)), share) for a, b, share in results]
    except (KeyError, TypeError, ValueError):
        return None
    columns = [(f"stage {stage}", maps_Nhw) for stage, maps_Nhw in enumerate(stages, start=1)]
    file = io.BytesIO()
    draw_maps(images_NHWC, columns, rows=rows).save(file, format="PNG")
    return file.getvalue()


def _array(pixels: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(pixels["base64"]), np.uint8).reshape(pixels["shape"])
