"""The fields of a network that change nothing, given its other fields."""

from collections.abc import Mapping
from typing import Any

# Of a configuration that an old version stored without the field.
TWO_STAGES = (2, 2)


def unused_model_fields(model: Mapping[str, Any]) -> set[str]:
    """Return the fields of ModelConfig, as plain values by name, without which the same network would be built."""
    levels = model.get("fractal_levels", TWO_STAGES)
    drop_path = model.get("drop_path", "local")
    unused = set()
    if max(levels) == 1:  # nothing is joined, and no path can be dropped
        unused |= {"join"} if drop_path == "channel" else {"join", "drop_path", "drop_path_prob"}
    if drop_path in ("none", "global"):
        unused |= {"drop_path_prob"}
    if len(levels) == 1:
        unused |= {"downsample", "width_growth"}
    if model.get("dynamics") == "none":
        unused |= {"pattern", "pattern_resolution"}
    if model.get("pattern") == "none":
        unused |= {"pattern_resolution"}
    return unused
