"""Configuration of a Switch Transformer whose experts were merged, and perhaps compressed, layer by layer."""

from typing import Any

from transformers import SwitchTransformersConfig


class MCSMoESwitchConfig(SwitchTransformersConfig):
    """Switch Transformers with its own number of experts in every sparse layer (arXiv 2310.01334, §3).

    `num_experts` stays E, the rows of every router. `moe_layers` names the sparse layers and what they hold:
    `{"encoder.1": {"experts": K}}` for dense experts. Where each weight is U V + S there stand, too, `"rank": r`,
    `"structure"` ("row", "column", "element" or "none") and `"kept": {"wi": n, "wo": n}`, the units of S kept over
    all K experts.
    """

    model_type = "mcsmoe_switch"
    moe_layers: dict[str, Any] | None = None


MCSMoESwitchConfig.register_for_auto_class()
