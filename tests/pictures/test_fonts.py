"""Names in any script are drawn, or escaped where no font has them: never as empty boxes."""

import pytest
from PIL import ImageFont

from fbsearch.pictures.fonts import MISSING, choose_font


@pytest.mark.parametrize(
    "text", ["Übergröße", "café", "Żółw", "Ψυχή", "Кошка", "日本", "हिन्दी", "قطة", "a\U0001f600b", "plain name"]
)
def test_no_character_is_drawn_as_an_empty_box(text: str) -> None:
    font, drawn = choose_font(text, 14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    box = bytes(font.getmask(MISSING))
    assert all(one.isspace() or bytes(font.getmask(one)) != box for one in drawn)
    escaped = text.encode("unicode_escape").decode()
    assert drawn == text or ("\\" in drawn and len(drawn) <= len(escaped)), "escapes of what no font has, and no more"


def test_without_fonts_beside_pillows_own_a_name_is_escaped() -> None:
    assert choose_font("Größe 日", 14, files=[])[1] == "Gr\\xf6\\xdfe \\u65e5"
    assert choose_font("plain", 14, files=[])[1] == "plain"
