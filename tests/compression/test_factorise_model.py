import pytest
import torch
from torch import nn

from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.errors import ParameterError, UserError
from mcsmoe.modeling.linears_mcsmoe import StackedLinears
from tests.compression.settings import compress
from tests.compression.tiny import D_FF, D_MODEL, WEIGHTS, factorised, logits, merged
from tests.models import KEPT

WHOLE = {"row": {"wi": D_FF, "wo": D_MODEL}, "column": {"wi": D_MODEL, "wo": D_FF}}
WHOLE["element"] = dict.fromkeys(("wi", "wo"), D_FF * D_MODEL)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("structure", WHOLE)
def test_factorising_keeps_the_function(structure, rank):
    model = factorised(compress(structure=structure, rank=rank))
    torch.testing.assert_close(logits(model), logits(merged()), rtol=1e-5, atol=1e-5)
    assert list(sparse_parts(model)) == WEIGHTS
    for name, experts in KEPT.items():
        kept = {key: experts * count for key, count in WHOLE[structure].items()}
        entry = {"experts": experts, "rank": rank, "structure": structure, "kept": kept}
        assert model.config.moe_layers[name] == entry


def test_low_rank_only_is_the_best_approximation_of_that_rank():
    model, dense = factorised(compress(structure="none", rank=3)), merged()
    for name, mlp in model.sparse_mlps().items():
        weight = dense.sparse_mlps()[name].experts.wi.weight.detach().double()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        best = left[..., :3] @ torch.diag_embed(values[:, :3]) @ right[:, :3]
        torch.testing.assert_close((mlp.experts.wi.u @ mlp.experts.wi.v).double(), best, rtol=1e-5, atol=1e-5)
    assert not sparse_parts(model)
    entry = {"experts": 3, "rank": 3, "structure": "none", "kept": {"wi": 0, "wo": 0}}
    assert model.config.moe_layers["encoder.3"] == entry


def test_rank_by_ratio():
    """0.3·(24·16)/(24 + 16) = 2.88."""
    model = factorised(compress(rank=None, rank_ratio=0.3))
    assert {entry["rank"] for entry in model.config.moe_layers.values()} == {2}


def test_excluded_layers_are_untouched():
    model = factorised(exclude={"encoder.1"})
    assert model.config.moe_layers["encoder.1"] == {"experts": 1}
    linears = model.sparse_mlps()["encoder.1"].experts.wi
    assert isinstance(linears, StackedLinears)
    assert torch.equal(linears.weight, merged().sparse_mlps()["encoder.1"].experts.wi.weight)
    assert list(sparse_parts(model)) == [name for name in WEIGHTS if not name.startswith("encoder.1.")]


def test_a_rank_that_saves_nothing_is_refused_before_any_work():
    model, built = merged(), []

    def build(*parts: object) -> nn.Module:
        built.append(parts)
        return nn.Module()

    with pytest.raises(ParameterError, match=r"^rank = 9"):
        factorise_model(model, compress(rank=9), build)
    assert not built
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in merged().state_dict().items())


def test_nothing_left_to_compress():
    with pytest.raises(UserError, match="nothing to compress"):
        factorised(exclude=KEPT)
