"""Which code and which data made a result: versions and commit of each trial, a study's data."""

import dataclasses
import functools
import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

from fbsearch.errors import ConfigError
from fbsearch.messages import DatasetInfo


def coordinator_versions() -> dict[str, str]:
    """Versions of what runs in the coordinator."""
    return {name: importlib.metadata.version(name) for name in ("fbsearch", "optuna")}


@functools.cache
def git_commit() -> str | None:
    """The commit of fbsearch's own checkout, with + where it has changes; None where it is installed as a package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or a checkout without a commit
    return commit.stdout.strip()


def check_same_data(name: str, stored: dict[str, Any] | None, dataset: DatasetInfo) -> None:
    """ConfigError where the trials of the study `name` were trained on other data (`stored`) than there are now."""
    now = json.loads(json.dumps(dataclasses.asdict(dataset)))  # as the database gives it back: lists, not tuples
    if stored is None or stored == now:
        return
    changed = ", ".join(f"{key} {stored.get(key)} -> {now[key]}" for key in now if stored.get(key) != now[key])
    raise ConfigError(
        f"the data of the study {name!r} have changed since its trials were run ({changed}): their results cannot be "
        "compared; --name NAME starts a new study"
    )
