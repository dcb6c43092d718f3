"""Fairseq's mixture-of-experts GPT with merged experts; travels as remote code."""

from typing import Any

from .configuration_mcsmoe_fsgpt import MCSMoEFSGPTMoEConfig
from .modeling_fsgpt_moe import FSGPTMoEForCausalLM
from .modeling_mcsmoe_fused import merged_model_class

_config_class: Any = MCSMoEFSGPTMoEConfig
MCSMoEFSGPTMoEForCausalLM = merged_model_class(FSGPTMoEForCausalLM, _config_class, __name__)
