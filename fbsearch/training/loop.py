"""One training run as a generator that yields after every epoch, for search, retraining and benchmarks alike.

Closing the generator stops the run.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Iterator

from torch import nn

from fbsearch.config.models import TrainConfig, TrialConfig
from fbsearch.data.dataset import Dataset
from fbsearch.messages import EpochStats, Execution, kept_epoch
from fbsearch.training.distributed import Team
from fbsearch.training.run import Run, Stopped, TrainState


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
    """Train `model` on the data's training split and validate it after every epoch, or every part of the budget.

    `model` maps [B, C, H, W] to [B, K] logits and lies on `data.device`; it is trained in place, and with
    `keep_best` holds the best epoch's weights when the generator ends. Batches, augmentation, dropout and drop-path
    are drawn from `config.seed`: same seed, same device, same number of steps, same numbers. On CUDA that holds after
    `prepare_device`, and up to rounding: the backward pass of attention over many positions adds up in no fixed order.
    A budget of seconds gives more or fewer steps each time, also after `resume_from`: every part gets an equal share
    of the seconds that are left, and the schedule is stretched to it. An empty validation split is allowed without
    `keep_best` and `early_stopping`; its loss and accuracy are NaN.

    Args:
        stop_requested: Called before every step; when it returns true the generator ends, even within an epoch.
        resume_from: Go on after this state's epoch. On the same device all later numbers equal those of an unbroken
            run.
        save_state: Called with every epoch and the state after it, before the epoch is yielded. The state's tensors
            are the live ones: write or copy them before returning.
        on_execution: On a GPU, called before the first epoch is yielded with how the steps are computed, and again
            before a later epoch where that has changed, since a capture has failed.
        team: The processes that train this model together. Each calls this with the same arguments, takes its part of
            every batch, and gets the same epochs. `batch_size` counts the images of all processes. Batches and
            augmentation are those of a single process; each process draws its own dropout and drop-path.

    Raise TrialError (`non_finite_loss`) as soon as a check finds that the loss is not finite.
    """
    run = Run(
        model, config, data, stop_requested=stop_requested, team=team or Team(),
        resume_from=resume_from,
    )  # fmt: skip
    if resume_from is not None:
        run.restore(resume_from)
    said: Execution | None = None
    try:
        while not run.is_over():
            try:
                stats = run.next_epoch()
            except Stopped:
                return
            if run.device.type == "cuda" and run.step.execution != said:
                said = run.step.execution
                on_execution(said)
            if save_state is not None:
                save_state(stats, run.state())
            yield stats
    finally:
        run.close()
    if run.best_weights is not None:
        model.load_state_dict(run.best_weights)


def final_accuracy(history: list[EpochStats], config: TrainConfig) -> float:
    """Return the validation accuracy of the weights that a run with these epochs has kept."""
    return kept_epoch(history, keep_best=config.keep_best).val_accuracy
