"""A small report with a hostile method name."""

import numpy as np

from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.params import Params
from mcsmoe.report.curves import curves_section
from mcsmoe.report.groups import similarity_section
from mcsmoe.report.page import provenance_section, report_page
from mcsmoe.report.results import results_section
from mcsmoe.report.stable_rank import stable_rank_section
from mcsmoe.report.table import Metric, Result
from mcsmoe.report.tradeoff import tradeoff_section
from mcsmoe.report.use import groupings, use_rows, use_section
from tests.methods.params import small_params

HOSTILE = "<img src=x onerror=alert(1)>&\"'"
METRIC = Metric("exact_match", True)
FREQUENCY = {"encoder.1": [0.1, 0.4, 0.2, 0.3], "decoder.1": [0.7, 0.1, 0.2, 0.0]}


def plan(method: str, *groups: Group, dropped: tuple[int, ...] = ()) -> Plan:
    """One merged layer of four experts, and one that is left alone."""
    layers = {
        "encoder.1": LayerPlan(groups, True, dropped),
        "decoder.1": LayerPlan(tuple(Group(e, (e,), (0.0,)) for e in range(4)), False),
    }
    return Plan(method, "frequency", "weight", "dominant", layers)


MERGED = plan("m-smoe", Group(1, (0, 1), (0.1, 0.4)), Group(2, (2, 3), (0.2, 0.3)))
NONE = plan("none", *(Group(e, (e,), (0.0,)) for e in range(4)))


def result(step: str, method: str, score: float, size: int) -> Result:
    costs = {"parameters": size // 4, "bytes": size, "experts": 8, "flops_per_token": 2_000_000}
    return Result(step, method, {"exact_match": score, **costs})


RESULTS = [
    result("full", "–", 0.9, 8_000_000),
    result("merge", "none", 0.91, 8_000_000),
    result("merge", HOSTILE, 0.8, 4_000_000),
    result("merge", "average", 0.7, 4_000_000),
    result("distill", HOSTILE, 0.895, 4_000_000),
    result("compress", HOSTILE, 0.85, 1_600_000),
]


def page() -> str:
    rows = use_rows(MERGED, FREQUENCY)
    found = groupings({HOSTILE: rows, "average": rows, "none": use_rows(NONE, FREQUENCY)})
    similarity = {name: np.eye(4) for name in FREQUENCY}
    ranks = [{"moment": "before", "layer": name, "stable_rank": 3.0} for name in FREQUENCY]
    curve = [{"step": step, "loss": 1 / step, "remaining": 0.5} for step in range(1, 30)]
    calibration = {"samples": 3, "fingerprint": "f00"}
    sections = [
        results_section(RESULTS, METRIC),
        tradeoff_section(RESULTS, METRIC),
        use_section(found),
        similarity_section(similarity, found),
        stable_rank_section({HOSTILE: ranks}),
        curves_section({"compress": {HOSTILE: curve}}, {HOSTILE: "#0b7a75"}),
        provenance_section(Params.parse(small_params()), calibration, {"test": {"examples": 2, "fingerprint": "ba5"}}),
    ]
    return report_page("skills", RESULTS, METRIC, sections)
