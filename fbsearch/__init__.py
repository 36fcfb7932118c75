"""fbsearch: find the best FractalBrainNet for your images.

What a program needs is here by name, each loaded when it is first used:

    config = fbsearch.load_export("best.yaml").configs[0]
    model = fbsearch.FractalBrainNet(config.model, num_classes=config.num_classes, in_channels=config.in_channels)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbsearch.config import FractalPatternType, ModelConfig
    from fbsearch.model import FractalBrainNet, create_fractal_brain_net
    from fbsearch.patterns import FractalPatternGenerator, generate_pattern
    from fbsearch.study_file import load_export, load_study

_HOMES = {
    "FractalBrainNet": "model",
    "FractalPatternGenerator": "patterns",
    "FractalPatternType": "config",
    "ModelConfig": "config",
    "create_fractal_brain_net": "model",
    "generate_pattern": "patterns",
    "load_export": "study_file",
    "load_study": "study_file",
}

__all__ = [
    "FractalBrainNet",
    "FractalPatternGenerator",
    "FractalPatternType",
    "ModelConfig",
    "create_fractal_brain_net",
    "generate_pattern",
    "load_export",
    "load_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fbsearch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fbsearch.{_HOMES[name]}"), name)
