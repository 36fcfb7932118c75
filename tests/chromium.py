"""The browser of the tests, how long they wait for it, and what they look for in a picture of a page."""

import io
import shutil

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Milliseconds. On a machine that does much else, a page takes more than Playwright's half minute.
PATIENCE = 240_000
# What people look at: a phone, a tablet or half a screen, a desk.
WIDTHS = (390, 768, 1440)
# A cell of the picture of a page in which no area of a dark page is white: text and lines are thinner.
CELL_PIXELS = 16


def has_white(picture: bytes) -> bool:
    """Whether a picture has a cell that is white, on the average of its pixels."""
    with Image.open(io.BytesIO(picture)) as image:
        cells_HWC = np.asarray(image.convert("RGB").reduce(CELL_PIXELS))
    return bool((cells_HWC.min(axis=2) > 225).any())
