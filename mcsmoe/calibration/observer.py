"""A model together with its calibration sample, and the questions that one can ask of the two."""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from mcsmoe.calibration.collect import Reduce, alone
from mcsmoe.calibration.memory import must_stream
from mcsmoe.calibration.sample import Draw, Sample
from mcsmoe.calibration.statistics import MODEL
from mcsmoe.calibration.watch import count, one_by_one
from mcsmoe.families import Family, MoELayer, Routing
from mcsmoe.model import Model
from mcsmoe.tasks.batches import Batch, longest_first
from mcsmoe.tasks.task import Encoded


@dataclass(frozen=True)
class LayerTokens:
    """The T real tokens of one layer: inputs [T, d], and index [T, k] of the experts that each token selects.

    The tokens are kept because sums would be larger: one pair of experts needs f² doubles, and all pairs together
    more than the layer itself. A forward pass for each pair would take too long.
    """

    inputs: Tensor
    index: Tensor

    def routed_to(self, experts: Sequence[int]) -> Tensor:
        """Inputs [n, d] of the tokens that select any of `experts`."""
        return self.inputs[torch.isin(self.index, torch.tensor(experts)).any(1)]


def layer_tokens(
    model: nn.Module, family: Family, layers: Sequence[MoELayer], batches: Sequence[Batch]
) -> Generator[tuple[str, LayerTokens]]:
    """Yield (name, tokens) of one layer after another; the tokens of one layer are in memory at a time.

    With a streamed model, one pass over the batches serves all layers; it waits at each layer until the next is asked
    for. With a model in memory, each layer takes its own pass.
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
    """This process among `count` that share the rows of a sample: its index, how sums are reduced, and its device.

    Without a device it uses that of the model.
    """

    index: int = 0
    count: int = 1
    device: torch.device | str | None = None
    reduce: Reduce = alone


class Observer:
    """A model and its calibration sample; both are loaded on first use. Nothing else may run the model meanwhile.

    Leaving `with observer:` ends waiting passes and releases the model. `also` (names of sums, possibly empty) and
    `tokens` announce what will be asked for: statistics, or the tokens of a layer. The memory estimate includes them,
    and a model that does not fit whole is streamed.
    Raises `MemoryLimitError` before loading anything if `work`, the name of the stage, needs more than the model's
    `memory_limit`.
    """

    def __init__(
        self,
        model: Model,
        sampling: Draw,
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
        """The whole sample, the same in every process."""
        return self.sampling.draw(self.model.tokenizer)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where statistics come from: fingerprint, seed and size in rows of the sample; fingerprint of the model."""
        return {
            "fingerprint": self.sample.fingerprint,
            "seed": self.sampling.seed,
            "samples": len(self.sample.rows),
            MODEL: self.model.fingerprint,
        }

    @cached_property
    def batches(self) -> list[Batch]:
        """This process's share of the sample."""
        return self.share(self.sample.rows)

    def share(self, rows: Sequence[Encoded]) -> list[Batch]:
        """This process's share of `rows`, in batches: every n-th row by length, for n processes with equal work."""
        in_order = longest_first(rows, causal=self.model.family.causal)
        mine = in_order[self.processes.index :: self.processes.count]
        return self.model.batches(mine, self.sampling.batch_size)

    @cached_property
    def module(self) -> Any:
        """The transformers model, loaded on first use."""
        return self._loaded.enter_context(self.model.loaded(streamed=self._streamed, device=self.processes.device))

    @cached_property
    def counts(self) -> dict[str, Tensor]:
        """Tokens that select each expert, before any capacity limit, by layer: [E] int64."""
        return count(self.module, self.model.family, self.model.layers, self.batches)

    def tokens(self, layer: MoELayer) -> LayerTokens:
        """The tokens of `layer`; only the last layer's stay in memory. Ask in layer order for the fewest passes."""
        while self._last is None or self._last[0] != layer.name:
            self._last = None  # free the previous layer's tokens before loading the next
            if layer.name not in self._ahead:
                self._start(layer)
            self._last = next(self._coming)
            self._ahead.remove(self._last[0])
        return self._last[1]

    def _start(self, layer: MoELayer) -> None:
        """Start passes at `layer`; with a streamed model, they go on to the layers after it to save further passes."""
        self._passes.close()
        layers = self.model.layers[self.model.layers.index(layer) :] if self._streamed else [layer]
        coming = layer_tokens(self.module, self.model.family, layers, self.batches)
        self._coming = self._passes.enter_context(closing(coming))
        self._ahead = [each.name for each in layers]
