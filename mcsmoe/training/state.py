"""The state of a training on disk, from which an interrupted one goes on to the same bytes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from xxhash import xxh3_128

from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import Piece, TensorSpec, differing, raw
from mcsmoe.distributed import placed, whole
from mcsmoe.tasks.task import Encoded

PROGRESS, TENSORS = "progress", "tensors"
"""Names of the notes: plain values, which name the step, and `STEP.tensors`."""


class Stateful(Protocol):
    """A part of a training that changes from step to step."""

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name; some may be sharded, the others are the same in all processes. Every process calls it."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` returned, gathered and on the CPU; the tensors belong to a file: copy them."""


class Weights:
    """Parameters and buffers of `model`, in place."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def tensors(self) -> dict[str, Tensor]:
        """See `Stateful`."""
        return dict(self._model.state_dict())

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Stateful`."""
        for name, value in self._model.state_dict().items():
            value.copy_(placed(tensors[name], value))


class Best:
    """The weights of `model` with the largest value so far."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights: dict[str, Tensor] = {}
        self.value: tuple[float, ...] | None = None

    def offer(self, value: tuple[float, ...]) -> None:
        """Keep a copy of the weights as they are now if `value` is larger than that of the kept ones."""
        if self.value is None or value > self.value:
            self.value = value
            self._weights = {name: v.detach().clone() for name, v in self._model.state_dict().items()}

    def put_back(self) -> None:
        """Give the model the kept weights, if there are any."""
        if self._weights:
            self._model.load_state_dict(self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """See `Stateful`."""
        return self._weights

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Stateful`."""
        like = self._model.state_dict()
        self._weights = {name: placed(value, like[name]).clone() for name, value in tensors.items()}


class Draws:
    """The states of torch's random number generators in each process."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def tensors(self) -> dict[str, Tensor]:
        """See `Stateful`."""
        states = {"cpu": torch.get_rng_state()}
        device = self._accelerator.device
        if device.type == "cuda":
            states["device"] = torch.cuda.get_rng_state(device)
        return {name: self._accelerator.gather(state.to(device)[None]) for name, state in states.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Stateful`."""
        mine = {name: states[self._accelerator.process_index].clone() for name, states in tensors.items()}
        torch.set_rng_state(mine["cpu"])
        if "device" in mine:
            torch.cuda.set_rng_state(mine["device"], self._accelerator.device)


class Keeper:
    """Keeps the state of a training in `store` every `minutes`; all processes read it, the main one writes it."""

    def __init__(self, store: Store, minutes: float, accelerator: Accelerator) -> None:
        self._store, self._seconds, self._accelerator = store, 60 * minutes, accelerator
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time; processes may disagree."""
        return time.monotonic() - self._last >= self._seconds

    def keep(self, step: int, parts: Mapping[str, Stateful], values: Mapping[str, Any]) -> None:
        """Write the state after `step`, one tensor at a time; an older one stays until the new one is whole.

        `values` are JSON. Every process must call it. Raises `DiskFullError` before anything is written.
        """
        tensors = {f"{part}.{name}": v for part, each in parts.items() for name, v in each.tensors().items()}
        pieces = (Piece(name, None, whole(value).cpu()) for name, value in tensors.items())
        if self._accelerator.is_main_process:
            specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
            written = self._store.write(f"{step}.{TENSORS}", specs, pieces)
            self._store.keep(PROGRESS, {}, {"step": step, "written": written, **values})
            for name in self._store.names() - {PROGRESS, f"{step}.{TENSORS}"}:
                self._store.drop(name)
        else:
            for _ in pieces:  # gathering takes all processes
                pass
        self._last = time.monotonic()

    def load(self, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
        """Restore the state of an earlier run, and return its values and its `step`; None without a whole one."""
        if PROGRESS not in self._store:
            return None
        values: dict[str, Any] = self._store.load(PROGRESS).values
        tensors = self._store.load(f"{values['step']}.{TENSORS}").tensors
        if any(differing(values["written"], name, value) for name, value in tensors.items()):
            return None
        for part, each in parts.items():
            start = f"{part}."
            each.restore({name.removeprefix(start): v for name, v in tensors.items() if name.startswith(start)})
        return values

    def forget(self) -> None:
        """Remove the state."""
        if self._accelerator.is_main_process:
            for name in self._store.names():
                self._store.drop(name)


def rows_hash(rows: Sequence[Encoded]) -> str:
    """A hash of encoded examples."""
    return _xxh3(repr((row.source, row.target)).encode() for row in rows)


def weights_hash(model: nn.Module) -> str:
    """A hash of all parameters and buffers, and their names; of weights in the billions, in seconds."""
    return _xxh3(part for name, value in model.state_dict().items() for part in (name.encode(), raw(value.cpu())))


def _xxh3(parts: Iterator[Any]) -> str:
    digest = xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
