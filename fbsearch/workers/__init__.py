"""Run trials in worker processes of this machine, or in actors on a Ray cluster. Must not import optuna."""
