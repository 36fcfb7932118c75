"""FractalBrainNet and the networks to compare it with. Must not import training, data or optuna."""
