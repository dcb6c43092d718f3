"""Random models for `benchmarks.shrink`, in the layouts of published families: bfloat16, in shards, at least 2 GB."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "docs"
VOCABULARY = 8_000
POSITIONS = 256
"""The longest text a model takes, which keeps the runs short."""
SHARD = "700MB"
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "eos_token_id": 1, "pad_token_id": 0}


@dataclass(frozen=True)
class Layout:
    """A model type with small sizes, how many experts to keep of its layers, and the form of the result."""

    model_type: str
    config: dict[str, Any]
    kept: int
    form: str
    limit: str


LAYOUTS = (
    Layout(
        "qwen3_moe",
        {
            "hidden_size": 1024,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 32,
            "num_experts_per_tok": 4,
        },
        kept=16,
        form="stock",
        limit="1GB",
    ),
    Layout(
        "mixtral",
        {
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        kept=4,
        form="stock",
        limit="1GB",
    ),
    Layout(
        "deepseek_v3",
        {
            "hidden_size": 1024,
            "intermediate_size": 2048,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "first_k_dense_replace": 2,
            "n_routed_experts": 32,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 256,
            "kv_lora_rank": 128,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
        },
        kept=16,
        form="mapped",
        limit="1GB",
    ),
    Layout(
        "gpt_oss",
        {
            "hidden_size": 1024,
            "intermediate_size": 1024,
            "num_hidden_layers": 20,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_local_experts": 16,
            "num_experts_per_tok": 4,
        },
        kept=8,
        form="stock",
        limit="1GB",
    ),
)


ALL = ",".join(each.model_type for each in LAYOUTS)


def make(layout: Layout, directory: Path) -> None:
    """Write a random model in this layout, in shards, with a tokenizer."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(layout.model_type, **COMMON, **layout.config, dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=SHARD)
    texts = (path.read_text() for path in sorted(TEXT.glob("*.md")))
    settings = TokenizerSection(kind="bpe", vocab_size=VOCABULARY)
    train_tokenizer(texts, settings, causal=True).save_pretrained(directory)
