"""Single experts: reading them from a checkpoint or a model in memory, and computing their outputs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.families.configs import configuration
from mcsmoe.families.family import family_of
from mcsmoe.families.layer import Activation, Expert, Layout, MoELayer, Role, TensorSource


def read_expert(checkpoint: TensorSource, layer: MoELayer, expert: int) -> Expert:
    """The tensors of one expert of a stock checkpoint, by name. Raises `CheckpointError` if one is missing."""
    return {name: layer.read(checkpoint, expert, name) for name in layer.layout}


class InMemory(TensorSource):
    """Parameters and buffers of a loaded model, by name."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer called `name`."""
        path, _, leaf = name.rpartition(".")
        value: Tensor = getattr(self._model.get_submodule(path), leaf)
        return value


def expert_in_memory(model: nn.Module, layer: MoELayer, expert: int) -> Expert:
    """The tensors of one expert of a loaded stock model, by name."""
    source = InMemory(model)
    return {name: place.read(source, expert) for name, place in layer.in_memory.items()}


def hidden(expert: Expert, layout: Layout, activation: Activation, x: Tensor) -> Tensor:
    """Activations of the hidden neurons [T, f] for tokens x [T, d].

    act(up x + b), or act(gate x + b) ⊙ (up x + b) for an expert with a gate projection.
    """
    up = F.linear(x, *_projection(expert, layout, Role.UP, Role.UP_BIAS))
    if Role.GATE not in layout.values():
        return activation(None, up)
    return activation(F.linear(x, *_projection(expert, layout, Role.GATE, Role.GATE_BIAS)), up)


def forward(expert: Expert, layout: Layout, activation: Activation, x: Tensor) -> Tensor:
    """Output of an expert [T, d] for tokens x [T, d], not weighted by the router's gate."""
    inner = hidden(expert, layout, activation, x)
    return F.linear(inner, *_projection(expert, layout, Role.DOWN, Role.DOWN_BIAS))


def _projection(expert: Expert, layout: Layout, weight: Role, bias: Role) -> tuple[Tensor, Tensor | None]:
    by_role = {role: expert[name] for name, role in layout.items()}
    return by_role[weight], by_role.get(bias)


class Share(NamedTuple):
    """One expert's share of a tensor, and which `names` of the layout it holds.

    `entry` is the index or slice along the first axis of a stack; None if the whole tensor belongs to the expert.
    GPT-OSS: `Share("….experts.gate_up_proj", 3, 3, ("gate", "up"))`.
    """

    tensor: str
    entry: int | slice | None
    expert: int
    names: tuple[str, ...]


def expert_shares(layer: MoELayer, experts: int) -> Iterator[Share]:
    """The shares of the first `experts` experts of a layer, expert by expert."""
    for e in range(experts):
        held: dict[str, list[str]] = defaultdict(list)
        for name, place in layer.places.items():
            held[place.name(e)].append(name)
        for tensor, names in held.items():
            place = layer.places[names[0]]
            yield Share(tensor, place.index(e) if place.stacked else None, e, tuple(names))


def share_shape(layer: MoELayer, names: Sequence[str]) -> tuple[int, ...]:
    """Shape of one expert's share, of a published tensor that holds `names`; gate and up: [2f, d]."""
    shapes = layer.shapes()
    shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
    return shape[::-1] if layer.places[names[0]].transposed else shape


def share_in_memory(layer: MoELayer, names: Sequence[str], source: TensorSource, expert: int) -> Tensor:
    """One expert's share of a published tensor that holds `names`; `source` has tensors by their names in memory.

    A share that lies in memory as it is published is not copied.
    """
    values = {name: layer.in_memory[name].read(source, expert).detach() for name in names}
    if len(names) == 1 and layer.places[names[0]].view(values[names[0]]) is values[names[0]]:
        return values[names[0]]
    share = values[names[0]].new_empty(share_shape(layer, names))
    for name, value in values.items():
        layer.places[name].view(share).copy_(value)
    return share


def mapped_model(model: Any) -> Any:
    """A stock model in its merged class, with K = E and identity index maps: same logits, weights copied.

    Keeps dtype, device, training mode and generation settings.
    """
    import transformers

    family = family_of(model.config)
    values = family.merged_config(model.config, {})
    config = configuration(values)
    state = dict(model.state_dict())
    for layer in family.layers(model.config):
        experts = [expert_in_memory(model, layer, e) for e in range(layer.experts)]
        for name, place in layer.in_memory.items():
            state[family.merged_tensor(layer, name)] = torch.stack([expert[name] for expert in experts]).detach()
            for e in range(layer.experts):
                state.pop(place.name(e), None)  # gate and up may share a tensor
        state[family.merged_map(layer)] = torch.arange(layer.experts, device=model.device)
    mapped = getattr(transformers, family.auto_class).from_config(config, dtype=model.dtype)
    for name, value in mapped.state_dict(keep_vars=True).items():
        value.data = value.data.to(state[name].dtype)  # some classes keep a few tensors in float32
    mapped.to(model.device).load_state_dict(state)
    mapped.generation_config = model.generation_config
    return mapped.train(model.training)
