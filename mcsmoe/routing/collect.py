"""One pass over the calibration sample that fills the routing statistics of every sparse layer."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from mcsmoe.architectures.experts import expert_in_memory, forward, hidden
from mcsmoe.architectures.layer import Expert, Family, MoELayer, Routing
from mcsmoe.checkpoint.streamed import device_of
from mcsmoe.errors import CheckpointError
from mcsmoe.routing.every_expert import add_outputs, add_pair_errors
from mcsmoe.routing.journal import Journal
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.routing.watch import Batch, Masks, real_tokens, watching

Reduce = Callable[[Tensor], Tensor]
"""A sum over the tokens of this process → the sum over those of all processes."""
Keep = Callable[[str, LayerStatistics], None]
"""Takes the name of a layer and its statistics."""


def alone(value: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return value


def collect(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    *,
    also: Collection[str] = (),
    masks: Masks = real_tokens,
    reduce: Reduce = alone,
) -> RoutingStatistics:
    """Statistics over the tokens that `masks` marks as real; no token tensor is kept.

    `also` names optional sums: `outputs`, `pair-errors`, `activations`. How the sample is cut into batches,
    ordered and shared out among processes changes nothing beyond the rounding of float64 sums.
    Raises `CheckpointError` naming the layer whose sums are not finite.
    """
    found: dict[str, LayerStatistics] = {}
    collect_layers(model, family, layers, batches, found.__setitem__, also=also, masks=masks, reduce=reduce)
    return RoutingStatistics(found)


def collect_layers(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    keep: Keep,
    *,
    also: Collection[str] = (),
    masks: Masks = real_tokens,
    reduce: Reduce = alone,
    journal: Journal | None = None,
) -> None:
    """`collect`, layer after layer: `keep` gets the sums of each as soon as they are whole, in order.

    Of a model that is streamed, one layer's sums are in memory at a time, beside what `lockstep` needs. `layers` are
    then to be those that an earlier run with the same `journal` did not keep.
    """
    sums: dict[str, LayerStatistics] = {}

    def zeros(layer: MoELayer, device: torch.device | str = "cpu") -> LayerStatistics:
        return LayerStatistics.zeros(layer.experts, layer.d_model, layer.d_ff, also, device)

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        if layer.name not in sums:
            sums[layer.name] = zeros(layer, x.device)
        accumulate(sums[layer.name], layer, x, routing, lambda e: expert_in_memory(model, layer, e))

    for layer in watching(model, family, layers, batches, see, masks, journal):
        ours = sums.pop(layer.name, None) or zeros(layer, device_of(model))  # a process may have no batch
        total = ours.map(reduce).map(Tensor.cpu)
        if not all(bool(value.isfinite().all()) for value in total.tensors().values()):
            raise CheckpointError(
                f"routing statistics of {layer.name} are not finite: the checkpoint holds NaN or huge weights"
            )
        keep(layer.name, total)


def accumulate(
    sums: LayerStatistics, layer: MoELayer, x: Tensor, routing: Routing, expert: Callable[[int], Expert]
) -> None:
    """Add the tokens x [T, d] and what the router did with them to the `sums` that are there, in place.

    Expert outputs are computed from the experts' weights on all tokens that select them, whatever the
    capacity.
    """
    exact, logits = x.double(), routing.logits.double()
    chosen = exact.new_zeros(len(x), layer.experts).scatter_(1, routing.index, 1)  # [T, E] of 0 and 1
    gates = torch.zeros_like(chosen).scatter_(1, routing.index, routing.gates.double())  # [T, E]
    sums.tokens += len(x)
    sums.coselection += chosen.T @ chosen
    sums.gates += gates.sum(0)
    sums.logits_gram += logits.T @ logits
    sums.input_gram += exact.T @ exact
    sums.input_sums += chosen.T @ exact
    sums.input_abs_sums += chosen.T @ exact.abs()
    sums.input_square_sums += chosen.T @ exact.square()
    for e in chosen.any(0).nonzero().flatten().tolist():
        rows = chosen[:, e].nonzero().flatten()
        weights = expert(e)
        y = forward(weights, layer.layout, layer.activation, x[rows]).double()  # [n_e, d]
        norm = y.norm(dim=1)
        sums.norms[e] += norm.sum()
        sums.gated_norms[e] += gates[rows, e] @ norm
        sums.output_sums[e] += y.sum(0)
        if sums.hidden_gram is not None and sums.output_hidden is not None:
            z = hidden(weights, layer.layout, layer.activation, x[rows]).double()  # [n_e, f]
            sums.hidden_gram[e] += z.T @ z
            sums.output_hidden[e] += y.T @ z
    if sums.output_gram is not None:
        add_outputs(sums, layer, x, expert)
    if sums.pair_errors is not None:
        add_pair_errors(sums, layer, x, chosen.bool(), expert)
