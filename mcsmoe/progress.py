"""Progress of long work, with the time left: a bar in a terminal, plain lines in a log."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 15
LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"


class Lines(tqdm):
    """Progress as separate lines, for outputs where a bar cannot be redrawn."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the current state as a line."""
        print(self, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print the final state, without the line breaks that a bar needs."""
        if not self.disable:
            if self.leave:
                self.display()
            self.disable = True


def progress(
    items: Iterable[Any] | None,
    description: str,
    total: int | None = None,
    show: bool = True,
    *,
    late: bool = False,
    unit: str = "",
) -> tqdm:
    """Iterate over `items` and show progress; without `items`, call `update` on the result.

    `total` is the number of items if `len(items)` does not tell. `late` is for parts of other work: quick parts show
    nothing, and slow parts leave nothing behind when they are done. With a `unit` numbers are shortened: 1.9G for
    1,900,000,000. Of several processes only the first on each machine shows anything.
    """
    bar, seconds, form = (tqdm, TERMINAL_SECONDS, None) if sys.stderr.isatty() else (Lines, LOG_SECONDS, LINE)
    return bar(
        items,
        description,
        total,
        leave=not late,
        disable=not show or os.environ.get("LOCAL_RANK", "0") != "0",
        mininterval=seconds,
        delay=seconds if late else 0,
        unit=unit or "it",
        unit_scale=bool(unit),
        bar_format=form,
    )
