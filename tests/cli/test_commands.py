"""The command line where nothing is trained: help, exit codes, what is said of wrong usage and of what is not there."""

import csv
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
import typer
from made_studies import make_study
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from fbsearch.cli.app import app
from fbsearch.config.export_file import load_export
from fbsearch.config.study_file import StudyConfig, load_study_file, render_study
from fbsearch.study.database import open_storage
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, stored_config
from fbsearch.study.trial_record import fail
from fbsearch.winners.plan import choose_configs
from fbsearch.workers.executor import num_gpus

COMMANDS = [
    "run", "status", "export", "report", "init", "validate", "schema", "dashboard", "watch", "studies",
    "train", "predict", "export-model", "summary", "analyze", "patterns", "bench",
]  # fmt: skip
PROGRAM = Path(sys.executable).with_name("fbsearch")
PASSWORD = "geheim"
Fbsearch = Callable[..., tuple[int, str, str]]


def program(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the installed command in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "FBSEARCH_STORAGE"}
    return subprocess.run(
        [PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


PASSWORD_NOTE = "note: --storage shows its password in the process list; $FBSEARCH_STORAGE does not\n"


def error_of(result: tuple[int, str, str]) -> str:
    """The message of a command that failed by the user's fault."""
    code, output, errors = result
    assert (code, output) == (1, "")
    errors = errors.removeprefix(PASSWORD_NOTE)
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    return errors.removeprefix("error: ").removesuffix("\n")


@pytest.fixture
def searched(url: str, storage: RDBStorage) -> str:
    """The URL of a database with two studies, the newest with five trials as a search leaves them."""
    create_study(storage, StudyConfig(name="older"))
    config = StudyConfig()
    study = create_study(storage, config)
    study.set_user_attr("dataset", {"num_classes": 10, "in_channels": 1, "image_size": 8, "num_train": 1150})
    for value in (0.5, 0.9, 0.7, None, None):
        trial = study.ask()
        values = sample(trial, config)
        trial.set_user_attr("config", config.trial(values, seed=trial.number).model_dump(mode="json"))
        attributes = {
            "num_parameters": 1234,
            "flops": 5678,
            "seconds": 1.5,
            "environment": {"versions": {"torch": "2"}},
        }
        for key, attribute in attributes.items():
            trial.set_user_attr(key, attribute)
        if value is not None:
            study.tell(trial, value)
    study.tell(3, state=optuna.trial.TrialState.PRUNED)
    fail(study, 4, kind="non_finite_loss", message="the loss is nan")
    return url


# Help and usage.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_its_options(fbsearch: Fbsearch, command: str) -> None:
    code, output, errors = fbsearch(command, "--help")
    assert (code, errors) == (0, "")
    assert output.startswith(f"Usage: fbsearch {command} ")
    flags = {
        "run": [
            "--trials",
            "--budget",
            "--output",
            "--workers",
            "--device",
            "--storage",
            "--timeout",
            "--seed",
            "--name",
            "--json",
        ],
        "status": ["--storage", "--json"],
        "export": ["--top", "--output", "--format", "--storage"],
        "report": ["--top", "--output", "--open", "--static", "--storage"],
        "init": ["--force"],
        "dashboard": ["--storage", "--port"],
        "patterns": ["--output", "--size"],
    }
    assert [flag for flag in flags.get(command, []) if flag not in output] == []


def test_help_lists_all_commands_in_groups_with_whole_summaries(fbsearch: Fbsearch) -> None:
    code, output, _ = fbsearch("--help")
    assert code == 0
    groups = dict(re.findall(r"^(\w+):\n((?:  .*\n)+)", output, flags=re.MULTILINE))
    assert list(groups) == ["Options", "Search", "Look", "Use", "Measure"]
    listed = [name for head in groups if head != "Options" for name in re.findall(r"(?m)^  ([a-z-]+)", groups[head])]
    assert sorted(listed) == sorted(COMMANDS) and "..." not in output.partition("Search:")[2]


def test_help_of_every_command_has_an_example_that_can_be_parsed() -> None:
    for words, command in walk_commands(typer.main.get_command(app), []):
        line = (command.epilog or "").removeprefix("Example: `").removesuffix("`")
        before = ["fbsearch", *words]
        assert line.split()[: len(before)] == before, line
        assert len(line) < 66, "it is not wrapped at 80 columns"
        arguments = shlex.split(line.partition(" > ")[0])[len(before) :]
        command.make_context(words[-1], arguments)


def walk_commands(group: Any, words: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Yield the words and the object of each command that is not hidden."""
    for name, command in group.commands.items():
        if name != "bench" and not command.hidden:
            yield [*words, name], command
        if hasattr(command, "commands"):
            yield from walk_commands(command, [*words, name])


def test_completion_knows_the_commands(tmp_path: Path) -> None:
    words = {"_FBSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "fbsearch stu", "COMP_CWORD": "1"}
    shown = subprocess.run([PROGRAM], cwd=tmp_path, env=os.environ | words, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["studies"]


def test_help_of_the_installed_command(tmp_path: Path) -> None:
    shown = program("--help", folder=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Find the best FractalBrainNet for your images." in shown.stdout
    assert list(tmp_path.iterdir()) == []


def test_version_is_the_installed_one(fbsearch: Fbsearch) -> None:
    assert fbsearch("--version") == (0, "fbsearch 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--trials", "0"], "--trials"),
        (["run", "--trials", "-3"], "--trials"),
        (["run", "--trials", "many"], "--trials"),
        (["run", "--workers", "many"], "'many' is neither auto nor a number"),
        (["run", "--workers", "-1"], "'-1' is neither auto nor a number"),
        (["run", "--workers", "1.5"], "'1.5' is neither auto nor a number"),
        (["run", "--timeout", "-1"], "--timeout"),
        (["run", "--seed", "-1"], "--seed"),
        (["run", "--trails", "3"], "--trails"),
        (["run", "a.yaml", "b.yaml"], "b.yaml"),
        (["export", "--top", "0"], "--top"),
        (["export", "--format", "xml"], "'xml'"),
        (["export", "--trial", "1", "--top", "2"], "--trial"),
        (["export", "--trial", "1", "--format", "csv"], "--trial"),
        (["dashboard", "--port", "0"], "--port"),
        (["patterns", "--size", "0"], "--size"),
        (["init"], "file"),
        (["validate"], "study_file"),
        (["runn"], "runn"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_names_it(fbsearch: Fbsearch, tmp_path: Path, arguments: list[str], named: str) -> None:
    code, output, errors = fbsearch(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("Usage: fbsearch")
    assert named.lower() in errors.lower()
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help(fbsearch: Fbsearch) -> None:
    code, output, errors = fbsearch()
    assert code == 2
    assert "Search:" in output + errors


# init, schema, validate.


def test_init_writes_the_default_study_and_says_what_is_next(fbsearch: Fbsearch, tmp_path: Path) -> None:
    code, output, errors = fbsearch("init", "a/study.yaml")
    assert (code, errors) == (0, "")
    assert "fbsearch validate a/study.yaml" in output
    assert (tmp_path / "a" / "study.yaml").read_text(encoding="utf-8") == render_study(StudyConfig())
    assert load_study_file(tmp_path / "a" / "study.yaml") == StudyConfig()


def test_init_over_a_file_needs_force(fbsearch: Fbsearch, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("mine")
    assert error_of(fbsearch("init", "study.yaml")) == "study.yaml: is there already; --force writes over it"
    assert path.read_text() == "mine"
    assert fbsearch("init", "study.yaml", "--force")[0] == 0
    assert load_study_file(path) == StudyConfig()


@pytest.mark.parametrize("target", ["folder", "file/study.yaml"])
def test_init_where_no_file_can_be_says_so(fbsearch: Fbsearch, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert error_of(fbsearch("init", target, "--force")).startswith(f"{target}: cannot be written: ")


def test_schema_is_valid_and_takes_the_default_study(fbsearch: Fbsearch) -> None:
    code, output, errors = fbsearch("schema")
    assert (code, errors) == (0, "")
    schema = json.loads(output)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(StudyConfig().model_dump(mode="json", exclude={"space"}), schema)


def test_validate_good_file_says_what_its_corners_cost(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("space: {model.fractal_levels: {num_stages: [1], level: [1, 2]}}")
    code, output, errors = fbsearch("validate", "study.yaml")
    assert (code, errors) == (0, "")
    assert output.startswith("study.yaml: fine; 2 corners of the space build on 1 x 8 x 8 images: ")


def test_validate_reads_the_images_and_says_what_it_found(
    fbsearch: Fbsearch, tmp_path: Path, make_tree: Callable[..., Path]
) -> None:
    make_tree(train={"a": 5, "b": 3}, test={"a": 1, "b": 1})
    study = "data: {name: folder, root: tree}\nspace: {model.fractal_levels: {num_stages: [1], level: [1]}}"
    (tmp_path / "study.yaml").write_text(study)
    code, output, errors = fbsearch("validate", "study.yaml")
    assert code == 0, errors
    assert output.splitlines()[1] == (
        "data: 2 classes, 6 / 2 / 2 images to train / validate / test, 20 x 20 colour, smallest class 'b': 2 to train, "
        "0 broken, 0 duplicates in two classes"
    )
    (tmp_path / "tree" / "train" / "a" / "0001.png").write_bytes(b"no image")
    code, output, errors = fbsearch("validate", "study.yaml")
    assert (code, output) == (1, "") and "error: data.root: 1 broken image: " in errors
    assert "a/0001.png" in errors and "skip_broken: true" in errors


@pytest.mark.parametrize("parts", [{}, {"train": {"a": 3}}, {"train": {"a": 3, "b": 1}}])
def test_run_bad_data_root_is_told_before_there_is_a_study(
    fbsearch: Fbsearch, tmp_path: Path, make_tree: Callable[..., Path], parts: dict[str, Any]
) -> None:
    make_tree(**parts)
    (tmp_path / "study.yaml").write_text("data: {name: folder, root: tree}")
    assert error_of(fbsearch("run", "study.yaml", "--workers", "0")).startswith("data.root: ")
    assert not (tmp_path / "studies").exists()


@pytest.mark.slow
def test_run_with_few_open_files_allowed_says_so_before_there_is_a_study(tmp_path: Path) -> None:
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -n 14; exec {PROGRAM} run --workers 2 --device cpu"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stderr.startswith("error: --workers 2: ") and "ulimit -n 40" in ended.stderr
    assert "Traceback" not in ended.stderr and list(tmp_path.iterdir()) == []


def test_validate_bad_file_shows_all_its_errors(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("train: {epocs: 3}\nmodel: {base_channels: 10}")
    message = error_of(fbsearch("validate", "study.yaml"))
    assert message.splitlines() == [
        "study.yaml: model.base_channels: input should be a multiple of 4, found 10",
        "study.yaml: train.epocs: unknown key; did you mean epochs?",
    ]


# The user's faults.


@pytest.mark.parametrize("command", ["run", "validate"])
def test_study_file_that_is_not_there_names_init(fbsearch: Fbsearch, tmp_path: Path, command: str) -> None:
    message = error_of(fbsearch(command, "none.yaml"))
    assert message == "none.yaml: no such file; `fbsearch init none.yaml` writes one"
    assert list(tmp_path.iterdir()) == []


def test_run_bad_study_file_makes_no_database(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("space: {train.learning_rate: {low: 0, high: 1, log: true}}")
    message = error_of(fbsearch("run", "study.yaml"))
    assert message == (
        "study.yaml: space.train.learning_rate: log needs a low above 0, not 0: the logarithm of 0 does not exist"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_run_cuda_without_one_says_what_works(fbsearch: Fbsearch, tmp_path: Path, device: str) -> None:
    if num_gpus():
        pytest.skip("there is a CUDA device")
    message = error_of(fbsearch("run", "--device", device))
    assert message == f"--device {device}: there is no CUDA device here; --device cpu (or auto) works without one"
    assert list(tmp_path.iterdir()) == []


def test_run_device_of_no_known_kind_says_so(fbsearch: Fbsearch, tmp_path: Path) -> None:
    message = error_of(fbsearch("run", "--device", "tpu"))
    assert "no such kind of device; write auto, cpu, cuda or cuda:N" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_run_name_that_a_study_cannot_have_is_refused(fbsearch: Fbsearch, name: str) -> None:
    code, _, message = fbsearch("run", "--name", name)
    assert code == 2 and "--name" in message and "1 to 200 characters" in message


@pytest.mark.parametrize("command", ["status", "export", "dashboard"])
def test_reading_without_a_database_names_run(fbsearch: Fbsearch, tmp_path: Path, command: str) -> None:
    message = error_of(fbsearch(command))
    assert message == "studies/fbsearch.db: no such database; `fbsearch run` makes one, --storage names another"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "export"])
def test_reading_an_empty_database_names_run(fbsearch: Fbsearch, tmp_path: Path, command: str) -> None:
    (tmp_path / "x.db").touch()
    message = error_of(fbsearch(command, "--storage", "sqlite:///x.db"))
    assert message == "x.db: is empty, there is no study in it; `fbsearch run` fills it"


@pytest.mark.parametrize("command", ["status", "export"])
def test_reading_a_database_without_a_study_names_run(
    fbsearch: Fbsearch, url: str, storage: RDBStorage, command: str
) -> None:
    message = error_of(fbsearch(command, "--storage", url))
    assert message == "there is no study in this database yet; `fbsearch run` makes one"


@pytest.mark.parametrize("command", ["status", "export"])
def test_reading_an_unknown_study_lists_what_there_is(fbsearch: Fbsearch, searched: str, command: str) -> None:
    message = error_of(fbsearch(command, "nope", "--storage", searched))
    assert message == "there is no study 'nope' in this database; there are: older, digits"


def test_storage_from_the_environment_is_used(fbsearch: Fbsearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBSEARCH_STORAGE", "sqlite:///elsewhere.db")
    assert error_of(fbsearch("status")).startswith("elsewhere.db: no such database")


def test_storage_wrong_scheme_is_one_line_without_the_password(fbsearch: Fbsearch) -> None:
    message = error_of(fbsearch("status", "--storage", f"mysql://me:{PASSWORD}@host/db"))
    assert message.startswith(
        "--storage mysql://me:***@host/db: cannot use 'mysql'; write sqlite:///FILE or postgresql"
    )
    assert "\n" not in message


@pytest.fixture
def unreachable() -> str:
    """The URL of a PostgreSQL server on a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"postgresql://me:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}/db"


def test_storage_unreachable_server_is_one_line_without_the_password(fbsearch: Fbsearch, unreachable: str) -> None:
    message = error_of(fbsearch("status", "--storage", unreachable))
    assert message.endswith("the database server cannot be reached; check host, port, name and password")
    assert PASSWORD not in message
    assert "\n" not in message


def test_debug_shows_the_traceback_but_not_the_password(tmp_path: Path, unreachable: str) -> None:
    shown = program("--debug", "status", "--storage", unreachable, folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "Traceback (most recent call last)" in shown.stderr
    assert "fbsearch.errors.StorageError: postgresql://me:***@127.0.0.1" in shown.stderr
    assert PASSWORD not in shown.stderr


def test_error_of_the_installed_command_is_one_line(tmp_path: Path) -> None:
    shown = program("status", folder=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == (
        "error: studies/fbsearch.db: no such database; `fbsearch run` makes one, --storage names another\n"
    )


# status and export of what a search has left.


def test_status_json_is_one_object_with_the_documented_keys(fbsearch: Fbsearch, searched: str) -> None:
    code, output, errors = fbsearch("status", "--json", "--storage", searched)
    assert (code, errors) == (0, "")
    content = json.loads(output)
    assert {"study", "storage", "num_complete", "num_pruned", "num_failed", "num_running", "best"} <= content.keys()
    assert (content["study"], content["storage"]) == ("digits", searched)
    counts = [content[f"num_{kind}"] for kind in ("complete", "pruned", "failed", "running")]
    assert counts == [3, 1, 1, 0]
    assert content["best"].keys() == {"trial", "value", "values", "config"}
    assert (content["best"]["trial"], content["best"]["value"]) == (1, 0.9)


def test_status_json_without_a_trial_has_no_best(fbsearch: Fbsearch, searched: str) -> None:
    _, output, _ = fbsearch("status", "older", "--json", "--storage", searched)
    assert json.loads(output)["best"] is None


def test_status_for_people_says_the_same(fbsearch: Fbsearch, searched: str) -> None:
    code, output, _ = fbsearch("status", "--storage", searched)
    assert code == 0
    assert "3 complete, 1 pruned, 1 failed, 0 running" in output
    assert "90.00%" in output
    assert "trial 1" in output


def test_export_yaml_is_the_best(fbsearch: Fbsearch, searched: str, tmp_path: Path) -> None:
    code, output, _ = fbsearch("export", "--top", 2, "--output", "out/best.yaml", "--storage", searched)
    assert (code, output) == (0, "out/best.yaml: the best 2 configurations of the study 'digits'\n")
    export = load_export(tmp_path / "out" / "best.yaml")
    assert [(config.trial, config.value) for config in export.configs] == [(1, 0.9), (2, 0.7)]


def test_export_of_a_trial_is_its_configuration_with_its_rank(
    fbsearch: Fbsearch, searched: str, tmp_path: Path
) -> None:
    code, output, _ = fbsearch("export", "--trial", 0, "--storage", searched)
    assert (code, output) == (0, "trial-0.yaml: trial 0, rank 3, of the study 'digits'\n")
    export = load_export(tmp_path / "trial-0.yaml")
    (found,) = export.configs
    assert (found.trial, found.rank, found.value, found.seed) == (0, 3, 0.5, 0)
    assert choose_configs(export, tmp_path, rank=None, top=None) == (found,), "`train` takes the only one"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (3, "was pruned after epoch 0"),
        (4, "failed: the loss is nan"),
        (5, "there is no trial 5 of the study 'digits'; its trials are 0 to 4"),
    ],
)
def test_export_of_a_trial_without_a_score_says_why_not(
    fbsearch: Fbsearch, searched: str, tmp_path: Path, number: int, reason: str
) -> None:
    assert reason in error_of(fbsearch("export", "--trial", number, "--storage", searched))
    assert not (tmp_path / f"trial-{number}.yaml").exists()


def test_export_csv_and_json_are_all_trials(fbsearch: Fbsearch, searched: str, tmp_path: Path) -> None:
    for kind in ("csv", "json"):
        code, output, _ = fbsearch("export", "--format", kind, "--output", f"all.{kind}", "--storage", searched)
        assert (code, output) == (0, f"all.{kind}: 5 trials of the study 'digits'\n")
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = json.loads((tmp_path / "all.json").read_text())
    states = ["complete", "complete", "complete", "pruned", "fail"]
    assert [row["state"] for row in rows] == [record["state"] for record in records] == states
    assert [float(row["value"]) for row in rows[:3]] == [record["value"] for record in records[:3]] == [0.5, 0.9, 0.7]
    assert rows[4]["failure"] == records[4]["failure"] == "the loss is nan"
    assert float(rows[0]["train.learning_rate"]) == pytest.approx(records[0]["train.learning_rate"], rel=1e-6)


def test_export_before_a_trial_is_complete_writes_nothing(fbsearch: Fbsearch, searched: str, tmp_path: Path) -> None:
    message = error_of(fbsearch("export", "older", "--storage", searched))
    assert message == "the study 'older' has no complete trial yet; `fbsearch run` goes on with it"
    assert not (tmp_path / "best.yaml").exists()


def test_export_to_a_folder_says_so(fbsearch: Fbsearch, searched: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    message = error_of(fbsearch("export", "--output", "folder", "--storage", searched))
    assert message == "folder: cannot be written: Is a directory"


def test_run_changed_settings_say_what_changed_and_train_nothing(
    fbsearch: Fbsearch, searched: str, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text("train: {epochs: 3}")
    result = fbsearch("run", "study.yaml", "--device", "cpu", "--workers", "1", "--storage", searched)
    lines = error_of(result).splitlines()
    assert lines[1:] == [
        "  train.epochs: 6 -> 3",
        "their results cannot be compared; --name NAME starts a new study with these settings",
    ]
    opened = open_storage(searched)
    assert len(optuna.load_study(storage=opened, study_name="digits").trials) == 5
    opened.engine.dispose()


def test_run_of_a_finished_study_says_so_and_what_is_next(fbsearch: Fbsearch, url: str, storage: RDBStorage) -> None:
    study = make_study(storage, 9)
    failure = {"kind": "over_limits", "message": "too many parameters"}
    study.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, user_attrs={"failure": failure}))
    Path("study.yaml").write_text(render_study(stored_config(study)))
    code, output, errors = fbsearch("run", "study.yaml", "--trials", "9", "--device", "cpu", "--storage", url)
    lines = output.splitlines()
    assert code == 0, errors
    assert lines[0] == "already finished, nothing to do: 9 trials (3 complete, 6 pruned, 0 failed, 1 infeasible)"
    assert lines[1].strip().startswith("infeasible: over search.limits, or larger than the memory")
    larger, *following = lines[lines.index("Next:") + 1 :]
    assert "a larger --trials" in larger
    assert [line.split()[1] for line in following] == ["report", "export", "train", "dashboard"]


# studies.


def test_studies_lists_deletes_and_renames(fbsearch: Fbsearch, searched: str) -> None:
    code, output, errors = fbsearch("studies", "--storage", searched)
    assert (code, errors) == (0, "")
    head, older, digits = (line.split() for line in output.splitlines())
    assert head[0] == "study" and older[:1] == ["older"] and digits[:5] == ["digits", "90.00%", "3", "1", "1"]
    listed = json.loads(fbsearch("studies", "--json", "--storage", searched)[1])
    assert [(one["name"], one["num_complete"]) for one in listed] == [("older", 0), ("digits", 3)]
    result = fbsearch("studies", "delete", "digits", "--storage", searched)
    assert "no terminal in which to ask; --yes deletes" in error_of(result)
    assert fbsearch("studies", "--storage", searched, "delete", "digits", "--yes")[0] == 2, "of another database"
    code, output, _ = fbsearch("studies", "rename", "digits", "zif fern", "--storage", searched)
    assert code == 0 and "is now 'zif fern'; `fbsearch run` goes on with it with --name 'zif fern'" in output
    for name, number in (("zif fern", 5), ("older", 0)):
        code, output, _ = fbsearch("studies", "delete", name, "--yes", "--storage", searched)
        assert (code, output) == (0, f"'{name}': deleted, with {number} trials\n")
    assert "no study in this database yet" in fbsearch("studies", "--storage", searched)[1]
