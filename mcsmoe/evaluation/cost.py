"""What a checkpoint costs to keep and to run: parameters, bytes, experts, FLOPs per token."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcsmoe.calibration.memory import forwards_at_once
from mcsmoe.checkpoint.lockstep import run_forwards
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.streamed import device_of
from mcsmoe.families import FAMILIES, merged_layers, sparse_layers
from mcsmoe.tasks.batches import collate, is_causal, model_inputs
from mcsmoe.tasks.task import Encoded


def size(model: Any, directory: Path) -> dict[str, int]:
    """Return `parameters` (tied ones counted once, index maps not), `bytes` of weights on disk, `experts` held.

    `experts` is left out for a model type that is not among the families.
    """
    held = {"experts": experts(model.config)} if model.config.model_type in FAMILIES else {}
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.is_floating_point()),
        "bytes": _bytes(directory),
    } | held


def _bytes(directory: Path) -> int:
    """Bytes of safetensors, or of the `.bin` files of an old checkpoint."""
    old = [] if list(directory.glob("*.safetensors")) else list(directory.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in old) or Checkpoint(directory).size_bytes


def experts(config: Any) -> int:
    """Number of experts over all sparse layers; `config.moe_layers` gives those of a merged layer."""
    merged = merged_layers(config) or {}
    return sum(
        merged[layer.name]["experts"] if layer.name in merged else layer.experts for layer in sparse_layers(config)
    )


def _grouped_mm(tokens: tuple[int, ...], weights: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of multiplying each of tokens [N, d] by one of the stacked weights [E, d, f]."""
    return 2 * tokens[0] * weights[1] * weights[2]


# torch counts neither the grouped product of fused experts nor the CPU's attention kernel (hence `MATH` below).
UNCOUNTED = {torch.ops.aten._grouped_mm: _grouped_mm}


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of all that `work` runs.

    A multiply-add counts as two, as in `torch.utils.flop_counter`; matrix products and attention count, sums
    and activations do not.
    """
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


@torch.no_grad()
def flops_per_token(model: Any, rows: Sequence[Encoded], pad: int, memory_limit: int | None = None) -> float:
    """Floating-point operations of the forward pass per token, source and target tokens together; see `flops_of`.

    Each row runs alone, without padding or experts' capacity shared with other rows. The
    model may be streamed, within `memory_limit` bytes.
    """
    model.eval()
    causal, device = is_causal(model), device_of(model)

    def run(row: Encoded) -> None:
        batch = collate([row], pad, causal=causal)
        inputs = {name: value.to(device) for name, value in model_inputs(batch, causal).items()}
        model(**inputs, use_cache=False)

    longest = max(len(row.source) + len(row.target) for row in rows)
    at_once = forwards_at_once(model, memory_limit, 1, longest)
    forwards = [partial(run, row) for row in rows]
    total = flops_of(lambda: run_forwards(model, forwards, "count operations", show=False, at_once=at_once))
    # A causal model does not run a row's last token, from which nothing is predicted.
    return total / sum(len(row.source) + len(row.target) - causal for row in rows)
