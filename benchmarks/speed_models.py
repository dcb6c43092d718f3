"""Makes the random models of benchmarks/speed.py, in the form in which the pipeline writes them."""

import math
import random
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from torch import Tensor
from transformers.initialization import no_init_weights

from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.compression.factorise import sparse_parts, stacked_weights
from mcsmoe.families import MoELayer, sparse_layers
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import Material, write_merged
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears

SWITCH: dict[str, Any] = {
    "model_type": "switch_transformers",
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_sparse_encoder_layers": 6,
    "num_sparse_decoder_layers": 6,
    "num_experts": 32,
    "expert_capacity": 64,
    "decoder_start_token_id": 0,
}
"""Configuration of google/switch-base-32."""

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
"""Mixtral-8x7B with an eighth of its widths and four layers."""

SHAPES = {"switch": SWITCH, "mixtral": MIXTRAL}

SMALL: dict[str, dict[str, Any]] = {
    "switch": SWITCH
    | {"vocab_size": 4000, "d_model": 256, "d_ff": 1024, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 4}
    | {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    "mixtral": MIXTRAL | {"vocab_size": 4000, "num_hidden_layers": 2},
}
"""The same with fewer layers and words, and smaller widths of Switch."""

RANK = 32
ROWS = 0.1
NOISE = 2**26


def make(shape: dict[str, Any], groups: int, directory: Path) -> None:
    """Write `full`, `merged` (to `groups` experts in each layer) and `compressed` into `directory`."""
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    full(shape, noise, directory / "full")
    merge(directory / "full", groups, directory / "merged")
    compress(directory / "merged", noise, directory / "compressed")


@torch.no_grad()
def full(shape: dict[str, Any], noise: Tensor, directory: Path) -> None:
    """Write a stock checkpoint whose weights are pieces of the noise, scaled to keep the variance of their inputs."""
    config = transformers.AutoConfig.for_model(**shape)
    classes = transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForCausalLM
    with no_init_weights():
        model = classes[not config.is_encoder_decoder].from_config(config)
    model.tie_weights()
    for i, (name, weight) in enumerate(model.named_parameters()):
        if weight.ndim == 1:
            weight.fill_(1.0)
            continue
        embedding = name.endswith(("shared.weight", "embed_tokens.weight", "attention_bias.weight"))
        scale = 1.0 if embedding else weight.shape[-1] ** -0.5
        if name.endswith("Attention.q.weight"):
            scale *= config.d_kv**-0.5  # because T5 does not divide attention scores by √d
        for matrix in weight.view(-1, *weight.shape[-2:]):
            torch.mul(piece(noise, matrix.shape, i), scale, out=matrix)
    model.save_pretrained(directory)


def piece(noise: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return values from a random place in the noise, which is much faster than drawing new ones."""
    size = math.prod(shape)
    start = random.Random(seed).randrange(len(noise) - size)
    return noise[start : start + size].view(shape)


def merge(source: Path, groups: int, directory: Path) -> None:
    """Write a merged checkpoint: in every layer, experts e ≡ k (mod `groups`) are averaged into expert k."""
    origin = Checkpoint(source)
    layers = sparse_layers(origin.config)
    plans = {}
    for layer in layers:
        members = [tuple(range(k, layer.experts, groups)) for k in range(groups)]
        plans[layer.name] = LayerPlan(tuple(Group(m[0], m, (1.0,) * len(m)) for m in members), merged=True)
    statistics = RoutingStatistics({each.name: LayerStatistics.zeros(each.experts, each.d_model) for each in layers})
    directory.mkdir()
    plan = Plan("benchmark", "average", "none", "dominant", plans)
    write_merged(origin, plan, Material(statistics, Gradients(source), no_tokens), directory)


@torch.no_grad()
def compress(source: Path, noise: Tensor, directory: Path) -> None:
    """Write a compressed checkpoint of rank `RANK`, with a random share `ROWS` of the rows of S.

    U and V are random, because speed does not depend on their values.
    """
    model = load_model(source)
    for name, (owner, attribute, weight) in stacked_weights(model).items():
        experts, d_out, d_in = weight.shape
        u = piece(noise, (experts, d_out, RANK), len(name)) * RANK**-0.5
        v = piece(noise, (experts, RANK, d_in), d_out) * d_in**-0.5
        setattr(owner, attribute, FactorisedLinears.from_factors(u, v, weight.detach(), "row"))
    generator = torch.Generator().manual_seed(0)
    for part in sparse_parts(model).values():
        part.keep(torch.rand(len(part.values), generator=generator) < ROWS)
    model.update_config()
    model.save_pretrained(directory)


def no_tokens(layer: MoELayer) -> NoReturn:
    """Refuse to give tokens: nothing here looks at any."""
    raise AssertionError(f"tokens of {layer.name} were asked for")
