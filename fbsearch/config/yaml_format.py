"""YAML files of the user: reading with line numbers in errors, checking against a model, writing."""

import datetime
import difflib
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fbsearch.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """The safe loader, but a duplicate key is an error and 1e-3 a number, as in YAML 1.2."""

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
        except ValueError as error:  # an impossible date or number, such as 2026-13-45
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, *, maker: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError with file and line; `maker` is the command to write one."""
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


def validate_content(
    model: type[Model],
    content: dict[str, Any],
    path: Path,
    *,
    check_further: Callable[[dict[str, Any]], list[str]] = lambda _content: [],
) -> Model:
    """Return the model of a file's content. Raises ConfigError, which lists all errors with their keys.

    `check_further` returns errors of invalid content that pydantic does not reach once it has found others.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = describe_errors(error, model) + check_further(content)
        raise ConfigError("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines))) from None


def dump_dimension(dimension: BaseModel) -> dict[str, Any]:
    """Return a dimension of a search space as plain data, without the keys that are None or False."""
    content = dimension.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in content.items() if value is not False}


def to_flow_yaml(value: Any) -> str:
    """Return a plain value as YAML in flow style, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def to_yaml(content: dict[str, Any]) -> str:
    """Return YAML in block style with the keys in the given order; lists of plain values are on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, but lists of plain values are in flow style, and times in UTC to the second."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = flow_style or not any(isinstance(item, (dict, list)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)

    def represent_datetime(self, data: datetime.datetime) -> yaml.ScalarNode:
        text = data.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.represent_scalar("tag:yaml.org,2002:timestamp", text)


_Dumper.add_representer(datetime.datetime, _Dumper.represent_datetime)


def describe_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return pydantic's errors as lines `key.path: error and allowed values`."""
    lines = []
    items = error.errors()
    for item in items:
        if any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items):
            continue  # repeats the error of a key below it
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
    """Return the message for an unknown key: the closest allowed key, or all, of the model at `loc`."""
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
