"""The versions and the commit of the code that makes a trial."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path


def coordinator_versions() -> dict[str, str]:
    """Return the versions of the packages that run in the coordinator alone."""
    return {name: importlib.metadata.version(name) for name in ("fbsearch", "optuna")}


@functools.cache
def git_commit() -> str | None:
    """Return the commit of fbsearch's own checkout, with + if it has changes; None for an installed package."""
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
