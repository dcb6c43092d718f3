"""The public functions, for a notebook or a program; `mcsmoe shrink` and the stages of the pipeline call the same ones.

    import mcsmoe

    model = mcsmoe.open("mistralai/Mixtral-8x7B-v0.1", memory_limit="24GB")
    statistics = mcsmoe.collect(model, texts)
    plan = mcsmoe.plan(model, statistics, recipe="m-smoe-uniform", experts=4)
    mcsmoe.merge(model, plan, statistics, "merged")
    mcsmoe.export("merged", model, "stock")

Mistakes raise a subclass of `mcsmoe.errors.UserError`, whose message is one line, before any expensive work begins.
The examples below run in a directory with a small model `tiny-moe`; `texts` is a list of strings.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from mcsmoe import warm
from mcsmoe.arguments import BATCH, SAMPLES, best_device, excluded, memory_size, statistics_key, text_sampling
from mcsmoe.calibration.collect import collect as collect_whole
from mcsmoe.calibration.gradients import KINDS, Gradients
from mcsmoe.calibration.memory import FILES
from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.source import fetch
from mcsmoe.errors import CheckpointError, ParameterError, StatisticsError
from mcsmoe.evaluation.measure import rows_likelihood
from mcsmoe.evaluation.quality import Likelihood
from mcsmoe.exporting.stock import open_mapped
from mcsmoe.exporting.write import export_model
from mcsmoe.fields import find_directory
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import merge_model
from mcsmoe.methods.planning import make_plan
from mcsmoe.methods.recipe import check_budget, check_router, load_recipe
from mcsmoe.model import Model
from mcsmoe.params import Merge
from mcsmoe.shrinking.job import RECIPE, Job, Request, needs_restoring, plan_job
from mcsmoe.shrinking.outcome import Outcome
from mcsmoe.shrinking.rows import HELD_OUT
from mcsmoe.shrinking.run import GRADIENT_ROWS, output_path, run_job
from mcsmoe.similarity.collecting import collect_model
from mcsmoe.sizing import Format


def open(
    source: str | Path,
    *,
    memory_limit: int | str | None = None,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    keep_mtp: bool = False,
) -> Model:
    """Open a checkpoint of a supported family: a directory, or a hub id, whose files are fetched first.

    Weights are read when they are needed: the whole model, or one block at a time if it does not fit into
    `memory_limit` (such as "24GB" or a number of bytes; None: no limit). `device` is where the model runs, by default
    a GPU if there is one. `trust_remote_code` allows the tokenizer to run the code beside it. With `keep_mtp`, layers
    for multi-token prediction (a draft head) go into results unchanged.

        >>> model = mcsmoe.open("tiny-moe", memory_limit="2GB")
        >>> model
        Model('tiny-moe': mixtral, 2 layers of 4 experts, 194 kB)

    Raises `CheckpointError` for a source that is missing, damaged, quantised or of an unsupported architecture,
    `ParameterError` for a `memory_limit` that is no size.
    """
    limit, directory = memory_size(memory_limit), fetch(source, revision)
    if needs_restoring(directory):
        what = "quantised, in .bin files, or inside a model that reads more than text: `shrink` restores such weights"
        raise CheckpointError(f"{source}: {what}")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "keep_mtp": keep_mtp}
    return Model(directory, limit, device=device or best_device(), name=str(source), **options)


def collect(
    model: Model,
    texts: Iterable[Any],
    samples: int = SAMPLES,
    *,
    length: int | None = None,
    batch_size: int = BATCH,
    also: Sequence[str] = (),
    seed: int = 0,
    column: str = "text",
    output: str | Path | None = None,
) -> RoutingStatistics:
    """Collect routing statistics of `model` on `samples` blocks of `length` tokens of running text.

    `texts` is a list of strings or a `datasets.Dataset` with a `column` of text, both read in a seeded random order,
    or any iterator, read in its own order as far as needed. `length` is 1,024 or the longest the model takes. `also`
    names more to measure, which some recipes need (see `docs/methods.md`). With `output`, a directory, the statistics
    are written there, and an interrupted run of a model that is read block by block goes on where it stopped.

        >>> statistics = mcsmoe.collect(model, texts, samples=4, length=16)
        >>> statistics
        RoutingStatistics(2 layers, 60 tokens)
        >>> statistics["decoder.0"].counts
        tensor([...], dtype=torch.float64)

    Statistics add up: `collect(model, code) + collect(model, prose)`. They `save` and `load`.
    Raises `DataError` for texts that are empty or not strings, `MemoryLimitError` if the work does not fit, and
    `ParameterError` if `also` names what is written to files and there is no `output`.
    """
    sampling = text_sampling(model, texts, samples, length=length, batch_size=batch_size, seed=seed, column=column)
    if output is not None:
        observer = Observer(model, sampling, "collect", also=also)
        collect_model(observer, Path(output), also, GRADIENT_ROWS)
        return RoutingStatistics.load(output)
    files = sorted(set(also) & set(FILES))
    if files:
        raise ParameterError("output", None, f"{files[0]!r} is written to files: give a directory")
    with Observer(model, sampling, "collect", also=also) as observer:
        statistics = collect_whole(observer.module, model.family, model.layers, observer.batches, also=also)
        statistics.provenance = observer.provenance
        return statistics


def plan(
    model: Model,
    statistics: RoutingStatistics,
    recipe: str = "m-smoe",
    experts: float = 4,
    *,
    budget: Literal["global", "uniform"] = "global",
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Decide which experts of `model` become one.

    `experts` are kept a layer: on average, where they are most used (`budget="global"`), or in each ("uniform"), as a
    stock checkpoint needs it; a recipe may have a budget of its own. `recipe` names a method (see `docs/methods.md`);
    one of yours is `recipes/NAME.yaml`. Layers in `exclude`, such as "decoder.0", keep all their experts.

        >>> plan = mcsmoe.plan(model, statistics, recipe="m-smoe-uniform", experts=2)
        >>> plan
        Plan(m-smoe-uniform: 2 layers, 4 of 8 experts)
        >>> plan.layers["decoder.0"].groups[0].members
        (0, ...)

    Raises `UnknownNameError` for an unknown recipe, `ParameterError` for a budget that is impossible or a recipe that
    this model cannot have, `StatisticsError` for statistics of another model or without what the recipe needs.
    """
    chosen = load_recipe(recipe)
    if chosen.progressive:
        raise ParameterError("recipe", recipe, "drops experts during training: it needs the pipeline")
    check_router(recipe, chosen, model.layers)
    left_alone = excluded(model, exclude)
    try:
        merge = Merge.parse({"groups": experts, "budget": budget, "capacity": None, "exclude": left_alone})
        check_budget(recipe, chosen, merge, model.layers)
    except ParameterError as error:
        if error.name != "groups":
            raise
        raise ParameterError("experts", experts, error.allowed) from None
    for what, entry in chosen.needs.items():
        if entry in KINDS and not Gradients(statistics.directory).holds(entry):
            raise StatisticsError(f"{what} of recipe {recipe!r} needs {entry!r} collected, with an `output`")
    return make_plan(recipe, chosen, merge, statistics, model, seed)


def merge(
    model: Model,
    plan: Plan,
    statistics: RoutingStatistics,
    output: str | Path,
    *,
    texts: Iterable[Any] | None = None,
    samples: int = SAMPLES,
    length: int | None = None,
    seed: int = 0,
) -> Model:
    """Write `model` with `plan` applied to the directory `output`, verify it, and open it.

    Experts are read and written one by one; an interrupted run goes on where it stopped. `texts` are needed only by
    recipes that look at calibration tokens again. The result loads with `from_pretrained(output,
    trust_remote_code=True)`: its router keeps all rows, and a map sends their tokens to the merged experts.

        >>> mcsmoe.merge(model, plan, statistics, "merged")
        Model('merged': mcsmoe_mixtral, 2 layers of 2 experts, 118 kB)

    Raises `ParameterError` if `texts` are missing, `CheckpointError` for weights that are damaged or a result that
    does not verify, `DiskFullError` if there is no room; `output` then stays as it was.
    """
    warm.start()
    observer = None
    if texts is not None:
        sampling = text_sampling(model, texts, samples, length=length, seed=seed)
        observer = Observer(model, sampling, "merge", tokens=True)
    key = {"statistics": statistics_key(statistics)}
    merge_model(model, plan, statistics, Path(output), observer=observer, seed=seed, key=key)
    return Model(Path(output), model.memory_limit, device=model.device, trust_remote_code=model.trust_remote_code)


def export(
    merged: Model | str | Path,
    model: Model,
    output: str | Path,
    *,
    router: str = "dominant",
    plan: str | Path | None = None,
    texts: Iterable[Any] | None = None,
    samples: int = SAMPLES,
    length: int | None = None,
    seed: int = 0,
) -> Model:
    """Write `merged`, which was made of `model`, as a stock checkpoint that any engine loads, verify it, and open it.

    Its router has a row for each merged expert: that of the dominant one (`router="dominant"`), or fitted to `texts`
    ("ridge", "cross-entropy"). So it is not exactly the merged model; with `texts`, `export.json` beside the weights
    tells the share of the gates that stay. All layers must have equally many experts. `plan` is the directory
    of `plan.json`, if training has left it behind.

        >>> mcsmoe.export("merged", model, "stock")
        Model('stock': mixtral, 2 layers of 2 experts, 118 kB)

    Raises `CheckpointError` if no stock class can hold the model or `output` is in use, `UnknownNameError` for an
    unknown `router`; `output` then stays as it was.
    """
    warm.start()
    directory = merged.directory if isinstance(merged, Model) else find_directory(merged)
    mapped = open_mapped(model.checkpoint, Checkpoint(directory), Path(plan or directory))
    observer = None
    if texts is not None:
        sampling = text_sampling(model, texts, samples, length=length, seed=seed)
        observer = Observer(model, sampling, "export", tokens=True)
    export_model(model, mapped, Path(output), router, observer=observer)
    return Model(Path(output), model.memory_limit, device=model.device, trust_remote_code=model.trust_remote_code)


def evaluate(
    model: Model | str | Path,
    texts: Iterable[Any],
    samples: int = HELD_OUT,
    *,
    length: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    column: str = "text",
) -> Likelihood:
    """Measure how well a stock or merged model predicts running text: `samples` blocks of `length` tokens of `texts`.

    Every token is predicted from those before it in its block. A model that does not fit into its `memory_limit` is
    read block by block, with the same figures.

        >>> found = mcsmoe.evaluate("stock", texts, samples=4, length=16)
        >>> found
        Likelihood(perplexity ..., 60 tokens)

    Raises what `open` raises for a path, and `DataError` and `MemoryLimitError` as `collect` does.
    """
    model = model if isinstance(model, Model) else open(model)
    sampling = text_sampling(model, texts, samples, length=length, batch_size=batch_size, seed=seed, column=column)
    return rows_likelihood(model, sampling.draw(model.tokenizer).rows, batch_size)


def shrink(
    source: str | Path,
    output: str | Path,
    *,
    experts: int | None = None,
    size: str | float | None = None,
    recipe: str = RECIPE,
    text: str | Path | None = None,
    samples: int = SAMPLES,
    memory_limit: int | str | None = None,
    format: Format = "stock",
    seed: int = 0,
    keep_mtp: bool = False,
    trust_remote_code: bool = False,
    confirm: Callable[[Job], None] = lambda job: None,
) -> Outcome:
    """Make the model `source` smaller: collect, plan, merge, export, measure, and write a model card, in one call.

    `experts` are kept a layer, or as many as `size` allows ("50%" of the bytes, or "24GB"). `text` is a directory, a
    file or a hub id; without it a mix of hub data sets is read: code, chat, prose, mathematics and several languages.
    `format` "stock" writes a checkpoint that any engine loads, "mapped" exactly the merged model. `memory_limit` is
    for the whole process; by default it is what is free. `keep_mtp`, `trust_remote_code`: see `open`. `confirm` is
    called with the job when it is known to be possible and before any work, and may raise to end it.

        >>> outcome = mcsmoe.shrink("tiny-moe", "small", experts=2, text="text", samples=8)
        >>> outcome
        result      118 kB, 60.9% of 194 kB
        perplexity  ... → ... (...)
        next token  the same for ...
        ...

    An interrupted call goes on where it stopped when it is made again; one that had finished returns its outcome.
    Raises a `UserError` for what cannot work before any work; `output` appears whole or not at all.
    """
    warm.start()
    limit, where, path = memory_size(memory_limit), None if text is None else str(text), output_path(output)
    asked = (str(source), path, experts, size, recipe, where, samples, limit, format, best_device(), seed)
    job = plan_job(Request(*asked, keep_mtp, trust_remote_code))
    if not path.exists():
        confirm(job)
    return run_job(job)
