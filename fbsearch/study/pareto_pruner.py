"""Pruning with several objectives, which Optuna's pruners cannot do: a rung keeps what is not dominated there.

Optuna refuses to report epochs of a trial with several objectives. Here a trial's values after each epoch are its
attribute `curve`.
"""

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.study.pareto import find_front, sort_by_fronts, to_losses
from fbsearch.study.trial_record import CURVE


class ParetoHalvingPruner(optuna.pruners.BasePruner):
    """Successive halving by fronts (MO-ASHA, Schmucker et al., arXiv 2106.12639), without waiting for others.

    Rungs are after epoch `min_resource`, `reduction_factor` times as many, and so on. Of the trials that have reached a
    rung by now, this one included, those go on that no other dominates there, and the first 1 / `reduction_factor` in
    the order of `sort_by_fronts`. Failed trials, which are run again, do not compete.
    """

    def __init__(self, goals: tuple[str, ...], *, min_resource: int, reduction_factor: int) -> None:
        self._goals, self._min_resource, self._factor = goals, min_resource, reduction_factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return True if a running trial is to be stopped after its last epoch."""
        epoch = len(trial.user_attrs.get(CURVE, ()))
        if not self._is_rung(epoch):
            return False
        rivals = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.state != TrialState.FAIL
            and other.number != trial.number
            and len(other.user_attrs.get(CURVE, ())) >= epoch
        ]
        losses_NG = to_losses(self._goals, [other.user_attrs[CURVE][epoch - 1] for other in [trial, *rivals]])
        if find_front(losses_NG)[0]:  # the first row is this trial's
            return False
        return 0 not in sort_by_fronts(losses_NG)[: len(losses_NG) // self._factor]

    def _is_rung(self, epoch: int) -> bool:
        rung = self._min_resource
        while rung < epoch:
            rung *= self._factor
        return rung == epoch
