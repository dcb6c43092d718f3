"""What the tensors of a checkpoint are: the model's, those of layers for multi-token prediction, or of no use."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mcsmoe.errors import CheckpointError
from mcsmoe.families.configs import merged_layers
from mcsmoe.families.family import family_of
from mcsmoe.families.layer import MoELayer
from mcsmoe.families.skeletons import skeleton

MTP = re.compile(r"(^|\.)(mtp|nextn)(_\w+)?\.")
"""Names of multi-token prediction: `mtp.layers.0.…` (Qwen3-Next), `model.mtp_block.0.…` (ERNIE)."""
MTP_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""Fields of a configuration that may tell how many layers for multi-token prediction there are.

DeepSeek-V3 and GLM-4.x put them after its own: `model.layers.61.…` in a model of 61 layers.
"""
NUMBERED = re.compile(r"(?:^|\.)layers\.(\d+)\.")
UNUSED = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias|_float_tensor)$")
"""Names of buffers that older programs saved, and whose values follow from the configuration or are never read."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint outside the experts, sorted.

    - `in_memory`: published name → name in memory, of the model's own; a merged model has the same names in memory.
    - `renamed`: published name → name in the files, where these have the name in memory.
    - `fused`: sparse layers whose experts have their names in memory in the files: `mlp.experts.gate_up_proj`
      [E, 2f, d] instead of a tensor for each expert.
    - `mtp`: layers for multi-token prediction, which no class here runs: a draft head for speculative decoding.
    - `unused`: buffers that nobody reads.
    """

    in_memory: Mapping[str, str]
    renamed: Mapping[str, str]
    fused: list[MoELayer]
    mtp: list[str]
    unused: list[str]

    @property
    def mtp_experts(self) -> list[str]:
        """Tensors of experts in layers for multi-token prediction; these experts are never merged."""
        return [name for name in self.mtp if ".experts." in name]


def contents(config: Any, names: Collection[str], where: object) -> Contents:
    """Sort all tensors `names` of a checkpoint with this configuration, stock or merged.

    Raises `CheckpointError`, which names the checkpoint `where`, for a tensor of no kind of `Contents`.
    """
    model, present = skeleton(config), set(names)
    stock = merged_layers(config) is None
    known = family_of(config).outside(config) if stock else {name: name for name in model.state_dict()}
    renamed = {new: old for new, old in known.items() if new not in present and old in present - known.keys()}
    fused = []
    experts: set[str] = set()
    for layer in family_of(config).layers(config) if stock else ():
        published, ours = ({place.name(0) for place in each.values()} for each in (layer.places, layer.in_memory))
        if present.isdisjoint(published) and ours <= present:
            fused.append(layer)
        places = layer.in_memory if layer in fused else layer.places
        experts |= {place.name(e) for place in places.values() for e in range(layer.experts)}
    rest = [name for name in names if name not in known and name not in experts and name not in renamed.values()]
    mtp, unused = sort_unexpected(model, rest, where)
    own = {name: old for name, old in known.items() if name in present or name in renamed}
    return Contents(own, renamed, fused, mtp, unused)


def sort_unexpected(model: Any, names: Collection[str], where: object) -> tuple[list[str], list[str]]:
    """(multi-token prediction, of no use): tensors `names` of a checkpoint that `model` does not have.

    Follows transformers, which ignores both when it loads, and adds what its patterns for this class lack. Raises
    `CheckpointError`, which names the checkpoint `where`, for any other tensor.
    """
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    layers = getattr(model.config, "num_hidden_layers", None)
    extra = max(getattr(model.config, name, None) or 0 for name in MTP_COUNTS)
    mtp, unused, unknown = [], [], []
    for name in sorted(names):
        numbered, passed = NUMBERED.search(name), any(pattern.search(name) for pattern in ignored)
        # GLM's patterns name layer 46 for one of its models and layer 92 for another, which has a layer 46 of its own.
        beyond = int(numbered[1]) - layers if numbered and layers is not None else -1
        if UNUSED.search(name):
            unused.append(name)
        elif MTP.search(name) or (beyond >= 0 and (passed or beyond < extra)):
            mtp.append(name)
        elif passed and not numbered:
            unused.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where}: {len(unknown)} unexpected tensors, the first is {unknown[0]}")
    return mtp, unused
