"""What published models need on this machine, from its rates: the formulas are those by which `mcsmoe shrink` promises.

Nothing is downloaded; the shapes are those of the models' config.json. Weights are in bfloat16, in which DeepSeek-V3's
FP8 weights are restored before they are worked on.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.needs import SHAPES
from benchmarks.side_by_side import table
from mcsmoe.calibration.memory import Batches, forward_needs
from mcsmoe.shrinking.pace import Pace, Work, active_parameters, shown_time
from mcsmoe.sizing import Sizes, aligning_bytes, merging_bytes, working_disk

SAMPLE = Batches(count=16, batch_size=8, positions=2048)
"""128 rows of 2,048 tokens."""
WRITTEN = 2**28

PUBLISHED: dict[str, dict[str, Any]] = {
    "Mixtral-8x7B": SHAPES["mixtral-8x7b"],
    "Qwen3-235B-A22B": {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 94,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    },
    "DeepSeek-V3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "vocab_size": 129280,
    },
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """The pace of this machine on all its cores, and bytes per second of writing, with the file on the disk."""

    pace: Pace
    write: float
    cores: int

    @classmethod
    def measure(cls, scratch: Path) -> "Machine":
        """Measure with a file in `scratch`."""
        cores, file = os.cpu_count() or 1, scratch / "written"
        block = os.urandom(2**20)
        started = time.perf_counter()
        with file.open("wb") as stream:
            for _ in range(WRITTEN // len(block)):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        write = WRITTEN / (time.perf_counter() - started)
        torch.set_num_threads(cores)
        pace = Pace.measure([file], torch.bfloat16, "cpu")
        file.unlink()
        return cls(pace, write, cores)

    @property
    def rates(self) -> dict[str, float]:
        """GB and billions of operations per second."""
        per_second = {
            "GB read": self.pace.read,
            "GB written": self.write,
            "GFLOP in bfloat16": self.pace.model,
            "GFLOP in float32": self.pace.single,
        }
        return {name: round(value / 1e9, 2) for name, value in per_second.items()}

    @property
    def slower(self) -> Pace:
        """The pace with the slower of reading and writing for both, as the formulas have one rate."""
        return replace(self.pace, read=min(self.pace.read, self.write))


def rows(machine: Machine) -> list[Row]:
    """Seconds and bytes of each published model."""
    return [_row(name, shape, machine) for name, shape in PUBLISHED.items()]


def _row(name: str, shape: dict[str, Any], machine: Machine) -> Row:
    config = transformers.AutoConfig.for_model(**shape)
    config.dtype = torch.bfloat16
    sizes = Sizes.of(config)
    kept = sizes.fewest // 2
    result = sizes.kept(kept, "mapped")
    work = Work(
        sizes=sizes,
        kept=kept,
        result=result,
        stock=False,
        streamed=True,
        calibration_tokens=SAMPLE.samples * SAMPLE.positions,
        batches=SAMPLE.count,
        held_out_tokens=0,
        active=active_parameters(sizes, config.dtype.itemsize),
    )
    seconds = work.seconds(machine.slower)
    # Permuting is merging in which all experts of a layer are aligned to one, and nothing goes.
    permuting = replace(work, kept=1, result=sizes.total).seconds(machine.slower)
    return {
        "model": name,
        "experts": f"{sizes.fewest} → {kept}",
        "bytes": sizes.total,
        "result_bytes": result,
        "collect_seconds": seconds["collect"],
        "merge_seconds": seconds["merge"],
        "permute_seconds": permuting["merge"],
        "collect_memory": forward_needs(config, SAMPLE, ()).streamed,
        "merge_memory": merging_bytes(config, kept),
        "permute_memory": max(aligning_bytes(sizes, layer) for layer in sizes.layers),
        "disk": sizes.total + working_disk(config, SAMPLE, kept, "mapped"),
        "disk_permuting": sizes.total,
    }


def text(machine: Machine, found: Sequence[Row]) -> str:
    """The machine and the table."""
    rates = ", ".join(f"{value:,} {name}" for name, value in machine.rates.items())
    head = ["model", "experts a layer", "GB", "merged, GB", "collect", "merge", "permute"]
    head += [f"memory of {stage}, GB" for stage in ("collect", "merge", "permute")]
    head += ["disk, GB", "permuting, GB more"]
    cells = [
        [
            row["model"],
            row["experts"],
            *(_gb(row[name]) for name in ("bytes", "result_bytes")),
            *(shown_time(row[f"{stage}_seconds"]) for stage in ("collect", "merge", "permute")),
            *(_gb(row[f"{stage}_memory"]) for stage in ("collect", "merge", "permute")),
            *(_gb(row[name]) for name in ("disk", "disk_permuting")),
        ]
        for row in found
    ]
    return (
        f"## Published models on this machine\n\nComputed, not measured, from what this machine does in a second on "
        f"{machine.cores} cores: {rates}. {SAMPLE.samples} × {SAMPLE.positions:,} calibration tokens, weights in "
        "bfloat16 and read block by block; memory is that of the work, without the process itself (0.5 GB). Disk is "
        f"the source, its merged copy, and what verification keeps for a while.\n\n{table(head, cells)}"
    )


def _gb(value: float) -> str:
    return f"{value / 1e9:,.1f}"
