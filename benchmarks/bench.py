"""Run the quick set of all benchmarks, one after another, each in a process of its own, and print one table of claims.

    python -m benchmarks.bench [NAME ...]

Takes at most ten minutes on two cores. A claim that does not hold is shown: on a machine that does other work, it may
not. The exit code is 1 if a benchmark crashed. `python -m benchmarks.bench --table` runs nothing: it prints all claims
of the full benchmarks as they stand in docs/speed.md. `--tightest` prints one of each benchmark, as in README.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.side_by_side import QUICK, RESULTS, Claim, table

NAMES = ("alignment", "collect", "files", "startup", "step", "experts", "speed", "scaling")
HEAD = ("benchmark", "what", "measured", "limit", "holds")
SHORT = ("benchmark", "its tightest claim", "measured", "limit", "claims that hold")
LONGEST = 300
"""Seconds after which a benchmark has failed."""


def read(file: Path) -> list[Claim]:
    """The claims in one benchmark's JSON; results of an older form have none."""
    found = json.loads(file.read_text()).get("claims", ())
    return [Claim(**{name: value for name, value in claim.items() if name != "holds"}) for claim in found]


def row(claim: Claim) -> list[str]:
    """What it says, what was measured, and its limit."""
    return [claim.what, f"{claim.measured:.3g}", f"{'≤' if claim.most else '≥'} {claim.limit:g}"]


def claims(file: Path) -> list[list[str]]:
    """The claims of one benchmark's JSON as rows of a table."""
    return [[f"`{file.stem}`", *row(claim), "yes" if claim.holds else "**no**"] for claim in read(file)]


def tightest(file: Path) -> list[list[str]]:
    """One row: of the claims of one benchmark's JSON, the one that is nearest to its limit, or farthest beyond it."""
    found = read(file)
    worst = sorted(found, key=lambda claim: claim.slack)[:1]
    return [[f"`{file.stem}`", *row(claim), f"{sum(each.holds for each in found)} of {len(found)}"] for claim in worst]


def claims_table(directory: Path = RESULTS, *, short: bool = False) -> str:
    """One Markdown table of all claims in a directory, or of the `tightest`; empty if there are none."""
    files = [directory / f"{name}.json" for name in (*NAMES, "gpu")]
    rows = [row for file in files if file.is_file() for row in (tightest if short else claims)(file)]
    return table(SHORT if short else HEAD, rows) if rows else ""


def run(name: str) -> list[list[str]]:
    """Run one quick benchmark: its claims, or why there are none."""
    file = QUICK / f"{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return [crashed(name, f"took more than {LONGEST} s")]
    if done.returncode or not file.is_file():
        print(done.stdout, file=sys.stderr)
        last = done.stdout.strip().splitlines()[-1:] or ["no output"]
        return [crashed(name, f"exit code {done.returncode}: {last[0]}")]
    return claims(file)


def crashed(name: str, why: str) -> list[str]:
    """The row of a benchmark that did not end well."""
    return [f"`{name}`", why.replace("|", "/"), "–", "–", "crashed"]


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks to run; all of the quick set by default.")
    ] = None,
    results: Annotated[bool, typer.Option("--table", help="Print the claims of benchmarks/results.")] = False,
    short: Annotated[bool, typer.Option("--tightest", help="Print the tightest claim of each result.")] = False,
) -> None:
    """Run benchmarks and print the table of their claims."""
    if results or short:
        print(claims_table(short=short), end="")
        return
    rows = []
    for name in names or NAMES:
        started = time.monotonic()
        rows += run(name)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"\n{table(HEAD, rows)}", end="")
    sys.exit(any(row[-1] == "crashed" for row in rows))


if __name__ == "__main__":
    typer.run(main)
