"""A config.json with another number of experts, and not a byte else changed."""

import json
import re
from collections.abc import Collection
from typing import Any

from mcsmoe.errors import CheckpointError


def with_expert_count(text: str, names: Collection[str], before: int, after: int, older: str | None = None) -> str:
    """The JSON object `text` with `after` where `before` stands under those of `names` that are in it.

    The name "a.b" is the b of the object a. `older` is the name by which transformers before 5 knows the number: it
    joins the others where the source was saved anew by 5, which writes the new name only.
    Raises `CheckpointError` where none is, or where one has another value.
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
    if older is not None and older not in values:
        opening, rest = text.split("{", 1)
        gap = rest[: len(rest) - len(rest.lstrip())]
        text = f'{opening}{{{gap}"{older}": {after},{rest}'
    return text


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _owner(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The object that has the last part of the name; an empty one where there is none."""
    for part in name.split(".")[:-1]:
        values = values.get(part) or {}
    return values


def _with_number(text: str, name: str, number: int) -> str:
    wanted = json.loads(text)
    _owner(wanted, name)[_last(name)] = number
    # The name may occur in other objects, too.
    matches = re.finditer(rf'"{re.escape(_last(name))}"\s*:\s*(\d+)', text)
    edits = (text[: match.start(1)] + str(number) + text[match.end(1) :] for match in matches)
    return next(edit for edit in edits if json.loads(edit) == wanted)
