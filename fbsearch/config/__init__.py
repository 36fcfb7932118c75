"""The files that a user writes, and their checks. Must not import torch or optuna, which load after the checks."""
