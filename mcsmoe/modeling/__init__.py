"""Importing this package lets transformers' Auto classes find the merged model classes."""

from transformers import AutoConfig, AutoModelForSeq2SeqLM

from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

__all__ = ["MCSMoESwitchConfig", "MCSMoESwitchForConditionalGeneration"]

AutoConfig.register(MCSMoESwitchConfig.model_type, MCSMoESwitchConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(MCSMoESwitchConfig, MCSMoESwitchForConditionalGeneration, exist_ok=True)
