"""A checkpoint under the names that its family publishes, whatever its files call their tensors."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.families import MoELayer, contents
from mcsmoe.families.experts import Share, expert_shares, share_in_memory, share_shape


class Published(Checkpoint):
    """A view of `files`, a stock or merged checkpoint, that has the model's tensors under their published names.

    transformers 5 can also save them as it has them in memory: a Mixtral with `mlp.experts.gate_up_proj` [E, 2f, d]
    is read here as one with `block_sparse_moe.experts.0.w1.weight` [f, d] and so on; only what is asked for is read.

    Layers for multi-token prediction stay if `keep_mtp` is true: `mtp` names their tensors. `left_out` names those
    that are in the files and not here. Raises `CheckpointError` for a tensor that is none of the model's, and of no
    kind that can be left out.
    """

    def __init__(self, files: Checkpoint, *, keep_mtp: bool = True) -> None:
        self._files = files
        found = contents(files.config, files.names(), files.directory)
        self.mtp = found.mtp if keep_mtp else []
        self.left_out = found.unused if keep_mtp else [*found.mtp, *found.unused]
        self._renamed = found.renamed
        self._made: dict[str, list[tuple[MoELayer, Share]]] = defaultdict(list)
        for layer in found.fused:
            for share in expert_shares(layer, layer.experts):
                self._made[share.tensor].append((layer, share))
        fused = {place.name(0) for layer in found.fused for place in layer.in_memory.values()}
        gone = fused | {*self.left_out} | {*self._renamed.values()}
        self._names = sorted({*files.names()} - gone | self._renamed.keys() | self._made.keys())

    def __getattr__(self, name: str) -> Any:
        """Whatever else the files have: `directory`, `config` and so on."""
        return getattr(self._files, name)

    @property
    def as_in_files(self) -> bool:
        """Whether the files have these very names and no others."""
        return not (self.left_out or self._renamed or self._made)

    def tell(self) -> None:
        """Print one line about what is left out, if anything is."""
        if self.left_out:
            count, first = len(self.left_out), self.left_out[0]
            print(f"{self.directory}: {count} tensors that the model does not use are left out, such as {first}")

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        made = self._made.get(name)
        if made is None:
            return self._files.shape(self._renamed.get(name, name))
        layer, share = made[0]
        first, *rest = share_shape(layer, share.names)
        if share.entry is None:
            return (first, *rest)
        return (len(made), first, *rest) if isinstance(share.entry, int) else (len(made) * first, *rest)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor."""
        made = self._made.get(name)
        if made is None:
            return self._files.dtype(self._renamed.get(name, name))
        layer, share = made[0]
        return self._files.dtype(layer.in_memory[share.names[0]].name(share.expert))

    def stored_dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor on disk."""
        return self.dtype(name) if name in self._made else self._files.stored_dtype(self._renamed.get(name, name))

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises `CheckpointError` for NaN or infinity."""
        made = self._made.get(name)
        if made is None:
            return self._files.tensor(self._renamed.get(name, name))
        shares = [share_in_memory(layer, share.names, self._files, share.expert) for layer, share in made]
        if made[0][1].entry is None:
            return shares[0]
        return torch.stack(shares) if isinstance(made[0][1].entry, int) else torch.cat(shares)

    def part(self, name: str, index: int | slice) -> Tensor:
        """The entry or slice `index` along the first axis of one tensor; nothing else is read. Raises as `tensor`."""
        made = self._made.get(name)
        if made is None:
            return self._files.part(self._renamed.get(name, name), index)
        found = next(((layer, share) for layer, share in made if share.entry == index), None)
        if found is None:
            return self.tensor(name)[index]
        layer, share = found
        return share_in_memory(layer, share.names, self._files, share.expert)


def tensor_names(directory: Path) -> list[str]:
    """Names of all tensors by the index or the header of the weights; none if neither is there, as in `.bin` files."""
    if (directory / INDEX).is_file() and not (directory / WEIGHTS).is_file():
        return sorted(read_json(directory / INDEX)["weight_map"])
    return Checkpoint(directory).names() if (directory / WEIGHTS).is_file() else []
