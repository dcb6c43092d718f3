"""Causal language models whose experts have the common interface of transformers 5: one adapter for all of them.

What differs between them (names of modules, sizes, how activations are gated) is read from the stock class, built
without weights; names on disk come from transformers' own conversion rules.
"""

import copy
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.errors import CheckpointError
from mcsmoe.families.interface import Experts, common
from mcsmoe.families.layer import Family, GroupLimit, MoELayer, Place, Routing
from mcsmoe.families.names import FUSED, MERGED
from mcsmoe.families.naming import Naming
from mcsmoe.families.registry import FAMILIES, configuration, merged_layers

ROUTERS = ("gate", "router")
"""What the router is called in the module that also owns the experts."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
OLDER_COUNTS = {"qwen3_moe": "num_experts"}
"""Of all families here that transformers 4.57 knows, the one whose number of experts has a new name in 5."""


def routing(block: nn.Module, output: tuple[Tensor, ...]) -> Routing:
    """What a router did: it returns (logits, gates, selected experts, …)."""
    logits, gates, index = (value.flatten(0, -2) for value in output[:3])
    return Routing(logits, index, gates)


def expert_outputs(
    experts: Callable[..., Tensor], routing: Routing, x: Tensor, index: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """Each pair of a token and an expert that it selects, run as a token of its own with the gate 1."""
    tokens = x.flatten(0, -2).repeat_interleave(index.shape[1], 0)  # [T·k, d]
    each = experts(tokens, index.reshape(-1, 1), torch.ones_like(gates).reshape(-1, 1)).reshape(*index.shape, -1)
    return each, (each * gates[..., None]).sum(1).to(each.dtype).reshape(x.shape)


@dataclass(frozen=True)
class Kind:
    """What a family says of itself that differs from most: see `Family`, and `common` for `experts`.

    `configuration` and `modeling` name the files of remote code.
    """

    experts: Callable[[Any], Experts | None] = common
    routing: Callable[[nn.Module, Any], Routing] = routing
    expert_outputs: Callable[..., tuple[Tensor, Tensor]] = expert_outputs
    expert_counts: tuple[str, ...] = EXPERT_COUNTS
    configuration: str = "configuration_mcsmoe_fused"
    modeling: str = "modeling_mcsmoe_fused"


MOST = Kind()


def skeleton(config: Any) -> Any:
    """The stock model of a configuration (object or config.json, stock or merged), without memory for weights."""
    import transformers

    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    stock = {key: value for key, value in values.items() if key not in ("auto_map", "architectures")}
    stock["model_type"] = values["model_type"].removeprefix(MERGED)
    merged = merged_layers(values)
    if merged is not None:
        # Where a stock class has a field of this name, it lists the sparse layers by number.
        stock["moe_layers"] = [int(name.rpartition(".")[2]) for name in merged]
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(configuration(stock))


def layers(config: Any, kind: Kind = MOST) -> list[MoELayer]:
    """The sparse layers, in order of the forward pass. Raises `CheckpointError` where no router is found."""
    model = skeleton(config)
    naming = Naming(model)
    return [_layer(model, naming, path, experts) for path, experts in _experts(model, kind).items()]


def _experts(model: nn.Module, kind: Kind) -> dict[str, Experts]:
    """What `kind` knows as experts, by the path of the module."""
    found = {path: kind.experts(module) for path, module in model.named_modules() if path}
    return {path: experts for path, experts in found.items() if experts is not None}


def _layer(model: nn.Module, naming: Naming, path: str, experts: Experts) -> MoELayer:
    owner = path.rpartition(".")[0]
    block: Any = model.get_submodule(owner)
    router = next((name for name, _ in block.named_children() if name in ROUTERS), None)
    if router is None:
        raise CheckpointError(f"{owner}: no router beside the experts; known names are {', '.join(ROUTERS)}")
    index = int(re.findall(r"\.(\d+)\.", path)[0])
    memory = {name: replace(place, tensor=f"{path}.{place.tensor}") for name, place in experts.places.items()}
    weight = next(name for name, value in getattr(block, router).named_parameters() if value.ndim == 2)
    return MoELayer(
        name=f"decoder.{index}",
        path=owner,
        experts=experts.count,
        top_k=_top_k(model.config, block, router),
        d_model=experts.d_model,
        d_ff=experts.d_ff,
        layout=experts.layout,
        activation=experts.activation,
        router_path=f"{owner}.{router}",
        router_weight=naming.parts(f"{owner}.{router}.{weight}")[0],
        stack="decoder",
        index=index,
        places={name: _on_disk(naming, place, name) for name, place in memory.items()},
        in_memory=memory,
        limit=_limit(getattr(block, router)),
    )


def _on_disk(naming: Naming, place: Place, name: str) -> Place:
    parts = naming.parts(place.tensor)
    if "{expert}" not in parts[0]:
        return replace(place, tensor=parts[0])
    return Place(parts[-1] if name.startswith("up") else parts[0])


def _top_k(config: Any, block: Any, router: str) -> int:
    names = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k")
    for owner in (config, getattr(block, router), block):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    raise CheckpointError(f"{config.model_type}: cannot tell how many experts a token selects")


def _limit(router: Any) -> GroupLimit | None:
    # DeepSeek-V2, which alone names its method, scores a group by its best expert; all later ones by two.
    method = getattr(router, "topk_method", None)
    if method == "greedy" or not hasattr(router, "num_group"):
        return None
    return GroupLimit(router.num_group, router.topk_group, scored=1 if method else 2)


def merged_config(config: Any, experts: Mapping[str, int], kind: Kind = MOST) -> dict[str, Any]:
    """The config.json of the merged model: `experts[layer name]` dense experts a layer, all else unchanged.

    Layers that `experts` leaves out keep all of theirs.
    """
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    model = skeleton(config)
    moe_layers = {
        layer.name: {
            "path": layer.path,
            "router": layer.router_path.rpartition(".")[2],
            "experts": experts.get(layer.name, layer.experts),
        }
        for layer in layers(config, kind)
    }
    name = f"MCSMoE{type(model).__name__}"
    return values | {
        "model_type": MERGED + values["model_type"],
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"{kind.configuration}.MCSMoE{type(model.config).__name__}",
            "AutoModelForCausalLM": f"{kind.modeling}.{name}",
        },
        "moe_layers": moe_layers,
    }


def merged_tensor(layer: MoELayer, name: str) -> str:
    """The stack [K, ...] of one kind of expert tensor."""
    return f"{layer.experts_path}.{name}" + (".weight" if layer.layout[name].is_weight else "")


def merged_map(layer: MoELayer) -> str:
    """The index map E → K [E], int64."""
    return f"{layer.router_path}.expert_map"


def merged_names(config: Any, names: Collection[str], kind: Kind = MOST) -> dict[str, str]:
    """Name on disk → name in the merged checkpoint, of what is no expert; tensors that loading ignores are left out.

    Raises `CheckpointError` for a tensor that the model does not have.
    """
    model = skeleton(config)
    inside = tuple(f"{path}." for path in _experts(model, kind))
    known = Naming(model).others(name for name in model.state_dict() if not name.startswith(inside))
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unknown = [n for n in names if n not in known and not any(pattern.search(n) for pattern in ignored)]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors that the model does not have, the first is {min(unknown)}")
    return {name: known[name] for name in names if name in known}


def expert_axes(config: Any, kind: Kind = MOST) -> dict[str, int]:
    """Where shapes change when the configuration has twice as many experts."""
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    twice = skeleton(_doubled(values, kind.expert_counts)).state_dict()
    model = skeleton(values)
    inside = tuple(f"{path}." for path in _experts(model, kind))
    return {
        name: axis
        for name, value in model.state_dict().items()
        if not name.startswith(inside)
        for axis, (size, other) in enumerate(zip(value.shape, twice[name].shape))
        if size != other
    }


def _doubled(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    twice = copy.deepcopy(dict(values))
    for name in names:
        *owners, last = name.split(".")
        inside: Any = reduce(lambda value, owner: value.get(owner) or {}, owners, twice)
        if last in inside:
            inside[last] *= 2
    return twice


def register(model_type: str, kind: Kind = MOST) -> None:
    """File a family and its merged form."""
    for each in (model_type, MERGED + model_type):
        FAMILIES.register(each)(
            Family(
                model_type=each,
                auto_class="AutoModelForCausalLM",
                layers=partial(layers, kind=kind),
                routing=kind.routing,
                expert_outputs=kind.expert_outputs,
                merged_config=partial(merged_config, kind=kind),
                merged_tensor=merged_tensor,
                merged_map=merged_map,
                merged_names=partial(merged_names, kind=kind),
                expert_counts=kind.expert_counts,
                expert_axes=partial(expert_axes, kind=kind),
                older_count=OLDER_COUNTS.get(model_type),
            )
        )


for model_type in FUSED:
    register(model_type)
register("fsgpt_moe", Kind(configuration="configuration_mcsmoe_fsgpt", modeling="modeling_mcsmoe_fsgpt"))
