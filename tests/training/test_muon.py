"""Muon turns kernels by orthogonal updates; everything else is AdamW's."""

import copy

import pytest
import torch
from torch import nn

from fbsearch.config.models import ModelConfig, TrainConfig
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.muon import is_hidden_kernel, orthogonalise
from fbsearch.training.optimizers import make_optimizer


def make_net() -> FractalBrainNet:
    torch.manual_seed(0)
    config = ModelConfig(fractal_levels=(2, 1), base_channels=8, pattern_resolution=8, stem="conv3")
    return FractalBrainNet(config, num_classes=3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (32, 33)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_out_their_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    made = orthogonalise(matrix)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ made @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diag()), atol=1e-9, rtol=0)
    before, after = values.max() / values.min(), inside.diag().max() / inside.diag().min()
    assert inside.diag().min() > 0 and after < before


def test_hidden_kernels_are_those_of_blocks_scales_and_downsampling():
    names = {name for name, parameter in make_net().named_parameters() if is_hidden_kernel(parameter)}
    assert "fractal_stages.0.0.shallow_branch.0.weight" in names and "fractal_stages.0.2.0.weight" in names
    assert "stem.3.global_processor.weight" in names
    assert not any(part in name for name in names for part in ("stem.0.", "attention", "_processing", "classifier"))


def step_once(net: nn.Module, config: TrainConfig) -> None:
    optimizer = make_optimizer(net, config)
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_step_turns_kernels_by_the_rate_and_keeps_their_norm():
    net = make_net()
    before = copy.deepcopy(dict(net.named_parameters()))
    step_once(net, TrainConfig(optimizer="muon", learning_rate=0.005))
    for name, kernel in net.named_parameters():
        if is_hidden_kernel(kernel):
            rows = len(kernel)
            assert kernel.norm().item() == pytest.approx(rows**0.5, rel=0.1)
            moved = kernel - before[name] * (rows**0.5 / before[name].norm())
            values = torch.linalg.svdvals(moved.flatten(1).double())
            assert values.max().item() < 0.05 * 1.3 and values.median().item() > 0.05 * 0.5


def test_step_of_other_parameters_equals_adamw():
    muon, adamw = make_net(), make_net()
    step_once(muon, TrainConfig(optimizer="muon", learning_rate=0.005))
    step_once(adamw, TrainConfig(optimizer="adamw", learning_rate=0.005))
    others = dict(adamw.named_parameters())
    for name, parameter in muon.named_parameters():
        if not is_hidden_kernel(parameter):
            torch.testing.assert_close(parameter, others[name], rtol=1e-4, atol=1e-6)


def test_a_kernel_of_zeros_and_one_without_a_gradient_stay_finite():
    net = make_net()
    kernels = [parameter for parameter in net.parameters() if is_hidden_kernel(parameter)]
    optimizer = make_optimizer(net, TrainConfig(optimizer="muon"))
    with torch.no_grad():
        kernels[0].zero_()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before, kernels[1].grad = kernels[1].clone(), None
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert torch.equal(kernels[1], before)


def test_a_network_without_hidden_kernels_trains():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = net[1].weight.clone()
    step_once(net, TrainConfig(optimizer="muon"))
    assert not torch.equal(net[1].weight, before)
