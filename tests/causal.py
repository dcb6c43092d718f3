"""A small random decoder-only model for tests, and what a family must know to watch it."""

from typing import Any

import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from mcsmoe.architectures.layer import Family, MoELayer, Role, Routing
from mcsmoe.tasks.task import Encoded

VOCABULARY = 60
EXPERTS, TOP_K = 4, 2


class GatedLayer(MoELayer):
    """A layer whose router is called `gate`."""

    @property
    def router_path(self) -> str:
        return f"{self.path}.gate"


def layers(config: Any) -> list[MoELayer]:
    return [
        GatedLayer(
            name=f"decoder.{index}",
            path=f"model.layers.{index}.mlp",
            experts=EXPERTS,
            top_k=TOP_K,
            d_model=config.hidden_size,
            d_ff=config.intermediate_size,
            layout={"w1": Role.GATE, "w3": Role.UP, "w2": Role.DOWN},
            activation="silu",
            router="top-k",
            stack="decoder",
            index=index,
        )
        for index in range(config.num_hidden_layers)
    ]


def routing(router: nn.Module, output: Any) -> Routing:
    logits, gates, index = output
    return Routing(logits, index, gates)


def unneeded(*_: Any) -> Any:
    raise AssertionError("nothing is merged here")


FAMILY = Family("mixtral", "AutoModelForCausalLM", layers, routing, unneeded, unneeded, unneeded)


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
