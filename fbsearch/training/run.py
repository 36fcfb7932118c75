"""The objects and counters of one training run: what an epoch does, and what is saved after it.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from fbsearch.config.goals import OF_CLASSES
from fbsearch.config.models import TrialConfig
from fbsearch.data.dataset import VALIDATION_BATCH, Dataset, batches, count_batches
from fbsearch.errors import TrialError
from fbsearch.messages import EpochStats, Execution, FailureKind
from fbsearch.training.budget import (
    FORWARD_PASSES_OF_A_STEP,
    MIN_TIMED,
    SecondsBudget,
    forward_flops,
    measure_steps,
    training_clock,
)
from fbsearch.training.cuda_graph import CaptureError, restore_afterwards
from fbsearch.training.devices import choose_dtype, memory_mib
from fbsearch.training.distributed import Team
from fbsearch.training.evaluation import Scores, mean_scores, score
from fbsearch.training.optimizers import make_optimizer, make_scheduler
from fbsearch.training.step import GraphEvaluation, GraphStep, TrainStep, reason_for_eager
from fbsearch.training.targets import BatchMaker

# Steps between two checks that the loss is finite: a check waits for the GPU, and a loss that is not finite stays so.
STEPS_BETWEEN_CHECKS = 16


class Stopped(Exception):
    """`stop_requested` returned true."""


class TrainState(TypedDict):
    """The state from which a run resumes after an epoch: tensors and plain values, readable with `weights_only`."""

    epoch: int
    budget: NotRequired[dict[str, float] | None]  # the fields of SecondsBudget; missing in old files
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    generator: torch.Tensor
    cpu_random: torch.Tensor
    cuda_random: torch.Tensor | None
    best_epoch: int
    best_accuracy: float
    best_weights: dict[str, torch.Tensor] | None


class Run:
    """The objects and counters of one training run."""

    def __init__(
        self, model: nn.Module, config: TrialConfig, data: Dataset, *, stop_requested: Callable[[], bool], team: Team,
        resume_from: TrainState | None,
    ) -> None:  # fmt: skip
        needs_validation = config.train.keep_best or config.train.early_stopping
        assert len(data.val.labels_N) or not needs_validation, "the best epoch is found on the validation split"
        self.model, self.config, self.data = model, config, data
        self.stop_requested, self.team = stop_requested, team
        self.device = data.device
        self.make_batch = BatchMaker(config, data)
        self.epoch = self.best_epoch = 0
        self.best_accuracy = -1.0
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.evaluation: GraphEvaluation | None = None
        torch.manual_seed(config.seed)
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed)
        model.to(memory_format=torch.channels_last)
        self.step = self._make_step(team.wrap(model))
        self.optimizer = self.step.optimizer
        self.seconds = None if resume_from is None else _read_budget(resume_from)
        if self.seconds is None and config.train.budget is not None and config.train.budget.seconds is not None:
            self.seconds = self._measure_steps(config.train.budget.seconds)
        self._plan(self._count_steps())

    def _make_step(self, model: nn.Module) -> TrainStep:
        train, num_images = self.config.train, len(self.data.train.labels_N)
        self.team.check(batch_size=train.batch_size, num_images=num_images)
        reason = reason_for_eager(self.device, train, num_processes=self.team.num_processes)
        return (GraphStep if reason is None else TrainStep)(
            model=model,
            config=train,
            optimizer=make_optimizer(model, train),
            normalise=self.data.normalise,
            device=self.device,
            dtype=choose_dtype(train.precision, self.device),
            execution=Execution("graph") if reason is None else Execution("eager", reason),
        )

    def _plan(self, num_steps: int) -> None:
        """Make the schedule of a run of `num_steps`, at the place that belongs to the epochs that were trained."""
        self.num_steps, train = num_steps, self.config.train
        position = num_steps * self.epoch // train.epochs
        self.scheduler = make_scheduler(self.optimizer, train, num_steps=num_steps, position=position)
        # A schedule warns where it sees no step of its optimiser, and the replays of a graph are none that it can see.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.step.scheduler = self.scheduler

    def _count_steps(self) -> int:
        """Return the steps of the whole run: of `epochs` passes, or what the budget pays for, one an epoch at least."""
        train, num_images = self.config.train, len(self.data.train.labels_N)
        if self.seconds is not None:
            return train.epochs * self.seconds.count_steps(num_parts=train.epochs - self.epoch)
        if train.budget is None:
            return train.epochs * count_batches(num_images, batch_size=train.batch_size)
        assert train.budget.flops is not None
        one = forward_flops(self.model, self.data.normalise(self.data.train.images_NCHW[:1].to(self.device)))
        images_a_step = num_images / count_batches(num_images, batch_size=train.batch_size)
        return max(train.epochs, int(train.budget.flops / (FORWARD_PASSES_OF_A_STEP * one * images_a_step)))

    def _measure_steps(self, seconds: float) -> SecondsBudget:
        """Take steps on the first images to measure their time, and restore what they have changed."""
        train, split = self.config.train, self.data.train
        images_BCHW, labels_B = split.images_NCHW[: train.batch_size], split.labels_N[: train.batch_size]
        generator = torch.Generator(device=self.device).manual_seed(self.config.seed)
        self.model.train()
        totals = [self.step.totals.loss, self.step.totals.num_correct]
        with restore_afterwards(self.model, self.optimizer, self.device, also=totals):
            budget = measure_steps(
                seconds,
                lambda: self._take_step(images_BCHW, labels_B, generator),
                device=self.device,
                num_timed=MIN_TIMED if self.team.num_processes > 1 else None,
            )
        mean, device = self.team.mean, self.device
        return SecondsBudget(mean(budget.left, device), mean(budget.seconds_a_step, device))

    def close(self) -> None:
        """Free the device memory that only the run needs."""
        self._end_evaluation()
        self.step.close()

    def state(self) -> TrainState:
        """Return what `restore` needs; its tensors are the live ones."""
        return TrainState(
            epoch=self.epoch,
            budget=None if self.seconds is None else dataclasses.asdict(self.seconds),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            generator=self.generator.get_state(),
            cpu_random=torch.get_rng_state(),
            cuda_random=torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            best_epoch=self.best_epoch,
            best_accuracy=self.best_accuracy,
            best_weights=self.best_weights,
        )

    def restore(self, state: TrainState) -> None:
        """Go back to the state after an epoch of a run of the same configuration."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu_random"])
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_accuracy, self.best_weights = state["best_accuracy"], state["best_weights"]

    def is_over(self) -> bool:
        """Return true after the last epoch, or where `early_stopping` has waited in vain."""
        patience = self.config.train.early_stopping
        return self.epoch >= self.config.train.epochs or bool(patience and self.epoch - self.best_epoch >= patience)

    def next_epoch(self) -> EpochStats:
        """Train and validate one epoch. Raise Stopped on request, TrialError for a loss that is not finite."""
        started = time.perf_counter()
        train_loss, train_accuracy, num_images = self._train()
        trained = time.perf_counter()
        scores = self._validate() if len(self.data.val.labels_N) else Scores(math.nan, math.nan)
        ended = time.perf_counter()
        self.epoch += 1
        stats = EpochStats(
            epoch=self.epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=scores.loss,
            val_accuracy=scores.accuracy,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=ended - started,
            step_seconds=trained - started,
            val_seconds=ended - trained,
            images_per_second=num_images / (trained - started),
            memory_mib=memory_mib(self.device),
            macro_f1=scores.macro_f1,
            balanced_accuracy=scores.balanced_accuracy,
        )
        if scores.accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = scores.accuracy, self.epoch
            if self.config.train.keep_best:
                self.best_weights = copy.deepcopy(self.model.state_dict())
        return stats

    def _train(self) -> tuple[float, float, int]:
        """Train on every batch of one epoch; return mean loss, accuracy and number of images."""
        self.model.train()
        if self.seconds is not None and self.epoch > 0:  # the first part is as it was measured
            self._plan(self._count_steps())
        clock = training_clock(self.device)
        started = clock()
        self.team.seed_epoch(self.config.seed, self.epoch)
        team, totals = self.team, self.step.totals
        totals.reset()
        num_images = 0
        for step, (images_BCHW, labels_B) in enumerate(self._draw_batches()):
            if self.stop_requested():
                raise Stopped
            self._take_step(images_BCHW, labels_B, self.generator)
            num_images += len(labels_B)
            if step % STEPS_BETWEEN_CHECKS == 0:
                _check_finite(team.sum(totals.loss).item(), "training")
        loss = _check_finite(team.sum(totals.loss).item(), "training")
        if self.seconds is not None:
            self.seconds.spend(team.mean(clock() - started, self.device), num_steps=step + 1)
        return loss / num_images, team.sum(totals.num_correct).item() / num_images, num_images

    def _draw_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of one epoch: one pass, or as much of one or more as the part of the budget has steps."""
        epochs, batch_size = self.config.train.epochs, self.config.train.batch_size
        left = self.num_steps * (self.epoch + 1) // epochs - self.num_steps * self.epoch // epochs
        while left > 0:
            for batch in itertools.islice(
                batches(self.data.train, batch_size=batch_size, generator=self.generator), left
            ):
                left -= 1
                yield batch

    def _take_step(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, generator: torch.Generator) -> None:
        images_BCHW = images_BCHW.to(self.device, non_blocking=True)
        images_BCHW, labels_B, targets_BK = self.make_batch(images_BCHW, labels_B, generator=generator)
        own_B = self.team.part(labels_B)
        own_BK = None if targets_BK is None else self.team.part(targets_BK)
        scale = self.team.loss_scale(len(own_B), len(labels_B))
        self.step(self.team.part(images_BCHW), own_B, own_BK, loss_scale=scale)

    @property
    def _counted_classes(self) -> int | None:
        """The number of classes where a goal needs each class's answers."""
        return self.data.info.num_classes if set(self.config.goals) & set(OF_CLASSES) else None

    def _validate(self) -> Scores:
        """Return the figures of the validation split, computed as a CUDA graph if the steps are one."""
        split = self.data.val
        # A reason means that the capture of validation has failed before.
        if isinstance(self.step, GraphStep) and self.step.execution == Execution("graph"):
            try:
                return self._validate_in_graph(self.step)
            except CaptureError as error:
                self._end_evaluation()
                self.step.execution = Execution("graph", f"training steps only, of validation: {error}")
        found = score(
            self.model, self.data, split, dtype=self.step.dtype, team=self.team, num_classes=self._counted_classes
        )
        _check_finite(found.loss, "validation")
        return found

    def _validate_in_graph(self, step: GraphStep) -> Scores:
        split = self.data.val
        if self.evaluation is None:
            self.evaluation = GraphEvaluation(
                self.model,
                split.images_NCHW,
                normalise=self.data.normalise,
                dtype=step.dtype,
                batch_size=VALIDATION_BATCH,
                device=self.device,
                pool=step.pool,
                num_classes=self._counted_classes,
            )
        found = mean_scores(self.evaluation(split.images_NCHW, split.labels_N), split)
        _check_finite(found.loss, "validation")
        return found

    def _end_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None


def _read_budget(state: TrainState) -> SecondsBudget | None:
    fields = state.get("budget")
    return None if fields is None else SecondsBudget(**fields)


def _check_finite(loss: float, phase: str) -> float:
    if not math.isfinite(loss):
        raise TrialError(
            f"the {phase} loss is not finite; a lower train.learning_rate or train.clip_grad_norm: 1.0 may help",
            kind=FailureKind.NON_FINITE_LOSS,
        )
    return loss
