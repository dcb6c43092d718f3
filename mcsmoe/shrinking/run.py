"""The run of `shrink`: phase after phase in a workspace, then the result appears whole."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.load import fetch
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import identity, source_code
from mcsmoe.errors import CheckpointError
from mcsmoe.exporting.stock import open_mapped
from mcsmoe.exporting.write import export_model
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import merge_model
from mcsmoe.methods.planning import make_plan
from mcsmoe.model import Model
from mcsmoe.params import Exclude, Merge
from mcsmoe.progress import Whole
from mcsmoe.shrinking.job import Job
from mcsmoe.shrinking.measure import Predictions, predictions
from mcsmoe.shrinking.outcome import RESULT, Outcome, compare
from mcsmoe.shrinking.workspace import Workspace, close, workspace
from mcsmoe.similarity.collecting import collect_model
from mcsmoe.training.untrained import restore

GRADIENT_ROWS = 64
ROUTER = "dominant"


def run_job(job: Job, before: Callable[[], None] = lambda: None) -> Outcome:
    """Do the work and return what came out; `before` is called when nothing can be refused any more.

    An interrupted run goes on with the phase in which it stopped, and within it at the same layer where that can be.
    Raises `CheckpointError` if the output exists and is not the result of this very job, and whatever the phases raise.
    """
    output = job.request.output
    if output.exists():
        return earlier(job)
    with workspace(output) as space:
        directory = fetch(job.request.source)
        before()
        key = base_key(job, directory)
        seconds = job.seconds
        with Whole([*seconds.values()]) as whole:

            def phase(name: str, own: Mapping[str, Any], work: Callable[[], object]) -> None:
                nonlocal key
                key = {"before": key, **own}
                if space.finished(name, key):
                    whole.skip()
                    return
                with whole.phase(name):
                    space.run(name, key, work)

            result, full, merged = _phases(job, space, directory, phase)
        outcome = compare(job, Plan.load(space.path / "plan"), full, merged, space, result)
        outcome.save(result)
        close(space, result, output)
        return outcome
