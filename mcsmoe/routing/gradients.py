"""Gradients of the task loss for each expert, summed over calibration, and the Fisher information of its weights."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcsmoe.architectures.layer import Expert, MoELayer
from mcsmoe.errors import CheckpointError

GRADIENTS = "gradients.safetensors"
KINDS = {"gradients": ("gradient", "fisher"), "exact-fisher": ("exact-fisher",)}
"""What each entry of `collect.also` writes."""


class Gradients:
    """Lazy reading of what collect wrote, expert by expert.

    Each kind (`gradient`, `fisher`, `exact-fisher`) has one tensor for every tensor of every expert, of the
    same shape. Raises `CheckpointError` where a kind was not collected.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / GRADIENTS

    @staticmethod
    def key(kind: str, layer: str, expert: int, name: str) -> str:
        """The name of one tensor in the file; those of one layer lie together."""
        return f"{layer}/{kind}/{expert}/{name}"

    def tensor(self, kind: str, layer: MoELayer, expert: int, name: str) -> Tensor:
        """One kind for one tensor of one expert."""
        try:
            with safe_open(self._file, "pt") as file:
                value: Tensor = file.get_tensor(self.key(kind, layer.name, expert, name))
        except (SafetensorError, OSError):
            entry = next(entry for entry, kinds in KINDS.items() if kind in kinds)
            raise CheckpointError(
                f"{self._file}: no {kind} of {layer.name}; collect.also must list {entry!r}"
            ) from None
        return value

    def read(self, kind: str, layer: MoELayer, expert: int) -> Expert:
        """One kind for one expert, by the names of its layout."""
        return {name: self.tensor(kind, layer, expert, name) for name in layer.layout}
