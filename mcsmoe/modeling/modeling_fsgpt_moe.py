"""Fairseq's mixture-of-experts GPT (arXiv 2112.10684) with the tensor names of its stored checkpoints.

This file travels beside the weights as remote code: it imports torch, transformers and the files beside it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_fsgpt_moe import FSGPTMoEConfig
from .modeling_fsgpt_moe_dense import FSGPTMoEAttention, FSGPTMoEDenseFFN, FSGPTMoEPositions
from .modeling_fsgpt_moe_router import FSGPTMoERouter


@use_experts_implementation(has_gate=False, has_bias=True)
class FSGPTMoEExperts(nn.Module):
    """E experts with biases in stacked tensors, as transformers' implementations of experts expect them."""

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        shape = config.num_experts, config.intermediate_size, config.hidden_size
        self.up_proj = nn.Parameter(torch.empty(shape))
        self.up_proj_bias = nn.Parameter(torch.empty(shape[:2]))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))
        self.down_proj_bias = nn.Parameter(torch.empty(shape[0], shape[2]))
        self.act_fn = ACT2FN[config.activation_function]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens [T, d], their experts [T, k] and the weights of these [T, k] → [T, d]."""
        total = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, choice = torch.where(top_k_index == expert)
            inner = self.act_fn(F.linear(hidden_states[token], self.up_proj[expert], self.up_proj_bias[expert]))
            outer = F.linear(inner, self.down_proj[expert], self.down_proj_bias[expert])
            outer = outer * top_k_weights[token, choice, None]
            total.index_add_(0, token, outer.to(total.dtype))
        return total


class FSGPTMoESparseFFN(nn.Module):
    """Router and experts, with expert output masking (arXiv 2207.04672).

    In training an expert's output for a token is dropped with probability `moe_token_dropout` p; in evaluation it is
    scaled by 1 − p, its expected value.
    """

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.router = FSGPTMoERouter(config)
        self.experts = FSGPTMoEExperts(config)

    def forward(self, hidden_states: Tensor, real: Tensor) -> Tensor:
        """Tokens [B, S, d], of which those False in real [B, S] are padding → [B, S, d]."""
        tokens = hidden_states.flatten(0, 1)
        # What the stored field means is told by NLLB-MoE's documentation: true routes padding like any token.
        routed = None if self.config.router_ignore_padding_tokens else real.flatten()
        _, weights, index = self.router(tokens, routed)
        masked = self.config.moe_token_dropout
        weights = F.dropout(weights, masked, self.training) * (1 - masked)
        mixed: Tensor = self.experts(tokens, index, weights)
        return mixed.view_as(hidden_states)


class FSGPTMoELayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each after a norm and beside a residual."""

    def __init__(self, config: FSGPTMoEConfig, layer_idx: int) -> None:
        super().__init__()
        sparse = config.sparse_step > 0 and (layer_idx + 1) % config.sparse_step == 0
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.self_attn = FSGPTMoEAttention(config, layer_idx)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        self.ffn = FSGPTMoESparseFFN(config) if sparse else FSGPTMoEDenseFFN(config)
        self.dropout = nn.Dropout(config.resid_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        real: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Tokens [B, S, d], of which those False in real [B, S] are padding → [B, S, d]."""
        mixed, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.ffn(self.final_layer_norm(hidden_states), real))


class FSGPTMoEPreTrainedModel(PreTrainedModel):
    """What the model has in common with and without a language-model head."""

    config_class = FSGPTMoEConfig
    config: FSGPTMoEConfig
    base_model_prefix = "decoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ("FSGPTMoELayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 - read by transformers
        "router_logits": OutputRecorder(FSGPTMoERouter, index=0),
        "hidden_states": FSGPTMoELayer,
        "attentions": FSGPTMoEAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FSGPTMoEExperts):
            for weight in (module.up_proj, module.down_proj):
                init.normal_(weight, std=0.02)
            for bias in (module.up_proj_bias, module.down_proj_bias):
                init.zeros_(bias)
        elif isinstance(module, FSGPTMoEPositions):
            init.zeros_(module._float_tensor)


class FSGPTMoEModel(FSGPTMoEPreTrainedModel):
    """The decoder: token ids → hidden states after the last norm."""

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = FSGPTMoEPositions(config)
        self.embed_scale = 1.0 if config.no_scale_embedding else math.sqrt(config.hidden_size)
        self.dropout = nn.Dropout(config.embed_dropout)
        self.layers = nn.ModuleList(FSGPTMoELayer(config, index) for index in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Ids [B, S], or embeddings [B, S, d] not yet scaled, and a mask of all P + S tokens → states [B, S, d].

        Without a mask padding is told by its id.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        seen = self._seen(embeds, input_ids, attention_mask, past)
        real = seen[:, -embeds.shape[1] :]
        if position_ids is None:
            position_ids = seen.cumsum(-1)[:, -embeds.shape[1] :] - 1
        # As in fairseq padding has no position, where generate() gives it one.
        positions = self.embed_positions(position_ids.masked_fill(~real, -1))
        hidden_states = self.dropout(embeds * self.embed_scale + positions.to(embeds.dtype))
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=seen if attention_mask is None else attention_mask,
            past_key_values=past_key_values,
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, real, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.layer_norm(hidden_states), past_key_values=past_key_values)

    def _seen(self, embeds: Tensor, input_ids: Tensor | None, mask: Tensor | None, past: int) -> Tensor:
        """Which tokens in the cache and in this call are not padding, [B, P + S]."""
        if mask is not None and mask.ndim == 2:
            return mask.bool()
        new = torch.ones_like(embeds[..., 0]) if input_ids is None else input_ids != self.config.pad_token_id
        return F.pad(new.bool(), (past, 0), value=True)


class FSGPTMoEForCausalLM(FSGPTMoEPreTrainedModel, GenerationMixin):
    """The decoder with a head that shares its weight with the token embeddings."""

    _tied_weights_keys = {"lm_head.weight": "decoder.embed_tokens.weight"}  # noqa: RUF012 - read by transformers

    def __init__(self, config: FSGPTMoEConfig) -> None:
        super().__init__(config)
        self.decoder = FSGPTMoEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """As `FSGPTMoEModel`, with logits [B, S, V] (the last `logits_to_keep`, 0: all) and the loss on labels [B, S].

        `router_logits` has [B · S, E] for each sparse layer.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def save_pretrained(
        self, save_directory: Any, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers, with the weight of the head written too: stored checkpoints have it."""
        state = dict(self.state_dict() if state_dict is None else state_dict)
        if "lm_head.weight" in state:
            state["lm_head.weight"] = state["lm_head.weight"].clone()
        super().save_pretrained(save_directory, state_dict=state, **kwargs)


FSGPTMoEForCausalLM.register_for_auto_class("AutoModelForCausalLM")
register_checkpoint_conversion_mapping(
    FSGPTMoEConfig.model_type,
    [
        WeightConverter(f"experts.expert_*.{stored}.{kind}", f"experts.{name}{suffix}", [MergeModulelist(dim=0)])
        for stored, name in (("fc1", "up_proj"), ("fc2", "down_proj"))
        for kind, suffix in (("weight", ""), ("bias", "_bias"))
    ],
    overwrite=True,  # remote code and this package may be loaded in one process
)
