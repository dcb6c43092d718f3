"""An expert, a sparse layer and a family, as data: what algorithms know of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

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


@dataclass(frozen=True)
class MoELayer:
    """One sparse layer of one checkpoint: sizes, and the names of its modules and tensors.

    `name` is short and unique ("encoder.1"); `path` is the module that owns router and experts.
    """

    name: str
    path: str
    experts: int
    top_k: int
    d_model: int
    d_ff: int
    layout: Layout
    activation: str
    router: str
    stack: str
    index: int

    @property
    def router_path(self) -> str:
        """Module path of the router."""
        return f"{self.path}.router"

    @property
    def router_weight(self) -> str:
        """The checkpoint's name of the router matrix R [E, d]."""
        return f"{self.router_path}.classifier.weight"

    def tensor(self, expert: int, name: str) -> str:
        """The checkpoint's name of tensor `name` of one expert."""
        return f"{self.path}.experts.expert_{expert}.{name}.weight"


@dataclass(frozen=True)
class Routing:
    """What a router did with one batch of tokens: logits [T, E], selected experts [T, k], their gates [T, k].

    Gates are the weights with which expert outputs are summed; selection is taken before any capacity limit.
    """

    logits: Tensor
    index: Tensor
    gates: Tensor


@dataclass(frozen=True)
class Family:
    """A model family: how to find its sparse layers, watch its routers and write its merged form."""

    model_type: str
    auto_class: str  # name of the transformers Auto class, e.g. AutoModelForSeq2SeqLM
    layers: Callable[[Any], list[MoELayer]]
    """config → its sparse layers, in order of the forward pass."""
    routing: Callable[[nn.Module, Any], Routing]
    """(router module, its forward output) → `Routing`, flattened over batch and positions."""
    merged_config: Callable[[Any, Mapping[str, int]], dict[str, Any]]
    """(source config, experts kept by layer name) → config.json of the merged model class."""
    merged_tensor: Callable[[MoELayer, str], str]
    """(layer, tensor name) → name of the stacked tensor [K, ...] in the merged checkpoint."""
    merged_map: Callable[[MoELayer], str]
    """layer → name of the index map E → K in the merged checkpoint."""
    dense_config: Callable[[Any], dict[str, Any]] | None = None
    """source config → configuration of a dense model of the same active size, the baseline; None: there is none."""

    @property
    def causal(self) -> bool:
        """True for decoder-only language models; all their sparse layers have the stack "decoder"."""
        return self.auto_class == "AutoModelForCausalLM"
