"""Recover a merged model by knowledge distillation from the full one."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from stages.common import run
from stages.recovery import MakeFit, recover

if TYPE_CHECKING:
    from mcsmoe.params import Params
    from mcsmoe.training.loop import Fit


def main(method: Annotated[str, Option(help="Recipe whose merged model recovers.")]) -> None:
    """Train artifacts/merge/METHOD with artifacts/finetune as teacher; write artifacts/distill/METHOD."""

    def train(params: "Params", student: Any, make_fit: MakeFit) -> "Fit":
        fit = make_fit(params.distill)
        fit.run(f"distill {method}")
        return fit

    recover("distill", "merge", method, train)


if __name__ == "__main__":
    run(main)
