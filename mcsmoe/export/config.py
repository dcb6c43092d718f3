"""A config.json with another number of experts, and not a byte else changed."""

import json
import re
from collections.abc import Collection

from mcsmoe.errors import CheckpointError


def with_expert_count(text: str, names: Collection[str], before: int, after: int, older: str | None = None) -> str:
    """The JSON object `text` with `after` where `before` stands under those of `names` that are in it.

    `older` is the name by which transformers before 5 knows the number: it joins the others where the source was
    saved anew by 5, which writes the new name only.
    Raises `CheckpointError` where none is, or where one has another value.
    """
    values = json.loads(text)
    found = [name for name in names if name in values]
    if not found:
        raise CheckpointError(f"config.json of the source has no number of experts; known names: {', '.join(names)}")
    for name in found:
        if values[name] != before:
            raise CheckpointError(f"{name} = {values[name]!r} in config.json of the source, whose layers have {before}")
        text = _with_number(text, name, after)
    if older is not None and older not in values:
        opening, rest = text.split("{", 1)
        gap = rest[: len(rest) - len(rest.lstrip())]
        text = f'{opening}{{{gap}"{older}": {after},{rest}'
    return text


def _with_number(text: str, name: str, number: int) -> str:
    wanted = json.loads(text) | {name: number}
    # The name may occur in objects inside this one, too.
    matches = re.finditer(rf'"{re.escape(name)}"\s*:\s*(\d+)', text)
    edits = (text[: match.start(1)] + str(number) + text[match.end(1) :] for match in matches)
    return next(edit for edit in edits if json.loads(edit) == wanted)
