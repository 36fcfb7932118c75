"""The files that a user writes, and their checks, which run before torch or optuna is loaded: must not import them."""
