"""Make a sparse mixture-of-experts model small: `import mcsmoe`, `mcsmoe shrink`, or the stages of a pipeline.

    model = mcsmoe.open("mistralai/Mixtral-8x7B-v0.1", memory_limit="24GB")
    statistics = mcsmoe.collect(model, texts)
    plan = mcsmoe.plan(model, statistics, recipe="m-smoe-uniform", experts=4)
    mcsmoe.merge(model, plan, statistics, "merged")
    mcsmoe.export("merged", model, "stock")

The functions are described in `mcsmoe.api` and in docs/api.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcsmoe.api import collect, evaluate, export, merge, open, plan, shrink
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.grouping.plan import Plan

PLACES = {
    "Plan": "mcsmoe.grouping.plan",
    "RoutingStatistics": "mcsmoe.calibration.statistics",
    "collect": "mcsmoe.api",
    "evaluate": "mcsmoe.api",
    "export": "mcsmoe.api",
    "merge": "mcsmoe.api",
    "open": "mcsmoe.api",
    "plan": "mcsmoe.api",
    "shrink": "mcsmoe.api",
}
"""Public name → its module, which is imported at first use (PEP 562): importing this package takes no time."""

__all__ = ["Plan", "RoutingStatistics", "collect", "evaluate", "export", "merge", "open", "plan", "shrink"]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'mcsmoe' has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
