"""Small random models for tests: a stock Switch, and what merging and compressing could make of it."""

from typing import Any

import torch
from torch import Tensor
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from mcsmoe.families import family_of
from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

EXPERTS = 8
VOCABULARY = 60
# Experts kept a layer: one only, all, and in between.
KEPT = {"encoder.1": 1, "encoder.3": 3, "decoder.1": EXPERTS, "decoder.3": 2}


def tiny_switch(**changes: Any) -> SwitchTransformersForConditionalGeneration:
    """A stock Switch of 4 + 4 layers, every other one sparse; always the same weights, in eval mode."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 4,
        "num_sparse_decoder_layers": 2,
        "num_experts": EXPERTS,
        "expert_capacity": 1000,
        "router_jitter_noise": 0.0,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**settings | changes)).eval()


def tiny_merged(**changes: Any) -> MCSMoESwitchForConditionalGeneration:
    """A merged model with its own number of experts in every layer (`KEPT`) and scattered index maps."""
    stock = tiny_switch(**changes)
    torch.manual_seed(1)
    values = family_of(stock.config).merged_config(stock.config, KEPT)
    model = MCSMoESwitchForConditionalGeneration(MCSMoESwitchConfig(**values)).eval()
    for mlp in model.sparse_mlps().values():
        kept = mlp.experts.num_experts
        mlp.expert_map.copy_(torch.cat([torch.arange(kept), torch.randint(kept, (EXPERTS - kept,))]))
    return model


def tiny_compressed(structure: str = "row", rank: int = 4, **changes: Any) -> MCSMoESwitchForConditionalGeneration:
    """`tiny_merged` with factorised experts: S keeps all units in the first layer, none in the last, else some."""
    return _compressed(dict.fromkeys(KEPT, structure), {"encoder.1": 1.0, "decoder.3": 0.0}, rank, **changes)


def tiny_mixed(**changes: Any) -> MCSMoESwitchForConditionalGeneration:
    """`tiny_merged` with experts factorised in another structure in each layer, and some units kept in each."""
    return _compressed(dict(zip(KEPT, ("column", "element", "row", "none"))), {}, 4, **changes)


def _compressed(
    structures: dict[str, str], shares: dict[str, float], rank: int, **changes: Any
) -> MCSMoESwitchForConditionalGeneration:
    model = tiny_merged(**changes)
    generator = torch.Generator().manual_seed(2)
    for name, mlp in model.sparse_mlps().items():
        for key in ("wi", "wo"):
            weight = getattr(mlp.experts, key).weight.detach()
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            u, v = u[..., :rank] * s[:, None, :rank], v[:, :rank]
            linears = FactorisedLinears.from_factors(u.contiguous(), v.contiguous(), weight - u @ v, structures[name])
            if linears.sparse is not None:
                linears.sparse.keep(torch.rand(linears.kept, generator=generator) < shares.get(name, 0.3))
            setattr(mlp.experts, key, linears)
    model.update_config()
    return model


def batch(rows: int = 5, seed: int = 3) -> dict[str, Tensor]:
    """Right-padded sources of 11 tokens and targets of 7."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(2, VOCABULARY, (rows, 11), generator=generator)
    mask = torch.ones_like(source)
    mask[0, 6:] = 0
    target = torch.randint(2, VOCABULARY, (rows, 7), generator=generator)
    return {"input_ids": source * mask, "attention_mask": mask, "decoder_input_ids": target}


@torch.no_grad()
def logits(model: Any, **changes: Any) -> Tensor:
    """Logits on `batch`."""
    value: Tensor = model(**batch() | changes).logits
    return value
