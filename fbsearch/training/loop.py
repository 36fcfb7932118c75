"""One training run, as a generator that yields after every epoch: search, retraining and benchmarks all run this one.

Knows nothing of trials, studies or processes. Stopping is closing the generator.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import nn

from fbsearch.config.models import TrainConfig, TrialConfig
from fbsearch.data.augment import augment
from fbsearch.data.dataset import VALIDATION_BATCH, Dataset, Split, batches, count_batches
from fbsearch.errors import TrialError
from fbsearch.messages import EpochStats, Execution
from fbsearch.training.cuda_graph import CaptureError, random_state, set_random_state
from fbsearch.training.devices import choose_dtype, memory_mib
from fbsearch.training.distributed import Team
from fbsearch.training.optimizers import make_optimizer, make_scheduler
from fbsearch.training.step import GraphEvaluation, GraphStep, Totals, TrainStep, add_evaluation, why_eager

# Steps between two looks at the loss: a look makes a GPU wait, a loss that is not finite stays so.
STEPS_BETWEEN_CHECKS = 16


class _Stopped(Exception):
    """The training steps were left because `stop_requested` said so."""


class TrainState(TypedDict):
    """All that a run needs to go on after an epoch; tensors and plain values, so that `weights_only` reads it back."""

    epoch: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    generator: torch.Tensor
    cpu_random: torch.Tensor
    cuda_random: torch.Tensor | None
    best_epoch: int
    best_accuracy: float
    best_weights: dict[str, torch.Tensor] | None


def train(
    model: nn.Module,
    config: TrialConfig,
    data: Dataset,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    resume_from: TrainState | None = None,
    save_state: Callable[[EpochStats, TrainState], None] | None = None,
    on_execution: Callable[[Execution], None] = lambda _execution: None,
    team: Team | None = None,
) -> Iterator[EpochStats]:
    """Train `model` on the data's training split and validate it after every epoch.

    `model` maps [B, C, H, W] to [B, K] logits and lies on the data's device; it is trained in place, and with
    `keep_best` holds the best epoch's weights when the generator ends. Batches, augmentation, dropout and drop-path
    are drawn from `config.seed`: same seed, same device, same numbers. An empty validation split is allowed without
    `keep_best` and `early_stopping`; its loss and accuracy are not a number.

    Args:
        stop_requested: Asked before every step; once it is true the generator ends, in the middle of an epoch.
        resume_from: Go on after this state's epoch. On the same device every number that follows is the one that the
            run would have given without the break.
        save_state: Gets every epoch with the state after it, before the epoch is yielded. The state's tensors are the
            live ones: write or copy them before returning.
        on_execution: On a GPU gets, before the first epoch is yielded, how the steps are computed.
        team: The processes that train this model together: each calls this with the same arguments, takes its part of
            every batch, and gets the same epochs. `batch_size` is of all of them together. Batches and augmentation
            are those of one process; dropout and drop-path each process draws for itself.

    Raises TrialError (`non_finite_loss`) as soon as the loss is seen not to be finite.
    """
    run = _Run.start(model, config, data, stop_requested, team or Team())
    if resume_from is not None:
        run.restore(resume_from)
    first = run.epoch + 1
    try:
        while not run.is_over():
            try:
                stats = run.next_epoch()
            except _Stopped:
                return
            if stats.epoch == first and run.device.type == "cuda":
                on_execution(run.step.execution)
            if save_state is not None:
                save_state(stats, run.state())
            yield stats
    finally:
        run.close()
    if run.best_weights is not None:
        model.load_state_dict(run.best_weights)


def final_accuracy(history: list[EpochStats], config: TrainConfig) -> float:
    """The validation accuracy of the weights that a run of these epochs has kept."""
    if config.keep_best:
        return max(stats.val_accuracy for stats in history)
    return history[-1].val_accuracy


@dataclass
class _Run:
    """What one training run needs from step to step."""

    model: nn.Module
    config: TrialConfig
    data: Dataset
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    step: TrainStep
    stop_requested: Callable[[], bool]
    team: Team
    evaluation: GraphEvaluation | None = None
    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_weights: dict[str, torch.Tensor] | None = None

    @classmethod
    def start(
        cls, model: nn.Module, config: TrialConfig, data: Dataset, stop_requested: Callable[[], bool], team: Team
    ) -> "_Run":
        needs_validation = config.train.keep_best or config.train.early_stopping
        assert len(data.val.labels_N) or not needs_validation, "the best epoch is found on the validation split"
        device = data.train.images_NCHW.device
        torch.manual_seed(config.seed)
        model.to(memory_format=torch.channels_last)
        forward = team.wrap(model)
        optimizer = make_optimizer(model, config.train)
        team.check(batch_size=config.train.batch_size, num_images=len(data.train.labels_N))
        num_steps = count_batches(len(data.train.labels_N), batch_size=config.train.batch_size)
        scheduler = make_scheduler(optimizer, config.train, steps_per_epoch=num_steps)
        generator = torch.Generator(device=device).manual_seed(config.seed)
        reason = why_eager(device, config.train, num_processes=team.num_processes)
        step = (GraphStep if reason is None else TrainStep)(
            model=model,
            config=config.train,
            optimizer=optimizer,
            scheduler=scheduler,
            normalise=data.normalise,
            device=device,
            dtype=choose_dtype(config.train.precision, device),
            forward=forward,
            execution=Execution("graph") if reason is None else Execution("eager", reason),
        )
        return cls(model, config, data, optimizer, scheduler, generator, step, stop_requested, team)

    @property
    def device(self) -> torch.device:
        return self.step.device

    def close(self) -> None:
        """Give back what only a run needs of a device."""
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None
        self.step.close()

    def state(self) -> TrainState:
        return TrainState(
            epoch=self.epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            generator=self.generator.get_state(),
            cpu_random=torch.get_rng_state(),
            cuda_random=random_state(self.device) if self.device.type == "cuda" else None,
            best_epoch=self.best_epoch,
            best_accuracy=self.best_accuracy,
            best_weights=self.best_weights,
        )

    def restore(self, state: TrainState) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu_random"])
        if state["cuda_random"] is not None:
            set_random_state(state["cuda_random"], self.device)
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_accuracy, self.best_weights = state["best_accuracy"], state["best_weights"]

    def is_over(self) -> bool:
        patience = self.config.train.early_stopping
        return self.epoch >= self.config.train.epochs or bool(patience and self.epoch - self.best_epoch >= patience)

    def next_epoch(self) -> EpochStats:
        stats = self._train_and_validate(self.epoch + 1)
        self.epoch = stats.epoch
        if stats.val_accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = stats.val_accuracy, stats.epoch
            if self.config.train.keep_best:
                self.best_weights = copy.deepcopy(self.model.state_dict())
        return stats

    def _train_and_validate(self, epoch: int) -> EpochStats:
        started = time.perf_counter()
        train_loss, train_accuracy, num_images = self._steps()
        stepped = time.perf_counter()
        val_loss = val_accuracy = math.nan
        if len(self.data.val.labels_N):
            val_loss, val_accuracy = self._validate()
            if not math.isfinite(val_loss):
                raise _not_finite("validation")
        ended = time.perf_counter()
        return EpochStats(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=ended - started,
            step_seconds=stepped - started,
            val_seconds=ended - stepped,
            images_per_second=num_images / (stepped - started),
            memory_mib=memory_mib(self.device),
        )

    def _steps(self) -> tuple[float, float, int]:
        """One pass over the training images: mean loss, accuracy, number of images."""
        self.model.train()
        self.team.seed_epoch(self.config.seed, self.epoch)
        team, totals = self.team, self.step.totals
        totals.reset()
        num_images = 0
        epoch = batches(self.data.train, batch_size=self.config.train.batch_size, generator=self.generator)
        for step, (images_BCHW, labels_B) in enumerate(epoch):
            if self.stop_requested():
                raise _Stopped
            images_BCHW = augment(images_BCHW, self.config.data.augment, generator=self.generator)
            own_B = team.part(labels_B)
            self.step(team.part(images_BCHW), own_B, share=team.share(len(own_B), len(labels_B)))
            num_images += len(labels_B)
            if step % STEPS_BETWEEN_CHECKS == 0 and not math.isfinite(team.sum(totals.loss).item()):
                raise _not_finite("training")
        total_loss = team.sum(totals.loss).item()
        if not math.isfinite(total_loss):
            raise _not_finite("training")
        return total_loss / num_images, team.sum(totals.num_correct).item() / num_images, num_images

    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation split; in a graph where the steps are in one."""
        split = self.data.val
        # With a reason, validation was tried and could not be captured.
        if isinstance(self.step, GraphStep) and self.step.execution == Execution("graph") and self.evaluation is None:
            try:
                self.evaluation = GraphEvaluation(
                    self.model,
                    split.images_NCHW,
                    normalise=self.data.normalise,
                    dtype=self.step.dtype,
                    batch_size=VALIDATION_BATCH,
                    pool=self.step.pool(),
                )
            except CaptureError as error:
                self.step.execution = Execution("graph", f"training steps only, of validation: {error}")
        if self.evaluation is None:
            return evaluate(self.model, self.data, split, dtype=self.step.dtype, team=self.team)
        return _means(self.evaluation(split.images_NCHW, split.labels_N), split)


def _not_finite(phase: str) -> TrialError:
    return TrialError(
        f"the {phase} loss is not finite; a lower train.learning_rate or train.clip_grad_norm: 1.0 may help",
        kind="non_finite_loss",
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    data: Dataset,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = VALIDATION_BATCH,
    team: Team | None = None,
) -> tuple[float, float]:
    """Mean cross-entropy (nats, no label smoothing) and accuracy of `model` on a split; puts it into eval mode.

    Each process of a `team` computes its part, and all get the whole.
    """
    model.eval()
    team = team or Team()
    totals = Totals.on(split.labels_N.device)
    images_NCHW, labels_N = team.part(split.images_NCHW), team.part(split.labels_N)
    if len(labels_N):
        for images_BCHW, labels_B in zip(
            torch.split(images_NCHW, batch_size), torch.split(labels_N, batch_size), strict=True
        ):
            add_evaluation(totals, model, data.normalise(images_BCHW), labels_B, dtype=dtype)
    return _means(Totals(team.sum(totals.loss), team.sum(totals.num_correct)), split)


def _means(totals: Totals, split: Split) -> tuple[float, float]:
    count = len(split.labels_N)
    return totals.loss.item() / count, totals.num_correct.item() / count
