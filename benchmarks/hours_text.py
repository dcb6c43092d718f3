"""The Markdown page of benchmarks/hours.py."""

from typing import Any

import numpy as np

from benchmarks.hours import EXAMPLES, GPUS, TOKENS_PER_WORD, TRAFFIC, table

HEAD = """# Hours and memory of the paper's table 2

`python -m benchmarks.hours`

{fit}

## Hours on one GPU

Columns of the table, each with fine-tuning, the dense baseline, {distill} distillations, {compress} compression and all
evaluations; with as many tokens as the words of the training examples come to, and at most, where each source and
target is as long as the preset allows.

| task | examples | tokens | exaFLOPs | {names} | at most: exaFLOPs | {names} |
|---|---:|---:|---:|{rule}---:|{rule}
"""

ASSUMED = """
## What the hours assume

- FLOPs of the forward pass of one example, counted by `torch.utils.flop_counter` on modules of google/switch-base-32's
  shape and of the dense T5 of its sizes; no token is over an expert's capacity. A merged model has the full one's. A
  training step takes three forward passes of the student and one of the teacher, where there is one; while S is whole,
  a forward pass of compression takes {fixed:.1f} GFLOPs more, whatever the batch.
- Epochs, batches, held-out examples and their checks are the presets', numbers of examples the published ones.
- Tokens: T5's tokenizer was not at hand. A word counts {per_word}, and means are cut at the preset's lengths.
- Speed: published peak in float32 without TF32 ({peaks} TFLOPs/s) × {share:.2f}.
  Trainings compute in float32 and nothing turns TF32 on. {share:.2f} ({low:.2f}–{high:.2f}) is the share of this
  machine's own matrix products, in FLOPs a CPU second on one thread, that a training step reaches (four blocks of the
  same widths, 16 × 136 tokens). **That a GPU is kept as busy is the weakest of the assumptions**: the stock model's
  loop over 32 experts starts many small kernels, and small batches (COPA has 8 examples) leave a large GPU idle.
  Generation reads all weights for each token.
- Each step moves {traffic} times the trained weights (gradients, clipping, AdamW) at the published bandwidth.
- Not counted: permutation, statistics, merging (ZipIt takes longest), loading and saving.

## Memory

Weights, gradients, two states of AdamW and, when fine-tuning, the best weights so far, in float32, as
[memory.py](../../mcsmoe/calibration/memory.py) has it; activations come on top.

| training | GB before activations | 24 GB | 80 GB |
|---|---:|---|---|
"""


def fit(memory: dict[str, float]) -> str:
    """Say which trainings do not fit into 24 GB."""
    large = [f"{name} ({size} GB)" for name, size in memory.items() if size > 24]
    return (
        f"**One GPU of 24 GB does not do**: {', '.join(large)} need more before activations. The hours given for "
        "it are its arithmetic alone, for several that share weights and work. One of 80 GB holds each training."
    )


def text(measured: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the page: the tables and their assumptions."""
    methods = table().methods
    names = " | ".join(f"{name}, h" for name in GPUS)
    head = HEAD.format(
        fit=fit(found["memory"]),
        distill=len(methods.distill) + len(methods.dense),
        compress=len(methods.compress),
        per_word=TOKENS_PER_WORD,
        names=names,
        rule="---:|" * len(GPUS),
    )
    rows = []
    for task, kinds in found["columns"].items():
        tokens = measured["tokens"][task]["likely"]
        cells = [task, f"{EXAMPLES[task][0]:,}", f"{tokens[0]} + {tokens[1]}"]
        for kind in kinds.values():
            flops = sum(kind[stage]["flops"] for stage in kind if stage != "hours")
            cells += [f"{flops / 1e18:.2f}", *(f"{value:,}" for value in kind["hours"].values())]
        rows.append(f"| {' | '.join(cells)} |")
    sums = [[f"**{value:,}**" for value in kind.values()] for kind in found["table"].values()]
    rows.append(f"| **all** | | | | {' | '.join(sums[0])} | | {' | '.join(sums[1])} |")
    low, high = np.quantile(measured["share"], [0.25, 0.75])
    assumed = ASSUMED.format(
        fixed=measured["fixed_flops"] / 1e9,
        per_word=TOKENS_PER_WORD,
        peaks=", ".join(f"{name} {gpu.peak / 1e12:g}" for name, gpu in GPUS.items()),
        share=found["share"],
        low=low,
        high=high,
        traffic=TRAFFIC,
    )
    needs = [
        f"| {name} | {size} | {' | '.join('yes' if size < limit else 'no: several devices' for limit in (24, 80))} |"
        for name, size in found["memory"].items()
    ]
    return head + "\n".join(rows) + "\n" + assumed + "\n".join(needs) + "\n"
