"""Linear sum assignment: the one-to-one matching of neurons with the greatest total similarity."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

DENSE_BELOW = 512
"""Neurons below which SciPy's dense solver is the faster one."""
CANDIDATES = 24
"""Entries of each row, about, that the sparse problem starts with."""
TOO_MANY = 3 * CANDIDATES
"""Entries of each row, on average, with which the dense solver is the faster one: similarities of a very low rank."""
SETS = 64
"""Sets that the columns of a row are dealt into, to find its largest entries by the largest of each set."""
CHUNK = 2**17
"""Numbers per chunk of rows: they stay in the processor's cache."""
TOLERANCE = 1e-12
"""Differences below this fraction of the range of similarities count as rounding."""

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def assign(similarity: Tensor) -> Tensor:
    """The permutation [f] that maximises Σ_i similarity[i, perm[i]]; similarity is [f, f], float32 or float64.

    If the largest entries of the rows lie in different columns, they are the optimum. Other problems go to SciPy's
    dense solver, or from `DENSE_BELOW` neurons to `sparse_assignment`. If several permutations are optimal, any of
    them may be returned. Runs on one thread; only the dense solver needs 8 f² bytes of memory. Raises `ValueError` for
    similarities that are not finite.
    """
    values = similarity.numpy(force=True)
    perm = values.argmax(1)
    if not math.isfinite(float(values[np.arange(len(values)), perm].max()) - float(values.min())):
        raise ValueError("an assignment needs finite similarities")
    if np.bincount(perm).max() > 1:
        dense = len(values) < DENSE_BELOW
        perm = _dense(values) if dense else sparse_assignment(values)
    return torch.from_numpy(perm)


def _dense(similarity: Floats) -> Ints:
    columns: Ints = linear_sum_assignment(np.negative(similarity, dtype=np.float64))[1]
    return columns


def sparse_assignment(similarity: Floats, candidates: int = CANDIDATES) -> Ints:
    """Solve the assignment [f] on the largest entries of each row and prove it optimal for all of similarity [f, f].

    The proof is a price p_j of each column (linear programming duality): with u_i = max_j (s_ij + p_j), no matching
    has a total above Σ u_i − Σ p_j, and `matched` has that total if every row is matched where it reaches its u_i.
    Rows that do not reach it get their largest s_ij + p_j as further entries, and the sparse problem is solved again;
    with more than `TOO_MANY` entries a row, the dense solver takes over. Computed in float64, with `CHUNK`
    numbers in memory besides the entries.
    """
    rows, best = np.arange(len(similarity)), similarity.argmax(1)
    bound, price = similarity[rows, best].astype(np.float64), np.zeros(len(rows))
    scale = float(bound.max()) - float(similarity.min()) or 1.0
    diagonal = rows  # a full matching, whatever the candidates
    found = [rows * len(rows) + columns for columns in (diagonal, best)]
    found += _largest(similarity, candidates)
    entries = np.empty(0, np.int64)
    while found:
        entries = np.sort(np.concatenate([entries, *found]))
        entries = entries[np.diff(entries, prepend=-1) > 0]
        if len(entries) > TOO_MANY * len(rows):
            return _dense(similarity)
        row, column = np.divmod(entries, len(rows))
        # Reduced costs, so that SciPy starts near the optimum. It takes zeros for missing entries: shift them.
        cost = (bound[row] - price[column] - similarity.ravel()[entries]) / scale + 1.0
        starts = np.searchsorted(row, np.arange(len(rows) + 1))
        sparse = csr_array((cost, column, starts), shape=similarity.shape)
        matched = min_weight_full_bipartite_matching(sparse)[1].astype(np.int64)
        price += _discount(starts, column, cost, matched) * scale
        reached = similarity[rows, matched] + price[matched]
        found = list(_violating(similarity, bound, price, reached + 10 * TOLERANCE * scale, 2 * candidates))
        candidates *= 2
    return matched


def _largest(similarity: Floats, count: int) -> Iterator[Ints]:
    """Yield, for chunks of rows, the flat places of about `count` largest entries of each row, without ties.

    The limit is the `count`-th largest of the greatest entries of `SETS` sets of columns, whose order is much shorter.
    """
    even = similarity.shape[1] // SETS * SETS
    for first, part in _chunks(similarity):
        greatest = part[:, :even].reshape(len(part), -1, SETS).max(1)
        limit = np.partition(greatest, SETS - count, axis=1)[:, SETS - count, None]
        yield (part > limit).ravel().nonzero()[0] + first * similarity.shape[1]


def _violating(similarity: Floats, bound: Floats, price: Floats, enough: Floats, count: int) -> Iterator[Ints]:
    """Lower `bound` [f] to max_j (s_ij + p_j) where it is above `enough` [f]; yield entries of rows that stay above.

    Those are the flat places of the `count` largest s_ij + p_j. The bounds of other rows hold, because prices fall.
    """
    count = min(count, len(similarity))
    for first, part in _chunks(similarity):
        ours = slice(first, first + len(part))
        if (bound[ours] > enough[ours]).any():
            priced = part.astype(np.float64)
            priced += price
            bound[ours] = priced.max(1)
            (above,) = (bound[ours] > enough[ours]).nonzero()
            places = np.argpartition(priced[above], -count, axis=1)[:, -count:]
            if len(above):
                yield (places + (first + above)[:, None] * len(similarity)).ravel()


def _chunks(similarity: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield chunks of rows, each with the index of its first row."""
    rows = max(1, CHUNK // len(similarity))
    return ((first, similarity[first : first + rows]) for first in range(0, len(similarity), rows))


def _discount(starts: Ints, column: Ints, cost: Floats, matched: Ints) -> Floats:
    """By how much the price of each column [f] must change, ≤ 0, so that no row prefers another entry to its matched.

    That of column j is the shortest distance to it in the graph in which moving row i from its column to column j
    costs c_ij − c_i,matched(i); no cycle is negative, because the matching is optimal. Bellman and Ford's algorithm,
    from the columns that have moved.
    """
    counts, rows = np.diff(starts), np.arange(len(matched))
    owner = np.empty_like(matched)
    owner[matched] = rows
    row = np.repeat(rows, counts)
    taken = column == matched[row]
    step = cost - cost[taken][row]
    distance = np.zeros(len(matched))
    while len(rows):
        of = counts[rows]
        here = np.arange(of.sum()) + np.repeat(starts[rows] - (of.cumsum() - of), of)  # the entries of `rows`
        shorter = distance.copy()
        np.minimum.at(shorter, column[here], np.repeat(distance[matched[rows]], of) + step[here])
        rows = owner[shorter < distance - TOLERANCE]
        distance = shorter
    return distance
