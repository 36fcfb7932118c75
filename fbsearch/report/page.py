"""The report of a study: one HTML file that opens offline, or every figure of it as a picture.

`trials_frame` makes the frame that figures and findings are functions of. Reads a study, writes nothing into it. Knows
nothing of torch.
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
import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from fbsearch.errors import StorageError
from fbsearch.files import file_name, write_whole
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import BANDS, color, draw_maps, row_label
from fbsearch.report import figures
from fbsearch.report import parameter_figures as effects
from fbsearch.report import text as sections
from fbsearch.report.final_results import Retrained, plot_comparison, plot_trainings, read_retrained
from fbsearch.report.statistics import importances, parameters, ranked, short
from fbsearch.report.style import template
from fbsearch.report.text import count, duration, percent
from fbsearch.report.timeline import timeline
from fbsearch.report.trials_table import trials_frame
from fbsearch.study.study import best_trials

# The contours are of every two of the first four parameters.
MAX_PAIRED = 4
MAX_FAILURES = 30
STATIC_PIXELS = 900


def write_report(
    study: optuna.Study, output: Path | None = None, *, top: int = 10, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the report of a study to `output`, or to reports/<study>.html; returns where it is.

    What `train` and `analyze` have written of the study is looked for in reports/<study>/; `say` gets a line for each
    file there that is damaged. StorageError if the file cannot be written, or the study has several objectives.
    """
    path = output or Path("reports") / f"{file_name(study.study_name)}.html"
    folder = Path("reports") / file_name(study.study_name)
    frame = trials_frame(study)
    retrained = read_retrained(folder, frame)
    for line in retrained.damaged:
        say(line)
    page = render(study, frame, retrained, top=top, analysis=folder / "analysis")
    try:
        write_whole(path, page)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}; --output names another") from None
    return path


def render(study: optuna.Study, frame: pd.DataFrame, retrained: Retrained, *, top: int, analysis: Path) -> str:
    """The report's HTML. `analysis` is the folder in which `fbsearch analyze` has put its pictures, if it has."""
    dataset = study.user_attrs.get("dataset", {})
    shares = importances(frame)
    drawn = dict(draw_figures(frame, shares, num_images=dataset.get("num_val"), top=top))
    drawn |= draw_retrained(retrained)
    best = ranked(frame).head(top)
    environment = Environment(
        loader=PackageLoader("fbsearch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent, "duration": duration}
    return environment.get_template("report.html").render(
        name=study.study_name,
        made=datetime.datetime.now(datetime.UTC),
        headline=sections.headline(frame, dataset),
        figures=drawn,
        has_pairs=any(key.startswith("pair ") for key in drawn),
        max_failures=MAX_FAILURES,
        data=_embed(drawn),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=Markup(plotly.offline.get_plotlyjs()),
        mattered=list(sections.say_importances(frame, shares)),
        best=sections.top_rows(study, best, dataset),
        sampled={name: short(name) for name in parameters(frame, varied=False)},
        retrained=retrained,
        retrained_winner=retrained.winner(frame),
        winner=winner_masks(best),
        attention=attention_picture(analysis, _attention(study), dataset.get("class_names", ())),
        workers=sections.say_workers(frame),
        failures=sections.failures(frame),
        conditions=sections.conditions(study, frame, dataset),
        missing=sections.missing(frame, dataset),
    )


def _attention(study: optuna.Study) -> dict[str, Any] | None:
    """What is stored of the best trial's attention maps."""
    return next((trial.user_attrs.get("attention") for trial in best_trials(study, 1)), None)


def draw_figures(
    frame: pd.DataFrame, shares: pd.DataFrame, *, num_images: int | None, top: int
) -> Iterator[tuple[str, go.Figure]]:
    """Every figure that the frame has the data for, as (name, figure); slices and pairs begin with what matters most.

    `shares` are `findings.importances` of the frame; `num_images` is the validation split's size, None if not known.
    """
    states = set(frame["state"])
    if "complete" in states and num_images:
        yield "intervals", figures.plot_intervals(frame, num_images=num_images, top=top)
    if states & {"complete", "pruned"} and frame["score"].notna().any():
        yield "history", figures.plot_history(frame)
        yield "curves", figures.plot_learning_curves(frame)
        if len(shares):
            yield "importances", figures.plot_importances(shares)
        names = list(dict.fromkeys([*shares["parameter"], *parameters(frame)]))
        for name in names:
            yield f"slice {name}", effects.plot_slice(frame, name)
        if "complete" in states:
            for x, y in itertools.combinations(names[:MAX_PAIRED], 2):
                yield f"pair {x} {y}", effects.plot_pair(frame, x, y)
        if names:
            yield "parallel", effects.plot_parallel(frame)
        for cost in figures.COSTS:
            if frame[cost].notna().any():
                yield f"cost {cost}", figures.plot_cost(frame, cost)
    if len(timeline(frame).lanes):
        yield "timeline", figures.plot_timeline(frame)


def draw_retrained(retrained: Retrained) -> dict[str, go.Figure]:
    """The figures of what was trained after the search, by name."""
    drawn = {}
    if retrained.trainings:
        drawn["trainings"] = plot_trainings(retrained.trainings)
    if retrained.comparison is not None:
        drawn["comparison"] = plot_comparison(retrained.comparison)
    return drawn


def write_static(study: optuna.Study, folder: Path, *, top: int = 10) -> list[Path]:
    """Write every figure of the report as PNG and as SVG, named after what it shows; returns their paths.

    StorageError where plotly's kaleido, or a browser for it, is not there.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise StorageError("--static needs plotly's kaleido and Chromium or Chrome: pip install 'fbsearch[static]'")
    frame = trials_frame(study)
    num_images = study.user_attrs.get("dataset", {}).get("num_val")
    drawn = dict(draw_figures(frame, importances(frame), num_images=num_images, top=top))
    drawn |= draw_retrained(read_retrained(Path("reports") / file_name(study.study_name), frame))
    pairs = [(name, kind) for name in drawn for kind in ("png", "svg")]
    paths = [folder / f"{file_name(name)}.{kind}" for name, kind in pairs]
    for figure in drawn.values():
        figure.update_layout(paper_bgcolor="white", margin={"r": 24, "b": 24})
    pictures = [drawn[name] for name, _ in pairs]
    heights = [figure.layout.height for figure in pictures]  # what a figure itself asks for is not looked at
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


# ------------------------------------------------------------------------------------------------------- the page


def _embed(drawn: dict[str, go.Figure]) -> Markup:
    """The figures as JSON for a script element: {"figures": {name: figure}, "templates": {"light": .., "dark": ..}}."""
    parts = []
    for name, figure in drawn.items():
        # Titles are headings of the page, and colours come with the reader's choice of light or dark.
        bare = go.Figure(figure).update_layout(template="none", title=None, margin_t=36)
        if name.startswith(("slice ", "cost ", "pair ")):
            bare.update_layout(showlegend=False, margin_t=12)  # the page has one legend for them all
        parts.append(f"{json.dumps(name)}: {bare.to_json(validate=False)}")
    themes = {theme: template(dark=theme == "dark").to_plotly_json() for theme in ("light", "dark")}
    text = f'{{"figures": {{{", ".join(parts)}}}, "templates": {json.dumps(themes)}}}'
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _resource(name: str) -> Markup:
    return Markup(resources.files("fbsearch.report").joinpath("templates", name).read_text(encoding="utf-8"))


MASK_PIXELS = 256


def winner_masks(best: pd.DataFrame) -> dict[str, Any] | None:
    """The pattern of the best trial's network and what its four bands are multiplied by, as pictures."""
    model = best.iloc[0]["config"].get("model", {}) if len(best) else {}
    if not {"pattern", "pattern_resolution"} <= model.keys():
        return None
    side = model["pattern_resolution"]
    mask_HW = generate_pattern(model["pattern"], side, side)
    masks = (mask_HW, 1 - mask_HW, mask_HW / 2, np.sin(np.pi * mask_HW))
    fine = generate_pattern(model["pattern"], MASK_PIXELS, MASK_PIXELS)
    pictures = [(f"{model['pattern']}, drawn finely", _picture(fine))]
    pictures += [(band, _picture(mask)) for band, mask in zip(BANDS, masks, strict=True)]
    return {"pattern": model["pattern"], "side": side, "pictures": pictures, "blind": masks[3].max() < 1e-6}


def _picture(mask_HW: Any) -> str:
    """A mask as the data URI of a PNG, its pixels visible as squares."""
    picture = color(np.clip(mask_HW, 0, 1).astype(np.float32))
    file = io.BytesIO()
    picture.resize((MASK_PIXELS, MASK_PIXELS), Image.Resampling.NEAREST).save(file, format="PNG")
    return _data_uri(file.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def attention_picture(folder: Path, stored: dict[str, Any] | None, class_names: Sequence[str]) -> dict[str, Any] | None:
    """The winner's attention maps: those that `fbsearch analyze` has drawn in `folder`, else those of its trial."""
    path = folder / "attention.png"
    if path.is_file():
        drawn = datetime.datetime.fromtimestamp(path.stat().st_mtime)
        return {"picture": _data_uri(path.read_bytes()), "drawn": f"{drawn:%Y-%m-%d %H:%M}", "path": str(path)}
    picture = stored and draw_stored_attention(stored, class_names)
    return {"picture": _data_uri(picture), "path": None} if picture else None


def draw_stored_attention(stored: dict[str, Any], class_names: Sequence[str]) -> bytes | None:
    """A PNG of what is stored of an `events.Attention` with a trial; None if it is not one that this fbsearch reads."""
    names = dict(enumerate(map(str, class_names)))
    try:
        images_NHWC, *stages = (_array(pixels) for pixels in (stored["images"], *stored["stages"]))
        said = zip(stored["labels"], stored["said"], stored["shares"], strict=True)
        rows = [row_label(names.get(a, str(a)), names.get(b, str(b)), share) for a, b, share in said]
    except (KeyError, TypeError, ValueError):
        return None
    columns = [(f"stage {stage}", maps_Nhw) for stage, maps_Nhw in enumerate(stages, start=1)]
    file = io.BytesIO()
    draw_maps(images_NHWC, columns, rows=rows).save(file, format="PNG")
    return file.getvalue()


def _array(pixels: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(pixels["base64"]), np.uint8).reshape(pixels["shape"])
