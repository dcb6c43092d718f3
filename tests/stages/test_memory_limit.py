"""Stages on a model that is larger than `memory_limit`: the same bytes, or a refusal before any work."""

import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mcsmoe.calibration import collect as routing
from mcsmoe.calibration.memory import check_training, forward_needs
from mcsmoe.calibration.sample import Sampling
from mcsmoe.checkpoint import fresh
from mcsmoe.checkpoint.load import load_config
from mcsmoe.checkpoint.streamed import Blocks, Footprint
from mcsmoe.errors import MemoryLimitError
from mcsmoe.params import Params
from stages import check, collect, distill, evaluate, export, merge, permute
from stages.common import explained
from tests.causal import tiny_mixtral
from tests.stages.test_interrupted import contents, interrupt
from tests.stages.workplace import FINETUNED, enter, write_params

METHOD = "m-smoe-uniform"
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6}
SETTINGS: dict[str, Any] = {
    "calibration": {"samples": 6, "batch_size": 2},
    "permute": {"matching": "activation"},
    "methods": {"merge": [METHOD], "distill": [], "compress": []},
}


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Work on a Mixtral of six layers; the limit is what streaming needs, and less than the merged model."""
    enter(tmp_path, monkeypatch)
    tiny_mixtral(**SIZES).save_pretrained(FINETUNED)
    write_params(**SETTINGS)
    params = Params.load()
    kinds: list[dict[str, Any]] = [{"also": []}, {"tokens": True}]
    sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
    needs = [forward_needs(load_config(FINETUNED), sampling, **kind) for kind in kinds]
    streamed = max(need.streamed for need in needs)
    assert streamed < min(need.whole for need in needs)
    return streamed


def make() -> dict[Path, bytes]:
    """What the stages write."""
    permute.main()
    collect.main()
    merge.main(METHOD)
    export.main(checkpoint=Path("artifacts/merge") / METHOD, output=Path("stock"), router="ridge")
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.name != "params.yaml"}


def test_a_limit_changes_no_byte(limit: int, monkeypatch: pytest.MonkeyPatch):
    expected = make()
    loaded: list[str] = []
    tasks: list[fresh.FreshLoad] = []
    load, start = Blocks.load, fresh.start

    def counted(self: Blocks, block: str) -> None:
        loaded.append(block)
        load(self, block)

    def noted(task: fresh.FreshLoad, directory: Path) -> Any:
        tasks.append(task)
        return start(task, directory)

    monkeypatch.setattr(Blocks, "load", counted)
    monkeypatch.setattr(fresh, "start", noted)
    write_params(memory_limit=limit, **SETTINGS)
    found = make()
    # Permute counts tokens and looks at them, collect and export look once each. Each of three written models is
    # compared with its file when it is read to run; permute also runs the one that it was made of.
    assert [loaded.count(block) for block in dict.fromkeys(loaded)] == [4 + 3 + 1] * SIZES["num_hidden_layers"]
    # Each written model is larger than the limit, in the fresh process, too.
    assert [task.trust_remote_code for task in tasks] == [False, True, False]
    outside = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    for task in tasks:
        assert task.places == outside | {f"model.layers.{i}": "disk" for i in range(SIZES["num_hidden_layers"])}
    assert found.keys() == expected.keys()
    assert [path for path in found if found[path] != expected[path]] == []


def test_interrupted_collecting_runs_no_layer_again(
    limit: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(FINETUNED, collect.SOURCE)
    write_params(memory_limit=limit, **SETTINGS)
    with patch.object(routing, "accumulate", wraps=routing.accumulate) as seen:
        collect.main()
    batches = seen.call_count // SIZES["num_hidden_layers"]
    assert batches > 2
    expected = contents(collect.OUTPUT)
    shutil.rmtree(collect.OUTPUT)
    loaded: list[str] = []
    load = Blocks.load

    def counted(self: Blocks, block: str) -> None:
        loaded.append(block)
        load(self, block)

    monkeypatch.setattr(Blocks, "load", counted)
    interrupt(monkeypatch, routing, "accumulate", 3 * batches + 1)  # the second batch, in the fourth layer
    with pytest.raises(KeyboardInterrupt):
        collect.main()
    assert not collect.OUTPUT.exists()
    capsys.readouterr()
    collect.main()
    assert loaded == [f"model.layers.{i}" for i in (0, 1, 2, 3, 3, 4, 5)]
    assert "resuming at decoder.3: 3 of 6 layers were measured before" in capsys.readouterr().out
    assert contents(collect.OUTPUT) == expected
    assert sorted(path.name for path in Path("artifacts").iterdir()) == ["collect", "finetune", "permute", "recipes"]


@pytest.mark.parametrize(
    ("stage", "sections", "message"),
    [
        (
            collect.main,
            {"memory_limit": "1kB"},
            r"^memory_limit = 1000 in params\.yaml: collect needs [\d,]+ bytes; raise",
        ),
        (permute.main, {"memory_limit": "1kB"}, "permute needs"),
        (collect.main, {"collect": {"also": ["gradients"]}}, r"collect needs .* leave gradients out of collect\.also"),
        (distill.main, {}, "distill needs .* training is not streamed"),
    ],
)
def test_what_does_not_fit_is_refused(stage: Any, sections: dict[str, Any], message: str, limit: int):
    for place in ("permute", f"merge/{METHOD}"):
        tiny_mixtral(**SIZES).save_pretrained(Path("artifacts") / place)
    changed = {name: SETTINGS[name] | value if name in SETTINGS else value for name, value in sections.items()}
    write_params(**{"memory_limit": limit} | SETTINGS | changed)
    with pytest.raises(MemoryLimitError) as error:
        stage(*([METHOD] if stage is distill.main else []))
    assert re.search(message, explained(error.value))
    assert not Path("artifacts/collect").exists()


def test_generating_with_a_model_that_does_not_fit_is_refused_before_the_first_stage(limit: int):
    settings = SETTINGS | {"model": {"source": str(FINETUNED)}, "finetune": {"epochs": 0}}
    write_params(memory_limit=limit, **settings)
    with pytest.raises(MemoryLimitError, match=r"evaluate needs .* to generate text, a model must be whole in memory"):
        check.main()
    with pytest.raises(MemoryLimitError, match=r"evaluate needs .* to generate text"):
        evaluate.main(str(FINETUNED))
    write_params(**settings)
    check.main()


def test_a_training_spread_over_processes_needs_less_of_each():
    config = tiny_mixtral(**SIZES).config
    whole = Footprint.of(config).whole
    check_training(5 * whole, "distill", config, config)
    with pytest.raises(MemoryLimitError, match=f"{5 * whole:,}"):
        check_training(5 * whole - 1, "distill", config, config)
    # Four processes: a quarter of the five models each, and the whole one that is read and written.
    check_training(9 * whole // 4, "distill", config, config, shares=4)
    with pytest.raises(MemoryLimitError, match=f"{9 * whole // 4:,}"):
        check_training(9 * whole // 4 - 1, "distill", config, config, shares=4)
    config.dtype = torch.bfloat16  # beside its float32 masters, by which Adam works
    half = Footprint.of(config).whole
    with pytest.raises(MemoryLimitError, match=f"finetune needs {10 * half:,} bytes"):
        check_training(10 * half - 1, "finetune", config, keeps_best=True)
