"""Progress of long work, with the time left: a bar in a terminal, plain lines in a log."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from tqdm import tqdm

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 15
LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f} %), {elapsed} gone, {remaining} left{postfix}"
WHOLE_LINE = "{percentage:.0f} % {desc}, {elapsed} gone, {remaining} left"
WHOLE_BAR = "{percentage:3.0f} % |{bar:24}| {desc}, {elapsed} gone, {remaining} left"


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
    done: int = 0,
) -> tqdm:
    """Iterate over `items` and show progress; without `items`, call `update` on the result.

    `total` is the number of items if `len(items)` does not tell, `done` how many an earlier run has done. `late` is
    for parts of other work: quick parts show nothing, and slow parts leave nothing behind when they are done. With a
    `unit` numbers are shortened: 1.9G for 1,900,000,000. Of several processes only the first on each machine shows
    anything. Inside a phase of a `Whole` there is no bar: the work moves the bar of the whole.
    """
    bar, seconds, form = (tqdm, TERMINAL_SECONDS, None) if sys.stderr.isatty() else (Lines, LOG_SECONDS, LINE)
    if _phases:
        bar, seconds, late = _Part, TERMINAL_SECONDS, False
    return bar(
        items,
        description,
        total,
        leave=not late,
        initial=done,
        disable=not show or os.environ.get("LOCAL_RANK", "0") != "0",
        mininterval=seconds,
        delay=seconds if late else 0,
        unit=unit or "it",
        unit_scale=bool(unit),
        bar_format=form,
    )


class Whole:
    """One bar over several phases of which each is expected to take some seconds.

        with Whole([10, 60, 30]) as whole:
            whole.skip()  # an earlier run has done the first phase
            with whole.phase("merge experts"):
                for layer in progress(layers, "layers"): ...  # moves the bar from 10 to 70

    The seconds need to be right only relative to each other: the time left is that of the pace so far.
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        terminal = sys.stderr.isatty()
        self._left = list(seconds)
        self._bar = (tqdm if terminal else Lines)(
            total=sum(seconds),
            bar_format=WHOLE_BAR if terminal else WHOLE_LINE,
            mininterval=TERMINAL_SECONDS if terminal else LOG_SECONDS,
            miniters=0,  # else the large step of a skipped phase would make all small ones wait
            smoothing=0,
        )

    def __enter__(self) -> "Whole":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def skip(self) -> None:
        """Count the next phase as done, without letting its time count for the pace."""
        seconds = self._left.pop(0)
        self._bar.initial += seconds
        self._bar.update(seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Run the next phase; progress inside it moves the bar."""
        start, seconds = self._bar.n, self._left.pop(0)
        self._bar.set_description_str(name)

        def reached(share: float) -> None:
            self._bar.update(max(0.0, start + share * seconds - self._bar.n))

        _phases.append(reached)
        try:
            yield
        finally:
            _phases.remove(reached)
        reached(1)


_phases: list[Any] = []
"""What the running phase of a `Whole` does with the share of it that is done; empty outside of phases."""


class _Part(tqdm):
    """Work inside a phase. Of nested work the outermost moves the bar."""

    _open: ClassVar[list["_Part"]] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.disable:
            self._open.append(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Move the bar of the whole."""
        if _phases and self.total and self._open[:1] == [self]:
            _phases[-1](min(1.0, self.n / self.total))

    def close(self) -> None:
        """Leave the phase; nothing is printed."""
        if self in self._open:
            self._open.remove(self)
        self.disable = True
