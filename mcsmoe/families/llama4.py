"""The language model of Llama 4 (Meta, 2025): gates multiply the inputs of experts, not their outputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcsmoe.families.family import register
from mcsmoe.families.fused import GATED, Experts, Fused, gated_by, halves
from mcsmoe.families.layer import Place, Routing


class Llama4(Fused):
    """Transposed stacks: gate_up_proj [E, d, 2f] with gate before up, and down_proj [E, f, d]."""

    flat_router = True
    configuration, modeling = "configuration_mcsmoe_llama4", "modeling_mcsmoe_llama4"

    def experts(self, module: Any) -> Experts | None:
        """The experts of a `Llama4TextExperts` module; None for any other module."""
        if type(module).__name__ != "Llama4TextExperts":
            return None
        d_ff = module.expert_dim
        in_stack = {name: Place("gate_up_proj", rows, transposed=True) for name, rows in halves(d_ff).items()}
        places = in_stack | {"down": Place("down_proj", transposed=True)}
        return Experts(module.num_experts, module.hidden_size, d_ff, GATED, places, gated_by(module.act_fn))

    def routing(self, block: Any, output: Any) -> Routing:
        """What a router did; its output is (scores, logits). Gates are 1, and `scale` is the sigmoid of the logit.

        Llama 4 selects one expert per token. If a configuration asks for more, the scale of the first stands for all.
        """
        logits = output[1]
        scores, index = logits.topk(block.top_k, dim=-1)
        return Routing(logits, index, torch.ones_like(scores), scale=scores[:, :1].float().sigmoid().to(logits.dtype))

    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, k, d] picked from one ordinary call, in which every expert runs on every token.

        The argument is [E·T, d], with zeros for the tokens that do not select the expert.
        """
        mixed = experts(*arguments)
        T, E = routing.logits.shape
        return mixed.view(E, T, -1)[routing.index, torch.arange(T, device=mixed.device)[:, None]], mixed


register(Llama4("llama4_text"))
