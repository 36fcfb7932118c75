"""What a report says in words and tables of a study: headline, noise, what mattered, failures, conditions.

Takes the frame that `report.trials_frame` makes; gives plain values and plain text, which the page escapes.
"""

import base64
import math
from collections.abc import Iterator
from typing import Any

import optuna
import pandas as pd
import yaml
from pydantic import ValidationError

from fbsearch.config.export_file import dump_export
from fbsearch.errors import StorageError
from fbsearch.files import file_name
from fbsearch.report import figures
from fbsearch.report.statistics import (
    labels,
    parameters,
    ranked,
    saved_by_pruning,
    shared_epoch,
    short,
    wilson_interval,
)
from fbsearch.report.timeline import timeline
from fbsearch.study.export import export_best
from fbsearch.study.trial_record import INTERRUPTED

RANK_COMPARED = 5
SPLITS = {"num_train": "to train on", "num_val": "to choose by", "num_test": "set aside for the test"}


def headline(frame: pd.DataFrame, dataset: dict[str, Any]) -> dict[str, Any]:
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
            "infeasible": int(states.get("infeasible", 0)),
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
    rank = f"Rank {other['rank']:.0f} ({percent(other['value'])})"
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
        f"{percent(small['value'])}) with {count(small['num_parameters'])} parameters, {share:.0%} of the best one's."
    )


def say_importances(frame: pd.DataFrame, shares: pd.DataFrame) -> Iterator[str]:
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


def missing(frame: pd.DataFrame, dataset: dict[str, Any]) -> list[str]:
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


def top_rows(study: optuna.Study, best: pd.DataFrame, dataset: dict[str, Any]) -> list[dict[str, Any]]:
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


def say_workers(frame: pd.DataFrame) -> str:
    found = timeline(frame)
    if not found.num_lanes:
        return ""
    who = (
        f"{found.num_lanes} at a time"
        if found.is_derived
        else "1 worker"
        if found.num_lanes == 1
        else f"{found.num_lanes} workers"
    )
    text = f"{who}, busy {found.busy:.0%} of {duration(found.seconds)}."
    if found.pauses:
        pauses = "1 pause" if len(found.pauses) == 1 else f"{len(found.pauses)} pauses"
        text += f" {pauses} of {duration(sum(seconds for _, seconds in found.pauses))} in all cut out (dotted lines)."
    if len(frame) > figures.MAX_BARS:
        text += f" The last {figures.MAX_BARS:,} trials are drawn."
    if found.is_derived:
        text += " Lanes follow from the trials' times: which worker ran a trial is not stored."
    return text


def failures(frame: pd.DataFrame) -> list[dict[str, Any]]:
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


def conditions(study: optuna.Study, frame: pd.DataFrame, dataset: dict[str, Any]) -> dict[str, str]:
    """Machine, versions, commit, data and seed, as far as they are stored."""
    config = study.user_attrs.get("config", {})
    data, search = config.get("data", {}), config.get("search", {})
    versions: dict[str, set[str]] = {}
    for environment in frame["environment"]:
        found = environment.get("versions", {}) | {"commit": environment.get("git_commit")}
        for name, version in found.items():
            versions.setdefault(name, set()).update([str(version)] if version else [])
    classes = [str(name) for name in dataset.get("class_names", ())]
    images = [f"{dataset[key]:,} {word}" for key, word in SPLITS.items() if key in dataset]
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


def percent(share: float) -> str:
    return f"{share:.2%}"


def count(number: float) -> str:
    return "not stored" if math.isnan(number) else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds for people: 43 s, 3 min 12 s, 5 h 20 min, 2 d 4 h."""
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole:.0f} {unit} {rest // part:.0f} {below}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
