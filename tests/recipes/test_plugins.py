"""A method from outside the package, as README's example adds it: one file, named in params.yaml."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import family_of
from mcsmoe.grouping.plan import Plan
from stages import collect, permute
from tests.pipeline.imports import ROOT
from tests.stages.workplace import enter, write_params

CODE = re.compile(r"```python\n(\"\"\"Element-wise median.*?)```", re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    Path("my_rules.py").write_text(code)
    return tmp_path


def run(stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"stages.{stage}", *options]
    return subprocess.run(command, env={"PYTHONPATH": f"{ROOT}:."}, capture_output=True, text=True)


def test_the_rule_of_the_readme_merges(place):
    permute.main()
    collect.main()
    write_params(plugins=["my_rules"], recipes={"m-smoe": {"rule": "median", "alignment": "none"}})
    done = run("merge", "--method", "m-smoe")
    assert done.returncode == 0, done.stderr[-2000:]
    source, merged = Checkpoint(place / "artifacts/permute"), Checkpoint(place / "artifacts/merge/m-smoe")
    family, plan = family_of(source.config), Plan.load(place / "artifacts/merge/m-smoe")
    assert plan.rule == "median"
    for layer in family.layers(source.config):
        stack = merged.tensor(family.merged_tensor(layer, "wi"))
        for found, group in zip(stack, plan.layers[layer.name].groups, strict=True):
            members = torch.stack([source.tensor(layer.places["wi"].name(e)) for e in group.members])
            assert torch.equal(found, members.median(0).values)


def test_an_unknown_plugin_is_one_line(place):
    write_params(plugins=["their_rules"])
    done = run("collect")
    assert done.returncode == 2
    assert done.stderr == (
        "error: plugins = 'their_rules' in params.yaml: there is no such module; it is looked up as in `import`\n"
    )
