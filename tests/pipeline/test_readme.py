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
from tests.pipeline.readme import commands, python_with
from tests.tasks.table import short

SMALL = {
    "methods": {"merge": ["m-smoe"], "distill": ["m-smoe"], "compress": ["m-smoe"]},
    "model.config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_experts": 4},
    "task": {"train_limit": 300, "selection": 20},
    "evaluate": {"limit": 20},
    "finetune": {"epochs": 1.0, "warmup_steps": 2, "evaluations": 1},
    "calibration": {"samples": 32},
    "merge": {"groups": 3, "budget": "uniform"},
    "distill": {"epochs": 0.5, "warmup_steps": 1},
    "compress": {"epochs": 1.0, "warmup_steps": 1, "rank": 4, "interval": 1},
}

SEEDS = "python -m benchmarks.seeds --help"
INSTEAD = {
    "make test": "make -n test",  # runs this test
    "make bench": "make -n bench",  # ten minutes
    "make compare": "make -n compare",  # two hours
    "make test-older": "make -n test-older",  # installs another transformers from the network
    "python -m stages.NAME": "python -m stages.report --help",  # dvc runs each of them
    "python -m benchmarks.NAME": "python -m benchmarks.bench --help",  # minutes each
    "python -m benchmarks.files": "python -m benchmarks.files --help",  # writes gigabytes
    "python -m benchmarks.gpu": "python -m benchmarks.gpu --help",  # needs a GPU
    "python -m benchmarks.seeds books-small --seeds 0,1,2 --jobs 3": SEEDS,  # hours
    "python -m benchmarks.seeds sst2-small --seeds 0,1,2 --jobs 3": SEEDS,
    "python -m benchmarks.seeds mixtral-tiny --seeds 0,1,2 --jobs 3": SEEDS,
    "python -m benchmarks.speed": "python -m benchmarks.speed --help",  # writes gigabytes
    # Need the hub; tests/test_cli.py has models of its own.
    "mcsmoe inspect Qwen/Qwen3-30B-A3B": "mcsmoe inspect --help",
    "mcsmoe shrink Qwen/Qwen3-30B-A3B --size 22GB --memory-limit 24GB --output qwen3-small": "mcsmoe shrink --help",
    "mcsmoe shrink Qwen/Qwen3-30B-A3B --size 22GB --text my-texts --memory-limit 24GB --output qwen3-small": (
        "mcsmoe shrink --help"
    ),
    "mcsmoe show PLAN": "mcsmoe show --help",
    "mcsmoe show qwen3-small": "mcsmoe show --help",
    "mcsmoe diff PLAN PLAN": "mcsmoe diff --help",
    "mcsmoe diff OLD NEW": "mcsmoe diff --help",
    "make speed": "make -n speed",  # minutes; test_speed.py measures
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
    assert python_with("class Dbrx") == (ROOT / "mcsmoe/families/dbrx.py").read_text()
    assert "def median" in python_with("@RULES.register")  # test_plugins.py merges by it
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

    do("make install")
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
    loading = python_with("trust_remote_code=True")
    clone.run("python", "-I", "-c", f"import sys; sys.modules['mcsmoe'] = None\n{loading}")
    clone.run("python", "-c", f"import mcsmoe.modeling\n{loading.replace(', trust_remote_code=True', '')}")
    figures = json.loads(
        do("python -m stages.evaluate --checkpoint artifacts/compress/m-smoe --task skills --limit 100")
    )
    assert figures["bytes"] == metric(clone, "bytes")["compress"]["m-smoe"]
    # With this budget it is the same model.
    shutil.copytree(clone.path / "artifacts/merge/m-smoe", clone.path / "artifacts/merge/m-smoe-uniform")
    do("python -m stages.export --checkpoint artifacts/merge/m-smoe-uniform --output stock")
    assert json.loads((clone.path / "stock/config.json").read_text())["num_experts"] == 3
    check_task(clone, values)

    # Another budget, compared with what was committed.
    assert "merge.m-smoe" in clone.run("dvc", "metrics", "show").stdout
    do("dvc exp run -n two-groups -S merge.groups=2")
    assert "merge.m-smoe" in do("dvc metrics diff | grep -E 'Path|(bytes|quality).*m-smoe'")
    changed = json.loads(clone.run("dvc", "metrics", "diff", "--json").stdout)
    full = metric(clone, "experts")["full"]
    assert changed["metrics/experts.json"]["merge.m-smoe"]["new"] == full // 2
    assert not [name for values in changed.values() for name in values if name == "full"]
    assert experiments(clone)["two-groups"]["merge.groups"] == "2"
    shown = do("dvc exp show --md --only-changed --drop '.*(Created|bytes|experts|flops|parameters|artifacts).*'")
    assert "two-groups" in shown
    assert "merge.groups" in shown

    # An experiment without a method that is committed here: all of git's files stay, and nothing is left to run.
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q")
    clone.run("dvc", "exp", "run", "-n", "fewer", "-S", "methods.compress=[]")
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q")
    clone.run("dvc", "exp", "apply", "fewer")
    assert json.loads(clone.run("dvc", "status", "--json").stdout) == {}
    assert clone.run("git", "diff", "--name-only", "--diff-filter=D").stdout == ""
    assert "compress" not in clone.run("dvc", "metrics", "show").stdout
    clone.run("git", "checkout", "-q", ".")
    clone.run("dvc", "checkout", "-q")

    # Pictures that need no network.
    do("dvc plots show")
    check_plots(clone)

    # Two presets in the queue.
    for name, rank in (("sst2", 2), ("books", 4)):  # the second has been run already
        write(clone.path / f"presets/{name}-small.yaml", values | {"compress": values["compress"] | {"rank": rank}})
    do("cp presets/sst2-small.yaml params.yaml && dvc exp run --queue -n sst2")
    do("cp presets/books-small.yaml params.yaml && dvc exp run --queue -n books")
    do("git checkout params.yaml && dvc exp run --run-all")
    found = experiments(clone)
    assert [found[name]["compress.rank"] for name in ("sst2", "books")] == ["2", "4"]
    sizes = [int(float(found[name]["metrics/bytes.json:compress.m-smoe"])) for name in ("sst2", "books")]
    assert sizes[0] < sizes[1] < metric(clone, "bytes")["full"]

    # One file instead of two copies.
    do("dvc config --local cache.type hardlink,symlink")
    clone.run("dvc", "checkout", "--relink")
    assert (clone.path / "artifacts/merge/m-smoe/model.safetensors").stat().st_nlink > 1

    # Presets that need the hub go no further here.
    do("cp presets/paper-table2.yaml params.yaml")
    do("cp presets/switch-base-32-copa.yaml params.yaml")
    assert "merge@average" in clone.run("dvc", "stage", "list", "--name-only").stdout.splitlines()
    assert do("python -m tests.tasks.table").split("\n\n")[1].strip() in (ROOT / "docs/tasks.md").read_text()
    assert do("python -m tests.methods.table").strip() in (ROOT / "docs/methods.md").read_text()
    assert done == commands() - INSTEAD.keys()


def metric(clone: Clone, name: str) -> dict:
    """One of the files that `dvc metrics` shows."""
    values: dict = json.loads((clone.path / f"metrics/{name}.json").read_text())
    return values


def check_results(clone: Clone) -> None:
    tracked = clone.run("git", "ls-files").stdout.splitlines()
    assert {
        "dvc.lock",
        "metrics/quality.json",
        "metrics/bytes.json",
        "plots/compress.json",
        "plots/use.json",
        "report/results.json",
        "report/index.html",
        "report/table.md",
        "report/quality-size.svg",
        "report/expert-use.svg",
    } <= set(tracked)
    assert not [name for name in tracked if name.startswith(("artifacts/", ".scratch/"))]
    size, experts = metric(clone, "bytes"), metric(clone, "experts")
    assert size["compress"]["m-smoe"] < size["merge"]["m-smoe"] < size["full"]
    assert experts["merge"]["m-smoe"] == 3 * experts["full"] // 4


def check_task(clone: Clone, values: dict) -> None:
    """README's task, on two examples."""
    (clone.path / "recipes/my_task.py").write_text(python_with('TASKS.register("intent")'))
    rows = [{"text": "where is my parcel", "label": 2}, {"text": "two tickets please", "label": 0}]
    (clone.path / "intents").mkdir()
    for split in ("train", "validation"):
        (clone.path / f"intents/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = values["task"] | {"name": "intent", "data": "intents"}
    write(clone.path / "params.yaml", values | {"task": task, "plugins": ["recipes.my_task"]})
    clone.run(*["python", "-m", "stages.evaluate", "--checkpoint", "artifacts/merge/m-smoe", "--output", "intent.json"])
    figures = json.loads((clone.path / "intent.json").read_text())
    assert (figures["accuracy"], figures["invalid"]) == (0.0, 1.0)  # a model of lists has none of the answers
    write(clone.path / "params.yaml", values)


def check_plots(clone: Clone) -> None:
    page = (clone.path / "dvc_plots/index.html").read_text()
    for name in ("quality-size.svg", "expert-use.svg"):
        assert name in page
        assert list((clone.path / "dvc_plots").rglob(f"*{name}"))
    for title in ("Loss of fine-tuning", "Loss of distillation", "Share of S that stays"):
        assert title in page


def experiments(clone: Clone) -> dict[str, dict[str, str]]:
    """What `dvc exp show` shows, by the experiments' names."""
    rows = csv.DictReader(io.StringIO(clone.run("dvc", "exp", "show", "--csv").stdout))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}
