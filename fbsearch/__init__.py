"""fbsearch: find the best FractalBrainNet for your images.

The public names of the package. Each is loaded on first use:

    config = fbsearch.load_export("best.yaml").configs[0]
    model = fbsearch.FractalBrainNet(config.model, num_classes=config.num_classes, in_channels=config.in_channels)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbsearch.config.export_file import load_export
    from fbsearch.config.models import FractalPatternType, ModelConfig
    from fbsearch.config.study_file import load_study_file
    from fbsearch.network.model import FractalBrainNet, create_fractal_brain_net
    from fbsearch.network.patterns import FractalPatternGenerator, generate_pattern

_HOMES = {
    "FractalBrainNet": "network.model",
    "FractalPatternGenerator": "network.patterns",
    "FractalPatternType": "config.models",
    "ModelConfig": "config.models",
    "create_fractal_brain_net": "network.model",
    "generate_pattern": "network.patterns",
    "load_export": "config.export_file",
    "load_study_file": "config.study_file",
}

__all__ = [
    "FractalBrainNet",
    "FractalPatternGenerator",
    "FractalPatternType",
    "ModelConfig",
    "create_fractal_brain_net",
    "generate_pattern",
    "load_export",
    "load_study_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fbsearch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fbsearch.{_HOMES[name]}"), name)
