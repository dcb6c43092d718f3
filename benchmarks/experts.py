"""Measure a training step of merged experts alone, forward and backward, beside every stock implementation.

    python -m benchmarks.experts

Stock experts of the same number, of the same weights and with the same selections run as a loop, by grouped and by
batched products; transformers' Switch has a loop only. "whole" are experts that start to be compressed, with all of S
kept beside U V, "pruned" those that end with a tenth of its rows: the stock experts beside them are dense. CPU seconds
count, and the fastest stock implementation is the one with the lowest median.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts

from benchmarks.side_by_side import Claim, Ratio, Times, in_turns, ratio, save, table
from mcsmoe.compression.factorise import factorise
from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.experts_mcsmoe import merged_experts_class
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchExperts

WIDTHS = {"small": (64, 128), "middle": (512, 1024)}
TOP_K = {"switch": 1, "mixtral": 2, "qwen": 8}
STOCK = ("eager", "grouped_mm", "batched_mm")
OURS = ("merged", "whole", "pruned")
NUMBERS = (8, 32, 64)
RANK = 16
KEPT = 0.1
LIMIT = 1.0
COPIES = 2**22
"""Values of weights that `batched_mm` may copy, which it does for each token; beyond, it is left out."""


class Case(NamedTuple):
    """One layer: `small`, `switch`, 32 experts, tokens in a step, threads."""

    width: str
    family: str
    experts: int
    tokens: int
    threads: int

    def __str__(self) -> str:
        return f"{self.family} {self.width}, {self.experts} experts, {self.threads} threads"


Step = Callable[[], None]


def steps(case: Case) -> dict[str, Step]:
    """Every implementation's forward and backward pass on the same tokens and selections."""
    torch.manual_seed(0)
    made = switch(case) if case.family == "switch" else fused(case)
    d = WIDTHS[case.width][0]
    index = torch.rand(case.tokens, case.experts).topk(TOP_K[case.family]).indices
    weights = torch.rand(index.shape).softmax(-1)
    x, grad = torch.randn(2, case.tokens, d)
    return {name: step(experts, x, index, weights, grad) for name, experts in made.items()}


def step(experts: Any, x: Tensor, index: Tensor, weights: Tensor, grad: Tensor) -> Step:
    """Gradients of the weights, the tokens [T, d] and the router's weights [T, k]."""
    experts.train()
    leaves = x.clone().requires_grad_(), weights.clone().requires_grad_()
    if isinstance(experts, SwitchTransformersExperts):
        selected = nn.functional.one_hot(index, experts.num_experts)
    else:
        selected = index[:, 0] if isinstance(experts, MCSMoESwitchExperts) else index

    def run() -> None:
        experts.zero_grad()
        for leaf in leaves:
            leaf.grad = None
        experts(leaves[0], selected, leaves[1]).backward(grad)

    return run


def switch(case: Case) -> dict[str, Any]:
    """Stock and merged experts of Switch."""
    d, f = WIDTHS[case.width]
    sizes = {"d_model": d, "d_ff": f, "num_experts": case.experts, "dropout_rate": 0.0}
    stock = SwitchTransformersExperts(SwitchTransformersConfig(**sizes))

    def merged() -> Any:
        ours = MCSMoESwitchExperts(MCSMoESwitchConfig(**sizes), {"experts": case.experts})
        for name in ("wi", "wo"):
            stacked = [getattr(expert, name).weight.data for expert in stock.values()]
            getattr(ours, name).weight.data = torch.stack(stacked)
        return ours

    return {"eager": stock} | {name: compressed(merged(), name) for name in OURS}


def fused(case: Case) -> dict[str, Any]:
    """Stock and merged experts of Mixtral, or with Qwen's 8 experts a token."""
    d, f = WIDTHS[case.width]
    copies = 3 * d * f * case.tokens * TOP_K[case.family]
    made: dict[str, Any] = {}
    for name in STOCK[: 3 if copies <= COPIES else 2]:
        config = MixtralConfig(hidden_size=d, intermediate_size=f, num_local_experts=case.experts)
        config._experts_implementation = name
        made[name] = MixtralExperts(config)
    for stock in made.values():
        stock.gate_up_proj.data = torch.randn_like(made["eager"].gate_up_proj) * d**-0.5
        stock.down_proj.data = torch.randn_like(made["eager"].down_proj) * f**-0.5

    def merged() -> Any:
        ours = merged_experts_class(MixtralExperts)(made["eager"], {"experts": case.experts})
        gate, up = made["eager"].gate_up_proj.data.clone().chunk(2, dim=1)
        for name, weight in {"gate": gate, "up": up, "down": made["eager"].down_proj.data.clone()}.items():
            getattr(ours, name).weight.data = weight.contiguous()
        return ours

    return made | {name: compressed(merged(), name) for name in OURS}


@torch.no_grad()
def compressed(experts: Any, state: str) -> Any:
    """The merged experts as they are while compressing, in place."""
    for name, linears in list(experts.named_children()) if state != "merged" else ():
        if not hasattr(linears, "weight"):
            continue
        factorised = FactorisedLinears.from_factors(*factorise(linears.weight.data, RANK), "row")
        if state == "pruned":
            assert factorised.sparse is not None
            factorised.sparse.keep(torch.rand(factorised.kept) < KEPT)
        setattr(experts, name, factorised)
    return experts


def measure(case: Case, rounds: int) -> dict[str, Times]:
    """Times of all implementations, in turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    found = in_turns(steps(case), rounds, warm=2)
    torch.set_num_threads(before)
    return found


def compare(times: dict[str, Times]) -> tuple[str, dict[str, Ratio]]:
    """The fastest stock implementation, and each of ours in proportion to it."""
    stock = min((name for name in STOCK if name in times), key=lambda name: float(np.median(times[name].cpu)))
    return stock, {name: ratio(times[name], times[stock], cpu=True) for name in OURS}


def cases(quick: bool) -> list[Case]:
    """What is measured: with two threads the largest number of experts of each kind only."""
    found = [Case("small", f, e, min(2048, 4096 // k) if quick else 2048, 1) for f, k in TOP_K.items() for e in NUMBERS]
    found += [Case("middle", f, e, 512, 1) for f in TOP_K for e in NUMBERS if not quick]
    found += [Case("middle", f, 8, 256, 1) for f in ("switch", "mixtral") if quick]
    return found + [Case(case.width, case.family, 32, case.tokens, 2) for case in found if case.experts == 32]


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rounds and tokens, middle widths with 8 experts only.")] = False,
) -> None:
    """Measure all cases and write the table."""
    rows, worst = [], dict.fromkeys(OURS, 0.0)
    figures: dict[str, Any] = {}
    for case in cases(quick):
        times = measure(case, 5 if quick else 15)
        stock, ratios = compare(times)
        rows.append([case, stock, 1e3 * times[stock].median, *ratios.values()])
        print(*rows[-1], flush=True)
        figures[str(case)] = {"fastest stock": stock, "times": times, "ratios": ratios}
        worst = {name: max(worst[name], ratios[name].low) for name in OURS}
    text = table(["experts", "fastest stock", "its ms", *OURS], rows)
    claims = [Claim(f"{name} experts, step / fastest stock, worst case", worst[name], LIMIT) for name in OURS]
    command = "python -m benchmarks.experts"
    save("experts", "A training step of the experts alone", command, text, figures, claims, quick)


if __name__ == "__main__":
    typer.run(main)
