"""A model on its calibration sample, for whoever asks what happens inside."""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcsmoe.calibration.collect import Reduce, alone
from mcsmoe.calibration.memory import must_stream
from mcsmoe.calibration.sample import Sample, Sampling
from mcsmoe.calibration.watch import count, one_by_one
from mcsmoe.families import Family, MoELayer, Routing
from mcsmoe.model import Model
from mcsmoe.tasks.batches import Batch
from mcsmoe.tasks.task import Encoded


@dataclass(frozen=True)
class LayerTokens:
    """The T real tokens of one layer: inputs [T, d] and the experts that each selects, index [T, k].

    Kept rather than summed up: the sums of one pair of experts take f² doubles, of all pairs more than the
    layer itself, and another forward pass for each pair would take longest.
    """

    inputs: Tensor
    index: Tensor

    def routed_to(self, experts: Sequence[int]) -> Tensor:
        """Inputs [n, d] of the tokens that select any of `experts`."""
        return self.inputs[torch.isin(self.index, torch.tensor(experts)).any(1)]


def layer_tokens(
    model: nn.Module, family: Family, layers: Sequence[MoELayer], batches: Sequence[Batch]
) -> Generator[tuple[str, LayerTokens]]:
    """Name and tokens of one layer after another; those of one layer are in memory at a time.

    All of a model that is streamed by one pass over the batches, which waits where the last one was taken.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        seen.append((x.cpu(), routing.index.cpu()))

    def taken() -> LayerTokens:
        inputs, index = zip(*seen, strict=True)
        seen.clear()
        return LayerTokens(torch.cat(inputs), torch.cat(index))

    for layer in one_by_one(model, family, layers, batches, see):
        yield layer.name, taken()


@dataclass(frozen=True)
class Processes:
    """Processes that share the rows of a sample: which one this is, where it computes, how its sums are added."""

    index: int = 0
    count: int = 1
    device: torch.device | str = "cpu"
    reduce: Reduce = alone


class Observer:
    """A model that runs over its calibration sample when it is first asked a question; nobody else may run it.

    `with observer:` ends passes that wait, and lets go of the model. The sample is drawn when it is first asked for,
    too. With `also` (names of sums, perhaps none) statistics are collected, with `tokens` those of a layer are looked
    at: the memory for either counts, and the model is read block by block where it does not fit whole.
    Raises `MemoryLimitError`, before anything is loaded, where `work` needs more than the model's `memory_limit`.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling,
        work: str,
        *,
        also: Collection[str] | None = None,
        tokens: bool = False,
        processes: Processes = Processes(),
    ) -> None:
        self.model, self.sampling, self.processes = model, sampling, processes
        self._streamed = must_stream(model.memory_limit, work, model.config, sampling, also, tokens)
        self._loaded, self._passes = ExitStack(), ExitStack()
        self._coming: Iterator[tuple[str, LayerTokens]] = iter(())
        self._ahead: list[str] = []
        self._last: tuple[str, LayerTokens] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._last = None
        self._passes.close()
        self._loaded.close()

    @cached_property
    def sample(self) -> Sample:
        """The sample, as all processes have it."""
        return self.sampling.draw(self.model.tokenizer)

    @cached_property
    def batches(self) -> list[Batch]:
        """This process's share of the sample."""
        return self.share(self.sample.rows)

    def share(self, rows: Sequence[Encoded]) -> list[Batch]:
        """This process's share of `rows`: every n-th of n processes."""
        mine = rows[self.processes.index :: self.processes.count]
        return self.model.batches(mine, self.sampling.batch_size)

    @cached_property
    def module(self) -> Any:
        """The transformers model."""
        return self._loaded.enter_context(self.model.loaded(streamed=self._streamed, device=self.processes.device))

    @cached_property
    def counts(self) -> dict[str, Tensor]:
        """Tokens that select each expert, before any capacity limit, by layer: [E] int64."""
        return count(self.module, self.model.family, self.model.layers, self.batches)

    def tokens(self, layer: MoELayer) -> LayerTokens:
        """The tokens of `layer`; those of one layer are kept. Fewest passes if layers are asked for in their order."""
        while self._last is None or self._last[0] != layer.name:
            self._last = None  # the layer before goes before this one comes
            if layer.name not in self._ahead:
                self._start(layer)
            self._last = next(self._coming)
            self._ahead.remove(self._last[0])
        return self._last[1]

    def _start(self, layer: MoELayer) -> None:
        """Passes that come by `layer` first, and by those after it where that costs less than other passes."""
        self._passes.close()
        layers = self.model.layers[self.model.layers.index(layer) :] if self._streamed else [layer]
        coming = layer_tokens(self.module, self.model.family, layers, self.batches)
        self._coming = self._passes.enter_context(closing(coming))
        self._ahead = [each.name for each in layers]
