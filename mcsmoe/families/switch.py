"""Switch Transformers (arXiv 2101.03961), where each expert is a module, and T5, their dense baseline."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.errors import CheckpointError
from mcsmoe.families.family import FAMILIES, Family, register
from mcsmoe.families.layer import Activation, MoELayer, Place, Role, Routing
from mcsmoe.families.skeletons import skeleton
from mcsmoe.model_types import MERGED

LAYOUT = {"wi": Role.UP, "wo": Role.DOWN}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
FEED_FORWARD = {"encoder": 1, "decoder": 2}
"""Index of the feed-forward network among the layers of a block."""
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


def run_sorted(experts: nn.ModuleDict, x: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """Forward method of `SwitchTransformersExperts` that sorts tokens once; the stock one searches all for each expert.

    Tokens x [T, d], the expert of each as a one-hot row [T, 1, E] (all 0: over capacity), its weight [T, 1] → [T, d].
    """
    chosen = selected[:, 0].T  # [E, T]
    order, sizes = chosen.nonzero()[:, 1], chosen.sum(1).tolist()
    if not len(order):
        return torch.zeros_like(x)
    parts = zip(experts.values(), x.index_select(0, order).split(sizes), strict=True)
    each = torch.cat([expert(part) for expert, part in parts if len(part)])
    return torch.zeros_like(x).index_copy(0, order, (each * gates.index_select(0, order)).to(x.dtype))


class Switch(Family):
    """Switch: every n-th block of encoder and decoder is sparse, k = 1, an expert is `wi` [f, d] and `wo` [d, f]."""

    auto_class = "AutoModelForSeq2SeqLM"
    expert_counts = ("num_experts",)
    dense_type = "t5"
    run_experts = staticmethod(run_sorted)

    def layers(self, config: Any) -> list[MoELayer]:
        """The sparse layers, encoder first."""
        filled = _filled(config)
        blocks = {"encoder": filled.num_layers, "decoder": filled.num_decoder_layers}
        return [
            _sparse_block(filled, stack, index)
            for stack, count in blocks.items()
            for index in range(count)
            if _is_sparse(index, getattr(filled, f"{stack}_sparse_step"))
        ]

    def routing(self, block: nn.Module, output: Any) -> Routing:
        """What a router did; its output is (selection cut to expert capacity, probability, logits)."""
        logits = output[2].flatten(0, -2)
        return Routing(logits, logits.argmax(-1, keepdim=True), output[1].reshape(-1, 1))

    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs [T, 1, d] for all tokens, and the model's result [T, d], 0 for tokens beyond expert capacity."""
        x, selected, gates = arguments
        every = F.one_hot(routing.index, selected.shape[-1])  # [T, 1, E]
        each = experts(x, every, torch.ones_like(gates))  # [T, d]
        return each[:, None], (each * gates).to(x.dtype) * selected.sum(-1)

    def auto_map(self, config: Any) -> dict[str, str]:
        """One pair of classes serves all Switch models."""
        return {
            "AutoConfig": "configuration_mcsmoe_switch.MCSMoESwitchConfig",
            self.auto_class: "modeling_mcsmoe_switch.MCSMoESwitchForConditionalGeneration",
        }

    def merged_map(self, layer: MoELayer) -> str:
        """The index map lies beside the router, because the router keeps its stock class."""
        return f"{layer.path}.expert_map"

    def outside(self, config: Any) -> dict[str, str]:
        """Names on disk are names in memory."""
        inside = tuple(f"{layer.experts_path}." for layer in self.layers(config))
        return {name: name for name in skeleton(config).state_dict() if not name.startswith(inside)}

    def expert_axes(self, config: Any) -> dict[str, int]:
        """Axis 0 of each router matrix, and of its bias if it has one."""
        kinds = ("weight", "bias") if _filled(config).router_bias else ("weight",)
        return {f"{layer.router_path}.classifier.{kind}": 0 for layer in self.layers(config) for kind in kinds}

    def dense_config(self, config: Any) -> dict[str, Any]:
        """The configuration of a T5 with the same sizes: Switch is T5 with experts, one of them per token."""
        filled = _filled(config)
        kept = {name: getattr(filled, name) for name in SHARED_WITH_T5}
        return kept | {"model_type": self.dense_type, "feed_forward_proj": filled.dense_act_fn}


def _filled(config: Any) -> Any:
    if not isinstance(config, Mapping):
        return config
    from transformers import SwitchTransformersConfig

    # The class fills in fields that old files lack, such as the sparse steps.
    return SwitchTransformersConfig.from_dict(dict(config))


def _is_sparse(index: int, step: int) -> bool:
    return step == 1 or (step > 1 and index % step == 1)


def _sparse_block(config: Any, stack: str, index: int) -> MoELayer:
    path = f"{stack}.block.{index}.layer.{FEED_FORWARD[stack]}.mlp"
    # The same names in memory and on disk.
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


class T5(Family):
    """T5, a dense model: it can be trained and measured, but not merged or compressed."""

    auto_class = "AutoModelForSeq2SeqLM"

    def layers(self, config: Any) -> list[MoELayer]:
        """No layers: a dense model has no sparse ones."""
        return []

    def routing(self, block: nn.Module, output: Any) -> Routing:
        """Raise `CheckpointError`: there is no router."""
        raise no_experts()

    def expert_outputs(
        self, experts: Callable[..., Tensor], routing: Routing, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Raise `CheckpointError`: there are no experts."""
        raise no_experts()

    def auto_map(self, config: Any) -> dict[str, str]:
        """Raise `CheckpointError`: there is no merged form."""
        raise no_experts()

    def outside(self, config: Any) -> dict[str, str]:
        """All tensors; names on disk are names in memory."""
        return {name: name for name in skeleton(config).state_dict()}

    def expert_axes(self, config: Any) -> dict[str, int]:
        """Raise `CheckpointError`: there are no experts."""
        raise no_experts()


def no_experts() -> CheckpointError:
    """The error for anything that only a model with experts can do."""
    return CheckpointError("a T5 is dense: there are no experts to merge or to compress")


register(Switch("switch_transformers", merged_type=f"{MERGED}switch"))
FAMILIES.register("t5")(T5("t5"))
