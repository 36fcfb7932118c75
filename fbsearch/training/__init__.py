"""One training run: its steps, its device, what it needs. Must not import optuna."""
