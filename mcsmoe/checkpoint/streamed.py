"""Models with one block in memory at a time, so that one larger than memory can still run.

Blocks are the repeated modules that contain the sparse layers, and their dense neighbours ("model.layers.3")."""

import ctypes
import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.checkpoint.load import compute_in, load_config, load_model
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import Family, MoELayer, contents, empty_model, family_of, merged_layers, skeleton

LARGE = 2**16
"""Allocations from this size in bytes on are mapped separately by the operating system."""
MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD in malloc.h."""


def return_freed_memory() -> None:
    """Make this process return allocations of `LARGE` bytes or more to the system as soon as they are freed.

    Only glibc has this setting. By default it raises the threshold to the largest allocation freed so far, up to
    32 MB: weights below that would share the heap with longer-lived data, and the heap would grow with every layer.
    So would hidden states, of which a batch of one row has less than 1 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


ATTRIBUTE = "streamed_blocks"
"""The attribute in which a streamed model keeps its `Blocks`."""


class Blocks:
    """The blocks of `model` by module path, in forward order; a block has memory only between `load` and `free`."""

    def __init__(self, model: nn.Module, names: list[str], weights: "Weights", device: torch.device) -> None:
        self.device = device
        self.look: Callable[[nn.Module, str], None] = lambda model, block: None
        """Called with the model and the name of each block that `loaded` has loaded."""
        self._spare: dict[str, Tensor] | None = None
        self._model: Any = weakref.proxy(model)  # a cycle would keep the weights until garbage is collected
        self._weights = weights
        self._empty = {
            name: {key: value.to("meta") for key, value in _named(model.get_submodule(name)).items()} for name in names
        }
        for name in names:
            self.free(name)  # saved buffers have values until here

    @property
    def names(self) -> list[str]:
        """Module paths of all blocks, in forward order."""
        return list(self._empty)

    def load(self, block: str) -> None:
        """Read the weights of one block, with the values that `load_model` gives.

        Raises `CheckpointError` for a tensor that is missing, damaged or of the wrong shape.
        """
        from mcsmoe.modeling.aligned_mcsmoe import align_weights

        module = self._model.get_submodule(block)
        for name, empty in self._empty[block].items():
            spare = self._spare.pop(name, None) if self._spare else None
            _put(module, name, self._weights.read(f"{block}.{name}", empty, spare).to(self.device))
        module.to(self.device)  # also the buffers that are not in the checkpoint
        align_weights(module)

    def free(self, block: str) -> None:
        """Free the memory of one block; `reusing` memory, its stacks of experts stay for the next block."""
        module = self._model.get_submodule(block)
        if self._spare is not None and self.device.type == "cpu":
            values = _named(module)
            self._spare |= {name: values[name].detach() for name in values if self._weights.stacks(f"{block}.{name}")}
        for name, empty in self._empty[block].items():
            _put(module, name, empty)

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """Context manager in which a block takes the memory of the one before, so that it need not be mapped anew.

        Mapping takes longer than reading. Here memory is not free between two blocks.
        """
        self._spare = {}
        try:
            yield
        finally:
            self._spare = None

    @contextmanager
    def loaded(self, block: str) -> Iterator[None]:
        """Context manager that loads a block and frees it at the end. Raises as `load` does."""
        try:
            self.load(block)
            self.look(self._model, block)
            yield
        finally:
            self.free(block)


class Weights:
    """The tensors of a loaded model by their names in memory, read from a checkpoint in its own layout."""

    def __init__(self, source: Checkpoint, family: Family, model: Any, dtype: torch.dtype) -> None:
        self._source = source
        self._held: dict[str, list[tuple[MoELayer, int, str]]] = defaultdict(list)
        """Tensor in memory → the expert tensors it holds: (layer, expert, name in the layout)."""
        for layer in family.layers(model.config) if merged_layers(model.config) is None else ():
            for e in range(layer.experts):
                for name, place in layer.in_memory.items():
                    self._held[place.name(e)].append((layer, e, name))
        found = contents(model.config, source.names(), source.directory)
        self._others = {new: old for old, new in found.in_memory.items()}
        self._dtypes = model._get_dtype_plan(dtype)

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._others

    def stacks(self, name: str) -> bool:
        """Whether tensor `name` is made of those of several experts, in memory of its own."""
        return any(layer.in_memory[kind].stacked for layer, _, kind in self._held.get(name, []))

    def read(self, name: str, empty: Tensor, spare: Tensor | None = None) -> Tensor:
        """The value of tensor `name`. Raises `CheckpointError` if it is missing or not of the shape of `empty`.

        A stack of experts is written over `spare`, if that has its dtype and shape.
        """
        kept = (wanted for pattern, wanted in self._dtypes.items() if re.search(pattern, name))
        dtype = next(kept, empty.dtype)
        value = self._read(name, empty, dtype if empty.is_floating_point() else empty.dtype, spare)
        if value.shape != empty.shape:
            found, wanted = list(value.shape), list(empty.shape)
            raise CheckpointError(f"{self._source.directory}: {name} has shape {found}, not {wanted}")
        return value

    def _read(self, name: str, empty: Tensor, dtype: torch.dtype, spare: Tensor | None) -> Tensor:
        held = self._held.get(name)
        if held is None:
            if name not in self._others:
                raise CheckpointError(f"{self._source.directory}: no tensor {name}; is it a whole checkpoint?")
            return self._source.tensor(self._others[name]).to(dtype)
        layer, expert, kind = held[0]
        if not layer.in_memory[kind].stacked:
            return layer.read(self._source, expert, kind).to(dtype)
        again = spare is not None and spare.shape == empty.shape and spare.dtype == dtype
        stack = spare if spare is not None and again else torch.empty(empty.shape, dtype=dtype)
        for layer, expert, kind in held:
            place = layer.in_memory[kind]
            place.view(place.share(stack, expert)).copy_(layer.read(self._source, expert, kind))
        return stack


def load_streamed(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """Load the model of a directory in eval mode, on `device`, with everything but its blocks in memory.

    The caller loads each block when it is needed: see `mcsmoe.checkpoint.lockstep`. `dtype` defaults to the
    checkpoint's. Peak memory here is the size of what lies outside the blocks. Also calls `return_freed_memory` for
    this process. Raises `CheckpointError` as `load_model` does; faults in a block's weights show when the block is
    loaded.
    """
    from mcsmoe.modeling.aligned_mcsmoe import align_weights

    return_freed_memory()
    config, source = load_config(directory), Published(Checkpoint(directory))
    family, dtype = family_of(config), dtype or config.dtype or torch.float32
    model = empty_model(config, dtype)
    weights = Weights(source, family, model, dtype)
    blocks = Blocks(model, block_names(model, family.layers(config)), weights, torch.device(device))
    inside = tuple(f"{name}." for name in blocks.names)
    named = _named(model)
    for name, empty in named.items():
        if name not in weights and name not in model.all_tied_weights_keys:
            raise CheckpointError(f"{directory}: no tensor {name}; is it a whole checkpoint?")
        if name in weights and not name.startswith(inside):
            _put(model, name, weights.read(name, empty).to(device))
    model.tie_weights()
    for name, value in list(model.named_buffers()):
        if not name.startswith(inside):
            _put(model, name, value.to(device))
    align_weights(model)
    compute_in(model, dtype)
    setattr(model, ATTRIBUTE, blocks)
    return model.eval()


AT_ONCE = 10**9
"""Bytes. For a single forward pass, a model that needs more is read block by block, which takes no longer."""


def load_fitting(directory: Path, memory_limit: int | None, dtype: torch.dtype | None = None) -> Any:
    """Load a model for one forward pass, as `load_model` does, or `load_streamed` if it is large.

    It is if it does not fit (see `fits`) into `memory_limit` and `AT_ONCE` bytes. Raises `CheckpointError` as they do.
    """
    load = load_model if fits(directory, min(AT_ONCE, memory_limit or AT_ONCE), dtype) else load_streamed
    return load(directory, dtype=dtype)


def fits(directory: Path, memory_limit: int | None, dtype: torch.dtype | None = None) -> bool:
    """Whether the model of a directory needs at most `memory_limit` bytes, or there is no limit.

    Weights count, and the largest tensor again, because reading may copy it.
    """
    if memory_limit is None:
        return True
    config = load_config(directory)
    weights, own = Footprint.of(config), config.dtype or torch.float32
    return (weights.whole + weights.tensor) * (dtype or own).itemsize // own.itemsize <= memory_limit


def blocks_of(model: nn.Module) -> Blocks | None:
    """The blocks of a streamed model; None if the model is whole in memory."""
    return getattr(model, ATTRIBUTE, None)


def device_of(model: nn.Module) -> torch.device:
    """The device on which the model runs."""
    blocks = blocks_of(model)
    return blocks.device if blocks else next(model.parameters()).device


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's weights: in total, outside the blocks, in its largest block and in its largest tensor."""

    whole: int
    resident: int
    block: int
    tensor: int

    @classmethod
    def of(cls, config: Any) -> "Footprint":
        """The footprint of a configuration, without weights. A model without sparse layers counts as one block."""
        model = skeleton(config)
        unique = {id(value): (name, value.nbytes) for name, value in _named(model).items()}  # some are tied
        sizes = dict(unique.values())
        blocks = [f"{name}." for name in block_names(model, family_of(config).layers(config))] or [""]
        inside = [sum(size for name, size in sizes.items() if name.startswith(block)) for block in blocks]
        return cls(sum(sizes.values()), sum(sizes.values()) - sum(inside), max(inside), max(sizes.values()))


def block_names(model: nn.Module, layers: list[MoELayer]) -> list[str]:
    """Module paths of all blocks, in order of the forward pass."""
    lists = dict.fromkeys(re.split(r"\.\d+\.", layer.path)[0] for layer in layers)
    return [f"{each}.{name}" for each in lists for name, _ in model.get_submodule(each).named_children()]


def _named(module: nn.Module) -> Mapping[str, Tensor]:
    """All parameters, and the buffers that are saved in checkpoints."""
    return module.state_dict(keep_vars=True)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner._parameters.get(leaf)
    # Keep requires_grad: torch chooses kernels by it, and so it decides the last bits of results.
    setattr(owner, leaf, value if old is None else nn.Parameter(value, old.requires_grad))
