"""`shrink` from end to end on small models: what comes out, that it is true, and that nothing is lost on the way."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers.dynamic_module_utils
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import mcsmoe
from mcsmoe.checkpoint.load import load_model
from mcsmoe.errors import CheckpointError
from mcsmoe.evaluation.measure import rows_likelihood
from mcsmoe.grouping.plan import Plan
from mcsmoe.shrinking import job as jobs
from mcsmoe.shrinking import run as runs
from mcsmoe.shrinking.measure import predictions
from mcsmoe.shrinking.outcome import PAGE, Outcome
from mcsmoe.shrinking.rows import rows_for
from tests.moon import write_moon
from tests.shrinking.place import contents


def shrunk(source: str = "mixtral", output: str = "out", **changes: Any) -> Outcome:
    asked: dict[str, Any] = {"experts": 3, "text": "text", "samples": 8} | changes
    return mcsmoe.shrink(source, output, **asked)


@pytest.mark.usefixtures("place")
def test_a_stock_model_and_what_is_told_of_it(capfd: pytest.CaptureFixture[str]):
    outcome = shrunk()
    assert {"README.md", PAGE, Outcome.FILE, "plan.json", "config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in Path("out").iterdir()
    }
    assert not list(Path().glob(".*"))  # no workspace is left
    model, report = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_local_experts == 3

    # The figures are those that anybody measures on the same rows.
    for name, found in (("mixtral", outcome.source), ("out", outcome.result)):
        opened = mcsmoe.open(name)
        rows = rows_for(opened.config, opened.tokenizer, "text", 8).held_out
        assert rows_likelihood(opened, rows).perplexity == pytest.approx(found.value, rel=1e-5)
        assert found.low <= found.value <= found.high
    assert set(outcome.by_kind) == {"code", "prose"}
    assert outcome.agreement is not None
    assert set(outcome.agreement) == {"decoder.0", "decoder.1"}
    assert list(outcome.by_block) == ["0", "1"]
    for each in outcome.continuations:
        tokenizer = AutoTokenizer.from_pretrained("out")
        ids = tokenizer(each.prompt, return_tensors="pt").input_ids
        for path, text in (("mixtral", each.source), ("out", each.result)):
            plain = load_model(Path(path)).generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=None)
            assert tokenizer.decode(plain[0, ids.shape[1] :]) == text

    card = ModelCard(Path("out/README.md").read_text()).text
    assert "taken as it is: nothing was trained" in card
    assert "fine-tuned" not in card
    assert f"| perplexity | {outcome.source.value:.4f} | {outcome.result.value:.4f} |" in card
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(block, {})
    assert "3 of 4 experts" in Path("out", PAGE).read_text()
    assert Plan.load(Path("out")).experts == {"decoder.0": 3, "decoder.1": 3}
    # One bar for everything, in which each phase is named.
    err = capfd.readouterr().err
    assert "100 % measure result" in err
    assert {"collect", "merge", "export", "measure source", "measure result"} <= set(re.findall(r"% ([a-z ]+),", err))
    assert "bytes" not in err


@pytest.mark.usefixtures("place")
def test_a_mapped_model_of_a_router_with_groups():
    outcome = shrunk("deepseek", format="mapped", experts=2)
    assert outcome.agreement is None
    assert sum(kept for _, kept in outcome.experts.values()) == 2 * len(outcome.experts)
    model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
    assert model.config.model_type == "mcsmoe_deepseek_v3"
    assert "trust_remote_code=True" in Path("out/README.md").read_text()


@pytest.mark.usefixtures("place")
def test_an_encoder_decoder():
    outcome = shrunk("switch", experts=4)
    model = AutoModelForSeq2SeqLM.from_pretrained("out")
    assert model.config.num_experts == 4
    assert {name.split()[0] for name in outcome.by_block} == {"encoder", "decoder"}
    assert len(outcome.continuations) == 3


@pytest.mark.usefixtures("place")
def test_a_memory_limit_changes_no_byte(monkeypatch: pytest.MonkeyPatch):
    job = jobs.plan_job(jobs.Request("mixtral", Path("whole"), experts=3, text="text", samples=8))
    shrunk(output="whole")
    monkeypatch.setattr(jobs, "BATCHES", (job.sampling.batch_size,))  # the batches decide the last bits of sums
    needs = job.needs
    assert needs.streamed < needs.whole
    monkeypatch.setattr(jobs, "working_memory_limit", lambda limit, device: needs.streamed)
    streamed = jobs.plan_job(jobs.Request("mixtral", Path("out"), experts=3, text="text", samples=8))
    assert streamed.streamed
    shrunk()
    whole, out = contents(Path("whole")), contents(Path("out"))
    whole["README.md"] = whole["README.md"].replace(b"whole", b"out")
    assert whole == out


@pytest.mark.usefixtures("place")
def test_interrupted_anywhere_it_goes_on_and_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    shrunk(output="whole")
    done: list[str] = []
    for name in ("collect_model", "merge_model", "export_model", "predictions"):
        original = getattr(runs, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            done.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(runs, name, counted)
    for name in ("collect_model", "merge_model", "export_model", "predictions", "close"):
        with monkeypatch.context() as patch:
            patch.setattr(runs, name, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                shrunk()
        assert not Path("out").exists()
    # What was finished is not done again.
    assert done == ["collect_model", "merge_model", "export_model", "predictions", "predictions"]
    # Nor is a hand needed where a file is damaged.
    with next(Path(".out.shrink").glob("merged/*.safetensors")).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    done.clear()
    shrunk()
    assert done[0] == "merge_model"
    whole = contents(Path("whole"))
    whole["README.md"] = whole["README.md"].replace(b"whole", b"out")
    assert contents(Path("out")) == whole
    assert not list(Path().glob(".*"))


def _interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("place")
def test_another_number_of_experts_goes_on_with_the_statistics(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "predictions", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            shrunk(experts=3)
    monkeypatch.setattr(runs, "collect_model", _interrupt)  # is not called
    assert sum(kept for _, kept in shrunk(experts=2).experts.values()) == 4


@pytest.mark.usefixtures("place")
def test_a_finished_run_is_not_done_again(monkeypatch: pytest.MonkeyPatch):
    outcome = shrunk()
    monkeypatch.setattr(runs, "workspace", _interrupt)  # is not called
    assert shrunk() == outcome
    assert json.loads(Path("out", Outcome.FILE).read_text()) == json.loads(json.dumps(outcome.to_json()))
    with pytest.raises(CheckpointError, match="out: the result of another run is there"):
        shrunk(experts=2)
    Path("mine").mkdir()
    for path in ("mine", "nowhere/../mine"):
        with pytest.raises(CheckpointError, match="mine: exists and is no result of an earlier run"):
            shrunk(output=path)


@pytest.mark.usefixtures("place")
def test_what_appears_meanwhile_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    def appears(*args: Any) -> Any:
        Path("out").mkdir(exist_ok=True)
        Path("out/mine.txt").write_text("mine")
        return predictions(*args)

    monkeypatch.setattr(runs, "predictions", appears)
    with pytest.raises(CheckpointError, match="out: appeared while the result was made"):
        shrunk()
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]
    Path("out/mine.txt").unlink()
    Path("out").rmdir()
    monkeypatch.setattr(runs, "predictions", _interrupt)  # is not called: nothing is lost
    shrunk()


@pytest.mark.usefixtures("place")
def test_a_recipe_that_measures_more_and_looks_at_tokens():
    assert shrunk(recipe="m-smoe-ean").settings["recipe"] == "m-smoe-ean"
    assert shrunk(output="zipped", recipe="zipit-activation").result.value > 1


def test_a_tokenizer_that_is_code_runs_where_it_is_trusted(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(place / "modules"))
    tokenizer = AutoTokenizer.from_pretrained(place / "mixtral")
    (place / "mixtral/tokenizer.json").unlink()
    write_moon(place / "mixtral", tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    with pytest.raises(CheckpointError, match="code beside it, which runs only where `trust_remote_code` is true"):
        shrunk()
    shrunk(trust_remote_code=True, samples=4)
    assert {"tokenization_moon.py", "moon.json"} <= {path.name for path in Path("out").iterdir()}
