"""Muon: orthogonalised updates for the kernels of convolutions, AdamW for everything else.

Source: Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024), and for kernels of constant
norm Jordan's CIFAR-10 speed runs (airbench). Suffixes: R rows (output channels), N numbers of a row.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fbsearch.training.cycled_adam import CycledAdam

# A kernel turns by this times the learning rate, which is AdamW's, so that the same rates suit `adamw` and `muon`.
TURN = 10.0
# Nesterov momentum: short runs want less than the usual 0.95.
MOMENTUM = 0.6
# Muon takes five rounds for large networks, its author's CIFAR-10 runs three.
NUM_ROUNDS = 3
# Kernels on fewer input channels than this read the image; their rows are too few numbers to be orthogonal.
MIN_CHANNELS = 8


def is_hidden_kernel(parameter: nn.Parameter) -> bool:
    """Return true for the kernel of a convolution wider than 1x1 that reads feature maps.

    1x1 convolutions are left out: the gates of a join and the bands end in no norm, so that their scale matters.
    """
    return parameter.ndim == 4 and parameter.shape[1] >= MIN_CHANNELS and parameter.shape[2:].numel() > 1


class Muon(CycledAdam):
    """Muon for groups marked `orthogonal`, AdamW for the others.

    A kernel keeps the norm sqrt(R): a norm follows nearly every such convolution of our networks, so that its scale is
    free, and a learning rate of 0.005 always turns a kernel by about 5%. Kernels have no weight decay.
    Rates may be numbers or tensors on the device, and no step reads anything back to the host.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float) -> None:
        groups = [{"orthogonal": False} | group for group in groups]
        # capturable: the steps are counted on the device, as a step without a host needs it.
        super().__init__(groups, lr=lr, capturable=True, decoupled_weight_decay=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter group once."""
        assert closure is None
        for group in self.param_groups:
            if group["orthogonal"]:
                for kernel in group["params"]:
                    self._turn(kernel, lr=group["lr"])
            else:
                self.step_group(group, lr=group["lr"])

    def _turn(self, kernel: nn.Parameter, *, lr: float | Tensor) -> None:
        if kernel.grad is None:
            return
        state = self.state[kernel]
        if not state:
            # torch's Adam, which loads a saved state, looks for `step` in that of every parameter.
            state["step"], state["momentum_buffer"] = torch.zeros((), device=kernel.device), torch.zeros_like(kernel)
        state["step"] += 1
        buffer = state["momentum_buffer"]
        buffer.mul_(MOMENTUM).add_(kernel.grad)
        update_RN = orthogonalise(kernel.grad.add(buffer, alpha=MOMENTUM).flatten(1))
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm().clamp_min(1e-7))
        kernel.sub_(update_RN.view(kernel.shape).mul_(TURN * lr))


def orthogonalise(matrix_RN: Tensor) -> Tensor:
    """Return a matrix with the singular vectors of the argument, its singular values drawn towards 1.

    Newton-Schulz iteration with Muon's coefficients, which takes only matrix products.
    """
    is_tall = matrix_RN.shape[0] > matrix_RN.shape[1]
    x = matrix_RN.T if is_tall else matrix_RN
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(NUM_ROUNDS):
        gram = x @ x.T
        x = 3.4445 * x + torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    orthogonal_RN: Tensor = x.T if is_tall else x
    return orthogonal_RN
