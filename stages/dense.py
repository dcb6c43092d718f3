"""Train the dense baseline: a dense model of the full model's active size, on the same data with the same settings."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import FIGURES, made, run, start
from stages.launch import launched

FULL = Path("artifacts/finetune")
OUTPUT = Path("artifacts/merge")  # like a merged model, so that distill finds it


def main(method: Annotated[str, Option(help="Name of the baseline.")] = "dense") -> None:
    """Train a dense counterpart of artifacts/finetune with the `finetune` settings; write artifacts/merge/METHOD."""
    curve = FIGURES / f"curves/{method}.json"
    params = start(files=[curve], checkpoints=[OUTPUT / method])
    if not launched(params, "stages.dense"):
        return
    from mcsmoe.checkpoint.load import load_config
    from mcsmoe.checkpoint.tokenizer import load_tokenizer
    from mcsmoe.training.finetune import finetune, split_train
    from mcsmoe.training.start import start_dense

    tokenizer = load_tokenizer(made(FULL), trust_remote_code=params.model.trust_remote_code)
    model = start_dense(params.model, load_config(FULL), tokenizer)
    finetune(params, model, tokenizer, split_train(params), OUTPUT / method, curve, FULL)


if __name__ == "__main__":
    run(main)
