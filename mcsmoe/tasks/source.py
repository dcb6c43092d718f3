"""Where the rows of a task are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = {"train": "train", "test": "validation"}
"""Most test sets hide their labels: figures are those of the development set."""


@dataclass(frozen=True)
class Source:
    """A data set of the hub; a local directory with files of the same splits and columns serves as well.

    `hub` is its id, `subset` the name of one of its configurations, `revision` a commit or reference, None for
    the newest. `splits` names what serves to train and to test.
    """

    columns: Sequence[str]
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)


PASSAGES = Source(columns=("text",))
"""Running text, of no data set in particular."""

CONVERTED = "refs/convert/parquet"
"""The hub's own conversion of a data set that was published as a script, which `datasets` no longer runs."""
