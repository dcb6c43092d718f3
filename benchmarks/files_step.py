"""The steps that benchmarks/files.py measures, each in a process of its own."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from benchmarks.files_models import KEPT, merged_bytes
from benchmarks.side_by_side import cpu_seconds
from mcsmoe.alignment.matching import Match
from mcsmoe.alignment.permute import MATCHINGS, permute_model
from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.verify import probe_batch
from mcsmoe.command import prepare
from mcsmoe.evaluation.speed import resident
from mcsmoe.families import MoELayer
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import merge_model
from mcsmoe.model import Model

BLOCK = 2**20


def once(source: Path, output: Path, size: int, again: int = 0) -> None:
    """Read all files of a checkpoint, and write `size` bytes; read these so often `again`."""
    buffer = memoryview(bytearray(BLOCK))
    output.mkdir()
    with (output / "model.safetensors").open("wb", buffering=0) as file:
        for path in source.glob("*.safetensors"):
            with path.open("rb", buffering=0) as read:
                while found := read.readinto(buffer):
                    size -= file.write(buffer[: min(found, size)])
        while size:
            size -= file.write(buffer[: min(BLOCK, size)])
        os.fsync(file.fileno())
    for _ in range(again):
        with (output / "model.safetensors").open("rb", buffering=0) as read:
            while read.readinto(buffer):
                pass


def merge(model: Model, output: Path) -> None:
    """Merge neighbouring experts, half of them are left, and verify the result."""
    plans, sums = {}, {}
    for layer in model.layers:
        pairs = [(2 * k, 2 * k + 1) for k in range(layer.experts // KEPT)]
        plans[layer.name] = LayerPlan(tuple(Group(one, (one, two), (0.15, 0.1)) for one, two in pairs), merged=True)
        sums[layer.name] = LayerStatistics.zeros(layer.experts, layer.d_model)
    merge_model(model, Plan("benchmark", "frequency", "none", "dominant", plans), RoutingStatistics(sums), output)


def permute(model: Model, output: Path) -> None:
    """Reorder the hidden neurons of all experts but one, as drawn instead of matched, and verify the result."""
    MATCHINGS["drawn"] = drawn
    probe = probe_batch(model.config.vocab_size, model.family.causal)
    if not model.family.causal:
        probe["labels"] = probe.pop("decoder_input_ids")
    given = SimpleNamespace(fingerprint="drawn", batch_size=len(probe["input_ids"]))
    observer = Drawn(model=model, batches=[probe], sample=given, sampling=given)
    permute_model(cast(Observer, observer), output, "drawn", "first")


class Drawn(SimpleNamespace):
    """Stands in for an `Observer`: a batch of random tokens instead of a calibration sample."""

    def __enter__(self) -> "Drawn":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def drawn(layer: MoELayer, reference: int, observer: Observer) -> dict[int, Match]:
    """A random permutation of each expert but the reference."""
    generator = torch.Generator().manual_seed(0)
    return {e: Match(torch.randperm(layer.d_ff, generator=generator), 0, 0) for e in range(1, layer.experts)}


def drop_cache(directory: Path) -> None:
    """Drop the weights from the page cache, so that they are next read from the disk."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "merge": lambda source, output: merge(Model(source), output),
    "permute": lambda source, output: permute(Model(source), output),
    "merge-once": lambda source, output: once(source, output, merged_bytes(source)),
    "permute-once": lambda source, output: once(source, output, Checkpoint(source).size_bytes),
    "merge-read": lambda source, output: once(source, output, merged_bytes(source), again=2),
    "permute-read": lambda source, output: once(source, output, Checkpoint(source).size_bytes, again=2),
}


def apart(step: str, source: Path, output: Path) -> dict[str, float]:
    """Run a step in a fork of this process, with the input on the disk alone: seconds, and memory in MB."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(step, source, output, there))
    process.start()
    there.close()
    found: dict[str, float] = here.recv()
    process.join()
    shutil.rmtree(output)
    return found


def _measure(step: str, source: Path, output: Path, answer: Connection) -> None:
    prepare(0, 1)
    drop_cache(source)
    before, cpu, clock = resident("VmHWM"), cpu_seconds(), time.perf_counter()
    STEPS[step](source, output)
    clock, cpu = time.perf_counter() - clock, cpu_seconds() - cpu
    answer.send({"clock": clock, "cpu": cpu, "imports": round(before / 1e6), "peak": round(resident("VmHWM") / 1e6)})
