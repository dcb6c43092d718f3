"""Configuration of fairseq's mixture-of-experts GPT."""

from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN


class FSGPTMoEConfig(PretrainedConfig):
    """Fairseq's GPT whose every `sparse_step`-th layer routes each token to two experts (arXiv 2112.10684).

    Fields are named as in the stored checkpoints; the defaults are near the paper's 15B model. Capacity, the tokens an
    expert takes of a batch of T, is ⌈`moe_eval_capacity_token_fraction` · T⌉ in evaluation where that fraction is
    above 0, else `expert_capacity`, and where that is None 2⌈T / `num_experts`⌉. Stored fields that the forward
    pass does not need (`max_position_embeddings`: positions have no limit) are kept and saved again.

    Raises `ValueError` for values that are not supported.
    """

    model_type = "fsgpt_moe"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers takes annotated names as fields
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}  # noqa: RUF012

    vocab_size: int = 51200
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    activation_function: str = "gelu"
    no_scale_embedding: bool = False
    attention_dropout: float | int = 0.0
    embed_dropout: float | int = 0.0
    resid_dropout: float | int = 0.0

    sparse_step: int = 2
    num_experts: int = 512
    expert_capacity: int | None = None
    moe_eval_capacity_token_fraction: float | int = -1.0
    moe_token_dropout: float | int = 0.2
    normalize_router_prob_before_dropping: bool = False
    router_bias: bool = False
    router_dtype: str = "float32"
    router_ignore_padding_tokens: bool = True
    second_expert_policy: str = "all"
    batch_prioritized_routing: bool = False

    output_router_logits: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int = 1
    eos_token_id: int | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse what would compute something else than the model that was stored."""
        super().__post_init__(**kwargs)
        if self.intermediate_size is None:  # null in a stored configuration
            self.intermediate_size = 4 * self.hidden_size
        width = 2 * self.num_heads if self.num_heads % 2 else self.num_heads
        for name, allowed, fits in (
            ("hidden_size", f"a multiple of {width} above 2", self.hidden_size % width == 0 and self.hidden_size > 2),
            ("activation_function", f"one of {', '.join(ACT2FN)}", self.activation_function in ACT2FN),
            ("sparse_step", "0 (no sparse layer) or more", self.sparse_step >= 0),
            ("num_experts", "2 or more, each token has two", self.num_experts >= 2),
            ("expert_capacity", "null, or 1 or more", self.expert_capacity is None or self.expert_capacity >= 1),
            ("moe_token_dropout", "from 0 to 1", 0 <= self.moe_token_dropout <= 1),
            ("router_dtype", "float32, bfloat16 or float16", self.router_dtype in ("float32", "bfloat16", "float16")),
            ("second_expert_policy", "'all'; the others draw random numbers", self.second_expert_policy == "all"),
            ("batch_prioritized_routing", "false", not self.batch_prioritized_routing),
        ):
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)!r} in the configuration: allowed is {allowed}")


FSGPTMoEConfig.register_for_auto_class()
