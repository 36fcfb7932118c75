"""Images that do not fit on a GPU, or nowhere. Fakes of what torch and psutil say stand for such machines."""

import dataclasses
from typing import NamedTuple

import psutil
import pytest
import torch

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import Split, load_dataset
from fbsearch.data.placement import DEVICE_SHARE, choose_place
from fbsearch.errors import DataError
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.loop import train

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE = 2**34


class _Memory(NamedTuple):
    available: int


@pytest.fixture
def free_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (FREE, 5 * FREE))


def test_choose_place_takes_the_gpu_while_training_keeps_most_of_it(free_gpu: None) -> None:
    said: list[str] = []
    assert choose_place(int(DEVICE_SHARE * FREE), CUDA, say=said.append) == CUDA
    assert not said


def test_choose_place_of_what_the_gpu_cannot_hold_is_the_cpu_and_says_so_once(
    free_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(2**36))
    said: list[str] = []
    assert choose_place(2**35, CUDA, say=said.append) == CPU
    (line,) = said
    assert "take 32,768 MiB, and cuda:0 has 16,384 MiB free" in line and "slower" in line


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_choose_place_of_what_fits_nowhere_names_the_way_out(
    free_gpu: None, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(2**35))
    with pytest.raises(DataError, match=r"take 65,536 MiB.* 32,768 MiB of memory free.*data\.image_size.*data\.limit"):
        choose_place(2**36, device, say=print)


def test_load_dataset_asks_for_the_bytes_of_all_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    info = load_dataset(DataConfig(limit=100), with_test=False).info
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(100 * 64 - 1))
    with pytest.raises(DataError, match="memory free"):
        load_dataset(DataConfig(limit=100), with_test=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Memory(100 * 64))
    assert load_dataset(DataConfig(limit=100), with_test=False).info == info


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_computes_the_same_from_images_in_the_machines_memory() -> None:
    data = load_dataset(DataConfig(limit=300), device="cuda")

    def on_cpu(split: Split) -> Split:
        return dataclasses.replace(split, images_NCHW=split.images_NCHW.cpu())

    apart = dataclasses.replace(data, train=on_cpu(data.train), val=on_cpu(data.val))
    model = ModelConfig(fractal_levels=(1,), base_channels=8, stem="conv3")
    config = TrialConfig(data=DataConfig(limit=300), model=model, train=TrainConfig(epochs=3, precision="fp32"))
    losses = []
    for one in (data, apart):
        torch.manual_seed(0)
        net = FractalBrainNet(model, num_classes=10, in_channels=1).cuda()
        losses.append([stats.val_loss for stats in train(net, config, one)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
