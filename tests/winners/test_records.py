"""Records of trained networks: what an earlier version wrote is read, written again byte for byte, and gone on with.

`retrained_before` holds what `fbsearch train best.yaml --top 2 --seeds 2 --epochs 1 --device cpu --baseline small
--baseline random_search` of commit ac1080b wrote, without the weights and the baseline `small`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fbsearch.errors import ConfigError
from fbsearch.winners.records import (
    Comparison,
    Draw,
    Retraining,
    SeedResult,
    read_record,
    to_csv,
    to_json,
)
from fbsearch.winners.results import summarize

BEFORE = Path(__file__).parent / "retrained_before" / "digits"
KINDS = {
    "*/seed-*/result.json": SeedResult,
    "summary.json": list[Retraining],
    "comparison.json": Comparison,
    "random-search/draw-*.json": Draw,
}
FILES = [(path, kind) for pattern, kind in KINDS.items() for path in sorted(BEFORE.glob(pattern))]


@pytest.mark.parametrize(
    ("path", "kind"), FILES, ids=lambda value: value.parent.name if isinstance(value, Path) else ""
)
def test_file_written_before_is_read_and_written_again_byte_for_byte(path: Path, kind: type) -> None:
    again = to_json(read_record(path, kind, way_out=""))
    if kind is Draw:  # its configuration gains the fields that have come since
        again = json.dumps(keep_keys_of(json.loads(path.read_bytes()), json.loads(again)), indent=1).encode()
    assert again == path.read_bytes()


def keep_keys_of(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {
        key: keep_keys_of(value, now[key]) if isinstance(value, dict) and isinstance(now[key], dict) else now[key]
        for key, value in before.items()
    }


def test_tables_written_before_have_the_same_columns_and_cells() -> None:
    rows = read_record(BEFORE / "summary.json", list[Retraining], way_out="")
    comparison = read_record(BEFORE / "comparison.json", Comparison, way_out="")
    assert rows is not None and to_csv([row.row() for row in rows]) == (BEFORE / "summary.csv").read_bytes()
    assert comparison is not None
    assert to_csv([row.model_dump() for row in comparison.rows]) == (BEFORE / "baselines.csv").read_bytes()


def test_folder_retrained_before_is_gone_on_with(fbsearch: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    shutil.copy(BEFORE.parent / "best.yaml", tmp_path)
    folder = tmp_path / "reports" / "digits"
    shutil.copytree(BEFORE, folder)
    summarize(folder)
    for name in ("summary.json", "summary.csv"):
        assert (folder / name).read_bytes() == (BEFORE / name).read_bytes()
    shutil.rmtree(folder / "rank-2" / "seed-4")
    arguments = ["train", "best.yaml", "--top", 2, "--seeds", 2, "--epochs", 1, "--device", "cpu"]
    code, output, errors = fbsearch(*arguments, "--baseline", "random_search", "--json")
    assert code == 0 and errors.count("(trained before)") == 5 and "rank 2, seed 4: epoch 1/1" in errors
    for path in (*BEFORE.glob("*/seed-*/result.json"), *BEFORE.glob("*/draw-*.json")):
        if "rank-2/seed-4" not in path.as_posix():
            assert (folder / path.relative_to(BEFORE)).read_bytes() == path.read_bytes()
    found, before = (json.loads((root / "comparison.json").read_text()) for root in (folder, BEFORE))
    assert json.loads(output)["comparison"] == found
    assert found["rows"][0] == before["rows"][0] and found["rows"][-1] == before["rows"][-1]
    assert found["rule"] == before["rule"] and found.keys() == before.keys()
    assert found["conditions"].keys() == before["conditions"].keys()
    assert (folder / "rank-2" / "seed-4" / "result.json").exists()


def test_read_record_of_a_damaged_file_names_the_fault_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert read_record(path, SeedResult, way_out="") is None
    for text, reason in {"{": "Invalid JSON", '{"format": "fbsearch-result/9"}': "format: Input should be"}.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"^{path}: cannot be read \({reason}.*\); delete it$"):
            read_record(path, SeedResult, way_out="delete it")
