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

from fbsearch.errors import ConfigError, printable

Model = TypeVar("Model", bound=BaseModel)

# A file of a few hundred bytes can stand for billions of values. A card with 20,000 classes has 20,000.
MAX_BYTES = 2**22
MAX_NODES = 50_000
MAX_DEPTH = 30
MAX_NUMBER = 100  # characters
# The errors in one message, and the characters of a value that is shown in one.
MAX_ERRORS = 20
MAX_SHOWN = 200


class _Loader(yaml.SafeLoader):
    """The safe loader, but a duplicate key is an error, 1e-3 a number as in YAML 1.2, and the size is limited."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0
        self._sizes: dict[yaml.Node, int] = {}  # the number of nodes in each whole node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        before, mark = self._num_nodes, self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                raise yaml.composer.ComposerError(None, None, "an alias stands for what it is in", mark)
            self._num_nodes += self._sizes[node]
        else:
            self._num_nodes += 1
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
            node = super().compose_node(parent, index)
            assert node is not None
            self._depth -= 1
            self._sizes[node] = self._num_nodes - before
        if self._num_nodes > MAX_NODES:
            problem = f"more than {MAX_NODES:,} keys and values, aliases counted as what they stand for"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!map 3` is none
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_text = node.tag == "tag:yaml.org,2002:str"
        if isinstance(node, yaml.ScalarNode) and not is_text and len(node.value) > MAX_NUMBER:
            problem = f"a number or date of more than {MAX_NUMBER} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            # An impossible date or number, such as 2026-13-45; PyYAML fails in many ways on `!!int ""` and its like.
            problem = (
                str(error) if isinstance(error, ValueError) else f"{getattr(node, 'value', '')!r} is no {node.tag}"
            )
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, *, maker: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError with file and line; `maker` is the command to write one."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `{maker}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, which no file of fbsearch is")
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `name: my-study`, found {_found(content)}")
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
    """Return pydantic's errors as lines `key.path: error and allowed values`, at most MAX_ERRORS of them."""
    lines = []
    items = error.errors(include_url=False)
    above = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    items = [item for item in items if item["loc"] not in above]  # others repeat the error of a key below them
    for item in items[:MAX_ERRORS]:
        loc = tuple(part for part in item["loc"] if not str(part).startswith("<"))
        key = printable(".".join(str(part) for part in loc))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown_key(model, item["loc"])
        elif item["type"] == "missing":
            message = "this key is missing"
        elif item["type"] in ("model_type", "dict_type"):
            message = f"expected keys and values below this key, found {_found(item['input'])}"
        elif item["type"] == "literal_error":
            message = _wrong_choice(item["input"], message)
        elif not isinstance(item["input"], (dict, BaseModel)):
            message = f"{message[0].lower()}{message[1:]}, found {_shown(item['input'])}"
        lines += [f"{key}: {message}"] if key else message.split("\n")
    return lines + ([f"and {len(items) - MAX_ERRORS:,} more errors"] if len(items) > MAX_ERRORS else [])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _found(value: Any) -> str:
    """Describe what stands where keys and values should."""
    return "nothing" if value is None else "a list" if isinstance(value, list) else _shown(value)


def _wrong_choice(value: Any, message: str) -> str:
    """Return the message for a value that is none of several texts, and the closest of them."""
    close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", message), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{message[0].lower()}{message[1:]}, found {_shown(value)}{hint}"


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
        choices = (annotation, *typing.get_args(annotation))  # also of `BudgetConfig | None`
        models = [one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)]
        current = models[0] if models else None
    if current is not None:
        allowed = list(current.model_fields)
    elif loc[-2:-1]:
        tags = {"<range>": "low, high, log, step", "<choices>": "choices", "<levels>": "num_stages, level"}
        return f"unknown key; allowed: {tags.get(str(loc[-2]), 'none')}"
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    return "unknown key; " + (f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(allowed))
