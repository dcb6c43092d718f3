"""Compress each merged weight to low rank plus a sparse rest, while the model learns from its teacher."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from stages.common import FIGURES, run
from stages.recovery import MakeFit, recover

if TYPE_CHECKING:
    from mcsmoe.params import Params
    from mcsmoe.training.loop import Fit


def main(method: Annotated[str, Option(help="Recipe whose distilled model is compressed.")]) -> None:
    """Compress artifacts/distill/METHOD with artifacts/finetune as teacher; write artifacts/compress/METHOD."""

    def prepare(params: "Params", student: Any, make_fit: MakeFit) -> tuple["Fit", AbstractContextManager[None]]:
        from mcsmoe.compression.factorise import factorise_model
        from mcsmoe.compression.pruner import Pruner
        from mcsmoe.grouping.plan import Plan
        from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears

        excluded = Plan.load(FIGURES / "plans" / method).excluded
        factorise_model(student, params.compress, FactorisedLinears.from_factors, excluded)
        fit = make_fit(params.compress)
        pruner = Pruner(student, params.compress, fit.steps)
        fit.hooks, fit.figures = pruner, lambda: {"remaining": pruner.remaining}

        @contextmanager
        def pruning() -> Iterator[None]:
            yield
            pruner.finish(fit.model)

        return fit, pruning()

    recover("compress", "distill", method, prepare)


if __name__ == "__main__":
    run(main)
