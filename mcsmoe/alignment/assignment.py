"""Which neuron of an expert goes to which place: the linear sum assignment of greatest total."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

DENSE_BELOW = 2048
CANDIDATES = 64
TOLERANCE = 1e-12
"""Differences below this share of the range of costs count as rounding."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign(similarity: Tensor) -> Tensor:
    """The permutation [f] that maximises Σ_i similarity[i, perm[i]]; similarity is [f, f].

    Small problems go to SciPy's dense solver, large ones to `sparse_assignment`. Every optimum is right
    where several are equal. Raises `ValueError` for similarities that are not finite.
    """
    if not bool(similarity.isfinite().all()):
        raise ValueError("an assignment needs finite similarities")
    cost = -similarity.double().cpu().numpy()
    perm = linear_sum_assignment(cost)[1] if len(cost) < DENSE_BELOW else sparse_assignment(cost)
    return torch.from_numpy(np.asarray(perm, dtype=np.int64))


def sparse_assignment(cost: Floats, candidates: int = CANDIDATES) -> Ints:
    """The assignment of least total cost [f], solved on each row's best candidates and proven on cost [f, f].

    The proof is that no reduced cost of the dense problem is negative. Entries that are join the
    candidates, and the smaller problem is solved again. Falls back to the dense solver where the candidates
    hold no full matching.
    """
    size, lowest = len(cost), float(cost.min())
    scale = float(cost.max()) - lowest or 1.0
    best = torch.from_numpy(cost).topk(min(candidates, size), dim=1, largest=False).indices.numpy()
    rows, columns = np.repeat(np.arange(size), best.shape[1]), best.ravel()
    while True:
        # Shifted away from zero: a sparse matrix takes a stored zero for a missing entry.
        weights = (cost[rows, columns] - lowest) / scale + 1.0
        matched = _match(rows, columns, weights, size)
        if matched is None:
            return np.asarray(linear_sum_assignment(cost)[1])
        potential = _potentials(rows, columns, weights, matched) * scale
        own = cost[np.arange(size), matched] - potential[matched]
        reduced = cost - own[:, None]
        reduced -= potential[None, :]
        violating = np.nonzero(reduced < -10 * TOLERANCE * scale)
        if not len(violating[0]):
            return matched
        rows, columns = np.append(rows, violating[0]), np.append(columns, violating[1])


def _match(rows: Ints, columns: Ints, weights: Floats, size: int) -> Ints | None:
    """Column of each row in the cheapest full matching on the given entries, None where there is none."""
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
    (linear programming duality). v_j is the shortest distance to column j where giving row i another column
    j costs w_ij − w_i,matched(i); an optimal matching leaves no negative cycle.
    """
    order = np.argsort(columns, kind="stable")
    rows, columns, weights = rows[order], columns[order], weights[order]
    own = np.empty(len(matched))
    taken = columns == matched[rows]
    own[rows[taken]] = weights[taken]
    step, start = weights - own[rows], np.searchsorted(columns, np.arange(len(matched)))
    distance = np.zeros(len(matched))
    for _ in range(len(matched)):
        # No segment is empty: every column has at least the entry it is matched by.
        shorter = np.minimum.reduceat(distance[matched[rows]] + step, start)
        if (shorter >= distance - TOLERANCE).all():
            break
        distance = np.minimum(distance, shorter)
    return distance
