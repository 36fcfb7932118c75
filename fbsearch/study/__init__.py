"""The database remembers: the only home of Optuna. Must not import torch."""
