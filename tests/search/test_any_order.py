"""A search disturbed in any order stays whole, in a short form: `tests/property_tests.py` draws many more sequences."""

from pathlib import Path

import pytest
from property_tests import run_sequences


@pytest.mark.slow
def test_search_disturbed_in_any_order_stays_whole(tmp_path: Path) -> None:
    counts = run_sequences(tmp_path, num_sequences=30, num_steps=20, is_same=True)
    assert counts["sequences to their end"] >= 30
