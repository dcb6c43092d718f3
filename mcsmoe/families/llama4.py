"""The language model of Llama 4 (Meta, 2025): gates multiply what goes into an expert, not what comes out of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcsmoe.families.family import register
from mcsmoe.families.fused import GATED, Experts, Fused, gated_by, halves
from mcsmoe.families.layer import Place, Routing


class Llama4(Fused):
    """Transposed stacks: gate before up [E, d, 2f], and down [E, f, d]."""

    configuration, modeling = "configuration_mcsmoe_llama4", "modeling_mcsmoe_llama4"

    def experts(self, module: Any) -> Experts | None:
        """Known by the name of their class."""
        if type(module).__name__ != "Llama4TextExperts":
            return None
        d_ff = module.expert_dim
        in_stack = {name: Place("gate_up_proj", rows, transposed=True) for name, rows in halves(d_ff).items()}
        places = in_stack | {"down": Place("down_proj", transposed=True)}
        return Experts(module.num_experts, module.hidden_size, d_ff, GATED, places, gated_by(module.act_fn))

    def routing(self, block: Any, output: Any) -> Routing:
        """A router returns (scores, logits); outputs of experts are summed as they are.

        Llama 4 selects one expert a token; where a configuration asks for more, all are said to see what the first
        does.
        """
        logits = output[1]
        scores, index = logits.topk(block.top_k, dim=-1)
        return Routing(logits, index, torch.ones_like(scores), scale=scores[:, :1].float().sigmoid().to(logits.dtype))

    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every expert runs on every token anyway, on zeros where it is not selected: its argument is [E·T, d]."""
        mixed = experts(*arguments)
        T, E = routing.logits.shape
        return mixed.view(E, T, -1)[routing.index, torch.arange(T, device=mixed.device)[:, None]], mixed


register(Llama4("llama4_text"))
