"""Forward passes over calibration batches with an eye on every sparse layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.calibration.journal import Journal
from mcsmoe.calibration.lockstep import Enough, lockstep
from mcsmoe.checkpoint.streamed import blocks_of, device_of
from mcsmoe.families import Family, MoELayer, Routing
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import IGNORED, model_inputs

Batch = Mapping[str, Tensor]
See = Callable[[MoELayer, Tensor, Routing], None]
"""(layer, inputs x [T, d] of its experts, what the router did with them) → what is learnt of them."""


def real_tokens(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """Positions that are no padding: encoder [B, S] from `attention_mask`, decoder [B, T] from `labels`.

    A decoder position counts when it has a label to predict. A causal model has a decoder only, and reads the
    source with it: there, all of `attention_mask` counts.
    """
    attention = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return {"decoder": attention} if causal else {"encoder": attention, "decoder": batch["labels"] != IGNORED}


@torch.no_grad()
def watching(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    see: See,
    journal: Journal | None = None,
    outputs: bool = False,
) -> Iterator[MoELayer]:
    """Call `see(layer, x [T, d], routing of x)` with the T real tokens of each layer and batch, in their order.

    With `outputs`, `routing.outputs` are there: what the selected experts gave when the model ran them.

    A layer is yielded when it has seen all batches, in the order of `layers`, which is that of the forward
    pass: for a model that is streamed before the next block is loaded, else at the end. No pass goes further than
    the last of `layers`, and nobody else may run the model before the end. It runs in eval mode (no dropout, no router
    jitter) and is left in the mode it came in. Of a model that is whole in memory nothing is kept from one batch to
    the next; see `lockstep` for others, and for `journal`, which is theirs.
    """
    if not layers:
        return
    training, blocks, device = model.training, blocks_of(model), device_of(model)
    routed: dict[str, Routing] = {}
    real: dict[str, Tensor] = {}

    def after_router(layer: MoELayer) -> Callable[..., None]:
        block = model.get_submodule(layer.path)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            routing = family.routing(block, output)
            routed[layer.name] = replace(routing, inputs=inputs[0].flatten(0, -2))

        return hook

    def show(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        # `x` is what the experts see: the router's input may be normalised, or not yet projected.
        x = x.flatten(0, -2)  # [B·S, d]
        if routing.scale is not None:
            assert routing.inputs is not None
            x = routing.inputs * routing.scale
        here = real[layer.stack].flatten().to(x.device)  # [B·S]
        kinds = {kind: value[here] for kind, value in vars(routing).items() if value is not None}
        see(layer, x[here], Routing(**kinds))
        if layer is layers[-1]:
            raise Enough

    def before_experts(layer: MoELayer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            show(layer, inputs[0], routed.pop(layer.name))

        return hook

    def apart(layer: MoELayer, experts: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(*inputs: Tensor) -> Tensor:
            routing = routed.pop(layer.name)
            each, mixed = family.expert_outputs(experts, routing, *inputs)
            show(layer, inputs[0], replace(routing, outputs=each))
            return mixed

        return forward

    def forward(batch: Batch) -> None:
        inputs = {name: value.to(device) for name, value in model_inputs(batch, family.causal).items()}
        model(**inputs, use_cache=False)

    with ExitStack() as stack:
        stack.callback(model.train, training)
        model.eval()
        for layer in layers:
            router, experts = model.get_submodule(layer.router_path), model.get_submodule(layer.experts_path)
            stack.callback(router.register_forward_hook(after_router(layer)).remove)
            if outputs:
                experts.forward = apart(layer, experts.forward)
                stack.callback(delattr, experts, "forward")
            else:
                stack.callback(experts.register_forward_pre_hook(before_experts(layer)).remove)
        if blocks is None:
            for batch in progress(batches, "calibration batches", late=True):
                real.update(real_tokens(batch, family.causal))
                with suppress(Enough):
                    forward(batch)
            yield from layers
            return
        sample, left = list(batches), list(layers)
        forwards = [partial(forward, batch) for batch in sample]

        def enter(i: int) -> None:
            real.update(real_tokens(sample[i], family.causal))

        for block in lockstep(model, blocks, forwards, enter, journal):
            while left and left[0].path.startswith(f"{block}."):
                yield left.pop(0)
        yield from left  # there was no batch


def watch(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    see: See,
) -> None:
    """`watching` to the end."""
    for _ in watching(model, family, layers, batches, see):
        pass


def one_by_one(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Sequence[Batch],
    see: See,
) -> Iterator[MoELayer]:
    """`watching`, where no layer may be seen before the one before it was yielded: what it showed is in memory.

    Of a model that is whole in memory each layer takes passes of its own over the batches.
    """
    at_once = [layers] if blocks_of(model) else [[layer] for layer in layers]
    for part in at_once:
        yield from watching(model, family, part, batches, see)


def count(model: nn.Module, family: Family, layers: Sequence[MoELayer], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Tokens that select each expert, before any capacity limit, by layer: [E] int64."""
    counts = {layer.name: torch.zeros(layer.experts, dtype=torch.int64) for layer in layers}

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        counts[layer.name] += torch.bincount(routing.index.flatten().cpu(), minlength=layer.experts)

    watch(model, family, layers, batches, see)
    return counts
