"""`dvc.yaml` says what each stage really reads, on two screens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mcsmoe.params import Params
from tests.pipeline.imports import ROOT, dependencies

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))

EXECUTION_ONLY = {"threads", "launch", "memory_limit"}
"""Sections that change how a stage runs, never what it is meant to compute."""


def module(stage: str) -> str:
    return re.findall(r"python -m stages\.(\w+)", STAGES[stage]["cmd"])[0]


def test_it_fits_on_two_screens():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 150


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_packages_that_it_imports(stage):
    listed = {dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in ("mcsmoe", "stages")}
    needed = dependencies(Path(f"stages/{module(stage)}.py"))
    if "mcsmoe" in listed:
        needed = {dep for dep in needed if not dep.startswith("mcsmoe/")} | {"mcsmoe"}
    assert listed == needed


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_whole_sections(stage):
    assert set(STAGES[stage].get("params", [])) <= set(Params.model_fields) - EXECUTION_ONLY


@pytest.mark.parametrize("stage", ["check", "report"])
def test_what_sees_all_params_depends_on_all(stage):
    assert set(STAGES[stage]["params"]) == set(Params.model_fields) - EXECUTION_ONLY


@pytest.mark.parametrize("stage", STAGES)
def test_who_reads_the_task_depends_on_its_data_and_on_the_check(stage):
    """A task of a plugin changes artifacts/checked.json."""
    deps = STAGES[stage]["deps"]
    assert ("${task.data}/" in deps) == ("task" in STAGES[stage].get("params", []))
    assert ("artifacts/checked.json" in deps) == ("task" in STAGES[stage].get("params", []) and stage != "check")


def test_null_is_a_file_that_is_there():
    assert (ROOT / str(None)).is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_figures_are_committed_and_artifacts_cached(stage):
    """Git keeps what `report` writes, and nothing that a method has a file of: dvc deletes those of methods that go."""
    kinds = ("outs", "metrics", "plots")
    written = [out for kind in kinds for out in STAGES[stage].get(kind, [])]
    for out in written:
        if isinstance(out, str):
            assert out.startswith("artifacts/")
        else:
            ((path, settings),) = out.items()
            assert settings["cache"] is False
            assert "${" not in path
            assert path.startswith(("report/", "metrics/", "plots/"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_a_whole_params_file(preset):
    Params.load(preset)


def test_params_are_the_tiny_preset():
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/tiny.yaml").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_help_imports_nothing_heavy(path):
    heavy = "{'torch', 'transformers', 'scipy', 'matplotlib', 'datasets'}"
    script = f"import sys, stages.{path.stem}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lock_belongs_to_this_code():
    """The committed `dvc.lock` was made by this code and these params: nothing is left to run."""
    dvc = str(Path(sys.executable).parent / "dvc")
    done = subprocess.run([dvc, "repro", "--dry", "--allow-missing"], cwd=ROOT, capture_output=True, text=True)
    assert "Running stage" not in done.stdout
    assert done.returncode == 0, done.stderr
