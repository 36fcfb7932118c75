"""Others train: worker processes, and how a coordinator reaches them. Must not import optuna."""
