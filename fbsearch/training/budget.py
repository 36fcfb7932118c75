"""The number of training steps that a budget in FLOPs or seconds pays for.

Shapes: B batch, C channels, H height, W width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# A backward pass computes two products for each one of the forward pass.
FORWARD_PASSES_OF_A_STEP = 3
# The first steps allocate memory, choose algorithms and capture a graph.
WARM_UPS = 2
MIN_TIMED, MAX_TIMED = 3, 100
# The share of a budget for the steps that are timed; MIN_TIMED may take more.
TIMED_SHARE = 0.05
SHORTEST_STEP = 1e-9  # in seconds: a clock may not see a step pass


def forward_flops(model: nn.Module, x_BCHW: torch.Tensor) -> int:
    """Return the FLOPs of a forward pass in eval mode, a multiply-add counted as two; `model` is left in eval mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x_BCHW)
    return int(counter.get_total_flops())


@dataclass
class SecondsBudget:
    """What is left of a budget of seconds, and what a step has cost last. Its parts get equal shares of what is left.

    A machine that becomes slower so takes fewer steps, and no run takes longer than it may by more than one part.
    """

    left: float
    seconds_a_step: float

    def count_steps(self, *, num_parts: int) -> int:
        """Return the steps of the next of `num_parts` parts, at least 1."""
        return max(1, int(self.left / num_parts / self.seconds_a_step))

    def spend(self, seconds: float, *, num_steps: int) -> None:
        """Take the seconds of a part from the budget."""
        self.left = max(0.0, self.left - seconds)
        self.seconds_a_step = max(seconds / num_steps, SHORTEST_STEP)


def measure_steps(
    seconds: float, take_step: Callable[[], None], *, device: torch.device, num_timed: int | None = None
) -> SecondsBudget:
    """Return what remains of `seconds` after some steps were taken to measure their time.

    The first WARM_UPS steps are free: a worker's first trial would lose the start-up of libraries. `num_timed` fixes
    the number of steps that are timed, for processes that must take the same number.
    """
    clock = training_clock(device)
    for _ in range(WARM_UPS):
        take_step()
    budget = SecondsBudget(seconds, SHORTEST_STEP)

    def time_steps(count: int) -> None:
        started = clock()
        for _ in range(count):
            take_step()
        budget.spend(clock() - started, num_steps=count)

    time_steps(1)
    time_steps(num_timed or int(min(max(TIMED_SHARE * seconds / budget.seconds_a_step, MIN_TIMED), MAX_TIMED)))
    return budget


def training_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of a budget, in seconds: of the processor for one thread on a CPU, else of the wall.

    Other programs do not disturb the processor's seconds. On a GPU the clock waits for the device.
    """
    if device.type == "cuda":

        def synchronised() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronised
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
