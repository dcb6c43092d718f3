"""What the routers of every family do, and what their experts compute, against the same written out by hand."""

from typing import Any

import torch
from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.sums import fault
from mcsmoe.calibration.watch import watch, watching
from mcsmoe.families import MoELayer, Routing, family_of
from mcsmoe.families.experts import expert_in_memory, forward
from tests.families.models import EXPERTS, batch, small_model
from tests.families.planted import Made, logits


def test_counts_are_those_of_the_router_written_out(stock: Made):
    seen: dict[str, Tensor] = {}
    for layer in stock.layers:
        hook = keep_input(seen, layer.name)
        stock.model.get_submodule(layer.router_path).register_forward_pre_hook(hook)
    logits(stock.model)
    real = batch()["attention_mask"].bool().flatten()
    rows = batch() | {"labels": batch()["input_ids"]}
    statistics = collect(stock.model, family_of(stock.model.config), stock.layers, [rows])
    for layer in stock.layers:
        x = seen[layer.name].flatten(0, -2)[real]
        selected = select_by_hand(stock.model, layer, x)
        counts = torch.bincount(selected.flatten(), minlength=EXPERTS)
        assert statistics[layer.name].tokens == real.sum()
        assert torch.equal(statistics[layer.name].counts, counts.to(statistics[layer.name].counts.dtype))
        assert fault(statistics[layer.name].tensors()) is None
    statistics.check_model(stock.layers, {})


def test_experts_of_llama4_see_tokens_times_their_scores():
    model = small_model("llama4_text", num_experts_per_tok=1)
    (layer,) = family_of(model.config).layers(model.config)
    outputs: list[Tensor] = []
    experts = model.get_submodule(layer.experts_path)
    with_hook = experts.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits(model)
    with_hook.remove()
    real = batch()["attention_mask"].bool().flatten()
    computed = outputs[0].view(EXPERTS, len(real), -1)[:, real]  # [E, T, d]; of others' tokens all are 0
    rows = batch() | {"labels": batch()["input_ids"]}
    found = collect(model, family_of(model.config), [layer], [rows], also=["norms"])[layer.name]
    assert found.norms is not None
    torch.testing.assert_close(found.norms, computed.double().norm(dim=-1).sum(1), rtol=0, atol=1e-6)
    assert torch.equal(found.gates, found.counts.double())


def test_norms_of_what_the_model_computes_are_those_of_its_weights(stock: Made):
    rows, inputs = batch() | {"labels": batch()["input_ids"]}, []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        assert routing.norms is not None
        inputs.append(x)
        # Llama 4's further choices see tokens times other scores than those that `Routing` has.
        index = routing.index if routing.scale is None else routing.index[:, :1]
        for e in range(EXPERTS):
            token, choice = torch.where(index == e)
            expected = forward(expert_in_memory(stock.model, layer, e), layer.layout, layer.activation, x[token])
            torch.testing.assert_close(routing.norms[token, choice], expected.norm(dim=-1), rtol=1e-4, atol=1e-6)

    family = family_of(stock.model.config)
    for _ in watching(stock.model, family, stock.layers, [rows], see, norms=True):
        pass
    # What comes out of the experts goes on as it would have.
    plain: list[Tensor] = []
    watch(stock.model, family, stock.layers, [rows], lambda layer, x, routing: plain.append(x))
    for ours, theirs in zip(inputs, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def keep_input(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].detach()

    return hook


def select_by_hand(model: Any, layer: MoELayer, x: Tensor) -> Tensor:
    """Experts [T, k] of tokens x [T, d]: the largest scores, corrected by a bias and limited to groups where
    the family does so."""
    config, block = model.config, model.get_submodule(layer.path)
    router = model.get_submodule(layer.router_path)
    weight = next(value for value in router.parameters() if value.ndim == 2)
    bias = getattr(router, "bias", None)
    scores = x @ weight.T if bias is None else x @ weight.T + bias
    vectors = [value for value in [*block.buffers(), *block.parameters()] if value.shape == (EXPERTS,)]
    correction = [value for value in vectors if value is not bias]
    if config.model_type == "deepseek_v2":
        return grouped(scores.softmax(-1), config, 1).topk(layer.top_k).indices
    if config.model_type == "ernie4_5_moe":
        correction = [value for value in block.parameters() if value.shape == (1, EXPERTS)]
        scores = scores.softmax(-1) + correction[0]
    elif config.model_type == "kolibri1":
        scores = scores + correction[0]
    elif correction:
        scores = grouped(scores.sigmoid() + correction[0], config, 2)
    return scores.topk(layer.top_k).indices


def grouped(scores: Tensor, config: Any, largest: int) -> Tensor:
    """Scores [T, E], −∞ outside the `topk_group` groups in which the sum of the `largest` scores is largest."""
    count, kept = getattr(config, "n_group", 1) or 1, getattr(config, "topk_group", 1) or 1
    groups = scores.view(len(scores), count, -1)
    best = groups.topk(min(largest, groups.shape[-1])).values.sum(-1).topk(kept).indices
    inside = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True)
    return groups.masked_fill(~inside[..., None], float("-inf")).flatten(1)
