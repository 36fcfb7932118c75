"""One network ready to be measured: a training step, an inference, their FLOPs and memory, on random images.

The step is the trainer's (`training.step.train_batch`) with AdamW; on request as a CUDA graph.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import os
import time
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fbsearch.bench.networks import NUM_CLASSES, Net
from fbsearch.config.models import TrainConfig
from fbsearch.training.cuda_graph import capture, capture_stream
from fbsearch.training.optimizers import make_optimizer
from fbsearch.training.step import autocast_forward, train_batch


class Subject:
    """A network with its batch and optimiser, ready to be measured. Its first step is taken, and its seconds kept."""

    def __init__(
        self,
        model: nn.Module,
        net: Net,
        *,
        is_ours: bool,
        device: torch.device,
        dtype: torch.dtype,
        in_graph: bool = False,
    ) -> None:
        """`in_graph`: steps are replays of a CUDA graph; the first step and the memory are still those without."""
        self._graphs: dict[str, torch.cuda.CUDAGraph] | None = None
        self.model = model.to(device).train()
        self.is_ours, self.dtype = is_ours, dtype
        shape = (net.batch_size, net.in_channels, net.image_size, net.image_size)
        self.x_BCHW = torch.randn(shape, device=device)
        self.labels_B = torch.randint(0, NUM_CLASSES, (net.batch_size,), device=device)
        if is_ours:  # the memory format of the trainer; others run as they come
            self.model.to(memory_format=torch.channels_last)
            self.x_BCHW = self.x_BCHW.contiguous(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, TrainConfig())
        started = time.perf_counter()
        self.step("training")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.first_step_seconds = time.perf_counter() - started
        self.memory_mib = self.peak_memory_mib()
        if in_graph:
            self._graphs = {}

    def step(self, phase: str) -> None:
        """A training step, or an inference of the batch; the model must be in the mode of the phase."""
        if self._graphs is None:
            self._launch(phase)
            return
        if phase not in self._graphs:
            device = self.x_BCHW.device
            with capture_stream(device):
                self._launch(phase)
            self.optimizer.zero_grad(set_to_none=True)
            self._graphs[phase] = capture(partial(self._launch, phase), device=device)
        self._graphs[phase].replay()

    def _launch(self, phase: str) -> None:
        if phase == "inference":
            with torch.inference_mode():
                autocast_forward(self.model, self.x_BCHW, dtype=self.dtype)
        else:
            train_batch(self.model, self.optimizer, self.x_BCHW, self.labels_B, dtype=self.dtype)

    def count_flops(self, phase: str) -> float:
        """FLOPs of a step for each image, as torch's counter sees them: matrix products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.step(phase)
        return float(counter.get_total_flops() / len(self.x_BCHW))

    def peak_memory_mib(self) -> float:
        """The most memory that training holds at once, in MiB.

        Weights, buffers, optimiser state and batch, and the highest sum of what torch's allocator hands out on top
        in two steps: activations, gradients, temporaries. On the CPU the profiler reports each allocation, so that
        the figure does not depend on what else the machine does; on CUDA the allocator itself counts.
        """
        self.optimizer.zero_grad(set_to_none=True)
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *states, self.x_BCHW, self.labels_B]
        held = sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)
        above = self._peak_on_cuda() if self.x_BCHW.is_cuda else self._peak_on_cpu()
        return (held + above) / 2**20

    def _two_steps(self) -> None:
        # The second begins as every later one does, with the gradients of the one before.
        for _ in range(2):
            self.step("training")

    def _peak_on_cuda(self) -> int:
        device = self.x_BCHW.device
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self._two_steps()
        return int(torch.cuda.max_memory_allocated(device) - before)

    def _peak_on_cpu(self) -> int:
        # The profiler's library logs to stderr by itself, such as an error where there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        cpu = torch.profiler.ProfilerActivity.CPU
        # acc_events: torch 2.11 warns that the events of other cycles are dropped; there is one cycle.
        with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
            self._two_steps()
        assert profile.profiler is not None and profile.profiler.kineto_results is not None
        events = profile.profiler.kineto_results.events()
        total = peak = 0
        for _, num_bytes in sorted(
            (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
        ):
            total += num_bytes
            peak = max(peak, total)
        return peak
