"""A checkpoint is done when it was verified: inventory, reload here, reload without this package."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsmoe.checkpoint.load import load_model, offloading
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.save import check_held
from mcsmoe.checkpoint.writer import Written, differing
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of, merged_layers, skeleton
from mcsmoe.progress import progress

BATCH, SOURCE, TARGET = 4, 16, 8


def probe_batch(vocab_size: int, causal: bool) -> dict[str, Tensor]:
    """Seeded random token ids with some padding; a sequence-to-sequence model gets ids for its decoder, too."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SOURCE // 2, SOURCE + 1, (BATCH, 1), generator=generator)
    batch = {
        "input_ids": torch.randint(vocab_size, (BATCH, SOURCE), generator=generator),
        "attention_mask": (torch.arange(SOURCE) < lengths).long(),
    }
    target = torch.randint(vocab_size, (BATCH, TARGET), generator=generator)
    return batch if causal else batch | {"decoder_input_ids": target}


FRESH_PROCESS = """
import json, sys
sys.modules["mcsmoe"] = None  # whoever loads the checkpoint does not have this package
import torch, transformers
from safetensors.torch import load_file, save_file
directory, probe, result, threads, auto_class, remote_code, offload = sys.argv[1:]
torch.set_num_threads(int(threads))
transformers.logging.set_verbosity_error()
model, report = getattr(transformers, auto_class).from_pretrained(
    directory, trust_remote_code=remote_code == "remote", local_files_only=True, output_loading_info=True,
    **json.loads(offload))
bad = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
if bad:
    sys.exit(f"loading report: {bad}")
with torch.no_grad():
    save_file({"logits": model.eval()(**load_file(probe)).logits.contiguous()}, result)
"""


def verify_checkpoint(
    directory: Path,
    written: Written,
    probe: Mapping[str, Tensor],
    expected_logits: Tensor | None,
    memory_limit: int | None = None,
) -> None:
    """Check that `directory` holds a whole model that loads everywhere and computes the same.

    1. Names, shapes and dtypes are those of the class that its config.json names, all values finite and those that
       were `written`, whether a token of any batch comes by or not.
    2. It reloads here, each tensor with the values in its file; its logits on the batch `probe` equal
       `expected_logits` bit by bit, where given.
    3. Where the class is ours, it reloads by remote code in a fresh process, without this package or a
       network, with the same logits.

    One model is in memory at a time; one that is larger than `memory_limit` bytes is read from the disk as it runs.
    Raises `CheckpointError` naming the first difference.
    """
    directory = Path(directory)
    checkpoint = Checkpoint(directory)
    check_inventory(checkpoint, written)
    with _reloaded(checkpoint, memory_limit) as model:
        with torch.no_grad():
            logits = model(**probe).logits
        ours = model.is_remote_code()
        del model
    if expected_logits is not None:
        _check_equal(logits, expected_logits, f"{directory}: reloaded")
    if ours:
        fresh = _logits_in_fresh_process(checkpoint, probe, "remote", memory_limit)
        _check_equal(fresh, logits, f"{directory}: reloaded by remote code")


def verify_stock(
    directory: Path, written: Written, probe: Mapping[str, Tensor], memory_limit: int | None = None
) -> None:
    """Check that `directory` holds a whole stock model, and that transformers alone can load and run it.

    Names, shapes, dtypes and values as above, on the disk and reloaded here; the logits on the batch `probe` in a
    fresh process without this package or a network are finite. `memory_limit` as above.
    Raises `CheckpointError` naming the first difference.
    """
    checkpoint = Checkpoint(directory)
    check_inventory(checkpoint, written)
    with _reloaded(checkpoint, memory_limit):
        pass
    # Code lies beside models of ours only; any other is not run.
    code = "remote" if any(directory.glob("*.py")) else "stock"
    logits = _logits_in_fresh_process(checkpoint, probe, code, memory_limit)
    if not logits.isfinite().all():
        raise CheckpointError(f"{directory}: logits in a fresh process are not finite")


@contextmanager
def _reloaded(checkpoint: Checkpoint, memory_limit: int | None) -> Iterator[Any]:
    """The model of a checkpoint, compared with it tensor by tensor."""
    with tempfile.TemporaryDirectory() as scratch:
        offload = offloading(checkpoint.size_bytes, memory_limit, scratch)
        model = load_model(checkpoint.directory, offload=offload)
        check_held(model, checkpoint)
        yield model
        del model


def check_inventory(checkpoint: Checkpoint, written: Written) -> None:
    """Compare names, shapes and dtypes with the class built on no memory, and every value with what was `written`.

    Reads each tensor once. Nothing need be known of the values; of tensors that `written` names, all are to be there.
    """
    try:
        expected, tied, precision = _expected_tensors(checkpoint.config, checkpoint.names())
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = f"{checkpoint.directory}: config.json describes no model that can be built: {error!r}"
        raise CheckpointError(message) from error
    names = set(checkpoint.names())
    missing = (expected.keys() - tied | written.keys()) - names
    for kind, difference in (("missing", missing), ("unexpected", names - expected.keys())):
        if difference:
            count, first = len(difference), min(difference)
            raise CheckpointError(f"{checkpoint.directory}: {count} {kind} tensors, the first is {first}")
    for name in progress(checkpoint.names(), "check tensors", late=True):
        shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
        if shape != tuple(expected[name].shape):
            wanted = list(expected[name].shape)
            raise CheckpointError(f"{checkpoint.directory}: {name} has shape {list(shape)}, not {wanted}")
        wanted_dtype = expected[name].dtype
        # In a model of lower precision routers may be float32, whatever the class makes of them.
        allowed = {wanted_dtype, torch.float32, precision} if wanted_dtype.is_floating_point else {wanted_dtype}
        if dtype not in allowed:
            raise CheckpointError(f"{checkpoint.directory}: {name} is {dtype}, not {wanted_dtype}")
        found = differing(written, name, checkpoint.tensor(name))
        if found:
            raise CheckpointError(f"{checkpoint.directory}: {found} is not what was written")


def _expected_tensors(
    config: dict[str, Any], names: Collection[str]
) -> tuple[dict[str, Tensor], set[str], torch.dtype]:
    """Tensors by their names on disk, without memory, which need not be there as they are tied, and the model's dtype.

    `names` are those of the checkpoint.
    """
    family, model = family_of(config), skeleton(config)
    precision: torch.dtype = model.config.dtype
    loaded: dict[str, Tensor] = dict(model.state_dict())
    tied: set[str] = set(getattr(model, "all_tied_weights_keys", {}))
    if merged_layers(config) is not None:
        return loaded, tied, precision  # a merged model has the same names in memory
    experts: dict[str, Tensor] = {}
    held: set[str] = set()
    for layer in family.layers(config):
        for name, place in layer.places.items():
            for e in range(layer.experts):
                share = layer.in_memory[name]
                held.add(share.name(e))
                whole = loaded[share.name(e)]
                experts[place.name(e)] = whole if place.stacked else share.view(whole[e] if share.stacked else whole)
    inside = [name for name in names if name not in experts]
    on_disk: dict[str, str] = {new: old for old, new in family.merged_names(config, inside).items()}
    others = {on_disk.get(name, name): value for name, value in loaded.items() if name not in held}
    return experts | others, {on_disk.get(name, name) for name in tied}, precision


def _logits_in_fresh_process(
    checkpoint: Checkpoint, probe: Mapping[str, Tensor], code: str, memory_limit: int | None
) -> Tensor:
    directory = checkpoint.directory
    with tempfile.TemporaryDirectory() as scratch:
        batch, result = Path(scratch) / "probe.safetensors", Path(scratch) / "result.safetensors"
        save_file({name: value.contiguous() for name, value in probe.items()}, batch)
        # Modules are cached under a scratch home, so that no older remote code answers.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        arguments = [
            str(directory.resolve()),
            str(batch),
            str(result),
            str(torch.get_num_threads()),
            family_of(checkpoint.config).auto_class,
            code,
            json.dumps(offloading(checkpoint.size_bytes, memory_limit, scratch)),
        ]
        run = subprocess.run(
            [sys.executable, "-I", "-c", FRESH_PROCESS, *arguments],
            env=environment,
            cwd=scratch,
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"{directory}: does not load in a fresh process: {last}")
        return load_file(result)["logits"]


def _check_equal(found: Tensor, expected: Tensor, what: str) -> None:
    if found.shape != expected.shape:
        raise CheckpointError(f"{what}: logits have shape {list(found.shape)}, not {list(expected.shape)}")
    if not torch.equal(found, expected):
        change = (found.double() - expected.double()).abs().max().item()
        raise CheckpointError(f"{what}: logits differ from the model that was saved, by up to {change:.3g}")
