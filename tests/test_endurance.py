"""A search of short trials holds what it held before, in a short form: `tests/endurance.py` runs thousands."""

import json
from pathlib import Path

import endurance
import pytest


@pytest.mark.slow
def test_search_of_many_trials_keeps_no_file_and_no_thread_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/endurance.db"
    endurance.coordinate(url, num_trials=16, num_workers=2, every=4)
    found = json.loads(capsys.readouterr().out)
    held = [{key: sample[key] for key in sample if key.endswith(("files", "threads"))} for sample in found["samples"]]
    assert len(held) == 4 and held[1] == held[2] == held[3]
    assert endurance.check(url, num_trials=16) == []
