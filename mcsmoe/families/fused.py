"""Causal language models with fused experts, the common interface of transformers 5: one class for all of them.

What differs between them (module names, sizes, gating) is read from the stock model, built without weights. Names on
disk come from transformers' own conversion rules.
"""

import copy
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.errors import CheckpointError
from mcsmoe.families.configs import merged_layers, values_of
from mcsmoe.families.family import Family, register
from mcsmoe.families.layer import Activation, GroupLimit, Layout, MoELayer, Place, Role, Routing
from mcsmoe.families.naming import Naming
from mcsmoe.families.skeletons import skeleton
from mcsmoe.model_types import FUSED, MERGED

FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts", "down_proj")
"""Attributes that mark a module of fused experts; transformers' decorator sets most of them."""
ROUTERS = ("gate", "router")
"""Names that the router may have in the module that owns it and the experts."""
TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k")
"""Names that k, the number of experts a token selects, may have in a configuration or a module."""
OLDER_COUNTS = {"qwen3_moe": "num_experts"}
"""Model type → its `older_count`; no other family here that transformers 4.57 knows renamed the field in 5."""

GATED = {"gate": Role.GATE, "up": Role.UP, "down": Role.DOWN}
PLAIN = {"up": Role.UP, "down": Role.DOWN}
BIASES = {"gate": Role.GATE_BIAS, "up": Role.UP_BIAS, "down": Role.DOWN_BIAS}


@dataclass(frozen=True)
class Experts:
    """The experts of one layer: how many, their sizes, and where their module keeps each tensor of `layout`.

    Tensor names in `places` are relative to the module.
    """

    count: int
    d_model: int
    d_ff: int
    layout: Layout
    places: Mapping[str, Place]
    activation: Activation


class Fused(Family):
    """A family with fused experts; a subclass overrides what differs in its models."""

    auto_class = "AutoModelForCausalLM"
    expert_counts: tuple[str, ...] = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    configuration, modeling = "configuration_mcsmoe_fused", "modeling_mcsmoe_fused"
    """Files with the remote code of the merged form."""

    def __init__(self, model_type: str) -> None:
        super().__init__(model_type)
        self.older_count = OLDER_COUNTS.get(model_type)

    def experts(self, module: Any) -> Experts | None:
        """The experts that a module of the stock model holds; None if the module is not an experts module."""
        return _flagged(module) if all(hasattr(module, flag) for flag in FLAGS) else None

    def routing(self, block: nn.Module, output: Any) -> Routing:
        """What a router did; its output is (logits, gates, selected experts, …)."""
        logits, gates, index = (value.flatten(0, -2) for value in output[:3])
        return Routing(logits, index, gates)

    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, k, d] and their gated sum; `arguments` are tokens [..., d], selected experts and gates [T, k].

        Each pair of a token and a selected expert runs as a separate token with gate 1.
        """
        x, index, gates = arguments
        tokens = x.flatten(0, -2).repeat_interleave(index.shape[1], 0)  # [T·k, d]
        each = experts(tokens, index.reshape(-1, 1), torch.ones_like(gates).reshape(-1, 1)).reshape(*index.shape, -1)
        wide = torch.promote_types(each.dtype, gates.dtype)
        mixed = torch.bmm(gates[:, None].to(wide), each.to(wide))  # [T, 1, d]
        return each, mixed.to(each.dtype).reshape(x.shape)

    def layers(self, config: Any) -> list[MoELayer]:
        """The sparse layers, in order of the forward pass. Raises `CheckpointError` if no router is found."""
        model = skeleton(_stock(config))
        naming = Naming(model)
        return [_layer(model, naming, path, experts) for path, experts in self._all_experts(model).items()]

    def auto_map(self, config: Any) -> dict[str, str]:
        """Classes of remote code, named after the stock ones: `MixtralForCausalLM` → `MCSMoEMixtralForCausalLM`."""
        model = skeleton(_stock(config))
        return {
            "AutoConfig": f"{self.configuration}.MCSMoE{type(model.config).__name__}",
            self.auto_class: f"{self.modeling}.MCSMoE{type(model).__name__}",
        }

    def merged_entry(self, layer: MoELayer) -> dict[str, Any]:
        """The module paths of block and router: one file of remote code serves all families, so it must be told."""
        return {"path": layer.path, "router": layer.router_path.rpartition(".")[2]}

    def outside(self, config: Any) -> dict[str, str]:
        """Name on disk → name in memory and in the merged checkpoint, of all tensors outside the experts."""
        model = skeleton(_stock(config))
        return Naming(model).others(self._outside(model))

    def expert_axes(self, config: Any) -> dict[str, int]:
        """The axes that double when the configuration has twice as many experts."""
        stock = _stock(config)
        model, twice = skeleton(stock), skeleton(_doubled(stock, self.expert_counts)).state_dict()
        return {
            name: axis
            for name, value in self._outside(model).items()
            for axis, (size, other) in enumerate(zip(value.shape, twice[name].shape))
            if size != other
        }

    def _all_experts(self, model: nn.Module) -> dict[str, Experts]:
        """The experts of every sparse layer of a stock model, by module path."""
        found = {path: self.experts(module) for path, module in model.named_modules() if path}
        return {path: experts for path, experts in found.items() if experts is not None}

    def _outside(self, model: nn.Module) -> dict[str, Tensor]:
        """All tensors outside the experts, by their name in memory."""
        inside = tuple(f"{path}." for path in self._all_experts(model))
        return {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}


def _stock(config: Any) -> dict[str, Any]:
    """The config.json of the stock model, from a stock or a merged configuration."""
    values = values_of(config)
    merged = merged_layers(values)
    if merged is None:
        return values
    # Some stock classes have a field `moe_layers` too: there it lists the sparse layers by number.
    numbers = [int(name.rpartition(".")[2]) for name in merged]
    return values | {"model_type": values["model_type"].removeprefix(MERGED), "moe_layers": numbers}


def _doubled(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    twice = copy.deepcopy(dict(values))
    for name in names:
        *owners, last = name.split(".")
        inside: Any = reduce(lambda value, owner: value.get(owner) or {}, owners, twice)
        if last in inside:
            inside[last] *= 2
    return twice


def _layer(model: Any, naming: Naming, path: str, experts: Experts) -> MoELayer:
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
    for owner in (config, getattr(block, router), block):
        for name in TOP_K:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    raise CheckpointError(f"{config.model_type}: cannot tell how many experts a token selects")


def _limit(router: Any) -> GroupLimit | None:
    # DeepSeek-V2 scores a group by its best expert, all later models by the best two. Only V2 has `topk_method`.
    method = getattr(router, "topk_method", None)
    if method == "greedy" or not hasattr(router, "num_group"):
        return None
    return GroupLimit(router.num_group, router.topk_group, scored=1 if method else 2)


def _flagged(module: Any) -> Experts:
    """The experts of a module that has all `FLAGS`."""
    d_model, d_ff = module.down_proj.shape[1:]
    if module.is_transposed:
        d_model, d_ff = d_ff, d_model
    weights = GATED if module.has_gate else PLAIN
    biases = {f"{name}_bias": BIASES[name] for name in weights} if module.has_bias else {}
    layout = weights | biases
    places = {name: _place(module, name, d_ff) for name in layout}
    return Experts(module.num_experts, d_model, d_ff, layout, places, _gated(module))


def _place(module: Any, name: str, d_ff: int) -> Place:
    """The place of one tensor. Gate and up share a stack: gate before up, or alternating rows (gate, up, gate, …)."""
    kind, bias = name.removesuffix("_bias"), name.endswith("_bias")
    stack = f"{kind}_proj"
    rows = None
    if module.has_gate and kind != "down":
        stack = "gate_up_proj"
        rows = halves(d_ff)[kind] if module.is_concatenated else slice(("gate", "up").index(kind), None, 2)
    return Place(f"{stack}{'_bias' if bias else ''}", rows, module.is_transposed and not bias)


def halves(d_ff: int) -> dict[str, slice]:
    """Rows of gate and up in a concatenated stack: gate_up_proj [E, 2f, d] → gate 0:f, up f:2f."""
    return {"gate": slice(0, d_ff), "up": slice(d_ff, 2 * d_ff)}


def _gated(module: Any) -> Activation:
    def gated(gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is None:
            plain: Tensor = module.act_fn(up)
            return plain
        both = torch.cat([gate, up], -1) if module.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        inner: Tensor = module._apply_gate(both)
        return inner

    return gated


def gated_by(act: Any) -> Activation:
    """The activation act(gate) ⊙ up."""

    def gated(gate: Tensor | None, up: Tensor) -> Tensor:
        inner: Tensor = act(gate) * up
        return inner

    return gated


class FSGPT(Fused):
    """Fairseq's mixture-of-experts GPT; its stock class is ours, so it travels beside the weights as remote code."""

    configuration, modeling = "configuration_mcsmoe_fsgpt", "modeling_mcsmoe_fsgpt"


for model_type in FUSED:
    register(Fused(model_type))
register(FSGPT("fsgpt_moe"))
