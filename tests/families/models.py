"""A small random model of each family with transformers' interface, and the tables of README and docs/families.md.

python -m tests.families.models     prints them
"""

from typing import Any

import torch

from mcsmoe.families import MoELayer, Role, family_of
from mcsmoe.model_types import INSIDE, REFUSED

EXPERTS = 8
VOCABULARY = 96
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
TWO = {"num_experts_per_tok": 2}
SMALL = TWO | {"moe_intermediate_size": 24}
DENSE_FIRST = {"first_k_dense_replace": 1}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 1}
WINDOW = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
ROUTED = {"n_routed_experts": EXPERTS, "n_shared_experts": 1}
LOCAL = {"num_local_experts": EXPERTS} | TWO
NUMBER = {"num_experts": EXPERTS}

SETTINGS: dict[str, dict[str, Any]] = {
    "afmoe": NUMBER | SMALL | WINDOW | {"num_dense_layers": 1},
    "cohere2_moe": NUMBER | TWO | WINDOW,
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    },
    "deepseek_v2": ROUTED | GROUPS | LATENT | DENSE_FIRST | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": ROUTED | GROUPS | LATENT | DENSE_FIRST,
    "dots1": ROUTED | SMALL | DENSE_FIRST | {"n_group": 2, "topk_group": 1},
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
    "exaone_moe": NUMBER | SMALL | DENSE_FIRST | WINDOW | {"num_shared_experts": 1},
    "flex_olmo": NUMBER | TWO,
    "glm4_moe": ROUTED | SMALL | DENSE_FIRST | {"n_group": 1, "topk_group": 1},
    "glm4_moe_lite": ROUTED | SMALL | LATENT | {"n_group": 1, "topk_group": 1, "mlp_layer_types": ["dense", "sparse"]},
    "fsgpt_moe": NUMBER | {"num_layers": 2, "num_heads": 4, "moe_eval_capacity_token_fraction": 1.0},
    "gpt_oss": LOCAL | WINDOW,
    "granitemoe": LOCAL,
    "granitemoehybrid": LOCAL
    | {"shared_intermediate_size": 40, "layer_types": ["attention", "attention"]}
    | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_state": 8},
    "granitemoeshared": LOCAL | {"shared_intermediate_size": 40},
    "hunyuan_v1_moe": NUMBER | {"moe_topk": 2},
    "hy_v3": NUMBER | SMALL,
    "jamba": NUMBER
    | TWO
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    | {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "kolibri1": NUMBER | SMALL,
    "laguna": NUMBER | SMALL | {"shared_expert_intermediate_size": 24},
    "lfm2_moe": NUMBER | SMALL | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "llama4_text": LOCAL | {"intermediate_size_mlp": 40, "moe_layers": [1]},
    "mellum": NUMBER | SMALL,
    "mimo_v2_flash": ROUTED
    | SMALL
    | {"n_group": 1, "topk_group": 1, "layer_types": ["full_attention", "full_attention"]},
    "minimax": LOCAL | {"layer_types": ["full_attention", "linear_attention"]},
    "minimax_m2": LOCAL,
    "mixtral": LOCAL,
    "nemotron_h": ROUTED
    | SMALL
    | {"layers_block_type": ["attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8}
    | {"ssm_state_size": 8, "n_groups": 2},
    "olmoe": NUMBER | TWO,
    "phimoe": LOCAL,
    "qwen2_moe": NUMBER | SMALL | {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
    "qwen3_moe": NUMBER | SMALL | {"mlp_only_layers": [0]},
    "qwen3_next": NUMBER
    | SMALL
    | {"shared_expert_intermediate_size": 40, "layer_types": ["linear_attention", "full_attention"]}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "solar_open": ROUTED | SMALL,
}


def small_model(model_type: str, **changes: Any) -> Any:
    """A stock model with random weights, always the same ones, in eval mode; `changes` of its configuration."""
    import transformers

    known = transformers.AutoConfig.for_model(model_type)
    settings = {key: value for key, value in BASE.items() if hasattr(known, key)} | SETTINGS[model_type] | changes
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **settings))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        # Some classes leave experts, or the biases of routers, at zero or without values.
        if parameter.is_floating_point() and (parameter.ndim == 3 or not parameter.any()):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    for name, value in model.named_buffers():
        if "bias" in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.1)
    return model.eval()


def batch(rows: int = 3, length: int = 10) -> dict[str, torch.Tensor]:
    """Token ids, with padding on the right of the first row."""
    ids = torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def table() -> str:
    """Markdown: model types by what their experts are and how they lie on disk."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for model_type in sorted(SETTINGS):
        outside = [f"`{whole}` (its language model)" for whole, inside in INSIDE.items() if inside == model_type]
        config = small_model(model_type).config
        layer = family_of(config).layers(config)[0]
        kinds.setdefault((_kind(layer), _disk(layer)), []).extend([f"`{model_type}`", *outside])
    rows = [f"| {kind} | {disk} | {', '.join(names)} |" for (kind, disk), names in kinds.items()]
    return "\n".join(["| experts | on disk | model types |", "|---|---|---|", *rows])


def refused() -> str:
    """Markdown: model types that are not supported, and why."""
    rows = [f"| `{model_type}` | {reason} |" for model_type, reason in REFUSED.items()]
    return "\n".join(["| not supported | why |", "|---|---|", *rows])


def _disk(layer: MoELayer) -> str:
    place = layer.places["up"]
    if not place.stacked:
        return "a tensor each"
    turned = ", transposed" if place.transposed else ""
    in_turn = ", gate and up row by row in turn" if place.rows is not None and place.rows.step else ""
    return f"in a stack{turned}{in_turn}" if place.height is None else "in a tensor, one after another"


def _kind(layer: MoELayer) -> str:
    roles = set(layer.layout.values())
    return ("gated" if Role.GATE in roles else "plain") + (", biases" if Role.UP_BIAS in roles else "")


if __name__ == "__main__":
    print(table(), refused(), sep="\n\n")
