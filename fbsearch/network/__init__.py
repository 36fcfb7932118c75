"""FractalBrainNet and the networks to compare it with. Must not know how a network is trained."""
