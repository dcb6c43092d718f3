"""What README promises of dvc, done by its commands on a tiny run in a copy of the checkout."""

import csv
import io
import json

import pytest
import yaml

from tests.pipeline.conftest import copy_checkout

pytestmark = pytest.mark.slow

SMALL = {
    "methods": {"merge": ["m-smoe"], "distill": ["m-smoe"], "compress": ["m-smoe"]},
    "model.config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_experts": 4},
    "task": {"train_limit": 300, "test_limit": 20, "selection": 20},
    "finetune": {"epochs": 1.0, "warmup_steps": 2, "evaluations": 1},
    "collect": {"samples": 32},
    "merge": {"groups": 3},
    "distill": {"epochs": 0.5, "warmup_steps": 1},
    "compress": {"epochs": 1.0, "warmup_steps": 1, "rank": 4, "interval": 1},
}


def small_params(text: str) -> dict:
    """The values of a params file with everything cut down to seconds."""
    values = yaml.safe_load(text)
    for path, changes in SMALL.items():
        section = values
        for part in path.split("."):
            section = section[part]
        section.update(changes)
    return values


def write(path, values: dict) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def test_a_users_day(tmp_path):
    clone = copy_checkout(tmp_path)
    values = small_params((clone.path / "params.yaml").read_text())
    write(clone.path / "params.yaml", values)
    clone.commit("small params")

    # The whole pipeline; what it writes outside artifacts/ is for git, and nothing else is left lying about.
    clone.run("dvc", "repro")
    clone.commit("results")
    tracked = clone.run("git", "ls-files").stdout.splitlines()
    assert {
        "dvc.lock",
        "metrics/evaluate/full.json",
        "metrics/evaluate/compress-m-smoe.json",
        "plots/compress/m-smoe.json",
        "plots/use/m-smoe.json",
        "report/index.html",
        "report/table.md",
        "report/quality-size.svg",
        "report/expert-use.svg",
        "report/groups/m-smoe.svg",
    } <= set(tracked)
    assert not [name for name in tracked if name.startswith(("artifacts/", ".scratch/"))]
    full = json.loads((clone.path / "metrics/evaluate/full.json").read_text())
    merged = json.loads((clone.path / "metrics/evaluate/merge-m-smoe.json").read_text())
    assert merged["bytes"] < full["bytes"]
    assert merged["experts"] == 3 * full["experts"] // 4

    # A second time there is nothing to do.
    assert "up to date" in clone.run("dvc", "repro").stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""

    # Another budget, compared with what was committed.
    clone.run("dvc", "exp", "run", "-n", "two-groups", "-S", "merge.groups=2")
    assert "merge-m-smoe" in clone.run("dvc", "metrics", "diff").stdout
    changed = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    assert changed["metrics/evaluate/merge-m-smoe.json"]["experts"]["new"] == full["experts"] // 2
    assert "metrics/evaluate/full.json" not in changed
    assert experiments(clone)["two-groups"]["merge.groups"] == "2"

    # Pictures that need no network.
    assert "WARNING" not in clone.run("dvc", "plots", "show").stderr
    page = (clone.path / "dvc_plots/index.html").read_text()
    for name in ("quality-size.svg", "expert-use.svg"):
        assert name in page
        assert list((clone.path / "dvc_plots").rglob(f"*{name}"))

    # Two presets in the queue.
    clone.run("git", "checkout", "-q", ".")
    for rank in (2, 8):
        preset = clone.path / f"presets/rank-{rank}.yaml"
        write(preset, values | {"compress": values["compress"] | {"rank": rank}})
        (clone.path / "params.yaml").write_text(preset.read_text())
        clone.run("dvc", "exp", "run", "--queue", "-n", f"rank-{rank}")
    clone.run("dvc", "exp", "run", "--run-all")
    shown = experiments(clone)
    assert [shown[f"rank-{rank}"]["compress.rank"] for rank in (2, 8)] == ["2", "8"]
    sizes = [int(float(shown[f"rank-{r}"]["metrics/evaluate/compress-m-smoe.json:bytes"])) for r in (2, 8)]
    assert sizes[0] < sizes[1] < full["bytes"]


def experiments(clone) -> dict[str, dict[str, str]]:
    """What `dvc exp show` shows, by the experiments' names."""
    rows = csv.DictReader(io.StringIO(clone.run("dvc", "exp", "show", "--csv").stdout))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}
