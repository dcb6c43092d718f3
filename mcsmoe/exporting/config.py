"""Edit of a config.json that changes the number of experts and no other byte."""

import json
import re
from collections.abc import Collection
from typing import Any

from mcsmoe.errors import CheckpointError


def with_expert_count(text: str, names: Collection[str], before: int, after: int) -> str:
    """Replace `before` by `after` under each of `names` that the JSON object `text` has.

    A name may be nested: "a.b" is key b of object a.
    Raises `CheckpointError` if no name is found, or if one has another value than `before`.
    """
    values = json.loads(text)
    found = [name for name in names if _last(name) in _owner(values, name)]
    if not found:
        raise CheckpointError(f"config.json of the source has no number of experts; known names: {', '.join(names)}")
    for name in found:
        value = _owner(values, name)[_last(name)]
        if value != before:
            raise CheckpointError(f"{name} = {value!r} in config.json of the source, whose layers have {before}")
        text = _with_number(text, name, after)
    return text


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _owner(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The object that holds the last part of the name, or an empty one: "a.b" → `values["a"]`."""
    for part in name.split(".")[:-1]:
        values = values.get(part) or {}
    return values


def _with_number(text: str, name: str, number: int) -> str:
    wanted = json.loads(text)
    _owner(wanted, name)[_last(name)] = number
    # The name may also occur in other objects: take the edit that gives the wanted values.
    matches = re.finditer(rf'"{re.escape(_last(name))}"\s*:\s*(\d+)', text)
    edits = (text[: match.start(1)] + str(number) + text[match.end(1) :] for match in matches)
    return next(edit for edit in edits if json.loads(edit) == wanted)
