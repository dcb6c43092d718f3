"""Switch Transformers (arXiv 2101.03961): per-expert checkpoints, their merged form; T5, the dense model beside."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.errors import CheckpointError
from mcsmoe.families.layer import Activation, Family, MoELayer, Place, Role, Routing
from mcsmoe.families.registry import FAMILIES

LAYOUT = {"wi": Role.UP, "wo": Role.DOWN}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
FEED_FORWARD = {"encoder": 1, "decoder": 2}  # place of the feed-forward layer in a block
SHARED_WITH_T5 = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "dropout_rate",
    "layer_norm_epsilon",
    "initializer_factor",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "tie_word_embeddings",
)
REMOTE_CODE = {
    "AutoConfig": "configuration_mcsmoe_switch.MCSMoESwitchConfig",
    "AutoModelForSeq2SeqLM": "modeling_mcsmoe_switch.MCSMoESwitchForConditionalGeneration",
}


def layers(config: Any) -> list[MoELayer]:
    """The sparse layers of a Switch configuration (object, or the dict of a config.json), encoder first."""
    filled = _filled(config)
    blocks = {"encoder": filled.num_layers, "decoder": filled.num_decoder_layers}
    return [
        _layer(filled, stack, index)
        for stack, count in blocks.items()
        for index in range(count)
        if _is_sparse(index, getattr(filled, f"{stack}_sparse_step"))
    ]


def _filled(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    from transformers import SwitchTransformersConfig

    # The class fills in what old files leave out, such as the sparse steps.
    return SwitchTransformersConfig.from_dict(dict(config))


def _layer(config: Any, stack: str, index: int) -> MoELayer:
    path = f"{stack}.block.{index}.layer.{FEED_FORWARD[stack]}.mlp"
    # In memory and on disk alike.
    places = {name: Place(f"{path}.experts.expert_{{expert}}.{name}.weight") for name in LAYOUT}
    return MoELayer(
        name=f"{stack}.{index}",
        path=path,
        experts=config.num_experts,
        top_k=1,
        d_model=config.d_model,
        d_ff=config.d_ff,
        layout=LAYOUT,
        activation=_activation(config.dense_act_fn),
        router_path=f"{path}.router",
        router_weight=f"{path}.router.classifier.weight",
        stack=stack,
        index=index,
        places=places,
        in_memory=places,
        excludes=True,
    )


def _activation(name: str) -> Activation:
    act = ACTIVATIONS[name]
    return lambda gate, up: act(up)


def _is_sparse(index: int, step: int) -> bool:
    return step == 1 or (step > 1 and index % step == 1)


def routing(block: nn.Module, output: tuple[Tensor, Tensor, Tensor]) -> Routing:
    """What a router, stock or merged, did: its output is (selection after capacity, probability, logits)."""
    logits = output[2].flatten(0, -2)
    return Routing(logits, logits.argmax(-1, keepdim=True), output[1].reshape(-1, 1))


def expert_outputs(
    experts: Callable[..., Tensor], routing: Routing, x: Tensor, selected: Tensor, gates: Tensor
) -> tuple[Tensor, Tensor]:
    """All tokens x [T, d] by the experts that they select, those over capacity too, which the model leaves at 0."""
    every = F.one_hot(routing.index, selected.shape[-1])  # [T, 1, E]
    each = experts(x, every, torch.ones_like(gates))  # [T, d]
    return each[:, None], (each * gates).to(x.dtype) * selected.sum(-1)


def merged_config(config: Any, experts: Mapping[str, int]) -> dict[str, Any]:
    """The config.json of the merged model: `experts[layer name]` dense experts a layer, all else unchanged.

    Layers that `experts` leaves out keep all of theirs.
    """
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    moe_layers = {layer.name: {"experts": experts.get(layer.name, layer.experts)} for layer in layers(config)}
    return values | {
        "model_type": MERGED_SWITCH.model_type,
        "architectures": [REMOTE_CODE["AutoModelForSeq2SeqLM"].split(".")[1]],
        "auto_map": REMOTE_CODE,
        "moe_layers": moe_layers,
    }


def merged_tensor(layer: MoELayer, name: str) -> str:
    """The stack [K, ...] of one kind of expert tensor."""
    return f"{layer.path}.experts.{name}.weight"


def merged_map(layer: MoELayer) -> str:
    """The index map E → K [E], int64."""
    return f"{layer.path}.expert_map"


def merged_names(config: Any, names: Collection[str]) -> dict[str, str]:
    """What is no expert keeps its name."""
    return {name: name for name in names}


def expert_axes(config: Any) -> dict[str, int]:
    """The router's rows, and its biases where it has them."""
    kinds = ("weight", "bias") if _filled(config).router_bias else ("weight",)
    return {f"{layer.router_path}.classifier.{kind}": 0 for layer in layers(config) for kind in kinds}


def dense_config(config: Any) -> dict[str, Any]:
    """A T5 of the same sizes: Switch is T5 with experts, and each token runs one of them."""
    kept = {name: getattr(config, name) for name in SHARED_WITH_T5}
    return kept | {"model_type": "t5", "feed_forward_proj": config.dense_act_fn}


SWITCH = Family(
    model_type="switch_transformers",
    auto_class="AutoModelForSeq2SeqLM",
    layers=layers,
    routing=routing,
    expert_outputs=expert_outputs,
    merged_config=merged_config,
    merged_tensor=merged_tensor,
    merged_map=merged_map,
    merged_names=merged_names,
    expert_counts=("num_experts",),
    expert_axes=expert_axes,
    dense_config=dense_config,
)
MERGED_SWITCH = replace(SWITCH, model_type="mcsmoe_switch", dense_config=None)

FAMILIES.register(SWITCH.model_type)(SWITCH)
FAMILIES.register(MERGED_SWITCH.model_type)(MERGED_SWITCH)


def no_experts(*_: Any) -> NoReturn:
    """Refuse what needs experts."""
    raise CheckpointError("a T5 is dense: there are no experts to merge or to compress")


FAMILIES.register("t5")(
    Family(
        model_type="t5",
        auto_class="AutoModelForSeq2SeqLM",
        layers=lambda config: [],
        routing=no_experts,
        expert_outputs=no_experts,
        merged_config=no_experts,
        merged_tensor=no_experts,
        merged_map=no_experts,
        merged_names=lambda config, names: {name: name for name in names},
        expert_counts=(),
        expert_axes=no_experts,
    )
)
