"""Measure what statistics cost: collecting them against a plain forward pass over the same real tokens.

    python -m benchmarks.collect [--quick]

Random models in memory, float32, one thread, seconds of CPU. Collecting ends a pass at the last router, so it is also
compared with a plain pass that ends there: of a model with many layers, that is nearly all of it. The claim is about
the whole pass. Each optional entry of `also` is measured alone, the costly ones on small models and few tokens.
`--quick` takes fewer rounds and rows, and measures what is costly for one model only.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import transformers
import typer
from torch import Tensor
from transformers.initialization import no_init_weights

from benchmarks.side_by_side import Claim, Ratio, in_turns, ratio, save, table
from mcsmoe.calibration.collect import accumulate, collect
from mcsmoe.calibration.gradients import write_gradients
from mcsmoe.calibration.statistics import ALSO, LayerStatistics
from mcsmoe.calibration.watch import Batch, watch
from mcsmoe.checkpoint.lockstep import Enough
from mcsmoe.families import Family, MoELayer, Routing, family_of
from mcsmoe.similarity.correlation import measure_correlations
from mcsmoe.tasks.batches import by_length, collate, model_inputs
from mcsmoe.tasks.task import Encoded

SHAPES: dict[str, dict[str, Any]] = {
    "Switch, 32 experts": {
        "model_type": "switch_transformers",
        "d_model": 384,
        "d_kv": 64,
        "d_ff": 1536,
        "num_heads": 6,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "num_experts": 32,
        "expert_capacity": 64,
        "decoder_start_token_id": 0,
    },
    "Qwen3, 8 of 64 experts": {
        "model_type": "qwen3_moe",
        "hidden_size": 768,
        "moe_intermediate_size": 288,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
    "Mixtral, 2 of 8 experts": {
        "model_type": "mixtral",
        "hidden_size": 768,
        "intermediate_size": 2688,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}
"""Widths in the proportions of the published models."""
VOCABULARY = 4096
SMALL: dict[str, dict[str, Any]] = {
    "switch_transformers": {"d_model": 96, "d_ff": 384, "num_layers": 2, "num_decoder_layers": 2}
    | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "qwen3_moe": {"hidden_size": 192, "moe_intermediate_size": 72, "num_hidden_layers": 2},
    "mixtral": {"hidden_size": 192, "intermediate_size": 672, "num_hidden_layers": 2},
}
"""What is smaller in the models on which the optional sums are measured; they have a vocabulary of `FEW`, too."""
FEW = 64
LIMIT = 1.10
LENGTH, BATCH, ROWS = 256, 4, 8
RAGGED, MEDIAN, SIGMA = 128, 150, 0.8
"""Rows of a ragged sample, and their lengths: log-normal, at most 1,024."""
SIZES = (2, 4, 8, 16, 32)
CHEAP = ("input-gram", "norms")
"""Entries of `also` that are measured on models of full size."""
COLUMNS = {"whole": "default", "ending": "default, to a pass that ends at the last experts"} | {
    name: name for name in CHEAP
}


class Made(NamedTuple):
    """A random model with its family and sparse layers."""

    model: Any
    family: Family
    layers: list[MoELayer]


def make(name: str, small: bool = False) -> Made:
    """A model of one of the `SHAPES`; norms are 1, and matrices keep the size of what they multiply."""
    values = SHAPES[name] | {"vocab_size": VOCABULARY}
    if small:
        values |= SMALL[values["model_type"]] | {"vocab_size": FEW}
    config = transformers.AutoConfig.for_model(**values)
    family = family_of(config)
    with no_init_weights():
        model = getattr(transformers, family.auto_class).from_config(config)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data.normal_(0, value.shape[-1] ** -0.5, generator=generator) if value.ndim > 1 else value.data.fill_(1)
    return Made(model.eval(), family, family.layers(config))


def rows(made: Made, lengths: Sequence[int]) -> list[Encoded]:
    """Rows of random tokens; in an encoder-decoder the target has half the length of the source."""
    rng = random.Random(0)
    draw = [[rng.randrange(2, made.model.config.vocab_size) for _ in range(length)] for length in lengths]
    if made.family.causal:
        return [Encoded(ids[:1], [*ids[1:], 1]) for ids in draw]
    return [Encoded(ids, ids[::2]) for ids in draw]


@torch.no_grad()
def plain(made: Made, batches: Sequence[Batch], last: str | None = None) -> None:
    """Run the stock model; up to the module `last`, if it is given."""

    def stop(*_: Any) -> None:
        raise Enough

    hooks = [made.model.get_submodule(last).register_forward_pre_hook(stop)] if last else []
    for batch in batches:
        with suppress(Enough):
            made.model(**model_inputs(batch, made.family.causal), use_cache=False)
    for hook in hooks:
        hook.remove()


def cheap(name: str, count: int, rounds: int) -> dict[str, Ratio]:
    """Time of collecting `count` rows to both kinds of plain passes; with one entry of `CHEAP`, to a whole pass."""
    made = make(name)
    batches = list(by_length(rows(made, [LENGTH] * count), 0, BATCH, causal=made.family.causal))
    arguments = made.model, made.family, made.layers, batches
    works: dict[str, Callable[[], object]] = {
        "whole": partial(plain, made, batches),
        "ending": partial(plain, made, batches, made.layers[-1].experts_path),
        "": partial(collect, *arguments),
    }
    works |= {also: partial(collect, *arguments, also=[also]) for also in CHEAP}
    times = in_turns(works, rounds)
    found = {to: ratio(times[""], times[to], cpu=True) for to in ("whole", "ending")}
    return found | {also: ratio(times[also], times["whole"], cpu=True) for also in CHEAP}


def costly(name: str, rounds: int) -> dict[str, Ratio]:
    """Time of collecting with one other entry of `also`, to a plain pass: a small model, few tokens."""
    made = make(name, small=True)
    batches = [collate(rows(made, [32, 32]), 0, causal=made.family.causal)]
    few = [collate(rows(made, [2]), 0, causal=made.family.causal)]
    arguments = made.model, made.family, made.layers, batches
    with tempfile.TemporaryDirectory() as directory:
        write = partial(write_gradients, Path(directory), made.model, made.layers)
        works: dict[str, Callable[[], object]] = {
            "whole": partial(plain, made, batches),
            "few": partial(plain, made, few),
            "outputs": partial(collect, *arguments, also=["outputs"]),
            "pair-errors": partial(collect, *arguments, also=["pair-errors"]),
            "correlation": partial(measure_correlations, *arguments),
            "gradients": partial(write, batches, ["gradients"]),
            "exact-fisher": partial(write, few, ["exact-fisher"]),
        }
        times = in_turns(works, rounds, warm=0)
    to = {"exact-fisher": "few"}
    return {also: ratio(times[also], times[to.get(also, "whole")], cpu=True) for also in ALSO if also not in CHEAP}


def rounding(name: str, rounds: int) -> dict[str, Any]:
    """Time of the default sums in float64 products to that of ours, and the largest relative difference."""
    made, seen = make(name), []
    batches = [collate(rows(made, [LENGTH] * BATCH), 0, causal=made.family.causal)]
    watch(made.model, made.family, made.layers[:1], batches, lambda *found: seen.append(found))
    ((layer, x, routing),) = seen

    def ours() -> LayerStatistics:
        sums = LayerStatistics.zeros(layer.experts, layer.d_model)
        accumulate(sums, layer, x, routing, lambda e: {})
        return sums

    exact, found = in_float64(layer, x, routing), ours().tensors()
    scale = {"input_sums": "input_abs_sums"}
    worst = {n: ((found[n] - v).abs() / exact[scale.get(n, n)].clamp(min=1e-30)).max() for n, v in exact.items()}
    times = in_turns({"float64": partial(in_float64, layer, x, routing), "ours": ours}, 10 * rounds)
    return {"faster": ratio(times["float64"], times["ours"], cpu=True)} | {n: float(v) for n, v in worst.items()}


def in_float64(layer: MoELayer, x: Tensor, routing: Routing) -> dict[str, Tensor]:
    """The large sums, in products of float64."""
    exact = x.double()
    chosen = exact.new_zeros(len(x), layer.experts).scatter_(1, routing.index, 1)
    return {
        "input_sums": chosen.T @ exact,
        "input_abs_sums": chosen.T @ exact.abs(),
        "input_square_sums": chosen.T @ exact.square(),
    }


def padding(name: str) -> Mapping[int, tuple[float, float]]:
    """Padding of a ragged sample, relative to its real tokens, by batch size: in the order drawn, and in ours."""
    made, rng = make(name, small=True), random.Random(0)
    lengths = [min(1024, 4 + int(MEDIAN * rng.lognormvariate(0, SIGMA))) for _ in range(RAGGED)]
    drawn = rows(made, lengths)
    found = {}
    for size in SIZES:
        in_order = [collate(drawn[i : i + size], 0, causal=made.family.causal) for i in range(0, RAGGED, size)]
        sorted_ = by_length(drawn, 0, size, causal=made.family.causal)
        found[size] = (waste(in_order, made.family.causal), waste(list(sorted_), made.family.causal))
    return found


def waste(batches: Sequence[Batch], causal: bool) -> float:
    """Padding relative to real tokens, over all positions that run."""
    real = sum(
        int(batch["attention_mask"].sum()) + (not causal) * int((batch["labels"] >= 0).sum()) for batch in batches
    )
    positions = sum(batch["input_ids"].numel() + (not causal) * batch["labels"].numel() for batch in batches)
    return positions / real - 1


def main(
    quick: Annotated[bool, typer.Option(help="Fewer rounds; what is costly for one model only.")] = False,
) -> None:
    """Measure, print and save."""
    torch.set_num_threads(1)
    count, rounds, last = (4, 2, list(SHAPES)[-1:]) if quick else (8, 7, list(SHAPES))
    cost, extra, error = {}, {}, {}
    for name in SHAPES:
        cost[name] = cheap(name, count, rounds)
        print(name, *(f"{to} {found}" for to, found in cost[name].items()), sep=" · ", flush=True)
    for name in last:
        extra[name], error[name] = costly(name, 1 if quick else 3), rounding(name, rounds)
        print(name, *(f"{also} {found}" for also, found in extra[name].items()), error[name], sep=" · ", flush=True)
    padded = {name: padding(name) for name in SHAPES}
    print(padded)

    text = "CPU time of collecting to that of a plain forward pass, by default and with one optional entry:\n\n"
    text += table(["model", *COLUMNS.values()], ([name, *found.values()] for name, found in cost.items()))
    text += "\nThe other entries, with small models and 64 tokens (`exact-fisher`: 2 tokens, a vocabulary of 64):\n\n"
    text += table(["model", *extra[last[0]]], ([name, *found.values()] for name, found in extra.items()))
    text += "\nSums of products in float64, CPU time to that of ours, and the largest relative difference:\n\n"
    text += table(["model", *error[name]], ([name, *found.values()] for name, found in error.items()))
    text += "\nPadding of a ragged sample, relative to its real tokens, in the order drawn and in ours:\n\n"
    text += table(
        ["model", *(f"batches of {size}" for size in SIZES)],
        (
            [name, *(f"{100 * drawn:.0f} %, {100 * ours:.1f} %" for drawn, ours in found.values())]
            for name, found in padded.items()
        ),
    )
    claims = [
        Claim(f"{name}: default statistics / plain forward pass", found["whole"].median, LIMIT)
        for name, found in cost.items()
    ]
    claims += [
        Claim(f"{name}: most padding of a ragged sample", max(ours for _, ours in found.values()), 0.10)
        for name, found in padded.items()
    ]
    command = "python -m benchmarks.collect"
    figures = {"collect": cost, "costly": extra, "rounding": error, "padding": padded}
    save("collect", "The cost of statistics", command, text + "\n", figures, claims, quick)


if __name__ == "__main__":
    typer.run(main)
