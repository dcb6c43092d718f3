"""A method from outside the package, as README's example adds it: one file, named in params.yaml."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import ParameterError
from mcsmoe.families import family_of
from mcsmoe.grouping.plan import Plan
from stages import collect, permute
from stages.common import import_plugin
from tests.mutations import COUNT, mutated, right_or_one_line
from tests.pipeline.imports import ROOT
from tests.stages.workplace import enter, write_params

CODE = re.compile(r"```python\n(\"\"\"Element-wise median.*?)```", re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    Path("recipes").mkdir()
    Path("recipes/median_rule.py").write_text(code)
    return tmp_path


def run(stage: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"stages.{stage}", *options]
    return subprocess.run(command, env={"PYTHONPATH": f"{ROOT}:."}, capture_output=True, text=True)


def test_the_rule_of_the_readme_merges(place):
    permute.main()
    collect.main()
    write_params(plugins=["recipes.median_rule"], recipes={"m-smoe": {"rule": "median", "alignment": "none"}})
    for command in (["check"], ["merge", "--method", "m-smoe"]):
        done = run(*command)
        assert done.returncode == 0, done.stderr[-2000:]
    source, merged = Checkpoint(place / "artifacts/permute"), Checkpoint(place / "artifacts/merge/m-smoe")
    family, plan = family_of(source.config), Plan.load(place / "artifacts/merge/m-smoe")
    assert plan.rule == "median"
    for layer in family.layers(source.config):
        stack = merged.tensor(family.merged_tensor(layer, "wi"))
        for found, group in zip(stack, plan.layers[layer.name].groups, strict=True):
            members = torch.stack([source.tensor(layer.places["wi"].name(e)) for e in group.members])
            assert torch.equal(found, members.median(0).values)


def test_a_changed_plugin_changes_the_methods_that_use_it(place):
    def resolved() -> dict[str, bytes]:
        done = run("check")
        assert done.returncode == 0, done.stderr[-2000:]
        return {path.stem: path.read_bytes() for path in Path("artifacts/recipes").iterdir()}

    Path("recipes/median.yaml").write_text("like: m-smoe\nrule: median\n")
    methods = {"merge": ["m-smoe", "median"], "distill": [], "compress": []}
    write_params(plugins=["recipes.median_rule"], methods=methods)
    before = resolved()
    checked = Path("artifacts/checked.json").read_bytes()
    with Path("recipes/median_rule.py").open("a") as file:
        file.write("# changed\n")
    after = resolved()
    assert after["m-smoe"] == before["m-smoe"]
    assert after["median"] != before["median"]
    assert Path("artifacts/checked.json").read_bytes() == checked


def test_a_plugin_that_dvc_does_not_look_at_is_refused(place):
    Path("recipes/median_rule.py").rename("median_rule.py")
    write_params(plugins=["median_rule"])
    done = run("check")
    assert done.returncode == 2
    assert done.stderr == (
        "error: plugins = 'median_rule' in params.yaml: dvc does not look at median_rule.py: move it to recipes/, as "
        "recipes.NAME\n"
    )


def test_an_unknown_plugin_is_one_line(place):
    write_params(plugins=["their_rules"])
    done = run("collect")
    assert done.returncode == 2
    assert done.stderr == (
        "error: plugins = 'their_rules' in params.yaml: there is no such module; it is looked up as in `import`\n"
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero (PLACE/own_plugin.py, line 2)"),
        ("def f(:\n", "SyntaxError: invalid syntax (own_plugin.py, line 1) (PLACE/own_plugin.py, line 1)"),
        (
            "import nowhere_at_all\n",
            "ModuleNotFoundError: No module named 'nowhere_at_all' (PLACE/own_plugin.py, line 1)",
        ),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (PLACE/own_plugin.py, line 2)"),
        (
            "from mcsmoe.merging.rules import RULES\n\n@RULES.register('average', neds='gradients')\ndef f(x): ...\n",
            "UnknownNameError: unknown fact of a merging rule 'neds'; known: looks, needs; did you mean 'needs'? "
            "(PLACE/own_plugin.py, line 3)",
        ),
    ],
)
def test_a_plugin_that_raises_names_its_file_and_line(tmp_path, monkeypatch, code, message):
    (tmp_path / "own_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_plugin", raising=False)
    with pytest.raises(ParameterError) as error:
        import_plugin("own_plugin")
    expected = message.replace("PLACE", str(tmp_path))
    assert str(error.value) == f"plugins = 'own_plugin': it cannot be imported: {expected}"


@pytest.mark.parametrize("name", ["nowhere_at_all", "nowhere_at_all.rules", "mcsmoe.nowhere"])
def test_a_plugin_that_is_not_there(name):
    with pytest.raises(ParameterError, match="there is no such module"):
        import_plugin(name)


def test_damaged_plugins_are_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    whole = b'"""A rule."""\n\nimport math\n\nNAMES = ["a", "b"]\n\n\ndef rule(x):\n    return math.pi * x\n'
    for seed in range(COUNT):
        (tmp_path / f"damaged_plugin_{seed}.py").write_bytes(mutated(whole, seed))
        with right_or_one_line():
            import_plugin(f"damaged_plugin_{seed}")
