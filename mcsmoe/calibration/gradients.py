"""Gradients and Fisher information of the experts' weights on calibration rows, written to a file layer by layer."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mcsmoe.calibration.collect import Reduce, alone
from mcsmoe.calibration.watch import Batch, real_tokens
from mcsmoe.checkpoint.reader import all_finite
from mcsmoe.checkpoint.writer import Piece, TensorSpec, write_safetensors
from mcsmoe.errors import StatisticsError
from mcsmoe.families import Expert, MoELayer, Place
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import IGNORED, is_causal, model_inputs

GRADIENTS = "gradients.safetensors"
KINDS = {"gradients": ("gradient", "fisher"), "exact-fisher": ("exact-fisher",)}
"""Entry of `collect.also` → the kinds that it writes."""


class Gradients:
    """Reader of the file that `write_gradients` wrote; loads one tensor at a time.

    Each kind (`gradient`, `fisher`, `exact-fisher`) holds, for every tensor of every expert, one tensor of the same
    shape. Reading raises `StatisticsError` for a kind that was not collected; without a `directory`, none was.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = (directory or Path()) / GRADIENTS

    def holds(self, entry: str) -> bool:
        """Whether the kinds of the entry `entry` of `KINDS` were collected."""
        try:
            with safe_open(self._file, "pt") as file:
                return all(any(f"/{kind}/" in name for name in file.keys()) for kind in KINDS[entry])  # noqa: SIM118
        except (SafetensorError, OSError):
            return False

    @staticmethod
    def key(kind: str, layer: str, expert: int, name: str) -> str:
        """Name of one tensor in the file, such as `encoder.1/fisher/3/wi`; the tensors of a layer are adjacent."""
        return f"{layer}/{kind}/{expert}/{name}"

    def tensor(self, kind: str, layer: MoELayer, expert: int, name: str) -> Tensor:
        """Read one kind for tensor `name` of one expert."""
        try:
            with safe_open(self._file, "pt") as file:
                value: Tensor = file.get_tensor(self.key(kind, layer.name, expert, name))
        except (SafetensorError, OSError):
            entry = next(entry for entry, kinds in KINDS.items() if kind in kinds)
            raise StatisticsError(f"{self._file}: no {kind} of {layer.name}; {entry!r} was not collected") from None
        if tuple(value.shape) != layer.shapes()[name] or not all_finite(value):
            what = f"{kind} of {layer.name} has another shape than its expert {expert}, or holds NaN or infinity"
            raise StatisticsError(f"{self._file}: {what}")
        return value

    def read(self, kind: str, layer: MoELayer, expert: int) -> Expert:
        """Read one kind for all tensors of one expert, by their names in the layout."""
        return {name: self.tensor(kind, layer, expert, name) for name in layer.layout}


MASS = 0.999
"""Probability mass that exact Fisher information covers at each position, most probable tokens first."""
BLOCK_BYTES = 4 * 2**30
"""Upper bound on the bytes of expert weights differentiated in one pass; the other layers take further passes."""
BATCH_BYTES = 2**28
"""Upper bound on the bytes of per-token gradients in memory at once."""


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
    """Write the kinds that `also` asks for (see `KINDS`) to `directory`; a process with None only adds to the sums.

    - `gradient`: Σ ∇W over rows, where a row's loss is the cross-entropy summed over its labels, without router losses.
    - `fisher`: Σ (∇W)² over rows, the empirical Fisher information with each row as one draw.
    - `exact-fisher`: Σ_t Σ_v p_t(v) (∇W log p_t(v))² over label positions t and tokens v (Matena & Raffel,
      arXiv 2111.09832). Each position counts separately, because the labels before it are given. The least probable
      tokens, together less than 1 − `MASS`, are left out. Every token that counts costs one backward pass.

    Rows run one at a time and unpadded, so the batch size changes nothing. An expert that no row reaches gets zeros.
    Layers share a pass over the batches as far as they fit into `block_bytes`. Values are float32 or better.
    Raises what `write_safetensors` raises.
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
    """One tensor of one expert in a loaded model: a whole parameter, or a slice of a stacked one."""

    parameter: Tensor
    expert: int
    place: Place

    def of(self, parameter: Tensor) -> Tensor:
        """The expert's part of a tensor shaped like the parameter."""
        return self.place.view(self.place.share(parameter, self.expert))

    @property
    def value(self) -> Tensor:
        """The expert's tensor."""
        return self.of(self.parameter)


def _dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)


def _blocks(weights: Mapping[str, Mapping[Any, Weight]], most: int) -> list[list[str]]:
    """Names of the layers that share a pass, pass by pass, in file order."""
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
    """Each kind for each weight, summed over the rows of this process."""
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
    """Yield (index of a weight, its gradients [n, …] of n values, float32 or better); skip unreached weights."""
    each = torch.eye(len(values), dtype=values.dtype, device=values.device)
    parameters = list({id(weight.parameter): weight.parameter for weight in weights}.values())
    found = torch.autograd.grad(values, parameters, each, retain_graph=True, allow_unused=True, is_grads_batched=True)
    by_parameter = {id(parameter): gradients for parameter, gradients in zip(parameters, found, strict=True)}
    for place, weight in enumerate(weights):
        gradients = by_parameter[id(weight.parameter)]
        if gradients is not None:  # None: no token of the row reached the expert
            ours = torch.stack([weight.of(gradient) for gradient in gradients])
            yield place, ours.to(_dtype(ours))


def rows(batches: Iterable[Batch], causal: bool) -> Iterator[dict[str, Tensor]]:
    """Yield each row that has a label, as a batch of its own, cut after its last real token."""
    for batch in batches:
        masks = real_tokens(batch, causal)
        stacks = {name: "decoder" if causal or name.startswith(("decoder", "labels")) else "encoder" for name in batch}
        for i, labels in enumerate(batch["labels"]):
            if not (labels != IGNORED).any():
                continue
            ends = {stack: int(mask[i].nonzero().max()) + 1 for stack, mask in masks.items()}
            yield {name: value[i : i + 1, : ends[stacks[name]]] for name, value in batch.items()}


def likely(p: Tensor) -> Tensor:
    """Mask [L, V] of the fewest tokens whose probabilities sum to `MASS`; ties go to the lower token id.

    p: [L, V], one distribution per row.
    """
    ranked, order = p.double().sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1).roll(1, -1)  # mass of the more probable tokens
    before[:, 0] = 0
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < MASS)
