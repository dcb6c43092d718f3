"""Disk and memory that each stage needs for the presets of published models, computed from their shapes.

    python -m benchmarks.needs

Downloads and loads nothing; the shapes are copied from the models' config.json. Memory is by the formula of
`mcsmoe/calibration/memory.py` (weights and activations); for permute and merge, it is that of aligning two experts. The
process itself (about 0.5 GB) comes on top. `run on disk` is what a run of the preset leaves: finetune, permute and each
merged method. DVC's cache holds all of it a second time (`run on disk, cache copied`) unless it links files
(`cache.type` in README). The hub's own download is not counted. Writes benchmarks/results/needs.json and .md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from mcsmoe.calibration.memory import forward_needs
from mcsmoe.calibration.sample import Sampling
from mcsmoe.checkpoint.output import write_json
from mcsmoe.methods.resolved import ResolvedMethod
from mcsmoe.params import Params
from mcsmoe.sizing import Sizes, aligning_bytes

RESULTS = Path(__file__).parent / "results"
PRESETS = Path(__file__).parents[1] / "presets"
LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "vocab_size": 50304,
    },
    "deepseek-v2-lite": LATENT
    | {
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "vocab_size": 102400,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "vocab_size": 201088,
    },
}


def needs(params: Params, shape: Mapping[str, Any]) -> dict[str, float]:
    """Return billions of parameters, and GB of disk (`… on disk`) and memory of each stage."""
    config = transformers.AutoConfig.for_model(**shape)
    config.dtype = torch.bfloat16
    sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
    forward = forward_needs(config, sampling, params.collect.also)
    sizes = Sizes.of(config)

    def merged(groups: float) -> int:
        return sizes.kept(int(groups), "mapped")

    full, student = sizes.total, merged(params.merge.groups)
    run = 2 * full + sum(merged(ResolvedMethod.of(name, params).merge.groups) for name in params.methods.merge)
    figures = {
        "parameters": full / 2,
        "finetune on disk": full,
        "permute on disk": full,
        "merge on disk": student,
        "distill on disk": student,
        "run on disk": run,
        "run on disk, cache copied": 2 * run,
        "permute, by weights": aligning_bytes(sizes, sizes.layers[0]),
        "collect, streamed": forward.streamed,
        "collect, whole": forward.whole,
        "distill, compress": 4 * student + full,
    }
    return {name: round(value / 1e9, 1) for name, value in figures.items()}


def main() -> None:
    """Write the table of all presets in `SHAPES`."""
    rows = {name: needs(Params.load(PRESETS / f"{name}.yaml"), shape) for name, shape in SHAPES.items()}
    columns = list(next(iter(rows.values())))
    head = ["preset", "billion parameters", *(f"{name}, GB" for name in columns[1:])]
    lines = ["# What presets of published models need", "", "`python -m benchmarks.needs`", ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(columns)]
    lines += [
        f"| {name} | " + " | ".join(f"{row[column]:,}" for column in columns) + " |" for name, row in rows.items()
    ]
    write_json(RESULTS / "needs.json", {"command": "python -m benchmarks.needs", "rows": rows})
    (RESULTS / "needs.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
