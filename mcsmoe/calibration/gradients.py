"""Gradients and Fisher information of the experts' weights on calibration rows, layer after layer into a file."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mcsmoe.calibration.collect import Reduce, alone
from mcsmoe.calibration.watch import Batch, real_tokens
from mcsmoe.checkpoint.writer import Piece, TensorSpec, write_safetensors
from mcsmoe.errors import StatisticsError
from mcsmoe.families import Expert, MoELayer, Place
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import IGNORED, is_causal, model_inputs

GRADIENTS = "gradients.safetensors"
KINDS = {"gradients": ("gradient", "fisher"), "exact-fisher": ("exact-fisher",)}
"""What is written for each kind that is asked for."""


class Gradients:
    """Lazy reading of what collect wrote, expert by expert.

    Each kind (`gradient`, `fisher`, `exact-fisher`) has one tensor for every tensor of every expert, of the
    same shape. Raises `StatisticsError` where a kind was not collected.
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
            raise StatisticsError(f"{self._file}: no {kind} of {layer.name}; {entry!r} was not collected") from None
        return value

    def read(self, kind: str, layer: MoELayer, expert: int) -> Expert:
        """One kind for one expert, by the names of its layout."""
        return {name: self.tensor(kind, layer, expert, name) for name in layer.layout}


MASS = 0.999
"""Share of each position's probability that exact Fisher information sums over, the most probable tokens first."""
BLOCK_BYTES = 4 * 2**30
"""Most bytes of expert weights that are differentiated at once; more layers take further passes."""
BATCH_BYTES = 2**28
"""Most bytes of gradients of different tokens in memory at once."""


def write_gradients(
    directory: Path | None,
    model: nn.Module,
    layers: Sequence[MoELayer],
    batches: Sequence[Batch],
    also: Collection[str],
    *,
    reduce: Reduce = alone,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write the kinds of `KINDS` that `also` names into `directory`; None takes part in the sums only.

    `gradient` is Σ ∇W over rows, of the cross-entropy summed over the labels of a row; router losses are off.
    `fisher` is Σ (∇W)² over rows: the empirical Fisher information, each row one draw. `exact-fisher` is
    Σ_t Σ_v p_t(v) (∇W log p_t(v))² over label positions t and tokens v (Matena & Raffel, arXiv 2111.09832):
    positions count one by one, because the labels before them are given. It leaves out the least probable
    tokens, together less than 1 − `MASS`, and takes one backward pass for each token that it counts.

    Rows run one by one and without padding, so that batches change nothing. An expert that no row reaches
    has zeros. As many layers as fit into `block_bytes` share a pass over the batches. Values are in float32
    or better. Raises what `write_safetensors` raises.
    """
    kinds = [kind for entry in KINDS if entry in also for kind in KINDS[entry]]
    weights = {
        layer.name: {
            (layer.name, e, name): Weight(model.get_parameter(place.name(e)), e, place)
            for e in range(layer.experts)
            for name, place in layer.in_memory.items()
        }
        for layer in layers
    }
    specs = {
        Gradients.key(kind, *place): TensorSpec(_dtype(weight.value), tuple(weight.value.shape))
        for places in weights.values()
        for place, weight in places.items()
        for kind in kinds
    }
    block_of = {name: block for block in _blocks(weights, block_bytes) for name in block}
    ready: dict[str, Tensor] = {}

    def take(key: str) -> Tensor:
        if key not in ready:
            block = block_of[key.split("/")[0]]
            places = {place: weight for name in block for place, weight in weights[name].items()}
            sums = _differentiate(model, list(places.values()), batches, kinds)
            for kind, values in sums.items():
                ready.update({Gradients.key(kind, *place): reduce(v).cpu() for place, v in zip(places, values)})
        return ready.pop(key)

    if directory is not None:
        write_safetensors(directory / GRADIENTS, specs, (Piece(key, None, take(key)) for key in sorted(specs)))
    else:
        for key in sorted(specs):
            take(key)


class Weight(NamedTuple):
    """One tensor of one expert in a loaded model: its own parameter, or its part of one that experts share."""

    parameter: Tensor
    expert: int
    place: Place

    def of(self, parameter: Tensor) -> Tensor:
        """The expert's part of what has the shape of the parameter."""
        return self.place.view(self.place.share(parameter, self.expert))

    @property
    def value(self) -> Tensor:
        """The expert's tensor."""
        return self.of(self.parameter)


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _blocks(weights: Mapping[str, Mapping[Any, Weight]], most: int) -> list[list[str]]:
    """Names of layers that share a pass, in the order in which the file has them."""
    blocks: list[list[str]] = []
    room = 0
    for name in sorted(weights, key=lambda name: f"{name}/"):
        size = sum(weight.value.nbytes for weight in weights[name].values())
        if not blocks or size > room:
            blocks.append([])
            room = most
        blocks[-1].append(name)
        room -= size
    return blocks


def _differentiate(
    model: nn.Module, weights: Sequence[Weight], batches: Sequence[Batch], kinds: Collection[str]
) -> dict[str, list[Tensor]]:
    """Each kind for each weight, over the rows of this process."""
    sums = {kind: [torch.zeros_like(w.value, dtype=_dtype(w.value)) for w in weights] for kind in kinds}
    device, causal = weights[0].parameter.device, is_causal(model)
    at_once = max(1, BATCH_BYTES // sum(weight.value.nbytes for weight in weights))
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        stack.enter_context(torch.enable_grad())
        model.eval()
        for row in rows(progress(batches, "differentiate batches", late=True), causal):
            labels = row["labels"][0].to(device)  # [T]
            inputs = {name: value.to(device) for name, value in model_inputs(row, causal).items()}
            logits = model(**inputs).logits[0]  # [T, V]
            scores = logits.to(_dtype(logits)).log_softmax(-1)[labels != IGNORED]  # [L, V]
            if "gradient" in kinds:
                found = scores.gather(1, labels[labels != IGNORED, None]).sum()[None]
                for place, (gradient,) in _gradients(-found, weights):
                    sums["gradient"][place] += gradient
                    sums["fisher"][place] += gradient.square()
            if "exact-fisher" in kinds:
                for drawn in scores[likely(scores.detach().exp())].split(at_once):  # [n]
                    p = drawn.detach().exp()
                    for place, gradients in _gradients(drawn, weights):
                        sums["exact-fisher"][place] += torch.tensordot(p, gradients.square(), dims=1)
    return sums


def _gradients(values: Tensor, weights: Sequence[Weight]) -> Iterator[tuple[int, Tensor]]:
    """Gradients [n, …] of n values, in float32 or better, with the place of their weight; those there are."""
    each = torch.eye(len(values), dtype=values.dtype, device=values.device)
    parameters = list({id(weight.parameter): weight.parameter for weight in weights}.values())
    found = torch.autograd.grad(values, parameters, each, retain_graph=True, allow_unused=True, is_grads_batched=True)
    by_parameter = {id(parameter): gradients for parameter, gradients in zip(parameters, found, strict=True)}
    for place, weight in enumerate(weights):
        gradients = by_parameter[id(weight.parameter)]
        if gradients is not None:  # no token of the row reached the expert
            ours = torch.stack([weight.of(gradient) for gradient in gradients])
            yield place, ours.to(_dtype(ours))


def rows(batches: Iterable[Batch], causal: bool) -> Iterator[dict[str, Tensor]]:
    """Each row of each batch that has a label, as a batch of its own, cut behind its last real token."""
    for batch in batches:
        masks = real_tokens(batch, causal)
        stacks = {name: "decoder" if causal or name.startswith(("decoder", "labels")) else "encoder" for name in batch}
        for i, labels in enumerate(batch["labels"]):
            if not (labels != IGNORED).any():
                continue
            ends = {stack: int(mask[i].nonzero().max()) + 1 for stack, mask in masks.items()}
            yield {name: value[i : i + 1, : ends[stacks[name]]] for name, value in batch.items()}


def likely(p: Tensor) -> Tensor:
    """True for the fewest tokens that have `MASS` of a distribution together [L, V]; of equal ones the first.

    p: [L, V], a distribution in each row.
    """
    ranked, order = p.double().sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1).roll(1, -1)  # what more probable tokens have
    before[:, 0] = 0
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < MASS)
