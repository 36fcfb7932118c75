"""The rules of the house: which folder may import which, and what is loaded only where it is needed.

The table of folders is the one that contributors read, in CONTRIBUTING.md.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fbsearch"
FILES = sorted(PACKAGE.rglob("*.py"))
# Packages of one row's word: who leaves out torch leaves out what loads it.
HEAVY = {"torch": {"torch", "torchvision", "safetensors"}, "optuna": {"optuna", "optuna_dashboard", "sqlalchemy"}}

HEAVY_TO_IMPORT = {
    "torch", "optuna", "pandas", "plotly", "numpy", "sqlalchemy", "sklearn", "pydantic", "yaml", "rich",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One row of the table: folders and files (`folder.file`) that a folder may import, and packages it never loads."""

    may_import: frozenset[str]
    never_loads: frozenset[str]


def read_rules() -> dict[str, Rule]:
    """The table of CONTRIBUTING.md: | `folder` | `a` `b` | `torch` |."""
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The house")[2]
    rows = re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|([^|]*)\|$", section, flags=re.MULTILINE)
    folders = frozenset(name for name, _, _ in rows)

    def words(text: str) -> frozenset[str]:
        return folders if text.strip() == "all" else frozenset(re.findall(r"`([\w.]+)`", text))

    return {name: Rule(words(may_import), words(never_loads)) for name, may_import, never_loads in rows}


RULES = read_rules()


def folder_of(path: Path) -> str:
    """The folder of a file below `fbsearch`, by which the table names it; empty for a file of the root."""
    return path.parent.relative_to(PACKAGE).as_posix().removeprefix(".")


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
        assert node.level == 0, "imports are absolute"
        for alias in node.names:  # from fbsearch.network import model: the module, not the folder, is what is loaded
            self.found.append((f"{node.module}.{alias.name}", self._depth == 0))


def imports(source: str) -> list[tuple[str, bool]]:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor.found


def imported_files(source: str) -> Iterator[str]:
    """The files of fbsearch that a source imports, as `folder.file`, at any depth; files of the root are left out."""
    for name, _ in imports(source):
        parts = name.split(".")
        if parts[0] == "fbsearch" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
            yield ".".join(parts[1:3])


def is_allowed(file: str, *, rule: Rule) -> bool:
    """Whether the table lets `folder.file` be imported."""
    return bool({file, file.partition(".")[0]} & rule.may_import)


def test_imports_are_found_wherever_they_are() -> None:
    source = """
import os, fbsearch.study.database
from fbsearch.config.models import ModelConfig
from fbsearch.errors import ConfigError
if TYPE_CHECKING:
    import fbsearch.bench.model
elif True:
    import fbsearch.network.model
class A:
    def f(self):
        from fbsearch.winners import plan
try:
    import fbsearch
except ImportError:
    from fbsearch import search
"""
    found = ["study.database", "config.models", "network.model", "winners.plan", "search"]
    assert list(imported_files(source)) == found
    assert {name for name, at_top in imports(source) if not at_top} == {"fbsearch.winners.plan"}


def test_table_has_a_row_for_each_folder() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == RULES.keys()
    assert {path.stem for path in FILES if path.parent == PACKAGE} == {
        "__init__", "__main__", "errors", "files", "messages",
    }, "a new file goes into a folder"  # fmt: skip


def test_table_has_no_circles() -> None:
    left = {name: {word.partition(".")[0] for word in rule.may_import} for name, rule in RULES.items() if name != "cli"}
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_imports_what_its_folder_may(path: Path) -> None:
    folder, imported = folder_of(path), set(imported_files(path.read_text(encoding="utf-8")))
    if folder:
        others = {file for file in imported if file.partition(".")[0] != folder}
        assert {file for file in others if not is_allowed(file, rule=RULES[folder])} == set()
    else:  # files of the root are for all; the two that offer the package's names and its commands look up
        assert path.stem in ("__init__", "__main__") or imported == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_never_loads_what_its_folder_leaves_out(path: Path) -> None:
    rule = RULES.get(folder_of(path), Rule(frozenset(), frozenset({"torch", "optuna"})))
    forbidden = {package for word in rule.never_loads for package in HEAVY[word]}
    found = {name.split(".")[0] for name, _ in imports(path.read_text(encoding="utf-8"))}
    assert found & forbidden == set()


def loaded(*command: str) -> set[str]:
    """The packages that a Python process has loaded when it ends."""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True, timeout=240
    )
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_loaded_names_what_is_imported() -> None:
    assert {"sqlite3", "json"} <= loaded("-c", "import json, sqlite3.dbapi2")


def test_search_leaves_torch_out() -> None:
    packages = loaded("-c", "import fbsearch; fbsearch.search, fbsearch.open_study; import fbsearch.cli.status")
    assert {"fbsearch", "optuna", "rich"} <= packages
    assert {"torch", "torchvision", "sklearn", "pandas", "plotly"} & packages == set()


@pytest.mark.slow
def test_worker_leaves_optuna_out() -> None:
    packages = loaded("-c", "import fbsearch.workers.worker")
    assert {"fbsearch", "torch"} <= packages
    assert {"optuna", "optuna_dashboard", "sqlalchemy", "rich", "typer", "pandas", "plotly"} & packages == set()


def test_study_file_is_checked_without_anything_heavy() -> None:
    packages = loaded("-c", "from fbsearch.config.study_file import StudyConfig; StudyConfig()")
    assert {"fbsearch", "pydantic"} <= packages
    assert {"torch", "numpy", "optuna", "sqlalchemy"} & packages == set()


def test_package_names_what_it_has_and_loads_nothing() -> None:
    names = ["FractalBrainNet", "FractalBrainNetClassifier", "Model", "Study", "load_model", "open_study", "search"]
    packages = loaded("-c", f"import fbsearch; assert {{*{names}}} <= {{*dir(fbsearch)}} == {{*fbsearch.__all__}}")
    assert packages & HEAVY_TO_IMPORT == set() and "typer" not in packages


def test_package_keeps_its_search_beside_the_folder_of_that_name() -> None:
    import fbsearch.search.state

    assert fbsearch.search.__module__ == "fbsearch.api.search" and callable(fbsearch.search)
    assert {*dir(fbsearch)} == {*fbsearch._HOMES}
    with pytest.raises(AttributeError, match="has no attribute 'load_study'"):
        fbsearch.load_study  # noqa: B018


def test_help_leaves_everything_heavy_out() -> None:
    packages = loaded("-m", "fbsearch", "--help")
    assert {"fbsearch", "typer"} <= packages
    assert HEAVY_TO_IMPORT & packages == set()
