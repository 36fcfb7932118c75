"""One training run: its loop and steps, its device, the memory it needs. Must not import optuna."""
