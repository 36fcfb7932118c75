"""FractalNet against its paper: how it expands, what drop-path does, and what it is made of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.baselines import Fractal, FractalNet, Join, count_blocks


def make_net(*, image_size: int = 8, in_channels: int = 1, **settings: float) -> FractalNet:
    torch.manual_seed(0)
    return FractalNet(ImageShape(num_classes=10, in_channels=in_channels, image_size=image_size), **settings)  # type: ignore[arg-type]


def chain(fractal: Fractal, column: int) -> list[nn.Module]:
    """The convolutions that a column of a fractal passes, by the rule f_{C+1} = (f_C after f_C) beside conv."""
    if column == 1:
        return [fractal.shallow]
    return [*chain(fractal.first, column - 1), *chain(fractal.second, column - 1)]


@pytest.mark.parametrize("num_columns", [1, 2, 3, 4, 5])
def test_fractal_expands_as_the_paper_says(num_columns: int) -> None:
    net = make_net(image_size=2, num_columns=num_columns)
    assert len(net.blocks) == 1
    fractal = net.blocks[0].fractal
    assert sum(isinstance(module, nn.Conv2d) for module in fractal.modules()) == 2**num_columns - 1
    for column in range(1, num_columns + 1):
        assert len(chain(fractal, column)) == 2 ** (column - 1)
    joins = [join.num_paths for join in net.modules() if isinstance(join, Join) and join.num_paths > 1]
    assert len(joins) == (2 ** (num_columns - 2) if num_columns > 1 else 0)
    assert max(joins, default=1) == num_columns


@pytest.mark.parametrize(("image_size", "num_blocks"), [(2, 1), (8, 3), (9, 3), (28, 4), (32, 5), (33, 5), (224, 5)])
def test_fractalnet_has_as_many_blocks_as_the_image_can_be_halved(image_size: int, num_blocks: int) -> None:
    assert count_blocks(image_size) == num_blocks


def test_fractalnet_of_an_image_of_one_pixel_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_size is 1"):
        make_net(image_size=1)


@pytest.mark.parametrize(("image_size", "in_channels"), [(8, 1), (32, 3)])
def test_fractalnet_gives_logits_and_every_weight_a_gradient(image_size: int, in_channels: int) -> None:
    net = make_net(image_size=image_size, in_channels=in_channels, drop_path_prob=0.0)
    x_BCHW = torch.randn(4, in_channels, image_size, image_size)
    logits_BK = net.keep(x_BCHW, torch.tensor(0))
    assert logits_BK.shape == (4, 10)
    logits_BK.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_fractalnet_has_the_parameters_counted_by_hand() -> None:
    # A block of three columns: three convolutions from the block's input, four from its own channels; 2 a norm.
    by_hand = 3 * (9 * 1 * 64 + 2 * 64) + 4 * (9 * 64 * 64 + 2 * 64)
    by_hand += 3 * (9 * 64 * 128 + 2 * 128) + 4 * (9 * 128 * 128 + 2 * 128)
    by_hand += 3 * (9 * 128 * 256 + 2 * 256) + 4 * (9 * 256 * 256 + 2 * 256)
    by_hand += 256 * 10 + 10
    assert sum(p.numel() for p in make_net().parameters()) == by_hand == 4_213_066


def test_fractalnet_in_eval_mode_is_deterministic_and_in_training_is_not() -> None:
    net, x_BCHW = make_net(), torch.randn(4, 1, 8, 8)
    assert len({net(x_BCHW).sum().item() for _ in range(8)}) > 1
    net.eval()
    assert torch.equal(net(x_BCHW), net(x_BCHW))


@pytest.mark.parametrize("column", [1, 2, 3])
@torch.no_grad()
def test_global_drop_path_equals_the_column_alone(column: int) -> None:
    net, x_BCHW = make_net().eval(), torch.randn(4, 1, 8, 8)
    kept_BK = net.keep(x_BCHW, torch.tensor(column))
    for block in net.blocks:
        for convolution in chain(block.fractal, column):
            x_BCHW = convolution(x_BCHW)
        x_BCHW = block.rest(x_BCHW)
    torch.testing.assert_close(kept_BK, net.classifier(x_BCHW.mean(dim=(2, 3))))


def test_global_and_local_drop_path_are_drawn_evenly() -> None:
    net = make_net(image_size=2)
    torch.manual_seed(0)
    drawn = [int(net._draw_column(torch.device("cpu"))) for _ in range(3000)]
    counts = [drawn.count(column) for column in range(4)]
    assert 1400 < counts[0] < 1600 and all(430 < count < 570 for count in counts[1:]), counts


@given(st.integers(2, 4), st.floats(0, 1), st.integers(0, 2**31))
def test_local_drop_path_never_kills_a_join_and_keeps_the_mean_of_the_survivors(
    num_paths: int, drop_path_prob: float, seed: int
) -> None:
    join = Join(num_paths, num_columns=4, drop_path_prob=drop_path_prob)
    torch.manual_seed(seed)
    one_hot = [torch.eye(num_paths)[i].view(1, num_paths, 1, 1) for i in range(num_paths)]
    weights = join(one_hot, torch.tensor(0)).flatten()
    kept = weights > 0
    assert kept.any() and torch.allclose(weights[kept], 1 / kept.sum()) and weights[~kept].eq(0).all()
    if drop_path_prob == 1:
        assert kept.sum() == 1


def test_local_drop_path_drops_as_often_as_it_says() -> None:
    join = Join(2, num_columns=3, drop_path_prob=0.15)
    torch.manual_seed(0)
    kept = torch.stack([join._draw_local() for _ in range(4000)]).float().mean(dim=0)
    # Dropped alone: 0.15 * 0.85, or both drawn and the other one kept: 0.15^2 / 2.
    assert kept == pytest.approx(1 - 0.15 * 0.85 - 0.15**2 / 2, abs=0.02)
