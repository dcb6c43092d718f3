"""Weights in FP8 with one scale for each block, as DeepSeek-V3 and Qwen3-FP8 are published, restored to bfloat16.

A weight [o, i] in float8 lies beside `{name}_scale_inv` [⌈o/r⌉, ⌈i/c⌉] in float32, for blocks of r rows and c columns
(128 × 128 in all published models); the last blocks may be smaller. The value is weight · scale of its block
(DeepSeek-V3, arXiv 2412.19437, §3.3.2). A stack [E, o, i] has scales [E, ⌈o/r⌉, ⌈i/c⌉].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcsmoe.checkpoint.header import Entry
from mcsmoe.errors import CheckpointError

STORED = torch.float8_e4m3fn
RESTORED = torch.bfloat16
SCALE = "_scale_inv"
"""What the name of a weight has appended in the name of its scales."""
METHODS = ("fp8", "mxfp4")
"""Values of `quant_method` whose weights are restored; transformers restores those of "mxfp4"."""


@dataclass(frozen=True)
class Blocks:
    """The size of the blocks that share a scale."""

    rows: int
    columns: int

    @classmethod
    def of(cls, config: Mapping[str, Any], where: object) -> "Blocks | None":
        """The blocks that a config.json describes; None if its weights are not in FP8. `where` names it in errors.

        Raises `CheckpointError` for a `quantization_config` of another kind than `METHODS`, or without blocks.
        """
        described = config.get("quantization_config")
        if described is None:
            return None
        method = described.get("quant_method") if isinstance(described, Mapping) else described
        if method not in METHODS:
            what = f"{where}: weights quantised by {method!r} cannot be restored"
            raise CheckpointError(f"{what}; take the model in bfloat16, or quantised by {' or '.join(METHODS)}")
        if method != "fp8":
            return None
        sizes = described.get("weight_block_size", [128, 128])
        if not (isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes)):
            raise CheckpointError(f"{where}: weight_block_size = {sizes!r}: FP8 is restored in blocks, as [128, 128]")
        return cls(*sizes)

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a weight: [576, 7168] → [5, 56]."""
        return (*shape[:-2], -(-shape[-2] // self.rows), -(-shape[-1] // self.columns))

    def restore(self, weight: Tensor, scales: Tensor) -> Tensor:
        """The weight [..., o, i] in bfloat16. The product is rounded once."""
        value, scales = weight.float(), scales.float()
        for row in range(0, weight.shape[-2], self.rows):  # one row of blocks at a time: little extra memory
            factors = scales[..., row // self.rows, :].repeat_interleave(self.columns, -1)[..., : weight.shape[-1]]
            value[..., row : row + self.rows, :] *= factors[..., None, :]
        return value.to(RESTORED)


def only_transformers_restores(config: Mapping[str, Any], where: object) -> bool:
    """Whether weights are quantised in another way than FP8 in blocks: transformers restores such a model as a whole.

    Raises `CheckpointError` as `Blocks.of` does.
    """
    return Blocks.of(config, where) is None and config.get("quantization_config") is not None


def scaled(entries: Mapping[str, Entry], blocks: Blocks | None) -> dict[str, str]:
    """Name of each weight in FP8 → name of its scales.

    Raises `CheckpointError`, naming the weight, if config.json describes no `blocks`, and for scales that are missing
    or of the wrong shape.
    """
    found = {}
    for name, entry in entries.items():
        if entry.dtype != STORED:
            continue
        if blocks is None:
            raise CheckpointError(f"{entry.file}: {name} is in FP8, of which config.json has no quantization_config")
        scales = entries.get(f"{name}{SCALE}")
        if scales is None:
            raise CheckpointError(f"{entry.file}: {name} is in FP8, and there is no {name}{SCALE}")
        wanted = blocks.scales(entry.shape) if len(entry.shape) > 1 else None
        if scales.shape != wanted or not scales.dtype.is_floating_point:
            what = f"{scales.dtype} {list(scales.shape)}, not floats {list(wanted or ())}".replace("torch.", "")
            raise CheckpointError(f"{scales.file}: {name}{SCALE} is {what}, for a weight {list(entry.shape)}")
        found[name] = f"{name}{SCALE}"
    return found
