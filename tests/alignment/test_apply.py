import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.matching import align, permute, weight_similarity
from mcsmoe.families import Layout, Role
from mcsmoe.families.experts import forward
from tests.alignment.experts import GATED, PLAIN, activation, noisy, random_expert
from tests.shared import GOLDEN, needs_golden


@pytest.mark.parametrize("layout", [PLAIN, GATED])
def test_permuting_leaves_the_function(layout: Layout):
    generator = torch.Generator().manual_seed(0)
    expert = random_expert(layout, 10, 6, generator)
    moved = permute(expert, layout, torch.randperm(10, generator=generator))
    x = torch.randn(7, 6, generator=generator)
    torch.testing.assert_close(
        forward(moved, layout, activation("silu"), x), forward(expert, layout, activation("silu"), x)
    )
    assert any(not torch.equal(moved[name], expert[name]) for name in layout)


def test_new_row_is_the_old_row_that_perm_names():
    expert = random_expert(GATED, 4, 3, torch.Generator().manual_seed(1))
    moved = permute(expert, GATED, torch.tensor([2, 0, 3, 1]))
    assert torch.equal(moved["w1"][0], expert["w1"][2])
    assert torch.equal(moved["b3"][3], expert["b3"][1])
    assert torch.equal(moved["w2"][:, 1], expert["w2"][:, 0])
    assert torch.equal(moved["b2"], expert["b2"])


@pytest.mark.parametrize("layout", [PLAIN, GATED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_permutation_is_found(layout: Layout, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(2)
    reference = {k: v.to(dtype) for k, v in random_expert(layout, 40, 16, generator).items()}
    perm = torch.randperm(40, generator=generator)
    expert = permute(noisy(reference, 0.05, generator), layout, perm)
    aligned = align(expert, reference, layout)
    assert torch.equal(aligned[next(iter(layout))], expert[next(iter(layout))][perm.argsort()])


def test_similarity_is_the_sum_over_all_projections():
    generator = torch.Generator().manual_seed(3)
    a, b = (random_expert(GATED, 5, 3, generator) for _ in range(2))
    similarity = weight_similarity(a, b, GATED)
    for i in range(5):
        for j in range(5):
            expected = sum(a[n][i] @ b[n][j] for n in ("w1", "w3")) + a["w2"][:, i] @ b["w2"][:, j]
            expected += a["b1"][i] * b["b1"][j] + a["b3"][i] * b["b3"][j]
            assert similarity[i, j] == pytest.approx(float(expected), abs=1e-5)


@needs_golden
@pytest.mark.parametrize(
    ("file", "layout"),
    [("weight_wo_true", PLAIN), ("weight_wo_false", {"wi": Role.UP})],
)
def test_golden_permutations(file: str, layout: Layout):
    weights = load_file(GOLDEN / "switch" / "model.safetensors")
    golden = load_file(GOLDEN / "switch" / "aligned" / f"{file}.perms.safetensors")
    for key, perm in golden.items():
        path, expert = key.removeprefix("perm.").rsplit(".", 1)
        reference, other = (
            {name: weights[f"{path}.{e}.{name}.weight"] for name in layout} for e in ("expert_0", expert)
        )
        assert torch.equal(assign(weight_similarity(reference, other, layout)), perm), key
