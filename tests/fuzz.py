"""Fuzz all that a stranger can hand to a program: `python tests/fuzz.py --examples 100000`.

Each target takes one input and must end well, or with an FbsearchError (or a 4xx) and in little time. The quick run of
the same targets is in test_fuzz.py. Inputs that once broke something are in its @example lines and in BROKE here.
"""

import argparse
import contextlib
import datetime
import io
import json
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_inputs import INDEX, bytes_too, damaged, entries, images, requests, yaml_files
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from made_predictions import make_predictions

from fbsearch.config.export_file import load_export
from fbsearch.config.study_file import load_study_file, render_study
from fbsearch.data.decode import Target, decode_file, probe
from fbsearch.data.image_cache import Wanted, _read_entry
from fbsearch.errors import FbsearchError, printable_lines
from fbsearch.report.http_guard import Guard
from fbsearch.report.http_server import listen
from fbsearch.winners.checkpoint import load_card
from fbsearch.winners.error_analysis import read_analysis
from fbsearch.winners.predictions import NUM_PICTURES, PREDICTIONS_NAME, save_predictions

# An input of a few kilobytes takes no longer, on any machine.
SECONDS = 60
Reader = Callable[[bytes], str]


@cache
def folder() -> Path:
    """A folder of this process for the files that are read."""
    made = tempfile.TemporaryDirectory(prefix="fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []

# ------------------------------------------------------------------------------------------------------------- targets


def _outcome(read: Callable[[], Any]) -> str:
    """`accepted`, or `refused` where an FbsearchError of harmless text is raised. Any other exception goes through."""
    try:
        read()
    except FbsearchError as error:
        text = printable_lines(str(error))
        assert text.encode() and len(text) < 20_000, f"a message of {len(text)} characters"
        return "refused"
    return "accepted"


def _write(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def study(content: bytes) -> str:
    """A study file; an accepted one must survive being written and read, and give its corners."""
    path = _write("study.yaml", content)

    def read() -> None:
        config = load_study_file(path)
        assert load_study_file(_write("again.yaml", render_study(config).encode())) == config
        next(config.corners())

    return _outcome(read)


def export(content: bytes) -> str:
    """An export file."""
    path = _write("export.yaml", content)
    return _outcome(lambda: load_export(path))


def card(content: bytes) -> str:
    """The card of a trained model."""
    path = _write("model.yaml", content)
    return _outcome(lambda: load_card(path))


def predictions(content: bytes) -> str:
    """The stored predictions of a network; of accepted ones all figures can be computed."""
    path = _write(PREDICTIONS_NAME, content)

    def read() -> None:
        found = read_analysis([path.parent])
        assert found is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of classes without images
            json.dumps(found.as_dict())
        assert len(found.mistakes) <= NUM_PICTURES

    return _outcome(read)


@cache
def stored_predictions() -> bytes:
    """A good file of predictions."""
    save_predictions(folder(), make_predictions(20, class_names=("a", "b")))
    return (folder() / PREDICTIONS_NAME).read_bytes()


def cache_entry(content: bytes) -> str:
    """A cache entry: the bytes of entry.json, a line break, the bytes of images.npy."""
    index, _, images = content.partition(b"\n")
    entry = folder() / "entry"
    entry.mkdir(exist_ok=True)
    (entry / "entry.json").write_bytes(index)
    (entry / "images.npy").write_bytes(images)
    wanted = Wanted(image_size=4, channels=1, max_pixels=100)
    found = _read_entry(entry, wanted, num_files=3, notice=lambda _text: None)
    if found is None:
        return "refused"
    assert found.images_NHWC.shape == (3, 4, 4, 1) and found.images_NHWC.dtype == np.uint8
    assert set(found.broken_M.tolist()) <= {0, 1, 2}
    return "accepted"


def image(content: bytes) -> str:
    """An image file, of 4 MP at most, whose header is read and which is then decoded to 8 x 8."""
    path = _write("image.png", content)

    def read() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target, _ = probe(path.parent, [path.name], image_size=8, channels=None)
            for channels in (target.channels, 4 - target.channels):
                image_HWC = decode_file(path, Target(8, channels, resize=True), skip_broken=False, max_pixels=2**22)
                assert image_HWC is not None and image_HWC.shape == (8, 8, channels)

    return _outcome(read)


@cache
def _server(token: str | None, read_only: bool) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"in"]

    server = listen(host="127.0.0.1", port=0)
    server.set_app(Guard(app, host="127.0.0.1", token=token, read_only=read_only))
    _kept.append(contextlib.closing(server.socket))
    return server


TOKEN = "geheim-\u00e9"


def http(content: bytes) -> str:
    """A request, as it comes from the network, to the guard with a token and to the one without."""
    statuses = []
    for server in (_server(TOKEN, False), _server(None, True)):
        ours, theirs = socket.socketpair()
        with ours, theirs, contextlib.redirect_stderr(io.StringIO()) as errors:
            ours.sendall(content[:60_000])
            ours.shutdown(socket.SHUT_WR)
            server.RequestHandlerClass(theirs, ("127.0.0.1", 1), server)
            theirs.shutdown(socket.SHUT_WR)
            answer = ours.makefile("rb").read()
        assert "Traceback" not in errors.getvalue(), errors.getvalue()
        # A request without HTTP/1.x is answered without a status line; 501 and 505 are http.server's own.
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0
        assert status in (0, 200, 501, 505) or 400 <= status < 500, answer[:200]
        statuses.append(status)
    return "accepted" if 200 in statuses else "refused"


# Good files. What they leave out has defaults.
DATA = {"name": "folder", "root": "data", "image_size": 8, "limit": None, "augment": {"flip": True, "shift": 1}}
MODEL = {"fractal_levels": [1, 2], "base_channels": 8, "pattern": "julia"}
TRAIN = {"epochs": 8, "learning_rate": 0.01, "schedule": "cosine", "warmup_epochs": 0.5, "tensorboard": "runs"}
SPACE = {
    "model.fractal_levels": {"num_stages": [1, 2], "level": [1, 2]},
    "model.base_channels": {"choices": [8, 16]},
    "train.learning_rate": {"low": 0.003, "high": 0.05, "log": True},
    "train.epochs": {"low": 2, "high": 8, "step": 2},
}
PARTS = {"data": DATA, "model": MODEL, "train": TRAIN}
SEARCH = {"sampler": "tpe", "seed": 0, "limits": {"parameters": 5}}
STUDY: dict[str, Any] = {"name": "s", **PARTS, "space": SPACE, "search": SEARCH}
FACTS = {"rank": 1, "trial": 3, "value": 0.9, "num_parameters": 99, "num_classes": 2, "in_channels": 1, "image_size": 8}
CONFIG = {**FACTS, "seed": 4, **PARTS}
COMPUTE = {"num_trials": 1, "num_epochs": 2, "train_flops": 3, "seconds": 4.5}
EXPORT: dict[str, Any] = {
    "format": "fbsearch-export/1",
    "study": "s",
    "exported": datetime.datetime(2026, 11, 22),
    "versions": {"torch": "2.15.0"},
    "configs": [CONFIG],
    "search": {"model": MODEL, "train": TRAIN, "space": SPACE, "compute": COMPUTE},
}
CARD: dict[str, Any] = {
    "format": "fbsearch-model/1",
    "study": "s",
    "keep_validation": True,
    "class_names": ["a", "b"],
    "mean": [0.5],
    "std": [0.5],
    **CONFIG,
}
TARGETS: dict[str, tuple[Reader, st.SearchStrategy[bytes]]] = {
    "study": (study, bytes_too(yaml_files(STUDY))),
    "export": (export, bytes_too(yaml_files(EXPORT))),
    "card": (card, bytes_too(yaml_files(CARD))),
    "predictions": (predictions, damaged(st.builds(stored_predictions))),
    "cache_entry": (
        cache_entry,
        damaged(st.sampled_from(entries()))
        | st.builds(lambda index, entry: index + entry[entry.index(b"\n") :], INDEX, st.sampled_from(entries())),
    ),
    "image": (image, damaged(st.sampled_from(images()))),
    "http": (http, bytes_too(requests())),
}

# -------------------------------------------------------------------------------------------------------- the long run


CHUNK = 5000  # hypothesis takes longer for each input the more it has made


def fuzz(
    name: str, *, num_examples: int, first_seed: int, say: Callable[[str], None]
) -> tuple[Counter[str], list[bytes]]:
    """Run a target; return the counts of its outcomes, and inputs that broke it, one for each place in the code."""
    target, strategy = TARGETS[name]
    outcomes: Counter[str] = Counter()
    broke: dict[str, bytes] = {}

    def run(content: bytes) -> None:
        began = time.monotonic()
        try:
            outcomes[target(content)] += 1
        except Exception as error:
            outcomes["broke"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            if broke.setdefault(f"{type(error).__name__} {frame.filename}:{frame.lineno}", content) is content:
                print(content, traceback.format_exc(), sep="\n", file=sys.stderr, flush=True)
        outcomes["slow"] += time.monotonic() - began > SECONDS

    for start in range(0, num_examples, CHUNK):
        options = settings(
            max_examples=min(CHUNK, num_examples - start),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(first_seed + start)(options(given(strategy)(run)))()
        say(f"{name}: {outcomes.total():,} {dict(+outcomes)}")
    return +outcomes, list(broke.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append", help="one of the targets instead of all")
    arguments = parser.parse_args()
    is_fine = True
    print(
        "| target | inputs | accepted | refused | broke | slow | seconds |\n|---|---|---|---|---|---|---|", flush=True
    )
    for name in arguments.target or TARGETS:
        began = time.monotonic()
        outcomes, broke = fuzz(
            name,
            num_examples=arguments.examples,
            first_seed=arguments.seed,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        total = outcomes["accepted"] + outcomes["refused"] + outcomes["broke"]
        cells = [name, f"{total:,}", *(f"{outcomes[key]:,}" for key in ("accepted", "refused", "broke", "slow"))]
        print(f"| {' | '.join(cells)} | {time.monotonic() - began:,.0f} |", flush=True)
        is_fine = is_fine and not broke and not outcomes["slow"]
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
