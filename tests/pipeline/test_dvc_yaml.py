"""`dvc.yaml` says what each stage really reads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mcsmoe.params import Params
from tests.pipeline.imports import ROOT, dependencies

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
VOLATILE = yaml.safe_load((ROOT / "speed/dvc.yaml").read_text())["stages"]
STAGES = PIPELINE | VOLATILE
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))

EXECUTION_ONLY = {"threads", "launch", "memory_limit"}
"""Params that change how a stage runs, never what it is meant to compute."""


def module(stage: str) -> str:
    return re.findall(r"python -m stages\.(\w+)", STAGES[stage]["cmd"])[0]


def code(stage: str) -> list[str]:
    return sorted(d for d in STAGES[stage]["deps"] if d.split("/")[0] in ("mcsmoe", "stages") and "${" not in d)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_imports(stage):
    assert code(stage) == dependencies(module(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_params_it_reads(stage):
    tree = ast.parse((ROOT / f"stages/{module(stage)}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params"
    }
    listed = {name.split(".")[0] for name in STAGES[stage].get("params", [])}
    assert read & set(Params.model_fields) - EXECUTION_ONLY <= listed


@pytest.mark.parametrize("stage", STAGES)
def test_params_named_in_dvc_yaml_exist(stage):
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in STAGES[stage].get("params", []):
        value = values
        for part in name.split("."):
            assert part in value, name
            value = value[part]


@pytest.mark.parametrize("stage", STAGES)
def test_figures_are_committed_and_artifacts_cached(stage):
    """`cache: false` under `outs` would switch off a stage's run cache: only the report may do so."""
    uncached = [out for out in STAGES[stage].get("outs", []) if isinstance(out, dict)]
    pages = [{f"report/{name}": {"cache": False}} for name in ("index.html", "table.md")]
    assert uncached == (pages if stage == "report" else [])
    for figure in [*STAGES[stage].get("metrics", []), *STAGES[stage].get("plots", [])]:
        (settings,) = figure.values()
        assert settings["cache"] is False


@pytest.mark.parametrize("stage", VOLATILE)
def test_figures_that_vary_are_measured_on_demand_and_nothing_depends_on_them(stage):
    assert stage not in PIPELINE
    assert VOLATILE[stage]["always_changed"]
    assert VOLATILE[stage]["wdir"] == ".."  # paths are those of dvc.yaml
    assert not {"outs", "metrics", "plots"} & set(VOLATILE[stage])  # dvc.lock would tell their hashes
    (written,) = re.findall(r"--output (\S+)", VOLATILE[stage]["cmd"])
    parents = {str(parent) for parent in Path(written).parents} - {"."}
    assert parents == {"metrics", "metrics/speed"}
    assert not [dep for other in STAGES.values() for dep in other["deps"] if dep in {written, *parents}]


def test_only_merge_of_a_method_reads_its_recipe():
    recipe = "mcsmoe/recipes/${item.method}.yaml"
    assert [stage for stage in STAGES if recipe in STAGES[stage]["deps"]] == ["merge"]


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
