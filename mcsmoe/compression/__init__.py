"""Each merged weight as U V + S: factorised, then pruned while the model learns from its teacher (LoSparse).

    from mcsmoe.compression import Pruner, factorise_model

    factorise_model(student, settings, FactorisedLinears.from_factors)
    pruner = Pruner(student, settings, steps)  # then, in every step: backward, before_step, optimiser, after_step
    pruner.finish(student)                     # pruned units are removed

`size` tells before work begins whether a weight would shrink at all.
"""

from mcsmoe.compression.factorise import MergedModel, Prunable, factorise, factorise_model
from mcsmoe.compression.pruner import CubicSchedule, Pruner
from mcsmoe.compression.size import check_size

__all__ = ["CubicSchedule", "MergedModel", "Prunable", "Pruner", "check_size", "factorise", "factorise_model"]
