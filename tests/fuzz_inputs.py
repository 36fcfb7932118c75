"""What tests/fuzz.py feeds to its targets: good files and requests with parts replaced, put in, doubled or cut."""

import contextlib
import io
import json
import string
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from fbsearch.data.image_tree import FORMATS

WORDS = [
    "name", "data", "model", "train", "space", "search", "format", "study", "root", "image_size", "limit", "augment",
    "flip", "max_pixels", "low", "high", "log", "step", "choices", "num_stages", "level", "epochs", "batch_size",
    "learning_rate", "warmup_epochs", "tensorboard", "sampler", "grid", "limits", "parameters", "memory_mib", "configs",
    "class_names", "mean", "std", "versions", "exported", "seed", "rank", "value", "compute", "num_trials", "folder",
    "model.fractal_levels", "model.base_channels", "model.pattern", "train.learning_rate", "train.epochs", "digits",
    "fbsearch-export/1", "fbsearch-model/1", "~x/y", "\0", "\x1b[31m", "\ud800", "\u202e", "<<", "=", "2026-13-45",
]  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**60), 10**60) | st.floats() | st.sampled_from(WORDS)
    | st.text(max_size=20) | st.dates() | st.sampled_from([0, 1, 2, 4, 8, 0.5, -1, 2**31, 2**32, 2**63, 4e9, 1e308])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | SCALARS, inner, max_size=4),
    max_leaves=8,
)
TAGS = ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "str", "seq", "map", "merge"]
SNIPPETS = st.sampled_from([
    "&a ", "*a", "<<: *a\n", "!!python/name:os.system ", "? ", "- ", "[", "]", "{", "}", ": ", "\n", "  ", "|\n", ">\n",
    *(f"!!{tag} " for tag in TAGS), "''", '""', '"\\e"', '"\\ud800"', "0x_", "0b", "1:60:60", "1e400", "-.inf", ".nan",
    "1" * 101, "---\n", "%YAML 9\n",
])  # fmt: skip


def _paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


def _replace(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = content.copy()
    changed[path[0]] = _replace(content[path[0]], path[1:], value)
    return changed


@st.composite
def yaml_files(draw: st.DrawFn, whole: dict[str, Any]) -> bytes:
    """A good file with some values replaced, keys added, and some of its text cut, doubled or overwritten."""
    content: Any = whole
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(_paths(content))))
        content = _replace(content, path, draw(VALUES))
    with contextlib.suppress(yaml.YAMLError, UnicodeError):
        text = yaml.safe_dump(content, allow_unicode=True)
        for _ in range(max(0, draw(st.integers(-2, 2)))):
            at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
            text = text[:at] + draw(SNIPPETS | st.text(max_size=6)) + text[at + length :]
        return text.encode(errors="surrogatepass")
    return repr(content).encode(errors="replace")


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A good file with some bytes overwritten, put in or cut."""
    content = draw(whole)
    for _ in range(draw(st.integers(0, 4))):
        # Most of what decides stands at the beginning.
        at = draw(st.integers(0, min(len(content), 64)) | st.integers(0, len(content)))
        length = draw(st.integers(0, 4))
        content = content[:at] + draw(st.binary(max_size=4) | st.just(b"\xff\xff\xff\xff")) + content[at + length :]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@cache
def images() -> list[bytes]:
    """Small images in every format and mode that Pillow writes."""
    rng = np.random.default_rng(0)
    found = []
    for kind in FORMATS:
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
            picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert("RGB")
            with contextlib.suppress(Exception):
                buffer = io.BytesIO()
                (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(buffer, format=kind)
                found.append(buffer.getvalue())
    return found


@cache
def entries() -> list[bytes]:
    """A good cache entry, and good headers of other arrays."""
    found = []
    for array in (
        np.zeros((3, 4, 4, 1), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros(3),
        np.zeros((0, 4, 4, 1)),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(
            json.dumps({"crc32": zlib.crc32(array.tobytes()), "broken": [1]}).encode() + b"\n" + buffer.getvalue()
        )
    return found


INDEX = st.builds(
    lambda content: json.dumps(content, default=str, skipkeys=True).encode(),
    st.fixed_dictionaries({"crc32": st.integers() | VALUES, "broken": st.lists(st.integers()) | VALUES}),
)
HEADERS = st.sampled_from([
    "Host", "Origin", "Referer", "Authorization", "Content-Length", "Transfer-Encoding", "Cookie", "Upgrade", "Expect",
    "Connection", "Range", "X-HTTP-Method-Override", "X-Forwarded-Host", "Sec-WebSocket-Key", "If-None-Match",
    "Accept-Encoding", "Content-Type",
]) | st.text(string.printable, max_size=8)  # fmt: skip
HEADER_VALUES = (
    st.sampled_from([
        "localhost", "127.0.0.1:8080", "[::1]:1", "[", "[]:", "evil.example", "http://127.0.0.1:8080/x", "http://[",
        "Basic", "Basic \u00e9", "Basic eDo=", "Basic eDpnZWhlaW0tw6k=", "basic ====", "Bearer x", "-1", "9" * 30,
        "null", "chunked",
    ]) | st.text(max_size=12) | st.text(st.characters(max_codepoint=255), max_size=12)
)  # fmt: skip


METHODS = st.sampled_from(["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", ""]) | st.text(max_size=5)
PATHS = st.sampled_from(["/artifacts/0/1", "//", "*", "http://x/", "/%00", "/%", "/\u00e9"]) | st.text(max_size=9)
VERSIONS = st.sampled_from(["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.1.1", "", "HTTP/-1.1", "HTTP/\u00b9.1"])


@st.composite
def mostly(draw: st.DrawFn, good: Any, odd: st.SearchStrategy[Any]) -> Any:
    """`good` four times out of five."""
    return draw(odd) if draw(st.integers(0, 4)) == 4 else good


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request of known and unknown parts, most of it as a browser would send it."""
    parts = [("GET", METHODS), ("/", PATHS), ("HTTP/1.1", VERSIONS)]
    lines = [" ".join(draw(mostly(good, odd)) for good, odd in parts)]
    lines += [draw(mostly("Host: localhost", HEADER_VALUES.map(lambda value: f"Host: {value}")))]
    for name, value in draw(st.lists(st.tuples(HEADERS, HEADER_VALUES), max_size=4)):
        lines.append(f"{name}{draw(mostly(': ', st.sampled_from([':', ' ', ''])))}{value}")
    end = draw(mostly("\r\n", st.sampled_from(["\n", "\r"])))
    return (end.join(lines) + 2 * end).encode("utf-8", errors="surrogatepass") + draw(
        mostly(b"", st.binary(max_size=16))
    )


@st.composite
def bytes_too(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """An input of `whole`, one in five with other bytes."""
    return draw(damaged(whole)) if draw(st.integers(0, 4)) == 4 else draw(whole)
