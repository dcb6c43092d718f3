"""Forward passes over calibration batches that report what happens in every sparse layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.checkpoint.journal import Journal
from mcsmoe.checkpoint.lockstep import Enough, lockstep
from mcsmoe.checkpoint.streamed import blocks_of, device_of
from mcsmoe.families import Family, MoELayer, Routing
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import IGNORED, model_inputs

Batch = Mapping[str, Tensor]
See = Callable[[MoELayer, Tensor, Routing], None]
"""Receives (layer, inputs x [T, d] of its experts, what the router did with them)."""


def real_tokens(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """Masks of the positions that are not padding: encoder [B, S] from `attention_mask`, decoder [B, T] from `labels`.

    A decoder position counts if it has a label. A causal model is a decoder only, which also reads the source, so
    all of `attention_mask` counts.
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
    norms: bool = False,
) -> Iterator[MoELayer]:
    """Call `see(layer, x [T, d], routing of x)` with the T real tokens of each layer in each batch.

    With `norms`, `routing.norms` holds the norms of what the selected experts give in the model's own run of them.

    `layers` must be in the order of the forward pass. Each layer is yielded once it has seen all batches: with a
    streamed model before the next block is loaded, otherwise at the end. Passes stop at the last of `layers`. Nothing
    else may run the model meanwhile. It runs in eval mode (no dropout, no router jitter); its own mode is restored
    at the end. With a model in memory, nothing is kept from one batch to the next. A streamed model runs in
    `lockstep`, which alone uses `journal`.
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
        # Take the experts' input, not the router's: that one may be normalised, or not yet projected.
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
            lengths = torch.linalg.vector_norm(each, dim=-1, dtype=torch.promote_types(each.dtype, torch.float32))
            show(layer, inputs[0], replace(routing, norms=lengths))
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
            if norms:
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
        yield from left  # without batches, lockstep yields no block


def watch(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    see: See,
) -> None:
    """Run `watching` to its end."""
    for _ in watching(model, family, layers, batches, see):
        pass


def one_by_one(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Sequence[Batch],
    see: See,
) -> Iterator[MoELayer]:
    """Run `watching` so that a layer is seen only after the layer before it was yielded.

    So a caller that keeps what it sees has one layer's share in memory at a time. With a model in memory, each layer
    takes its own pass over the batches.
    """
    at_once = [layers] if blocks_of(model) else [[layer] for layer in layers]
    for part in at_once:
        yield from watching(model, family, part, batches, see)


def count(model: nn.Module, family: Family, layers: Sequence[MoELayer], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Count the tokens that select each expert, before any capacity limit: layer name → [E] int64."""
    counts = {layer.name: torch.zeros(layer.experts, dtype=torch.int64) for layer in layers}

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        counts[layer.name] += torch.bincount(routing.index.flatten().cpu(), minlength=layer.experts)

    watch(model, family, layers, batches, see)
    return counts
