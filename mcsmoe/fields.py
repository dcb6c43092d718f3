"""Types of the values in a params file, and the base class of its sections."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mcsmoe.errors import SHOWN, ConflictError, ParameterError, UserError, nearest


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Integer, Field(ge=1, lt=2**31)]
Natural = Annotated[Integer, Field(ge=0, lt=2**31)]
Few = Annotated[Integer, Field(ge=1, le=1024)]
Seed = Annotated[Integer, Field(ge=0, lt=2**32)]
Rate = Annotated[Number, Field(gt=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Weight = Annotated[Number, Field(ge=0)]

UNITS = {
    f"{prefix}{kind}B": base**power
    for kind, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGT", 1)
}
UNITS |= {"kB": 1000, "B": 1}


def size_in_bytes(value: Any) -> Any:
    """Bytes of a size: "16GB" → 16 · 10⁹, "512MiB" → 512 · 2²⁰, "1000" → 1,000; integers and None as they are.

    Raises `ValueError` for anything else.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if found and (found[2] or "B") in UNITS:
        return int(float(found[1]) * UNITS[found[2] or "B"])
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("a size such as 16GB, 512MiB or a number of bytes; null: no limit")


def shown_size(size: float) -> str:
    """A number of bytes for people, in three digits: 61,064,000,000 → "61.1 GB"."""
    unit, name = max(((step, name) for name, step in UNITS.items() if "i" not in name and step <= max(size, 1)))
    return f"{size / unit:.3g} {name.replace('K', 'k')}"


Bytes = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(size_in_bytes)]


def find_directory(path: str | Path) -> Path:
    """Look up a relative directory in the working directory, then in its parents; return `path` if none has it.

    A queued experiment runs in a subdirectory of the project, where `../data` must still be found. `~` is the home
    directory.
    """
    path, here = Path(path).expanduser(), Path.cwd()
    # Unlike `Path.is_dir`, `os.path.isdir` takes a name that is too long, or no name at all, for one of nothing.
    if path.is_absolute() or os.path.isdir(path):
        return path
    return next((parent / path for parent in here.parents if os.path.isdir(parent / path)), path)


def looked_in(path: str | Path) -> str:
    """Where `find_directory` has looked, for people who get to know that nothing is there."""
    return "" if Path(path).expanduser().is_absolute() else f" in {Path.cwd()} and the directories above it"


class Section(BaseModel):
    """A section of a params file: frozen; unknown keys, infinity and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Any, where: str | None = None, place: str = "") -> Self:
        """Check values that stand at `place` in the file `where`; the first mistake raises a `UserError`.

        `ParameterError` for an invalid value or unknown key, `ConflictError` for values that do not go together.
        """
        try:
            return cls.model_validate(values)
        except ConflictError as error:
            raise ConflictError(f"{where}: {error}" if where else str(error)) from None
        except ValidationError as error:
            raise _first_mistake(error, cls, where, place) from None


def _of_characters(pattern: str, allowed: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


NAMED = "letters, digits and . + - _ only, none of . + - first: its name becomes one of files"
Name = Annotated[str, _of_characters(r"\w[\w.+-]*", f"a method is named by {NAMED}")]
Module = Annotated[
    str, _of_characters(r"[^\W\d]\w*(\.[^\W\d]\w*)*", "a module as in `import`, such as recipes.my_rules")
]
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HubId = Annotated[str, _of_characters(HUB_ID.pattern, "an id as on the hub: OWNER/NAME or NAME")]


def _first_mistake(error: ValidationError, section: type[Section], where: str | None, place: str) -> UserError:
    """A misspelt key is both unknown and missing: the unknown one is told, for it suggests the one that is missing."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    path, kind, message = first["loc"], first["type"], first["msg"].removeprefix("Value error, ")
    name = ".".join(filter(None, [place, *(str(part)[:SHOWN] for part in path)]))
    if kind == "missing":
        return UserError(f"{f'{where}: ' if where else ''}{name} is missing")
    if kind == "extra_forbidden":
        known = list(_annotation(section, path[:-1]).model_fields)
        message = f"unknown key; known: {', '.join(known)}{nearest(path[-1], known)}"
    elif kind == "literal_error":
        message += nearest(first["input"], re.findall("'(.*?)'", message))
    elif kind.startswith(("greater_than", "less_than")):
        message = f"must be {_limits(_annotation(section, path))}"
    elif kind == "model_type":
        message = "must be a section, with a line for each key"
    return ParameterError(name or "file", first["input"], message.replace("Input should be", "must be"), where)


def _annotation(section: Any, path: Sequence[int | str]) -> Any:
    """The type, with its limits, of what stands at `path` in a section; a section if it is one."""
    found = section
    for part in path:
        if isinstance(part, str) and part in getattr(found, "model_fields", {}):
            field = found.model_fields[part]
            found = Annotated[field.annotation, *field.metadata, None]
        inner = [each for each in _parts(found) if isinstance(each, type) and issubclass(each, BaseModel)]
        found = inner[0] if inner else found
    return found


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of: `list[Natural]` has `int`, its checks and its limits inside."""
    yield annotation
    for each in (*get_args(annotation), *getattr(annotation, "metadata", ())):
        yield from _parts(each)


LIMITS = {"Ge": "at least", "Gt": "more than", "Le": "at most", "Lt": "less than"}
"""Class of a limit in an annotation → how it is said."""


def _limits(annotation: Any) -> str:
    """ "at least 0 and at most 1" of `Fraction`."""
    limits = [(type(each).__name__, each) for each in _parts(annotation)]
    return " and ".join(f"{LIMITS[kind]} {getattr(each, kind.lower()):,}" for kind, each in limits if kind in LIMITS)
