"""YAML as users keep it: read with the line of each fault, errors in words, written for people."""

import datetime
import difflib
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fbsearch.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key that stands twice is an error, and 1e-3 is a number (YAML 1.2, not 1.1's text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key_node.value for key_node, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # a date or a number that cannot be, such as 2026-13-45
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, *, maker: str) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError names file, line and fault. `maker` is the command that writes one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `{maker}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `name: my-study`, found {type(content).__name__}")
    return content


def without_unset_keys(dimension: BaseModel) -> dict[str, Any]:
    """A dimension without the keys that are off, so that a range shows no empty `step`."""
    return {
        key: value
        for key, value in dimension.model_dump(mode="json").items()
        if value is not None and value is not False
    }


def on_one_line(value: Any) -> str:
    """A plain value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(content: dict[str, Any]) -> str:
    """YAML for people: keys in the given order, below each other; a list of plain values on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Block style for the outline, one line for lists of plain values."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = flow_style or not any(isinstance(item, (dict, list)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)

    def represent_datetime(self, data: datetime.datetime) -> yaml.ScalarNode:
        text = data.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.represent_scalar("tag:yaml.org,2002:timestamp", text)


_Dumper.add_representer(datetime.datetime, _Dumper.represent_datetime)


def describe_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The errors of pydantic as lines `key.path: what is wrong and what is allowed`."""
    lines = []
    items = error.errors()
    for item in items:
        if any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items):
            continue  # only says again that something below it is wrong
        loc = tuple(part for part in item["loc"] if not str(part).startswith("<"))
        key = ".".join(str(part) for part in loc)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown_key(model, item["loc"])
        elif item["type"] == "missing":
            message = "this key is missing"
        elif not isinstance(item["input"], (dict, BaseModel)):
            message = f"{message[0].lower()}{message[1:]}, found {item['input']!r}"
        lines += [f"{key}: {message}"] if key else message.split("\n")
    return lines


def _unknown_key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What to write instead of a key that is not known, from the model that `loc` leads to."""
    allowed: list[str] = []
    current: type[BaseModel] | None = model
    annotation: Any = None
    for part in loc[:-1]:
        if isinstance(part, int):
            annotation = next(iter(typing.get_args(annotation)), None)
        else:
            field = current.model_fields.get(part) if current else None
            annotation = field.annotation if field else None
        current = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    if current is not None:
        allowed = list(current.model_fields)
    elif loc[-2:-1]:
        tags = {"<range>": "low, high, log, step", "<choices>": "choices", "<levels>": "num_stages, level"}
        return f"unknown key; allowed: {tags.get(str(loc[-2]), 'none')}"
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    return "unknown key; " + (f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(allowed))
