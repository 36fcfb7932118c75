"""The notebook of the tour runs, in a real kernel that spawns its workers, and shows what it says it shows."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "studies" / "tour.ipynb"


# What readers train for a minute, on fewer images: all that the cells do is done.
FEWER = {
    "images[:1000], labels[:1000]": "images[:160], labels[:160]",
    "images[1000:], labels[1000:]": "images[1700:], labels[1700:]",
    "images[:200], labels[:200]": "images[:120], labels[:120]",
}


def read_with_fewer_images() -> Any:
    """The notebook, whose cells take fewer images."""
    notebook = nbformat.read(TOUR, as_version=4)
    for before, after in FEWER.items():
        (cell,) = (cell for cell in notebook.cells if before in cell.source)
        cell.source = cell.source.replace(before, after)
    return notebook


def outputs(notebook: Any, source: str) -> str:
    """The outputs of the code cells with `source`, as text and HTML."""
    return str([cell.outputs for cell in notebook.cells if cell.cell_type == "code" and source in cell.source])


@pytest.mark.slow
def test_tour_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read_with_fewer_images()
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, startup_timeout=300, resources=place).execute()
    progress = outputs(notebook, "study = fbsearch.search")
    assert "<pre" in progress and "4/4" in progress
    assert "<svg" in outputs(notebook, "study") and "What mattered is not known" in outputs(notebook, "study")
    assert "test accuracy" in outputs(notebook, "study.train")
    assert (tmp_path / "studies" / "fbsearch.db").exists() and (tmp_path / "reports" / "tour.yaml").exists()


def test_tour_holds_no_outputs() -> None:
    """They would change with each run of it."""
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
