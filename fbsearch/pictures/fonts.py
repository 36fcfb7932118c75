"""Fonts that have the characters of a text: names of classes may be in any script; Pillow's own font has ASCII."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Of a system's fonts those that are read first, because they have many scripts.
PREFERRED = ("DejaVuSans.ttf", "NotoSans-Regular", "NotoSansCJK-Regular", "ArialUnicode", "Arial Unicode", "msyh")
# No character: what a font draws for it, it draws for all that it lacks.
MISSING = "\uffff"


def choose_font(text: str, size: int, *, files: Sequence[Path] | None = None) -> tuple[Font, str]:
    """Return a font of `size` pixels that has all characters of a text, and the text as it is to be drawn.

    `files` are the fonts beside Pillow's own, by default those of the system. Where none has all characters, the text
    has an escape, such as `\\u65e5`, for each that the best one lacks: never an empty box.
    """
    return _choose(frozenset(text), text, size, _system_fonts() if files is None else tuple(files))


def _choose(characters: frozenset[str], text: str, size: int, files: tuple[Path, ...]) -> tuple[Font, str]:
    path, lacking = _find(characters, files)
    font = ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size=size)
    return font, "".join(one.encode("unicode_escape").decode() if one in lacking else one for one in text)


@functools.lru_cache(maxsize=512)
def _find(characters: frozenset[str], files: tuple[Path, ...]) -> tuple[Path | None, frozenset[str]]:
    """Return the first font that has the characters, else the one that has most, and what it lacks. None: Pillow's."""
    best: Path | None = None
    lacking = _lacking(None, characters)
    for path in files:
        if not lacking:
            break
        found = _lacking(path, characters)
        if len(found) < len(lacking):
            best, lacking = path, found
    return best, lacking


def _lacking(path: Path | None, characters: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font lacks; all of them where the file cannot be read."""
    try:
        font = ImageFont.load_default(size=16) if path is None else ImageFont.truetype(path, size=16)
        missing = bytes(font.getmask(MISSING))
        return frozenset(one for one in characters if not one.isspace() and bytes(font.getmask(one)) == missing)
    except (OSError, ValueError):  # a font of bitmaps has no such size
        return characters


@functools.cache
def _system_fonts() -> tuple[Path, ...]:
    """Return the font files of this system, those of many scripts first, then upright ones."""
    home = Path.home()
    if sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    elif sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    else:
        folders = [
            Path("/usr/share/fonts"),
            Path("/usr/local/share/fonts"),
            home / ".local/share/fonts",
            home / ".fonts",
        ]
    found = [
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    ]

    def order(path: Path) -> tuple[int, bool, str]:
        place = next((i for i, name in enumerate(PREFERRED) if path.name.startswith(name)), len(PREFERRED))
        return place, any(word in path.name for word in ("Bold", "Italic", "Oblique", "Serif", "Mono")), path.name

    return tuple(sorted(found, key=order))
