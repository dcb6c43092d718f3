"""DBRX with merged experts; travels as remote code."""

from typing import Any

from torch import Tensor
from transformers import DbrxConfig, DbrxForCausalLM
from transformers.models.dbrx.modeling_dbrx import DbrxFFN

from .configuration_mcsmoe_fused import merged_config_class
from .experts_mcsmoe import StockExperts, hold
from .modeling_mcsmoe_fused import merged_model_class


class MappedFFN(DbrxFFN):
    """The stock layer around merged experts: here, not in the router, tokens select experts."""

    def route_tokens_to_experts(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T, E] → weights [T, k], merged experts [T, k]."""
        weights, index = super().route_tokens_to_experts(router_logits)
        return weights, self.router.expert_map[index]


def install(block: Any, layer: dict[str, Any]) -> None:
    """Make the stock sparse layer `block` hold the merged experts that `layer` describes."""
    glu = block.experts.mlp
    down = glu.w2.view(glu.moe_num_experts, glu.ffn_hidden_size, glu.hidden_size)
    hold(block, layer, StockExperts(down, glu.activation_fn))
    block.__class__ = MappedFFN


_config_class: Any = merged_config_class(DbrxConfig)
MCSMoEDbrxForCausalLM = merged_model_class(DbrxForCausalLM, _config_class, __name__, install)
