"""Draw how alike the experts of each layer are, and which of them one method put together."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start


def main(method: Annotated[str, Option(help="Recipe whose groups are framed.")]) -> None:
    """Write report/groups/METHOD.svg, and the use of experts before and after as plots/use/METHOD.json."""
    start()
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.grouping.plan import Plan
    from mcsmoe.report.figure import save
    from mcsmoe.report.groups import similarity_groups
    from mcsmoe.report.use import use_rows
    from mcsmoe.similarity.evidence import cosine

    statistics = RoutingStatistics.load(Path("artifacts/collect"))
    plan = Plan.load(Path("artifacts/merge") / method)
    similarity = {name: cosine(layer.logits_gram).numpy() for name, layer in statistics.layers.items()}
    groups = {
        name: [[group.dominant, *(e for e in group.members if e != group.dominant)] for group in layer.groups]
        for name, layer in plan.layers.items()
        if layer.merged
    }
    use = {name: layer.frequency.tolist() for name, layer in statistics.layers.items()}
    write_json(Path("plots/use") / f"{method}.json", use_rows(plan, use))
    title = f"{method}: similarity of experts by router logits, and its groups"
    save(similarity_groups(similarity, groups, title), Path("report/groups") / f"{method}.svg")


if __name__ == "__main__":
    run(main)
