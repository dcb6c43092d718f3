"""What a change of params, recipes, plugins or local data makes dvc run again, in a copy where every stage is done."""

from collections.abc import Iterator
from contextlib import chdir, contextmanager

import pytest
import yaml
from dvc.repo import Repo

from tests.pipeline.conftest import Clone, copy_checkout

EVALUATED = {"evaluate-full", "evaluate-merge", "evaluate-distill", "evaluate-compress"}
BELOW_MERGE = {"merge", "distill", "compress", "evaluate-merge", "evaluate-distill", "evaluate-compress"}
DRAWN = {"stable-rank", "report"}
RULE = """from mcsmoe.merging import RULES

RULES.register("mine")(RULES["average"])
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Clone:
    """A copy of the checkout with real recipes and made-up outputs, recorded in `dvc.lock` as if stages wrote them."""
    clone = copy_checkout(tmp_path_factory.mktemp("clone"))
    clone.run("dvc", "config", "core.analytics", "false")
    change(clone, "methods.merge", ["none", "m-smoe", "average", "one", "mine"])
    change(clone, "plugins", ["recipes.my_rules"])
    (clone.path / "recipes/my_rules.py").write_text(RULE)
    (clone.path / "recipes/mine.yaml").write_text("like: m-smoe\nrule: mine\n")
    clone.run("dvc", "repro", "check")
    record(clone)
    return clone


def record(clone: Clone) -> None:
    """Make up each output that is not there, and have dvc take them as made of what lies here now."""
    for out in clone.run("python", "-c", LIST_OUTPUTS).stdout.split():
        path = clone.path / out
        if path.exists():
            continue
        directory = not path.suffix or path.suffix.removeprefix(".").isdigit()
        file = path / "file" if directory else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"{out}"' if path.suffix != ".json" or out.startswith("artifacts") else "{}")
    clone.run("dvc", "commit", "-f", "-q")
    clone.commit("done")


LIST_OUTPUTS = "from dvc.repo import Repo\nfor out in Repo().index.outs: print(out)"


@contextmanager
def dvc(clone: Clone) -> Iterator[Repo]:
    """DVC's view of a clone, in this process: one of its own would import all of DVC anew."""
    with chdir(clone.path), Repo() as repo:
        yield repo


def changed(clone: Clone) -> set[str]:
    """Names of the stages that `dvc status` finds changed, by themselves or by what they depend on."""
    with dvc(clone) as repo:
        return set(repo.status())


def change(clone: Clone, name: str, value: object) -> None:
    path = clone.path / "params.yaml"
    values = yaml.safe_load(path.read_text())
    *sections, key = name.split(".")
    section = values
    for part in sections:
        section = section[part]
    assert section[key] != value
    section[key] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def restore(clone: Clone) -> None:
    """Everything as it was recorded."""
    clone.run("git", "checkout", "-q", ".")
    clone.run("git", "clean", "-fdq")
    with dvc(clone) as repo:
        repo.checkout()


def test_nothing_changed_runs_nothing(done):
    assert changed(done) == set()
    assert "up to date" in done.run("dvc", "repro").stdout


def after(clone: Clone, stages: set[str]) -> set[str]:
    """`stages` and all that depend on them, however far, without methods."""
    with dvc(clone) as repo:
        edges = [(b.name.split("@")[0], a.name.split("@")[0]) for a, b in repo.index.graph.edges]
    found, todo = set(stages), set(stages)
    while todo:
        todo = {b for a, b in edges if a in todo} - found
        found |= todo
    return found


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("evaluate.batch_size", 7, EVALUATED | {"report"}),
        ("evaluate.limit", 7, EVALUATED | {"report"}),
        ("compress.rank", 3, {"compress", "evaluate-compress", "report"}),
        (
            "distill.learning_rate",
            0.123,
            {"distill", "compress", "evaluate-distill", "evaluate-compress", "stable-rank", "report"},
        ),
        ("collect.also", ["norms"], {"collect"} | BELOW_MERGE | DRAWN),
        ("calibration.samples", 7, {"permute", "collect"} | BELOW_MERGE | DRAWN),
        ("threads", 2, set()),
        ("launch.processes", 2, set()),
    ],
)
def test_a_changed_parameter_runs_its_stage_and_those_below(done, name, value, expected):
    change(done, name, value)
    # The check looks again, and writes the same: nothing runs for that.
    own = {stage.split("@")[0] for stage in changed(done)} - {"check"}
    assert after(done, own) == expected
    restore(done)


@pytest.mark.parametrize(
    ("name", "value", "merged"),
    [
        ("merge.groups", 2, {"m-smoe", "average", "mine"}),
        ("recipes", {"average": {"rule": "dominant"}}, {"average"}),
    ],
)
def test_a_method_is_merged_again_where_its_own_recipe_changed(done, name, value, merged):
    change(done, name, value)
    done.run("dvc", "repro", "check")
    assert changed(done) - {"report"} == {f"merge@{method}" for method in merged}
    restore(done)


@pytest.mark.parametrize(
    ("file", "old", "new", "merged"),
    [
        ("recipes/my_rules.py", 'RULES["average"]', 'RULES["dominant"]', {"mine"}),
        ("recipes/mine.yaml", "like", "# a comment\nlike", set()),
        ("mcsmoe/recipes/m-smoe.yaml", "alignment: weight", "alignment: none", {"m-smoe", "mine"}),  # it is like that
    ],
)
def test_a_changed_file_merges_again_who_uses_it(done, file, old, new, merged):
    path = done.path / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "check" in changed(done)
    done.run("dvc", "repro", "check")
    assert changed(done) == {f"merge@{method}" for method in merged}
    restore(done)


def test_a_new_recipe_or_plugin_runs_nothing(done):
    (done.path / "recipes/other.yaml").write_text("like: average\n")
    (done.path / "recipes/others.py").write_text(RULE.replace("mine", "others"))
    change(done, "plugins", ["recipes.my_rules", "recipes.others"])
    done.run("dvc", "repro", "check")
    assert changed(done) == {"report"}  # which shows the params
    restore(done)


def test_a_foreign_or_left_over_file_changes_nothing(done):
    for name in ("metrics/evaluate/mine.json", "metrics/mine.json", "plots/mine.json", "report/mine.svg"):
        (done.path / name).parent.mkdir(exist_ok=True)
        (done.path / name).write_text("{}")
    assert changed(done) == set()
    restore(done)


def test_a_method_that_is_taken_out_leaves_no_figures(done):
    change(done, "methods.merge", ["none", "m-smoe", "average", "mine"])
    done.run("dvc", "repro", "check")
    figures = {path.name for path in (done.path / "artifacts/figures").rglob("*")}
    assert not {"merge-one.json", "one"} & figures
    assert {"full.json", "finetune.json", "permute.json", "merge-mine.json", "distill-m-smoe.json", "none"} <= figures
    assert changed(done) == {"report"}
    restore(done)


def test_other_files_under_the_same_local_directory_are_noticed(done, tmp_path):
    shared = tmp_path / "outside"
    for name in ("data", "model"):
        (shared / name).mkdir(parents=True)
        (shared / name / "file").write_text("before")
    change(done, "task.data", str(shared / "data"))
    change(done, "model.source", str(shared / "model"))
    done.run("dvc", "commit", "-f", "-q")
    assert changed(done) == set()
    (shared / "model/file").write_text("after")
    assert {name.split("@")[0] for name in changed(done)} == {"check", "finetune"}
    (shared / "model/file").write_text("before")
    (shared / "data/file").write_text("after")
    read = {"check", "finetune", "permute", "collect", "merge", "distill", "compress", "report"}
    assert {name.split("@")[0] for name in changed(done)} == read | EVALUATED
    restore(done)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "unknown method 'two'; known: average,"),
        ("two words", "methods.merge.0 = 'two words' in params.yaml: a method is named by letters, digits and"),
    ],
)
def test_a_method_that_cannot_be_is_refused_in_one_line(done, name, message):
    values = yaml.safe_load((done.path / "params.yaml").read_text())
    values["methods"] = {"merge": [name], "distill": [name], "compress": [], "dense": []}
    (done.path / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    ran = done.run("dvc", "repro", check=False)
    assert ran.returncode != 0
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in ran.stderr
    restore(done)
