"""Choices and defaults of flags that several folders use. Imports nothing heavy: `fbsearch --help` stays fast."""

from enum import StrEnum
from pathlib import Path

DEFAULT_STORAGE = "sqlite:///studies/fbsearch.db"
# The folder of what is trained, and where `fbsearch report` looks for it.
REPORTS = Path("reports")
DEFAULT_TRIALS = 100


class ModelFormat(StrEnum):
    """The formats of `fbsearch export-model`."""

    ONNX = "onnx"
    TORCH = "torch"


class BaselineName(StrEnum):
    """The baselines of `fbsearch train`, in the order in which they are trained."""

    CNN = "cnn"
    RESNET8 = "resnet8"
    FRACTALNET = "fractalnet"
    RESNET18 = "resnet18"
    SMALL = "small"
    MEDIUM = "medium"
    RANDOM_SEARCH = "random_search"


class BaselineRecipe(StrEnum):
    """The training of FractalNet as a baseline: that of rank 1, or that of its paper."""

    SAME = "same"
    PAPER = "paper"
