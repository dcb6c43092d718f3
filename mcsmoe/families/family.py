"""The interface of a model family, and the registry of families by model type."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn

from mcsmoe.errors import CheckpointError, ParameterError, nearest, shown
from mcsmoe.families.configs import model_type_of, values_of
from mcsmoe.families.layer import MoELayer, Routing
from mcsmoe.model_types import MERGED, REFUSED
from mcsmoe.params import Exclude
from mcsmoe.registry import Registry


class Family(ABC):
    """A model family: how to find its sparse layers, watch its routers and write its merged form.

    One object serves both the stock and the merged form. A `config` is a transformers object or the dict of a
    config.json. `layers` and `routing` accept both forms; all other methods expect the stock form.
    """

    auto_class: str
    """Name of the transformers Auto class, e.g. AutoModelForSeq2SeqLM."""
    expert_counts: tuple[str, ...] = ()
    """Fields of config.json that may hold the number of experts; if a file has several of them, they agree.

    "a.b" is field b of object a.
    """
    older_count: str | None = None
    """The field for the number of experts before transformers 5; None if its name has not changed."""
    flat_router: bool = False
    """Whether the stock router takes tokens as [T, d] only, not as [B, S, d]."""
    dense_type: str | None = None
    """Model type of the dense baseline, which has the same active size; None if there is none."""
    run_experts: Callable[..., Tensor] | None = None
    """A faster forward method for the stock experts of a layer, to the same bits; None where transformers is fast."""

    def __init__(self, model_type: str, merged_type: str | None = None) -> None:
        self.model_type = model_type
        self.merged_type = merged_type or MERGED + model_type

    @property
    def causal(self) -> bool:
        """True for decoder-only language models; all their sparse layers are in the stack "decoder"."""
        return self.auto_class == "AutoModelForCausalLM"

    @abstractmethod
    def layers(self, config: Any) -> list[MoELayer]:
        """The sparse layers, in order of the forward pass."""

    @abstractmethod
    def routing(self, block: nn.Module, output: Any) -> Routing:
        """What a router did, with batch and positions flattened into T tokens.

        `block` is the module that owns router and experts; `output` is what the router (stock or merged) returned.
        """

    @abstractmethod
    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, k, d] of the selected experts, and the result that `experts(*arguments)` would have returned.

        `experts` is the forward method of a layer's experts, `arguments` are those that it was called with. Each
        expert runs once per token that selects it.
        """

    @abstractmethod
    def auto_map(self, config: Any) -> dict[str, str]:
        """The `auto_map` of the merged form: Auto class → "file.class" of remote code, for configuration and model."""

    @abstractmethod
    def outside(self, config: Any) -> dict[str, str]:
        """Name on disk → name in memory and in the merged checkpoint, of all tensors outside the experts."""

    @abstractmethod
    def expert_axes(self, config: Any) -> dict[str, int]:
        """Merged name → the axis that counts experts, for each tensor outside the experts that has such an axis.

        These are router matrices, router biases and score corrections, such as `….router.classifier.weight` → 0.
        """

    def hasten(self, model: Any) -> None:
        """Let a stock model in memory run its experts by `run_experts`; a merged one stays as it is."""
        if self.run_experts and model.config.model_type == self.model_type:
            for layer in self.layers(model.config):
                experts = model.get_submodule(layer.experts_path)
                experts.forward = MethodType(self.run_experts, experts)

    def dense_config(self, config: Any) -> dict[str, Any]:
        """The configuration of the dense baseline. Raises `CheckpointError` if the family has none."""
        raise CheckpointError(f"{self.model_type} has no dense counterpart")

    def merged_config(self, config: Any, experts: Mapping[str, int]) -> dict[str, Any]:
        """The config.json of the merged model: the stock one, with `experts[layer name]` experts in each layer.

        Layers that `experts` does not name keep all their experts.
        """
        auto_map = self.auto_map(config)
        return values_of(config) | {
            "model_type": self.merged_type,
            "architectures": [auto_map[self.auto_class].rpartition(".")[2]],
            "auto_map": auto_map,
            "moe_layers": {
                layer.name: self.merged_entry(layer) | {"experts": experts.get(layer.name, layer.experts)}
                for layer in self.layers(config)
            },
        }

    def merged_entry(self, layer: MoELayer) -> dict[str, Any]:
        """What the merged configuration says about a layer besides its number of experts."""
        return {}

    def merged_tensor(self, layer: MoELayer, name: str) -> str:
        """Name in the merged checkpoint of the stack [K, ...] that holds the tensor `name` of every expert."""
        return f"{layer.experts_path}.{name}" + (".weight" if layer.layout[name].is_weight else "")

    def merged_map(self, layer: MoELayer) -> str:
        """Name in the merged checkpoint of the index map [E] int64, original → merged expert."""
        return f"{layer.router_path}.expert_map"


FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.families")


def register(family: Family) -> None:
    """Register a family under the model types of its stock and its merged form."""
    for model_type in (family.model_type, family.merged_type):
        FAMILIES.register(model_type)(family)


def family_of(config: Any) -> Family:
    """The family of a configuration (object or config.json dict).

    Raises `CheckpointError` for an unsupported model type; it gives the reason, or lists the supported ones.
    """
    found = model_type_of(config)
    if found in REFUSED:
        raise CheckpointError(f"model type {found!r} is not supported: {REFUSED[found]}")
    if found not in FAMILIES:
        stock = [name for name in FAMILIES if not name.startswith(MERGED)]
        what = f"model type {shown(found)} is not supported; supported: {', '.join(stock)}{nearest(found, stock)}"
        raise CheckpointError(what)
    return FAMILIES[found]


def auto_class(config: Any) -> str:
    """Name of the transformers Auto class of a configuration object, even if its model type is no family's."""
    if config.model_type in FAMILIES:
        return family_of(config).auto_class
    return "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"


def sparse_layers(config: Any) -> list[MoELayer]:
    """The sparse layers of a configuration, in order of the forward pass. Raises what `family_of` raises."""
    return family_of(config).layers(config)


def excluded_layers(exclude: Exclude, layers: Sequence[MoELayer]) -> list[str]:
    """Names of the excluded layers. Raises `ParameterError` for an index at which there is no sparse layer."""
    names = []
    for stack in ("encoder", "decoder"):
        sparse = {layer.index: layer.name for layer in layers if layer.stack == stack}
        for index in getattr(exclude, stack):
            if index not in sparse:
                raise ParameterError(f"exclude.{stack}", index, f"no sparse layer; sparse are {sorted(sparse)}")
            names.append(sparse[index])
    return names
