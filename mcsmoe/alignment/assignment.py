"""Linear sum assignment: the one-to-one matching of neurons with the greatest total similarity."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from mcsmoe.checkpoint.reader import all_finite

DENSE_BELOW = 2048
CANDIDATES = 64
ROWS = 512
TOLERANCE = 1e-12
"""Differences below this fraction of the range of costs count as rounding."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign(similarity: Tensor) -> Tensor:
    """The permutation [f] that maximises Σ_i similarity[i, perm[i]]; similarity is [f, f].

    Problems below `DENSE_BELOW` neurons go to SciPy's dense solver, larger ones to `sparse_assignment`. If several
    permutations are optimal, any of them may be returned. Raises `ValueError` for similarities that are not finite.
    """
    if not all_finite(similarity):
        raise ValueError("an assignment needs finite similarities")
    similarity = similarity.cpu()
    if len(similarity) < DENSE_BELOW:
        perm = linear_sum_assignment(-similarity.double().numpy())[1]
    else:
        perm = sparse_assignment(similarity)
    return torch.from_numpy(np.asarray(perm, dtype=np.int64))


def sparse_assignment(similarity: Tensor, candidates: int = CANDIDATES) -> Ints:
    """Solve the assignment [f] on the best candidates of each row and prove it optimal for all of similarity [f, f].

    The proof: no reduced cost of the full problem is negative. If some are, the most negative ones of each row become
    candidates, too, and the sparse problem is solved again. If the candidates allow no full matching, the diagonal
    joins them, because it is one. Computed in float64, with at most `ROWS` rows in memory.
    """
    size, greatest = len(similarity), float(similarity.max())
    scale = greatest - float(similarity.min()) or 1.0
    best = torch.cat([cost.topk(min(candidates, size), dim=1, largest=False).indices for cost in _costs(similarity)])
    rows, columns = np.repeat(np.arange(size), best.shape[1]), best.numpy().ravel()
    while True:
        # Shift costs away from zero: a sparse matrix treats a stored zero as a missing entry.
        weights = (greatest - _entries(similarity, rows, columns)) / scale + 1.0
        matched = _match(rows, columns, weights, size)
        if matched is None:
            absent = np.setdiff1d(np.arange(size), rows[rows == columns])
            rows, columns = np.append(rows, absent), np.append(columns, absent)
            continue
        potential = _potentials(rows, columns, weights, matched) * scale
        own = -_entries(similarity, np.arange(size), matched) - potential[matched]
        violating = _violating(similarity, own, potential, -10 * TOLERANCE * scale, candidates)
        if not len(violating[0]):
            return matched
        rows, columns = np.append(rows, violating[0]), np.append(columns, violating[1])


def _costs(similarity: Tensor) -> Iterator[Tensor]:
    """Yield the costs (negated similarities) in chunks of rows."""
    return (-rows.double() for rows in similarity.split(ROWS))


def _entries(similarity: Tensor, rows: Ints, columns: Ints) -> Floats:
    found: Floats = similarity[torch.from_numpy(rows), torch.from_numpy(columns)].double().numpy()
    return found


def _violating(similarity: Tensor, own: Floats, potential: Floats, least: float, worst: int) -> tuple[Ints, Ints]:
    """Rows and columns of the reduced costs below `least`, at most the `worst` lowest of each row."""
    found = []
    for first, cost in zip(range(0, len(own), ROWS), _costs(similarity), strict=True):
        reduced = cost.sub_(torch.from_numpy(own[first : first + ROWS, None])).sub_(torch.from_numpy(potential))
        if float(reduced.min()) < least:
            values, columns = reduced.topk(min(worst, len(own)), dim=1, largest=False)
            row, place = (values < least).nonzero(as_tuple=True)
            found.append((row.numpy() + first, columns[row, place].numpy()))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate([rows for rows, _ in found]), np.concatenate([columns for _, columns in found])


def _match(rows: Ints, columns: Ints, weights: Floats, size: int) -> Ints | None:
    """Column [f] of each row in the cheapest full matching on the given entries, or None if there is none."""
    try:
        found = min_weight_full_bipartite_matching(csr_array((weights, (rows, columns)), shape=(size, size)))
    except ValueError:
        return None
    matched = np.empty(size, dtype=np.int64)
    matched[found[0]] = found[1]
    return matched


def _potentials(rows: Ints, columns: Ints, weights: Floats, matched: Ints) -> Floats:
    """Column potentials v [f] that prove `matched` optimal on the given entries.

    With u_i = w_i,matched(i) − v_matched(i), every reduced cost w_ij − u_i − v_j of the entries is ≥ 0
    (linear programming duality). v_j is the shortest distance to column j in the graph in which moving row i from its
    column to column j costs w_ij − w_i,matched(i). The graph has no negative cycle, because the matching is optimal.
    """
    order = np.argsort(columns, kind="stable")
    rows, columns, weights = rows[order], columns[order], weights[order]
    own = np.empty(len(matched))
    taken = columns == matched[rows]
    own[rows[taken]] = weights[taken]
    step, start = weights - own[rows], np.searchsorted(columns, np.arange(len(matched)))
    distance = np.zeros(len(matched))
    for _ in range(len(matched)):
        # `reduceat` needs non-empty segments: every column holds at least its matched entry.
        shorter = np.minimum.reduceat(distance[matched[rows]] + step, start)
        if (shorter >= distance - TOLERANCE).all():
            break
        distance = np.minimum(distance, shorter)
    return distance
