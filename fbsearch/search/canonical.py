"""When two configurations are the same: what has no effect is dropped, what means the same is merged.

Two configurations of one canonical form train the same network in the same way; only their seeds differ.
"""

import hashlib
import json
from typing import Any

from fbsearch.config.models import TrialConfig

SAME_ACTIVATION = {"swish": "silu"}


def canonical(config: TrialConfig) -> str:
    """A short key of a configuration's canonical form. Where it writes and how it is seeded is no part of it."""
    form = config.model_dump(mode="json", exclude={"seed": True, "train": {"tensorboard"}})
    _merge_model(form["model"])
    _merge_train(form["train"])
    return hashlib.blake2b(json.dumps(form, sort_keys=True).encode(), digest_size=16).hexdigest()


def _merge_model(model: dict[str, Any]) -> None:
    model["activation"] = SAME_ACTIVATION.get(model["activation"], model["activation"])
    joins = max(model["fractal_levels"]) > 1
    if model["drop_path"] in ("local", "channel") and model["drop_path_prob"] == 0:
        model["drop_path"] = "none"
    if model["drop_path"] == "mixed" and model["drop_path_prob"] == 0:
        model["drop_path"] = "global"
    if model["drop_path"] in ("local", "global", "mixed") and not joins:
        model["drop_path"] = "none"
    if model["drop_path"] in ("none", "global"):  # a global path is dropped with a share of its own
        model["drop_path_prob"] = None


def _merge_train(train: dict[str, Any]) -> None:
    if train["optimizer"] in ("adamw", "adam"):
        train["momentum"] = None
        if train["weight_decay"] == 0:
            train["optimizer"] = "adamw"
    patience = train["early_stopping"]
    if patience is not None and patience >= train["epochs"] - 1:  # the first epoch is always the best so far
        train["early_stopping"] = None
