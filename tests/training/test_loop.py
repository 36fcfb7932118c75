"""The trainer on real digits: it learns, repeats itself, stops when told, and says when it cannot go on."""

import math
from typing import Any

import pytest
import torch

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import Dataset, load_dataset
from fbsearch.errors import DeviceError, TrialError
from fbsearch.messages import EpochStats
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, choose_dtype, prepare_device
from fbsearch.training.evaluation import evaluate
from fbsearch.training.loop import final_accuracy, train
from fbsearch.training.optimizers import make_optimizer, make_scheduler

DATA = DataConfig(limit=600)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DATA)


def make_config(*, seed: int = 0, augment: dict[str, Any] | None = None, **settings: Any) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1, 1), base_channels=8, stem="conv3", pattern_resolution=8)
    data = DataConfig.model_validate(DATA.model_dump() | {"augment": augment or {}})
    values = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "precision": "fp32"} | settings
    return TrialConfig(data=data, model=model, train=TrainConfig(**values), seed=seed)


def run(config: TrialConfig, data: Dataset) -> tuple[FractalBrainNet, list[EpochStats]]:
    torch.manual_seed(config.seed)
    model = FractalBrainNet(config.model, num_classes=10, in_channels=1)
    return model, list(train(model, config, data))


def without_times(history: list[EpochStats]) -> list[tuple[float, ...]]:
    return [(s.epoch, s.train_loss, s.train_accuracy, s.val_loss, s.val_accuracy, s.learning_rate) for s in history]


def test_train_learns_digits(digits: Dataset) -> None:
    _, history = run(make_config(epochs=10, learning_rate=0.02), digits)
    assert [stats.epoch for stats in history] == list(range(1, 11))
    assert history[-1].train_loss < 0.6 * history[0].train_loss
    assert history[-1].val_accuracy > 0.7
    assert all(stats.seconds >= stats.step_seconds + stats.val_seconds - 1e-6 for stats in history)
    assert all(stats.images_per_second > 0 and stats.memory_mib > 10 for stats in history)


EVERYTHING = {
    "flip": True, "shift": 1, "cutout": 2, "rotation": 10, "scale": 0.1, "colour": 0.2, "erasing": 0.2, "mixup": 0.2,
    "cutmix": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("augment", [{"flip": True, "shift": 1, "cutout": 2}, EVERYTHING], ids=["some", "all"])
def test_train_same_seed_gives_same_numbers(digits: Dataset, augment: dict[str, Any]) -> None:
    config = make_config(seed=5, augment=augment, class_weights="balanced" if augment is EVERYTHING else "none")
    first, second = run(config, digits), run(config, digits)
    assert without_times(first[1]) == without_times(second[1])
    for name, value in first[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name


def test_train_other_seed_gives_other_numbers(digits: Dataset) -> None:
    assert without_times(run(make_config(seed=1), digits)[1]) != without_times(run(make_config(seed=2), digits)[1])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop", "muon"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant", "halving"])
def test_train_every_optimizer_and_schedule_lowers_the_loss(digits: Dataset, optimizer: str, schedule: str) -> None:
    rates = {"adamw": 0.01, "adam": 0.01, "sgd": 0.05, "rmsprop": 0.001, "muon": 0.01}
    config = make_config(optimizer=optimizer, schedule=schedule, learning_rate=rates[optimizer], epochs=3)
    _, history = run(config, digits)
    assert history[-1].train_loss < history[0].train_loss


def test_train_loss_that_is_not_finite_ends_the_run_in_the_first_epoch(digits: Dataset) -> None:
    with pytest.raises(TrialError, match=r"not finite.*learning_rate") as caught:
        run(make_config(learning_rate=1e30, schedule="constant", optimizer="sgd"), digits)
    assert caught.value.kind == "non_finite_loss"


def test_train_clipping_keeps_a_high_rate_finite(digits: Dataset) -> None:
    _, history = run(make_config(optimizer="sgd", learning_rate=1.0, clip_grad_norm=0.01), digits)
    assert all(math.isfinite(stats.train_loss) for stats in history)


def test_train_early_stopping_ends_after_patience(digits: Dataset) -> None:
    # With a learning rate of almost 0 the validation accuracy hardly moves.
    config = make_config(epochs=50, early_stopping=2, learning_rate=1e-12, schedule="constant")
    _, history = run(config, digits)
    best = max(range(len(history)), key=lambda i: history[i].val_accuracy)
    assert len(history) == best + 1 + 2 < 50


@pytest.mark.slow
def test_train_keep_best_leaves_the_best_epochs_weights(digits: Dataset) -> None:
    for seed in range(5):  # a constant high rate: the first seed whose last epoch is not its best
        config = make_config(epochs=6, keep_best=True, schedule="constant", learning_rate=0.03, seed=seed)
        model, history = run(config, digits)
        best = max(stats.val_accuracy for stats in history)
        if best > history[-1].val_accuracy:
            break
    else:
        pytest.fail("no run got worse at its end: this test would mean nothing")
    assert evaluate(model, digits, digits.val)[1] == pytest.approx(best)
    assert final_accuracy(history, config.train) == best
    assert final_accuracy(history, make_config().train) == history[-1].val_accuracy


@pytest.mark.slow
def test_train_bf16_learns_and_keeps_weights_in_fp32(digits: Dataset) -> None:
    model, history = run(make_config(precision="bf16", epochs=4), digits)
    assert history[-1].train_loss < history[0].train_loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_evaluate_does_not_depend_on_the_batch_size(digits: Dataset) -> None:
    model, _ = run(make_config(), digits)
    whole, parts = (evaluate(model, digits, digits.val, batch_size=size) for size in (1000, 7))
    assert whole == pytest.approx(parts, rel=1e-4)


def test_make_optimizer_decays_weights_only() -> None:
    model = FractalBrainNet(make_config().model, num_classes=10, in_channels=1)
    decayed, plain = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def rates(config: TrainConfig, *, steps_per_epoch: int) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=config.learning_rate)
    scheduler = make_scheduler(optimizer, config, num_steps=config.epochs * steps_per_epoch)
    found = []
    for _ in range(config.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_schedule_one_cycle_rises_to_the_rate_and_falls() -> None:
    found = rates(TrainConfig(epochs=4, learning_rate=0.1), steps_per_epoch=10)
    assert max(found) == pytest.approx(0.1, rel=0.01)
    assert found[0] < 0.01 and found[-1] < 0.001 and 10 <= found.index(max(found)) <= 14


def test_schedule_one_cycle_leaves_a_chosen_momentum_alone() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.3)
    scheduler = make_scheduler(optimizer, TrainConfig(optimizer="sgd", momentum=0.3), num_steps=24)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["momentum"] == 0.3


def test_schedule_warmup_then_cosine_or_constant() -> None:
    cosine = rates(TrainConfig(epochs=4, learning_rate=0.1, schedule="cosine", warmup_epochs=1), steps_per_epoch=10)
    assert cosine[:10] == sorted(cosine[:10]) and cosine[10] == pytest.approx(0.1) and cosine[-1] < 0.001
    constant = rates(TrainConfig(epochs=2, learning_rate=0.1, schedule="constant"), steps_per_epoch=3)
    assert constant == [0.1] * 6


def test_schedule_halving_drops_where_the_fractalnet_paper_says() -> None:
    found = rates(TrainConfig(epochs=400, learning_rate=0.02, schedule="halving"), steps_per_epoch=2)
    drops = [step / 2 for step in range(1, len(found)) if found[step] != found[step - 1]]
    assert drops[:4] == [200, 300, 350, 375] and found[0] == 0.02
    assert [found[2 * epoch] for epoch in (200, 399)] == pytest.approx([0.02 / 10, 0.02 / 10**8])


def test_choose_device_without_such_a_device_says_what_there_is() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device cuda:99"):
        choose_device("cuda:99")
    for wrong in ("tpu", "meta"):
        with pytest.raises(DeviceError, match="write auto, cpu, cuda"):
            choose_device(wrong)


def test_choose_dtype_follows_the_configuration() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("fp32", cpu) == torch.float32
    assert choose_dtype("auto", cpu) in (torch.bfloat16, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_on_a_gpu_repeats_itself() -> None:
    prepare_device(torch.device("cuda"))
    data = load_dataset(DATA, device="cuda")

    def once() -> list[tuple[float, ...]]:
        torch.manual_seed(0)
        model = FractalBrainNet(make_config().model, num_classes=10, in_channels=1).cuda()
        return without_times(list(train(model, make_config(), data)))

    # 8x8 images: attention has too few positions to add up in another order.
    assert once() == once()


def test_prepare_device_takes_kernels_that_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps these settings without a GPU, too; choosing one is the only part that needs it."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        prepare_device(torch.device("cpu"))
        assert not chosen and not torch.backends.cudnn.deterministic
        prepare_device(torch.device("cuda", 1))
        assert chosen == [torch.device("cuda", 1)] and torch.backends.cudnn.deterministic
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
