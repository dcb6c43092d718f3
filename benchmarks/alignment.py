"""Measure what alignment costs beyond its products, and its solver against SciPy's dense one.

    python -m benchmarks.alignment

Layers of Switch-base-32's shape (d = 768, f = 3072): experts that are random, upcycled (one expert with noise) or
permuted (shuffled copies with noise). "Whole" is `matched_by_weight` from tensors in memory to permutations; "products"
are W_ref W_eᵀ of each projection alone, float32, with as many threads. Assignments are compared with SciPy's
`linear_sum_assignment` on float64 costs that were made before. The gated layer is of Mixtral's shape (d = 4096,
f = 14336, bfloat16), of which one pair is run instead of seven, and with --quick half of its widths. Ratios are of CPU
seconds with one thread, else by the clock.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.side_by_side import Claim, in_turns, ratio, save, table
from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.matching import by_neuron, permute, weight_similarity
from mcsmoe.alignment.pairs import matched_by_weight
from mcsmoe.families import Expert, MoELayer, TensorSource, sparse_layers

HEAD = ["experts", "threads", "pairs", "products, s", "whole, s", "ratio", "assign, s", "SciPy, s", "ratio"]
KINDS = ("random", "upcycled", "permuted")


class Experts(TensorSource):
    """The experts of one layer, by the names that a checkpoint has for them."""

    def __init__(self, layer: MoELayer, experts: list[Expert]) -> None:
        self.experts = experts
        self._tensors = {
            layer.places[name].name(e): value for e, expert in enumerate(experts) for name, value in expert.items()
        }

    def tensor(self, name: str) -> Tensor:
        """The tensor under `name`."""
        return self._tensors[name]


def switch_layer(experts: int) -> MoELayer:
    """A layer of Switch-base-32's shape."""
    from transformers import SwitchTransformersConfig

    shape = {"d_model": 768, "d_ff": 3072, "num_experts": experts}
    return sparse_layers(SwitchTransformersConfig(**shape))[0]


def mixtral_layer(scale: float) -> MoELayer:
    """A layer of Mixtral-8x7B's shape with two experts, its widths times `scale`."""
    from transformers import MixtralConfig

    shape = {"hidden_size": int(4096 * scale), "intermediate_size": int(14336 * scale), "num_local_experts": 2}
    return sparse_layers(MixtralConfig(**shape))[0]


def random(layer: MoELayer, dtype: torch.dtype = torch.float32) -> Expert:
    """Weights that have nothing to do with others."""
    return {name: torch.randn(shape).to(dtype) for name, shape in layer.shapes().items()}


def noisy(expert: Expert) -> Expert:
    """A copy with noise of a tenth of the weights' size."""
    return {name: value + 0.1 * torch.randn(value.shape) for name, value in expert.items()}


def made(layer: MoELayer, kind: str) -> Experts:
    """The experts of a layer, the same each time."""
    torch.manual_seed(0)
    base = random(layer)
    more: dict[str, Callable[[], Expert]] = {
        "random": lambda: random(layer),
        "upcycled": lambda: noisy(base),
        "permuted": lambda: permute(noisy(base), layer.layout, torch.randperm(layer.d_ff)),
    }
    return Experts(layer, [base, *(more[kind]() for _ in range(layer.experts - 1))])


def whole_and_products(layer: MoELayer, source: Experts, threads: int, rounds: int, warm: int = 1) -> dict[str, Any]:
    """Times of a layer's alignment and of its products alone, in turns."""
    torch.set_num_threads(threads)
    reference, *others = ({n: by_neuron(n, e, layer.layout) for n in layer.layout} for e in source.experts)

    def products() -> None:
        for expert in others:
            for name in layer.layout:
                reference[name] @ expert[name].T

    def whole() -> None:
        list(matched_by_weight(source, layer, 0, range(1, layer.experts)))

    taken = in_turns({"whole": whole, "products": products}, rounds, warm)
    return {"threads": threads, "pairs": len(others), **taken, "ratio": ratio(*taken.values(), cpu=threads == 1)}


def solvers(layer: MoELayer, source: Experts, rounds: int) -> dict[str, Any]:
    """Times of one pair's assignment by both solvers, in turns."""
    similarity = weight_similarity(source.experts[0], source.experts[1], layer.layout)
    costs = -similarity.double().numpy()
    works = {"assign": lambda: assign(similarity), "scipy": lambda: linear_sum_assignment(costs)}
    taken = in_turns(works, rounds)
    return {**taken, "solver_ratio": ratio(*taken.values(), cpu=True)}


def line(row: dict[str, Any]) -> list[object]:
    """A row of the table."""
    cells = [row["experts"], row["threads"], row["pairs"], row["products"].median, row["whole"].median, row["ratio"]]
    if "scipy" not in row:
        return [*cells, "", "", ""]
    return [*cells, row["assign"].median, row["scipy"].median, row["solver_ratio"]]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer experts and rounds, half of Mixtral.")] = False,
) -> None:
    """Measure each kind of layer and write the table."""
    rounds = 2 if quick else 7
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    layer = switch_layer(8 if quick else 32)
    for kind in KINDS:
        source = made(layer, kind)
        one, two = (whole_and_products(layer, source, threads, rounds) for threads in (1, 2))
        one |= solvers(layer, source, 2 * rounds)
        for row in (one, two):
            rows.append({"experts": kind} | row)
            print(*map(str, line(rows[-1])), flush=True)
        claims.append(Claim(f"{kind}: layer / products, 1 thread", one["ratio"].median, 1.5))
        claims.append(Claim(f"{kind}: layer / products, 2 threads", two["ratio"].median, 1.5))
        claims.append(Claim(f"{kind}: assignment / SciPy dense", one["solver_ratio"].median, 1.0))
    layer = mixtral_layer(0.5 if quick else 1.0)
    torch.manual_seed(0)
    source = Experts(layer, [random(layer, torch.bfloat16) for _ in range(2)])
    shape = f"Mixtral, random, d = {layer.d_model}, f = {layer.d_ff}"
    rows.append({"experts": shape} | whole_and_products(layer, source, 1, 2 if quick else 1, warm=0))
    print(*map(str, line(rows[-1])), flush=True)
    claims.append(Claim("Mixtral, one pair: layer / products, 1 thread", rows[-1]["ratio"].median, 1.15))
    command = "python -m benchmarks.alignment"
    text = table(HEAD, map(line, rows))
    save("alignment", "Alignment and its products", command, text, {"rows": rows}, claims, quick)


if __name__ == "__main__":
    typer.run(main)
