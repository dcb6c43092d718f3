"""Measure collect, merge, a training step and inference on one GPU, within twelve minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --device cpu --tiny     every line of it on a CPU, in seconds, to metrics/bench

The model is a random Mixtral of four layers. Alternatives take turns, and the device is waited for in each. Merging is
the kind that needs the device most: aligned by the activations of calibration tokens, with one block at a time on it.
The training step is that of `benchmarks.step`. Inference is in bfloat16.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import mcsmoe.command
from benchmarks import speed_models, step
from benchmarks.scaling_step import add_tokenizer
from benchmarks.side_by_side import Claim, in_turns, ratio, save, table
from benchmarks.speed_worker import ROW
from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.memory import forward_needs
from mcsmoe.calibration.observer import Observer
from mcsmoe.checkpoint.load import load_model
from mcsmoe.errors import ParameterError
from mcsmoe.evaluation.cost import flops_per_token
from mcsmoe.evaluation.speed import Workload, run_once
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import merge_model
from mcsmoe.model import Model
from mcsmoe.params import Params
from mcsmoe.shrinking.rows import RowSampling
from mcsmoe.tasks.task import Encoded

STOCK = ("eager", "grouped_mm")
TITLE = "One GPU: collect, merge, train, infer"


@dataclass(frozen=True)
class Size:
    """The model, its calibration sample of `rows` of `tokens`, the batches of inference, and rounds of each timing."""

    shape: Mapping[str, Any]
    rows: int
    tokens: int
    batches: tuple[int, ...]
    prompt: int
    new: int
    rounds: int
    training: step.Size


FULL = Size(
    shape=speed_models.MIXTRAL | {"hidden_size": 2048, "intermediate_size": 4096, "num_attention_heads": 16},
    rows=64,
    tokens=512,
    batches=(1, 8, 64),
    prompt=512,
    new=32,
    rounds=7,
    training=step.SIZES["larger"],
)
TINY = Size(
    shape=speed_models.MIXTRAL | {"vocab_size": 400, "hidden_size": 128, "intermediate_size": 128},
    rows=4,
    tokens=32,
    batches=(1, 8),
    prompt=8,
    new=2,
    rounds=2,
    training=step.Size({}, 4, (4, 12), 2),
)

Found = tuple[list[list[object]], dict[str, Any], list[Claim]]
"""Rows of the table (what, seconds, beside what, ratio), figures, and claims."""


def settled(device: torch.device, work: Any) -> Any:
    """`work`, which then waits for the device."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def sample(size: Size) -> RowSampling:
    """Random calibration rows."""
    shape = (size.rows, size.tokens)
    ids = torch.randint(size.shape["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    return RowSampling([Encoded(row, []) for row in ids.tolist()], 4, 0)


def collecting(directory: Path, size: Size, device: torch.device) -> Found:
    """Statistics on the device beside a plain forward pass over the same tokens."""
    source = Model(directory / "full", device=device)
    model = load_model(directory / "full", dtype=torch.bfloat16).to(device)
    batches = source.batches(sample(size).rows, 4)
    on_device = [{name: batch[name].to(device) for name in ("input_ids", "attention_mask")} for batch in batches]

    @torch.inference_mode()
    def forward() -> None:
        for batch in on_device:
            model(**batch)

    works = {"collect": lambda: collect(model, source.family, source.layers, batches), "forward": forward}
    times = in_turns({name: settled(device, work) for name, work in works.items()}, size.rounds)
    found = ratio(times["collect"], times["forward"])
    claims = [Claim("collect: seconds / those of a forward pass", found.median, 1.10)]
    return [["collect", times["collect"].median, "forward pass", found]], {"times": times}, claims


def merging(directory: Path, size: Size, device: torch.device) -> Found:
    """A merge aligned by activations, with one block on the device at a time; seconds, and the device's peak memory."""
    sampling = sample(size)
    needs = forward_needs(Model(directory / "full").config, sampling, tokens=True)
    assert needs.streamed < needs.whole
    source = Model(directory / "full", needs.streamed, device=device)
    with Observer(Model(directory / "full", device=device), sampling, "collect", also=()) as observer:
        statistics = collect(observer.module, source.family, source.layers, observer.batches)
    layers = Plan.load(directory / "merged").layers
    plan = Plan("benchmark", "average", "activation", "dominant", layers)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before, started = _allocated(device), time.perf_counter()
    observer = Observer(source, sampling, "merge", tokens=True)
    merge_model(source, plan, statistics, directory / "aligned", observer=observer)
    seconds, peak = time.perf_counter() - started, _allocated(device) - before
    whole = source.checkpoint.size_bytes
    claims = [Claim("merge: peak device memory / bytes of the weights", round(peak / whole, 3), 0.75)]
    row = ["merge, aligned by activations", seconds, f"{whole / 1e9:.2f} GB of weights", f"{peak / 1e9:.2f} GB peak"]
    return [row], {"seconds": seconds, "peak_bytes": peak, "weights_bytes": whole}, claims


def _allocated(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def training(directory: Path, size: Size, device: torch.device) -> Found:
    """A step of fine-tuning, ours beside one written by hand."""
    each = step.work("finetune", size.training, Params.load(Path("params.yaml")))
    each.model.to(device)
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in step.padded(each, size.training)]
    works = {"ours": each.ours, "by hand": partial(each.by_hand, batches)}
    times = in_turns({name: settled(device, work) for name, work in works.items()}, size.rounds)
    found = ratio(times["ours"], times["by hand"])
    seconds = times["ours"].median / size.training.steps
    claims = [Claim("training step: seconds of ours / of a loop by hand", found.median, step.LIMIT)]
    return [["training step", seconds, "by hand", found]], {"times": times}, claims


def inference(directory: Path, size: Size, device: torch.device) -> Found:
    """Prefill and generation of the merged and the compressed model beside the better of the stock implementations."""
    names = ("full", "merged", "compressed")
    models = {name: load_model(directory / name, dtype=torch.bfloat16).to(device) for name in names}
    promised = flops_per_token(models["full"], [ROW], 0) / flops_per_token(models["compressed"], [ROW], 0)

    def stock(name: str, work: Workload) -> None:
        models["full"].set_experts_implementation(name)
        run_once(models["full"], work)

    rows: list[list[object]] = []
    figures: dict[str, Any] = {"promised": promised}
    claims = []
    for work in [Workload(batch, size.prompt, new) for new in (0, size.new) for batch in size.batches]:
        works: dict[str, Any] = {name: partial(stock, name, work) for name in STOCK}
        works |= {name: partial(run_once, models[name], work) for name in names[1:]}
        times = in_turns(works, size.rounds)
        best = min(STOCK, key=lambda name: times[name].median)
        merged, faster = ratio(times["merged"], times[best]), ratio(times[best], times["compressed"])
        what = work.name.replace("_", " ")
        rows += [[f"{what}, merged", times["merged"].median, best, merged]]
        rows += [[f"{what}, compressed", times["compressed"].median, best, ratio(times["compressed"], times[best])]]
        figures[work.name] = times
        claims += [
            Claim(f"{what}, merged: seconds / stock's, lower quartile", merged.low, 1.0),
            Claim(f"{what}, compressed: share of the promised speed", round(faster.median / promised, 3), 0.75, False),
        ]
    return rows, figures, claims


PARTS = {"collect": collecting, "merge": merging, "step": training, "inference": inference}


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu to try it out.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="Tiny sizes, in seconds; the results mean nothing.")] = False,
) -> None:
    """Measure each part and write the table."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ParameterError("device", device, "there is no GPU; `device` cpu with tiny sizes runs the same code")
    mcsmoe.command.prepare(0, 1 if tiny else None)
    place, size = torch.device(device), TINY if tiny else FULL
    named = torch.cuda.get_device_name(place) if place.type == "cuda" else "a CPU"
    rows: list[list[object]] = []
    figures: dict[str, Any] = {"device": named}
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
        directory = Path(scratch)
        speed_models.make(dict(size.shape), 4, directory)
        add_tokenizer(directory / "full")
        for name, part in PARTS.items():
            more, figures[name], limits = part(directory, size, place)
            rows, claims = rows + more, claims + limits
            for row in more:
                print(*row, sep="\t", flush=True)
            if place.type == "cuda":
                torch.cuda.empty_cache()
    text = f"On {named}, {size.rounds} rounds.\n\n{table(['what', 'seconds', 'beside', 'ratio'], rows)}"
    command = f"python -m benchmarks.gpu{f' --device {device} --tiny' if tiny else ''}"
    save("gpu", TITLE, command, text, figures, claims, tiny)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    mcsmoe.command.run(app)
