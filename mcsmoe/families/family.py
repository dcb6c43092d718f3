"""What the rest of the project asks of a model family, and the families by model type."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.families.configs import model_type_of, values_of
from mcsmoe.families.layer import MoELayer, Routing
from mcsmoe.model_types import MERGED, REFUSED
from mcsmoe.params import Exclude
from mcsmoe.registry import Registry


class Family(ABC):
    """A model family: how to find its sparse layers, watch its routers and write its merged form.

    One object answers for the stock form and for the merged one. A `config` is an object of transformers or the dict
    of a config.json; `layers` and `routing` take either form's, all other methods the stock one's.
    """

    auto_class: str
    """Name of the transformers Auto class, e.g. AutoModelForSeq2SeqLM."""
    expert_counts: tuple[str, ...] = ()
    """What the number of experts is called in config.json; a file has one of these names, or more that agree.

    "a.b" is the b of the object a.
    """
    older_count: str | None = None
    """What transformers before 5 calls the number of experts, where 5 saves it under another name."""
    dense_type: str | None = None
    """Model type of a dense model of the same active size, the baseline; None where there is none."""

    def __init__(self, model_type: str, merged_type: str | None = None) -> None:
        self.model_type = model_type
        self.merged_type = merged_type or MERGED + model_type

    @property
    def causal(self) -> bool:
        """True for decoder-only language models; all their sparse layers have the stack "decoder"."""
        return self.auto_class == "AutoModelForCausalLM"

    @abstractmethod
    def layers(self, config: Any) -> list[MoELayer]:
        """The sparse layers, in order of the forward pass."""

    @abstractmethod
    def routing(self, block: nn.Module, output: Any) -> Routing:
        """What a router did, flattened over batch and positions.

        `block` owns router and experts; `output` is what the router, stock or merged, returned.
        """

    @abstractmethod
    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, k, d] of the selected experts, and what their forward would have returned.

        `experts` is the forward of a layer's experts, `arguments` what it was called with. Each expert runs once on
        each token that selects it.
        """

    @abstractmethod
    def auto_map(self, config: Any) -> dict[str, str]:
        """Auto class → "file.class" of remote code, for the configuration and the model of the merged form."""

    @abstractmethod
    def expert_axes(self, config: Any) -> dict[str, int]:
        """The axis that counts experts in each tensor that has one and is no expert's, by its name when merged.

        Such are router rows, biases of routers, corrections of their scores.
        """

    def dense_config(self, config: Any) -> dict[str, Any]:
        """Configuration of the dense model. Raises `CheckpointError` where there is none."""
        raise CheckpointError(f"{self.model_type} has no dense counterpart")

    def merged_config(self, config: Any, experts: Mapping[str, int]) -> dict[str, Any]:
        """The config.json of the merged model: `experts[layer name]` dense experts a layer, all else unchanged.

        Layers that `experts` leaves out keep all of theirs.
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
        """What the merged configuration says of a layer beside its number of experts."""
        return {}

    def merged_tensor(self, layer: MoELayer, name: str) -> str:
        """Name, in the merged checkpoint, of the stack [K, ...] of one kind of expert tensor."""
        return f"{layer.experts_path}.{name}" + (".weight" if layer.layout[name].is_weight else "")

    def merged_map(self, layer: MoELayer) -> str:
        """Name, in the merged checkpoint, of the index map E → K [E], int64."""
        return f"{layer.router_path}.expert_map"

    def merged_names(self, config: Any, names: Collection[str]) -> dict[str, str]:
        """Name on disk → name in the merged checkpoint, of tensors `names` that are no experts.

        Tensors that loading ignores are left out. Raises `CheckpointError` for one that the model does not have.
        """
        return {name: name for name in names}


FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.families")


def register(family: Family) -> None:
    """File a family under the model types of its stock and its merged form."""
    for model_type in (family.model_type, family.merged_type):
        FAMILIES.register(model_type)(family)


def family_of(config: Any) -> Family:
    """The family of a configuration (object, or the dict of a config.json).

    Raises `CheckpointError` naming the model type found and those supported, or why this one is not.
    """
    found = model_type_of(config)
    if found in REFUSED:
        raise CheckpointError(f"model type {found!r} is not supported: {REFUSED[found]}")
    if found not in FAMILIES:
        stock = ", ".join(name for name in FAMILIES if not name.startswith(MERGED))
        raise CheckpointError(f"model type {found!r} is not supported; supported: {stock}")
    return FAMILIES[found]


def sparse_layers(config: Any) -> list[MoELayer]:
    """The sparse layers of a configuration, in order of the forward pass."""
    return family_of(config).layers(config)


def excluded_layers(exclude: Exclude, layers: Sequence[MoELayer]) -> list[str]:
    """Names of the layers that stay untouched. Raises `ParameterError` for an index with no sparse layer."""
    names = []
    for stack in ("encoder", "decoder"):
        sparse = {layer.index: layer.name for layer in layers if layer.stack == stack}
        for index in getattr(exclude, stack):
            if index not in sparse:
                raise ParameterError(f"exclude.{stack}", index, f"no sparse layer; sparse are {sorted(sparse)}")
            names.append(sparse[index])
    return names
