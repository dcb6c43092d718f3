"""Model types by how they are supported: plain data that several packages share."""

MERGED = "mcsmoe_"
"""Prefix of the model type of a merged form: "mixtral" → "mcsmoe_mixtral"."""

FUSED = (
    "afmoe",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "jamba",
    "kolibri1",
    "laguna",
    "lfm2_moe",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "mixtral",
    "nemotron_h",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "solar_open",
)
"""Model types with fused experts, the common interface of transformers; the tests take each through every step."""

PUBLISHED = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}
"""Class of transformers → its name in published config.json files, where other programs look for that name."""

PUBLISHED = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}
"""Class of transformers → its name in published config.json files, where other programs look for that name."""

INSIDE = {"llama4": "llama4_text"}
"""Model types that read more than text → the model type of their language model, the only part that is used."""

REFUSED = {
    "doge": "its experts are single neurons, found by product keys: there is nothing to align or to compress",
    "jetmoe": "its attention heads are experts, too, and its routers give out sorted tokens, which no map can take",
    "kimi_linear": "its convolutions are three tensors on disk and one in memory, and only experts may differ so",
    "longcat_flash": "its routers choose among experts without weights, too, for which an index map has no place",
    "step3p7": "it reads images, and transformers has no class for its language model alone",
}
"""Model types of transformers that have experts but are not supported → the reason."""
