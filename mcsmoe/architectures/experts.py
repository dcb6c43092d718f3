"""One expert: read from a checkpoint, and computed on tokens."""

from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.architectures.layer import Activation, Expert, Layout, MoELayer, Role, TensorSource


def read_expert(checkpoint: TensorSource, layer: MoELayer, expert: int) -> Expert:
    """The tensors of one expert of a stock checkpoint. Raises `CheckpointError` where one is missing."""
    return {name: layer.read(checkpoint, expert, name) for name in layer.layout}


class InMemory(TensorSource):
    """The parameters of a loaded model as a `TensorSource`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def tensor(self, name: str) -> Tensor:
        """The parameter under `name`."""
        return self._model.get_parameter(name)


def expert_in_memory(model: nn.Module, layer: MoELayer, expert: int) -> Expert:
    """The tensors of one expert of a loaded stock model."""
    return {name: place.read(InMemory(model), expert) for name, place in layer.in_memory.items()}


def hidden(expert: Expert, layout: Layout, activation: Activation, x: Tensor) -> Tensor:
    """Hidden neurons for tokens x [T, d] → [T, f]: act(up x + b), or act(gate x + b) ⊙ (up x + b)."""
    up = F.linear(x, *_projection(expert, layout, Role.UP, Role.UP_BIAS))
    if Role.GATE not in layout.values():
        return activation(None, up)
    return activation(F.linear(x, *_projection(expert, layout, Role.GATE, Role.GATE_BIAS)), up)


def forward(expert: Expert, layout: Layout, activation: Activation, x: Tensor) -> Tensor:
    """Output for tokens x [T, d] → [T, d], not weighted by the gate."""
    inner = hidden(expert, layout, activation, x)
    return F.linear(inner, *_projection(expert, layout, Role.DOWN, Role.DOWN_BIAS))


def _projection(expert: Expert, layout: Layout, weight: Role, bias: Role) -> tuple[Tensor, Tensor | None]:
    by_role = {role: expert[name] for name, role in layout.items()}
    return by_role[weight], by_role.get(bias)
