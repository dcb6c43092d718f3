"""The inputs of the report: metrics, curves and plans of each step and method, read from one directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from mcsmoe.errors import MeasurementError
from mcsmoe.grouping.plan import Plan
from mcsmoe.params import Methods
from mcsmoe.reading import parse_as
from mcsmoe.report.curves import Curve
from mcsmoe.report.table import COSTS, Metric, Result

Rows = list[dict[str, Any]]
Scores = dict[str, int | float]
Points = list[dict[str, int | float | None]]


class Rank(TypedDict):
    """A row of stable ranks."""

    moment: Literal["before", "merged", "distilled"]
    layer: str
    stable_rank: float


def read_measurements(path: Path, kind: Any, maker: str) -> Any:
    """What the stage `maker` measured, of a type such as `Scores`. Raises `MeasurementError` if it is not that."""
    try:
        return parse_as(kind, path.read_bytes())
    except FileNotFoundError:
        raise MeasurementError(f"no {path}: run {maker}") from None
    except ValueError as error:
        raise MeasurementError(f"{path} is damaged ({error}): run {maker} again") from None


@dataclass(frozen=True)
class Gathered:
    """Inputs of the report: `results`, the full model first; `curves` by step and method; the rest by method."""

    results: Sequence[Result]
    curves: Mapping[str, Mapping[str, Curve]]
    plans: Mapping[str, Plan]
    ranks: Mapping[str, Rows]
    permute: Mapping[str, Any]
    """How well hidden neurons match before and after alignment, and how much the logits changed."""

    @classmethod
    def read(cls, directory: Path, methods: Methods, metric: str) -> "Gathered":
        """Read the inputs of the listed methods only; files of methods that are no longer listed are ignored.

        `metric` is the name of the metric that stands for quality. Raises `MeasurementError` for a file that is missing
        or damaged, or has not the numbers that the report needs.
        """
        steps = _by_step(methods)

        def read(name: str, kind: Any, maker: str) -> Any:
            return read_measurements(directory / f"{name}.json", kind, maker)

        def curve(name: str) -> Any:
            maker = name.split("-")[0]
            found = read(f"curves/{name}", Points, maker)
            if any(row.get("step") is None for row in found):
                raise MeasurementError(f"{directory}/curves/{name}.json has a row without a step: run {maker} again")
            return found

        names = ["full", *(f"{s}-{m}" for s, listed in steps.items() for m in listed)]
        scores = {name: read(f"scores/{name}", Scores, "evaluate") for name in names}
        for name, found in scores.items():
            lacking = {metric, *COSTS, *scores["full"]} - found.keys()
            # Only a dense model has none of something: no experts.
            lacking |= {cost for cost in COSTS if cost != "experts" and found.get(cost, 0) <= 0}
            if lacking:
                raise MeasurementError(f"{directory}/scores/{name}.json has no {min(lacking)}: run evaluate again")
        results = [Result("full", "–", scores["full"])]
        results += [Result(s, m, scores[f"{s}-{m}"]) for s, listed in steps.items() for m in listed]
        curves = {s: {m: curve(f"{s}-{m}") for m in steps[s]} for s in ("distill", "compress")}
        trained = {"full": "finetune"} | {name: name for name in methods.dense}
        return cls(
            results=results,
            curves={"finetune": {name: curve(file) for name, file in trained.items()}} | curves,
            plans={name: Plan.load(directory / "plans" / name) for name in methods.merge},
            ranks={name: read(f"stable-rank/{name}", list[Rank], "stable-rank") for name in methods.distill},
            permute=read("permute", dict[str, Any], "permute"),
        )


def leftovers(directory: Path, methods: Methods) -> list[Path]:
    """Return the files and directories below `directory` that belong to no listed method."""
    steps = _by_step(methods)
    known = {"permute.json", "scores/full.json", "curves/finetune.json"}
    known |= {f"scores/{step}-{method}.json" for step, listed in steps.items() for method in listed}
    known |= {f"curves/{step}-{method}.json" for step in ("distill", "compress") for method in steps[step]}
    known |= {f"curves/{method}.json" for method in methods.dense}
    known |= {f"plans/{method}" for method in methods.merge}
    known |= {f"stable-rank/{method}.json" for method in methods.distill}
    found = [*directory.glob("*.json"), *directory.glob("*/*")]
    return [path for path in found if path.relative_to(directory).as_posix() not in known]


def _by_step(methods: Methods) -> dict[str, list[str]]:
    """The methods of each step; the dense baseline takes the place of a merged model."""
    return {
        "merge": methods.merge + methods.dense,
        "distill": methods.distill + methods.dense,
        "compress": methods.compress,
    }


def metric_files(results: Sequence[Result], metric: Metric) -> dict[str, dict[str, Any]]:
    """Return the contents of each metrics file, by its name: values of one metric for the full model and each method.

    Example: `{"bytes": {"full": 3200000, "merge": {"m-smoe": 1880000}}}`.
    """
    return {name: _by_checkpoint(results, of) for name, of in {"quality": metric.name, **{c: c for c in COSTS}}.items()}


def _by_checkpoint(results: Sequence[Result], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {"full": results[0].scores[name]}
    for result in results[1:]:
        values.setdefault(result.step, {})[result.method] = result.scores[name]
    return values


def plot_rows(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rows:
    """Return the rows of all methods in one list, each with its method added, for one plot per method."""
    return [{"method": method, **row} for method, rows in by_method.items() for row in rows]
