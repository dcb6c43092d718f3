"""Timing alternatives side by side: they take turns, and ratios are between runs of the same round.

Other work on the machine then affects all of them alike. If it shares the cores, CPU seconds are more reliable than
the clock.

    times = in_turns({"ours": ours, "stock": stock}, rounds=7)
    print(ratio(times["ours"], times["stock"]))  # 1.02 (0.99–1.04): median and quartiles
"""

import gc
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcsmoe.checkpoint.output import write_json

RESULTS = Path(__file__).parent / "results"
QUICK = Path("metrics/bench")


class Times(NamedTuple):
    """Seconds of each round, by the clock and of CPU time; those of child processes that have ended count, too."""

    clock: Sequence[float]
    cpu: Sequence[float]

    @property
    def median(self) -> float:
        """The median by the clock."""
        return float(np.median(self.clock))


@dataclass(frozen=True)
class Ratio:
    """How many times as long one alternative takes as another: median and quartiles over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, Times]:
    """Run all `works` one after another in each round; the first `warm` rounds do not count.

    A work on an accelerator must wait for it before it returns.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(warm + rounds):
        for name, work in works.items():
            gc.collect()
            cpu, clock = cpu_seconds(), time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - clock, cpu_seconds() - cpu))
    return {name: Times(*zip(*found[warm:], strict=True)) for name, found in taken.items()}


def ratio(of: Times, to: Times, *, cpu: bool = False) -> Ratio:
    """Time of `of` divided by that of `to`, round by round; by the clock, or in seconds of CPU."""
    kind = "cpu" if cpu else "clock"
    each = np.array(getattr(of, kind)) / np.array(getattr(to, kind))
    return Ratio(*(round(float(np.quantile(each, level)), 4) for level in (0.5, 0.25, 0.75)))


def cpu_seconds() -> float:
    """Seconds of CPU time that this process and its ended children have taken."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)]) + "\n"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Claim:
    """What must be true of a benchmark's figures: `measured` is at most (or, if not `most`, at least) `limit`."""

    what: str
    measured: float
    limit: float
    most: bool = True

    @property
    def holds(self) -> bool:
        """Whether it is true."""
        return self.slack >= 1

    @property
    def slack(self) -> float:
        """How many times as much as was measured the limit allows; below 1 if it does not hold."""
        over, under = (self.limit, self.measured) if self.most else (self.measured, self.limit)
        return over / under if under > 0 else math.inf


def save(
    name: str, title: str, command: str, text: str, figures: Mapping[str, Any], claims: Sequence[Claim], quick: bool
) -> None:
    """Write NAME.json with `figures` and `claims`, and NAME.md with `text` below what was run where.

    They go to benchmarks/results, or, from a `quick` run, to metrics/bench, which git ignores.
    """
    directory = QUICK if quick else RESULTS
    directory.mkdir(parents=True, exist_ok=True)
    command += " --quick" if quick else ""
    told = [asdict(claim) | {"holds": claim.holds} for claim in claims]
    values = {"command": command, "cores": os.cpu_count()} | _plain(figures) | {"claims": told}
    write_json(directory / f"{name}.json", values)
    rows = [[c.what, c.measured, f"{'≤' if c.most else '≥'} {c.limit}", "yes" if c.holds else "no"] for c in claims]
    kept = table(["what", "measured", "limit", "holds"], rows)
    (directory / f"{name}.md").write_text(f"# {title}\n\n`{command}` ({os.cpu_count()} cores)\n\n{text}\n{kept}")


def _plain(value: Any) -> Any:
    """JSON values of nested dicts and lists that may hold `Ratio` and `Times`."""
    if isinstance(value, Ratio):
        return asdict(value)
    if isinstance(value, Times):
        return {kind: [round(each, 5) for each in seconds] for kind, seconds in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
