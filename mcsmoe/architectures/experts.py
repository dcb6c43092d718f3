"""One expert: read from a checkpoint, and computed on tokens."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from mcsmoe.architectures.layer import Expert, Layout, MoELayer, Role

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class TensorSource(Protocol):
    """What gives tensors by name, such as a `Checkpoint`."""

    def tensor(self, name: str) -> Tensor:
        """The tensor under `name`."""
        ...


def read_expert(checkpoint: TensorSource, layer: MoELayer, expert: int) -> Expert:
    """The tensors of one expert of a stock checkpoint. Raises `CheckpointError` where one is missing."""
    return {name: checkpoint.tensor(layer.tensor(expert, name)) for name in layer.layout}


def hidden(expert: Expert, layout: Layout, activation: str, x: Tensor) -> Tensor:
    """Hidden neurons for tokens x [T, d] → [T, f]: act(up x + b), or act(gate x + b) ⊙ (up x + b)."""
    up = F.linear(x, *_projection(expert, layout, Role.UP, Role.UP_BIAS))
    act = ACTIVATIONS[activation]
    if Role.GATE not in layout.values():
        return act(up)
    return act(F.linear(x, *_projection(expert, layout, Role.GATE, Role.GATE_BIAS))) * up


def forward(expert: Expert, layout: Layout, activation: str, x: Tensor) -> Tensor:
    """Output for tokens x [T, d] → [T, d], not weighted by the gate."""
    inner = hidden(expert, layout, activation, x)
    return F.linear(inner, *_projection(expert, layout, Role.DOWN, Role.DOWN_BIAS))


def _projection(expert: Expert, layout: Layout, weight: Role, bias: Role) -> tuple[Tensor, Tensor | None]:
    by_role = {role: expert[name] for name, role in layout.items()}
    return by_role[weight], by_role.get(bias)
