"""The run of `shrink`: phase after phase in a workspace, then the result appears whole."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.content import identity, source_code
from mcsmoe.checkpoint.output import check_output
from mcsmoe.checkpoint.source import fetch, is_local
from mcsmoe.errors import CheckpointError
from mcsmoe.exporting.stock import open_mapped
from mcsmoe.exporting.write import Agreement, export_model, read_agreement
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import merge_model
from mcsmoe.methods.planning import make_plan
from mcsmoe.model import Model
from mcsmoe.progress import Whole
from mcsmoe.shrinking.job import Job
from mcsmoe.shrinking.measure import Predictions, predictions
from mcsmoe.shrinking.outcome import Outcome
from mcsmoe.shrinking.workspace import Workspace, close, workspace, workspace_path
from mcsmoe.similarity.collecting import collect_model
from mcsmoe.training.untrained import restore

GRADIENT_ROWS = 64
"""Rows for gradients and Fisher information, which take a backward pass each."""
ROUTER = "dominant"
"""Source of the router rows of a stock checkpoint."""


def run_job(job: Job) -> Outcome:
    """Do the work, and return what came out.

    An interrupted run goes on with the phase in which it stopped, and within it at the same layer where that is
    possible; a run for another number of experts goes on with the statistics.
    Raises `CheckpointError` if the output exists and is not the result of this very job, and what the phases raise.
    """
    output = job.request.output
    if output.exists():
        return _earlier(job)
    with workspace(output) as space, Whole([*job.seconds.values()]) as whole:
        run = _Run(job, space, whole)
        outcome = run.outcome()
        card = outcome.card(job, run.plan, run.statistics, run.result)
        outcome.save(run.result.directory, card, outcome.page(run.plan, run.statistics))
        close(space, run.result.directory, output)
    return outcome


def output_path(output: str | Path) -> Path:
    """The path of an output without detours: what "x/../out" means must not depend on whether x is there.

    Raises `CheckpointError` if something is there that no run has written, `FileError` if it cannot be written.
    """
    path = Path(os.path.normpath(output))
    check_output(path, directory=True)
    if path.exists() and not (path / Outcome.FILE).is_file():
        raise CheckpointError(f"{path}: exists and is no result of an earlier run; give another directory")
    return path


def _earlier(job: Job) -> Outcome:
    """The outcome of an earlier run of the same job, which has finished."""
    output = job.request.output
    found = Outcome.load(output)
    if found.settings != job.settings or found.weights != _weights(job):
        raise CheckpointError(f"{output}: the result of another run is there; give another directory or remove it")
    # Killed between moving the result and removing the workspace, a run leaves this.
    shutil.rmtree(workspace_path(output), ignore_errors=True)
    return found


def _weights(job: Job) -> str:
    """What identifies the files of the source: a hash of their content, or the commit of a hub repository."""
    return _hash(identity(job.directory)) if is_local(job.request.source) else job.directory.name


def _hash(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


class _Run:
    """The phases of one job, each of which depends on those before it."""

    def __init__(self, job: Job, space: Workspace, whole: Whole) -> None:
        self.job, self.space, self.whole = job, space, whole
        request = job.request
        directory = fetch(request.source)
        self.weights = _weights(job)
        start = {"source": self.weights, "rows": job.rows.fingerprint, "device": request.device}
        self._key = _hash(start | {"code": source_code()})
        if job.restored:
            self._phase(
                "restore",
                {},
                lambda: restore(directory, space.path / "source", request.trust_remote_code, request.keep_mtp),
            )
            directory = space.path / "source"
        self.source = self._open(directory, request.source)
        self.statistics = self._collect()
        self.plan = self._plan()
        self.merged = self._merge()
        self.agreement: Agreement | None = None
        self.result = self._export() if request.form == "stock" else self.merged

    def outcome(self) -> Outcome:
        """Measure source and result, and compare them."""
        full, merged = self._measure("source", self.source), self._measure("result", self.result)
        return Outcome.of(self.job, self.weights, self.agreement, full, merged, self.source, self.result)

    def _open(self, directory: Path, name: str | None = None) -> Model:
        request = self.job.request
        return Model(
            directory,
            self.job.limit,
            device=request.device,
            name=name,
            trust_remote_code=request.trust_remote_code,
            keep_mtp=request.keep_mtp,
        )

    def _phase(self, name: str, own: Mapping[str, Any], work: Callable[[], object]) -> None:
        self._key = _hash({"before": self._key, **own})
        if self.space.finished(name, self._key):
            self.whole.skip()
            return
        with self.whole.phase(name):
            self.space.run(name, self._key, work)

    def _collect(self) -> RoutingStatistics:
        job, directory = self.job, self.space.path / "statistics"
        also = job.recipe.also
        observer = Observer(self.source, job.sampling, "collect", also=also)
        key = {"also": also, "batch_size": job.sampling.batch_size}
        self._phase("collect", key, lambda: collect_model(observer, directory, also, GRADIENT_ROWS))
        return RoutingStatistics.load(directory)

    def _plan(self) -> Plan:
        job = self.job
        return make_plan(job.request.recipe, job.recipe, job.merge, self.statistics, self.source, job.request.seed)

    def _merge(self) -> Model:
        job, directory = self.job, self.space.path / "merged"
        observer = Observer(self.source, job.sampling, "merge", tokens=True) if job.recipe.looks else None
        seed = job.request.seed
        self._phase(
            "merge",
            {"plan": self.plan.to_json(), "seed": seed},
            lambda: merge_model(self.source, self.plan, self.statistics, directory, observer=observer, seed=seed),
        )
        return self._open(directory)

    def _export(self) -> Model:
        stock = self.space.path / "stock"
        mapped = open_mapped(self.source.checkpoint, self.merged.checkpoint, self.merged.directory)
        observer = Observer(self.source, self.job.sampling, "export", tokens=True)
        self._phase(
            "export",
            {"router": ROUTER},
            lambda: export_model(self.source, mapped, stock, ROUTER, observer=observer),
        )
        self.agreement = read_agreement(stock)
        return self._open(stock)

    def _measure(self, name: str, model: Model) -> Predictions:
        note = f"{name}.predictions"
        rows = self.job.rows.held_out
        self._phase(f"measure {name}", {}, lambda: predictions(model, rows).keep(self.space.notes, note))
        return Predictions.load(self.space.notes, note)
