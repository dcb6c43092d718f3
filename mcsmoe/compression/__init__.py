"""Compression of each merged weight as U V + S (LoSparse, arXiv 2306.11222): factorise, then prune S while training.

    from mcsmoe.compression import Pruner, factorise_model

    factorise_model(student, settings, FactorisedLinears.from_factors)
    pruner = Pruner(student, settings, steps)  # then, in every step: backward, before_step, optimiser, after_step
    pruner.finish(student)                     # pruned units are removed

`size` checks before work begins that every weight would shrink.
"""

from mcsmoe.compression.factorise import MergedModel, Prunable, factorise, factorise_model
from mcsmoe.compression.pruner import CubicSchedule, Pruner
from mcsmoe.compression.size import check_size

__all__ = ["CubicSchedule", "MergedModel", "Prunable", "Pruner", "check_size", "factorise", "factorise_model"]
