"""One step of benchmarks/surgery.py in a process of its own: prints its seconds and peak memory as JSON."""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from transformers import SwitchTransformersConfig

from mcsmoe.alignment.layer import weight_matches
from mcsmoe.alignment.write import write_permuted
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.architectures.registry import sparse_layers
from mcsmoe.checkpoint.atomic import write_json
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.material import Material
from mcsmoe.merging.write import write_merged
from mcsmoe.routing.gradients import Gradients
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics


def make(directory: Path, count: int) -> None:
    """A random checkpoint with the experts and routers of `count` sparse layers, half of them in the decoder."""
    config = SwitchTransformersConfig(
        num_experts=32,
        d_ff=3072,
        num_layers=count,
        num_decoder_layers=count,
        num_sparse_encoder_layers=count // 2,
        num_sparse_decoder_layers=count // 2,
    )
    shapes = {}
    for layer in sparse_layers(config):
        shapes[f"{layer.router_path}.classifier.weight"] = (layer.experts, layer.d_model)
        for e in range(layer.experts):
            shapes[layer.places["wi"].name(e)] = (layer.d_ff, layer.d_model)
            shapes[layer.places["wo"].name(e)] = (layer.d_model, layer.d_ff)
    generator = torch.Generator().manual_seed(0)
    specs = {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}
    write_safetensors(directory / WEIGHTS, specs, lambda name: [torch.randn(shapes[name], generator=generator) * 0.03])
    write_json(directory / "config.json", config.to_dict())


def copy(source: Checkpoint, directory: Path) -> None:
    """Read every tensor and write it again: what no step can be faster than."""
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    write_safetensors(directory / WEIGHTS, specs, lambda name: [source.tensor(name)])


def permute(source: Checkpoint, directory: Path) -> None:
    """Align every expert to the first of its layer by weights, and write."""
    layers = sparse_layers(source.config)
    orders = {(layer.name, e): match.perm for layer in layers for e, match in weight_matches(source, layer, 0).items()}
    write_permuted(source, layers, orders, directory)


def merge(alignment: str, kept: int) -> Callable[[Checkpoint, Path], None]:
    """Merge the experts of every layer to `kept` groups of neighbours."""

    def step(source: Checkpoint, directory: Path) -> None:
        layers = sparse_layers(source.config)
        size = layers[0].experts // kept
        groups = tuple(
            Group(g * size, tuple(range(g * size, (g + 1) * size)), (1 / layers[0].experts,) * size)
            for g in range(kept)
        )
        plans = {layer.name: LayerPlan(groups, merged=True) for layer in layers}
        statistics = {layer.name: LayerStatistics.zeros(layer.experts, layer.d_model) for layer in layers}
        material = Material(RoutingStatistics(statistics), Gradients(directory), no_tokens)
        write_merged(source, Plan("benchmark", "frequency", alignment, "dominant", plans), material, directory)

    return step


def no_tokens(layer: MoELayer) -> NoReturn:
    """Nothing here is aligned by activations."""
    raise AssertionError(f"tokens of {layer.name} were asked for")


def peak_mb() -> int:
    """Peak resident memory of this process so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main(scratch: Path, step: str, number: int) -> None:
    """Run one step; `number` is the layers to make, or the experts to keep."""
    source, target = scratch / "make", scratch / "out"
    if step == "make":
        source.mkdir()
        make(source, number)
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    steps = {
        "read and write once": copy,
        "permute": permute,
        "merge, aligned": merge("weight", number),
        "merge, not aligned": merge("none", number),
    }
    before, started = peak_mb(), time.monotonic()
    steps[step](Checkpoint(source), target)
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
