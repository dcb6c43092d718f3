"""config.json and tokenizer_config.json with the names that programs older than transformers 5 look for.

transformers 5 renamed some fields and classes. Programs that do not know the new names silently take defaults: a model
with a rope theta of its own then computes something else. New and old names stand side by side; transformers 5 reads
the same from both.
"""

from collections.abc import Mapping
from typing import Any

from mcsmoe.families import FAMILIES
from mcsmoe.model_types import PUBLISHED

DRAFT = "num_nextn_predict_layers"
"""Number of layers behind the last that predict further tokens (multi-token prediction)."""
OLDER_TOKENIZERS = {"TokenizersBackend": "PreTrainedTokenizerFast", "PythonBackend": "PreTrainedTokenizer"}


def for_older_programs(
    config: Mapping[str, Any], source: Mapping[str, Any], keeps_draft: bool = False
) -> dict[str, Any]:
    """A config.json that older programs read as transformers 5 does.

    `source` is that of the checkpoint it was made of, whose `architectures` it takes if the model type is the same.
    Unless its files keep the layers for multi-token prediction (`keeps_draft`), it must not announce them.
    """
    values = dict(config) | _rope(config) | _count(config)
    same = source.get("model_type") == config.get("model_type")
    architectures = (source if same else config).get("architectures") or config.get("architectures")
    if isinstance(architectures, list):
        values["architectures"] = [PUBLISHED.get(name, name) for name in architectures]
    if values.get(DRAFT) and not keeps_draft:
        values[DRAFT] = 0
    return values


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and the like for what `rope_parameters` say.

    `rope_parameters` hold one kind of positions, or one each for full and for sliding attention:

        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4}       → rope_theta 1e6, rope_scaling {"rope_type": …}
        {"full_attention": {…}, "sliding_attention": {…}}           → rope_theta and rope_local_base_freq
    """
    rope = config.get("rope_parameters")
    # transformers 5, too, takes `rope_scaling` instead, where a file has both.
    if not isinstance(rope, Mapping) or config.get("rope_scaling"):
        return {}
    if "rope_theta" in rope:
        kind = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
        scaling = None if kind.get("rope_type", "default") == "default" else kind
        shared = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        return shared | {"rope_scaling": scaling}
    older = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
    kinds = {name: rope[kind] for kind, name in older.items() if isinstance(rope.get(kind), Mapping)}
    return {name: kind["rope_theta"] for name, kind in kinds.items() if "rope_theta" in kind}


def _count(config: Mapping[str, Any]) -> dict[str, Any]:
    """The number of experts of a stock model by its older name, where the file has only the new one."""
    model_type = config.get("model_type")
    family = FAMILIES[model_type] if isinstance(model_type, str) and model_type in FAMILIES else None
    if family is None or family.older_count is None or family.older_count in config or model_type != family.model_type:
        return {}
    counts = [config[name] for name in family.expert_counts if name in config]
    return {family.older_count: counts[0]} if counts else {}


def tokenizer_for_older_programs(values: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json whose class, and list of special tokens, transformers 4 knows, too."""
    found = dict(values)
    if found.get("tokenizer_class") in OLDER_TOKENIZERS:
        found["tokenizer_class"] = OLDER_TOKENIZERS[found["tokenizer_class"]]
    if isinstance(found.get("extra_special_tokens"), list):
        extra = found.pop("extra_special_tokens")
        found.setdefault("additional_special_tokens", extra)
    return found
