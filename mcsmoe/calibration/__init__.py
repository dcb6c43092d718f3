"""Observation of a model on calibration text: the sample, hooks on routers and experts, and sums of what they see.

    from mcsmoe.calibration import Observer, Sampling
    from mcsmoe.model import Model

    model = Model(directory)
    with Observer(model, Sampling(task, samples=128, batch_size=8, seed=0), "look") as observer:
        observer.counts["decoder.0"]  # [E]: how many tokens select each expert
        observer.tokens(model.layers[0]).inputs  # [T, d]: the tokens that reach a layer

An `Observer` loads the model and draws the sample on first use. It builds on `watching`, which reports what a forward
pass does in every sparse layer. `collect` sums those reports into `RoutingStatistics`; `write_gradients` does the same
for gradients. `memory` decides before work starts whether the model fits, or has to be read block by block.
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
