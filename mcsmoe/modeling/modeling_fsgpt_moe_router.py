"""Router of fairseq's mixture-of-experts GPT.

This file travels beside the weights as remote code: it imports torch and the file beside it.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_fsgpt_moe import FSGPTMoEConfig


class FSGPTMoEClassifier(nn.Linear):
    """Computes in the dtype of its input, and keeps its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [T, d] → logits [T, E]."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class FSGPTMoERouter(nn.Module):
    """Top-2 router: the best expert of each token and the second best, whose probabilities are made to sum to 1.

    An expert takes its first choices in the order of the batch, then its second choices, up to its capacity; over
    it a choice has weight 0. The kept choice of a token then has all the weight, unless
    `normalize_router_prob_before_dropping`.
    """

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.top_k = 2
        self.dtype = getattr(torch, config.router_dtype)
        self.classifier = FSGPTMoEClassifier(config.hidden_size, config.num_experts, bias=config.router_bias)

    def forward(self, hidden_states: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [T, d] → logits [T, E], weights [T, 2], experts [T, 2]; only tokens True in real [T] are routed."""
        logits = self.classifier(hidden_states.to(self.dtype))
        index = logits.topk(2).indices
        weights = logits.softmax(-1).to(hidden_states.dtype).gather(-1, index)
        kept = self.within_capacity(index, real)
        if self.config.normalize_router_prob_before_dropping:
            return logits, _sum_to_one(weights) * kept, index
        return logits, _sum_to_one(weights * kept), index

    def within_capacity(self, index: Tensor, real: Tensor | None) -> Tensor:
        """Which of the choices [T, 2] the experts have room for, [T, 2]."""
        routed = torch.ones_like(index, dtype=torch.bool) if real is None else real[:, None].expand_as(index)
        capacity = self.capacity(len(index))
        if capacity >= len(index):  # a token chooses an expert once: none can overflow
            return routed
        chosen = F.one_hot(index, self.config.num_experts) * routed[..., None]  # [T, 2, E]
        place = chosen.cumsum(0)
        place[:, 1] += chosen[:, 0].sum(0)
        return routed & (place.gather(-1, index[..., None])[..., 0] <= capacity)

    def capacity(self, tokens: int) -> int:
        """The tokens that one expert takes of a batch.

        Of each batch by its own size: the reference implementation keeps what the first batch it saw gave.
        """
        fraction = self.config.moe_eval_capacity_token_fraction
        if not self.training and fraction > 0:
            return math.ceil(fraction * tokens)
        return self.config.expert_capacity or 2 * math.ceil(tokens / self.config.num_experts)


def _sum_to_one(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).eps)
