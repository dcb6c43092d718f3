"""Strict reading of YAML and JSON: a file means one thing, or it is refused.

Both parsers raise `ValueError` with one line, and nothing else, for whatever the bytes are.
"""

import json
import math
from collections.abc import Hashable
from typing import Any, NoReturn

import yaml
from pydantic import TypeAdapter, ValidationError

DEPTH = 50
"""How deep values may be nested."""
VALUES = 100_000
"""How many values a YAML file may hold: nine lines of references to references would make billions."""


def parse_yaml(data: bytes) -> Any:
    """The values of a YAML file without tags, repeated keys, or dates: `2024-01-02` is text."""
    try:
        found = yaml.load(_text(data), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {_short(error)}") from None
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check(found, VALUES)
    return found


def parse_json(data: bytes) -> Any:
    """The values of a JSON file without repeated keys, NaN, or numbers beyond the largest float."""
    try:
        found = json.loads(
            _text(data), object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite_number
        )
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    _check(found)
    return found


def parse_as(kind: Any, data: bytes) -> Any:
    """The values of a JSON file as `kind`: a dataclass, or a type such as `dict[str, float]`."""
    parse_json(data)
    try:
        return TypeAdapter(kind).validate_json(data.removeprefix(BOM), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None


BOM = b"\xef\xbb\xbf"
"""What some editors put before the text of a file in UTF-8."""


def _text(data: bytes) -> str:
    try:
        return data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8: byte {error.start + 1} is {data[error.start]:#04x}") from None


def _check(root: Any, most: float = math.inf) -> None:
    """Refuse values that are nested too deep, or too many."""
    todo, count = [(root, 0)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")
        if count > most:
            raise ValueError(f"more than {most:,} values")
        if isinstance(value, dict):
            todo += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            todo += [(each, depth + 1) for each in value]


class _Loader(yaml.SafeLoader):
    """The values of YAML that JSON has, too; text that can be printed and used in a path."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _wrong(f"the tag {event.tag}", event)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _wrong(f"{value[:40]!r} is no text", node)
        return value

    def construct_yaml_float(self, node: Any) -> float:
        value: float = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _wrong(f"{node.value} is no number", node)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong("a list or a mapping as a key", key)
            if key.value in seen:
                raise _wrong(f"the key {key.value!r} twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _wrong(what: str, place: Any) -> ValueError:
    return ValueError(f"{what} (line {place.start_mark.line + 1})")


def _short(error: yaml.YAMLError) -> str:
    """What is wrong, and where, without the lines around it."""
    mark = getattr(error, "problem_mark", None)
    return f"{getattr(error, 'problem', None) or error}{f' (line {mark.line + 1})' if mark else ''}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _not_finite(text)
    return value
