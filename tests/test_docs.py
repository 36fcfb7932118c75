"""The site of README and docs/ is built without a dead link, and what its sentences name is there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import optuna
import pydantic
import pytest
import typer

import fbsearch
from fbsearch.cli.app import app
from fbsearch.config.study_file import StudyConfig

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
# Options of other programs that pages name.
OTHER_OPTIONS = {"--nproc-per-node", "--address", "--help"}


def code_in_sentences(page: str) -> list[str]:
    """What stands between single backticks, outside blocks of code."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return [code.replace("\n", " ") for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Sphinx warns of each link and heading that is not there, in all pages, and of pages that no list has."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "questions.html").exists()


def test_readme_links_every_page() -> None:
    """So that each is one click away, and what a page links two."""
    assert {f"docs/{name}" for name in PAGES if name != "README.md"} <= set(
        re.findall(r"\]\(([^)#]+)", PAGES["README.md"])
    )


def test_command_line_and_python_are_twins() -> None:
    sections = re.compile(r"^## (.*)$", flags=re.MULTILINE)
    ours, theirs = (sections.findall(PAGES[name]) for name in ("command-line.md", "python.md"))
    assert ours == theirs and len(ours) >= 5


def test_questions_are_ten() -> None:
    numbers = re.findall(r"^## (\d+)\. .*\?$", PAGES["questions.md"], flags=re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]


def leaves(group: click.Command, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command by its words, with its options."""
    if isinstance(group, click.Group) or hasattr(group, "commands"):
        for name, command in group.commands.items():  # type: ignore[union-attr]
            yield from leaves(command, f"{path} {name}".strip())
    yield path, {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_are_there(page: str) -> None:
    """`fbsearch run --trials 100`, `bench race`, `--workers auto`: the command and its options are in its help."""
    known = dict(leaves(typer.main.get_command(app)))
    for code in code_in_sentences(page):
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code)) - OTHER_OPTIONS
        if (call := re.match(r"(?:.* )?fbsearch((?: [a-z][a-z-]*)+)", code)) and not call[1].startswith(" import"):
            words = call[1].split()
            named = next((known[" ".join(words[:n])] for n in (2, 1) if " ".join(words[:n]) in known), None)
            assert named is not None, f"{page}: {code}: no such command"
            assert options <= named, f"{page}: {code}: {options - named}"
        assert options <= set().union(*known.values()), f"{page}: {code}: no command has {options}"


@pytest.mark.parametrize("page", PAGES)
def test_python_in_sentences_is_there(page: str) -> None:
    """`fbsearch.search(...)`, `study.report()`, `model.save`: the package and its classes have these names."""
    fields = known_fields()["model"]
    homes = {
        "fbsearch": (fbsearch,),
        "study": (fbsearch.Study, optuna.Study),
        "model": (fbsearch.Model, fbsearch.FractalBrainNet),
    }
    for code in code_in_sentences(page):
        for home, name in re.findall(r"(?<![\w/.\"'-])(fbsearch|study|model)\.([A-Za-z_]\w*)", code):
            is_known = any(hasattr(owner, name) for owner in homes[home]) or (home == "model" and name in fields)
            is_file = name in ("db", "yaml", "onnx", "safetensors")
            assert is_known or is_file, f"{page}: {code}: {home} has no {name}"


def known_fields() -> dict[str, set[str]]:
    """The fields of each section of a study file."""
    sections = {name: field.annotation for name, field in StudyConfig.model_fields.items()}
    return {
        name: set(section.model_fields)
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, pydantic.BaseModel)
    }


@pytest.mark.parametrize("page", PAGES)
def test_fields_in_sentences_are_there(page: str) -> None:
    """`data.max_pixels`, `train.budget`: a study file has these keys."""
    fields = known_fields()
    assert fields["search"] >= {"sampler", "limits"}
    for code in code_in_sentences(page):
        for section, name in re.findall(r"^(data|train|search)\.([a-z_]+)", code):
            assert name in fields[section], f"{page}: {code}"
