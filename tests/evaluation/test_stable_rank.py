import pytest
import torch

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.evaluation.stable_rank import merged_ranks, stable_rank, stock_ranks
from mcsmoe.families import family_of, sparse_layers
from tests.models import tiny_merged, tiny_switch


def test_known_ranks():
    one = torch.outer(torch.arange(1.0, 5), torch.ones(3))
    weights = torch.stack([one, torch.eye(4, 3), torch.zeros(4, 3), torch.diag(torch.tensor([2.0, 1, 1, 0]))[:, :3]])
    assert stable_rank(weights).tolist() == pytest.approx([1.0, 3.0, 0.0, 1.5])


def test_mean_over_the_experts_of_a_layer(tmp_path):
    stock = tiny_switch()
    stock.save_pretrained(tmp_path)
    ranks = stock_ranks(Checkpoint(tmp_path), sparse_layers(stock.config))
    experts = stock.decoder.block[3].layer[2].mlp.experts
    each = [
        stable_rank(experts.get_parameter(f"expert_{e}.{name}.weight").detach())
        for e in range(8)
        for name in ("wi", "wo")
    ]
    assert list(ranks) == ["encoder.1", "encoder.3", "decoder.1", "decoder.3"]
    assert ranks["decoder.3"] == pytest.approx(float(torch.stack(each).mean()))


def test_merged_checkpoints_hold_stacks(tmp_path):
    model = tiny_merged()
    model.save_pretrained(tmp_path)
    family = family_of(model.config)
    ranks = merged_ranks(Checkpoint(tmp_path), family, family.layers(model.config))
    experts = model.sparse_mlps()["encoder.3"].experts
    both = torch.cat([stable_rank(experts.get_parameter(f"{name}.weight").detach()) for name in ("wi", "wo")])
    assert ranks["encoder.3"] == pytest.approx(float(both.mean()))
