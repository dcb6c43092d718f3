"""Verifying a written checkpoint: check its inventory, reload it here, and reload it without this package."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsmoe.checkpoint.companions import own_code
from mcsmoe.checkpoint.fresh import Fresh, load_fresh
from mcsmoe.checkpoint.lockstep import logits_of
from mcsmoe.checkpoint.output import sync
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.save import check_held
from mcsmoe.checkpoint.streamed import blocks_of, fits, load_fitting
from mcsmoe.checkpoint.writer import Written, content_hash, differing
from mcsmoe.errors import CheckpointError
from mcsmoe.families import contents, family_of, merged_layers, skeleton
from mcsmoe.progress import progress

BATCH, SOURCE, TARGET = 4, 16, 8


def probe_batch(vocab_size: int, causal: bool) -> dict[str, Tensor]:
    """The probe: seeded random token ids [4, 16] with padding, and decoder ids [4, 8] unless the model is causal."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SOURCE // 2, SOURCE + 1, (BATCH, 1), generator=generator)
    batch = {
        "input_ids": torch.randint(vocab_size, (BATCH, SOURCE), generator=generator),
        "attention_mask": (torch.arange(SOURCE) < lengths).long(),
    }
    target = torch.randint(vocab_size, (BATCH, TARGET), generator=generator)
    return batch if causal else batch | {"decoder_input_ids": target}


def verify_checkpoint(
    directory: Path,
    written: Written,
    probe: Mapping[str, Tensor],
    expected_logits: Tensor | None,
    memory_limit: int | None = None,
) -> Tensor:
    """Check that `directory` holds a complete model that loads everywhere and computes the same logits.

    1. Names, shapes and dtypes are those of the class in its config.json, and all values are finite and equal to what
       was `written`, including weights that no token of the probe reaches.
    2. It reloads here with the values of its files; if `expected_logits` are given, its logits on the batch `probe`
       equal them bit by bit.
    3. If its class is ours, it reloads by remote code in a fresh process, which has neither this package nor a
       network, with the same logits.

    A large model (see `load_fitting`) is read block by block here. So that it is loaded in the ordinary way, too, the
    fresh process then also loads a stock class, and has the same tensors; of a model that does not fit into
    `memory_limit` bytes, it keeps the blocks on the disk. Without such a limit, both work at the same time.
    Returns the logits on the probe. Raises `CheckpointError` naming the first difference.
    """
    checkpoint = Checkpoint(directory)
    check_inventory(checkpoint, written)
    model = load_fitting(checkpoint.directory, memory_limit)
    ours = model.is_remote_code()
    with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(1) as writing:
        for file in checkpoint.files:  # the disk, too, can be at work meanwhile
            writing.submit(sync, file)
        needed = ours or blocks_of(model) is not None
        fresh = beside.submit(_load_fresh, checkpoint, probe, memory_limit) if needed else None
        if fresh is not None and memory_limit is not None:
            wait([fresh])
        logits, hashes = _compare(model, checkpoint, written, probe)
    if expected_logits is not None:
        _check_equal(logits, expected_logits, f"{directory}: reloaded")
    if fresh is not None:
        _check_hashes(checkpoint, fresh.result(), hashes)
        what = f"{directory}: reloaded by remote code" if ours else f"{directory}: reloaded anew"
        _check_equal(fresh.result().logits, logits, what)
    return logits


def verify_stock(
    directory: Path, written: Written, probe: Mapping[str, Tensor], memory_limit: int | None = None
) -> None:
    """Check that `directory` holds a complete stock model that transformers alone can load and run.

    Names, shapes, dtypes and values are checked on disk and after reloading, within `memory_limit` bytes, as in
    `verify_checkpoint`. Logits on the batch `probe` must be finite in a fresh process, which has neither this package
    nor a network. Raises `CheckpointError` naming the first difference.
    """
    checkpoint = Checkpoint(directory)
    check_inventory(checkpoint, written)
    hashes = _compare(load_fitting(directory, memory_limit), checkpoint, written, None).hashes
    fresh = _load_fresh(checkpoint, probe, memory_limit)
    _check_hashes(checkpoint, fresh, hashes)
    if not fresh.logits.isfinite().all():
        raise CheckpointError(f"{directory}: logits in a fresh process are not finite")


def _load_fresh(checkpoint: Checkpoint, probe: Mapping[str, Tensor], memory_limit: int | None) -> Fresh:
    ours, offloaded = bool(own_code(checkpoint.config)), not fits(checkpoint.directory, memory_limit)
    return load_fresh(checkpoint, probe, remote_code=ours, offloaded=offloaded)


def _check_hashes(checkpoint: Checkpoint, fresh: Fresh, hashes: Mapping[str, str]) -> None:
    differing = sorted(name for name, _ in fresh.hashes.items() ^ hashes.items())
    if differing:
        raise CheckpointError(f"{checkpoint.directory}: in a fresh process, {differing[0]} has other values")


class _Compared(NamedTuple):
    """Logits on the probe (empty without one), and the content hash of every tensor by its name in memory."""

    logits: Tensor
    hashes: dict[str, str]


def _compare(model: Any, checkpoint: Checkpoint, written: Written, probe: Mapping[str, Tensor] | None) -> _Compared:
    """Compare a loaded model with its checkpoint, tensor by tensor; of a streamed one, when a block is read to run."""
    hashes: dict[str, str] = {}

    def look(model: Any, block: str) -> None:
        within = f"{block}." if block else ""
        check_held(model, checkpoint, written, within)
        held = model.get_submodule(block).state_dict().items()
        hashes.update({f"{within}{name}": content_hash(value) for name, value in held if not value.is_meta})

    look(model, "")
    if blocks := blocks_of(model):
        blocks.look = look
    if probe is not None:
        return _Compared(logits_of(model, probe), hashes)
    if blocks:
        with blocks.reusing():
            for block in blocks.names:
                with blocks.loaded(block):
                    pass
    return _Compared(torch.empty(0), hashes)


def check_inventory(checkpoint: Checkpoint, written: Written) -> None:
    """Compare names, shapes and dtypes with a skeleton of the class, and every value with its hash in `written`.

    Reads each tensor once. `written` may be empty or cover only some tensors; every tensor in it must be on disk, and
    others must be finite. Raises `CheckpointError` naming the first difference.
    """
    check_headers(checkpoint, written, as_stored=True)
    for name in progress(checkpoint.names(), "check tensors", late=True):
        value = checkpoint.stored(name) if name in written else checkpoint.tensor(name)
        found = differing(written, name, value)
        if found:
            raise CheckpointError(f"{checkpoint.directory}: {found} is not what was written")


def check_headers(checkpoint: Checkpoint, written: Collection[str] = (), *, as_stored: bool = False) -> None:
    """Compare names, shapes and dtypes with a skeleton of the class; tensors in `written` must be there, too.

    Dtypes are those with which tensors are read, or, `as_stored`, those in the files. Layers for multi-token prediction
    may be there. Reads no tensor. Raises `CheckpointError` naming the first
    difference.
    """
    try:
        expected, tied, precision = _expected_tensors(checkpoint.config)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = f"{checkpoint.directory}: config.json describes no model that can be built: {error!r}"
        raise CheckpointError(message) from error
    missing = (expected.keys() - tied | set(written)) - set(checkpoint.names())
    if missing:
        raise CheckpointError(f"{checkpoint.directory}: {len(missing)} missing tensors, the first is {min(missing)}")
    unused = contents(checkpoint.config, checkpoint.names(), checkpoint.directory).unused
    if unused:
        raise CheckpointError(f"{checkpoint.directory}: {len(unused)} unexpected tensors, the first is {unused[0]}")
    for name in (name for name in checkpoint.names() if name in expected):
        shape = checkpoint.shape(name)
        dtype = checkpoint.stored_dtype(name) if as_stored else checkpoint.dtype(name)
        if shape != tuple(expected[name].shape):
            wanted = list(expected[name].shape)
            raise CheckpointError(f"{checkpoint.directory}: {name} has shape {list(shape)}, not {wanted}")
        wanted_dtype = expected[name].dtype
        # In a model of lower precision routers may be saved as float32, whatever dtype the class gives them.
        allowed = {wanted_dtype, torch.float32, precision} if wanted_dtype.is_floating_point else {wanted_dtype}
        if dtype not in allowed:
            raise CheckpointError(f"{checkpoint.directory}: {name} is {dtype}, not {wanted_dtype}")


def _expected_tensors(config: dict[str, Any]) -> tuple[dict[str, Tensor], set[str], torch.dtype]:
    """The tensors a checkpoint should have, those of them that are tied and may be absent, and the model's dtype.

    Tensors are on the meta device, by their names on disk.
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
    on_disk = {new: old for old, new in family.outside(config).items()}
    others = {on_disk.get(name, name): value for name, value in loaded.items() if name not in held}
    return experts | others, {on_disk.get(name, name) for name in tied}, precision


def _check_equal(found: Tensor, expected: Tensor, what: str) -> None:
    if found.shape != expected.shape:
        raise CheckpointError(f"{what}: logits have shape {list(found.shape)}, not {list(expected.shape)}")
    if not torch.equal(found, expected):
        change = (found.double() - expected.double()).abs().max().item()
        raise CheckpointError(f"{what}: logits differ from the model that was saved, by up to {change:.3g}")
