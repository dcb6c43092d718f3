"""Types of the values in a params file, and the base class of its sections."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

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
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if found and (found[2] or "B") in UNITS:
        return int(float(found[1]) * UNITS[found[2] or "B"])
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("a size such as 16GB, 512MiB or a number of bytes; null: no limit")


def shown_size(size: float) -> str:
    """A number of bytes for people, in three digits: 61,064,000,000 → "61.1 GB"."""
    unit, name = max(((step, name) for name, step in UNITS.items() if "i" not in name and step <= max(size, 1)))
    return f"{size / unit:.3g} {name.replace('K', 'k')}"


Bytes = Annotated[Positive | None, BeforeValidator(size_in_bytes)]


def find_directory(path: str | Path) -> Path:
    """Look up a relative directory in the working directory, then in its parents; return `path` if none has it.

    A queued experiment runs in a subdirectory of the project, where `../data` must still be found. `~` is the home
    directory.
    """
    path, here = Path(path).expanduser(), Path.cwd()
    if path.is_absolute() or path.is_dir():
        return path
    return next((parent / path for parent in here.parents if (parent / path).is_dir()), path)


def looked_in(path: str | Path) -> str:
    """Where `find_directory` has looked, for people who get to know that nothing is there."""
    return "" if Path(path).expanduser().is_absolute() else f" in {Path.cwd()} and the directories above it"


class Section(BaseModel):
    """A section of a params file: frozen, unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", value):
        raise ValueError("a method is named by letters, digits and . + - _ only: its name becomes one of files")
    return value


Name = Annotated[str, AfterValidator(_name)]
