"""Text and tables of a report: headline, noise, what parts are worth, the best, workers, failures, conditions.

Each function takes the frame of `trials_table.trials_frame` and returns plain text and values; the page escapes them.
"""

import base64
import math
from collections import Counter
from typing import Any

import optuna
import pandas as pd
import yaml
from pydantic import ValidationError

from fbsearch.config.durations import format_duration
from fbsearch.config.export_file import dump_export
from fbsearch.config.models import COMMON_NETWORK, ModelConfig
from fbsearch.errors import StorageError
from fbsearch.files import file_name
from fbsearch.messages import FailureKind
from fbsearch.report import figures
from fbsearch.report.statistics import (
    finished_trials,
    labels,
    metric_label,
    metric_of,
    parameters,
    ranked,
    saved_by_pruning,
)
from fbsearch.report.timeline import timeline
from fbsearch.report.worth import Difference, PartWorth, Worths
from fbsearch.study.export import export_best
from fbsearch.study.race_result import RaceResult
from fbsearch.study.study import stored_settings
from fbsearch.winners.intervals import wilson_interval

RANK_COMPARED = 5
SPLITS = {"num_train": "to train on", "num_val": "to choose by", "num_test": "set aside for the test"}


def headline(frame: pd.DataFrame, dataset: dict[str, Any], race: RaceResult | None = None) -> dict[str, Any]:
    """Return what the head of the report shows: number of trials of each state, best trial, time, savings."""
    is_interrupted = frame["failure_kind"] == FailureKind.INTERRUPTED
    best = ranked(frame)
    num_images = images_of_interval(frame, dataset)
    interval = wilson_interval(best["value"].iloc[0], num_images) if len(best) and num_images else None
    return {
        "metric": metric_label(frame),
        "no_interval": "the number of validation images is not stored"
        if metric_of(frame) == "val_accuracy"
        else "it is not the share of images that are right",
        "counts": Counter(frame["state"].mask(is_interrupted, "interrupted").replace("fail", "failed")),
        "winner": best.iloc[0] if len(best) else None,
        "common": describe_winner(best.iloc[0]["config"]) if len(best) else "",
        "num_images": num_images,
        "interval": interval,
        "race": _describe_race(race) if race else "",
        "noise": _compare_ranks(best, interval, num_images) if interval and num_images and not race else "",
        "saving": saved_by_pruning(frame),
        "seconds": float(frame["seconds"].sum()),
        "clock": timeline(frame),
    }


def images_of_interval(frame: pd.DataFrame, dataset: dict[str, Any]) -> int | None:
    """Return the number of validation images by which scores have intervals; None where they have none."""
    num_val: int | None = dataset.get("num_val")
    return num_val if metric_of(frame) == "val_accuracy" else None


def describe_winner(config: dict[str, Any]) -> str:
    """Say that the best network is a common one if it is; an empty text if not, or if its form is not known."""
    try:
        model = ModelConfig.model_validate(config["model"])
    except (KeyError, ValidationError):  # as an older version stored it
        return ""
    return f"The best network keeps nothing of the fractal: it is {COMMON_NETWORK}." if model.is_common else ""


def _describe_race(race: RaceResult) -> str:
    """Say how the raced trials did, the best mean first."""
    first, *others = race.as_list()
    means = ", ".join(f"trial {item['trial']} {percent(item['mean'])}" for item in others)
    return (
        f"Trial {first['trial']} was {race.describe(first['trial'])} (its own and {race.num_runs - 1} new ones); then "
        f"{means}. The number above is its own run's; the mean depends less on luck."
    )


def _compare_ranks(best: pd.DataFrame, interval: tuple[float, float], num_images: int) -> str:
    """Say whether the next ranks are worse than the best trial by more than noise."""
    if len(best) == 1:
        return "Only one trial is complete: there is nothing to compare it with."
    first, other = best.iloc[0], best.iloc[min(RANK_COMPARED, len(best)) - 1]
    images = round((first["value"] - other["value"]) * num_images)
    rank = f"Rank {other['rank']:.0f} ({percent(other['value'])})"
    if other["value"] < interval[0]:
        return f"{rank} lies below rank 1's interval: the distance, {images} images, is more than noise."
    equals = best[best["value"] >= interval[0]]
    distance = "no image" if images == 0 else _count(images, "image")
    text = (
        f"{rank} lies inside rank 1's interval: the distance is {distance} of {num_images:,}, which can be noise. "
        f"In all, {len(equals)} of the {len(best)} complete trials lie inside"
    )
    small = equals.sort_values(["num_parameters", "rank"]).iloc[0]
    share = small["num_parameters"] / first["num_parameters"]
    if small["rank"] == 1 or share > 0.995:
        return f"{text}; none of these has fewer parameters than the best trial."
    if math.isnan(share):
        return f"{text}."
    return (
        f"{text}; the smallest of these is trial {small['trial']} (rank {small['rank']:.0f}, "
        f"{percent(small['value'])}) with {count(small['num_parameters'])} parameters, {share:.0%} of the best trial's."
    )


def describe_comparison(worths: Worths, *, label: str = "validation accuracy") -> str:
    """Say what was compared, when in training, and what that leaves open."""
    cost = (
        "at equal compute and with all other searched parts equal"
        if worths.at_equal_compute
        else "with all other searched parts equal, but not at equal compute: it is unknown, or follows from the parts"
    )
    pruned = " Only the better trials went further; to judge parts at the end of training, search with pruner: none."
    return (
        f"Points of {label} between the choices of a part, {cost}. Compared are {worths.num_trials:,} "
        f"finished trials {worths.when}"
    ) + ("." if worths.share == 1 else f", the last point that all of them reached.{pruned}")


def describe_importance() -> str:
    """Say which estimate ours is, and why the importance in optuna-dashboard differs."""
    return (
        "One estimate is the same wherever fbsearch names it: a regression over complete and pruned trials, at the "
        "same point of their training and at equal compute, with intervals. optuna-dashboard's hyperparameter "
        "importance is another one (PED-ANOVA): for each parameter alone, how the best tenth of the complete trials "
        "differs from all complete ones, as shares of 1. It leaves out pruned trials, allows for no compute, has no "
        "intervals, and so ranks something first even where nothing is known to matter."
    )


def describe_part(part: PartWorth) -> tuple[str, str]:
    """Return a part's name and one line on its worth, with 95% intervals in points."""
    if not part.is_sure:
        bound = f"against {part.reference}, more than {_points(part.bound)} points can be excluded"
        return part.name, f"no evidence that it matters; {bound}."
    sure = [row for row in part.rows if row.is_sure]
    unsure = [row.choice for row in part.rows if not row.is_sure]
    said = [_describe_row(row, is_first=row is sure[0], reference=part.reference) for row in sure]
    more = f"; no evidence of a difference for {', '.join(unsure)}" if unsure else ""
    return part.name, f"{', '.join(said)}{more}."


def _describe_row(row: Difference, *, is_first: bool, reference: str) -> str:
    ends = sorted(abs(end) for end in (row.low, row.high))
    amount = f"{_points(abs(row.mean))} points" if is_first else _points(abs(row.mean))
    than = f" than {reference}" if is_first else ""
    return (
        f"{row.choice} is worth {amount} {'more' if row.mean > 0 else 'less'}{than} "
        f"({_points(ends[0])} to {_points(ends[1])})"
    )


def _points(share: float) -> str:
    """Format a share as points of a hundred, with two digits below 1."""
    return f"{100 * share:.2f}" if share < 0.00995 else f"{100 * share:.1f}"


def missing(frame: pd.DataFrame, dataset: dict[str, Any]) -> list[str]:
    """Name what an older version of fbsearch did not store."""
    done = finished_trials(frame)
    absent = {
        "the size of the validation split, so scores have no interval": not dataset.get("num_val"),
        "the configurations": not done["config"].map(bool).any(),
        "parameters and FLOPs": done["num_parameters"].isna().all(),
        "the seconds of each trial": done["seconds"].isna().all(),
        "the accuracy after each epoch": not done["history"].map(bool).any(),
        "versions and commit": not done["environment"].map(bool).any(),
    }
    return [name for name, is_absent in absent.items() if len(done) and is_absent]


def top_rows(study: optuna.Study, best: pd.DataFrame, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table of the best trials, each with its export as YAML and as a link to save it."""
    texts = _exports_of_best(study, len(best))
    sampled = {name: labels(best[name]).tolist() for name in parameters(best, varied=False)}
    num_images = images_of_interval(best, dataset)
    rows = []
    for position, (_, trial) in enumerate(best.iterrows()):
        text = texts[position] if texts else yaml.safe_dump(trial["config"], sort_keys=False, allow_unicode=True)
        rows.append(
            {
                "trial": trial,
                "interval": wilson_interval(trial["value"], num_images) if num_images else None,
                "sampled": {name: values[position] for name, values in sampled.items()},
                "yaml": text,
                "link": "data:application/yaml;base64," + base64.b64encode(text.encode()).decode(),
                "file": f"{file_name(study.study_name)}-rank{position + 1}.yaml",
            }
        )
    return rows


def _exports_of_best(study: optuna.Study, top: int) -> list[str]:
    """Return an export file of each of the best; none if an older version did not store what an export needs."""
    try:
        export = export_best(study, top=top)
    except StorageError:
        return []
    return [dump_export(export.model_copy(update={"configs": (config,)})) for config in export.configs]


def describe_workers(frame: pd.DataFrame) -> str:
    """Say how many workers there were, how busy they were, and what the timeline leaves out."""
    found = timeline(frame)
    if not found.num_lanes:
        return ""
    workers = f"{found.num_lanes} at a time" if found.is_derived else _count(found.num_lanes, "worker")
    text = f"{workers}, busy {found.busy:.0%} of {format_duration(found.seconds)}."
    if found.pauses:
        paused = format_duration(sum(seconds for _, seconds in found.pauses))
        text += f" {_count(len(found.pauses), 'pause')} of {paused} in all cut out (dotted lines)."
    if len(frame) > figures.MAX_BARS:
        text += f" The last {figures.MAX_BARS:,} trials are drawn."
    if found.is_derived:
        text += " The worker of each trial is not stored: the lanes are derived from the trials' times."
    return text


def failures(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the failed trials grouped by reason, the most frequent first, without those that were interrupted."""
    failed = frame[(frame["state"] == "fail") & (frame["failure_kind"] != FailureKind.INTERRUPTED)]
    failed = failed.fillna({"failure_kind": "not stored", "failure": "no reason is stored"})
    groups = [
        {
            "kind": kind,
            "message": message,
            "trials": rows["trial"].tolist(),
            "traceback": next(iter(rows["traceback"].dropna()), None),
        }
        for (kind, message), rows in failed.groupby(["failure_kind", "failure"], sort=False)
    ]
    return sorted(groups, key=lambda group: -len(group["trials"]))


def conditions(study: optuna.Study, frame: pd.DataFrame, dataset: dict[str, Any]) -> dict[str, str]:
    """Return machine, data, images, search, times, versions and commit, as far as they are stored."""
    config = stored_settings(study)
    data, search = config.get("data", {}), config.get("search", {})
    versions: dict[str, set[str]] = {}
    for environment in frame["environment"]:
        found = environment.get("versions", {}) | {"commit": environment.get("git_commit")}
        for name, version in found.items():
            versions.setdefault(name, set()).update([str(version)] if version else [])
    classes = [str(name) for name in dataset.get("class_names", ())]
    images = [f"{dataset[key]:,} {word}" for key, word in SPLITS.items() if key in dataset]
    what = "objectives" if search.get("objectives") else "metric"
    times = (frame["started"].min(), frame["ended"].max())
    rows = {
        "Device": ", ".join(sorted(set(frame["device"].dropna()))),
        "Data": str(data.get("root" if data.get("name") in ("folder", "arrays") else "name", "")),
        "Images": ", ".join(images) + (f"; {dataset['num_broken']} broken" if dataset.get("num_broken") else ""),
        "Image size": f"{dataset['in_channels']} x {dataset['image_size']} x {dataset['image_size']}" if images else "",
        "Classes": ", ".join(classes[:20]) + (f", ... ({len(classes)})" if len(classes) > 20 else ""),
        "Search": ", ".join(
            f"{key} {' and '.join(search[key]) if isinstance(search[key], list) else search[key]}"
            for key in ("sampler", "pruner", what, "seed")
            if key in search
        ),
        "Begun, ended": " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in times if not pd.isna(time)),
    }
    rows |= {name: ", ".join(sorted(found)) for name, found in versions.items()}
    return {name: value for name, value in rows.items() if value}


def percent(share: float) -> str:
    """Format a share in [0, 1]: `97.21%`."""
    return f"{share:.2%}"


def count(number: float) -> str:
    """Format a whole number: `12,345`; NaN stands for one that is not stored."""
    return "not stored" if math.isnan(number) else f"{number:,.0f}"


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
