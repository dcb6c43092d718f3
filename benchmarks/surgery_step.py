"""One step of benchmarks/surgery.py in a process of its own; prints seconds and peak memory as JSON."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import MixtralConfig

from benchmarks.surgery import ALIGNED, ONCE, UNALIGNED
from mcsmoe.alignment import pairs
from mcsmoe.alignment.matching import weight_similarity
from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics, StatisticsWriter
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import INDEX, Checkpoint
from mcsmoe.checkpoint.shards import Part, write_parts
from mcsmoe.checkpoint.writer import Piece, TensorSpec
from mcsmoe.families import MoELayer, sparse_layers
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import Material, write_merged

KEPT = 4
BLOCK = 2**26


def config(layers: int) -> dict[str, Any]:
    """Mixtral-8x7B's config.json with `layers` layers."""
    values = MixtralConfig(num_hidden_layers=layers, dtype="bfloat16").to_dict()
    return dict(values) | {"architectures": ["MixtralForCausalLM"]}


def make(directory: Path, count: int) -> None:
    """Write random experts, routers and embeddings, with a shard for each layer whatever its size."""
    values = config(count)
    embeddings = (values["vocab_size"], values["hidden_size"])
    generator = torch.Generator().manual_seed(0)
    # Pieces from random places in one noise tensor are much faster than drawing new values.
    noise = (torch.randn(embeddings, generator=generator) * 0.02).bfloat16().view(-1)

    def value(shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        start = int(torch.randint(len(noise) - size + 1, (), generator=generator))
        return noise[start : start + size].view(shape)

    def part(name: str, shapes: dict[str, tuple[int, ...]]) -> Part:
        specs = {tensor: TensorSpec(torch.bfloat16, shape) for tensor, shape in shapes.items()}
        return Part(name, specs, lambda: (Piece(tensor, None, value(shape)) for tensor, shape in shapes.items()))

    parts = [part("embeddings", dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), embeddings))]
    for layer in sparse_layers(values):
        sizes = layer.shapes().items()
        experts = {layer.places[name].name(e): shape for e in range(layer.experts) for name, shape in sizes}
        parts.append(part(layer.name, experts | {layer.router_weight: (layer.experts, layer.d_model)}))
    directory.mkdir()
    write_parts(directory, parts)
    write_json(directory / "config.json", values)
    # Written as collect does: statistics that are not read take no memory.
    with StatisticsWriter(directory) as writer:
        for layer in sparse_layers(values):
            writer.keep(layer.name, LayerStatistics.zeros(layer.experts, layer.d_model))
        writer.finish({}, {})


def first_layers(directory: Path, count: int) -> Checkpoint:
    """The checkpoint with its first `count` layers only: the same shards under another index."""
    part = directory.with_name(f"first-{count}")
    part.mkdir(exist_ok=True)
    routers = {layer.router_weight for layer in sparse_layers(config(count))}
    shards = json.loads((directory / INDEX).read_text())["weight_map"]
    files = {shards[name] for name in routers | {"lm_head.weight"}}
    write_json(part / INDEX, {"weight_map": {name: file for name, file in shards.items() if file in files}})
    write_json(part / "config.json", config(count))
    for file in files:
        if not (part / file).exists():
            (part / file).symlink_to(directory / file)
    return Checkpoint(part)


def once(source: Checkpoint, directory: Path) -> None:
    """Read all files and write as many bytes as the merged checkpoint has."""
    left, buffer = merged_bytes(source), bytearray(BLOCK)
    with (directory / "model.safetensors").open("wb") as output:
        for path in source.files:
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    output.write(memoryview(buffer)[: min(size, left)])
                    left -= min(size, left)
        os.fsync(output.fileno())


def merged_bytes(source: Checkpoint) -> int:
    """Bytes of the weights with `KEPT` experts per layer."""
    layers = sparse_layers(source.config)
    names = (place.name(e) for layer in layers for e in range(KEPT, layer.experts) for place in layer.places.values())
    return source.size_bytes - sum(2 * math.prod(source.shape(name)) for name in names)


def merge(source: Checkpoint, directory: Path, alignment: str) -> None:
    """Merge experts 2k and 2k + 1 into expert k."""
    layers = sparse_layers(source.config)
    groups = tuple(Group(2 * k, (2 * k, 2 * k + 1), (0.15, 0.1)) for k in range(KEPT))
    plans = {layer.name: LayerPlan(groups, merged=True) for layer in layers}
    material = Material(RoutingStatistics.load(source.files[0].resolve().parent), Gradients(directory), no_tokens)
    write_merged(source, Plan("benchmark", "frequency", alignment, "dominant", plans), material, directory)


def no_tokens(layer: MoELayer) -> NoReturn:
    """Refuse to give tokens: nothing here is aligned by activations."""
    raise AssertionError(f"tokens of {layer.name} were asked for")


def timed(function: Callable[..., Tensor], spent: list[float]) -> Callable[..., Tensor]:
    """Wrap `function` so that it appends the seconds of each call to `spent`."""

    def call(*arguments: Any) -> Tensor:
        started = time.monotonic()
        result = function(*arguments)
        spent.append(time.monotonic() - started)
        return result

    return call


def drop_cache(source: Checkpoint) -> None:
    """Drop the weights from the page cache, so that they are next read from the disk."""
    for file in source.files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_mb() -> int:
    """Peak resident memory of this process so far, in MB, including pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)


def main(scratch: Path, step: str, layers: int, threads: int) -> None:
    """Run one step on the first `layers` layers."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if step == "make":
        make(scratch / "made", layers)
        print("{}")
        return
    source, target = first_layers(scratch / "made", layers), scratch / "out"
    target.mkdir()
    costs: list[float] = []
    vars(pairs)["weight_similarity"] = timed(weight_similarity, costs)
    steps: dict[str, Callable[[], None]] = {
        ONCE: lambda: once(source, target),
        UNALIGNED: lambda: merge(source, target, "none"),
        ALIGNED: lambda: merge(source, target, "weight"),
    }
    drop_cache(source)
    before, started = peak_mb(), time.monotonic()
    steps[step]()
    found: dict[str, Any] = {
        "seconds": round(time.monotonic() - started, 1),
        "gb_in": round(source.size_bytes / 1e9, 2),
        "gb_out": round(sum(path.stat().st_size for path in target.glob("*.safetensors")) / 1e9, 2),
        "peak_mb": peak_mb(),
        "above_imports_mb": peak_mb() - before,
    }
    if costs:
        found["cost_seconds"] = round(sum(costs), 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
