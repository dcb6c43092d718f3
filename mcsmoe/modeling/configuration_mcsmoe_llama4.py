"""Configuration of the language model of Llama 4 with merged experts; travels as remote code."""

from transformers import Llama4TextConfig
from transformers.configuration_utils import strict

from .configuration_mcsmoe_fused import merged_config_class

# The stock class has a field `moe_layers`, too, and would not take what ours holds: fields are read anew.
MCSMoELlama4TextConfig = strict(merged_config_class(Llama4TextConfig, __name__))
