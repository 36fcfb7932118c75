"""What a stranger can hand to a program ends well or with a reason. `python tests/fuzz.py` makes many more inputs."""

import base64

import pytest
import yaml
from fuzz import CARD, EXPORT, STUDY, TARGETS, TOKEN, fuzz, http, stored_predictions
from fuzz_inputs import entries, images

QUICK = 60
# Inputs that have ended in a traceback, a hang or no memory, by target.
BROKE: dict[str, list[bytes]] = {
    "study": [
        b'a: !!int ""',
        b"a: !!timestamp abc",
        b"a: !!bool abc",
        b"a: " + b"[" * 5000,
        b"a: &a [*a]",
        b"a: !!map 03",
        b"space: {1: {low: 1, high: 2}}",
        b"space: {train.learning_rate: {low: -1e308, high: 1e308, step: 1e-300}}",
        b"space: {train.learning_rate: {low: 1" + b"0" * 400 + b", high: 2}}",
        b"limit: 1" + b"0" * 5000,
        b'"\\ud800": 1',
    ],
    "export": [b"format: fbsearch-export/1\nconfigs: [{num_classes: 1" + b"0" * 30 + b"}]"],
    "card": [b'format: fbsearch-model/1\nclass_names: ["\\ud800"]'],
    "cache_entry": [
        b'{"crc32": 0, "broken": [1' + b"0" * 30 + b"]}\n" + entries()[0].partition(b"\n")[2],
        b"[" * 100_000 + b"\n",
        b'{"crc32": 0, "broken": []}\nPK\x03\x04',
        b'{"crc32": 0, "broken": []}\n\x93NUMPY\x01\x00\x0b\x13{"descr": ' + b"(" * 5000,
    ],
    "image": [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n"],
    "http": [
        "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic \u00e9\r\n\r\n".encode(),
        b"POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
    ],
}


@pytest.mark.parametrize("name", TARGETS)
def test_fuzzed_input_is_accepted_or_refused(name: str) -> None:
    outcomes, broke = fuzz(name, num_examples=QUICK, first_seed=0, say=lambda _line: None)
    assert broke == [] and outcomes.keys() <= {"accepted", "refused"}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, inputs in BROKE.items() for content in inputs])
def test_input_that_once_broke_something_ends_well(name: str, content: bytes) -> None:
    # A guard without a token does not look at a password.
    assert TARGETS[name][0](content) == ("accepted" if b"Basic" in content else "refused")


def test_targets_accept_what_is_good() -> None:
    for name, whole in (("study", STUDY), ("export", EXPORT), ("card", CARD)):
        assert TARGETS[name][0](yaml.safe_dump(whole).encode()) == "accepted"
    assert TARGETS["cache_entry"][0](entries()[0]) == "accepted"
    assert TARGETS["predictions"][0](stored_predictions()) == "accepted"
    assert sum(TARGETS["image"][0](content) == "accepted" for content in images()) > 50
    password = base64.b64encode(f"x:{TOKEN}".encode()).decode()
    assert http(f"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {password}\r\n\r\n".encode()) == "accepted"
