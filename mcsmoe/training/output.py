"""What a training leaves behind: a verified checkpoint and its curve."""

from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.atomic import atomic_directory, write_json
from mcsmoe.checkpoint.probe import probe_batch
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.verify import verify_checkpoint
from mcsmoe.training.loop import Fit


def write_training(fit: Fit, tokenizer: Any, output: Path, curve: Path) -> None:
    """Write the trained model to `output` once it is verified, then the curve; only one process writes.

    Raises `CheckpointError` if the saved model is not the one in memory; `output` is then as it was.
    """
    if not fit.accelerator.is_main_process:
        return
    model = fit.model.eval()
    model.to("cpu")
    probe = probe_batch(model.config.vocab_size, fit.causal)
    with torch.no_grad():
        logits = model(**probe).logits
    with atomic_directory(output) as scratch:
        written = save_model(model, tokenizer, scratch)
        verify_checkpoint(scratch, written, probe, logits)
    # Plots need every row to have the same columns.
    columns = dict.fromkeys(name for row in fit.curve for name in row)
    write_json(curve, [{name: row.get(name) for name in columns} for row in fit.curve])
