"""Section: quality against bytes, and which checkpoints no other one beats."""

from collections.abc import Sequence

from mcsmoe.evaluation.table import Metric, Result
from mcsmoe.evaluation.tradeoff import pareto, quality_size
from mcsmoe.report.inline import inline
from mcsmoe.report.section import Section, section


def tradeoff_section(results: Sequence[Result], metric: Metric) -> Section:
    """`results` starts with the full model."""
    picture = inline(quality_size(results, metric), "tradeoff", f"{metric.name} against bytes of each checkpoint")
    return section(
        "Pareto front",
        "tradeoff.html",
        picture=picture,
        front=pareto(results, metric),
        full=results[0],
        metric=metric,
    )
