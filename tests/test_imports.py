"""The floors of the house: imports go strictly down, and what is heavy is loaded only where it is needed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "fbsearch"
FLOORS = {
    "errors": 0,
    "files": 0,
    "config": 1,
    "interruption": 1,
    "events": 1,
    "bench": 1,
    "distributed": 1,
    "patience": 1,
    "provenance": 2,
    "search_state": 2,
    "space": 2,
    "canonical": 2,
    "trust": 2,
    "optimizers": 2,
    "patterns": 2,
    "activations": 2,
    "folder": 2,
    "decode": 2,
    "augment": 2,
    "storage": 2,
    "batching": 2,
    "silence": 2,
    "tensorboard": 2,
    "guard": 2,
    "slots": 2,
    "fused": 2,
    "fractalnet": 2,
    "canvas": 2,
    "capture": 2,
    "study_file": 3,
    "cache": 3,
    "outcomes": 3,
    "split": 3,
    "baseline_nets": 3,
    "blocks": 3,
    "findings": 3,
    "timeline": 3,
    "charts": 3,
    "step": 3,
    "model": 4,
    "data": 4,
    "study": 4,
    "analyze": 4,
    "axes": 4,
    "sharing": 4,
    "study_export": 5,
    "faults": 5,
    "cost": 5,
    "figures": 5,
    "effects": 5,
    "winner": 5,
    "retrained": 5,
    "memory": 5,
    "proposals": 5,
    "train": 5,
    "attention": 5,
    "checkpoint": 5,
    "drawings": 5,
    "bench_nets": 5,
    "cooperation": 5,
    "sections": 6,
    "predict": 6,
    "runs": 6,
    "worker": 6,
    "corners": 6,
    "bench_step": 6,
    "analyze_export": 6,
    "probe": 6,
    "report": 7,
    "progress": 7,
    "results": 7,
    "executors": 7,
    "bench_model": 7,
    "bench_trial": 7,
    "plain_search": 7,
    "ray_executor": 8,
    "retrain": 8,
    "comparison": 8,
    "bench_plain": 8,
    "search": 8,
    "random_search": 9,
    "bench_search": 9,
    "dashboard": 9,
    "console": 9,
    "baselines": 10,
    "cli_options": 10,
    "cli_models": 11,
    "cli_workers": 11,
    "cli_bench": 11,
    "cli": 12,
    "__init__": 12,
    "__main__": 13,
}
NEVER_TORCH = [
    "study_export", "search_state", "interruption", "study", "outcomes", "canonical", "storage", "search",
    "executors", "console", "study_file", "space", "config", "cli", "batching", "cooperation", "sharing",
    "ray_executor", "slots", "patience", "silence", "faults",
]  # fmt: skip
NEVER_OPTUNA = [
    "worker", "train", "data", "model", "blocks", "fused", "cost", "augment", "cache", "decode", "folder",
    "patterns", "activations", "analyze", "tensorboard", "attention", "fractalnet", "baseline_nets", "runs",
    "progress", "results", "retrain", "random_search", "baselines", "comparison", "memory", "optimizers",
    "canonical", "step", "capture", "distributed", "probe",
]  # fmt: skip
FILES = sorted(FOLDER.rglob("*.py"))


class Imports(ast.NodeVisitor):
    """Every module that a file imports when it runs, as (dotted name, whether at module level)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bool]] = []
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:
        names = {getattr(part, "id", getattr(part, "attr", None)) for part in ast.walk(node.test)}
        for child in node.orelse if "TYPE_CHECKING" in names else [*node.body, *node.orelse]:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, self._depth == 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = ".".join(filter(None, ["fbsearch" if node.level else "", node.module]))
        if module == "fbsearch":  # from fbsearch import worker
            self.found += [(f"fbsearch.{alias.name}", self._depth == 0) for alias in node.names]
        else:
            self.found.append((module, self._depth == 0))


def imports(source: str) -> list[tuple[str, bool]]:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.found


def rooms(source: str) -> Iterator[str]:
    """The files of fbsearch that a source imports, at whatever depth."""
    for name, _ in imports(source):
        if name.split(".")[0] == "fbsearch":
            yield [*name.split("."), "__init__"][1]


def test_imports_finds_them_wherever_they_are() -> None:
    source = """
import os, fbsearch.a
from fbsearch.b import x
from . import c
from .d import y
if TYPE_CHECKING:
    import fbsearch.typed
elif True:
    import fbsearch.e
class A:
    def f(self):
        from fbsearch import g
try:
    import fbsearch
except ImportError:
    from fbsearch.h.i import z
"""
    assert list(rooms(source)) == ["a", "b", "c", "d", "e", "g", "__init__", "h"]
    assert {name for name, at_top in imports(source) if not at_top} == {"fbsearch.g"}


def test_files_all_have_a_floor() -> None:
    assert [path.name for path in FILES if path.parent != FOLDER] == [], "no sub-packages"
    assert {path.stem for path in FILES} <= FLOORS.keys(), "give a new file a purpose that no room has, and a floor"


def test_floors_are_those_of_the_table_that_contributors_read() -> None:
    table = re.findall(r"^\| (\d+) \| `(\w+)` \|", (FOLDER.parent / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    assert {name: int(floor) for floor, name in table} == FLOORS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_imports_go_strictly_down(path: Path) -> None:
    floor = FLOORS.get(path.stem, 0)
    imported = set(rooms(path.read_text(encoding="utf-8")))
    assert {name for name in imported if FLOORS.get(name, floor) >= floor} == set()


@pytest.mark.parametrize("name", NEVER_TORCH)
def test_coordinator_file_never_imports_torch(name: str) -> None:
    found = imports((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert [module for module, _ in found if module.split(".")[0] in ("torch", "torchvision")] == []


@pytest.mark.parametrize("name", NEVER_OPTUNA)
def test_worker_file_never_imports_optuna(name: str) -> None:
    found = imports((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert [module for module, _ in found if module.split(".")[0] in ("optuna", "sqlalchemy")] == []


def loaded(*command: str) -> set[str]:
    """The packages that a Python process has loaded when it ends."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True, timeout=120
    )
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_loaded_names_what_is_imported() -> None:
    assert {"sqlite3", "json"} <= loaded("-c", "import json, sqlite3.dbapi2")


def test_search_leaves_torch_out() -> None:
    packages = loaded("-c", "import fbsearch.search, fbsearch.console")
    assert {"fbsearch", "optuna", "rich"} <= packages
    assert {"torch", "torchvision", "sklearn", "pandas", "plotly"} & packages == set()


def test_worker_leaves_optuna_out() -> None:
    packages = loaded("-c", "import fbsearch.worker")
    assert {"fbsearch", "torch"} <= packages
    assert {"optuna", "optuna_dashboard", "sqlalchemy", "rich", "typer", "pandas", "plotly"} & packages == set()


def test_study_file_is_checked_without_anything_heavy() -> None:
    packages = loaded("-c", "from fbsearch.study_file import StudyConfig; StudyConfig()")
    assert {"fbsearch", "pydantic"} <= packages
    assert {"torch", "numpy", "optuna", "sqlalchemy"} & packages == set()


def test_help_leaves_everything_heavy_out() -> None:
    packages = loaded("-m", "fbsearch", "--help")
    assert {"fbsearch", "typer"} <= packages
    assert {"torch", "optuna", "pandas", "plotly", "numpy", "sqlalchemy", "sklearn"} & packages == set()
