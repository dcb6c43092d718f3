"""What a late stage would refuse is refused before the first training, in one line and with exit code 2."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mcsmoe.errors import CheckpointError, ParameterError, UserError
from mcsmoe.params import Params, TokenizerSection
from mcsmoe.tasks.task import TASKS
from mcsmoe.tasks.tokenizer import train_tokenizer
from stages import check
from stages.common import explained
from tests.models import tiny_switch
from tests.stages.workplace import write_params

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"methods": {"merge": ["two"], "distill": [], "compress": []}}, "unknown method 'two'; known: average,"),
        ({"methods": {"distill": ["zipit"]}}, "methods.distill has"),
        ({"merge": {"groups": 9}}, "merge.groups = 9.0 in params.yaml: 36 groups asked"),
        ({"merge": {"groups": 0.5}}, "merge.groups = 0.5 in params.yaml: must be at least 1"),
        ({"merge": {"grups": 2}}, "merge.grups = 2 in params.yaml: unknown key; known: groups,"),
        ({"merge": {"exclude": {"encoder": [0], "decoder": []}}}, "merge.exclude.encoder = 0"),
        ({"compress": {"rank": 60}}, "compress.rank = 60 in params.yaml"),
        ({"compress": {"rank": None, "rank_ratio": 0.95}}, "compress.rank_ratio = 0.95 in params.yaml"),
        ({"compress": {"rank": 0, "structure": "element", "final_ratio": 0.5}}, "compress.final_ratio = 0.5 in"),
        ({"compress": {"rank": 8, "rank_ratio": 0.1}}, "compress.rank or compress.rank_ratio"),
        ({"compress": {"rank": 0, "structure": "none"}}, "nothing of a weight"),
        ({"compress": {"uncertainty": 1.0}}, "compress.uncertainty = 1.0"),
        ({"compress": {"structure": "diagonal"}}, "compress.structure = 'diagonal'"),
        ({"methods": {"merge": ["dense"]}}, "methods.merge has 'dense', which is no recipe"),
        ({"compress": {"initial_warmup": 0.8, "final_warmup": 0.4}}, "compress."),
        ({"task": {"name": "sts2"}}, "unknown task 'sts2'; known: boolq, cola, copa, denoise,"),
        ({"task": {"name": "sst2", "data": "./nowhere"}}, "task.data = './nowhere' in params.yaml: there is no"),
        ({"task": {"train_limit": 9, "selection": 9}}, "task.selection = 9 in params.yaml: must be below the number"),
        ({"model": {"source": "./nowhere"}}, "nowhere: no such directory"),
        (
            {"memory_limit": "16 gigs"},
            "memory_limit = '16 gigs' in params.yaml: a size such as 16GB, 512MiB or a number",
        ),
        ({"memory_limit": 0}, "memory_limit = 0 in params.yaml: must be at least 1"),
        ({"memory_limit": "1MB"}, "memory_limit = 1000000 in params.yaml: finetune needs 56,9"),
        (
            {"memory_limit": "100MB", "calibration": {"batch_size": 4096}},
            "memory_limit = 100000000 in params.yaml: collect",
        ),
        ({"launch": {"fsdp": True}}, "launch.fsdp = true shares a model out among processes: set launch.processes"),
        ({"recipes": {"m-smoe": {"rule": "avarage"}}}, "'avarage'; known: average, "),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, sections, message):
    monkeypatch.chdir(tmp_path)
    write_params(**sections)
    with pytest.raises(UserError) as error:
        check.main()
    assert message in explained(error.value)
    assert "\n" not in explained(error.value)


LONG = " ".join(f"word{i}" for i in range(30))
TEXTS = [LONG, "", "short", LONG, "too short"]


@pytest.mark.parametrize(
    ("split", "texts", "settings", "message"),
    [
        ("train", [*TEXTS, None], {}, "data/train.jsonl, line 6: column text holds null, not text"),
        ("validation", [*TEXTS, 5], {}, "data/validation.jsonl, line 6: column text holds 5, not text"),
        ("validation", [], {}, "data, split 'validation': there are no rows"),
        ("train", ["short"] * 20, {}, "data: none of 20 passages has 9 tokens"),
        ("validation", ["short"] * 20, {}, "data: none of 20 passages has 9 tokens"),
        ("train", TEXTS, {"max_source_length": 9}, "task.max_source_length = 9 in params.yaml: must be above 9"),
        ("train", TEXTS, {"max_target_length": 4}, "task.max_target_length = 4 in params.yaml: must be at least"),
        ("train", TEXTS, {}, None),
    ],
)
def test_every_row_and_block_is_looked_at(tmp_path, monkeypatch, split, texts, settings, message):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("train", "validation"):
        rows = [{"text": text} for text in (texts if name == split else TEXTS * 4)]
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "denoise", "data": "data", "max_source_length": 32, "max_target_length": 16, "selection": 2}
    write_params(task=task | settings)
    if message is None:
        check.main()
        return
    with pytest.raises(UserError) as error:
        check.main()
    assert message in explained(error.value)


def test_a_mistake_exits_with_2_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(compress={"rank": 60})
    done = subprocess.run(
        [sys.executable, "-m", "stages.check"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: compress.rank = 60")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in Path("artifacts").iterdir()] == ["recipes"]  # of write_params


def test_the_embedded_default_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params()
    check.main()


def test_recipes_without_a_stock_form_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    methods = ["m-smoe", "m-smoe-uniform", "none", "one", "pruning-excluded", "task-specific"]
    write_params(methods={"merge": methods, "distill": [], "compress": []})
    check.main()
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["m-smoe", "pruning-excluded", "task-specific"]
    assert lines["m-smoe"] == (
        "no stock checkpoint can be exported: merge.budget = global lets layers keep different numbers of experts; "
        "a stock config has one number for all layers: merge with merge.budget = uniform, as the recipe m-smoe-uniform "
        "does"
    )
    assert "drops experts during distillation" in lines["task-specific"]


@pytest.mark.parametrize("structure", ["row", "column", "element", "none"])
def test_every_structure_and_a_rank_by_ratio_pass(tmp_path, monkeypatch, structure):
    monkeypatch.chdir(tmp_path)
    write_params(compress={"structure": structure, "rank": None, "rank_ratio": 0.3}, methods={"dense": ["dense"]})
    check.main()


@pytest.mark.parametrize(
    ("dense_source", "message"),
    [
        (None, r"^model\.dense_source = None.*needs a dense checkpoint"),
        ("./gone", "gone: no such directory"),
        ("full", r"^model\.dense_source = 'full'.*it has experts"),
    ],
)
def test_dense_needs_a_checkpoint_beside_a_source(tmp_path, monkeypatch, dense_source, message):
    monkeypatch.chdir(tmp_path)
    tiny_switch().save_pretrained("full")
    train_tokenizer(["some words"], TokenizerSection(kind="word", vocab_size=10)).save_pretrained("full")
    write_params(model={"source": "full", "dense_source": dense_source}, methods={"dense": ["dense"]})
    with pytest.raises(UserError) as error:
        check.main()
    assert re.search(message, explained(error.value))


@pytest.mark.parametrize("value", [1e30, float("nan")])
def test_weights_that_no_training_recovers_from_are_named(tmp_path, value):
    model = tiny_switch()
    with torch.no_grad():
        model.shared.weight[3, 3] = value
    model.save_pretrained(tmp_path)
    section = Params.load(ROOT / "params.yaml").model.model_copy(update={"source": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"shared\.weight holds"):
        check.check_values(section)


@pytest.mark.parametrize(("task", "most", "fits"), [("lm", 16, True), ("lm", 15, False), ("sst2", 16, False)])
def test_rows_are_no_longer_than_the_model_takes(task, most, fits):
    """Blocks of running text are cut to the length of the source; other rows have an answer, too."""
    section = Params.load(ROOT / "presets/tiny.yaml").task.model_copy(
        update={"max_source_length": 16, "max_target_length": 4}
    )
    with nullcontext() if fits else pytest.raises(ParameterError, match=f"the model takes at most {most} tokens"):
        check.check_length(section, TASKS[task], most)
