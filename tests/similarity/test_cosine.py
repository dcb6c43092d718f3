import torch

from mcsmoe.similarity.evidence import cosine


def test_cosine_of_the_vectors():
    vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (1 + torch.cosine_similarity(vectors[:, None], vectors, dim=2)) / 2
    torch.testing.assert_close(cosine(vectors @ vectors.T), expected)


def test_range_diagonal_and_symmetry():
    vectors = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    vectors = torch.cat([vectors, -vectors, vectors * 3])
    s = cosine(vectors @ vectors.T)
    assert s.dtype == torch.float64
    assert s.diagonal().tolist() == [1] * 9
    assert s.min() >= 0
    assert s.max() <= 1
    assert torch.equal(s, s.T)


def test_halves_of_a_gram_matrix_that_are_rounded_differently():
    gram = torch.eye(2) + torch.tensor([[0, 0.25], [0.25 + 1e-6, 0]])
    assert torch.equal(cosine(gram), cosine(gram).T)


def test_a_vector_of_zeros_is_neither_like_nor_unlike():
    assert cosine(torch.tensor([[5.0, 0.0], [0.0, 0.0]])).tolist() == [[1, 0.5], [0.5, 1]]
