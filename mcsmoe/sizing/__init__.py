"""What merging would give and cost, computed from a configuration before any work.

sizes = Sizes.of(config)
sizes.total, sizes.in_experts              # bytes of all weights, and of those in experts
sizes.kept(64, "stock")                    # bytes of the result with 64 experts a layer
sizes.largest("50%", "mapped")             # the most experts a layer for half of the bytes
why_not_stock(sizes.layers, 4)             # a reason, or None

sizes        bytes of a model, of its experts, and of what merging would make of it
needs        memory and disk while it is made
inspection   all of this as a table, for a checkpoint of which only config.json and the index need be there
"""

from mcsmoe.sizing.inspection import Inspection, inspect
from mcsmoe.sizing.needs import aligning_bytes, merging_bytes, working_disk, working_memory
from mcsmoe.sizing.sizes import Format, LayerBytes, Sizes, target_bytes, why_not_stock

__all__ = [
    "Format",
    "Inspection",
    "LayerBytes",
    "Sizes",
    "aligning_bytes",
    "inspect",
    "merging_bytes",
    "target_bytes",
    "why_not_stock",
    "working_disk",
    "working_memory",
]
