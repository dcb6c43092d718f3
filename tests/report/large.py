"""A report on a model with as many layers and experts as Qwen3-30B-A3B, whose experts are used very unevenly."""

import numpy as np

from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.report.curves import curves_section
from mcsmoe.report.figure import colours
from mcsmoe.report.groups import similarity_section
from mcsmoe.report.page import report_page
from mcsmoe.report.results import results_section
from mcsmoe.report.stable_rank import stable_rank_section
from mcsmoe.report.table import Metric, Result
from mcsmoe.report.tradeoff import tradeoff_section
from mcsmoe.report.use import groupings, use_rows, use_section

LAYERS = [f"decoder.{layer}" for layer in range(48)]
EXPERTS, KEPT = 128, 64
METHODS = ["m-smoe", "hc-smoe", "reap"]
METRIC = Metric("cross_entropy", False)


def usage(rng: np.random.Generator) -> tuple[list[float], np.ndarray]:
    """Activation frequencies [E], a few experts far ahead, and similarity [E, E] with clusters of experts."""
    frequency = rng.lognormal(sigma=1.0, size=EXPERTS)
    features = rng.normal(size=(24, 16))[rng.integers(24, size=EXPERTS)] + rng.normal(size=(EXPERTS, 16))
    features += rng.uniform(0.5, 2)  # layers differ in how similar their experts are
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return (frequency / frequency.sum()).tolist(), features @ features.T


def plan(method: str, frequency: dict[str, list[float]], similarity: dict[str, np.ndarray]) -> Plan:
    """Keep the most used experts; the others join the most similar of them, or are dropped by `reap`."""
    layers = {}
    for name, shares in frequency.items():
        order = np.argsort(shares)[::-1]
        # The second method takes every second expert for a dominant one.
        kept, rest = (order[::2], order[1::2]) if method == "hc-smoe" else (order[:KEPT], order[KEPT:])
        joined = {int(e): [int(e)] for e in kept}
        for e in rest if method != "reap" else ():
            joined[int(kept[similarity[name][e, kept].argmax()])].append(int(e))
        groups = tuple(
            Group(e, tuple(sorted(each)), tuple(shares[m] for m in sorted(each))) for e, each in joined.items()
        )
        layers[name] = LayerPlan(groups, True, tuple(rest.tolist()) if method == "reap" else ())
    return Plan(method, "frequency", "weight", "dominant", layers)


def inputs() -> tuple[dict[str, list[float]], dict[str, np.ndarray], dict[str, Plan]]:
    rng = np.random.default_rng(0)
    known = {name: usage(rng) for name in LAYERS}
    frequency = {name: shares for name, (shares, _) in known.items()}
    similarity = {name: matrix for name, (_, matrix) in known.items()}
    return frequency, similarity, {method: plan(method, frequency, similarity) for method in METHODS}


def results() -> list[Result]:
    def result(step: str, method: str, score: float, size: float) -> Result:
        costs = {"parameters": size / 2, "bytes": size, "experts": EXPERTS * len(LAYERS), "flops_per_token": 6e9}
        return Result(step, method, {"cross_entropy": score, **costs})

    steps = {"merge": (2.9, 32e9), "distill": (2.6, 32e9), "compress": (2.65, 20e9)}
    merged = [result(s, m, x + 0.1 * i, size) for s, (x, size) in steps.items() for i, m in enumerate(METHODS)]
    return [result("full", "–", 2.5, 61e9), *merged]


def page() -> str:
    frequency, similarity, plans = inputs()
    rng = np.random.default_rng(1)
    found = groupings({method: use_rows(each, frequency) for method, each in plans.items()})
    ranks = [
        {"moment": moment, "layer": name, "stable_rank": float(rng.uniform(20, 40))}
        for moment in ("before", "merged", "distilled")
        for name in LAYERS
    ]
    curve = [{"step": step, "loss": float(rng.uniform(1, 2))} for step in range(1, 2001)]
    sections = [
        results_section(results(), METRIC),
        tradeoff_section(results(), METRIC),
        use_section(found),
        similarity_section(similarity, found),
        stable_rank_section(dict.fromkeys(METHODS, ranks)),
        curves_section({"distill": dict.fromkeys(METHODS, curve)}, colours(METHODS)),
    ]
    return report_page("lm", results(), METRIC, sections)
