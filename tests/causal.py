"""A small random decoder-only model for tests, and its family."""

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from mcsmoe.families import FAMILIES
from mcsmoe.tasks.batches import Batch, collate
from mcsmoe.tasks.task import Encoded

VOCABULARY = 60
EXPERTS, TOP_K = 4, 2


FAMILY = FAMILIES["mixtral"]


def tiny_mixtral(**changes: Any) -> MixtralForCausalLM:
    """A stock Mixtral of two layers; always the same weights for the same sizes, in eval mode."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "initializer_range": 0.3,
    }
    torch.manual_seed(changes.pop("seed", 0))
    return MixtralForCausalLM(MixtralConfig(**settings | changes)).eval()


def rows(count: int = 7) -> list[Encoded]:
    """Sources and targets of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        found: list[int] = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
        return found

    return [Encoded(draw(1, 9), draw(1, 7)) for _ in range(count)]


def batches(size: int) -> list[Batch]:
    """The rows in their order, in batches of different lengths."""
    return [collate(rows()[start : start + size], 0, causal=True) for start in range(0, len(rows()), size)]
