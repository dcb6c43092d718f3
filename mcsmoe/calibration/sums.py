"""The sums of a sparse layer by name: their shapes, and what holds between sums over the same tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mcsmoe.checkpoint.reader import all_finite

AXES = {
    "tokens": "",
    "coselection": "EE",
    "gates": "E",
    "logits_gram": "EE",
    "input_sums": "Ed",
    "input_abs_sums": "Ed",
    "input_square_sums": "Ed",
    "input_gram": "dd",
    "norms": "E",
    "gated_norms": "E",
    "all_outputs": "Ed",
    "output_gram": "EE",
    "pair_errors": "EE",
}
"""Axes of each sum of a layer with E experts and inputs of width d."""
NOT_NEGATIVE = ("tokens", "coselection", "input_abs_sums", "input_square_sums", "norms", "pair_errors")
GRAMS = ("coselection", "logits_gram", "input_gram", "output_gram")
"""Sums of x xᵀ for some vector x; of 0 and 1 for `coselection`."""
CHUNK = 512
"""Products that are summed in float32 before their sum is added in float64.

Over few numbers float32 is nearly exact, and on most machines it is 2 to 64 times as fast. By the bound for inner
products, which holds in any order of additions (Higham, Accuracy and Stability of Numerical Algorithms, §3.1), a sum
Σ a b is off by at most CHUNK · 2⁻²⁴ · Σ |a b|, about 3e-5; a usual error is 1e-7. Counts are exact. Sums of which
differences are taken (`input_gram`, correlations), and small ones (gates, logits), are of float64 products.
"""
ROUNDING = 1e-4
"""Relative difference that rounding can make, with room to spare."""
ROWS = 512
"""Rows of a matrix that are compared at a time: `input_gram` may have half a gigabyte."""


def shapes(experts: int, d_model: int) -> dict[str, tuple[int, ...]]:
    """Shape of each sum: `input_sums` → (experts, d_model)."""
    sizes = {"E": experts, "d": d_model}
    return {name: tuple(sizes[axis] for axis in axes) for name, axes in AXES.items()}


def fault(sums: Mapping[str, Tensor]) -> str | None:
    """What cannot be in the sums of one layer, such as "input_gram is not symmetric"; None if all is well."""
    expected = shapes(len(sums["coselection"]), sums["input_sums"].shape[1])
    for name, value in sums.items():
        if value.dtype != torch.float64 or tuple(value.shape) != expected[name]:
            return f"{name} is {value.dtype} {list(value.shape)}, not float64 {list(expected[name])}"
        if not all_finite(value):
            return f"{name} holds NaN or infinity"
        if name in NOT_NEGATIVE and (value < 0).any():
            return f"{name} holds a negative number"
        if name in GRAMS and not _is_gram(value):
            return f"{name} is not symmetric, or has an entry that its diagonal does not allow"
    return _wrong_counts(sums) or _wrong_inputs(sums)


def selected(sums: Mapping[str, Tensor]) -> float:
    """How many experts a token selects: k = Σ_e n_e / T; 0 if there was no token."""
    return float(sums["coselection"].diagonal().sum() / sums["tokens"].clamp(min=1))


def _is_gram(value: Tensor) -> bool:
    """Whether a matrix may be a sum of x xᵀ: symmetric, and no |G_ij| above √(G_ii G_jj)."""
    root = value.diagonal().clamp(min=0).sqrt()
    for start in range(0, len(value), ROWS):
        rows, columns = value[start : start + ROWS, start:], value[start:, start : start + ROWS].T  # half is enough
        most = root[start : start + ROWS, None] * root[start:]
        if (rows.abs() > most * (1 + ROUNDING)).any() or ((rows - columns).abs() > most * ROUNDING).any():
            return False
    return True


def _wrong_counts(sums: Mapping[str, Tensor]) -> str | None:
    """Every token selects the same number k of different experts: Σ_e n_e = T k, and Σ_j n_ij = k n_i."""
    together, k = sums["coselection"], selected(sums)
    counts = together.diagonal()
    if not torch.equal(together, together.round()) or (counts > sums["tokens"]).any():
        return "coselection holds what is no count of its tokens"
    if k != int(k) or counts.sum() != k * sums["tokens"] or not torch.equal(together.sum(1), k * counts):
        return f"coselection does not add up: {counts.sum():,.0f} selections by {sums['tokens']:,.0f} tokens"
    return None


def _wrong_inputs(sums: Mapping[str, Tensor]) -> str | None:
    """|Σ x| ≤ Σ |x| and (Σ |x|)² ≤ n Σ x² over n tokens, and Σ_e Σ x² over the tokens of e is k times Σ x²."""
    signed, absolute, squares = (sums[f"input_{kind}sums"] for kind in ("", "abs_", "square_"))
    if (signed.abs() > absolute * (1 + ROUNDING)).any():
        return "input_sums are larger than input_abs_sums"
    if (absolute.square() > sums["coselection"].diagonal()[:, None] * squares * (1 + ROUNDING)).any():
        return "input_abs_sums are larger than input_square_sums allow"
    gram = sums.get("input_gram")
    if gram is not None and not torch.allclose(squares.sum(0), selected(sums) * gram.diagonal(), rtol=ROUNDING, atol=0):
        return "input_square_sums do not add up to the diagonal of input_gram"
    return None
