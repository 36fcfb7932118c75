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
import math
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import plotly.offline
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from pydantic import ValidationError

from fbsearch import figures
from fbsearch.analyze import BANDS, color
from fbsearch.errors import StorageError
from fbsearch.findings import (
    importances,
    labels,
    parameters,
    ranked,
    saved_by_pruning,
    shared_epoch,
    short,
    timeline,
    wilson_interval,
)
from fbsearch.patterns import generate_pattern
from fbsearch.space import LEVELS
from fbsearch.study import INTERRUPTED, best_trials, export_best, trial_table
from fbsearch.study_file import dump_export, write_text

# The contours are of every two of the first four parameters.
MAX_PAIRED = 4
MAX_FAILURES = 30
MASK_PIXELS = 256
STATIC_PIXELS = 900
RANK_COMPARED = 5


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """Every trial as a row: what `study.trial_table` has, and what a figure needs besides.

    `score` is the validation accuracy at the end, of pruned trials where they were stopped; `rank` counts complete
    trials from 1, the best; `history` is a list with a dict for each epoch (`epoch`, `val_accuracy`, ...);
    `model.fractal_levels` are the stages' levels as one text; `planned_epochs`, `failure_kind`, `traceback`;
    `config` and `environment` are dicts as they are stored; `attrs["log"]` names what was sampled on a log scale.
    What an older version of fbsearch has not stored is empty.
    StorageError for a study with several objectives.
    """
    if len(study.directions) != 1:
        raise StorageError(
            f"the study {study.study_name!r} has {len(study.directions)} objectives; reports are of one: accuracy"
        )
    frame = trial_table(study)
    trials = study.get_trials(deepcopy=False)
    attributes = [trial.user_attrs for trial in trials]
    ranks = {trial.number: rank for rank, trial in enumerate(best_trials(study, len(trials)), start=1)}
    configs = [attribute.get("config", {}) for attribute in attributes]
    added: dict[str, list[Any]] = {
        "score": [t.value if t.value is not None and t.state.is_finished() else math.nan for t in trials],
        "rank": [ranks.get(t.number, math.nan) for t in trials],
        "planned_epochs": [config.get("train", {}).get("epochs", math.nan) for config in configs],
        "history": [_history(trial) for trial in trials],
        "failure_kind": [attribute.get("failure", {}).get("kind") for attribute in attributes],
        "traceback": [attribute.get("traceback") for attribute in attributes],
        "config": configs,
        "environment": [attribute.get("environment", {}) for attribute in attributes],
    }
    if any(name.startswith(f"{LEVELS}.") for name in frame.columns):
        added[LEVELS] = [_levels(trial.params) for trial in trials]
    for name, values in added.items():
        frame[name] = pd.Series(values, index=frame.index, dtype=float if name in ("score", "rank") else object)
    for name in ("num_parameters", "flops", "seconds", "planned_epochs", "value", "epochs"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    distributions = {pair for trial in trials for pair in trial.distributions.items()}
    frame.attrs["log"] = sorted(name for name, distribution in distributions if getattr(distribution, "log", False))
    return frame.assign(started=pd.to_datetime(frame["started"]), ended=pd.to_datetime(frame["ended"]))


def _history(trial: optuna.trial.FrozenTrial) -> list[dict[str, Any]]:
    stored = trial.user_attrs.get("history")
    if stored:
        return list(stored)
    return [{"epoch": epoch, "val_accuracy": value} for epoch, value in sorted(trial.intermediate_values.items())]


def _levels(params: dict[str, Any]) -> str | None:
    num_stages = params.get(f"{LEVELS}.num_stages")
    return num_stages and str([params.get(f"{LEVELS}.{stage}") for stage in range(num_stages)])


def write_report(study: optuna.Study, output: Path | None = None, *, top: int = 10) -> Path:
    """Write the report of a study to `output`, or to reports/<study>.html; returns where it is.

    StorageError if the file cannot be written, or the study has several objectives.
    """
    path = output or Path("reports") / f"{file_name(study.study_name)}.html"
    folder = Path("reports") / file_name(study.study_name)
    page = render(study, trials_frame(study), top=top, analysis=folder / "analysis")
    try:
        write_text(path, page)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}; --output names another") from None
    return path


def file_name(study: str) -> str:
    """A study's name as a file's: no separators, no leading dots."""
    return re.sub(r"[^\w.-]+", "_", study).lstrip(".") or "study"


def render(study: optuna.Study, frame: pd.DataFrame, *, top: int, analysis: Path) -> str:
    """The report's HTML. `analysis` is the folder in which `fbsearch analyze` has put its pictures, if it has."""
    dataset = study.user_attrs.get("dataset", {})
    shares = importances(frame)
    drawn = dict(draw_figures(frame, shares, num_images=dataset.get("num_val"), top=top))
    best = ranked(frame).head(top)
    environment = Environment(
        loader=PackageLoader("fbsearch"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": _percent, "duration": _duration}
    return environment.get_template("report.html").render(
        name=study.study_name,
        made=datetime.datetime.now(datetime.UTC),
        headline=_headline(frame, dataset),
        figures=drawn,
        has_pairs=any(key.startswith("pair ") for key in drawn),
        max_failures=MAX_FAILURES,
        data=_embed(drawn),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=Markup(plotly.offline.get_plotlyjs()),
        mattered=list(_say_importances(frame, shares)),
        best=_top_rows(study, best, dataset),
        sampled={name: short(name) for name in parameters(frame, varied=False)},
        winner=_winner(best),
        attention=_attention(analysis),
        workers=_workers(frame),
        failures=_failures(frame),
        conditions=_conditions(study, frame, dataset),
        missing=_missing(frame, dataset),
    )


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
            yield f"slice {name}", figures.plot_slice(frame, name)
        if "complete" in states:
            for x, y in itertools.combinations(names[:MAX_PAIRED], 2):
                yield f"pair {x} {y}", figures.plot_pair(frame, x, y)
        if names:
            yield "parallel", figures.plot_parallel(frame)
        for cost in figures.COSTS:
            if frame[cost].notna().any():
                yield f"cost {cost}", figures.plot_cost(frame, cost)
    if len(timeline(frame).lanes):
        yield "timeline", figures.plot_timeline(frame)


def write_static(study: optuna.Study, folder: Path, *, top: int = 10) -> list[Path]:
    """Write every figure of the report as PNG and as SVG, named after what it shows; returns their paths.

    StorageError where plotly's kaleido, or a browser for it, is not there.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise StorageError("--static needs plotly's kaleido and Chromium or Chrome: pip install 'fbsearch[static]'")
    frame = trials_frame(study)
    num_images = study.user_attrs.get("dataset", {}).get("num_val")
    drawn = dict(draw_figures(frame, importances(frame), num_images=num_images, top=top))
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


# ------------------------------------------------------------------------------------------------- what is said


def _headline(frame: pd.DataFrame, dataset: dict[str, Any]) -> dict[str, Any]:
    states = frame["state"].value_counts()
    failed = (frame["state"] == "fail") & (frame["failure_kind"] != INTERRUPTED)
    best = ranked(frame)
    num_images = dataset.get("num_val")
    winner = best.iloc[0] if len(best) else None
    interval = wilson_interval(winner["value"], num_images) if winner is not None and num_images else None
    return {
        "counts": {
            "complete": int(states.get("complete", 0)),
            "pruned": int(states.get("pruned", 0)),
            "failed": int(failed.sum()),
            "running": int(states.get("running", 0)),
            "interrupted": int((frame["failure_kind"] == INTERRUPTED).sum()),
        },
        "winner": winner,
        "num_images": num_images,
        "interval": interval,
        "noise": _say_noise(best, interval, num_images),
        "saving": saved_by_pruning(frame),
        "seconds": float(frame["seconds"].sum()),
        "clock": timeline(frame),
    }


def _say_noise(best: pd.DataFrame, interval: tuple[float, float] | None, num_images: int | None) -> str:
    """Whether the next ranks are worse than the best, or only had worse luck."""
    if interval is None or num_images is None:
        return ""
    if len(best) == 1:
        return "Only one trial is complete: there is nothing to compare it with."
    other = best.iloc[min(RANK_COMPARED, len(best)) - 1]
    images = round((best.iloc[0]["value"] - other["value"]) * num_images)
    rank = f"Rank {other['rank']:.0f} ({_percent(other['value'])})"
    if other["value"] < interval[0]:
        return f"{rank} lies below rank 1's interval: the distance, {images} images, is more than noise."
    equals = best[best["value"] >= interval[0]]
    distance = "no image" if images == 0 else "1 image" if images == 1 else f"{images} images"
    text = (
        f"{rank} lies inside rank 1's interval: the distance is {distance} of {num_images:,}, which can be noise. "
        f"So do {len(equals)} of the {len(best)} complete trials in all"
    )
    small = equals.sort_values(["num_parameters", "rank"]).iloc[0]
    if small["rank"] == 1 or not small["num_parameters"] > 0:
        return f"{text}; none of them has fewer parameters than the best." if small["rank"] == 1 else f"{text}."
    share = small["num_parameters"] / best.iloc[0]["num_parameters"]
    if share > 0.995:
        return f"{text}; none of them has fewer parameters than the best."
    return (
        f"{text}; the smallest of them is trial {small['trial']} (rank {small['rank']:.0f}, "
        f"{_percent(small['value'])}) with {_count(small['num_parameters'])} parameters, {share:.0%} of the best one's."
    )


def _say_importances(frame: pd.DataFrame, shares: pd.DataFrame) -> Iterator[str]:
    measured = {
        "early": f"After epoch {shared_epoch(frame)}, which all trials reached",
        "final": "At the end, among complete trials",
    }
    for basis, part in shares.groupby("basis", sort=True):
        is_sure = part["explained"] > part["chance"]
        yes = [
            f"{short(row['parameter'])} ({row['explained']:.0%} of the trials' order; {row['best']})"
            for _, row in part[is_sure].iterrows()
        ]
        no = [short(name) for name in part["parameter"][~is_sure]]
        what = f"{_list(yes)} mattered" if yes else "nothing stood out"
        yield f"{measured[str(basis)]}, {what}." + (
            f" Of {_list(no)} no more is seen than chance would show." if no else ""
        )


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _missing(frame: pd.DataFrame, dataset: dict[str, Any]) -> list[str]:
    """What an older version of fbsearch has not stored, in words."""
    done = frame[frame["state"].isin(["complete", "pruned"])]
    if not len(done):
        return []
    absent = {
        "the size of the validation split, so scores have no interval": not dataset.get("num_val"),
        "the configurations": not done["config"].map(bool).any(),
        "parameters and FLOPs": bool(done["num_parameters"].isna().all()),
        "the seconds of each trial": bool(done["seconds"].isna().all()),
        "the accuracy after each epoch": not done["history"].map(bool).any(),
        "versions and commit": not done["environment"].map(bool).any(),
    }
    return [what for what, is_absent in absent.items() if is_absent]


def _top_rows(study: optuna.Study, best: pd.DataFrame, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    texts = _yaml_of_best(study, len(best))
    names = parameters(best, varied=False)
    sampled = {name: labels(best[name]) for name in names}
    num_images = dataset.get("num_val")
    rows = []
    for position, (_, trial) in enumerate(best.iterrows()):
        text = texts[position] if texts else yaml.safe_dump(trial["config"], sort_keys=False, allow_unicode=True)
        rows.append(
            {
                "trial": trial,
                "interval": wilson_interval(trial["value"], num_images) if num_images else None,
                "sampled": {name: sampled[name].iloc[position] for name in names},
                "yaml": text,
                "link": "data:application/yaml;base64," + base64.b64encode(text.encode()).decode(),
                "file": f"{file_name(study.study_name)}-rank{position + 1}.yaml",
            }
        )
    return rows


def _yaml_of_best(study: optuna.Study, top: int) -> list[str]:
    """An export of each of the best; nothing where an older version has not stored what an export holds."""
    try:
        export = export_best(study, top=top)
    except (StorageError, KeyError, ValidationError):
        return []
    return [dump_export(export.model_copy(update={"configs": (config,)})) for config in export.configs]


def _winner(best: pd.DataFrame) -> dict[str, Any] | None:
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


def _attention(folder: Path) -> dict[str, str] | None:
    """The picture of the attention maps that `fbsearch analyze` has drawn, with its date."""
    path = folder / "attention.png"
    if not path.is_file():
        return None
    drawn = datetime.datetime.fromtimestamp(path.stat().st_mtime)
    return {"picture": _data_uri(path.read_bytes()), "drawn": f"{drawn:%Y-%m-%d %H:%M}", "path": str(path)}


def _workers(frame: pd.DataFrame) -> str:
    found = timeline(frame)
    if not found.num_lanes:
        return ""
    text = f"{found.num_lanes} at a time, busy {found.busy:.0%} of {_duration(found.seconds)}."
    if found.pauses:
        pauses = "1 pause" if len(found.pauses) == 1 else f"{len(found.pauses)} pauses"
        text += f" {pauses} of {_duration(sum(seconds for _, seconds in found.pauses))} in all cut out (dotted lines)."
    if len(frame) > figures.MAX_BARS:
        text += f" The last {figures.MAX_BARS:,} trials are drawn."
    return text


def _failures(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Failed trials grouped by reason, the most frequent first; interrupted ones were run again and did not fail."""
    failed = frame[(frame["state"] == "fail") & (frame["failure_kind"] != INTERRUPTED)]
    reasons = pd.DataFrame(
        {
            "kind": failed["failure_kind"].fillna("not stored"),
            "message": failed["failure"].fillna("no reason is stored"),
        }
    )
    groups = [
        {
            "kind": kind,
            "message": message,
            "trials": failed.loc[rows.index, "trial"].tolist(),
            "traceback": next(iter(failed.loc[rows.index, "traceback"].dropna()), None),
        }
        for (kind, message), rows in reasons.groupby(["kind", "message"], sort=False)
    ]
    return sorted(groups, key=lambda group: -len(group["trials"]))


def _conditions(study: optuna.Study, frame: pd.DataFrame, dataset: dict[str, Any]) -> dict[str, str]:
    """Machine, versions, commit, data and seed, as far as they are stored."""
    config = study.user_attrs.get("config", {})
    data, search = config.get("data", {}), config.get("search", {})
    versions: dict[str, set[str]] = {}
    for environment in frame["environment"]:
        found = environment.get("versions", {}) | {"commit": environment.get("git_commit")}
        for name, version in found.items():
            versions.setdefault(name, set()).update([str(version)] if version else [])
    classes = [str(name) for name in dataset.get("class_names", ())]
    images = [f"{dataset[key]:,} {word}" for key, word in _SPLITS.items() if key in dataset]
    times = (frame["started"].min(), frame["ended"].max())
    rows = {
        "Device": ", ".join(sorted(set(frame["device"].dropna()))),
        "Data": str(data.get("root" if data.get("name") == "folder" else "name", "")),
        "Images": ", ".join(images) + (f"; {dataset['num_broken']} broken" if dataset.get("num_broken") else ""),
        "Image size": f"{dataset['in_channels']} x {dataset['image_size']} x {dataset['image_size']}" if images else "",
        "Classes": ", ".join(classes[:20]) + (f", ... ({len(classes)})" if len(classes) > 20 else ""),
        "Search": ", ".join(f"{key} {search[key]}" for key in ("sampler", "pruner", "metric", "seed") if key in search),
        "Begun, ended": " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in times if not pd.isna(time)),
    }
    rows |= {name: ", ".join(sorted(found)) for name, found in versions.items()}
    return {name: value for name, value in rows.items() if value}


_SPLITS = {"num_train": "to train on", "num_val": "to choose by", "num_test": "set aside for the test"}


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
    themes = {theme: figures.template(dark=theme == "dark").to_plotly_json() for theme in ("light", "dark")}
    text = f'{{"figures": {{{", ".join(parts)}}}, "templates": {json.dumps(themes)}}}'
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _resource(name: str) -> Markup:
    return Markup(resources.files("fbsearch").joinpath("templates", name).read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _count(number: float) -> str:
    return "not stored" if math.isnan(number) else f"{number:,.0f}"


def _duration(seconds: float) -> str:
    """Seconds for people: 43 s, 3 min 12 s, 5 h 20 min, 2 d 4 h."""
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole:.0f} {unit} {rest // part:.0f} {below}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
