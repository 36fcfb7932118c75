"""From image files to uint8 tensors: sources, decoding, splitting, augmentation. Must not import optuna."""
