"""Measure merging and permuting checkpoints, verification included, beside reading and writing as many bytes once.

    python -m benchmarks.files [--quick]

Makes checkpoints of random weights in the shapes of Mixtral (bfloat16, at half its width) and Switch-base-32 (float32),
each with two numbers of layers, and merges and permutes them as the stages do. Permutations are drawn: what matching
takes is measured by other benchmarks. Another checkpoint has 10,000 tensors, and one the same bytes in a tenth as many.
Each step has a process of its own, which starts with the input on the disk alone and ends with the output on the disk.
The process that verification forks runs before: benchmarks.startup has what that takes. Beside the limit's
reading and writing once stands the least that verification can add: reading the output in this process, and in one
without this package. Takes 12 GB in $TMPDIR, or with --quick 2 GB.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.files_models import make, mixtral, qwen, switch
from benchmarks.files_step import apart
from benchmarks.side_by_side import Claim, Times, ratio, save, table
from mcsmoe import warm
from mcsmoe.families import family_of
from mcsmoe.families.experts import share_shape

MERGE, PERMUTE = "merge", "permute"
COLUMNS = ["checkpoint", "step", "GB", "seconds", "once", "ratio", "CPU ratio"]
COLUMNS += ["× once and reading the output twice", "peak MB", "imports MB"]
PEAK_MB = 1500


@dataclass(frozen=True)
class Measured:
    """Times of a step, of reading and writing once, and of then reading twice, by round; largest memory in MB."""

    gigabytes: float
    step: Times
    once: Times
    read: Times
    peak: float
    imports: float

    def row(self) -> list[object]:
        """Cells of the table."""
        ratios = [str(ratio(self.step, self.once)), str(ratio(self.step, self.once, cpu=True))]
        ratios.append(str(ratio(self.step, self.read)))
        seconds = [round(times.median, 2) for times in (self.step, self.once)]
        return [round(self.gigabytes, 2), *seconds, *ratios, self.peak, self.imports]


def checkpoints(quick: bool) -> dict[str, dict[str, Any]]:
    """Configurations by name; "many" and "few" have equally many bytes in their experts."""
    shapes = {f"Mixtral, {n} layers": mixtral(n, 1024 if quick else 2048) for n in ((1, 2) if quick else (3, 6))}
    shapes |= {f"Switch, {2 * n} layers": switch(n, 384 if quick else 768) for n in ((1, 2) if quick else (2, 4))}
    width = 16 if quick else 192
    return shapes | {"many tensors": qwen(64, width), "few tensors": qwen(8, 8 * width)}


def measured(source: Path, step: str, rounds: int) -> Measured:
    """Run a step, and reading and writing, in turns.

    Each is the first in one round of three: a virtual machine may have to ask its host for memory, which takes longer
    than to write to it, and those who come later find what the first has freed.
    """
    output = source.with_name("out")
    names = [step, f"{step}-once", f"{step}-read"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for i in range(rounds):
        for name in [*names[i % 3 :], *names[: i % 3]]:
            found[name].append(apart(name, source, output))
    steps, once, read = (Times([one["clock"] for one in each], [one["cpu"] for one in each]) for each in found.values())
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    peak, imports = (max(one[key] for one in found[step]) for key in ("peak", "imports"))
    return Measured(size, steps, once, read, peak, imports)


def layer_mb(values: dict[str, Any]) -> float:
    """MB of the experts of one sparse layer."""
    layer = family_of(values).layers(values)[0]
    numbers = sum(int(np.prod(share_shape(layer, [name]))) for name in layer.layout)
    return numbers * layer.experts * (2 if values["dtype"] == "bfloat16" else 4) / 1e6


def main(quick: Annotated[bool, typer.Option(help="Smaller checkpoints, one round.")] = False) -> None:
    """Measure each step on each checkpoint, and write table and claims."""
    warm.start()
    configs, found = checkpoints(quick), dict[tuple[str, str], Measured]()
    for name, values in configs.items():
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
            make(Path(scratch) / "in", values)
            for step in (MERGE,) if "tensors" in name else (MERGE, PERMUTE):
                found[name, step] = measured(Path(scratch) / "in", step, 1 if quick else 3)
                print(name, step, *found[name, step].row(), sep=" | ", flush=True)
    claims = [*claims_of(found, configs), *claims_of_many(found)]
    rows = [[name, step, *each.row()] for (name, step), each in found.items()]
    figures = {f"{name}, {step}": vars(each) for (name, step), each in found.items()}
    command = "python -m benchmarks.files"
    save("files", "Merging and permuting checkpoints", command, table(COLUMNS, rows), figures, claims, quick)


def claims_of(found: dict[tuple[str, str], Measured], configs: dict[str, dict[str, Any]]) -> list[Claim]:
    """What must be true of each shape: cost and memory of the larger checkpoint, and linearity."""
    claims = []
    for shape in ("Mixtral", "Switch"):
        names = [name for name in configs if name.startswith(shape)]
        for step in (MERGE, PERMUTE):
            small, large = (found[name, step] for name in names)
            what = f"{step}, {shape}'s shape"
            claims.append(Claim(f"{what}: × reading and writing once", ratio(large.step, large.once).median, 2.0))
            growth = (large.step.median / small.step.median) / (large.gigabytes / small.gigabytes)
            claims.append(Claim(f"{what}: growth of time / growth of bytes", round(growth, 3), 1.1))
            if step == MERGE:
                claims.append(Claim(f"{what}: peak MB, imports included", large.peak, PEAK_MB))
            else:
                layers = (large.peak - large.imports) / layer_mb(configs[names[-1]])
                claims.append(Claim(f"{what}: peak above imports, in layers", round(layers, 2), 1.0))
    return claims


def claims_of_many(found: dict[tuple[str, str], Measured]) -> list[Claim]:
    """What must be true of many tensors."""
    many, few = found["many tensors", MERGE], found["few tensors", MERGE]
    cost = ratio(many.step, few.step).median
    once = ratio(many.step, many.once).median
    return [
        Claim("merge, 10,000 tensors / 1,500 tensors of the same bytes", cost, 1.1),
        Claim("merge, 10,000 tensors: × reading and writing once", once, 2.0),
    ]


if __name__ == "__main__":
    typer.run(main)
