"""The networks that `bench model` measures, and their implementations: this package, or a file named by --against."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fbsearch.config.models import FractalPatternType, ModelConfig
from fbsearch.errors import ConfigError
from fbsearch.network.model import SIZES, FractalBrainNet

NUM_CLASSES = 10
OURS = "fbsearch"


@dataclass(frozen=True)
class Net:
    """A network and the shape of the batches that it is measured on."""

    name: str
    config: ModelConfig
    batch_size: int
    image_size: int = 32
    in_channels: int = 3


# The network of the default study, and the documented sizes on CIFAR's images with batches that take a core seconds.
NETS = {
    "digits": Net("digits", ModelConfig(fractal_levels=(2,), base_channels=16, stem="conv3"), 64, 8, 1),
    "small": Net("small", SIZES["small"], 128),
    "medium": Net("medium", SIZES["medium"], 32),
    "large": Net("large", SIZES["large"], 8),
    "xlarge": Net("xlarge", SIZES["xlarge"], 2),
}

# The choices of the public reference where our defaults differ, so that both do the same work.
REFERENCE_FORM = {"global_attention": "pooled", "drop_path": "channel", "init": "reference"}


def choose_net(name: str, *, batch_size: int | None, reference_form: bool) -> Net:
    """Return one of NETS, with another batch size unless it is None, and in REFERENCE_FORM if wanted."""
    net = NETS[name]
    config = net.config.model_copy(update=REFERENCE_FORM) if reference_form else net.config
    return replace(net, config=config, batch_size=net.batch_size if batch_size is None else batch_size)


@dataclass(frozen=True)
class Implementation:
    """A builder of the networks. `build` returns None for a net that it does not have.

    `path` is None for this package's own; with `in_graph`, steps are measured as a CUDA graph.
    """

    name: str
    build: Callable[[Net], nn.Module | None]
    path: Path | None = None
    in_graph: bool = False

    @property
    def is_ours(self) -> bool:
        return self.path is None


def our_implementations(
    *, compiled: bool, in_graph: bool = False, backend: str | Callable[..., Any] = "inductor"
) -> list[Implementation]:
    """Return this package's networks: eager, if wanted as a CUDA graph as the trainer runs them, and compiled.

    `backend` is torch.compile's.
    """
    ours = [Implementation(OURS, _build_ours)]
    if in_graph:
        ours.append(Implementation(f"{OURS} graph", _build_ours, in_graph=True))
    if compiled:
        ours.append(Implementation(f"{OURS} compiled", partial(_build_ours, backend=backend)))
    return ours


def load_implementations(paths: Sequence[Path]) -> list[Implementation]:
    """Execute Python files with other implementations, see `load_implementation`, and name each after its file."""
    names = [path.stem for path in paths]
    twice = {OURS, *(name for name in names if names.count(name) > 1)}
    names = [str(path) if name in twice else name for path, name in zip(paths, names, strict=True)]
    return [load_implementation(path, name=name) for path, name in zip(paths, names, strict=True)]


def load_implementation(path: Path, *, name: str) -> Implementation:
    """Execute a Python file that offers `create_fractal_brain_net(model_size, num_classes, fractal_pattern)`.

    The pattern is taken from the file's own `FractalPatternType` if it has one. The `digits` net has no documented
    size: it is built with the file's class `FractalBrainNet` if that takes our arguments or the public reference's.
    Raises ConfigError if the file cannot be executed or lacks the function.
    """
    spec = importlib.util.spec_from_file_location(f"fbsearch_against_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"--against {path}: {'is no Python file' if path.exists() else 'no such file'}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--against {path}: cannot be executed: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "create_fractal_brain_net", None)):
        raise ConfigError(f"--against {path}: has no function create_fractal_brain_net")
    return Implementation(name, partial(_build, module), path)


def _build(module: ModuleType, net: Net) -> nn.Module | None:
    """Build a net with a file's class or function. A class that takes our arguments gets the whole configuration."""
    build = getattr(module, "FractalBrainNet", None)
    names = set(inspect.signature(build).parameters) if build is not None else set()
    shape = {"num_classes": NUM_CLASSES, "in_channels": net.in_channels}
    model: Any
    if build is not None and {"config", "image_size", *shape} <= names:
        model = build(net.config, **shape, image_size=net.image_size)
    elif net.name != "digits":
        pattern = getattr(module, "FractalPatternType", FractalPatternType).MANDELBROT
        model = module.create_fractal_brain_net(model_size=net.name, num_classes=NUM_CLASSES, fractal_pattern=pattern)
    elif build is not None and {"fractal_levels", "base_channels", "pattern_resolution", *shape} <= names:
        fields = net.config.model_dump(include={"fractal_levels", "base_channels", "pattern_resolution"})
        model = build(**shape, **fields)
        # The reference has no stem for small images: 3x3 of stride 1 instead of 7x7 of stride 2, for equal work.
        model.stem[0] = nn.Conv2d(net.in_channels, net.config.base_channels, 3, padding=1)
    else:
        return None
    if not isinstance(model, nn.Module):
        raise TypeError(f"got a {type(model).__name__}, not a torch.nn.Module")
    return model


def _build_ours(net: Net, *, backend: str | Callable[..., Any] | None = None) -> nn.Module:
    model = FractalBrainNet(net.config, num_classes=NUM_CLASSES, in_channels=net.in_channels, image_size=net.image_size)
    if backend is not None:
        model.compile(backend=backend)
    return model
