"""What the corners of a study's space cost, and which of its limits they keep; before anything is trained."""

import torch

from fbsearch.config.study_file import MAX_CORNERS, StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.training.cost import Cost, measure_corners
from fbsearch.training.loop import choose_device, choose_dtype
from fbsearch.training.requirements import estimate_memory

UNITS = {"parameters": "parameters", "flops": "FLOPs an image", "memory_mib": "MiB to train (estimated)"}


def describe_corners(config: StudyConfig, *, num_classes: int, in_channels: int, image_size: int) -> list[str]:
    """Lines on the corners' costs and on each limit.

    ConfigError if a corner cannot be built, or if all corners are known and none is within a limit: then nothing is.
    """
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    costs = measure_corners(config, **shape)
    many = f"the first {MAX_CORNERS:,}" if len(costs) == MAX_CORNERS else str(len(costs))
    smallest, largest = (choose(cost.num_parameters for cost in costs) for choose in (min, max))
    lines = [
        f"{many} corners of the space build on {in_channels} x {image_size} x {image_size} images: {smallest:,} to "
        f"{largest:,} parameters, up to {max(cost.flops for cost in costs):,} FLOPs an image"
    ]
    for key, limit in config.search.limits.model_dump(exclude_none=True).items():
        values = _values(key, config, costs, shape)
        num_within = sum(value <= limit for value in values)
        line = (
            f"search.limits.{key} {limit:,.0f}: {num_within} of {len(values)} corners are within, which have "
            f"{min(values):,.0f} to {max(values):,.0f} {UNITS[key]}"
        )
        if not num_within and len(costs) < MAX_CORNERS:
            raise ConfigError(f"{line}; raise the limit, or search smaller networks")
        lines.append(line)
    return lines


def _values(key: str, config: StudyConfig, costs: list[Cost], shape: dict[str, int]) -> list[float]:
    if key == "parameters":
        return [cost.num_parameters for cost in costs]
    if key == "flops":
        return [cost.flops for cost in costs]
    device: torch.device = choose_device("auto")
    return [
        estimate_memory(trial, **shape, device=device, dtype=choose_dtype(trial.train.precision, device))
        for trial in config.corners()
    ]
