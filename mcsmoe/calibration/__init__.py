"""What a model does on calibration text: the sample, the watching of routers and experts, and sums of what was seen.

    from mcsmoe.calibration import Observer, Sampling
    from mcsmoe.model import Model

    model = Model(directory)
    with Observer(model, Sampling(task, samples=128, batch_size=8, seed=0), "look") as observer:
        observer.counts["decoder.0"]  # [E]: how many tokens select each expert
        observer.tokens(model.layers[0]).inputs  # [T, d]: the tokens that reach a layer

An `Observer` opens the model and draws its sample when it is first asked. Below it, `watching` shows what a forward
pass does in every sparse layer, `collect` adds that up into `RoutingStatistics`, and `write_gradients` does the same
for gradients. Of a model that is larger than memory, `lockstep` takes all batches through one block before the next,
and `journal` lets an interrupted run go on; `memory` tells before work starts which of both ways it is.
"""

from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.observer import LayerTokens, Observer, Processes
from mcsmoe.calibration.sample import Sample, Sampling
from mcsmoe.calibration.statistics import ALSO, LayerStatistics, RoutingStatistics, StatisticsWriter
from mcsmoe.calibration.watch import Batch, count, one_by_one, real_tokens, watching

__all__ = [
    "ALSO",
    "Batch",
    "Gradients",
    "LayerStatistics",
    "LayerTokens",
    "Observer",
    "Processes",
    "RoutingStatistics",
    "Sample",
    "Sampling",
    "StatisticsWriter",
    "count",
    "one_by_one",
    "real_tokens",
    "watching",
    "write_gradients",
]
