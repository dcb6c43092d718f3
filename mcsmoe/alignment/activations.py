"""Hidden activations of experts on calibration tokens, summed up for activation matching."""

from collections.abc import Iterable

from torch import Tensor, nn

from mcsmoe.alignment.costs import ActivationMoments
from mcsmoe.architectures.experts import hidden
from mcsmoe.architectures.layer import Expert, Family, MoELayer, Routing
from mcsmoe.routing.collect import in_memory
from mcsmoe.routing.watch import Batch, Masks, real_tokens, watch


def activation_moments(
    model: nn.Module,
    family: Family,
    layer: MoELayer,
    batches: Iterable[Batch],
    reference: int,
    masks: Masks = real_tokens,
) -> dict[int, ActivationMoments]:
    """Moments of every other expert of one layer with the reference, over the tokens routed to either.

    One pass over the batches for one layer: the moments take E·f² doubles, more than the layer itself.
    """
    moments = {e: ActivationMoments.zeros(layer.d_ff) for e in range(layer.experts) if e != reference}

    def activations(expert: Expert, x: Tensor) -> Tensor:
        return hidden(expert, layer.layout, layer.activation, x)

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        ours = activations(in_memory(model, layer, reference), x)  # [T, f]
        to_reference = (routing.index == reference).any(1)  # [T]
        for e, sums in moments.items():
            either = to_reference | (routing.index == e).any(1)
            sums.add(ours[either], activations(in_memory(model, layer, e), x[either]))

    watch(model, family, [layer], batches, see, masks)
    return moments
