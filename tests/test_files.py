"""Files that a user names, what may be written over, and the names of files."""

import os
from pathlib import Path

import pytest

from fbsearch.errors import ConfigError
from fbsearch.files import FileKind, check_output, file_name, write_output

KIND = FileKind("export of fbsearch", b"format: fbsearch-export/")


@pytest.mark.parametrize("before", [None, "", "# mine\nformat: fbsearch-export/1\n"])
def test_write_output_writes_what_is_absent_empty_or_of_its_kind(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "best.yaml"
    if before is not None:
        path.write_text(before)
    write_output(path, "new", kind=KIND, force=False)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_write_output_over_another_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: mine")
    with pytest.raises(ConfigError, match=r"study.yaml: is there already, and is no export of fbsearch; --force"):
        write_output(path, "new", kind=KIND, force=False)
    assert path.read_text() == "name: mine"
    write_output(path, "new", kind=KIND, force=True)
    assert path.read_text() == "new"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("target", ["best.yaml", "absent", "/dev/null"])
def test_write_output_never_replaces_a_link(tmp_path: Path, target: str, force: bool) -> None:
    (tmp_path / "best.yaml").write_text("format: fbsearch-export/1")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="link: is a link"):
        write_output(tmp_path / "link", "new", kind=KIND, force=force)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "best.yaml").read_text() == "format: fbsearch-export/1"
    assert {path.name for path in tmp_path.iterdir()} == {"best.yaml", "link"}


@pytest.mark.parametrize("force", [False, True])
def test_check_output_never_takes_a_device_or_a_pipe(tmp_path: Path, force: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ConfigError, match="is no regular file"):
            check_output(path, kind=KIND, force=force)


HARMLESS = ["digits", "Äpfel-1.2", "a_b", "a.b", "写真", "x" * 200]
ODD = [
    "a b",
    "a/b",
    "a:b",
    "a\tb",
    "../../etc",
    "_.._etc ",
    "...",
    ".",
    ".a",
    "",
    "a.html",
    "\udcff",
    "写" * 150,
    "x" * 201,
]


def test_file_name_of_names_that_differ_differ(tmp_path: Path) -> None:
    assert [file_name(name) for name in HARMLESS] == HARMLESS, "as they always were"
    found = {file_name(name) for name in HARMLESS + ODD}
    assert len(found) == len(HARMLESS + ODD)
    assert found.isdisjoint({f"{name}.html" for name in found}), "a folder is no other's report"
    for name in found:
        # With the longest of what is added to it, and what write_whole adds for a moment.
        (tmp_path / f".{name}-rank10.html.{2**22}.partial").touch()


def test_file_name_of_an_odd_name_is_no_harmless_name() -> None:
    for name in ODD:
        assert "~" in file_name(name) and file_name(file_name(name)) != file_name(name)
