"""Float32 in models of lower precision: what the class keeps in it, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.streamed import blocks_of, load_streamed
from mcsmoe.families import family_of, skeleton
from mcsmoe.families.experts import mapped_model
from tests.families.models import SETTINGS, small_model
from tests.families.planted import logits, merge, plant, save
from tests.models import tiny_switch

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("model_type", [*SETTINGS, "switch_transformers"])
def test_the_same_tensors_are_kept_in_float32_in_the_merged_class(model_type: str):
    stock = tiny_switch() if model_type == "switch_transformers" else small_model(model_type)
    family = family_of(stock.config)
    merged = skeleton(family.merged_config(stock.config, {}))
    stacks = {family.merged_tensor(layer, name) for layer in family.layers(stock.config) for name in layer.layout}

    def kept(model: Any, dtype: torch.dtype) -> set[str]:
        patterns = model._get_dtype_plan(dtype)
        return {name for name in model.state_dict() if any(re.search(pattern, name) for pattern in patterns)}

    assert stacks <= merged.state_dict().keys()
    for dtype in HALVES:
        assert kept(merged, dtype) == kept(stock, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_router_in_float32_beside_experts_in_half_precision(dtype: torch.dtype, tmp_path: Path):
    """ERNIE keeps "gate.weight" in float32 and means the router; merged experts have a `gate.weight`, too."""
    model = small_model("ernie4_5_moe").to(dtype)
    plant(model)
    stock = save(model, tmp_path / "stock")
    merge(stock, tmp_path / "merged")
    loaded, merged = load_model(tmp_path / "stock"), load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(loaded), rtol=0, atol=4e-3)
    streamed = load_streamed(tmp_path / "merged")
    blocks = blocks_of(streamed)
    assert blocks is not None
    for block in blocks.names:
        with blocks.loaded(block):
            found = streamed.get_submodule(block).state_dict()
            assert {f"{block}.{name}": value.dtype for name, value in found.items()}.items() <= {
                name: value.dtype for name, value in merged.state_dict().items()
            }.items()


def test_a_mapped_model_keeps_every_dtype(tmp_path: Path):
    save(small_model("deepseek_v3").bfloat16(), tmp_path)
    stock = load_model(tmp_path)
    mapped = mapped_model(stock).state_dict()
    shared = {name: value for name, value in stock.state_dict().items() if name in mapped}
    assert {value.dtype for value in shared.values()} == {torch.float32, torch.bfloat16}
    assert all(mapped[name].dtype == value.dtype and mapped[name].equal(value) for name, value in shared.items())
