"""The language model of Llama 4 (Meta, 2025): gates multiply what goes into an expert, not what comes out of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcsmoe.families.fused import Kind, register
from mcsmoe.families.interface import GATED, Experts, gated_by, halves
from mcsmoe.families.layer import Place, Routing


def experts(module: Any) -> Experts | None:
    """Transposed stacks: gate before up [E, d, 2f], and down [E, f, d]."""
    if type(module).__name__ != "Llama4TextExperts":
        return None
    d_ff = module.expert_dim
    in_stack = {name: Place("gate_up_proj", rows, transposed=True) for name, rows in halves(d_ff).items()}
    places = in_stack | {"down": Place("down_proj", transposed=True)}
    return Experts(module.num_experts, module.hidden_size, d_ff, GATED, places, gated_by(module.act_fn))


def routing(block: Any, output: tuple[Tensor, Tensor]) -> Routing:
    """What a router did: it returns (scores, logits); outputs of experts are summed as they are.

    Llama 4 selects one expert a token. Where a configuration asks for more, all are said to see what the first does.
    """
    logits = output[1]
    scores, index = logits.topk(block.top_k, dim=-1)
    return Routing(logits, index, torch.ones_like(scores), scale=scores[:, :1].float().sigmoid().to(logits.dtype))


def expert_outputs(experts: Callable[..., Tensor], routing: Routing, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every expert runs on every token anyway, on zeros where it is not selected: x is [E·T, d]."""
    mixed = experts(x)
    T, E = routing.logits.shape
    return mixed.view(E, T, -1)[routing.index, torch.arange(T, device=x.device)[:, None]], mixed


register(
    "llama4_text",
    Kind(
        experts, routing, expert_outputs, configuration="configuration_mcsmoe_llama4", modeling="modeling_mcsmoe_llama4"
    ),
)
