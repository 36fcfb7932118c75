"""Networks on disk: trained networks with their cards, and the state of a run that can go on.

Every file is written whole or not at all: on a full disk the previous file stays. Nothing is unpickled: weights are
safetensors, a run's state is read with `weights_only`.

Shapes: B batch, C channels, H height, W width.
"""

import io
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fbsearch.config.export_file import Export, ExportedConfig, load_export
from fbsearch.config.yaml_format import read_yaml, to_yaml, validate_content
from fbsearch.data.dataset import normalise
from fbsearch.errors import ConfigError, printable
from fbsearch.files import write_whole
from fbsearch.network.model import FractalBrainNet

MODEL_FORMAT: Final = "fbsearch-model/1"
STATE_FORMAT = "fbsearch-training/1"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.yaml"


class ModelCard(ExportedConfig):
    """The file beside the weights: the configuration as it was trained, and what prediction needs.

    `seed` is the training's, `value` the search's. `mean` and `std` are those of each channel, of values in [0, 1].
    """

    format: Literal["fbsearch-model/1"] = MODEL_FORMAT
    study: str
    keep_validation: bool
    class_names: Annotated[tuple[str, ...], Field(strict=False)]
    mean: Annotated[tuple[float, ...], Field(strict=False)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network in eval mode, its card and the folder of both."""

    folder: Path
    card: ModelCard
    net: FractalBrainNet

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Convert uint8 [B, C, H, W] to float32 of the same shape, bit for bit as in training (`Dataset.normalise`)."""
        mean_C, std_C = (torch.tensor(values, device=images_BCHW.device) for values in (self.card.mean, self.card.std))
        return normalise(images_BCHW, mean_C=mean_C, std_C=std_C)


def build_net(config: ExportedConfig) -> FractalBrainNet:
    """Build the network of a configuration; its weights are drawn from torch's global generator."""
    return FractalBrainNet.for_images(config.model, config.shape)


# ------------------------------------------------------------------------------------------------------ trained models


def save_model(folder: Path, net: FractalBrainNet, card: ModelCard) -> None:
    """Write `model.yaml` and `model.safetensors` into a folder. StorageError if it cannot be written."""
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    write_whole(folder / CARD_NAME, dump_card(card))
    write_whole(folder / WEIGHTS_NAME, safetensors.torch.save(weights, metadata={"format": MODEL_FORMAT}))


def dump_card(card: ModelCard) -> str:
    """Return the text of a `model.yaml`."""
    return to_yaml({"format": card.format, "study": card.study} | card.model_dump(mode="json"))


def load_model(path: Path, *, device: torch.device | str = "cpu") -> TrainedModel:
    """Read a trained model. `path` is its folder or the weights in it.

    Raises ConfigError where there is none, and where card or weights are damaged, of a newer format or do not match.
    """
    folder = path.parent if path.is_file() else path
    weights_path = path if path.is_file() else folder / WEIGHTS_NAME
    if not weights_path.is_file():
        raise ConfigError(f"{path}: {_explain_missing(folder)}")
    card = load_card(folder / CARD_NAME)
    try:
        weights = safetensors.torch.load_file(weights_path)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:  # KeyError: a type unknown to torch
        raise ConfigError(
            f"{weights_path}: is no safetensors file, cut off or damaged ({error}); `fbsearch train` writes it anew "
            f"once {folder} is deleted"
        ) from None
    net = _build_within(card, sum(value.numel() for value in weights.values()), folder)
    check_weights(weights_path, weights, net)
    net.load_state_dict(weights)
    return TrainedModel(folder, card, net.to(device).eval())


class _Allowance(TorchFunctionMode):
    """Raise MemoryError once `num_values` values have been allocated by torch.empty, as the layers of a network do it.

    The meta device would tell a network's size too, but takes seconds to load.
    """

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self._left = num_values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.empty:
            self._left -= result.numel()
            if self._left < 0:
                raise MemoryError("more parameters than there are weights")
        return result


def _build_within(card: ModelCard, num_values: int, folder: Path) -> FractalBrainNet:
    """Build the card's network. ConfigError where it has far more parameters than `num_values`, the file's weights."""
    try:
        with _Allowance(2 * num_values + 2**20):
            return build_net(card)
    except (MemoryError, RuntimeError) as error:  # RuntimeError: torch could not allocate them
        raise ConfigError(f"{folder}: {CARD_NAME} and {WEIGHTS_NAME} do not belong together: {error}") from None


def _explain_missing(folder: Path) -> str:
    seeds = sorted(str(found.parent) for found in folder.glob(f"*/{WEIGHTS_NAME}")) if folder.is_dir() else []
    if seeds:
        return f"holds no {WEIGHTS_NAME} itself; name one of {', '.join(seeds)}"
    return f"there is no {folder / WEIGHTS_NAME}; `fbsearch train` writes it when a seed is finished"


def load_card(path: Path) -> ModelCard:
    """Read and check a `model.yaml`. Raises ConfigError for other files and newer formats."""
    content = read_yaml(path, maker="fbsearch train")
    found = content.get("format")
    if found != MODEL_FORMAT:
        newer = isinstance(found, str) and found.startswith("fbsearch-model/")
        reason = f"its format is {found!r}, this fbsearch reads {MODEL_FORMAT!r}" if newer else "it is no model's card"
        raise ConfigError(f"{path}: format: {reason}; `fbsearch train` writes one beside the weights")
    card = validate_content(ModelCard, content, path)
    lengths = {"class_names": card.num_classes, "mean": card.in_channels, "std": card.in_channels}
    for name, length in lengths.items():
        if len(getattr(card, name)) != length:
            raise ConfigError(f"{path}: {name}: has {len(getattr(card, name))} entries, this network needs {length}")
    return card


def find_config(path: Path, *, rank: int) -> tuple[ExportedConfig, str]:
    """Return the configuration of a trained model, or of a rank of an export, and its title. ConfigError for others."""
    if path.is_dir() or path.suffix == ".safetensors" or path.name == CARD_NAME:
        card = load_card((path if path.is_dir() else path.parent) / CARD_NAME)
        return card, f"{card.study}, rank {card.rank}, seed {card.seed}"
    export = load_export(path)
    return choose_config(export, path, rank=rank), f"{export.study}, rank {rank}"


def choose_config(export: Export, path: Path, *, rank: int) -> ExportedConfig:
    """Return the configuration of a rank. ConfigError lists the ranks of the file at `path`."""
    for config in export.configs:
        if config.rank == rank:
            return config
    ranks = ", ".join(str(config.rank) for config in export.configs)
    raise ConfigError(f"--rank {rank}: {path} holds the ranks {ranks}")


def check_weights(path: Path, weights: Mapping[str, Any], net: nn.Module) -> None:
    """Raise a ConfigError that names the first tensor in which the file at `path` differs from the network."""
    expected = net.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            fault = f"has no {name}"
        elif name not in expected:
            fault = f"has {printable(name)}, which this network does not have"
        elif not isinstance(weights[name], Tensor) or weights[name].shape != expected[name].shape:
            fault = f"{name} has shape {list(getattr(weights[name], 'shape', []))}, not {list(expected[name].shape)}"
        elif not torch.can_cast(weights[name].dtype, expected[name].dtype):
            fault = f"{name} is {weights[name].dtype}, not {expected[name].dtype}"
        else:
            continue
        raise ConfigError(f"{path}: belongs to another network than the configuration beside it: {fault}")


# ------------------------------------------------------------------------------------------------------- running state


def save_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values. StorageError if they cannot be written; the previous file then stays whole."""
    buffer = io.BytesIO()  # on a full disk, torch.save into a file raises an assertion of its zip writer
    torch.save({"format": STATE_FORMAT, **content}, buffer)
    write_whole(path, buffer.getbuffer())


def load_state(path: Path, *, keys: Collection[str]) -> dict[str, Any]:
    """Read a file of `save_state` that has `keys`. ConfigError if it is cut off, damaged, or of another format."""
    way_out = "delete it to train this seed from its first epoch"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that are not its own: they are refused here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything in torch's reader
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read, it is cut off or damaged ({reason}); {way_out}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != STATE_FORMAT or not content.keys() >= set(keys):
        raise ConfigError(f"{path}: its format is {found!r}, this fbsearch reads {STATE_FORMAT!r}; {way_out}")
    return content
