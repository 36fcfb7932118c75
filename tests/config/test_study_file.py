"""The two formats that users keep: the study file and the export. What is in them, and what is said of bad ones."""

import copy
import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fbsearch.config.export_file import Export, ExportedConfig, SearchCompute, Searched, dump_export, load_export
from fbsearch.config.models import DataConfig, ModelConfig, StrictModel, TrainConfig
from fbsearch.config.study_file import SHORT_RUN_MODEL, SHORT_RUN_TRAINING, StudyConfig, load_study_file, render_study
from fbsearch.config.yaml_format import read_yaml
from fbsearch.errors import ConfigError, StorageError
from fbsearch.files import write_whole

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
# The format as it was agreed on; the default study differs in `image_size` alone, which keeps the data's own size.
CONTRACT = """
name: digits                 # the study's name in the database
data:
  name: digits               # digits | folder | arrays | mnist | fashion_mnist | kmnist | cifar10 | cifar100 | svhn
  root: data                 # where downloads go; for `folder`, the image tree
  image_size: 8              # pixels; null keeps the data's own size
  limit: null                # at most this many training images, stratified
  validation_share: 0.2
  augment: {flip: false, shift: 0, cutout: 0}
  seed: 0                    # of the split
model:                       # any field of ModelConfig; what `space` names is sampled instead
  stem: pool3
  activation: relu
train:
  epochs: 6
  batch_size: 64
  optimizer: muon
  weight_decay: 0.01
  schedule: one_cycle
  label_smoothing: 0.1
  precision: auto            # auto | fp32 | bf16
space:
  model.fractal_levels: {num_stages: [1, 2], level: [1, 2]}   # conditional: one level for each stage
  model.base_channels: {choices: [8, 16, 24]}
  model.pattern: {choices: [mandelbrot, sierpinski, julia, cantor, dragon_curve]}
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
search:
  metric: val_accuracy       # maximised
  sampler: tpe               # tpe | random | cmaes | gp | grid
  pruner: successive_halving # median | successive_halving | hyperband | none
  seed: 0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def errors(folder: Path, text: str) -> list[str]:
    """What is said of a study file, a line for each error, each without the file's name that it begins with."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_study_file(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:").strip() for line in lines]


# The study file.


def test_study_file_of_the_contract_is_the_default_study(tmp_path: Path) -> None:
    study = load_study_file(write(tmp_path, CONTRACT))
    assert study.data.image_size == 8
    own_size = study.data.model_copy(update={"image_size": None})
    assert study.model_copy(update={"data": own_size}) == StudyConfig()


def test_study_file_with_one_key_keeps_the_other_defaults(tmp_path: Path) -> None:
    study = load_study_file(write(tmp_path, "train: {epochs: 3}"))
    assert study == StudyConfig(train=SHORT_RUN_TRAINING.model_copy(update={"epochs": 3}))


def test_committed_studies_are_there() -> None:
    assert {"digits.yaml", "cifar10.yaml", "folder.yaml"} <= {path.name for path in STUDIES}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_committed_study_can_be_loaded(path: Path) -> None:
    study = load_study_file(path)
    assert all(trial.data == study.data for trial in study.corners())


def test_committed_digits_is_the_default_study() -> None:
    assert load_study_file(Path(__file__).parents[2] / "studies" / "digits.yaml") == StudyConfig()


def test_render_study_of_the_default_can_be_loaded(tmp_path: Path) -> None:
    assert load_study_file(write(tmp_path, render_study(StudyConfig()))) == StudyConfig()


def test_render_study_of_every_kind_of_value_can_be_loaded(tmp_path: Path) -> None:
    study = StudyConfig.model_validate(
        {
            "name": "it's: #1, größer\n",
            "data": {"name": "folder", "root": "C:\\my images", "limit": 10, "augment": {"flip": True, "mixup": 0.2}},
            "train": {"learning_rate": 1e-7, "clip_grad_norm": 5, "schedule": "cosine", "warmup_epochs": 0.5},
            "space": {
                "model.fractal_levels": {"choices": [[1], [1, 2]]},
                "model.dropout": {"low": 0.1, "high": 0.5, "step": 0.1},
                "train.batch_size": {"low": 8, "high": 64, "log": True},
                "train.clip_grad_norm": {"choices": [None, 1.0]},
                "train.keep_best": {"choices": [True, False]},
                "data.augment.rotation": {"low": 0, "high": 30},
            },
        }
    )
    again = load_study_file(write(tmp_path, render_study(study)))
    assert again.model_dump(mode="json") == study.model_dump(mode="json")


def test_render_study_of_a_range_from_0_can_be_loaded(tmp_path: Path) -> None:
    study = StudyConfig.model_validate({"space": {"model.dropout": {"low": 0, "high": 0.5}}})
    assert load_study_file(write(tmp_path, render_study(study))) == study


def test_render_study_shows_every_key_with_a_comment() -> None:
    lines = render_study(StudyConfig()).splitlines()
    for section in (StudyConfig, DataConfig, ModelConfig, TrainConfig):
        indent = "" if section is StudyConfig else "  "
        for name, field in section.model_fields.items():
            assert any(
                line.startswith(f"{indent}{name}:") and line.endswith(f"# {field.description}") for line in lines
            )


def test_study_file_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    text = "train: {learning_rate: 1e-3}\nspace: {train.weight_decay: {low: 1E-6, high: 5.e-2, log: true}}"
    study = load_study_file(write(tmp_path, text))
    assert study.train.learning_rate == 0.001
    assert study.space["train.weight_decay"].model_dump()["low"] == 1e-6
    assert read_yaml(write(tmp_path, "{a: -2e+3, b: 1e3x, c: e3}"), maker="fbsearch init") == {
        "a": -2000.0,
        "b": "1e3x",
        "c": "e3",
    }


# What is said of a bad study file.


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {epocs: 3}", "train.epocs: unknown key; did you mean epochs?"),
        ("nmae: x", "nmae: unknown key; did you mean name?"),
        ("xyz: 1", "xyz: unknown key; allowed: name, data, model, train, space, search"),
        ("data: {augment: {flop: true}}", "data.augment.flop: unknown key; did you mean flip?"),
        ("data: {augment: {rotation: 200}}", "data.augment.rotation: input should be less than or equal to 180, found "
         "200"),
        ("space: {data.augment.mixup: {low: -0.1, high: 1}}", "space.data.augment.mixup: -0.1 cannot be used: input "
         "should be greater than or equal to 0"),
        ("space: {train.rotation: {low: 0, high: 30}}", "space.train.rotation: there is no such field; did you mean "
         "data.augment.rotation?"),
        ("space: {data.augment.flip: {low: 0, high: 1}}", "space.data.augment.flip: this field is no number; write "
         "choices"),
        ("train: {class_weights: balance}", "train.class_weights: input should be 'none' or 'balanced', found "
         "'balance'; did you mean balanced?"),
        ("search: {zzz: 1}", "search.zzz: unknown key; allowed: metric, objectives, sampler, pruner, seed, final_race, "
         "limits"),
        (
            "space: {train.learning_rate: {low: 0.1, high: 1, lg: true}}",
            "space.train.learning_rate.lg: unknown key; allowed: low, high, log, step",
        ),
        ("space: {train.epochs: {choices: [1], x: 2}}", "space.train.epochs.x: unknown key; allowed: choices"),
        (
            "space: {model.fractal_levels: {num_stages: [1], level: [1], x: 2}}",
            "space.model.fractal_levels.x: unknown key; allowed: num_stages, level",
        ),
        ("space: {train.learning_rate: {low: 0.1}}", "space.train.learning_rate.high: this key is missing"),
        ("space: {model.patern: {choices: [julia]}}", "space.model.patern: there is no such field; did you mean "
         "model.pattern?"),
        ("space: {train.learning_rate: {low: 2, high: 1}}", "space.train.learning_rate: empty range: low 2 must be "
         "below high 1"),
        ("space: {model.fractal_levels: {num_stages: [1], level: [0, 1]}}", "space.model.fractal_levels.level.0: input "
         "should be greater than or equal to 1, found 0"),
        ("model: {fractal_levels: [2, 0]}", "model.fractal_levels.1: input should be greater than or equal to 1, "
         "found 0"),
        ("model: {base_channels: 10}", "model.base_channels: input should be a multiple of 4, found 10"),
        ("model: {pattern: koch}", "model.pattern: must be mandelbrot, sierpinski, julia, cantor, dragon_curve or "
         "none, found 'koch'"),
        ("train: {epochs: many}", "train.epochs: input should be a valid integer, found 'many'"),
        ("train: {epochs: 2, warmup_epochs: 2, schedule: cosine}", "train: warmup_epochs 2 must be below epochs 2"),
        ("train: {budget: {}}", "train.budget: give either seconds or flops"),
        ("train: {budget: {hours: 1}}", "train.budget.hours: unknown key; allowed: seconds, flops"),
        ("train: {budget: {flops: 1e9}}\nspace: {train.epochs: {choices: [1, 2]}}", "space.train.epochs: counts the "
         "parts of train.budget, the same in all trials"),
        ("space: {train.budget: {choices: [1]}}", "space.train.budget: is the same for all trials; set it in "
         "train"),
        ("name: 5", "name: input should be a valid string, found 5"),
        ("name: ''", "name: string should have at least 1 character, found ''"),
        ("space:", "space: expected keys and values below this key, found nothing"),
        ("model:\ntrain: {epochs: 2}", "model: expected keys and values below this key, found nothing"),
        ("data: [folder]", "data: expected keys and values below this key, found a list"),
        ("search: {sampler: tpee}", "search.sampler: input should be 'tpe', 'random', 'nsga2', 'cmaes', 'gp' or "
         "'grid', found 'tpee'; did you mean tpe?"),
        ("1: 2", "1: keys should be strings, found 1"),
        ("search: {sampler: grid}", "space.train.learning_rate: a grid needs `step` or `choices` here, a continuous "
         "range has no end"),
    ],
)  # fmt: skip
def test_study_file_error_names_key_value_and_what_is_allowed(tmp_path: Path, text: str, line: str) -> None:
    assert errors(tmp_path, text) == [line]


def test_study_file_all_errors_are_shown_together(tmp_path: Path) -> None:
    text = """
        data: {limit: -1}
        model: {base_channels: 10, fractal_levels: [0, 9]}
        train: {epocs: 3, learning_rate: 0}
        search: {sampler: best}
    """
    keys = [line.partition(":")[0] for line in errors(tmp_path, text)]
    assert keys == [
        "data.limit", "model.fractal_levels.0", "model.fractal_levels.1", "model.base_channels",
        "train.learning_rate", "train.epocs", "search.sampler",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (
            "train: {epocs: 3}\nspace: {model.base_channels: {choices: [5]}}",
            {"train.epocs", "space.model.base_channels"},
        ),
        (
            "space: {train.learning_rate: {low: 2, high: 1}, model.patern: {choices: [julia]}}",
            {"space.train.learning_rate", "space.model.patern"},
        ),
    ],
)
def test_study_file_errors_of_the_space_are_shown_with_the_others(tmp_path: Path, text: str, keys: set[str]) -> None:
    assert {line.partition(":")[0] for line in errors(tmp_path, text)} == keys


@pytest.mark.parametrize("low", ["abc", ".inf", "[1]"])
def test_study_file_range_that_is_no_number_is_one_error(tmp_path: Path, low: str) -> None:
    lines = errors(tmp_path, f"space: {{train.learning_rate: {{low: {low}, high: 1}}}}")
    assert [line.partition(":")[0] for line in lines] == ["space.train.learning_rate.low"]


def test_study_file_absent_names_init(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load_study_file(path)
    assert str(caught.value) == f"{path}: no such file; `fbsearch init {path}` writes one"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\ndata: {limit: 3\ntrain: {}\n", 3),
        ("name: x\n\n\ta: 1", 3),
        ("name: x\nname: y: z", 2),
        ("name: 'x", 1),
        ("name: *a", 1),
        ("name: x\ntrain: !!python/object/apply:os.getcwd []", 2),
    ],
)
def test_study_file_not_yaml_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    (message,) = errors(tmp_path, text)
    assert message.startswith(f"{line}: not YAML: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nname: y", "1: not YAML: the key 'name' stands there twice"),
        ("name: x\ntrain:\n  epochs: 1\n  epochs: 2", "3: not YAML: the key 'epochs' stands there twice"),
        ("space: {train.epochs: {low: 1, low: 2, high: 3}}", "1: not YAML: the key 'low' stands there twice"),
    ],
)
def test_study_file_key_twice_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    assert errors(tmp_path, text) == [message]


@pytest.mark.parametrize(("text", "kind"), [("", "nothing"), ("- a", "a list"), ("word", "'word'"), ("# c", "nothing")])
def test_study_file_without_keys_is_an_error(tmp_path: Path, text: str, kind: str) -> None:
    (message,) = errors(tmp_path, text)
    assert message == f"expected keys and values, such as `name: my-study`, found {kind}"


@pytest.mark.parametrize("text", ["name: 2026-13-45", "name: 0x_"])
def test_study_file_impossible_date_or_number_names_the_line(tmp_path: Path, text: str) -> None:
    (message,) = errors(tmp_path, text)
    assert message.startswith("1: not YAML: ")


@pytest.mark.parametrize("value", ['!!int ""', '!!float ""', "!!timestamp abc", "!!bool abc", "!!int _", "1" * 101])
def test_study_file_value_that_is_not_of_its_type_names_the_line(tmp_path: Path, value: str) -> None:
    (message,) = errors(tmp_path, f"name: x\ndata: {{limit: {value}}}")
    assert message.startswith("2: not YAML: ")


def bomb(levels: int) -> str:
    """A file whose aliases stand for 10 ** levels values."""
    lines = ["a0: &a0 [" + "x, " * 10 + "]"]
    lines += [f"a{n}: &a{n} [" + f"*a{n - 1}, " * 10 + "]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), "more than 50,000 keys and values, aliases counted as what they stand for"),
        ("name: x\n" * 30_000, "more than 50,000 keys and values"),
        ("a: &a {b: *a}", "an alias stands for what it is in"),
        ("a: " + "[" * 100_000, "nested deeper than 30 levels"),
        ("a: " + "{a: " * 1000, "nested deeper than 30 levels"),
        ("- " * 1000, "nested deeper than 30 levels"),
    ],
)
def test_study_file_that_would_take_all_memory_or_time_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (found,) = errors(tmp_path, text)
    assert message in found


def test_study_file_of_some_megabytes_is_refused(tmp_path: Path) -> None:
    assert errors(tmp_path, "#" * (2**22 + 1)) == ["is larger than 4 MiB, which no file of fbsearch is"]
    with pytest.raises(ConfigError, match="is larger than 4 MiB"):
        load_study_file(Path("/dev/zero"))


@pytest.mark.parametrize("where", ["", "space:\n"])
def test_study_file_with_many_errors_names_the_first_and_counts_the_others(tmp_path: Path, where: str) -> None:
    found = errors(tmp_path, where + "".join(f" key{number}: {{}}\n" for number in range(2000)))
    assert len(found) == 21 and found[20] == "and 1,980 more errors"


def test_study_file_value_in_a_message_is_cut(tmp_path: Path) -> None:
    (message,) = errors(tmp_path, f"data: {{limit: {list(range(1000))}}}")
    assert message.startswith("data.limit: ") and message.endswith("...") and len(message) < 300


def test_study_file_control_characters_in_keys_are_escaped(tmp_path: Path) -> None:
    name = '"\\e[31m\\u202e\\nb"'
    found = errors(tmp_path, f"{name}: 1\nspace: {{{name}: {{low: 1, high: 2}}}}")
    escaped = r"\x1b[31m\u202e\nb"
    assert found[0].startswith(f"{escaped}: unknown key") and found[1].startswith(f"space.{escaped}: there is no such")


@pytest.mark.parametrize(
    "text",
    [
        "model: {base_channels: 4e9}",
        "model: {base_channels: 4000000000}",
        "data: {image_size: 1000000}",
        "data: {max_pixels: 1000000000}",
        "space: {1: {low: 1, high: 2}}",
        "space: {train.learning_rate: {low: 1" + "0" * 90 + ", high: 2}}",
        "space: {train.learning_rate: {low: -1e308, high: 1e308, step: 1e-300}}",
        "space: {train.learning_rate: {low: 0, high: 1, step: 5e-324}}",
        "search: {sampler: grid}\nspace: {train.epochs: {low: 1, high: 9999}, train.batch_size: {low: 2, high: 9999}}",
    ],
)
def test_study_file_numbers_without_bounds_are_refused(tmp_path: Path, text: str) -> None:
    assert errors(tmp_path, text)


@pytest.mark.parametrize("content", [b"name: \xe4", b"\xff\xfe\x00", b"\x00\x01", b"name: a\x07b"])
def test_study_file_that_is_no_text_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{path}: "):
        load_study_file(path)


def test_study_file_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*directory"):
        load_study_file(tmp_path)


# From a study to its trials.


def test_trial_takes_sampled_values_and_keeps_the_rest() -> None:
    study = StudyConfig(train=TrainConfig(epochs=3))
    trial = study.trial({"model.base_channels": 16, "model.fractal_levels": [1, 2], "train.learning_rate": 1}, seed=7)
    assert trial.model == SHORT_RUN_MODEL.model_copy(update={"base_channels": 16, "fractal_levels": (1, 2)})
    assert (trial.train.learning_rate, trial.train.epochs, trial.seed, trial.data) == (1.0, 3, 7, study.data)
    assert study.model == SHORT_RUN_MODEL


def test_trial_of_values_that_clash_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot be used together: train: warmup_epochs 9 must be below epochs 8"):
        StudyConfig(train=TrainConfig(schedule="cosine")).trial({"train.warmup_epochs": 9}, seed=0)


def test_corners_of_a_study_are_whole_trials() -> None:
    trials = list(StudyConfig().corners())
    assert len(trials) == 80
    assert {trial.model.base_channels for trial in trials} == {8, 24}
    assert all(trial.train.epochs == 6 for trial in trials)


def test_study_file_takes_what_it_leaves_out_from_the_parts_that_pay_and_the_rest_from_the_documents(
    tmp_path: Path,
) -> None:
    study = load_study_file(write(tmp_path, "model: {dropout: 0.5, join: gates}\ntrain: {optimizer: sgd}"))
    assert study.model == SHORT_RUN_MODEL.model_copy(update={"dropout": 0.5, "join": "gates"})
    assert study.train == SHORT_RUN_TRAINING.model_copy(update={"optimizer": "sgd"})
    for text in (
        "model: {drop_path_prob: 0.3}",
        "model: {dropout: 0.5}\nspace: {model.drop_path_prob: {low: 0, high: 0.5}}",
    ):
        assert load_study_file(write(tmp_path, text)).model.drop_path == "local"  # else the probability has no effect
    stored = StudyConfig.model_validate({"model": {"dropout": 0.5}, "train": {"optimizer": "sgd"}})
    assert (stored.model, stored.train) == (ModelConfig(dropout=0.5), TrainConfig(optimizer="sgd"))


def test_corners_of_a_huge_space_end() -> None:
    space = {
        "model.activation": {"choices": ["relu", "elu", "selu", "gelu", "silu", "mish", "tanh"]},
        "model.pattern": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]},
        "train.optimizer": {"choices": ["adamw", "adam", "sgd", "rmsprop"]},
        "model.drop_path": {"choices": ["none", "local", "global", "mixed", "channel"]},
        "model.fractal_levels": {"num_stages": [1, 2, 3], "level": [1, 2]},
    }
    assert sum(1 for _ in StudyConfig.model_validate({"space": space}).corners()) == 2048


# The JSON schema.


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = StudyConfig.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", [render_study(StudyConfig()), CONTRACT, "name: x"], ids=["init", "contract", "short"])
def test_schema_takes_a_study(validator: jsonschema.Draft202012Validator, text: str) -> None:
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_schema_takes_committed_studies(validator: jsonschema.Draft202012Validator, path: Path) -> None:
    validator.validate(read_yaml(path, maker="fbsearch init"))


@pytest.mark.parametrize(
    "content",
    [
        {"nmae": "x"},
        {"data": {"rot": "x"}},
        {"data": {"augment": {"flop": True}}},
        {"model": {"levels": [1]}},
        {"model": {"base_channels": 10}},
        {"model": {"fractal_levels": [0]}},
        {"train": {"epocs": 3}},
        {"search": {"sampler": "best"}},
        {"space": {}},
        {"space": {"model.patern": {"choices": ["julia"]}}},
        {"space": {"model.pattern": {"choices": []}}},
        {"space": {"model.pattern": {"choice": ["julia"]}}},
        {"space": {"train.epochs": {"low": 1}}},
        {"space": {"train.epochs": 3}},
    ],
    ids=str,
)
def test_schema_refuses_what_loading_refuses(
    validator: jsonschema.Draft202012Validator, content: dict[str, Any]
) -> None:
    assert not validator.is_valid(content)
    with pytest.raises(ValueError, match="validation error"):
        StudyConfig.model_validate(content)


# The export.


def make_export() -> Export:
    configs = tuple(
        ExportedConfig(
            rank=rank,
            trial=40 + rank,
            value=1 - rank / 300,
            num_parameters=12345,
            num_classes=10,
            in_channels=1,
            image_size=8,
            seed=3,
            data=DataConfig(),
            model=ModelConfig(fractal_levels=(1, 2), stem="conv3"),
            train=TrainConfig(learning_rate=1e-7),
        )
        for rank in (1, 2)
    )
    exported = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
    versions = {"fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"}
    return Export(study="größer", exported=exported, versions=versions, configs=configs)


def test_export_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    write_whole(path, dump_export(make_export()))
    assert load_export(path) == load_export(str(path)) == make_export()


def test_export_with_what_was_searched_survives_its_file(tmp_path: Path) -> None:
    config = StudyConfig()
    compute = SearchCompute(num_trials=20, num_epochs=90, train_flops=3 * 10**15, seconds=12.5)
    search = Searched(model=config.model, train=config.train, space=config.space, compute=compute)
    export = make_export().model_copy(update={"search": search})
    path = tmp_path / "best.yaml"
    write_whole(path, dump_export(export))
    assert load_export(path) == export
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(content)[-1] == "search" and content["search"]["compute"]["train_flops"] == 3 * 10**15
    assert content["search"]["space"]["train.learning_rate"] == {"low": 0.003, "high": 0.05, "log": True}


def test_export_is_laid_out_as_the_contract_says() -> None:
    content = yaml.safe_load(dump_export(make_export()))
    assert list(content) == ["format", "study", "exported", "versions", "configs"]
    assert content["format"] == "fbsearch-export/1"
    assert "\nexported: 2026-11-20T12:00:00Z\n" in dump_export(make_export())
    assert {"rank", "trial", "value", "num_parameters", "data", "model", "train"} <= content["configs"][0].keys()
    for section, model in {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}.items():
        assert content["configs"][0][section].keys() == model.model_fields.keys()


def test_export_edited_by_hand_can_be_loaded(tmp_path: Path) -> None:
    content = dump_export(make_export())
    unquoted = content.replace("1.0e-07", "1e-7")
    assert unquoted != content
    assert load_export(write(tmp_path, unquoted)) == make_export()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTRACT, "format: it is no export; after a search `fbsearch export` writes one, by default best.yaml"),
        ("format: [1]", "format: it is no export"),
        ("format: fbsearch-export/2", "format: its format is 'fbsearch-export/2', this fbsearch reads 'fbsearch-exp"),
        ("format: fbsearch-export/1\nstudy: x", "configs: this key is missing"),
        ("- a", "expected keys and values"),
    ],
)
def test_load_export_of_something_else_says_so(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_export(path)
    assert f"{path}: {message.format(path=path)}" in str(caught.value)


def test_load_export_absent_names_export(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fbsearch export"):
        load_export(tmp_path / "best.yaml")


def changed(change: dict[str, Any], *where: str | int) -> str:
    """The text of an export with a change somewhere inside."""
    content = copy.deepcopy(yaml.safe_load(dump_export(make_export())))
    inside = content
    for part in where:
        inside = inside[part]
    inside.update(change)
    return yaml.safe_dump(content)


def test_load_export_bad_value_names_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, changed({"base_channels": 10}, "configs", 1, "model"))
    with pytest.raises(ConfigError) as caught:
        load_export(path)
    assert str(caught.value) == f"{path}: configs.1.model.base_channels: input should be a multiple of 4, found 10"


@pytest.mark.parametrize(
    ("where", "model"), [(("configs", 0), ExportedConfig), (("configs", 0, "model"), ModelConfig)], ids=str
)
def test_load_export_unknown_key_names_what_is_allowed(
    tmp_path: Path, where: tuple[str | int, ...], model: type[StrictModel]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_export(write(tmp_path, changed({"zzz": 1}, *where)))
    assert str(caught.value).endswith("zzz: unknown key; allowed: " + ", ".join(model.model_fields))


# Writing.


def test_write_whole_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "best.yaml"
    write_whole(path, "old")
    write_whole(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert list(path.parent.iterdir()) == [path]


def test_write_whole_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new" * 10_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_over_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be written: Is a directory"):
        write_whole(path, "new")
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_file_can_be_read_as_any_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "best.yaml", "text")
    (tmp_path / "other").write_text("text")
    assert (tmp_path / "best.yaml").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ("{parameters: 0}", "search.limits.parameters: "),
        ("{flops: 1.5}", "search.limits.flops: "),
        ("{memory: 100}", "search.limits.memory: unknown key; did you mean memory_mib?"),
    ],
)
def test_load_study_limits_that_cannot_be(tmp_path: Path, limits: str, problem: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"search: {{limits: {limits}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_study_file(path)
    assert problem in str(caught.value)


def test_render_study_limits_are_shown_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("search: {limits: {parameters: 50000, memory_mib: 512.5}}\n")
    config = load_study_file(path)
    lines = [line.partition("#")[0].strip() for line in render_study(config).splitlines()]
    first = lines.index("limits:")
    assert lines[first + 1 : first + 4] == ["parameters: 50000", "flops: null", "memory_mib: 512.5"]
    path.write_text(render_study(config))
    assert load_study_file(path) == config
    trial = next(config.corners())
    assert trial.limits.excess({"parameters": 100_000, "flops": 7, "memory_mib": 512.5}) == {
        "parameters": 1.0, "memory_mib": 0.0,
    }  # fmt: skip
