"""Switch Transformer with K merged experts a layer, an index map E → K, and low-rank plus sparse experts.

This file travels beside the weights as remote code: it imports torch, transformers and the files beside it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwitchTransformersForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from .aligned_mcsmoe import align_weights
from .configuration_mcsmoe_switch import MCSMoESwitchConfig
from .experts_mcsmoe import describe, make_linears


class RouterLinear(nn.Linear):
    """Router classifier that computes in the dtype of its input, and keeps its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [..., d] → logits [..., E]."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class MCSMoESwitchRouter(SwitchTransformersTop1Router):
    """The stock router over all E experts, with the selected expert as an index instead of a one-hot row."""

    def __init__(self, config: MCSMoESwitchConfig) -> None:
        super().__init__(config)
        self.classifier = RouterLinear(config.hidden_size, config.num_experts, bias=config.router_bias)
        nn.init.normal_(self.classifier.weight, std=config.initializer_factor)

    def forward(self, hidden_states: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, S, d] → expert [B, S] (E: over capacity), probability [B, S, 1], logits [B, S, E].

        Experts that are True in `excluded` [E] get no probability: their logits are −∞.
        """
        tokens = hidden_states.to(self.dtype)
        if self.training and self.jitter_noise > 0:
            # In place as in the stock class: in float32 the experts see the noise too.
            tokens *= torch.empty_like(tokens).uniform_(1.0 - self.jitter_noise, 1.0 + self.jitter_noise)
        logits = self.classifier(tokens).masked_fill(excluded, float("-inf"))
        probabilities = F.softmax(logits, dim=-1, dtype=self.dtype).to(hidden_states.dtype)
        gate, expert = probabilities.max(dim=-1, keepdim=True)
        expert = expert.squeeze(-1)
        if hidden_states.shape[1] > self.expert_capacity:  # otherwise no expert can overflow
            place = F.one_hot(expert, self.num_experts).cumsum(dim=-2).gather(-1, expert[..., None])
            expert = expert.masked_fill(place.squeeze(-1) > self.expert_capacity, self.num_experts)
        return expert, gate, logits


class MCSMoESwitchExperts(nn.Module):
    """K experts; each runs once for all of its tokens."""

    def __init__(self, config: MCSMoESwitchConfig, layer: dict[str, Any]) -> None:
        super().__init__()
        self.num_experts = layer["experts"]
        self.wi = make_linears(layer, "wi", config.d_model, config.d_ff, config.initializer_factor)
        self.wo = make_linears(layer, "wo", config.d_ff, config.d_model, config.initializer_factor)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = ACT2FN[config.dense_act_fn]

    def forward(self, hidden_states: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        """Tokens [T, d], the expert of each [T] (K: none), its weight [T, 1] → [T, d]."""
        sizes = torch.bincount(expert, minlength=self.num_experts).tolist()[: self.num_experts]
        order = expert.argsort(stable=True)[: sum(sizes)]  # tokens by expert; those of no expert come last
        inner = self.dropout(self.act(self.wi(hidden_states.index_select(0, order), sizes)))
        outer = self.wo(inner, sizes) * gate.index_select(0, order)
        return torch.zeros_like(hidden_states).index_copy(0, order, outer.to(hidden_states.dtype))


class MCSMoESwitchSparseMLP(nn.Module):
    """Router over E experts, index map E → K (−1: the expert is excluded from routing), K experts.

    Tokens over an expert's capacity contribute 0.
    """

    expert_map: Tensor

    def __init__(self, config: MCSMoESwitchConfig, layer: dict[str, Any]) -> None:
        super().__init__()
        experts = layer["experts"]
        self.router = MCSMoESwitchRouter(config)
        self.register_buffer("expert_map", torch.arange(config.num_experts) % experts)
        self.experts = MCSMoESwitchExperts(config, layer)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Tokens [B, S, d] → [B, S, d]."""
        expert, gate, _ = self.router(hidden_states, self.expert_map < 0)
        slot = F.pad(self.expert_map, (0, 1), value=self.experts.num_experts)[expert.view(-1)]
        tokens = hidden_states.view(-1, hidden_states.shape[-1])
        return self.experts(tokens, slot, gate.view(-1, 1)).view(hidden_states.shape)


class MCSMoESwitchForConditionalGeneration(SwitchTransformersForConditionalGeneration):
    """Switch Transformer for conditional generation with the sparse layers of `config.moe_layers`."""

    config_class = MCSMoESwitchConfig
    config: MCSMoESwitchConfig

    def __init__(self, config: MCSMoESwitchConfig) -> None:
        # The stock class builds every block dense, so that E experts a layer are never allocated.
        steps = {name: getattr(config, name) for name in ("encoder_sparse_step", "decoder_sparse_step")}
        for name in steps:
            setattr(config, name, 0)
        super().__init__(config)
        for part in (config, self.encoder.config, self.decoder.config):
            for name, step in steps.items():
                setattr(part, name, step)
        for name, layer in (config.moe_layers or {}).items():
            stack, index = name.split(".")
            block = getattr(self, stack).block[int(index)]
            block.is_sparse = block.layer[-1].is_sparse = True
            block.layer[-1].mlp = MCSMoESwitchSparseMLP(config, layer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the weights in aligned memory."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def sparse_mlps(self) -> dict[str, MCSMoESwitchSparseMLP]:
        """The sparse layers by name ("encoder.1"), in order of the forward pass."""
        stacks = {"encoder": self.encoder.block, "decoder": self.decoder.block}
        return {
            f"{stack}.{index}": block.layer[-1].mlp
            for stack, blocks in stacks.items()
            for index, block in enumerate(blocks)
            if block.is_sparse
        }

    def update_config(self) -> None:
        """Make `config.moe_layers` tell what the modules hold, after they were replaced or units dropped."""
        self.config.moe_layers = {name: describe(mlp.experts) for name, mlp in self.sparse_mlps().items()}


MCSMoESwitchForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
