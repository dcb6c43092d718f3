"""README does what it says: each of its commands is run, most of them on a tiny run in a copy of the checkout."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.conftest import Clone, copy_checkout
from tests.pipeline.imports import ROOT
from tests.pipeline.readme import blocks, commands
from tests.tasks.table import short

SMALL = {
    "methods": {"merge": ["m-smoe"], "distill": ["m-smoe"], "compress": ["m-smoe"]},
    "model.config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_experts": 4},
    "task": {"train_limit": 300, "test_limit": 20, "selection": 20},
    "finetune": {"epochs": 1.0, "warmup_steps": 2, "evaluations": 1},
    "collect": {"samples": 32},
    "merge": {"groups": 3, "budget": "uniform"},
    "distill": {"epochs": 0.5, "warmup_steps": 1},
    "compress": {"epochs": 1.0, "warmup_steps": 1, "rank": 4, "interval": 1},
}

SEEDS = "python -m benchmarks.seeds --help"
INSTEAD = {
    "make test": "make -n test",  # runs this test
    "make compare": "make -n compare",  # two hours
    "make test-older": "make -n test-older",  # installs another transformers from the network
    "python -m stages.NAME": "python -m stages.report --help",  # dvc runs each of them
    "python -m benchmarks.seeds books-small --seeds 0,1,2 --jobs 3": SEEDS,  # hours
    "python -m benchmarks.seeds sst2-small --seeds 0,1,2 --jobs 3": SEEDS,
    "python -m benchmarks.seeds mixtral-tiny --seeds 0,1,2 --jobs 3": SEEDS,
    "python -m benchmarks.surgery": "python -m benchmarks.surgery --help",  # writes gigabytes
    "python -m benchmarks.speed": "python -m benchmarks.speed --help",  # writes gigabytes
    # Minutes: test_invalidation.py asks dvc what it would run, test_speed.py measures.
    "dvc repro speed/dvc.yaml": "python -m stages.speed --help",
    "python -m stages.speed --checkpoint DIR": "python -m stages.speed --help",
    # test_lm_eval.py runs it.
    "lm_eval --model hf --model_args pretrained=artifacts/compress/m-smoe,trust_remote_code=True"
    " --tasks local.yaml --batch_size 8": "lm_eval --help",
    # test_families.py compares what it prints.
    "python -m tests.families.models": "python -c 'import tests.families.models'",
}
"""Commands that cost too much, or nothing here, and what is run in their place."""


def test_every_command_is_run():
    assert set(INSTEAD) <= commands()  # the others are what `test_a_users_day` runs


@pytest.mark.parametrize("command", sorted(set(INSTEAD.values())))
def test_what_is_not_run_is_there(command):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_tables_and_code_are_those_of_the_package():
    loading, median, intent, dbrx = blocks("python")
    assert "trust_remote_code=True" in loading
    assert '@RULES.register("median")' in median  # test_plugins.py merges by it
    assert 'TASKS.register("intent")' in intent
    assert dbrx == (ROOT / "mcsmoe/families/dbrx.py").read_text()
    assert short() in (ROOT / "README.md").read_text()


def small_params(text: str) -> dict:
    """The values of a params file with everything cut down to seconds."""
    values = yaml.safe_load(text)
    for path, changes in SMALL.items():
        section = values
        for part in path.split("."):
            section = section[part]
        section.update(changes)
    return values


def write(path: Path, values: dict) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def installed(clone: Clone) -> None:
    """Give `make` an environment in which all is installed: this one, by another name."""
    if sys.prefix == sys.base_prefix:
        pytest.skip("needs to run in a virtual environment")
    (clone.path / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (clone.path / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (clone.path / ".venv/.installed").touch()


@pytest.mark.slow
def test_a_users_day(tmp_path):
    clone = copy_checkout(tmp_path)
    installed(clone)
    values = small_params((clone.path / "params.yaml").read_text())
    write(clone.path / "params.yaml", values)
    clone.commit("small params")

    done = set()

    def do(command: str) -> str:
        done.add(command)
        return clone.run("sh", "-c", command).stdout

    # The whole pipeline; what it writes outside artifacts/ is for git, and nothing else is left lying about.
    assert do("make repro").endswith((clone.path / "report/table.md").read_text())
    clone.commit("results")
    check_results(clone)
    assert len(do("git log --find-object=$(git hash-object report/index.html)").splitlines()) > 1

    # A second time there is nothing to do.
    assert "up to date" in do("dvc repro")
    assert clone.run("git", "status", "--porcelain").stdout == ""
    do(". .venv/bin/activate")

    # The result is a model like any other.
    loading = blocks("python")[0]
    clone.run("python", "-I", "-c", f"import sys; sys.modules['mcsmoe'] = None\n{loading}")
    clone.run("python", "-c", f"import mcsmoe.modeling\n{loading.replace(', trust_remote_code=True', '')}")
    figures = json.loads(
        do("python -m stages.evaluate --checkpoint artifacts/compress/m-smoe --task skills --limit 100")
    )
    assert figures["bytes"] == json.loads((clone.path / "metrics/evaluate/compress-m-smoe.json").read_text())["bytes"]
    # With this budget it is the same model.
    shutil.copytree(clone.path / "artifacts/merge/m-smoe", clone.path / "artifacts/merge/m-smoe-uniform")
    do("python -m stages.export --checkpoint artifacts/merge/m-smoe-uniform --output stock")
    assert json.loads((clone.path / "stock/config.json").read_text())["num_experts"] == 3
    check_task(clone, values)

    # Another budget, compared with what was committed.
    assert "merge-m-smoe" in do("dvc metrics show")
    do("dvc exp run -n two-groups -S merge.groups=2")
    assert "merge-m-smoe" in do("dvc metrics diff | grep -E 'Path|m-smoe.*(bytes|exact_match )'")
    changed = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    full = json.loads((clone.path / "metrics/evaluate/full.json").read_text())
    assert changed["metrics/evaluate/merge-m-smoe.json"]["experts"]["new"] == full["experts"] // 2
    assert "metrics/evaluate/full.json" not in changed
    assert experiments(clone)["two-groups"]["merge.groups"] == "2"
    shown = do(
        "dvc exp show --md --only-changed"
        " --drop '.*(Created|exact_match_|parameters|flops|experts|bytes|-average|-none|-one|artifacts).*'"
    )
    assert "two-groups" in shown
    assert "merge.groups" in shown

    # Pictures that need no network.
    do("dvc plots show")
    check_plots(clone)

    # Two presets in the queue.
    for name, rank in (("sst2", 2), ("books", 8)):
        write(clone.path / f"presets/{name}-small.yaml", values | {"compress": values["compress"] | {"rank": rank}})
    do("cp presets/sst2-small.yaml params.yaml && dvc exp run --queue -n sst2")
    do("cp presets/books-small.yaml params.yaml && dvc exp run --queue -n books")
    do("git checkout params.yaml && dvc exp run --run-all")
    found = experiments(clone)
    assert [found[name]["compress.rank"] for name in ("sst2", "books")] == ["2", "8"]
    sizes = [int(float(found[name]["metrics/evaluate/compress-m-smoe.json:bytes"])) for name in ("sst2", "books")]
    assert sizes[0] < sizes[1] < full["bytes"]

    # A preset that needs the hub goes no further here.
    do("cp presets/switch-base-32-copa.yaml params.yaml")
    assert "merge@average" in clone.run("dvc", "stage", "list", "--name-only").stdout.splitlines()
    assert do("python -m tests.tasks.table").split("\n\n")[1].strip() in (ROOT / "docs/tasks.md").read_text()
    assert do("python -m tests.recipes.table").strip() in (ROOT / "docs/methods.md").read_text()
    assert done == commands() - INSTEAD.keys()


def check_results(clone: Clone) -> None:
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
    full, merged = (
        json.loads((clone.path / f"metrics/evaluate/{name}.json").read_text()) for name in ("full", "merge-m-smoe")
    )
    assert merged["bytes"] < full["bytes"]
    assert merged["experts"] == 3 * full["experts"] // 4


def check_task(clone: Clone, values: dict) -> None:
    """README's task, on two examples."""
    (clone.path / "my_task.py").write_text(blocks("python")[2])
    rows = [{"text": "where is my parcel", "label": 2}, {"text": "two tickets please", "label": 0}]
    (clone.path / "intents").mkdir()
    for split in ("train", "validation"):
        (clone.path / f"intents/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = values["task"] | {"name": "intent", "data": "intents"}
    write(clone.path / "params.yaml", values | {"task": task, "plugins": ["my_task"]})
    clone.run(*["python", "-m", "stages.evaluate", "--checkpoint", "artifacts/merge/m-smoe", "--output", "intent.json"])
    figures = json.loads((clone.path / "intent.json").read_text())
    assert (figures["accuracy"], figures["invalid"]) == (0.0, 1.0)  # a model of lists has none of the answers
    write(clone.path / "params.yaml", values)


def check_plots(clone: Clone) -> None:
    page = (clone.path / "dvc_plots/index.html").read_text()
    for name in ("quality-size.svg", "expert-use.svg"):
        assert name in page
        assert list((clone.path / "dvc_plots").rglob(f"*{name}"))
    for title in ("Loss of fine-tuning", "Loss of distillation, m-smoe", "Share of S that stays"):
        assert title in page


def experiments(clone: Clone) -> dict[str, dict[str, str]]:
    """What `dvc exp show` shows, by the experiments' names."""
    rows = csv.DictReader(io.StringIO(clone.run("dvc", "exp", "show", "--csv").stdout))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}
