"""Experts and sparse layers as plain data: all that algorithms know about a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

Expert = dict[str, Tensor]
"""The tensors of one expert, by their name in the layer's `Layout`; Switch: `{"wi": [f, d], "wo": [d, f]}`."""


class Role(Enum):
    """What a tensor of an expert is."""

    GATE = "gate"  # [f, d], the gate projection: passes through the activation and multiplies UP
    UP = "up"  # [f, d], the up projection: the only in-projection of an expert without a gate projection
    GATE_BIAS = "gate-bias"  # [f]
    UP_BIAS = "up-bias"  # [f]
    DOWN = "down"  # [d, f], the out-projection
    DOWN_BIAS = "down-bias"  # [d]

    @property
    def hidden_axis(self) -> int | None:
        """The axis along which hidden neurons run, which a permutation reorders; None if there is none."""
        return {Role.DOWN: 1, Role.DOWN_BIAS: None}.get(self, 0)

    @property
    def is_weight(self) -> bool:
        """True for matrices, False for biases."""
        return self in (Role.GATE, Role.UP, Role.DOWN)


Layout = Mapping[str, Role]
"""The tensors of an expert: name → role; Switch: `{"wi": Role.UP, "wo": Role.DOWN}`."""

Activation = Callable[[Tensor | None, Tensor], Tensor]
"""(gate [T, f], up [T, f]) → hidden neurons [T, f]; gate is None for an expert without a gate projection."""


class TensorSource(Protocol):
    """Anything that gives tensors by name, such as a `Checkpoint`."""

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`."""

    def part(self, name: str, index: int | slice) -> Tensor:
        """The entry or slice `index` along the first axis of the tensor called `name`."""
        return self.tensor(name)[index]


@dataclass(frozen=True)
class Place:
    """Where a checkpoint or model keeps one tensor of every expert: one tensor per expert, or a stack of all experts.

        Place("mlp.experts.{expert}.w1.weight")          one tensor per expert
        Place("gate_up_proj", rows=slice(0, f))          stack [E, 2f, d] → [e, 0:f]
        Place("mlp.w1", height=f)                        stack [E·f, d] → rows e·f:(e+1)·f
        Place("down_proj", transposed=True)              stack [E, f, d] → [e] transposed, [d, f]

    `transposed` applies before `rows`; `rows` None takes all.
    """

    tensor: str
    rows: slice | None = None
    transposed: bool = False
    height: int | None = None

    @property
    def stacked(self) -> bool:
        """True if all experts share the tensor."""
        return "{expert}" not in self.tensor

    def name(self, expert: int) -> str:
        """Name of the tensor that holds this expert's values."""
        return self.tensor.replace("{expert}", str(expert))

    def index(self, expert: int) -> int | slice:
        """Where this expert's share lies along the first axis of a stack."""
        return expert if self.height is None else slice(expert * self.height, (expert + 1) * self.height)

    def share(self, whole: Tensor, expert: int) -> Tensor:
        """One expert's share of the tensor `whole`, as a view."""
        return whole[self.index(expert)] if self.stacked else whole

    def view(self, share: Tensor) -> Tensor:
        """This tensor within one expert's share, as a view: `share` [2f, d] → [f, d] for `rows` 0:f."""
        turned = share.transpose(-1, -2) if self.transposed else share
        return turned if self.rows is None else turned[self.rows]

    def read(self, source: TensorSource, expert: int) -> Tensor:
        """The tensor of one expert, read from `source`."""
        name = self.name(expert)
        return self.view(source.part(name, self.index(expert)) if self.stacked else source.tensor(name))


@dataclass(frozen=True)
class GroupLimit:
    """Group-limited selection: only experts in the best `kept` of `groups` router groups can be selected.

    Router groups are equally many neighbouring experts each. The score of a router group is the sum of its best
    `scored` expert scores. Source: arXiv 2405.04434, §2.2.2.
    """

    groups: int
    kept: int
    scored: int


@dataclass(frozen=True)
class MoELayer:
    """One sparse layer of a model: its sizes, modules, and where its experts lie.

    - `name`: short and unique, "encoder.1" for `stack` "encoder" and `index` 1.
    - `path`: the module that owns router and experts.
    - `places`: where a stock checkpoint keeps each tensor of `layout`; `in_memory`: where a loaded stock model does.
    - `router_weight`: name of the router matrix R [E, d] in the stock checkpoint.
    - `excludes`: whether the router of the merged form can give dropped experts no probability.
    - `limit`: group-limited selection; None if the router may select any experts.
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
        """Shape of each tensor of one expert: `{"wi": (f, d), "wo": (d, f)}`."""
        sizes = {
            Role.DOWN: (self.d_model, self.d_ff),
            Role.DOWN_BIAS: (self.d_model,),
            Role.GATE_BIAS: (self.d_ff,),
            Role.UP_BIAS: (self.d_ff,),
        }
        return {name: sizes.get(role, (self.d_ff, self.d_model)) for name, role in self.layout.items()}

    def read(self, source: TensorSource, expert: int, name: str) -> Tensor:
        """One tensor of one expert of a stock checkpoint. Raises `CheckpointError` if it is missing."""
        return self.places[name].read(source, expert)


@dataclass(frozen=True)
class Routing:
    """What a router did with one batch of T tokens.

    - `logits` [T, E]: the router logits.
    - `index` [T, k]: the selected experts, not cut to expert capacity.
    - `gates` [T, k]: the weights with which their outputs are summed.
    - `inputs` [T, d]: what the router saw; the experts may see something else. Filled in by `watch`.
    - `scale` [T, 1]: the factor by which `inputs` are multiplied before the experts see them; None for no factor.
    - `norms` [T, k]: L2 norms of the selected experts' outputs, not multiplied by gates and not cut to expert capacity.
      Filled in by `watch` on request.
    """

    logits: Tensor
    index: Tensor
    gates: Tensor
    inputs: Tensor | None = None
    scale: Tensor | None = None
    norms: Tensor | None = None
