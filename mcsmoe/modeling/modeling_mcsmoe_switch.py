"""Switch Transformer with K merged experts a layer, an index map E → K, and low-rank plus sparse experts.

This file travels beside the weights as remote code: it imports torch, transformers and its configuration.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwitchTransformersForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from .configuration_mcsmoe_switch import MCSMoESwitchConfig


def grouped_linear(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Tokens x [T, in] sorted by expert, weight [K, out, in], tokens an expert (sum T) → [T, out]."""
    # unbind: the backward of weight[e] would build a zero [K, out, in] for each expert.
    parts = [F.linear(part, matrix) for part, matrix in zip(x.split(sizes), weight.unbind(0))]
    return torch.cat(parts)


class StackedLinears(nn.Module):
    """K linear maps in one tensor `weight` [K, out, in]."""

    def __init__(self, experts: int, d_in: int, d_out: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))
        nn.init.normal_(self.weight, std=factor * d_in**-0.5)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Tokens x [T, in] sorted by expert, tokens an expert → [T, out]."""
        return grouped_linear(x, self.weight, sizes)


class FactorisedLinears(nn.Module):
    """K linear maps W_e = U_e V_e + S_e (LoSparse, arXiv 2306.11222, eq. 4), S_e with few non-zero rows.

    `u` [K, out, r], `v` [K, r, in]; `rows` [n, in] are the kept rows of S, sorted by (expert, output neuron);
    `row_index` [n] names the output neuron of each, expert e owns `row_ptr[e]:row_ptr[e + 1]`.
    """

    row_index: Tensor
    row_ptr: Tensor

    def __init__(self, experts: int, d_in: int, d_out: int, rank: int, rows: int, factor: float) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(experts, d_out, rank))
        self.v = nn.Parameter(torch.empty(experts, rank, d_in))
        self.rows = nn.Parameter(torch.zeros(rows, d_in))
        nn.init.normal_(self.u, std=rank**-0.5)
        nn.init.normal_(self.v, std=factor * d_in**-0.5)
        # Without a checkpoint the rows belong to the first output neurons.
        self.register_buffer("row_index", torch.arange(rows) % d_out)
        self.register_buffer("row_ptr", (torch.arange(experts + 1) * d_out).clamp(max=rows))

    @classmethod
    def from_factors(cls, u: Tensor, v: Tensor, s: Tensor) -> "FactorisedLinears":
        """From u [K, out, r], v [K, r, in] and s [K, out, in], with all K * out rows of S kept."""
        experts, d_out, rank = u.shape
        with torch.device("meta"):
            module = cls(experts, v.shape[2], d_out, rank, experts * d_out, 1.0)
        module.to_empty(device=u.device)
        module.u, module.v = nn.Parameter(u), nn.Parameter(v)
        module.rows = nn.Parameter(s.reshape(experts * d_out, -1))
        module._set_kept(torch.ones(experts, d_out, dtype=torch.bool, device=u.device))
        return module

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Tokens x [T, in] sorted by expert, tokens an expert → [T, out]."""
        experts, d_out, _ = self.u.shape
        if len(self.rows) == experts * d_out:
            # Nothing is removed yet: one dense product costs less than two thin ones beside it.
            return grouped_linear(x, torch.baddbmm(self.rows.view(experts, d_out, -1), self.u, self.v), sizes)
        outputs = grouped_linear(grouped_linear(x, self.v, sizes), self.u, sizes).split(sizes)
        kept = self.row_ptr.diff().tolist()
        pieces = zip(outputs, x.split(sizes), self.rows.split(kept), self.row_index.split(kept))
        return torch.cat([y.index_add(1, i, F.linear(part, s)) for y, part, s, i in pieces])

    @torch.no_grad()
    def keep_rows(self, mask: Tensor) -> None:
        """Drop the rows of S whose output neuron is False in mask [K, out]; makes a new parameter `rows`."""
        expert = self.row_expert()
        kept = mask[expert, self.row_index]
        present = torch.zeros_like(mask)
        present[expert[kept], self.row_index[kept]] = True
        self.rows = nn.Parameter(self.rows[kept])
        self._set_kept(present)

    def row_expert(self) -> Tensor:
        """The expert that owns each kept row, [n]."""
        return torch.repeat_interleave(self.row_ptr.diff())

    def _set_kept(self, present: Tensor) -> None:
        self.row_index = present.nonzero()[:, 1]
        self.row_ptr = F.pad(present.sum(1).cumsum(0), (1, 0))


class RouterLinear(nn.Linear):
    """Router classifier that computes in the dtype of its input, and keeps its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens [..., d] → logits [..., E]."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class MCSMoESwitchRouter(SwitchTransformersTop1Router):
    """The stock router over all E experts, with the selected expert as an index instead of a one-hot row."""

    def __init__(self, config: MCSMoESwitchConfig) -> None:
        super().__init__(config)
        self.classifier = RouterLinear(config.hidden_size, config.num_experts, bias=config.router_bias)
        nn.init.normal_(self.classifier.weight, std=config.initializer_factor)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, S, d] → expert [B, S] (E: over capacity), probability [B, S, 1], logits [B, S, E]."""
        tokens = hidden_states.to(self.dtype)
        if self.training and self.jitter_noise > 0:
            # In place as in the stock class: in float32 the experts see the noise too.
            tokens *= torch.empty_like(tokens).uniform_(1.0 - self.jitter_noise, 1.0 + self.jitter_noise)
        logits = self.classifier(tokens)
        probabilities = F.softmax(logits, dim=-1, dtype=self.dtype).to(hidden_states.dtype)
        gate, expert = probabilities.max(dim=-1, keepdim=True)
        expert = expert.squeeze(-1)
        if hidden_states.shape[1] > self.expert_capacity:  # otherwise no expert can overflow
            place = F.one_hot(expert, self.num_experts).cumsum(dim=-2).gather(-1, expert[..., None])
            expert = expert.masked_fill(place.squeeze(-1) > self.expert_capacity, self.num_experts)
        return expert, gate, logits


class MCSMoESwitchExperts(nn.Module):
    """K experts; each runs once for all of its tokens."""

    def __init__(self, config: MCSMoESwitchConfig, experts: int, rank: int, rows: dict[str, int]) -> None:
        super().__init__()
        self.num_experts = experts
        factor = config.initializer_factor
        self.wi: StackedLinears | FactorisedLinears
        self.wo: StackedLinears | FactorisedLinears
        if rank == 0:
            self.wi = StackedLinears(experts, config.d_model, config.d_ff, factor)
            self.wo = StackedLinears(experts, config.d_ff, config.d_model, factor)
        else:
            self.wi = FactorisedLinears(experts, config.d_model, config.d_ff, rank, rows["wi"], factor)
            self.wo = FactorisedLinears(experts, config.d_ff, config.d_model, rank, rows["wo"], factor)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = ACT2FN[config.dense_act_fn]

    def forward(self, hidden_states: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        """Tokens [T, d], the expert of each [T] (K: none), its weight [T, 1] → [T, d]."""
        sizes = torch.bincount(expert, minlength=self.num_experts).tolist()[: self.num_experts]
        order = expert.argsort(stable=True)[: sum(sizes)]  # tokens by expert; those of no expert come last
        inner = self.dropout(self.act(self.wi(hidden_states[order], sizes)))
        outer = self.wo(inner, sizes) * gate[order]
        return torch.zeros_like(hidden_states).index_copy(0, order, outer.to(hidden_states.dtype))


class MCSMoESwitchSparseMLP(nn.Module):
    """Router over E experts, index map E → K, K experts. Tokens over an expert's capacity contribute 0."""

    expert_map: Tensor

    def __init__(self, config: MCSMoESwitchConfig, layer: dict[str, Any]) -> None:
        super().__init__()
        experts = layer["experts"]
        self.router = MCSMoESwitchRouter(config)
        self.register_buffer("expert_map", torch.arange(config.num_experts) % experts)
        self.experts = MCSMoESwitchExperts(config, experts, layer["rank"], layer["rows"])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Tokens [B, S, d] → [B, S, d]."""
        expert, gate, _ = self.router(hidden_states)
        slot = F.pad(self.expert_map, (0, 1), value=self.experts.num_experts)[expert.view(-1)]
        tokens = hidden_states.view(-1, hidden_states.shape[-1])
        return self.experts(tokens, slot, gate.view(-1, 1)).view(hidden_states.shape)


def align_weights(model: nn.Module) -> None:
    """Move weights in main memory to addresses that torch's allocator would give them.

    Weights mapped from a file lie at any multiple of 8 bytes, and the last bits of MKL's products depend on
    it: a reloaded model would differ from the one that was saved.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


class MCSMoESwitchForConditionalGeneration(SwitchTransformersForConditionalGeneration):
    """Switch Transformer for conditional generation with the sparse layers of `config.moe_layers`."""

    config_class = MCSMoESwitchConfig
    config: MCSMoESwitchConfig

    def __init__(self, config: MCSMoESwitchConfig) -> None:
        # The stock class builds every block dense, so that E experts a layer are never allocated.
        steps = {name: getattr(config, name) for name in ("encoder_sparse_step", "decoder_sparse_step")}
        for name in steps:
            setattr(config, name, 0)
        super().__init__(config)
        for part in (config, self.encoder.config, self.decoder.config):
            for name, step in steps.items():
                setattr(part, name, step)
        for name, layer in (config.moe_layers or {}).items():
            stack, index = name.split(".")
            block = getattr(self, stack).block[int(index)]
            block.is_sparse = block.layer[-1].is_sparse = True
            block.layer[-1].mlp = MCSMoESwitchSparseMLP(config, layer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the weights in aligned memory."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def sparse_mlps(self) -> dict[str, MCSMoESwitchSparseMLP]:
        """The sparse layers by name ("encoder.1"), in order of the forward pass."""
        stacks = {"encoder": self.encoder.block, "decoder": self.decoder.block}
        return {
            f"{stack}.{index}": block.layer[-1].mlp
            for stack, blocks in stacks.items()
            for index, block in enumerate(blocks)
            if block.is_sparse
        }

    def update_config(self) -> None:
        """Make `config.moe_layers` tell what the modules hold, after they were replaced or rows dropped."""
        layers = {}
        for name, mlp in self.sparse_mlps().items():
            rank, rows = 0, {"wi": 0, "wo": 0}
            for key in rows:
                linears = getattr(mlp.experts, key)
                if isinstance(linears, FactorisedLinears):
                    rank, rows[key] = linears.u.shape[2], len(linears.rows)
            layers[name] = {"experts": mlp.experts.num_experts, "rank": rank, "rows": rows}
        self.config.moe_layers = layers


MCSMoESwitchForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
