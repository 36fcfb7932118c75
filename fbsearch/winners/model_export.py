"""Export of trained networks to ONNX and torch.export, checked against the live network before a file is kept."""

import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fbsearch.config.choices import ModelFormat
from fbsearch.errors import ConfigError
from fbsearch.files import FileKind, check_output, write_output
from fbsearch.network.blocks import AdaptiveScaleProcessor
from fbsearch.network.fused_ops import fold_convolutions
from fbsearch.winners.checkpoint import CARD_NAME, TrainedModel, dump_card

EXPORT_ENDINGS = {ModelFormat.ONNX: ".onnx", ModelFormat.TORCH: ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest allowed difference of a logit from the live network's, as a share of the largest logit.
EXPORT_TOLERANCE = 1e-3
EXPORT_BATCHES = (1, 2, 5)
EXPORTED_MODEL = FileKind("exported model of fbsearch", CARD_NAME.encode())  # both formats carry the card by its name
DYNAMIC_BATCH = ({0: torch.export.Dim("batch", min=1)},)


class _Deployed(nn.Module):
    """The exported module: float32 images [B, C, H, W] in [0, 1], normalised inside -> logits [B, K], for any B."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.net = _fold(copy.deepcopy(model.net).cpu())
        self.register_buffer("mean_C11", torch.tensor(model.card.mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(model.card.std).view(-1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return cast("Tensor", self.net((images_BCHW - self.mean_C11) / self.std_C11))


class _FoldedScaleProcessor(nn.Module):
    """An AdaptiveScaleProcessor in eval mode whose linear layers are always one; that one decides by the batch size."""

    def __init__(self, processor: AdaptiveScaleProcessor) -> None:
        super().__init__()
        fusion, norm, activation = processor.scale_fusion
        parts = [processor.local_processor, processor.regional_processor, processor.global_processor]
        kernel, bias = fold_convolutions(cast("nn.Conv2d", fusion), parts)
        convolution = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=kernel.shape[2] // 2)
        convolution.load_state_dict({"weight": kernel, "bias": bias})
        self.fused = nn.Sequential(convolution, norm, activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return cast("Tensor", self.fused(x_BCHW)) + x_BCHW


def _fold(net: nn.Module) -> nn.Module:
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AdaptiveScaleProcessor):
                setattr(module, name, _FoldedScaleProcessor(child))
    return net.requires_grad_(False).eval()


def _lay_out(module: nn.Module) -> None:
    """Give each tensor contiguous memory of its own: torch.export's archive warns of views and strides."""
    for part in module.modules():
        for name, value in [*part.named_buffers(recurse=False), *part.named_parameters(recurse=False)]:
            plain = value.detach().clone(memory_format=torch.contiguous_format)
            if isinstance(value, nn.Parameter):
                part.register_parameter(name, nn.Parameter(plain, requires_grad=False))
            else:
                part.register_buffer(name, plain, persistent=name not in part._non_persistent_buffers_set)


def export_model(
    model: TrainedModel,
    path: Path,
    *,
    kind: ModelFormat,
    packages: Sequence[str] = ONNX_PACKAGES,
    tolerance: float = EXPORT_TOLERANCE,
    force: bool = False,
) -> float:
    """Write the network as ONNX or as a `torch.export` program, for images in [0, 1] and any batch size.

    The file is read back and its logits are compared with the live network's (float32, on the CPU) on random images at
    several batch sizes before it is put in place. Returns the largest difference, as a share of the largest logit.
    Raises ConfigError where they differ, ONNX's packages are missing, or `path` is there and no exported model, without
    `force`; StorageError if the file cannot be written.
    """
    check_output(path, kind=EXPORTED_MODEL, force=force)
    missing = [name for name in packages if kind == ModelFormat.ONNX and importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'fbsearch[onnx]'")
    card = model.card
    shape = (card.in_channels, card.image_size, card.image_size)
    deployed, live = _Deployed(model).eval(), copy.deepcopy(model.net).cpu().eval()
    example_BCHW = torch.rand(2, *shape)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _attention_in_steps():
        deployed(example_BCHW)  # the first forward pass at a size computes the masks
        _lay_out(deployed)
        scratch = Path(folder) / f"model{EXPORT_ENDINGS[kind]}"
        write = _export_onnx if kind == ModelFormat.ONNX else _export_torch
        run = write(deployed, example_BCHW, scratch, dump_card(card))
        worst = 0.0
        for batch in EXPORT_BATCHES:
            images_BCHW = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
            expected_BK = live(model.normalise(images_BCHW))
            difference = (run(images_BCHW / 255) - expected_BK).abs().max() / expected_BK.abs().max()
            worst = max(worst, difference.item())
        if not worst <= tolerance:
            raise ConfigError(f"{path}: not written: its outputs differ from the live network's by {worst:.2g}")
        write_output(path, scratch.read_bytes(), kind=EXPORTED_MODEL, force=force)
    return worst


def _export_torch(module: nn.Module, example_BCHW: Tensor, path: Path, card: str) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(module, (example_BCHW,), dynamic_shapes=DYNAMIC_BATCH)
    torch.export.save(program, path, extra_files={CARD_NAME: card})
    with warnings.catch_warnings():
        # torch 2.11 reads the file's tensors as memory that nobody may write to.
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return cast("Callable[[Tensor], Tensor]", torch.export.load(path).module())


def _export_onnx(module: nn.Module, example_BCHW: Tensor, path: Path, card: str) -> Callable[[Tensor], Tensor]:
    onnxruntime = importlib.import_module("onnxruntime")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it reports on stderr what it does not simplify
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # torch 2.11 calls what it says is deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        program = torch.onnx.export(
            module,
            (example_BCHW,),
            dynamo=True,
            dynamic_shapes=DYNAMIC_BATCH,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[CARD_NAME] = card
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images_BCHW: torch.from_numpy(session.run(["logits"], {"images": images_BCHW.numpy()})[0])


@contextlib.contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Turn off torch's fused attention of eval mode, which no other program has."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
