"""What the best network of a study looks through: its masks and attention maps, as pictures inside a page."""

import base64
import datetime
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import BANDS, color, draw_maps, row_label

MASK_PIXELS = 256


def winner_masks(best: pd.DataFrame) -> dict[str, Any] | None:
    """The pattern of the best trial's network and what its four bands are multiplied by, as pictures."""
    model = best.iloc[0]["config"].get("model", {}) if len(best) else {}
    if not {"pattern", "pattern_resolution"} <= model.keys():
        return None
    side = model["pattern_resolution"]
    mask_HW = generate_pattern(model["pattern"], side, side)
    masks = (mask_HW, 1 - mask_HW, mask_HW / 2, np.sin(np.pi * mask_HW))
    fine = generate_pattern(model["pattern"], MASK_PIXELS, MASK_PIXELS)
    pictures = [(f"{model['pattern']}, drawn finely", _picture(fine))]
    pictures += [(band, _picture(mask)) for band, mask in zip(BANDS, masks, strict=True)]
    return {"pattern": model["pattern"], "side": side, "pictures": pictures, "blind": masks[3].max() < 1e-6}


def _picture(mask_HW: Any) -> str:
    """A mask as the data URI of a PNG, its pixels visible as squares."""
    picture = color(np.clip(mask_HW, 0, 1).astype(np.float32))
    file = io.BytesIO()
    picture.resize((MASK_PIXELS, MASK_PIXELS), Image.Resampling.NEAREST).save(file, format="PNG")
    return _data_uri(file.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def attention_picture(folder: Path, stored: dict[str, Any] | None, class_names: Sequence[str]) -> dict[str, Any] | None:
    """The winner's attention maps: those that `fbsearch analyze` has drawn in `folder`, else those of its trial."""
    path = folder / "attention.png"
    if path.is_file():
        drawn = datetime.datetime.fromtimestamp(path.stat().st_mtime)
        return {"picture": _data_uri(path.read_bytes()), "drawn": f"{drawn:%Y-%m-%d %H:%M}", "path": str(path)}
    picture = stored and draw_stored_attention(stored, class_names)
    return {"picture": _data_uri(picture), "path": None} if picture else None


def draw_stored_attention(stored: dict[str, Any], class_names: Sequence[str]) -> bytes | None:
    """A PNG of what is stored of an `events.Attention` with a trial; None if it is not one that this fbsearch reads."""
    names = dict(enumerate(map(str, class_names)))
    try:
        images_NHWC, *stages = (_array(pixels) for pixels in (stored["images"], *stored["stages"]))
        said = zip(stored["labels"], stored["said"], stored["shares"], strict=True)
        rows = [row_label(names.get(a, str(a)), names.get(b, str(b)), share) for a, b, share in said]
    except (KeyError, TypeError, ValueError):
        return None
    columns = [(f"stage {stage}", maps_Nhw) for stage, maps_Nhw in enumerate(stages, start=1)]
    file = io.BytesIO()
    draw_maps(images_NHWC, columns, rows=rows).save(file, format="PNG")
    return file.getvalue()


def _array(pixels: dict[str, Any]) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(pixels["base64"]), np.uint8).reshape(pixels["shape"])
