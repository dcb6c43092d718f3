"""Causal language models whose experts have the common interface of transformers 5: one adapter for all of them.

What differs between them (names of modules, sizes, how activations are gated) is read from the stock class, built
without weights; names on disk come from transformers' own conversion rules.
"""

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.architectures.configuration import configuration
from mcsmoe.architectures.layer import Activation, Family, GroupLimit, Layout, MoELayer, Place, Role, Routing
from mcsmoe.architectures.naming import Naming, is_experts
from mcsmoe.architectures.registry import FAMILIES
from mcsmoe.errors import CheckpointError
from mcsmoe.families import FUSED, MERGED

ROUTERS = ("gate", "router")
"""What the router is called in the module that also owns the experts."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
OLDER_COUNTS = {"qwen3_moe": "num_experts"}
"""Of all families here that transformers 4.57 knows, the one whose number of experts has a new name in 5."""
GATED = {"gate": Role.GATE, "up": Role.UP, "down": Role.DOWN}
PLAIN = {"up": Role.UP, "down": Role.DOWN}
BIASES = {"gate": Role.GATE_BIAS, "up": Role.UP_BIAS, "down": Role.DOWN_BIAS}


def skeleton(config: Any) -> Any:
    """The stock model of a configuration (object or config.json, stock or merged), without memory for weights."""
    import transformers

    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    stock = {key: value for key, value in values.items() if key not in ("auto_map", "moe_layers", "architectures")}
    stock["model_type"] = values["model_type"].removeprefix(MERGED)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(configuration(stock))


def layers(config: Any) -> list[MoELayer]:
    """The sparse layers, in order of the forward pass. Raises `CheckpointError` where no router is found."""
    model = skeleton(config)
    naming = Naming(model)
    return [_layer(model, naming, path) for path, module in model.named_modules() if path and is_experts(module)]


def _layer(model: nn.Module, naming: Naming, path: str) -> MoELayer:
    owner = path.rpartition(".")[0]
    block: Any = model.get_submodule(owner)
    experts: Any = model.get_submodule(path)
    router = next((name for name, _ in block.named_children() if name in ROUTERS), None)
    if router is None:
        raise CheckpointError(f"{owner}: no router beside the experts; known names are {', '.join(ROUTERS)}")
    index = int(re.findall(r"\.(\d+)\.", path)[0])
    d_model, d_ff = experts.down_proj.shape[1:]
    if experts.is_transposed:
        d_model, d_ff = d_ff, d_model
    layout = _layout(experts)
    memory = {name: _in_memory(path, experts, name) for name in layout}
    weight = next(name for name, value in getattr(block, router).named_parameters() if value.ndim == 2)
    return MoELayer(
        name=f"decoder.{index}",
        path=owner,
        experts=experts.num_experts,
        top_k=_top_k(model.config, block, router),
        d_model=d_model,
        d_ff=d_ff,
        layout=layout,
        activation=_activation(experts),
        router_path=f"{owner}.{router}",
        router_weight=naming.parts(f"{owner}.{router}.{weight}")[0],
        stack="decoder",
        index=index,
        places={name: _on_disk(naming, place, name) for name, place in memory.items()},
        in_memory=memory,
        limit=_limit(getattr(block, router)),
    )


def _layout(experts: Any) -> Layout:
    weights = GATED if experts.has_gate else PLAIN
    biases = {f"{name}_bias": BIASES[name] for name in weights} if experts.has_bias else {}
    return weights | biases


def _in_memory(path: str, experts: Any, name: str) -> Place:
    """Gate and up lie in one stack, one after the other or row by row in turn."""
    kind, bias = name.removesuffix("_bias"), name.endswith("_bias")
    fused = "gate_up_proj" if experts.has_gate and kind != "down" else f"{kind}_proj"
    rows = None
    if fused == "gate_up_proj":
        half = experts.gate_up_proj.shape[2 if experts.is_transposed else 1] // 2
        first = kind == "gate"
        if experts.is_concatenated:
            rows = slice(0, half) if first else slice(half, 2 * half)
        else:
            rows = slice(0 if first else 1, None, 2)
    return Place(f"{path}.{fused}{'_bias' if bias else ''}", rows, experts.is_transposed and not bias)


def _on_disk(naming: Naming, place: Place, name: str) -> Place:
    parts = naming.parts(place.tensor)
    if "{expert}" not in parts[0]:
        return Place(parts[0], place.rows, place.transposed)
    return Place(parts[-1] if name.startswith("up") else parts[0])


def _activation(experts: Any) -> Activation:
    def gated(gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is None:
            plain: Tensor = experts.act_fn(up)
            return plain
        both = torch.cat([gate, up], -1) if experts.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        inner: Tensor = experts._apply_gate(both)
        return inner

    return gated


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


def routing(router: nn.Module, output: tuple[Tensor, ...]) -> Routing:
    """What a router did: it returns (logits, gates, selected experts, …)."""
    logits, gates, index = (value.flatten(0, -2) for value in output[:3])
    return Routing(logits, index, gates)


def merged_config(config: Any, experts: Mapping[str, int], code: str = "fused") -> dict[str, Any]:
    """The config.json of the merged model: `experts[layer name]` dense experts a layer, all else unchanged.

    Layers that `experts` leaves out keep all of theirs. `code` names the files of remote code.
    """
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    model = skeleton(config)
    moe_layers = {
        layer.name: {
            "path": layer.path,
            "router": layer.router_path.rpartition(".")[2],
            "experts": experts.get(layer.name, layer.experts),
        }
        for layer in layers(config)
    }
    name = f"MCSMoE{type(model).__name__}"
    return values | {
        "model_type": MERGED + values["model_type"],
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"configuration_mcsmoe_{code}.MCSMoE{type(model.config).__name__}",
            "AutoModelForCausalLM": f"modeling_mcsmoe_{code}.{name}",
        },
        "moe_layers": moe_layers,
    }


def merged_tensor(layer: MoELayer, name: str) -> str:
    """The stack [K, ...] of one kind of expert tensor."""
    return f"{layer.experts_path}.{name}" + (".weight" if layer.layout[name].is_weight else "")


def merged_map(layer: MoELayer) -> str:
    """The index map E → K [E], int64."""
    return f"{layer.router_path}.expert_map"


def merged_names(config: Any, names: Collection[str]) -> dict[str, str]:
    """Name on disk → name in the merged checkpoint, of what is no expert; tensors that loading ignores are left out.

    Raises `CheckpointError` for a tensor that the model does not have.
    """
    model = skeleton(config)
    inside = tuple(f"{path}." for path, module in model.named_modules() if is_experts(module))
    known = Naming(model).others(name for name in model.state_dict() if not name.startswith(inside))
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    unknown = [n for n in names if n not in known and not any(pattern.search(n) for pattern in ignored)]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors that the model does not have, the first is {min(unknown)}")
    return {name: known[name] for name in names if name in known}


def expert_axes(config: Any) -> dict[str, int]:
    """Where shapes change when the configuration has twice as many experts."""
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    twice = skeleton(values | {name: 2 * values[name] for name in EXPERT_COUNTS if name in values}).state_dict()
    model = skeleton(values)
    inside = tuple(f"{path}." for path, module in model.named_modules() if is_experts(module))
    return {
        name: axis
        for name, value in model.state_dict().items()
        if not name.startswith(inside)
        for axis, (size, other) in enumerate(zip(value.shape, twice[name].shape))
        if size != other
    }


def register(model_type: str, code: str = "fused") -> None:
    """File a family and its merged form; `code` names the files of remote code."""
    for each in (model_type, MERGED + model_type):
        FAMILIES.register(each)(
            Family(
                model_type=each,
                auto_class="AutoModelForCausalLM",
                layers=layers,
                routing=routing,
                merged_config=partial(merged_config, code=code),
                merged_tensor=merged_tensor,
                merged_map=merged_map,
                merged_names=merged_names,
                expert_counts=EXPERT_COUNTS,
                expert_axes=expert_axes,
                older_count=OLDER_COUNTS.get(model_type),
            )
        )


for model_type in FUSED:
    register(model_type)
register("fsgpt_moe", "fsgpt")
