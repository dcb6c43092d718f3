import pytest
import torch

from mcsmoe.evaluation.cost import experts, flops_per_token, size
from mcsmoe.families.experts import mapped_model
from mcsmoe.tasks.task import Encoded


def by_hand(config, source: int, target: int) -> int:
    """FLOPs of one row: 2·m·n for each weight a token passes, and attention's two products."""
    d, inner, f, e, v = config.d_model, config.num_heads * config.d_kv, config.d_ff, config.num_experts, 0
    v = config.vocab_size
    feed_forward = 2 * (2 * d * f)
    router = 2 * d * e
    own, cross_queries, cross_keys = 8 * d * inner, 4 * d * inner, 4 * d * inner
    encoder = source * (2 * own + 2 * feed_forward + router) + 2 * (4 * source * source * inner)
    decoder = target * (2 * own + 2 * cross_queries + 2 * feed_forward + router)
    decoder += source * 2 * cross_keys + 2 * (4 * target * target + 4 * target * source) * inner
    return encoder + decoder + target * 2 * d * v


def test_flops_are_those_of_the_modules(model, rows):
    row = next(row for row in rows if len(row.source) != len(row.target))
    tokens = len(row.source) + len(row.target)
    expected = by_hand(model.config, len(row.source), len(row.target)) / tokens
    assert flops_per_token(model, [row], 0) == pytest.approx(expected)


def test_flops_are_weighed_by_tokens(model, rows):
    short, long = rows[0], Encoded(rows[1].source * 2, rows[1].target * 2)
    lengths = [len(row.source) + len(row.target) for row in (short, long)]
    each = [flops_per_token(model, [row], 0) * length for row, length in zip((short, long), lengths)]
    assert flops_per_token(model, [short, long], 0) == pytest.approx(sum(each) / sum(lengths))


def test_size_counts_what_is_on_disk(model, tmp_path):
    model.save_pretrained(tmp_path)
    cost = size(model, tmp_path)
    assert cost["bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert cost["parameters"] == model.num_parameters()
    assert cost["experts"] == 8


def test_index_maps_are_no_parameters_and_merged_experts_count(model):
    mapped = mapped_model(model)
    assert sum(p.numel() for p in mapped.parameters() if p.is_floating_point()) == model.num_parameters()
    mapped.config.moe_layers["encoder.1"]["experts"] = 1
    assert experts(mapped.config) == 5


def test_merged_model_costs_the_same_for_each_token(model, rows):
    with torch.no_grad():
        assert flops_per_token(mapped_model(model), rows[:4], 0) == pytest.approx(flops_per_token(model, rows[:4], 0))
