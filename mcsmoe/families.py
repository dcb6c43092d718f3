"""Names of model families, where they are data for more than one room."""

MERGED = "mcsmoe_"
"""What the model type of a merged form starts with."""

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
"""Model types of transformers whose experts have its common interface, and that our tests take through every step."""
