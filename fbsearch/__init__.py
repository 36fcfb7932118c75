"""fbsearch: find the best FractalBrainNet for your images.

The public names of the package. Each is loaded on first use, so that `import fbsearch` takes milliseconds:

    study = fbsearch.search("data/images", trials=100)      # a folder, a study file, (images, labels) ...
    model = study.train(seeds=3)
    model.predict(images)
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbsearch.api.classifier import FractalBrainNetClassifier
    from fbsearch.api.model import Model, load_model
    from fbsearch.api.search import search
    from fbsearch.api.study import BestTrial, Study, list_studies, open_study
    from fbsearch.config.export_file import load_export
    from fbsearch.config.models import DataConfig, FractalPatternType, ModelConfig, TrainConfig
    from fbsearch.config.study_file import StudyConfig, load_study_file
    from fbsearch.errors import FbsearchError
    from fbsearch.network.model import FractalBrainNet, create_fractal_brain_net
    from fbsearch.network.patterns import FractalPatternGenerator, generate_pattern

_HOMES = {
    "BestTrial": "api.study",
    "DataConfig": "config.models",
    "FbsearchError": "errors",
    "FractalBrainNet": "network.model",
    "FractalBrainNetClassifier": "api.classifier",
    "FractalPatternGenerator": "network.patterns",
    "FractalPatternType": "config.models",
    "Model": "api.model",
    "ModelConfig": "config.models",
    "Study": "api.study",
    "StudyConfig": "config.study_file",
    "TrainConfig": "config.models",
    "create_fractal_brain_net": "network.model",
    "generate_pattern": "network.patterns",
    "list_studies": "api.study",
    "load_export": "config.export_file",
    "load_model": "api.model",
    "load_study_file": "config.study_file",
    "open_study": "api.study",
    "search": "api.search",
}

__all__ = [
    "BestTrial",
    "DataConfig",
    "FbsearchError",
    "FractalBrainNet",
    "FractalBrainNetClassifier",
    "FractalPatternGenerator",
    "FractalPatternType",
    "Model",
    "ModelConfig",
    "Study",
    "StudyConfig",
    "TrainConfig",
    "create_fractal_brain_net",
    "generate_pattern",
    "list_studies",
    "load_export",
    "load_model",
    "load_study_file",
    "open_study",
    "search",
]


def _load(name: str) -> Any:
    return getattr(importlib.import_module(f"fbsearch.{_HOMES[name]}"), name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fbsearch' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return _load(name)


def __dir__() -> list[str]:
    return list(__all__)


class _Package(types.ModuleType):
    """This package, in which `search` stays the function: there is a folder of that name too.

    The import system sets a folder as an attribute of its package. Nobody reads that one: `from fbsearch.search.state
    import ...` and `import fbsearch.search.state` find their module without it.
    """

    @property
    def search(self) -> Any:
        return _load("search")

    @search.setter
    def search(self, folder: types.ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
