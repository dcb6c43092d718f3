"""A stock model of which one block at a time is in memory: what does not fit whole can still be run.

Blocks are what a model repeats: the modules beside those that hold its sparse layers ("model.layers.3")."""

import ctypes
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.checkpoint.load import load_config
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import Family, MoELayer, empty_model, family_of, skeleton

LARGE = 2**20
"""Bytes from which a block of memory is the system's own."""
MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD in malloc.h."""


def return_freed_memory() -> None:
    """Have this process give each block of `LARGE` bytes or more back to the system as soon as it is freed.

    glibc, which alone has this setting, otherwise moves the limit up to the largest block that was freed, at most
    32 MB: weights below that come to lie among what lives longer, and the heap grows with every layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE)


ATTRIBUTE = "streamed_blocks"
"""Where a model that is streamed keeps its `Blocks`."""


class Blocks:
    """The blocks of `model`, by module path in its order; each is without memory until `load`, and after `free`."""

    def __init__(self, model: nn.Module, names: list[str], weights: "Weights", device: torch.device) -> None:
        self.device = device
        self._model, self._weights = model, weights
        self._empty = {name: _named(model.get_submodule(name)) for name in names}

    @property
    def names(self) -> list[str]:
        """Module paths."""
        return list(self._empty)

    def load(self, block: str) -> None:
        """Read the weights of one block, as `load_model` would have them. Raises `CheckpointError`."""
        from mcsmoe.modeling.aligned_mcsmoe import align_weights

        module = self._model.get_submodule(block)
        for name, empty in self._empty[block].items():
            _put(module, name, self._weights.read(f"{block}.{name}", empty).to(self.device))
        module.to(self.device)  # what is computed from the configuration
        align_weights(module)

    def free(self, block: str) -> None:
        """Give the memory of one block back."""
        for name, empty in self._empty[block].items():
            _put(self._model.get_submodule(block), name, empty)


class Weights:
    """What a stock checkpoint has for each tensor that the loaded model has in memory."""

    def __init__(self, source: Checkpoint, family: Family, model: Any, dtype: torch.dtype) -> None:
        self._source, config = source, model.config
        self._held: dict[str, list[tuple[MoELayer, int, str]]] = defaultdict(list)
        """What each tensor in memory holds of which expert."""
        on_disk = set()
        for layer in family.layers(config):
            for e in range(layer.experts):
                for name, place in layer.in_memory.items():
                    self._held[place.name(e)].append((layer, e, name))
                    on_disk.add(layer.places[name].name(e))
        others = family.merged_names(config, [name for name in source.names() if name not in on_disk])
        self._others = {new: old for old, new in others.items()}
        self._dtypes = model._get_dtype_plan(dtype)

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._others

    def read(self, name: str, empty: Tensor) -> Tensor:
        """The value of tensor `name`, in the shape of `empty`. Raises `CheckpointError`."""
        dtype = next((wanted for part, wanted in self._dtypes.items() if part in name), empty.dtype)
        value = self._read(name, empty, dtype if empty.is_floating_point() else empty.dtype)
        if value.shape != empty.shape:
            found, wanted = list(value.shape), list(empty.shape)
            raise CheckpointError(f"{self._source.directory}: {name} has shape {found}, not {wanted}")
        return value

    def _read(self, name: str, empty: Tensor, dtype: torch.dtype) -> Tensor:
        held = self._held.get(name)
        if held is None:
            if name not in self._others:
                raise CheckpointError(f"{self._source.directory}: no tensor {name}; is it a whole checkpoint?")
            return self._source.tensor(self._others[name]).to(dtype)
        layer, expert, kind = held[0]
        if not layer.in_memory[kind].stacked:
            return layer.read(self._source, expert, kind).to(dtype)
        stack = torch.empty(empty.shape, dtype=dtype)
        for layer, expert, kind in held:
            place = layer.in_memory[kind]
            place.view(place.share(stack, expert)).copy_(layer.read(self._source, expert, kind))
        return stack


def load_streamed(directory: Path, device: torch.device | str = "cpu") -> Any:
    """The stock model of a directory, everything but its blocks in memory on `device`; eval mode.

    Whoever runs it loads each block when it is needed: see `mcsmoe.calibration.lockstep`. Peak memory here is what is
    outside the blocks; from now on this process keeps no large memory that it frees. Raises `CheckpointError` as
    `load_model` does; of the weights of a block, when it is loaded.
    """
    from mcsmoe.modeling.aligned_mcsmoe import align_weights

    return_freed_memory()
    config, source = load_config(directory), Checkpoint(directory)
    family, dtype = family_of(config), _dtype(config, source)
    model = empty_model(config, dtype)
    weights = Weights(source, family, model, dtype)
    blocks = Blocks(model, block_names(model, family.layers(config)), weights, torch.device(device))
    inside = tuple(f"{name}." for name in blocks.names)
    for name, empty in _named(model).items():
        if name not in weights and name not in model.all_tied_weights_keys:
            raise CheckpointError(f"{directory}: no tensor {name}; is it a whole checkpoint?")
        if name in weights and not name.startswith(inside):
            _put(model, name, weights.read(name, empty).to(device))
    model.tie_weights()
    for name, value in list(model.named_buffers()):
        if not name.startswith(inside):
            _put(model, name, value.to(device))
    align_weights(model)
    setattr(model, ATTRIBUTE, blocks)
    return model.eval()


def blocks_of(model: nn.Module) -> Blocks | None:
    """The blocks of a model that is streamed; None for one that is whole in memory."""
    return getattr(model, ATTRIBUTE, None)


def device_of(model: nn.Module) -> torch.device:
    """Where the model runs."""
    blocks = blocks_of(model)
    return blocks.device if blocks else next(model.parameters()).device


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's weights: all of them, those outside the blocks, those of its largest block and tensor."""

    whole: int
    resident: int
    block: int
    tensor: int

    @classmethod
    def of(cls, config: Any) -> "Footprint":
        """That of a configuration; no weights are needed. A model without sparse layers is one block."""
        model = skeleton(config)
        unique = {id(value): (name, value.nbytes) for name, value in _named(model).items()}  # some are tied
        sizes = dict(unique.values())
        blocks = [f"{name}." for name in block_names(model, family_of(config).layers(config))] or [""]
        inside = [sum(size for name, size in sizes.items() if name.startswith(block)) for block in blocks]
        return cls(sum(sizes.values()), sum(sizes.values()) - sum(inside), max(inside), max(sizes.values()))


def block_names(model: nn.Module, layers: list[MoELayer]) -> list[str]:
    """Module paths of all blocks, in the order of the forward pass."""
    lists = dict.fromkeys(re.split(r"\.\d+\.", layer.path)[0] for layer in layers)
    return [f"{each}.{name}" for each in lists for name, _ in model.get_submodule(each).named_children()]


def _dtype(config: Any, source: Checkpoint) -> torch.dtype:
    """What `from_pretrained` decides for: what the configuration says, else the first floating tensor's."""
    found = (source.dtype(name) for name in source.names())
    dtype: torch.dtype = config.dtype or next(dtype for dtype in found if dtype.is_floating_point)
    return dtype


def _named(module: nn.Module) -> Mapping[str, Tensor]:
    """All parameters and the buffers that checkpoints have."""
    return module.state_dict(keep_vars=True)


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner._parameters.get(leaf)
    # Torch chooses kernels, and so the last bits, by whether a weight could be trained.
    setattr(owner, leaf, value if old is None else nn.Parameter(value, old.requires_grad))
