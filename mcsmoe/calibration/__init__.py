"""What a model does on calibration text: the sample, the watching of routers and experts, and sums of what was seen.

    from mcsmoe.calibration import draw_calibration
    from mcsmoe.calibration.collect import collect

    sample = draw_calibration(task, tokenizer, samples=128, seed=0)
    statistics = collect(model, family, family.layers(model.config), sample.batches(pad, 8, causal=True))
    statistics["decoder.0"].frequency  # [E]: how often each expert is selected

`watching` shows what a forward pass does in every sparse layer, `collect` adds that up into `RoutingStatistics`, and
`write_gradients` does the same for gradients. Of a model that is larger than memory, `lockstep` takes all batches
through one block before the next, and `journal` lets an interrupted run go on; `memory` tells before work starts which
of both ways it is.
"""

from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.sample import Calibration, draw_calibration
from mcsmoe.calibration.statistics import ALSO, LayerStatistics, RoutingStatistics, StatisticsWriter
from mcsmoe.calibration.watch import Batch, count, one_by_one, real_tokens, watching

__all__ = [
    "ALSO",
    "Batch",
    "Calibration",
    "Gradients",
    "LayerStatistics",
    "RoutingStatistics",
    "StatisticsWriter",
    "count",
    "draw_calibration",
    "one_by_one",
    "real_tokens",
    "watching",
    "write_gradients",
]
