from pathlib import Path

import pytest
import torch

from mcsmoe.alignment.permute import largest_change
from mcsmoe.errors import CheckpointError
from mcsmoe.families import sparse_layers
from mcsmoe.families.experts import expert_in_memory
from tests.families.models import batch, small_model


def test_rounding_of_low_precision_is_told_from_a_wrong_order(tmp_path: Path):
    """In bfloat16 another order of the same sum changes logits; measured again in better precision it does not."""
    model = small_model("mixtral").bfloat16()
    model.save_pretrained(tmp_path / "before")
    layer = sparse_layers(model.config)[0]
    order = torch.randperm(layer.d_ff, generator=torch.Generator().manual_seed(0))
    expert = [expert_in_memory(model, layer, e) for e in range(layer.experts)]
    for each in expert:
        for name, value in each.items():
            value.data.copy_(value.data.index_select(layer.layout[name].hidden_axis or 0, order))
    model.save_pretrained(tmp_path / "after")
    assert largest_change(tmp_path / "before", tmp_path / "after", batch()) < 1e-4
    for each in expert:
        each["up"].data.copy_(each["up"].data.flip(0))
    model.save_pretrained(tmp_path / "wrong")
    with pytest.raises(CheckpointError, match="wrong permutation"):
        largest_change(tmp_path / "before", tmp_path / "wrong", batch())
