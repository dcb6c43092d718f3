"""What fairseq's mixture-of-experts GPT shares with a dense one: positions, attention, feed-forward.

This file travels beside the weights as remote code: it imports torch, transformers and the files beside it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_fsgpt_moe import FSGPTMoEConfig


class FSGPTMoEPositions(nn.Module):
    """Sinusoidal positions: a half of sines, then a half of cosines, with frequencies from 1 down to 1e-4.

    The first position has angle `pad_token_id` + 1, as padding owns the angles before it, and is itself zero.
    """

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__()
        self.frequencies, self.offset = config.hidden_size // 2, config.pad_token_id + 1
        # Of no use, and uninitialised memory in fairseq; but every checkpoint has it.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, position_ids: Tensor) -> Tensor:
        """Positions [B, S] from 0, −1 for padding → float32 [B, S, d]."""
        steps = torch.arange(self.frequencies, device=position_ids.device).float()
        frequencies = torch.exp(steps * -(math.log(10000) / (self.frequencies - 1)))
        angles = (position_ids + self.offset)[..., None].float() * frequencies  # [B, S, d / 2]
        return torch.cat([angles.sin(), angles.cos()], dim=-1).masked_fill(position_ids[..., None] < 0, 0.0)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Query, key and value [B, H, ·, d / H], additive mask → output [B, S, H, d / H], weights [B, H, S, ·]."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class FSGPTMoEAttention(nn.Module):
    """Causal multi-head attention with biases."""

    is_causal = True

    def __init__(self, config: FSGPTMoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, S, d] → [B, S, d], and attention weights [B, H, S, ·] where they are computed at all."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, H, S, d / H]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5, **kwargs
        )
        return self.out_proj(mixed.flatten(2)), weights


class FSGPTMoEDenseFFN(nn.Module):
    """The feed-forward layer between sparse ones."""

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.activation_function]

    def forward(self, hidden_states: Tensor, real: Tensor) -> Tensor:
        """Tokens [B, S, d] → [B, S, d], padding or not."""
        outer: Tensor = self.fc2(self.act_fn(self.fc1(hidden_states)))
        return outer
