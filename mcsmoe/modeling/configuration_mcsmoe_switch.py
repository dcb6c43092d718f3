"""Configuration of a Switch Transformer whose experts were merged, and perhaps compressed, layer by layer."""

from typing import Any

from transformers import SwitchTransformersConfig


class MCSMoESwitchConfig(SwitchTransformersConfig):
    """Switch Transformers with its own number of experts in every sparse layer (arXiv 2310.01334, §3).

    `num_experts` stays E, the rows of every router. `moe_layers` names the sparse layers and what they hold:
    `{"encoder.1": {"experts": K, "rank": r, "rows": {"wi": n, "wo": n}}}`. Rank 0 means dense experts;
    otherwise each weight is U V + S with rank r, and `rows` counts the rows of S kept over all K experts.
    """

    model_type = "mcsmoe_switch"
    moe_layers: dict[str, Any] | None = None


MCSMoESwitchConfig.register_for_auto_class()
