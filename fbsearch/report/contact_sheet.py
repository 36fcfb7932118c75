"""The contact sheet of a report: a few training images of each class, which the search has stored."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from fbsearch.messages import ClassSample, Samples

# How the files begin that a worker stores; anything else is not shown.
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class SampledClass:
    """A class with its number of training images, and a picture as the address of an image in HTML."""

    name: str
    count: int
    picture: str


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """The classes that are shown, and the one with the fewest training images."""

    classes: tuple[SampledClass, ...]
    num_classes: int
    smallest: str
    num_smallest: int


def make_contact_sheet(samples: Samples | None, class_names: Sequence[str]) -> ContactSheet | None:
    """Return the contact sheet of stored samples; None without them, or with a form that cannot be shown."""
    try:
        if samples is None:
            return None
        classes = tuple(_sampled(one, class_names) for one in samples.classes if one.picture)
        smallest = str(class_names[samples.smallest])
    except (IndexError, TypeError, ValueError, binascii.Error):  # there may be anything in a database
        return None
    if not classes:
        return None
    return ContactSheet(
        classes=classes, num_classes=len(class_names), smallest=smallest, num_smallest=samples.num_smallest
    )


def _sampled(one: ClassSample, class_names: Sequence[str]) -> SampledClass:
    content = base64.b64decode(one.picture, validate=True)
    kind = next((kind for begin, kind in KINDS.items() if content.startswith(begin)), None)
    if kind is None:
        raise ValueError("neither PNG nor JPEG")
    return SampledClass(name=str(class_names[one.label]), count=one.count, picture=f"data:{kind};base64,{one.picture}")
