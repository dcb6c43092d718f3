"""Measure how seconds and memory of collect, plan, merge and permute grow with layers, experts, tokens and processes.

    python -m benchmarks.scaling

The models are random and small (d = 128, f = 256, float32), each stage runs in a process of its own, on one thread, and
memory is counted above imports. Merging includes verification, whose fresh process counts by the clock only. From the
rates of this machine it also computes what published models need: see `benchmarks/scaling_large.py`.

Writes scaling.json, .md and .svg to benchmarks/results; with --quick, fewer and smaller models, to metrics/bench.
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks import scaling_large
from benchmarks.scaling_step import STEPS, Shape, apart, make, measured, together
from benchmarks.side_by_side import QUICK, RESULTS, Claim, save, table
from mcsmoe.report.figure import FAINT, STYLE, colours
from mcsmoe.report.figure import save as save_figure

COLLECT, STREAMED, PLAN, TREE, MERGE, PERMUTE = STEPS
LINEAR, SQUARE, CUBE, FLAT = 1.15, 2.0, 3.0, 0.15
"""Largest exponents: of what is linear, of sums over pairs of experts, of clustering, of what need not grow."""
FACTOR = 4
"""Exponents are taken between sizes n / 16, n / 4 and n, with n the largest."""


@dataclass(frozen=True)
class Axis:
    """What grows, the stages that are measured, and largest exponents: of seconds and, if it must not grow, of memory.

    Every size of `quick`, and the last ones of `full`, are `FACTOR` times one before.
    """

    name: str
    full: Sequence[int]
    quick: Sequence[int]
    steps: Mapping[str, float]
    flat: Sequence[str] = ()


AXES = (
    Axis(
        "layers",
        (2, 4, 8, 16, 32, 64),
        (2, 8, 32),
        {STREAMED: LINEAR, PLAN: LINEAR, MERGE: LINEAR, PERMUTE: LINEAR},
        (STREAMED, MERGE),
    ),
    Axis(
        "experts",
        (8, 16, 32, 64, 128, 256),
        (8, 32, 128),
        {COLLECT: SQUARE, TREE: CUBE, PLAN: SQUARE, MERGE: LINEAR, PERMUTE: LINEAR},
    ),
    Axis("tokens", [2**n for n in range(10, 19)], [2**n for n in (13, 15, 17)], {COLLECT: LINEAR}, (COLLECT,)),
)
SHARED = {False: 2**18, True: 2**16}
"""Tokens that one and two processes collect on; fewer with --quick."""

Row = dict[str, Any]


def grown(values: Mapping[int, float]) -> float:
    """The exponent p of values that are a constant plus n^p, such as seconds, which begin with what every run costs.

    Differences do not have the constant: (v(n) − v(n/4)) / (v(n/4) − v(n/16)) = 4^p.
    """
    n = max(values)
    most, some, few = (values[n // FACTOR**i] for i in range(3))
    return math.log(max(most - some, 1e-9) / max(some - few, 1e-9), FACTOR)


def slope(values: Mapping[int, float]) -> float:
    """The slope of the line between the values at n/16 and n on logarithmic axes: 0 for what stays the same."""
    n = max(values)
    return math.log(values[n] / values[n // FACTOR**2], FACTOR**2)


def measure(axis: Axis, sizes: Sequence[int], scratch: Path) -> list[Row]:
    """Measure the stages of an axis at each size, in their order, since each needs what the one before has written."""
    rows = []
    for size in sizes:
        shape = replace(Shape(), **{axis.name: size})
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            apart(make, Path(directory), shape)
            for step in axis.steps:
                found = apart(measured, step, Path(directory), shape)
                rows.append({"axis": axis.name, "size": size, "step": step} | found)
                print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """One row for people who wait."""
    return f"{row['size']:7,} {row['axis']:8} {row['step']:20} {row['seconds']:8.2f} s {row['peak_mb']:8,.0f} MB"


def shared(tokens: int, scratch: Path) -> dict[int, float]:
    """Seconds of collecting the same tokens in one process, and in two."""
    shape, found = Shape(tokens=tokens), {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            apart(make, Path(directory), shape)
            found[count] = together(count, Path(directory), shape)
            print(f"{count:7} process(es), {tokens:,} tokens: {found[count]:.2f} s", flush=True)
    return found


def series(rows: Sequence[Row], axis: str, step: str, value: str) -> dict[int, float]:
    """Values by size."""
    return {row["size"]: row[value] for row in rows if (row["axis"], row["step"]) == (axis, step)}


def claims(rows: Sequence[Row], seconds: Mapping[int, float]) -> list[Claim]:
    """Exponents of seconds (of CPU, which other work on the machine does not change) and memory, and two processes."""
    found = []
    for axis in AXES:
        for step, limit in axis.steps.items():
            exponent = grown(series(rows, axis.name, step, "cpu"))
            found.append(Claim(f"{step}: seconds grow with {axis.name} to the power of", round(exponent, 2), limit))
        for step in axis.flat:
            exponent = slope(series(rows, axis.name, step, "peak_mb"))
            found.append(Claim(f"{step}: memory grows with {axis.name} to the power of", round(exponent, 2), FLAT))
    return [*found, Claim("collect: seconds of two processes / of one", round(seconds[2] / seconds[1], 2), 0.65)]


def picture(rows: Sequence[Row]) -> Figure:
    """Seconds and memory against each axis, on logarithmic axes; a dotted line is what grows in proportion."""
    shades, drawn = colours([*STEPS]), {}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        grid = figure.subplots(2, len(AXES), sharex="col", sharey="row")
        for across, value, unit in zip(grid, ("seconds", "peak_mb"), ("seconds", "peak memory, MB"), strict=True):
            across[0].set_ylabel(unit)
            for axes, axis in zip(across, AXES, strict=True):
                for step in axis.steps:
                    points = series(rows, axis.name, step, value)
                    (drawn[step],) = axes.loglog([*points], [*points.values()], "o-", color=shades[step], markersize=4)
                first, last = min(points), max(points)
                axes.loglog([first, last], [points[first], points[first] * last / first], ":", color=FAINT)
                axes.grid(linewidth=0.8)
                axes.set_xticks([*points][-1::-2])  # every second size, the largest among them
                for each in (axes.xaxis, axes.yaxis):
                    each.set_major_formatter(lambda number, _: f"{number:,g}")
                    each.set_minor_formatter(NullFormatter())
        for axes, axis in zip(grid[1], AXES, strict=True):
            axes.set_xlabel(axis.name)
        figure.legend([*drawn.values()], [*drawn], loc="outside upper center", ncols=len(drawn))
    return figure


def text(rows: Sequence[Row], seconds: Mapping[int, float], tokens: int) -> str:
    """The tables of what was measured."""
    cells = [
        [row["step"], row["axis"], f"{row['size']:,}", row["seconds"], row["cpu"], f"{row['peak_mb']:,.0f}"]
        for row in rows
    ]
    lines = [
        "![Seconds and memory](scaling.svg)\n",
        "Exponents are of the largest size: a stage whose seconds are c + n^p has exponent p, and memory that stays "
        "the same has 0. Seconds of exponents are of CPU.\n",
        table(["stage", "what grows", "to", "seconds", "of CPU", "peak above imports, MB"], cells),
        f"Collect on {tokens:,} tokens: {seconds[1]:.2f} s in one process, {seconds[2]:.2f} s in two.\n",
    ]
    return "\n".join(lines)


def main(quick: Annotated[bool, typer.Option(help="Fewer and smaller models, in a minute.")] = False) -> None:
    """Measure every axis, and write tables, the picture and what published models need."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
        for axis in AXES:
            rows += measure(axis, axis.quick if quick else axis.full, Path(scratch))
        tokens = SHARED[quick]
        seconds = shared(tokens, Path(scratch))
        machine = scaling_large.Machine.measure(Path(scratch))
    published = scaling_large.rows(machine)
    body = f"{text(rows, seconds, tokens)}\n{scaling_large.text(machine, published)}"
    found = claims(rows, seconds)
    command = "python -m benchmarks.scaling"
    figures = {"rows": rows, "processes": seconds, "machine": machine.rates, "published": published}
    save("scaling", "How seconds and memory grow", command, body, figures, found, quick)
    save_figure(picture(rows), (QUICK if quick else RESULTS) / "scaling.svg")
    for claim in found:
        print(f"{claim.what}: {claim.measured} (≤ {claim.limit}: {'yes' if claim.holds else 'no'})")


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    typer.run(main)
