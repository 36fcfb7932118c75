"""The study that suits a folder of images, and lines that say what was found and chosen."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fbsearch.config.choices import DEFAULT_TRIALS
from fbsearch.config.durations import format_duration
from fbsearch.config.models import DataConfig
from fbsearch.config.study_file import MAX_NAME, StudyConfig
from fbsearch.config.suggestion import FolderFacts, suggest_image_size, suggest_study
from fbsearch.data.summary import Inventory, measure_folder, name_broken, take_inventory


@dataclass(frozen=True)
class Suggestion:
    """A study for a folder of images, and what to tell its user."""

    config: StudyConfig
    notes: tuple[str, ...]


def choose_for_folder(
    folder: Path, *, notice: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> Suggestion:
    """Read all images of a folder, and return a study that suits them. DataError if it is no tree of images."""
    root = str(folder)
    side = measure_folder(root)
    data = DataConfig(name="folder", root=root, image_size=suggest_image_size(side))
    found = take_inventory(data, notice=notice)
    facts = FolderFacts(
        root=root, side=side, num_train=found.num_train, is_colour=found.is_colour, has_broken=bool(found.broken)
    )
    config = suggest_study(folder.resolve().name[:MAX_NAME] or "images", facts)
    return Suggestion(config, _describe(config, facts, found))


def _describe(config: StudyConfig, facts: FolderFacts, found: Inventory) -> tuple[str, ...]:
    train, augment = config.train, config.data.augment
    assert train.budget is not None and train.budget.seconds is not None
    lines = [f"images: {found}"]
    if found.broken:
        lines.append(
            f"note: {name_broken(found.broken)}; the file says `skip_broken: true`, which leaves such files out"
        )
    if found.num_ambiguous:
        lines.append("note: an image that is in two classes cannot be learned; leave it in one of them, or in none")
    mirrored = "mirrored and " if augment.flip else ""
    side = config.data.image_size
    lines.append(
        f"chosen: {side} x {side} pixels (half of the images have a shorter side of at least {facts.side}), batches of "
        f"{train.batch_size}, images {mirrored}shifted by up to {augment.shift}"
    )
    total = format_duration(DEFAULT_TRIALS * train.budget.seconds)
    lines.append(
        f"time: a trial trains for at most {train.budget.seconds:g} s, so {DEFAULT_TRIALS} trials for at most {total}, "
        "shared by the workers; `--budget 30m` searches and trains the winner in a time of your choice"
    )
    return tuple(lines)
