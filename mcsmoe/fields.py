"""What a value in a params file may be, and the section that refuses any other."""

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


def _bytes(value: Any) -> Any:
    """Bytes of a size as people write it."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    if found and found[2] in UNITS:
        return int(float(found[1]) * UNITS[found[2]])
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("a size such as 16GB, 512MiB or a number of bytes; null: no limit")


Bytes = Annotated[Positive | None, BeforeValidator(_bytes)]


def find_directory(path: str) -> Path:
    """A relative path is looked up in the working directory, then in its parents; `path` itself where it is nowhere.

    A queued experiment runs in a directory of its own below the project: there, too, `../data` must be found.
    """
    here = Path.cwd()
    return next((parent / path for parent in (here, *here.parents) if (parent / path).is_dir()), Path(path))


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _name(value: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", value):
        raise ValueError("a method is named by letters, digits and . + - _ only: its name becomes one of files")
    return value


Name = Annotated[str, AfterValidator(_name)]
