"""A study that suits a folder of images: image size, augmentation, batch size, compute of a trial and search space."""

import bisect
from dataclasses import dataclass

from fbsearch.config.models import AugmentConfig, BudgetConfig, DataConfig
from fbsearch.config.space import DEFAULT_SPACE, LEVELS, ChoiceSpace, LevelsSpace, RangeSpace
from fbsearch.config.study_file import SHORT_RUN_MODEL, SHORT_RUN_TRAINING, SearchConfig, StudyConfig

# Time grows with the square of the side: larger images are worth a try once the search works.
IMAGE_SIZES = (8, 16, 24, 32, 48, 64)
# Each list of limits has one value more beside it: the first for what is below the first limit, and so on.
TRAINING_IMAGES = (1_000, 20_000)
BATCH_SIZES = (32, 64, 128)
TRAINING_IMAGES_OF_A_TRIAL = (3_000, 20_000)
SECONDS_OF_A_TRIAL = (10.0, 20.0, 60.0)
SIDES = (16, 32, 64)
NUM_STAGES = ((1, 2), (2, 3), (3,), (3, 4))
EPOCHS = 8


@dataclass(frozen=True, kw_only=True)
class FolderFacts:
    """What the choice depends on: `side` is the median over the images of the shorter side, in pixels."""

    root: str
    side: int
    num_train: int
    is_colour: bool
    has_broken: bool


def suggest_image_size(side: int) -> int:
    """Return the largest usual size that `side` pixels fill, 8 at least and 64 at most."""
    return IMAGE_SIZES[max(0, bisect.bisect_right(IMAGE_SIZES, side) - 1)]


def suggest_study(name: str, facts: FolderFacts) -> StudyConfig:
    """Return a study for a folder of images; every value is a starting point that its user may change.

    Small images get few stages, few images small batches and short trials. Colour images are mirrored at random, grey
    ones are not: they are often signs, which a mirror makes wrong.
    """
    side = suggest_image_size(facts.side)
    augment = AugmentConfig(flip=facts.is_colour, shift=side // 16, cutout=0)
    seconds = SECONDS_OF_A_TRIAL[bisect.bisect_right(TRAINING_IMAGES_OF_A_TRIAL, facts.num_train)]
    batch_size = BATCH_SIZES[bisect.bisect_right(TRAINING_IMAGES, facts.num_train)]
    num_stages = NUM_STAGES[bisect.bisect_right(SIDES, side)]
    training = {"epochs": EPOCHS, "budget": BudgetConfig(seconds=seconds), "batch_size": batch_size}
    return StudyConfig(
        name=name,
        data=DataConfig(name="folder", root=facts.root, image_size=side, augment=augment, skip_broken=facts.has_broken),
        model=SHORT_RUN_MODEL,
        train=SHORT_RUN_TRAINING.model_copy(update={**training, "weight_decay": 0.02}),
        space=DEFAULT_SPACE
        | {
            LEVELS: LevelsSpace(num_stages=num_stages, level=(1, 2)),
            "model.base_channels": ChoiceSpace(choices=(16, 24, 32)),
            "train.learning_rate": RangeSpace(low=0.002, high=0.02, log=True),
        },
        search=SearchConfig(pruner="median"),
    )
