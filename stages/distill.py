"""Recover a merged model by knowledge distillation from the full model."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from stages.common import run
from stages.recovery import MakeFit, recover

if TYPE_CHECKING:
    from torch import Tensor

    from mcsmoe.params import Params
    from mcsmoe.training.loop import Fit


def main(method: Annotated[str, Option(help="Recipe whose merged model recovers.")]) -> None:
    """Train artifacts/merge/METHOD with artifacts/finetune as teacher; write artifacts/distill/METHOD."""

    def prepare(params: "Params", student: Any, make_fit: MakeFit) -> tuple["Fit", AbstractContextManager[None]]:
        from mcsmoe.families import family_of
        from mcsmoe.grouping.plan import PLAN, Plan
        from mcsmoe.training.dropping import ExpertDropper

        origin, fit = Path("artifacts/merge") / method, make_fit(params.distill)
        # The dense baseline has no plan.
        plan = Plan.load(origin) if (origin / PLAN).is_file() else None
        if plan is None or plan.keep is None:
            return fit, nullcontext()
        family = family_of(student.config)
        layers = family.layers(student.config)

        def total(counts: "Tensor") -> "Tensor":
            return fit.accelerator.reduce(counts.to(fit.accelerator.device), "sum").cpu()

        dropper = ExpertDropper(student, family, layers, plan.keep, plan.excluded, total)
        return fit, dropper.dropping(fit)

    recover("distill", "merge", method, prepare)


if __name__ == "__main__":
    run(main)
