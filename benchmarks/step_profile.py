"""Where the time of training steps goes, by kind of operation, as torch's profiler sees it.

The profiler takes time of its own for each operation, so that many small ones look somewhat dearer than they are.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = "products"
INDEXING = "indexing and copies"
REDUCTIONS = "softmax, norms and other sums"
OPTIMISER = "optimiser and clipping"
ELEMENTWISE = "elementwise and views"
AUTOGRAD = "autograd's own bookkeeping"
PYTHON = "Python, and what the profiler does not see"

KINDS = {
    PRODUCTS: "mm bmm addmm baddbmm dot _grouped_mm",
    INDEXING: (
        "index index_select index_add index_add_ index_copy index_copy_ _index_put_impl_ index_put_ gather scatter "
        "scatter_ scatter_add_ embedding_dense_backward nonzero sort argsort bincount one_hot cat copy_ fill_ zero_ "
        "select_backward slice_backward"
    ),
    REDUCTIONS: (
        "_softmax _softmax_backward_data _log_softmax _log_softmax_backward_data logsumexp sum mean max argmax cumsum"
    ),
    OPTIMISER: "_fused_adamw_ _foreach_norm _foreach_mul_ _foreach_add_ linalg_vector_norm",
}
KIND = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names.split()}


def profiled(run: Callable[[], object], steps: int) -> list[tuple[str, float, str]]:
    """Rows of (kind of operation, milliseconds a step, share) of `run`, which makes `steps` steps on this thread."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        started = time.perf_counter()
        run()
        wall = time.perf_counter() - started
    spent: defaultdict[str, float] = defaultdict(float)
    for event in found.key_averages():
        spent[_kind(event.key)] += event.self_cpu_time_total / 1e6
    spent[PYTHON] = wall - sum(spent.values())
    largest_first = sorted(spent.items(), key=lambda each: -each[1])
    return [(kind, round(1000 * s / steps, 2), f"{s / wall:.0%}") for kind, s in largest_first]


def _kind(name: str) -> str:
    if name.startswith("Optimizer."):
        return OPTIMISER
    return KIND.get(name, ELEMENTWISE if name.startswith("aten::") else AUTOGRAD)


def product_seconds(run: Callable[[], object]) -> float:
    """Seconds of the matrix products of `run` on their own: the same shapes, one after another."""
    shapes: Counter[tuple[str, tuple[tuple[int, ...], ...]]] = Counter()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        run()
    for event in found.key_averages(group_by_input_shape=True):
        if event.key in ("aten::mm", "aten::bmm"):
            shapes[event.key, tuple(map(tuple, event.input_shapes[:2]))] += event.count
    total = 0.0
    for (name, (left, right)), count in shapes.items():
        product, a, b = getattr(torch, name.removeprefix("aten::")), torch.randn(left), torch.randn(right)
        product(a, b)
        started = time.perf_counter()
        for _ in range(count):
            product(a, b)
        total += time.perf_counter() - started
    return total
