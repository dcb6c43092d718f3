"""The output of a training: it goes on after an interruption, and is verified when it is written."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from mcsmoe.checkpoint.output import check_room, write_json
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.resume import Store, resumable_directory
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.verify import probe_batch, verify_checkpoint
from mcsmoe.training.loop import Fit
from mcsmoe.training.optimiser import HALF
from mcsmoe.training.state import Keeper, rows_hash, weights_hash

LIBRARIES = ("accelerate", "transformers")


def train(
    fit: Fit,
    description: str,
    tokenizer: Any,
    output: Path,
    curve: Path,
    source: Path | None = None,
    beside: Published | None = None,
    *,
    minutes: float | None,
    key: Mapping[str, Any],
    during: AbstractContextManager[None] | None = None,
) -> None:
    """Run `fit` inside the context `during`, and write the model to `output`, verified, and its curve to `curve`.

    `source` is the checkpoint that the model was made of, `beside` its tensors: see `save_model`.

    Every `minutes` (None: never) the state is kept beside `output`, where the next training that begins in the same
    way finds it after an interruption. `key` holds JSON values: all that the model depends on besides the first
    epoch's rows, the weights and the settings of `fit`. Every process must call it; the main one writes.

    Raises `ParameterError` if training diverges, `DiskFullError` before it if there is no room for the state,
    `CheckpointError` if the saved model differs from the one in memory; `output` then stays as it was.
    """
    with _resumable(fit, output, minutes, key) as directory:
        with during or nullcontext():
            fit.run(description)
        if fit.accelerator.is_main_process:
            _write(fit, tokenizer, directory, curve, source, beside)


@contextmanager
def _resumable(fit: Fit, output: Path, minutes: float | None, key: Mapping[str, Any]) -> Iterator[Path]:
    """The directory that becomes `output`, for the main process; `fit` keeps its state in notes beside it."""
    with ExitStack() as stack:
        directory, notes, store = output, [""], None
        if fit.accelerator.is_main_process:
            if minutes is not None:
                check_room(output, _state_bytes(fit))
            staging = stack.enter_context(resumable_directory(output, dict(key) | _beginning(fit)))
            directory, store = staging.output, staging.store
            notes = [str(store.directory)]
        if fit.accelerator.num_processes > 1:
            broadcast_object_list(notes)
        if minutes is not None:
            fit.keeper = Keeper(store or Store(Path(notes[0])), minutes, fit.accelerator)
        yield directory


def _beginning(fit: Fit) -> dict[str, Any]:
    """What two trainings have in common if one can go on with the state of the other."""
    return {
        "settings": fit.settings.model_dump(),
        "seed": fit.seed,
        "processes": [fit.accelerator.num_processes, fit.fsdp, fit.accelerator.device.type],
        "libraries of training": {name: version(name) for name in LIBRARIES},
        "rows": rows_hash(fit.rows),
        "weights": weights_hash(fit.model),
    }


def _state_bytes(fit: Fit) -> int:
    """Room for two states, of which the older one goes when the newer one is whole."""
    copies = 2 if fit.check else 1
    weights = sum(value.nbytes for value in fit.model.state_dict().values())
    trained = [p for p in fit.model.parameters() if p.requires_grad]
    return 2 * (copies * weights + sum(p.numel() * 4 * (3 if p.dtype in HALF else 2) for p in trained))


def _write(
    fit: Fit, tokenizer: Any, directory: Path, curve: Path, source: Path | None, beside: Published | None
) -> None:
    model = fit.model.eval()
    model.to("cpu")
    probe = probe_batch(model.config.vocab_size, fit.causal)
    with torch.no_grad():
        logits = model(**probe).logits
    own, taught = model.generation_config.eos_token_id, tokenizer.eos_token_id
    if taught not in (ends := own if isinstance(own, list) else [own] * (own is not None)):
        model.generation_config.eos_token_id = [*ends, taught] if ends else taught
    for name, value in model.named_parameters():  # Switch has cast its routers to float32
        value.data = value.data.to(fit.precision[name])
    written = save_model(model, tokenizer, directory, source, beside)
    verify_checkpoint(directory, written, probe, logits)
    # Plots need the same columns in every row.
    columns = dict.fromkeys(name for row in fit.curve for name in row)
    write_json(curve, [{name: row.get(name) for name in columns} for row in fit.curve])
