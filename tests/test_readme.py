"""The promises of README and docs/: each command runs, in the order it stands there, and their YAML and Python work."""

import itertools
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

from fbsearch.cli.app import app
from fbsearch.config.export_file import dump_export, load_export
from fbsearch.config.models import DataConfig
from fbsearch.config.study_file import load_study_file

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
COMMAND = re.compile(r"^    (?:pip install uv && )?uv run (.*?)\s*(?:#.*)?$", flags=re.MULTILINE)
MODEL = re.compile(r"^    MODEL=\$\(ls -d (\S+) \| head -n 1\)$", flags=re.MULTILINE)
COMMANDS = COMMAND.findall(README)
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PORTUGUESE = (ROOT / "README.pt-BR.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: the study files, and a small image tree where they look for one."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "studies").mkdir()
    for study in (ROOT / "studies").glob("*.yaml"):
        content = yaml.safe_load(study.read_text(encoding="utf-8"))
        content["train"] = content.get("train", {}) | {"epochs": 1, "budget": None}
        (folder / "studies" / study.name).write_text(yaml.safe_dump(content))
    for tree, part in itertools.product(("cifar10", "images"), ("train", "test")):
        for label, colour in {"cat": "red", "dog": "blue"}.items():
            place = folder / "data" / tree / part / label
            place.mkdir(parents=True)
            for number in range(12 if part == "train" else 2):
                Image.new("RGB", (32, 32), colour).rotate(number).save(place / f"{number}.png")
    return folder


def all_commands() -> dict[str, str]:
    """Each command of README and pages, once, with the pattern of the folders of which $MODEL is the first there."""
    commands: dict[str, str] = {}
    for page in (README, *DOCS.values()):
        model = ""
        for line in page.splitlines():
            model = next(iter(MODEL.findall(line)), model)
            commands |= {command: model for command in COMMAND.findall(line) if command not in commands}
    return commands


def blocks(language: str) -> list[str]:
    """The blocks of code in a language, of README and pages."""
    return [
        block
        for page in (README, *DOCS.values())
        for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    ]


def shorten(command: str, folder: Path, *, model: str = "") -> list[str]:
    """The command with few trials, epochs, seeds, configurations and workers; $MODEL as the shell sets it."""
    if "$MODEL" in command:
        command = command.replace("$MODEL", str(sorted(folder.glob(model))[0]))
    for flag, value in {"trials": 2, "workers": 1, "seeds": 1, "epochs": 1, "top": 1}.items():
        command = re.sub(rf"--{flag} \d+", f"--{flag} {value}", command)
    command = command.replace("--budget 10m", "--budget 30s --trials 2")
    return shlex.split(command)


def use_few_images(path: Path) -> None:
    """Let what is trained from an export, the large baselines too, see 100 images."""
    export = load_export(path)
    few = [config.model_copy(update={"data": DataConfig(limit=100)}) for config in export.configs]
    path.write_text(dump_export(export.model_copy(update={"configs": tuple(few)})), encoding="utf-8")


def test_readme_names_the_main_commands() -> None:
    assert COMMANDS[:2] == ["fbsearch run --trials 100", "pytest"]
    assert len([command for command in COMMANDS if command.startswith("fbsearch")]) >= 6


def test_security_names_only_files_that_exist() -> None:
    named = re.findall(r"`((?:fbsearch|tests)/[\w/]+\.py)`", SECURITY)
    assert len(named) > 10 and [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.slow
def test_readme_commands_run_in_order(
    folder: Path, fbsearch: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command in a process of its own, as the shell starts it, the others in this one."""
    monkeypatch.chdir(folder)
    (first, _), *others = all_commands().items()
    subprocess.run([sys.executable, "-m", *shorten(first, folder)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for command, model in others:
        program, *arguments = shorten(command, folder, model=model)
        if "--budget" in command:  # its search goes on with these trials, however busy the machine is
            assert fbsearch(*arguments[: arguments.index("--budget")], "--trials", "2")[0] == 0
        if program == "fbsearch":
            code, _, errors = fbsearch(*arguments)
            assert code == 0, f"{command}: {errors}"
            if command.startswith("fbsearch init my.yaml"):
                text = (folder / "my.yaml").read_text(encoding="utf-8")
                assert "{seconds: 10.0}" in text
                (folder / "my.yaml").write_text(text.replace("{seconds: 10.0}", "{seconds: 0.5}"), encoding="utf-8")
            if "--output best.yaml" in command:
                use_few_images(folder / "best.yaml")
        else:
            assert program in ("pytest", "optuna-dashboard"), command
    assert (folder / "best.yaml").exists()


@pytest.mark.slow
def test_readme_optuna_dashboard_shows_the_study(folder: Path) -> None:
    command = next(command for command in all_commands() if command.startswith("optuna-dashboard"))
    subprocess.run(
        [sys.executable, "-m", "fbsearch", "run", "--trials", "1", "--workers", "1"],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [program, *shlex.split(command)[1:], "--port", str(port)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert '"study_name": "digits"' in fetch(f"http://127.0.0.1:{port}/api/studies")
    finally:
        server.kill()
        server.wait()


def fetch(url: str) -> str:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")


@pytest.mark.parametrize("block", blocks("yaml"))
def test_readme_study_file_can_be_loaded(block: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(block)
    assert load_study_file(tmp_path / "study.yaml").data.name == "folder"


@pytest.mark.slow
def test_readme_python_runs_as_a_script(folder: Path) -> None:
    """The blocks one after another, as a script without a guard, which runs once although its workers are spawned."""
    script = "\n".join(["print('the script runs', flush=True)", *blocks("python")])
    for argument, value in {"trials": "1, workers=1, study='studies/folder.yaml'", "seeds": "1", "epochs": "1"}.items():
        script = re.sub(rf"{argument}=\d+", f"{argument}={value}", script)
    (folder / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True, timeout=600
    )
    assert done.stdout.count("the script runs") == 1
    assert "import fbsearch" in README and (folder / "model" / "model.yaml").exists()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(re.findall(r"^\| `(.* study\.yaml.*)` \|", README, flags=re.MULTILINE), id="README"),
        pytest.param("".join(blocks("sh")).splitlines(), id="docs"),
    ],
)
def test_readme_cluster_commands_are_understood(lines: list[str]) -> None:
    """They need eight GPUs or several machines, so here they are only parsed; other tests run them on what there is."""
    run = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line, comments=True)
        program, command, *arguments = words[1:] if words[0].startswith("FBSEARCH_STORAGE=") else words
        assert (program, command) == ("fbsearch", "run"), line
        assert run.make_context("run", arguments).params["study_file"] == Path("study.yaml"), line


def test_readme_has_no_gap_left() -> None:
    assert not any("@@" in page for page in (README, *DOCS.values()))


def test_readme_is_short() -> None:
    """A first reader gets the whole of it; what is longer has a page in docs/."""
    assert len(README.split()) < 1200


def test_readme_portuguese_has_the_same_commands_in_the_same_order() -> None:
    assert COMMAND.findall(PORTUGUESE) == COMMANDS


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(r"^```.*?^```$", id="fenced code"),
        pytest.param(r"^    .*$", id="indented code"),
        pytest.param(r"^<!-- .* -->$", id="comments"),
        pytest.param(r"^(#+) ", id="sections"),
        pytest.param(r"^- ", id="list items"),
        pytest.param(r"^(\| (?:`[^`]*`(?:, )?)+ \|)", id="table rows"),
    ],
)
def test_readme_portuguese_has_the_same_parts(part: str) -> None:
    pattern = re.compile(part, flags=re.MULTILINE | (re.DOTALL if part.startswith("^```") else 0))
    assert pattern.findall(README)
    assert pattern.findall(PORTUGUESE) == pattern.findall(README)


def test_readme_portuguese_has_the_same_code_in_its_sentences() -> None:
    ours, theirs = (sorted(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)) for text in (PORTUGUESE, README))
    assert ours == theirs


def test_readme_portuguese_has_the_same_links_and_pictures() -> None:
    ours, theirs = (re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", text) for text in (PORTUGUESE, README))
    assert ours[0] == ("", "README.md")
    assert theirs[0] == ("", "README.pt-BR.md")
    assert ours[1:] == theirs[1:]


def test_command_reference_is_what_the_generator_gives(tmp_path: Path) -> None:
    command = "typer fbsearch.cli.app utils docs --name fbsearch --title Commands --output"
    subprocess.run(
        [sys.executable, "-m", *shlex.split(command), tmp_path / "commands.md"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    wanted = (tmp_path / "commands.md").read_text(encoding="utf-8")
    assert DOCS["commands.md"] == wanted, f"the commands have changed: uv run {command} docs/commands.md"
