"""Fairseq's mixture-of-experts GPT for tests: a small random one, and the one that the reference measured."""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from mcsmoe.modeling.modeling_fsgpt_moe import FSGPTMoEForCausalLM
from tests.shared import GOLDEN

FSGPT = GOLDEN / "fsgpt"
BATCHES = 3
SPARSE = (1, 3, 5)
EXPERTS = 12  # two digits: the order of experts on disk is not that of their names
VOCABULARY = 40


def tiny_fsgpt(**changes: Any) -> Any:
    """Four layers, the second and fourth sparse; always the same weights, in eval mode. Capacity never binds."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 4,
        "num_heads": 4,
        "num_experts": EXPERTS,
        "moe_eval_capacity_token_fraction": 1.0,
    }
    model = FSGPTMoEForCausalLM(FSGPTMoEConfig(**settings | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # As after some training: layers and positions count beside the embedding, biases are not 0, norms not 1.
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.05 if value.ndim == 1 else 0.5)
        model.decoder.embed_tokens.weight.mul_(0.2)
    return model


def tokens(rows: int = 4, length: int = 9) -> Tensor:
    """Random ids [rows, length] that are neither padding nor end."""
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def golden_model(**changes: Any) -> Any:
    """The reference's model."""
    return FSGPTMoEForCausalLM.from_pretrained(FSGPT, **changes).eval()


def golden_batch(number: int) -> dict[str, Tensor]:
    """One of the batches that were measured."""
    batches = load_file(FSGPT / "batches.safetensors")
    return {key: batches[f"batch{number}.{key}"] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> Tensor:
    """Logits of a forward pass."""
    value: Tensor = model(**inputs).logits
    return value
