"""What `shrink` says before work, and what it refuses."""

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from mcsmoe.checkpoint.pickled import PICKLED_INDEX
from mcsmoe.checkpoint.reader import INDEX, Checkpoint
from mcsmoe.errors import CheckpointError, ConflictError, DiskFullError, MemoryLimitError, ParameterError, UserError
from mcsmoe.shrinking import job as module
from mcsmoe.shrinking.job import Job, Request, plan_job
from mcsmoe.shrinking.machine import PROCESS, available_memory
from mcsmoe.shrinking.pace import shown_time
from mcsmoe.shrinking.rows import RowSampling
from mcsmoe.sizing import working_memory
from tests.causal import tiny_mixtral

OUT = Path("out")


def planned(source: str = "mixtral", **changes: Any) -> Job:
    asked: dict[str, Any] = {"experts": 3, "text": "text", "samples": 8} | changes
    return plan_job(Request(source, OUT, **asked))


@pytest.mark.usefixtures("place")
def test_it_tells_what_will_be_done():
    lines = dict(planned().lines())
    assert list(lines) == ["model", "keeps", "method", "result", "measures", "disk", "memory", "time"]
    assert lines["keeps"] == "3 of 4 experts in each of 2 layers (top-2), and everything else as it is"
    assert lines["method"].startswith("recipe pruning-soft-count, on 8 rows of 24 tokens of text; nothing is trained")
    assert "whole in memory" in lines["memory"]
    lines = dict(planned(form="mapped").lines())
    assert lines["keeps"].startswith("3 of 4 experts a layer on average")
    assert "trust_remote_code" in lines["result"]


@pytest.mark.usefixtures("place")
def test_a_size_becomes_a_number_of_experts():
    whole = planned().sizes.total
    for size in ("70%", 0.7, whole * 7 // 10):
        job = planned(experts=None, size=size)
        assert job.result <= 0.7 * whole < job.sizes.kept(job.kept + 1, "stock")


@pytest.mark.usefixtures("place")
def test_a_model_that_does_not_fit_is_read_block_by_block():
    whole = planned()
    needs = working_memory(whole.config, whole.sampling, 3, "stock")
    small = working_memory(whole.config, RowSampling(whole.rows.calibration, 1, 0), 3, "stock")
    assert small.streamed < needs.whole
    job = planned(memory_limit=PROCESS + needs.whole - 1)
    assert job.memory <= needs.whole - 1
    with pytest.raises(MemoryLimitError, match=r"memory_limit = .* shrink needs .*; raise it, or take fewer `samples`"):
        planned(memory_limit=PROCESS)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"source": "nowhere/at all"}, CheckpointError, "nowhere/at all: no such directory"),
        ({"experts": None}, ConflictError, "either the number of experts to keep or the size"),
        ({"size": "50%"}, ConflictError, "either the number of experts to keep or the size"),
        ({"experts": 4}, ParameterError, "experts = 4: from 1 to 3: the smallest layer has 4"),
        ({"experts": 0}, ParameterError, "experts = 0: from 1 to 3"),
        ({"experts": 1}, ParameterError, "experts = 1: .*its router selects 2: merge to at least as many groups"),
        ({"source": "deepseek"}, ParameterError, r"experts = 3: .*chooses among 2 groups \(n_group\).* format mapped"),
        (
            {"experts": None, "size": "1%"},
            ParameterError,
            "size = '1%': 2 experts a layer, the fewest of a stock",
        ),
        ({"experts": None, "size": "half"}, ParameterError, "size = 'half': a share of the model such as 50%"),
        ({"recipe": "m-smo"}, UserError, "unknown method 'm-smo'; known: "),
        ({"recipe": "task-specific"}, ParameterError, "recipe = 'task-specific': drops experts during training"),
        ({"recipe": "one"}, ParameterError, "recipe = 'one': always keeps 1 experts"),
        ({"recipe": "pruning-excluded"}, ParameterError, "routers of this model family cannot exclude experts"),
        ({"samples": 0}, ParameterError, "samples = 0: must be at least 1"),
        ({"text": "nowhere at all"}, UserError, "text nowhere at all: there is no such directory or file"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_cannot_work_is_refused_before_any_work(changes: Any, kind: type[UserError], message: str):
    with pytest.raises(kind) as error:
        planned(**changes)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)
    assert not OUT.exists()
    assert not list(Path().glob(".out*"))


def test_a_dense_or_merged_model_is_refused(place: Path):
    tiny_mixtral(num_hidden_layers=0).save_pretrained("dense")
    with pytest.raises(CheckpointError, match="dense: a dense model, without experts"):
        planned("dense")
    config = json.loads((place / "mixtral/config.json").read_text())
    Path("merged").mkdir()
    layers = {f"decoder.{i}": {"experts": 2, "path": f"model.layers.{i}.mlp", "router": "gate"} for i in range(2)}
    values = config | {"model_type": "mcsmoe_mixtral", "moe_layers": layers}
    Path("merged/config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="merged: merged already; give the model that it was made of"):
        planned("merged")


def test_companions_that_a_result_cannot_have_are_refused(place: Path):
    (place / "mixtral/tokenizer.model").symlink_to(place / "text")
    (place / "mixtral/merges.txt").symlink_to(next((place / "text").iterdir()))
    with pytest.raises(CheckpointError, match=r"mixtral/merges\.txt: a link to .*, outside the checkpoint"):
        planned()
    (place / "mixtral/merges.txt").unlink()
    (place / "mixtral/adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"mixtral: adapter_config\.json: weights of an adapter are beside those of"
    ):
        planned()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_plan_for_a_hub_id_needs_its_small_files_only(ending: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    cache = place / "snapshots/0f1e"
    index = {"safetensors": INDEX, "bin": PICKLED_INDEX}[ending]

    def download(hub_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        assert hub_id == "owner/mixtral"
        assert not any(fnmatch(f"model-00001-of-00002.{ending}", pattern) for pattern in allow_patterns)
        shutil.copytree(place / "mixtral", cache, dirs_exist_ok=True)
        names = Checkpoint(cache).names()
        (cache / "model.safetensors").unlink()
        (cache / index).write_text(json.dumps({"weight_map": dict.fromkeys(names, f"model-00001-of-00002.{ending}")}))
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert planned("owner/mixtral").kept == 3


@pytest.mark.usefixtures("place")
def test_too_little_disk_is_noticed_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "free_disk", lambda path: 1000)
    with pytest.raises(DiskFullError, match=r"out: [\d,]+ bytes of disk needed, 1,000 free"):
        planned()


def test_times_and_memory_for_people():
    assert [shown_time(seconds) for seconds in (0, 40, 100, 3000, 12000)] == [
        "1 s",
        "40 s",
        "2 min",
        "50 min",
        "3 h 20 min",
    ]
    assert available_memory("cpu") > PROCESS
