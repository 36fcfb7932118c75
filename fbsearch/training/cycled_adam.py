"""Adam whose learning rate and first beta may be tensors on the device, so that a CUDA graph can hold its step."""

from typing import Any

import torch
from torch.optim.adam import adam


class CycledAdam(torch.optim.Adam):
    """Adam or AdamW whose learning rate and first beta may be tensors on the device.

    torch's fused kernel takes the betas as Python numbers, which a CUDA graph would keep for ever, and its foreach
    form reads a tensor beta back to the host, which a capture forbids. The result is the same up to rounding. All
    parameters of a group are stepped together from the start, so that they share one step count.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter group once."""
        assert closure is None
        for group in self.param_groups:
            self.step_group(group, lr=group["lr"])

    def step_group(self, group: dict[str, Any], *, lr: float | torch.Tensor) -> None:
        """Update one parameter group at a learning rate."""
        lists: list[list[torch.Tensor]] = [[] for _ in range(6)]
        self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        params, grads, means, squares, _, counts = lists
        if params and params[0].device.type == "cpu" and not isinstance(lr, torch.Tensor):
            # No graph is captured here: torch's fused kernel takes a fifth of the time.
            beta1, beta2 = group["betas"]
            adam(
                params, grads, means, squares, [], counts, fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=lr,
                weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
                decoupled_weight_decay=group["decoupled_weight_decay"],
            )  # fmt: skip
        elif params:
            _step_adam(group, lr, params, grads, means, squares, counts)


def _step_adam(
    group: dict[str, Any],
    lr: float | torch.Tensor,
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    means: list[torch.Tensor],
    squares: list[torch.Tensor],
    counts: list[torch.Tensor],
) -> None:
    beta1, beta2 = group["betas"]
    torch._foreach_add_(counts, 1)
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    elif group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, torch._foreach_mul(grads, 1 - beta1))
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_div_(divisors, (1 - beta2 ** counts[0]).sqrt())
    torch._foreach_add_(divisors, group["eps"])
    torch._foreach_mul_(divisors, (beta1 ** counts[0] - 1) / lr)
    torch._foreach_addcdiv_(params, means, divisors)
