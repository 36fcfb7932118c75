"""What the user writes, checked: study files, exports, the models behind them. Must not import torch or optuna."""
