"""Which code made a result: versions and commit, stored with every trial."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path


def coordinator_versions() -> dict[str, str]:
    """Versions of what runs in the coordinator."""
    return {name: importlib.metadata.version(name) for name in ("fbsearch", "optuna")}


@functools.cache
def git_commit() -> str | None:
    """The commit of fbsearch's own checkout, with + where it has changes; None where it is installed as a package."""
    folder = Path(__file__).resolve().parent.parent
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
