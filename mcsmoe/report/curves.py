"""Section: what trainings looked like, and how pruning went."""

from collections.abc import Mapping

from mcsmoe.evaluation.curves import Curve, curves
from mcsmoe.report.inline import inline
from mcsmoe.report.section import Section, section

PICTURES = (
    ("finetune", "loss", "Fine-tuning: loss", True),
    ("finetune", "selection", "Fine-tuning: selection split", False),
    ("distill", "loss", "Distillation: loss", True),
    ("compress", "loss", "Compression: loss", True),
    ("compress", "remaining", "Compression: share of S that stays", False),
)
"""Step, figure, title, and whether the figure is noisy."""


def curves_section(trainings: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]) -> Section:
    """`trainings` holds curves by step and method; a figure that no row has is not drawn."""
    pictures = []
    for step, field, title, noisy in PICTURES:
        drawn = {
            method: rows
            for method, rows in trainings.get(step, {}).items()
            if any(row.get(field) is not None for row in rows)
        }
        if drawn:
            figure = curves(drawn, field, title, colours, noisy=noisy)
            pictures.append(inline(figure, f"{step}-{field}", title))
    return section("Training and pruning", "curves.html", pictures=pictures)
