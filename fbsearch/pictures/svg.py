"""A canvas for SVG drawings without scripts; text is escaped. Lengths are pixels."""

import base64
import io
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from PIL import Image

ARROW = '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4"'
INK, FAINT, RULE = "#1f2933", "#66737f", "#d5dbe1"


class Canvas:
    """Shapes in the order in which they are drawn."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", radius: float = 3
    ) -> None:
        """Draw a rectangle with its upper left corner at (x, y)."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 12,
        anchor: str = "middle",
        fill: str = INK,
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """Write one line; y is its baseline. `turned` reads upwards."""
        weight = ' font-weight="600"' if bold else ""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}{turn}>'
            f"{escape(_printable(content))}</text>"
        )

    def line(
        self, points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1.5, arrow: bool = False
    ) -> None:
        """Draw straight lines from point to point."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self._parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{end}/>'
        )

    def area(self, points: Sequence[tuple[float, float]], *, fill: str, opacity: float = 0.15) -> None:
        """Fill a polygon, through which one sees what lies below."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polygon points="{joined}" fill="{fill}" fill-opacity="{opacity:g}"/>')

    def dot(self, x: float, y: float, *, fill: str) -> None:
        """Draw a point."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{fill}"/>')

    def picture(self, x: float, y: float, side: float, image: Image.Image) -> None:
        """Put a picture at (x, y), its pixels kept as squares."""
        png = io.BytesIO()
        image.save(png, format="PNG")
        self._parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{side:g}" height="{side:g}" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"/>'
        )

    def render(self, width: float, height: float, *, title: str) -> str:
        """Return the file; `title` is the text for screen readers."""
        arrow = (
            f'{ARROW} markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/>'
            "</marker></defs>"
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(_printable(title))} '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        )
        ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
        return "\n".join([head, arrow, ground, *self._parts, "</svg>\n"])


def _printable(text: str) -> str:
    """Replace what XML cannot hold: control characters and lone surrogates, which file names may have."""
    return re.sub(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)
