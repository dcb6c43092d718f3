"""Configuration of fairseq's mixture-of-experts GPT with merged experts; travels as remote code."""

from .configuration_fsgpt_moe import FSGPTMoEConfig
from .configuration_mcsmoe_fused import merged_config_class

MCSMoEFSGPTMoEConfig = merged_config_class(FSGPTMoEConfig, __name__)
