"""The presets that load from the hub, on local directories of the same layout and names."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from mcsmoe.checkpoint.load import load_model
from mcsmoe.errors import UserError
from mcsmoe.params import Params, TokenizerSection
from mcsmoe.tasks.task import TASKS
from mcsmoe.tasks.tokenizer import train_tokenizer
from stages import check, finetune
from stages.launch import LAUNCHED
from tests.models import tiny_switch

ROOT = Path(__file__).parent.parent.parent
SHORT = {"epochs": 0.2, "evaluations": 1, "warmup_steps": 0}
ROWS = {
    "sst2": {"sentence": "a fine film", "label": 1, "idx": 0},
    "copa": {
        "premise": "It rained.",
        "choice1": "The street is wet.",
        "choice2": "The sun shone.",
        "question": "effect",
        "label": 0,
        "idx": 0,
    },
}


@pytest.fixture(params=["sst2", "copa"])
def place(request, tmp_path, monkeypatch) -> Path:
    """The preset's params with `google/switch-base-32` and its data replaced by small directories."""
    task = request.param
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / f"presets/switch-base-32-{task}.yaml").read_text())
    values["model"] |= {"source": "./switch-base-32", "hub": None}
    values["task"] |= {"data": "./data", "hub": None}
    values["threads"] = 1
    values["task"]["selection"] = 5
    values["task"]["train_limit"] = 40
    values["finetune"] |= SHORT
    values["merge"]["groups"] = 2
    values["compress"] |= {"rank": 4}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("data").mkdir()
    for split in ("train", "validation"):
        Path(f"data/{split}.jsonl").write_text("\n".join([json.dumps(ROWS[task])] * 40))
    return tmp_path


def save_old(directory: Path, pickled: bool) -> torch.nn.Module:
    """A Switch as the hub holds it: `pytorch_model.bin` or safetensors, per-expert names, a tokenizer."""
    tokenizer = train_tokenizer(["a fine film positive It rained."], TokenizerSection(kind="bpe", vocab_size=300))
    model = tiny_switch(vocab_size=len(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if pickled:
        (directory / "model.safetensors").unlink()
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_downloaded_checkpoint_is_fine_tuned(place, pickled, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")  # no second check, in a process of its own
    before = save_old(place / "switch-base-32", pickled)
    check.main()
    finetune.main(Path("artifacts/finetune"))
    after = load_model(Path("artifacts/finetune"))
    assert after.config.model_type == "switch_transformers"
    assert after.state_dict().keys() == before.state_dict().keys()
    moved = (after.get_parameter("shared.weight") - before.get_parameter("shared.weight")).abs().max()
    assert 0 < moved < 0.1  # it started from the checkpoint, not from random weights
    assert not list(Path("artifacts/finetune").glob("*.bin"))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("bert", "'bert' is not supported; supported: .*mixtral, .*switch_transformers"),
        ("t5", "t5 has no experts to merge"),
    ],
)
def test_another_architecture_is_refused(place, model_type, message):
    (place / "switch-base-32").mkdir()
    (place / "switch-base-32/config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=message):
        check.main()


PAPER = {
    "sst2": (64, 1e-4),
    "mrpc": (32, 5e-5),
    "multirc": (32, 3e-5),
    "copa": (8, 3e-5),
    "winogrande": (32, 1e-5),
    "squad": (16, 5e-5),
    "wikiqa": (32, 5e-5),
    "hotpotqa": (32, 1e-4),
}


@pytest.mark.parametrize("task", PAPER)
def test_the_presets_have_the_papers_hyper_parameters(task):
    params = Params.load(ROOT / f"presets/switch-base-32-{task}.yaml")
    batch, rate = PAPER[task]
    source = TASKS[task].source
    assert source is not None
    assert params.task.name == task
    assert (params.task.hub, params.task.subset, params.task.revision) == (source.hub, source.subset, source.revision)
    assert (params.task.max_source_length, params.task.max_target_length) == TASKS[task].lengths
    for training in (params.finetune, params.distill, params.compress):
        assert (training.batch_size, training.learning_rate) == (batch, rate)
    assert (params.finetune.epochs, params.distill.epochs, params.compress.epochs) == (20, 10, 50)
    assert (params.merge.groups, params.merge.exclude.encoder) == (8, [1])
    assert (params.compress.rank, params.compress.final_ratio, params.calibration.samples) == (32, 0.1, 256)
    assert params.model.hub == "google/switch-base-32"


def test_the_papers_table_is_queued_as_its_file_says():
    """The commands in the head of paper-table2.yaml make the file below them of the SST-2 preset."""
    text = (ROOT / "presets/paper-table2.yaml").read_text()
    (tasks,) = re.findall(r"for task in (.+); do", text)
    assert tasks.split() == list(PAPER)
    for task in PAPER:
        values = yaml.safe_load((ROOT / f"presets/switch-base-32-{task}.yaml").read_text())
        for name, value in re.findall(r"-S '?([\w.]+)=([^\s']+)'?", text):
            section, key = name.split(".")
            values[section][key] = yaml.safe_load(value)
        Params.parse(values)
        assert (values == yaml.safe_load(text)) == (task == "sst2")
