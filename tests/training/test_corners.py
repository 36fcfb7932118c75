"""What `fbsearch validate` says of the costs of a space's corners and of its limits."""

import pytest

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.training.requirements import describe_corners

SHAPE = ImageShape(num_classes=10, in_channels=1, image_size=8)


def make_config(**limits: float) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "model": {"fractal_levels": [1]},
            "space": {
                "model.base_channels": {"low": 4, "high": 32, "step": 4},
                "train.batch_size": {"choices": [16, 64]},
            },
            "search": {"limits": limits},
        }
    )


def test_describe_corners_without_limits_is_one_line() -> None:
    (line,) = describe_corners(make_config(), SHAPE)
    assert line.startswith("4 corners of the space build on 1 x 8 x 8 images: ")


def test_describe_corners_says_how_many_keep_each_limit() -> None:
    _, parameters, memory = describe_corners(make_config(parameters=20_000, memory_mib=100.0), SHAPE)
    assert parameters.startswith("search.limits.parameters 20,000: 2 of 4 corners are within, which have ")
    assert memory.startswith("search.limits.memory_mib 100: 4 of 4 corners are within, ") and "MiB" in memory


@pytest.mark.parametrize("limits", [{"parameters": 10}, {"flops": 10}, {"memory_mib": 0.01}])
def test_describe_corners_limit_that_no_corner_keeps_is_refused(limits: dict[str, float]) -> None:
    (name,) = limits
    with pytest.raises(ConfigError, match=rf"search.limits.{name} .*: 0 of 4 corners .*; raise the limit"):
        describe_corners(make_config(**limits), SHAPE)
