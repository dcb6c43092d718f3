"""Long work shows how far it is and how long it still takes: a bar in a terminal, plain lines in a log."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 15
LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"


class Lines(tqdm):
    """A line each time, where nothing can be written over."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write where the work stands."""
        print(self, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write it a last time, without the line ends of a bar."""
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
    """`items` as they are, or a bar to `update` where there are none; `total` is their number where `len` fails.

    `late` is for parts of other work: nothing shows of what is done at once, nor of the rest when it is done. Numbers
    of a `unit` are shortened, 1.9G for 1,900,000,000. Of several processes only the first one of a machine shows any.
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
