"""`speed` standing alone: figures of any model, each named for what it is."""

import json

import pytest
import torch

from mcsmoe.errors import UserError
from stages import speed
from tests.causal import tiny_mixtral
from tests.models import tiny_compressed

MODELS = {"compressed": tiny_compressed, "mixtral": tiny_mixtral}


@pytest.fixture(autouse=True)
def _settings():
    """The stage sets both for its whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_measured_without_params(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    model = MODELS[name]()
    model.save_pretrained("saved")
    speed.main("saved", tmp_path / "out/speed.json", batches="2,1", prompt=8, new=3, repeats=3, threads=1)
    figures = json.loads((tmp_path / "out/speed.json").read_text())
    assert (figures["threads"], figures["repeats"], figures["prompt_tokens"], figures["new_tokens"]) == (1, 3, 8, 3)
    kinds = [f"{kind}_batch_{batch}" for batch in (1, 2) for kind in ("prefill", "generate")]
    for figure in [f"{kind}_{unit}" for kind in kinds for unit in ("seconds", "tokens_per_second")]:
        assert 0 < figures[f"{figure}_low"] <= figures[figure] <= figures[f"{figure}_high"]
    weights = sum(weight.nbytes for weight in model.parameters())
    assert weights < figures["batch_1_peak_memory_bytes"] <= figures["batch_2_peak_memory_bytes"]


@pytest.mark.parametrize("batches", ["", "0", "1,", "1;2", "two"])
def test_batches_that_are_none_are_refused_before_anything_is_loaded(batches):
    with pytest.raises(UserError, match=r"--batches .* such as 1,16"):
        speed.main("nowhere", batches=batches)
