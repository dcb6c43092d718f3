"""A run of `shrink` before any work: what will be done, what it needs, and whether it can work at all."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mcsmoe.calibration.memory import Needs, must_stream
from mcsmoe.checkpoint.companions import companions
from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.fp8 import only_transformers_restores
from mcsmoe.checkpoint.load import load_config
from mcsmoe.checkpoint.published import Published, tensor_names
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.checkpoint.source import SMALL, fetch, is_local
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.checkpoint.verify import check_headers
from mcsmoe.errors import CheckpointError, ConflictError, DiskFullError, MemoryLimitError, ParameterError
from mcsmoe.exporting.stock import ONE_NUMBER
from mcsmoe.families import MoELayer, contents, language_config, merged_layers, sparse_layers
from mcsmoe.fields import shown_size
from mcsmoe.grouping.policies import POLICIES
from mcsmoe.methods.recipe import Recipe, check_router, load_recipe
from mcsmoe.params import Exclude, Merge
from mcsmoe.shrinking.machine import PROCESS, free_disk, working_memory_limit
from mcsmoe.shrinking.pace import Pace, Work, active_parameters, shown_time
from mcsmoe.shrinking.rows import Rows, RowSampling, rows_for
from mcsmoe.shrinking.texts import MIX
from mcsmoe.shrinking.workspace import held_bytes
from mcsmoe.sizing import Format, Sizes, why_not_stock, working_disk, working_memory

RECIPE = "pruning-soft-count"
"""Of six recipes, none lost less at any of three sizes: see `benchmarks/results/shrink_recipes.md`."""
ASKED = ("source", "recipe", "text", "samples", "form", "seed", "keep_mtp")
BATCHES = (8, 4, 2, 1)
"""Calibration rows at a time: the most that fit into memory."""


@dataclass(frozen=True)
class Request:
    """What the user asks for: a model, where the result goes, and how small it has to be: `experts` or `size`.

    `source` is a directory or a hub id. `size` is a share or a number of bytes ("50%", "24GB"), `text` a directory, a
    file or a hub id (None: a mix of hub data sets), `memory_limit` in bytes (None: what is free).
    """

    source: str
    output: Path
    experts: int | None = None
    size: str | float | None = None
    recipe: str = RECIPE
    text: str | None = None
    samples: int = 128
    memory_limit: int | None = None
    form: Format = "stock"
    device: str = "cpu"
    seed: int = 0
    keep_mtp: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Job:
    """A request that can work: the model's configuration, its sizes, the rows, and what it all needs.

    `restored` tells that the weights have to be restored into a copy first, because they are quantised, in `.bin`
    files, or inside a model that reads more than text; `left_out` names tensors that it does not use. `limit` is the
    memory for the work itself.
    """

    request: Request
    directory: Path
    config: Any
    layers: list[MoELayer]
    sizes: Sizes
    recipe: Recipe
    kept: int
    rows: Rows
    restored: bool
    left_out: list[str]
    limit: int
    sampling: RowSampling
    needs: Needs

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a result this one, as JSON values; not where it is written, nor how much memory was used."""
        request = self.request
        asked = {name: getattr(request, name) for name in ASKED}
        return asked | {"experts": self.kept, "budget": self.merge.budget, "rows": self.rows.fingerprint}

    @property
    def result(self) -> int:
        """Bytes of the result."""
        return self.sizes.kept(self.kept, self.request.form)

    @property
    def merge(self) -> Merge:
        """The budget: a stock checkpoint has one number of experts for all layers."""
        budget: Any = self.recipe.budget or ("uniform" if self.request.form == "stock" else "global")
        return Merge(groups=self.kept, budget=budget, capacity=None, exclude=Exclude(encoder=[], decoder=[]))

    @cached_property
    def streamed(self) -> bool:
        """Whether the source is read block by block, because it does not fit whole."""
        return self.needs.whole > self.limit

    @cached_property
    def memory(self) -> int:
        """Bytes of memory that the work needs."""
        return self.needs.streamed if self.streamed else self.needs.whole

    @cached_property
    def disk(self) -> int:
        """Bytes of disk at the worst moment, besides the source."""
        needed = working_disk(self.config, self.sampling, self.kept, self.request.form, self.streamed)
        return needed + (self.sizes.total if self.restored else 0)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Expected seconds of each phase; see `Work.seconds`."""
        dtype = self.config.dtype or torch.float32
        files = [path for path in self.directory.glob("*") if path.suffix in (".safetensors", ".bin")]
        pace = Pace.measure(files, dtype, self.request.device)
        work = Work(
            sizes=self.sizes,
            kept=self.kept,
            result=self.result,
            stock=self.request.form == "stock",
            streamed=self.streamed,
            calibration_tokens=self.rows.tokens,
            batches=-(-len(self.rows.calibration) // self.sampling.batch_size),
            held_out_tokens=sum(len(row.source) + len(row.target) for row in self.rows.held_out),
            active=active_parameters(self.sizes, dtype.itemsize),
        )
        restoring = {"restore": 3 * self.sizes.total / pace.read} if self.restored else {}
        return restoring | work.seconds(pace)

    def lines(self) -> list[tuple[str, str]]:
        """What is printed before the work, as (heading, text)."""
        request, layer = self.request, self.layers[0]
        share = f"{self.result / self.sizes.total:.1%}"
        text = request.text or f"a mix of {', '.join(MIX)} from the hub"
        counts = f"{self.kept} of {layer.experts} experts in each of {len(self.layers)} layers"
        if self.merge.budget == "global":
            counts = f"{self.kept} of {layer.experts} experts a layer on average, in {len(self.layers)} layers"
        forms = {
            "stock": "the class and tensor names of the source: any engine loads it",
            "mapped": "exactly the merged model; loads with trust_remote_code=True",
        }
        total = sum(self.seconds.values())
        parts = ", ".join(f"{name} {shown_time(seconds)}" for name, seconds in self.seconds.items())
        way = "read block by block" if self.streamed else "whole in memory"
        unused = f"{len(self.left_out)} tensors that the model does not use, such as {', '.join(self.left_out[:1])}"
        return [
            ("model", f"{request.source}: {self.config.model_type}, {shown_size(self.sizes.total)}, "
             f"{self.sizes.in_experts / self.sizes.total:.0%} of it in experts"),
            ("keeps", f"{counts} (top-{layer.top_k}), and everything else as it is"),
            *([("leaves out", unused)] if self.left_out else []),
            ("method", f"recipe {request.recipe}, on {len(self.rows.calibration)} rows of {self.sampling.positions:,} "
             f"tokens of {text}; nothing is trained"),
            ("result", f"{request.output}: {shown_size(self.result)}, {share} of the source; {forms[request.form]}"),
            ("measures", f"source and result on {len(self.rows.held_out)} other rows of the same text"),
            ("disk", f"{shown_size(self.disk)} while working, {shown_size(self.result)} at the end; "
             f"{shown_size(free_disk(request.output))} are free"),
            ("memory", f"{shown_size(self.memory)} and the program itself; the model is {way}"),
            ("time", f"about {shown_time(total)} ({parts})"),
        ]  # fmt: skip


def plan_job(request: Request) -> Job:
    """Check a request and work out what it needs; reads configuration, tokenizer and text, but no weights.

    Raises a `UserError` for whatever cannot work.
    """
    if (request.experts is None) == (request.size is None):
        raise ConflictError("give either the number of experts to keep or the size of the result")
    if request.samples < 1:
        raise ParameterError("samples", request.samples, "must be at least 1")
    directory = fetch(request.source, patterns=SMALL)
    list(companions(directory))  # refuses links out of it
    config = load_config(directory)
    if merged_layers(config) is not None:
        raise CheckpointError(f"{request.source}: merged already; give the model that it was made of")
    layers = sparse_layers(config)
    if not layers:
        raise CheckpointError(f"{request.source}: a dense model, without experts to merge")
    sizes, recipe = Sizes.of(config), load_recipe(request.recipe)
    check_recipe(request, recipe, layers)
    kept = request.experts if request.size is None else sizes.largest(request.size, request.form)
    assert kept is not None  # checked above
    check_experts(request, kept, sizes)
    limit = working_memory_limit(request.memory_limit, request.device)
    restored = needs_restoring(directory)
    if restored and sizes.total > limit and not inside_another(directory):
        what = "restoring quantised or .bin weights, which is not streamed,"
        raise MemoryLimitError(limit + PROCESS, what, sizes.total + PROCESS, "raise it")
    left_out = [] if restored else check_tensors(request, directory)
    tokenizer = load_tokenizer(directory, trust_remote_code=request.trust_remote_code)
    rows = rows_for(config, tokenizer, request.text, request.samples, request.seed)
    sampling, needs = fitting(config, rows, kept, request, recipe, limit)
    must_stream(limit, "collect", config, sampling, recipe.also)
    job = Job(request, directory, config, layers, sizes, recipe, kept, rows, restored, left_out, limit, sampling, needs)
    free = free_disk(request.output) + held_bytes(request.output)
    if job.disk > free:
        raise DiskFullError(f"{request.output}: {job.disk:,} bytes of disk needed, {free:,} free; make room")
    return job


def check_recipe(request: Request, recipe: Recipe, layers: list[MoELayer]) -> None:
    """Raise `ParameterError` for a recipe that cannot be used here, or not in the form that is asked for."""
    if recipe.progressive:
        raise ParameterError("recipe", request.recipe, "drops experts during training: it needs the pipeline")
    if recipe.groups is not None:
        raise ParameterError("recipe", request.recipe, f"always keeps {recipe.groups:g} experts; take another")
    check_router(request.recipe, recipe, layers)
    if request.form == "stock":
        remedy = "which a stock checkpoint cannot have: take another recipe, or format mapped"
        if recipe.budget == "global":
            raise ParameterError("recipe", request.recipe, f"gives each layer its own number of experts, {remedy}")
        if POLICIES.fact(recipe.router, "excludes"):
            raise ParameterError("recipe", request.recipe, f"excludes experts from the router, {remedy}")


def check_tensors(request: Request, directory: Path) -> list[str]:
    """Names of tensors that are left out; weights that are not fetched yet are checked by their index, if there is one.

    Raises `CheckpointError` for tensors that are not the model's, `ParameterError` for `keep_mtp` in a stock result
    whose draft head has experts of its own.
    """
    if is_local(request.source):
        check_headers(Published(Checkpoint(directory)))
    names = tensor_names(directory)
    found = contents(read_json(directory / "config.json"), names, request.source)
    if request.keep_mtp and request.form == "stock" and found.mtp_experts:
        what = f"its layers for multi-token prediction have experts, which are not merged ({found.mtp_experts[0]})"
        raise ParameterError("keep_mtp", True, f"{what}; {ONE_NUMBER}: take format mapped, or leave them out")
    return found.unused if request.keep_mtp else [*found.mtp, *found.unused]


def check_experts(request: Request, kept: int, sizes: Sizes) -> None:
    """Raise `ParameterError` for a number of experts that the layers, or a stock router, cannot have."""
    if not 1 <= kept < sizes.fewest:
        allowed = f"from 1 to {sizes.fewest - 1}: the smallest layer has {sizes.fewest}"
        raise ParameterError("experts", kept, allowed)
    reason = why_not_stock(sizes.layers, kept) if request.form == "stock" else None
    if reason:
        raise ParameterError("experts", kept, reason)


def needs_restoring(directory: Path) -> bool:
    """Whether tensors cannot be read one by one: in MXFP4, in `.bin` files, or inside a model for more than text."""
    path = directory / "config.json"
    if inside_another(directory) or only_transformers_restores(read_json(path), path):
        return True
    single = (directory / WEIGHTS).is_file() or (directory / INDEX).is_file()
    return not single and any(directory.glob("pytorch_model*.bin*"))


def inside_another(directory: Path) -> bool:
    """Whether the language model is part of one that reads more than text."""
    values = read_json(directory / "config.json")
    return language_config(values) is not values


def fitting(
    config: Any, rows: Rows, kept: int, request: Request, recipe: Recipe, limit: int
) -> tuple[RowSampling, Needs]:
    """The calibration rows in the largest batches with which the model fits into `limit` bytes, streamed if it must.

    Also returns what they need. Raises `MemoryLimitError` if it does not fit even with one row at a time.
    """
    least = 0
    for batch_size in BATCHES:
        sampling = RowSampling(rows.calibration, batch_size, request.seed)
        needs = working_memory(config, sampling, kept, request.form, recipe.also, recipe.looks)
        least = min(needs.whole, needs.streamed)
        if least <= limit:
            return sampling, needs
    raise MemoryLimitError(limit + PROCESS, "shrink", least + PROCESS, "raise it, or take fewer `samples`")
