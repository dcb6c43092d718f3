"""An expert and a sparse layer as data: what algorithms know of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

Expert = dict[str, Tensor]
"""The tensors of one expert by their name in the layer's `Layout` (Switch: `wi` [f, d], `wo` [d, f])."""


class Role(Enum):
    """What a tensor of an expert is; decides along which axis hidden neurons run (None: along no axis)."""

    GATE = "gate"  # [f, d], passes through the activation and multiplies UP
    UP = "up"  # [f, d]; the only in-projection of an expert without gate
    GATE_BIAS = "gate-bias"  # [f]
    UP_BIAS = "up-bias"  # [f]
    DOWN = "down"  # [d, f], the out-projection
    DOWN_BIAS = "down-bias"  # [d]

    @property
    def hidden_axis(self) -> int | None:
        """The axis that moves when hidden neurons are reordered."""
        return {Role.DOWN: 1, Role.DOWN_BIAS: None}.get(self, 0)

    @property
    def is_weight(self) -> bool:
        """True for matrices, False for biases."""
        return self in (Role.GATE, Role.UP, Role.DOWN)


Layout = Mapping[str, Role]

Activation = Callable[[Tensor | None, Tensor], Tensor]
"""(gate [T, f], None for an expert without gate; up [T, f]) → hidden neurons [T, f]."""


class TensorSource(Protocol):
    """What gives tensors by name, such as a `Checkpoint`."""

    def tensor(self, name: str) -> Tensor:
        """The tensor under `name`."""

    def part(self, name: str, index: int | slice) -> Tensor:
        """Entry, or entries, `index` along the first axis of the tensor under `name`."""
        return self.tensor(name)[index]


@dataclass(frozen=True)
class Place:
    """Where one kind of expert tensor lies: in a tensor of its own for each expert, or in a stack of all experts.

    `tensor` is a name with `{expert}` in it, or that of a stack. The first axis of a stack counts experts, or, where
    `height` is given, one expert after another has so many rows of it. In one expert's share of it, transposed where
    `transposed` says so, `rows` are the tensor's own (None: all are).
    """

    tensor: str
    rows: slice | None = None
    transposed: bool = False
    height: int | None = None

    @property
    def stacked(self) -> bool:
        """True where all experts share the tensor."""
        return "{expert}" not in self.tensor

    def name(self, expert: int) -> str:
        """Name of the tensor that holds this expert's."""
        return self.tensor.replace("{expert}", str(expert))

    def index(self, expert: int) -> int | slice:
        """Where a stack has this expert's share, along its first axis."""
        return expert if self.height is None else slice(expert * self.height, (expert + 1) * self.height)

    def share(self, whole: Tensor, expert: int) -> Tensor:
        """One expert's share of the tensor; writing to it writes there."""
        return whole[self.index(expert)] if self.stacked else whole

    def view(self, share: Tensor) -> Tensor:
        """Ours of one expert's share of the tensor; writing to it writes there."""
        turned = share.transpose(-1, -2) if self.transposed else share
        return turned if self.rows is None else turned[self.rows]

    def read(self, source: TensorSource, expert: int) -> Tensor:
        """The tensor of one expert."""
        name = self.name(expert)
        return self.view(source.part(name, self.index(expert)) if self.stacked else source.tensor(name))


@dataclass(frozen=True)
class GroupLimit:
    """A router that selects inside `kept` of `groups` equal groups of neighbouring experts (arXiv 2405.04434, §2.2.2).

    A group counts as much as its best `scored` experts do together.
    """

    groups: int
    kept: int
    scored: int


@dataclass(frozen=True)
class MoELayer:
    """One sparse layer of a model: sizes, modules, and where its experts lie.

    `name` is short and unique ("encoder.1"); `path` is the module that owns router and experts. `places` are
    where a stock checkpoint has each tensor of `layout`, `in_memory` where a loaded stock model has it.
    `router_weight` is the checkpoint's name of the router matrix R [E, d]; `excludes` tells whether the merged
    form's router can give single experts no probability.
    """

    name: str
    path: str
    experts: int
    top_k: int
    d_model: int
    d_ff: int
    layout: Layout
    activation: Activation = field(compare=False)
    router_path: str
    router_weight: str
    stack: str
    index: int
    places: Mapping[str, Place]
    in_memory: Mapping[str, Place]
    excludes: bool = False
    limit: GroupLimit | None = None

    @property
    def experts_path(self) -> str:
        """Module path of the experts."""
        return f"{self.path}.experts"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of one expert."""
        sizes = {
            Role.DOWN: (self.d_model, self.d_ff),
            Role.DOWN_BIAS: (self.d_model,),
            Role.GATE_BIAS: (self.d_ff,),
            Role.UP_BIAS: (self.d_ff,),
        }
        return {name: sizes.get(role, (self.d_ff, self.d_model)) for name, role in self.layout.items()}

    def read(self, source: TensorSource, expert: int, name: str) -> Tensor:
        """One tensor of one expert of a stock checkpoint. Raises `CheckpointError` where it is missing."""
        return self.places[name].read(source, expert)


@dataclass(frozen=True)
class Routing:
    """What a router did with one batch of tokens: logits [T, E], selected experts [T, k], their gates [T, k].

    Gates are the weights with which expert outputs are summed; selection is taken before any capacity limit.
    `inputs` [T, d] are what the router saw, which need not be what the experts see; `watch` fills them in.
    Where experts see these inputs multiplied by something, `scale` [T, 1] is that. `outputs` [T, k, d], which `watch`
    fills in where they are asked for, are those of the selected experts, not multiplied by gates nor cut by capacity.
    """

    logits: Tensor
    index: Tensor
    gates: Tensor
    inputs: Tensor | None = None
    scale: Tensor | None = None
    outputs: Tensor | None = None
