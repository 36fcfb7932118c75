"""Workers that share a GPU: how many are chosen, and what is measured where there is one."""

import sys

import pytest
import torch
from forked import forked_context

from fbsearch.cli.app import main
from fbsearch.config.models import DataConfig
from fbsearch.config.space import ChoiceSpace
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.errors import DeviceError
from fbsearch.workers.executor import num_gpus
from fbsearch.workers.gpu_sharing import Use, choose_workers_per_gpu, measure_use
from fbsearch.workers.probe import heaviest_trial, measure_memory


@pytest.mark.parametrize(
    ("free", "worker", "cores", "gpus", "number"),
    [
        (10_000, 1_000, 64, 1, 8),  # never more than 8
        (10_000, 2_000, 64, 1, 4),  # four fit into 80%
        (10_000, 2_001, 64, 1, 3),
        (10_000, 500, 12, 4, 3),  # a core for each
        (10_000, 500, 2, 4, 1),
        (1_000, 5_000, 64, 1, 1),  # what does not fit alone says so itself
    ],
)
def test_choose_workers_per_gpu_by_memory_and_cores(free, worker, cores, gpus, number):
    assert choose_workers_per_gpu(Use(free, worker), num_cores=cores, num_gpus=gpus) == number


@pytest.mark.slow
def test_heaviest_trial_is_the_largest_net_in_the_largest_batch():
    space = {
        "model.base_channels": ChoiceSpace(choices=(8, 32)),
        "train.batch_size": ChoiceSpace(choices=(256, 32)),
    }
    data = DataConfig(limit=100)
    trial = heaviest_trial(StudyConfig(data=data, space=space), load_dataset(data).info.shape)
    assert (trial.model.base_channels, trial.train.batch_size) == (32, 256)


@pytest.mark.slow
def test_measure_use_that_fails_says_why():
    with pytest.raises(DeviceError, match=r"--workers-per-gpu auto: measuring a trial on cuda:99 failed: .+; write a"):
        measure_use(StudyConfig(), "cuda:99")


@pytest.mark.slow
def test_measure_memory_trains_the_heaviest_trial_in_another_process():
    """On a CPU, whose free memory other programs change: the way to the figures, not the figures."""
    config = StudyConfig(data=DataConfig(limit=100), space={"model.base_channels": ChoiceSpace(choices=(4, 8))})
    found = measure_memory(config, torch.device("cpu"), context=forked_context())
    assert found.keys() == {"free_mib", "worker_mib"} and found["free_mib"] > 1 and found["worker_mib"] >= 1


@pytest.mark.slow
def test_measure_memory_of_what_cannot_be_trained_says_why(tmp_path):
    config = StudyConfig(data=DataConfig(name="folder", root=str(tmp_path / "absent")))
    with pytest.raises(DeviceError, match=r"DataError: .*absent"):
        measure_memory(config, torch.device("cpu"), context=forked_context())


@pytest.mark.gpu
@pytest.mark.skipif(num_gpus() == 0, reason="needs a CUDA device")
def test_measure_use_on_a_gpu_is_within_its_memory():
    use = measure_use(StudyConfig(), "cuda:0")
    assert 200 < use.worker_mib < use.free_mib


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers-per-gpu", "0"], "neither auto nor a number of 1 or more"),
        (["--workers-per-gpu", "many"], "neither auto nor a number"),
        (["--workers", "3", "--workers-per-gpu", "2"], "leave --workers at auto"),
    ],
)
def test_run_workers_per_gpu_that_cannot_be_is_wrong_usage(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fbsearch", "run", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
