"""DBRX (Databricks, 2024): a layer keeps its experts in three flat tensors, and selects outside its router."""

from typing import Any

from mcsmoe.families.family import register
from mcsmoe.families.fused import GATED, Experts, Fused, gated_by
from mcsmoe.families.layer import Place, Routing


class Dbrx(Fused):
    """Gate, up and transposed down are [E·f, d] each, one expert after another."""

    expert_counts = ("ffn_config.moe_num_experts",)
    modeling = "modeling_mcsmoe_dbrx"

    def experts(self, module: Any) -> Experts | None:
        """The experts of a `DbrxExperts` module; expert e has rows e·f:(e+1)·f. None for any other module."""
        if type(module).__name__ != "DbrxExperts":
            return None
        d_ff = module.ffn_hidden_size
        places = {
            "gate": Place("mlp.w1", height=d_ff),
            "up": Place("mlp.v1", height=d_ff),
            "down": Place("mlp.w2", height=d_ff, transposed=True),
        }
        return Experts(module.num_experts, module.hidden_size, d_ff, GATED, places, gated_by(module.mlp.activation_fn))

    def routing(self, block: Any, output: Any) -> Routing:
        """The router returns logits [T, E]; the block selects experts from them."""
        gates, index = block.route_tokens_to_experts(output)
        return Routing(output, index, gates)


register(Dbrx("dbrx"))
