import torch
from safetensors.torch import load_file

from mcsmoe.routing.statistics import LayerStatistics
from mcsmoe.similarity.registry import SIMILARITIES
from tests.golden_switch import SWITCH, golden_layers, golden_statistics
from tests.shared import needs_golden


def statistics(logits: torch.Tensor) -> LayerStatistics:
    sums = LayerStatistics.zeros(logits.shape[1], 2)
    sums.logits_gram += logits.T @ logits
    return sums


def test_cosine_of_the_columns():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    similarity = SIMILARITIES["router-logits"](statistics(logits))
    for i in range(5):
        for j in range(5):
            cosine = torch.cosine_similarity(logits[:, i], logits[:, j], dim=0)
            torch.testing.assert_close(similarity[i, j], (1 + cosine) / 2)
    assert similarity.dtype == torch.float64


def test_range_diagonal_and_symmetry():
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = torch.cat([logits, -logits, logits * 3], dim=1)
    similarity = SIMILARITIES["router-logits"](statistics(logits))
    assert similarity.diagonal().tolist() == [1] * 9
    assert similarity.min() >= 0
    assert similarity.max() <= 1
    assert torch.equal(similarity, similarity.T)


def test_an_expert_without_logits_is_neither_like_nor_unlike():
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    assert SIMILARITIES["router-logits"](statistics(logits)).tolist() == [[1, 0.5], [0.5, 1]]


@needs_golden
def test_golden_similarity():
    golden = load_file(SWITCH / "similarity.safetensors")
    for layer in golden_layers():
        ours = SIMILARITIES["router-logits"](golden_statistics()[layer.name])
        expected = golden[f"router-logits|{layer.path}"]
        torch.testing.assert_close(ours.float(), expected, rtol=0, atol=1e-5)
