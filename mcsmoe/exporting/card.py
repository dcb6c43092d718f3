"""The model card of an exported checkpoint: its source, its making, its cost, and what got worse."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.exporting.stock import Mapped
from mcsmoe.exporting.write import Agreement
from mcsmoe.grouping.plan import Plan
from mcsmoe.methods.recipe import Recipe, known_recipes, load_recipe
from mcsmoe.params import Params
from mcsmoe.report.table import COSTS, Metric, percent, title
from mcsmoe.tasks.task import TASKS

METRICS = Path("artifacts/figures/scores")


@dataclass(frozen=True)
class Figure:
    """One measured number of the full and of the merged model."""

    name: str
    full: float
    merged: float
    worse: bool


def measured(checkpoint: Checkpoint, metric: Metric) -> list[Figure]:
    """Measurements of a checkpoint in artifacts/STEP/METHOD beside those of the full model; [] if there are none.

    Measurements of another state of the checkpoint, recognised by its size in bytes, are ignored.
    """
    step, method = checkpoint.directory.resolve().parts[-2:]
    files = [METRICS / "full.json", METRICS / f"{step}-{method}.json"]
    if not all(file.is_file() for file in files):
        return []
    full, merged = (json.loads(file.read_text()) for file in files)
    if merged["bytes"] != checkpoint.size_bytes:
        return []
    return [Figure(name, full[name], merged[name], _worse(name, full, merged, metric)) for name in full]


def _worse(name: str, full: dict[str, float], merged: dict[str, float], metric: Metric) -> bool:
    if name in COSTS:
        return merged[name] > full[name]
    # Only the metric and its breakdown say which direction is worse; other numbers do not.
    return name.startswith(metric.name) and metric.gain(merged[name], full[name]) < 0


TAGS = ["mixture-of-experts", "expert-merging", "mc-smoe", "arxiv:2310.01334"]


def model_card(params: Params, mapped: Mapped, plan: Plan, output: Path, router: str, agreement: Agreement) -> str:
    """Render the card as Markdown, with front matter for model hubs. `output` is the stock checkpoint's directory."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "title": title}
    task = TASKS[params.task.name]
    metric = Metric(task.metric, task.higher_is_better)
    figures = measured(mapped.checkpoint, metric)
    front = yaml.safe_dump(_front(params), sort_keys=False)
    groups = {
        layer.name: [
            (dominant, [e for e in members if e != dominant])
            for dominant, members in zip(mapped.dominants[layer.name], mapped.members[layer.name], strict=True)
        ]
        for layer in mapped.layers
    }
    return environment.get_template("card.md").render(
        front=front.strip(),
        mapped=mapped,
        model=params.model,
        task=params.task,
        plan=plan,
        recipe=_recipe(plan, params),
        groups=groups,
        figures=figures,
        lost=[figure for figure in figures if figure.worse],
        auto="AutoModelForCausalLM" if mapped.family.causal else "AutoModelForSeq2SeqLM",
        trust=", trust_remote_code=True" if "auto_map" in mapped.source.config else "",
        output=output,
        router=router,
        agreement=agreement,
    )


def _front(params: Params) -> dict[str, Any]:
    """Front matter; without `base_model` for a local directory, to which a hub cannot link."""
    base = {} if params.model.hub is None else {"base_model": params.model.hub}
    return {"library_name": "transformers"} | base | {"tags": TAGS}


def _recipe(plan: Plan, params: Params) -> Recipe | None:
    """The recipe of the plan's method, or None if its rule or alignment is no longer that of the plan."""
    if plan.method not in known_recipes():
        return None
    recipe = load_recipe(plan.method, params)
    return recipe if (recipe.rule, recipe.alignment) == (plan.rule, plan.alignment) else None
