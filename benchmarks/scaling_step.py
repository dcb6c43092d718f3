"""One point of `benchmarks.scaling`: a small random model, and one stage on it in a process of its own.

The processes are forks of one that has imported everything, so that a point costs what it measures and memory counts
from there.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import mcsmoe.api
import mcsmoe.modeling  # imported here, not when a first model is opened
from mcsmoe.alignment.permute import permute_model
from mcsmoe.calibration.memory import forward_needs
from mcsmoe.calibration.observer import Observer, Processes
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.command import quiet
from mcsmoe.evaluation.speed import resident
from mcsmoe.grouping.plan import Plan
from mcsmoe.model import Model
from mcsmoe.params import TokenizerSection
from mcsmoe.shrinking.rows import RowSampling
from mcsmoe.similarity.collecting import collect_model
from mcsmoe.tasks.task import Encoded
from mcsmoe.tasks.tokenizer import train_tokenizer

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__])

WIDTH, HIDDEN, CHOSEN = 128, 256, 2
LENGTH, BATCH, VOCABULARY = 64, 16, 300
ALONE = Processes()
ENOUGH, MOST = 1.0, 10
"""A brief stage runs again until it took so many seconds in all, or so many times; the least counts."""


@dataclass(frozen=True)
class Shape:
    """A model of sparse layers with `experts` experts each, and the tokens that it is calibrated on."""

    layers: int = 2
    experts: int = 8
    tokens: int = 2048

    @property
    def sampling(self) -> RowSampling:
        """Random rows of `LENGTH` tokens."""
        ids = torch.randint(VOCABULARY, (self.tokens // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
        return RowSampling([Encoded(row, []) for row in ids.tolist()], BATCH, 0)


def make(directory: Path, shape: Shape) -> None:
    """Write the model, float32 and random, 393 kB an expert, and a tokenizer."""
    quiet()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        moe_intermediate_size=HIDDEN,
        num_hidden_layers=shape.layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=WIDTH // 2,
        num_experts=shape.experts,
        num_experts_per_tok=CHOSEN,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(directory / "model")
    add_tokenizer(directory / "model")


def add_tokenizer(directory: Path) -> None:
    """Write a tokenizer beside a model; only its padding is used."""
    text = (chr(97 + i % 26) * (1 + i % 7) for i in range(VOCABULARY))
    settings = TokenizerSection(kind="bpe", vocab_size=VOCABULARY)
    train_tokenizer(text, settings, causal=True).save_pretrained(directory)


def collect(directory: Path, shape: Shape, processes: Processes = ALONE, *, streamed: bool = False) -> None:
    """Collect statistics with the model whole in memory, or block by block."""
    sampling, limit = shape.sampling, None
    if streamed:
        needs = forward_needs(Model(directory / "model").config, sampling, ())
        assert needs.streamed < needs.whole
        limit = needs.streamed
    observer = Observer(Model(directory / "model", limit), sampling, "collect", also=(), processes=processes)
    collect_model(observer, directory / "collect", (), 0)


def plan(directory: Path, shape: Shape, recipe: str = "m-smoe") -> None:
    """Read the statistics and group half of each layer's experts with the others."""
    statistics = RoutingStatistics.load(directory / "collect")
    (directory / "plan").mkdir(exist_ok=True)
    found = mcsmoe.api.plan(Model(directory / "model"), statistics, recipe, shape.experts // 2)
    found.save(directory / "plan")


def merge(directory: Path, shape: Shape) -> None:
    """Merge by the plan, and verify the result, block by block."""
    limit = forward_needs(Model(directory / "model").config, None).streamed
    model, statistics = Model(directory / "model", limit), RoutingStatistics.load(directory / "collect")
    mcsmoe.api.merge(model, Plan.load(directory / "plan"), statistics, directory / "merge")


def permute(directory: Path, shape: Shape) -> None:
    """Align all experts of a layer to the first, and verify the result."""
    observer = Observer(Model(directory / "model"), shape.sampling, "permute")
    permute_model(observer, directory / "permute", "weight", "first")


STEPS: dict[str, Callable[[Path, Shape], None]] = {
    "collect": collect,
    "collect, streamed": lambda directory, shape: collect(directory, shape, streamed=True),
    "plan": plan,
    "plan, hierarchical": lambda directory, shape: plan(directory, shape, "grouped-hierarchical-average"),
    "merge": merge,
    "permute": permute,
}


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work` in a process of its own."""
    with ProcessPoolExecutor(1, FORKS) as pool:
        return pool.submit(work, *arguments).result()


def together(count: int, directory: Path, shape: Shape) -> float:
    """Collect in `count` processes that share the rows; the seconds of the slowest."""
    with ProcessPoolExecutor(count, FORKS) as pool:
        shares = [pool.submit(_share, index, count, directory, shape) for index in range(count)]
        return max(share.result() for share in shares)


def measured(step: str, directory: Path, shape: Shape) -> dict[str, float]:
    """Run one of `STEPS`: its seconds, those of CPU, and this process's peak memory above what it has now, in MB.

    Seconds of CPU are those of this process, without the fresh one in which a merged model is verified.
    """
    quiet()
    torch.set_num_threads(1)
    before = resident("VmRSS")
    runs = [_timed(step, directory, shape)]
    peak = resident("VmHWM") - before
    while sum(clock for clock, _ in runs) < ENOUGH and len(runs) < MOST:
        runs.append(_timed(step, directory, shape))
    seconds, cpu = map(min, zip(*runs, strict=True))
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak / 1e6}


def _timed(step: str, directory: Path, shape: Shape) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    STEPS[step](directory, shape)
    return time.perf_counter() - clock, time.process_time() - cpu


def _share(index: int, count: int, directory: Path, shape: Shape) -> float:
    quiet()
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(index), "WORLD_SIZE": str(count)}
    rendezvous = f"file://{(directory / f'rendezvous-{count}').absolute()}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=count)

    def total(value: Tensor) -> Tensor:
        distributed.all_reduce(value)
        return value

    started = time.perf_counter()
    collect(directory, shape, Processes(index, count, "cpu", total))
    taken = time.perf_counter() - started
    distributed.destroy_process_group()
    return taken
