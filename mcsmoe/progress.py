"""Long work shows how far it is and how long it still takes: a bar in a terminal, plain lines in a log."""

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
            self.display()
            self.disable = True


def progress(items: Iterable[Any] | None, description: str, total: int | None = None, show: bool = True) -> tqdm:
    """`items` as they are, or a bar to `update` where there are none; `total` is their number where `len` fails."""
    if sys.stderr.isatty():
        return tqdm(items, description, total, disable=not show, mininterval=TERMINAL_SECONDS)
    return Lines(items, description, total, disable=not show, mininterval=LOG_SECONDS, bar_format=LINE)
