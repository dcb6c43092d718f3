"""Routing statistics of every sparse layer, from one pass over the calibration sample."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.calibration.sums import CHUNK
from mcsmoe.calibration.watch import Batch, watching
from mcsmoe.checkpoint.journal import Journal
from mcsmoe.checkpoint.streamed import device_of
from mcsmoe.errors import CheckpointError
from mcsmoe.families import Activation, Expert, Family, MoELayer, Role, Routing
from mcsmoe.families.experts import expert_in_memory, forward

Reduce = Callable[[Tensor], Tensor]
"""Sum over the tokens of this process → sum over the tokens of all processes."""
Keep = Callable[[str, LayerStatistics], None]
"""Receives the name of a layer and its statistics."""


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
    reduce: Reduce = alone,
) -> RoutingStatistics:
    """Sum up the statistics of each layer over all real tokens (no padding); no token tensor is kept.

    `also` names further sums (see `statistics.ALSO`). `norms` uses the outputs that the model computes anyway;
    `outputs` runs all experts on all tokens, `pair-errors` runs averaged pairs of experts. Batch size, order and the
    number of processes change the result only by rounding (see `sums.CHUNK`). That includes Switch, whose expert
    capacity is for each row, in which padding comes last. The capacity of fairseq's GPT is for a batch: there batches
    decide what later layers see.
    Raises `CheckpointError` naming the first layer with sums that are not finite, and `UnknownNameError` for an unknown
    entry of `also`.
    """
    found: dict[str, LayerStatistics] = {}
    collect_layers(model, family, layers, batches, found.__setitem__, also=also, reduce=reduce)
    return RoutingStatistics(found)


def collect_layers(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    keep: Keep,
    *,
    also: Collection[str] = (),
    reduce: Reduce = alone,
    journal: Journal | None = None,
) -> None:
    """Collect as `collect` does, but pass each layer's sums to `keep` as soon as they are complete, in layer order.

    With a streamed model, the sums of one layer are in memory at a time, plus what `lockstep` needs. To resume with
    the `journal` of an earlier run, pass only the `layers` that run did not keep.
    """
    sums: dict[str, LayerStatistics] = {}

    def zeros(layer: MoELayer, device: torch.device | str = "cpu") -> LayerStatistics:
        return LayerStatistics.zeros(layer.experts, layer.d_model, also, device)

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        if layer.name not in sums:
            sums[layer.name] = zeros(layer, x.device)
        accumulate(sums[layer.name], layer, x, routing, lambda e: expert_in_memory(model, layer, e))

    for layer in watching(model, family, layers, batches, see, journal, norms="norms" in also):
        ours = sums.pop(layer.name, None) or zeros(layer, device_of(model))  # this process may have no batch
        total = ours.map(reduce).map(Tensor.cpu)
        if not all(bool(value.isfinite().all()) for value in total.tensors().values()):
            raise CheckpointError(
                f"routing statistics of {layer.name} are not finite: the checkpoint holds NaN or huge weights"
            )
        keep(layer.name, total)


def accumulate(
    sums: LayerStatistics, layer: MoELayer, x: Tensor, routing: Routing, expert: Callable[[int], Expert]
) -> None:
    """Add the tokens x [T, d] and their `routing` to every sum that `sums` holds, in place; see `sums.CHUNK`."""
    logits, chosen = routing.logits.double(), torch.zeros_like(routing.logits, dtype=wide(x))  # [T, E]
    gates = torch.zeros_like(logits).scatter_(1, routing.index, routing.gates.double())  # [T, E]
    chosen.scatter_(1, routing.index, 1)
    sums.tokens += len(x)
    sums.gates += gates.sum(0)
    sums.logits_gram += logits.T @ logits
    for part, here in zip(x.split(CHUNK), chosen.split(CHUNK), strict=True):
        inputs = part.to(wide(x))
        sums.coselection += here.T @ here
        sums.input_sums += here.T @ inputs
        sums.input_abs_sums += here.T @ inputs.abs()
        sums.input_square_sums += here.T @ inputs.square()
        if sums.input_gram is not None:
            exact = part.double()  # `repair` takes small differences of this sum
            sums.input_gram += exact.T @ exact
    if sums.norms is not None and sums.gated_norms is not None:
        assert routing.norms is not None
        norms = torch.zeros_like(logits).scatter_(1, routing.index, routing.norms.double())  # [T, E]
        sums.norms += norms.sum(0)
        sums.gated_norms += (gates * norms).sum(0)
    if sums.output_gram is not None:
        add_outputs(sums, layer, x, expert)
    if sums.pair_errors is not None:
        add_pair_errors(sums, layer, x, chosen.bool(), expert)


def wide(x: Tensor) -> torch.dtype:
    """The dtype of products: float32, or float64 if x is."""
    return torch.promote_types(x.dtype, torch.float32)


TOKENS = 512
"""Tokens at a time when all experts of a layer run on them: at most E·TOKENS·max(d, f) numbers in memory."""


def add_outputs(sums: LayerStatistics, layer: MoELayer, x: Tensor, expert: Callable[[int], Expert]) -> None:
    """Add the outputs of every expert on all tokens x [T, d] to `all_outputs` and `output_gram`, in place."""
    assert sums.all_outputs is not None
    assert sums.output_gram is not None
    experts = [expert(e) for e in range(layer.experts)]
    for tokens in x.split(TOKENS):
        y = torch.stack([forward(each, layer.layout, layer.activation, tokens) for each in experts])  # [E, n, d]
        sums.all_outputs += y.sum(1, dtype=torch.float64)
        for part in y.flatten(1).split(CHUNK, 1):  # over tokens and dimensions
            outputs = part.to(wide(x))
            sums.output_gram += outputs @ outputs.T


def add_pair_errors(
    sums: LayerStatistics, layer: MoELayer, x: Tensor, chosen: Tensor, expert: Callable[[int], Expert]
) -> None:
    """Add Σ ‖f_i(x) − f_ij(x)‖² over the tokens of expert i to `pair_errors[i, j]`, in place.

    f_ij is the expert whose weights are the plain averages of those of i and j.
    x: [T, d]; chosen: [T, E], True where a token selects the expert.
    """
    assert sums.pair_errors is not None
    experts = [expert(e) for e in range(layer.experts)]
    stacks = {role: torch.stack([each[name] for each in experts]) for name, role in layer.layout.items()}
    for i in chosen.any(0).nonzero().flatten().tolist():
        for part in x[chosen[:, i]].split(TOKENS):
            y = _averaged_with(i, stacks, layer.activation, part)
            sums.pair_errors[i] += (y - y[i]).to(wide(x)).square().sum((1, 2), dtype=torch.float64)  # y[i] = f_i(x)


def _averaged_with(i: int, stacks: dict[Role, Tensor], activation: Activation, x: Tensor) -> Tensor:
    """Outputs [E, n, d], on tokens x [n, d], of the averages of expert i with each of the E experts."""

    def average(of: Tensor) -> Tensor:
        return (of + of[i]) / 2

    def projected(weight: Role, bias: Role) -> Tensor:
        # In-projections are linear: averaging the results equals averaging the weights.
        pre = x @ stacks[weight].mT  # [E, n, f]
        return average(pre if bias not in stacks else pre + stacks[bias][:, None])

    gate = projected(Role.GATE, Role.GATE_BIAS) if Role.GATE in stacks else None
    inner = activation(gate, projected(Role.UP, Role.UP_BIAS))
    y = inner @ average(stacks[Role.DOWN]).mT
    return y if Role.DOWN_BIAS not in stacks else y + average(stacks[Role.DOWN_BIAS])[:, None]
