"""The language model of Llama 4 with merged experts; travels as remote code."""

from typing import Any

from torch import Tensor
from transformers import Llama4ForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from .configuration_mcsmoe_llama4 import MCSMoELlama4TextConfig
from .experts_mcsmoe import StockExperts, hold
from .modeling_mcsmoe_fused import merged_model_class


class MappedMoe(Llama4TextMoe):
    """The stock layer around merged experts, which run on the tokens that selected them only.

    A token that selects one merged expert more than once runs it as often: scores multiply what goes in, so each
    time it sees something else.
    """

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [..., d] → the layer's output [T, d], router logits [T, E]."""
        x = hidden_states.reshape(-1, self.hidden_dim)  # [T, d]
        scores, logits = self.router(x)
        index = logits.topk(self.top_k, dim=1).indices  # [T, k]
        scaled = x[:, None] * scores.gather(1, index)[..., None]  # [T, k, d]
        expert = self.router.expert_map[index].view(-1, 1)  # [T·k, 1]
        routed = self.experts(scaled.flatten(0, 1), expert, scores.new_ones(expert.shape))  # [T·k, d]
        return self.shared_expert(x) + routed.view(scaled.shape).sum(1), logits


def install(block: Any, layer: dict[str, Any]) -> None:
    """Make the stock sparse layer `block` hold the merged experts that `layer` describes."""
    hold(block, layer, StockExperts(block.experts.down_proj, block.experts.act_fn))
    block.__class__ = MappedMoe


class Stock(Llama4ForCausalLM):
    """The stock class under a configuration of ours: it has a field `moe_layers` of its own, a list of numbers."""

    def __init__(self, config: Any) -> None:
        ours = config.moe_layers
        config.moe_layers = [int(name.rpartition(".")[2]) for name in ours]
        super().__init__(config)
        config.moe_layers = ours


Stock.__name__ = Llama4ForCausalLM.__name__
_config_class: Any = MCSMoELlama4TextConfig
MCSMoELlama4ForCausalLM = merged_model_class(Stock, _config_class, __name__, install)
