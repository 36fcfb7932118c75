"""What tests of the database share."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

HOLD = """
import sys, time
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
with claim_study(open_storage(sys.argv[1], create=True), sys.argv[2]):
    print("claimed", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(url: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has claimed the study `digits` of `url`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url, "digits"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()
