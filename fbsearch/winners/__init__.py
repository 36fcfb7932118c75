"""Chosen networks: train, score, compare, keep and use them. Must not import optuna."""
