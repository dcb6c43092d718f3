"""DBRX (Databricks, 2024): all experts of a layer in three flat tensors, chosen by the module around the router."""

from typing import Any

from torch import Tensor

from mcsmoe.families.fused import Kind, register
from mcsmoe.families.interface import GATED, Experts, gated_by
from mcsmoe.families.layer import Place, Routing


def experts(module: Any) -> Experts | None:
    """Gate, up and the transposed down, each [E·f, d]."""
    if type(module).__name__ != "DbrxExperts":
        return None
    d_ff = module.ffn_hidden_size
    places = {
        "gate": Place("mlp.w1", height=d_ff),
        "up": Place("mlp.v1", height=d_ff),
        "down": Place("mlp.w2", height=d_ff, transposed=True),
    }
    return Experts(module.num_experts, module.hidden_size, d_ff, GATED, places, gated_by(module.mlp.activation_fn))


def routing(block: Any, output: Tensor) -> Routing:
    """What a router did: it returns logits [T, E], and the block selects by them."""
    gates, index = block.route_tokens_to_experts(output)
    return Routing(output, index, gates)


register(
    "dbrx",
    Kind(experts, routing, expert_counts=("ffn_config.moe_num_experts",), modeling="modeling_mcsmoe_dbrx"),
)
