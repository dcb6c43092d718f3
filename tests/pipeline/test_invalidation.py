"""What a change of params or of a recipe makes dvc run again, in a copy where every stage counts as done."""

import re

import pytest
import yaml

from tests.pipeline.conftest import Clone, copy_checkout

FIGURES = (".json", ".svg", ".md", ".html")
BELOW_MERGE = {"merge", "distill", "compress", "evaluate-merge", "evaluate-distill", "evaluate-compress"}
DRAWN = {"groups", "stable-rank", "report"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Clone:
    """A copy of the checkout with made-up outputs, recorded in `dvc.lock` as if stages wrote them."""
    clone = copy_checkout(tmp_path_factory.mktemp("clone"))
    listed = clone.run("python", "-c", "from dvc.repo import Repo\nfor o in Repo().index.outs: print(o)").stdout
    for out in listed.split():
        path = clone.path / out
        file = path if path.suffix in FIGURES else path / "model.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'"{out}"')
        if out.startswith("artifacts/merge/"):
            (path / "plan.json").write_text("{}")
    clone.run("dvc", "commit", "-f", "-q")
    clone.commit("done")
    return clone


def would_run(clone: Clone) -> set[str]:
    """Names of the stages (without method) that `dvc repro` would run; the copy is restored after."""
    text = clone.run("dvc", "repro", "--dry", "--force-downstream").stdout
    clone.run("git", "checkout", "-q", ".")
    return {name.split("@")[0] for name in re.findall(r"Running stage '([^']+)'", text)}


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


def test_nothing_changed_runs_nothing(done):
    assert would_run(done) == set()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "evaluate.batch_size",
            7,
            {"evaluate-full", "evaluate-merge", "evaluate-distill", "evaluate-compress", "report"},
        ),
        (
            "task.test_limit",
            7,
            {"evaluate-full", "evaluate-merge", "evaluate-distill", "evaluate-compress", "report"},
        ),
        ("merge.groups", 2, BELOW_MERGE | DRAWN),
        ("compress.rank", 3, {"compress", "evaluate-compress", "report"}),
        (
            "distill.learning_rate",
            0.123,
            {"distill", "compress", "evaluate-distill", "evaluate-compress", "stable-rank", "report"},
        ),
        ("collect.samples", 7, {"permute", "collect"} | BELOW_MERGE | DRAWN),
        ("threads", 2, set()),
        ("launch.processes", 2, set()),
    ],
)
def test_a_changed_parameter_runs_its_stage_and_those_below(done, name, value, expected):
    change(done, name, value)
    assert would_run(done) == expected


def test_a_changed_recipe_merges_only_its_method(done):
    recipe = done.path / "mcsmoe/recipes/average.yaml"
    recipe.write_text(recipe.read_text() + "# changed\n")
    text = done.run("dvc", "repro", "--dry").stdout
    done.run("git", "checkout", "-q", ".")
    assert re.findall(r"Running stage '([^']+)'", text) == ["merge@average"]


def test_a_new_recipe_runs_nothing(done):
    new = done.path / "mcsmoe/recipes/mine.yaml"
    new.write_text((done.path / "mcsmoe/recipes/average.yaml").read_text())
    assert would_run(done) == set()
    new.unlink()


def test_speed_is_measured_whenever_it_is_asked_for_and_only_then(done):
    methods = yaml.safe_load((done.path / "params.yaml").read_text())["methods"]
    text = done.run("dvc", "repro", "--dry", "speed/dvc.yaml").stdout
    expected = {"speed-full", *(f"speed-{step}@{m}" for step in ("merge", "dense", "compress") for m in methods[step])}
    assert set(re.findall(r"Running stage '(?:speed/dvc.yaml:)?([^']+)'", text)) == expected
    assert would_run(done) == set()


def test_speed_is_shown_once_it_was_measured(done):
    before = done.run("dvc", "metrics", "show")
    assert "speed" not in before.stdout + before.stderr
    assert not done.run("dvc", "metrics", "diff").stderr
    figures = done.path / "metrics/speed/full.json"
    figures.write_text('{"prefill_batch_1_seconds": 0.125}')
    assert "0.125" in done.run("dvc", "metrics", "show").stdout
    assert done.run("git", "status", "--porcelain").stdout == ""
    figures.unlink()
