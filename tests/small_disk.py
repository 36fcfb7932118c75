"""A disk so small that a test can fill it: a tmpfs of its own, where the tests run as root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def mounted(folder: Path, *, size: str = "1m") -> Iterator[Path]:
    """Mount a disk of a size on an empty folder; the test is left out where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "fbsearch-test", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {ran.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full; deleting it makes room again."""
    path = folder / "fill"
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * PAGE)
    return path
