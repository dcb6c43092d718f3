"""Checkpoints of random weights for benchmarks/files.py."""

import math
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.shards import other_parts, write_parts
from mcsmoe.checkpoint.writer import TensorSpec
from mcsmoe.families import family_of, skeleton

KEPT = 2
"""Experts are merged in groups of so many."""
NOISE = 2**24


def mixtral(layers: int, width: int) -> dict[str, Any]:
    """Mixtral-8x7B's config.json (width 4096) at another `width` and number of layers; bfloat16."""
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": width // 512}
    sizes = {"hidden_size": width, "intermediate_size": width * 7 // 2, "num_hidden_layers": layers} | heads
    return transformers.MixtralConfig(**sizes, dtype="bfloat16", architectures=["MixtralForCausalLM"]).to_dict()


def switch(layers: int, width: int) -> dict[str, Any]:
    """Switch-base-32's config.json (width 768) at another `width` and number of layers in each half; float32."""
    sizes = {"d_model": width, "d_ff": 4 * width, "num_heads": 12, "d_kv": 64, "num_experts": 32}
    counts = dict.fromkeys(("num_layers", "num_decoder_layers"), 2 * layers)
    sparse = dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), layers)
    names = {"architectures": ["SwitchTransformersForConditionalGeneration"], "dtype": "float32"}
    config = transformers.SwitchTransformersConfig(**sizes, **counts, **sparse, **names, decoder_start_token_id=0)
    return config.to_dict()


def qwen(experts: int, width: int) -> dict[str, Any]:
    """Qwen3-30B-A3B's number of layers (48), with other `experts` of another `width`; bfloat16."""
    sizes = {"hidden_size": 512, "moe_intermediate_size": width, "num_experts": experts, "vocab_size": 8_000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 48}
    names = {"architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16"}
    return transformers.Qwen3MoeConfig(**sizes, **heads, **names).to_dict()


def make(directory: Path, values: dict[str, Any]) -> None:
    """Write a stock checkpoint whose weights are pieces of noise: drawing them anew would take much longer."""
    family, model = family_of(values), skeleton(values)
    held = model.state_dict()
    specs = {old: TensorSpec(held[new].dtype, tuple(held[new].shape)) for old, new in family.outside(values).items()}
    for tied in getattr(model, "all_tied_weights_keys", {}):
        specs.pop(tied, None)
    for layer in family.layers(values):
        for name, shape in layer.shapes().items():
            specs |= {layer.places[name].name(e): TensorSpec(model.dtype, shape) for e in range(layer.experts)}
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).to(model.dtype)

    def value(name: str) -> Tensor:
        shape = specs[name].shape
        if len(shape) < 2:
            return torch.ones(shape, dtype=specs[name].dtype)
        size, start = math.prod(shape), random.Random(name).randrange(NOISE)
        often = -(-size // (NOISE - start))
        return noise[start:].repeat(often)[:size].view(shape) * shape[-1] ** -0.5

    directory.mkdir()
    write_parts(directory, other_parts(specs, value))
    write_json(directory / "config.json", values)


def merged_bytes(source: Path) -> int:
    """Bytes of the weights of a checkpoint when its experts are merged in groups of `KEPT`."""
    checkpoint = Checkpoint(source)
    layers = family_of(checkpoint.config).layers(checkpoint.config)
    experts = [place.name(e) for layer in layers for e in range(layer.experts) for place in layer.places.values()]
    size = sum(math.prod(checkpoint.shape(name)) * checkpoint.dtype(name).itemsize for name in experts)
    return checkpoint.size_bytes - size + size // KEPT
