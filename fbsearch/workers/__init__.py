"""Others train: worker processes of this machine or actors on a Ray cluster. Must not import optuna."""
