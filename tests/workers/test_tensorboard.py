"""TensorBoard's files as TensorBoard reads them, from a real worker."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.space import FIELDS, check_space
from fbsearch.config.study_file import SHORT_RUN_TRAINING, StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import Failed, Finished
from fbsearch.study.study import create_study
from fbsearch.workers.tensorboard import CURVES, curves

ACCURACY = "accuracy/validation"


def make_trial(folder: object, **train: Any) -> TrialConfig:
    return TrialConfig(
        data=DataConfig(limit=60),
        model=ModelConfig(fractal_levels=(1,), base_channels=4, pattern_resolution=8),
        train=TrainConfig(epochs=2, tensorboard=str(folder), **train),
    )


def run(config: TrialConfig, number: int, **options: Any) -> list[Any]:
    from fbsearch.workers.worker import Worker

    worker = Worker(0, config.data, device="cpu", say=lambda notice: None)
    return list(worker.run(number, config, **options))


def read(folder: Path) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """The curves and the hyper-parameters of one run."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    found = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    stored = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = HParamsPluginData.FromString(stored).session_start_info
    return found, {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in session.hparams.items()}


def test_worker_writes_the_curves_and_hyper_parameters_of_each_trial(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    *_, finished = run(make_trial(tmp_path / "curves"), 7)
    assert isinstance(finished, Finished)
    assert [path.name for path in (tmp_path / "curves").iterdir()] == ["trial-0007"]
    found, parameters = read(tmp_path / "curves" / "trial-0007")
    assert set(CURVES) <= set(found) and len(found[ACCURACY]) == 2
    assert found[ACCURACY][-1] == pytest.approx(finished.value) == pytest.approx(found["val_accuracy"][-1])
    assert parameters["model.fractal_levels"] == "[1]" and parameters["train.learning_rate"] == 0.01


def test_worker_that_is_stopped_leaves_what_there_was(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    events: list[Any] = []
    config = make_trial(tmp_path)
    from fbsearch.workers.worker import Worker

    worker = Worker(0, config.data, device="cpu", say=lambda notice: None)
    for event in worker.run(1, config, stop_requested=lambda: len(events) >= 2):
        events.append(event)
    assert [type(event).__name__ for event in events] == ["Started", "Epoch", "Stopped"]
    found, _ = read(tmp_path / "trial-0001")
    assert len(found[ACCURACY]) == 1 == len(found["val_accuracy"])


def test_worker_that_cannot_write_fails_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    *_, failed = run(make_trial(tmp_path / "file"), 0)
    assert isinstance(failed, Failed) and failed.kind == "invalid_configuration"
    assert failed.message.startswith(f"train.tensorboard: {tmp_path / 'file' / 'trial-0000'}: cannot be written: ")


def test_curves_without_the_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'fbsearch\[tensorboard\]'"),
        curves(make_trial(tmp_path), trial=0),
    ):
        pass


def test_curves_that_are_off_load_nothing() -> None:
    code = (
        "import sys; from fbsearch.workers.tensorboard import curves; from fbsearch.config.models import *\n"
        "config = TrialConfig(data=DataConfig(), model=ModelConfig(), train=TrainConfig())\n"
        "with curves(config, trial=0) as write: write(None)\n"
        "assert not {'torch', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_field_is_no_dimension_and_may_change_when_a_study_goes_on(storage: Any) -> None:
    assert "train.tensorboard" not in FIELDS
    assert check_space({"train.tensorboard": {"choices": ["a", "b"]}}) != []
    create_study(storage, StudyConfig()).ask()
    create_study(storage, StudyConfig(train=SHORT_RUN_TRAINING.model_copy(update={"tensorboard": "curves"})))
