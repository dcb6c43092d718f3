"""`import mcsmoe`: the public functions, their examples, and what they refuse."""

import doctest
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
import torch
from transformers import MixtralForCausalLM

import mcsmoe
from mcsmoe import api
from mcsmoe.errors import (
    CheckpointError,
    DataError,
    MemoryLimitError,
    ParameterError,
    PlanError,
    StatisticsError,
    UnknownNameError,
)
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.causal import tiny_mixtral

TEXTS = [f"the {a} cat saw {b} dogs and {a} of {b} birds near the {b} house" for a in range(9) for b in range(9)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model `tiny-moe`."""
    directory = tmp_path_factory.mktemp("api")
    tokenizer = train_tokenizer(TEXTS, TokenizerSection(kind="word", vocab_size=60), causal=True)
    tiny_mixtral().save_pretrained(directory / "tiny-moe")
    tokenizer.save_pretrained(directory / "tiny-moe")
    return directory


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny-moe").symlink_to(made / "tiny-moe")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/animals.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 9))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(place: Path) -> Any:
    return mcsmoe.open("tiny-moe")


def test_importing_loads_nothing_heavy():
    code = "import sys, mcsmoe; print(sorted({'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there():
    assert set(mcsmoe.__all__) <= set(dir(mcsmoe))
    for name in mcsmoe.__all__:
        assert getattr(mcsmoe, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'shrunk'"):
        mcsmoe.shrunk  # noqa: B018


@pytest.mark.usefixtures("place")
def test_the_examples_do_what_they_show():
    """In the order of the file, as one session: each example goes on from the one before."""
    source = Path(api.__file__).read_text()
    globs: dict[str, Any] = {"mcsmoe": mcsmoe, "texts": TEXTS}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = [test for test in doctest.DocTestFinder(recurse=True).find(api, globs=globs) if test.examples]
    for test in sorted(found, key=lambda test: source.index(f"def {test.name.split('.')[-1]}(")):
        test.globs = globs
        runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0
    assert {test.name.split(".")[-1] for test in found} >= set(mcsmoe.__all__) - {"Plan", "RoutingStatistics"}


def test_a_quantised_model_is_refused_when_it_is_opened(made: Path, tmp_path: Path):
    shutil.copytree(made / "tiny-moe", tmp_path / "quantised")
    file = tmp_path / "quantised/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(CheckpointError, match=r"quantised: quantised, .* `shrink` restores such weights"):
        mcsmoe.open(tmp_path / "quantised")


def test_texts_are_a_list_a_data_set_or_an_iterator(model: Any):
    def counts(texts: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = mcsmoe.collect(model, texts, samples=6, length=16, **options)["decoder.0"].counts
        return found

    listed = counts(TEXTS)
    assert listed.sum() == 6 * 15 * 2  # two experts for each token but the last of a block
    assert torch.equal(counts(datasets.Dataset.from_dict({"text": TEXTS})), listed)
    assert torch.equal(counts(datasets.Dataset.from_dict({"story": TEXTS}), column="story"), listed)
    assert not torch.equal(counts(TEXTS, seed=1), listed)
    asked: list[str] = []

    def endless() -> Any:
        while True:
            asked.append(TEXTS[len(asked) % len(TEXTS)])
            yield asked[-1]

    assert counts(endless()).sum() == listed.sum()
    assert len(asked) < 10


def test_statistics_of_two_texts_add_up(model: Any):
    one, other = (mcsmoe.collect(model, iter(part), samples=2, length=16) for part in (TEXTS[:40], TEXTS[40:]))
    assert torch.equal((one + other)["decoder.1"].counts, one["decoder.1"].counts + other["decoder.1"].counts)


def test_statistics_are_the_same_in_memory_and_on_disk(model: Any, place: Path):
    in_memory = mcsmoe.collect(model, TEXTS, samples=4, length=16, also=["norms"])
    written = mcsmoe.collect(model, TEXTS, samples=4, length=16, also=["norms"], output="statistics")
    assert (place / "statistics").is_dir()
    assert written.provenance == in_memory.provenance
    for name, layer in in_memory.layers.items():
        assert all(torch.equal(value, written[name].tensors()[key]) for key, value in layer.tensors().items())
    assert repr(written) == "RoutingStatistics(2 layers, 60 tokens, also gated_norms, norms)"
    assert mcsmoe.plan(model, written, "m-smoe-ean", experts=2) == mcsmoe.plan(model, in_memory, "m-smoe-ean", 2)


@pytest.mark.usefixtures("place")
def test_a_recipe_that_looks_at_tokens_and_gradients(model: Any):
    statistics = mcsmoe.collect(model, TEXTS, samples=4, length=16, also=["gradients"], output="statistics")
    plan = mcsmoe.plan(model, statistics, "m-smoe-fisher", experts=2)
    mcsmoe.merge(model, plan, statistics, "fisher")
    looking = mcsmoe.plan(model, statistics, "zipit-activation", experts=2)
    with pytest.raises(ParameterError, match=r"texts = None: rule .*zipit.* needs calibration tokens"):
        mcsmoe.merge(model, looking, statistics, "zipped")
    mcsmoe.merge(model, looking, statistics, "zipped", texts=TEXTS, samples=4, length=16)
    assert Path("fisher/model.safetensors").read_bytes() != Path("zipped/model.safetensors").read_bytes()


def test_what_comes_out_loads_with_transformers_alone(model: Any, place: Path):
    statistics = mcsmoe.collect(model, TEXTS, samples=4, length=16)
    plan = mcsmoe.plan(model, statistics, "m-smoe-uniform", experts=3)
    mcsmoe.merge(model, plan, statistics, place / "merged")
    mcsmoe.export("merged", model, "ridge", router="ridge", texts=TEXTS, samples=4, length=16)
    loaded = MixtralForCausalLM.from_pretrained("ridge")
    assert loaded.config.num_local_experts == 3


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m, s: mcsmoe.open("nowhere/at/all"), CheckpointError, "nowhere/at/all: no such directory"),
        (lambda m, s: mcsmoe.open("tiny-moe", memory_limit="much"), ParameterError, "memory_limit = 'much': a size"),
        (lambda m, s: mcsmoe.collect(m, "a text"), DataError, "texts is one string, 'a text'...: give a list"),
        (lambda m, s: mcsmoe.collect(m, ["good", None]), DataError, r"texts\[1\] holds null, not text"),
        (lambda m, s: mcsmoe.collect(m, iter(["good", 2])), DataError, r"texts\[1\] holds 2, not text"),
        (lambda m, s: mcsmoe.collect(m, []), DataError, "the calibration text is empty"),
        (lambda m, s: mcsmoe.collect(m, [{"story": "x"}]), DataError, "no column 'text'; there are story"),
        (lambda m, s: mcsmoe.collect(m, TEXTS, length=10**9), ParameterError, "length = 1000000000: the model takes"),
        (lambda m, s: mcsmoe.collect(m, TEXTS, samples=0), ParameterError, "samples = 0: must be at least 1"),
        (lambda m, s: mcsmoe.collect(m, TEXTS, also=["norm"]), UnknownNameError, "unknown entry of also 'norm'"),
        (
            lambda m, s: mcsmoe.collect(m, TEXTS, also=["gradients"]),
            ParameterError,
            "output = None: 'gradients' is written to files",
        ),
        (lambda m, s: mcsmoe.plan(m, s, "m-smo"), UnknownNameError, "unknown method 'm-smo'; known: "),
        (lambda m, s: mcsmoe.plan(m, s, experts=5), ParameterError, "experts = 5: 10 groups asked of .* 8 experts"),
        (lambda m, s: mcsmoe.plan(m, s, experts=0), ParameterError, "experts = 0: must be at least 1"),
        (
            lambda m, s: mcsmoe.plan(m, s, experts=float("nan")),
            ParameterError,
            "experts = nan: must be a finite number",
        ),
        (lambda m, s: mcsmoe.plan(m, s, experts=True), ParameterError, "experts = True: a number, not true or false"),
        (
            lambda m, s: mcsmoe.plan(m, s, budget=cast(Any, "globl")),
            ParameterError,
            "budget = 'globl': .* did you mean 'global'",
        ),
        (
            lambda m, s: mcsmoe.plan(m, s, "m-smoe-uniform", experts=2.5),
            ParameterError,
            "experts = 2.5: a uniform budget needs a whole number",
        ),
        (
            lambda m, s: mcsmoe.plan(m, replace(s, provenance={"model": m.fingerprint | {"tokenizer": "other"}})),
            StatisticsError,
            "routing statistics of another model: this one has a different tokenizer",
        ),
        (
            lambda m, s: mcsmoe.merge(m, mcsmoe.plan(m, s), replace(s, provenance={"model": {"router": "a"}}), "out"),
            StatisticsError,
            "routing statistics of another model: this one has a different router",
        ),
        (
            lambda m, s: mcsmoe.merge(m, replace(mcsmoe.plan(m, s), layers={}), s, "out"),
            PlanError,
            r"the plan is for another model: decoder\.0 has no experts, in the model 4",
        ),
        (lambda m, s: mcsmoe.plan(m, s, "task-specific"), ParameterError, "recipe = 'task-specific': drops experts"),
        (lambda m, s: mcsmoe.plan(m, s, "m-smoe-fisher", 2), StatisticsError, "gradients"),
        (lambda m, s: mcsmoe.plan(m, s, "m-smoe-ean", 2), StatisticsError, "norms"),
        (
            lambda m, s: mcsmoe.plan(m, s, exclude=["decoder.7"]),
            ParameterError,
            "exclude = 'decoder.7': sparse layers are decoder.0, decoder.1",
        ),
        (
            lambda m, s: mcsmoe.merge(mcsmoe.open("tiny-moe", memory_limit="1kB"), mcsmoe.plan(m, s), s, "out"),
            MemoryLimitError,
            r"memory_limit = 1000: merge needs [\d,]+ bytes; raise it",
        ),
        (lambda m, s: mcsmoe.export("tiny-moe", m, "out"), CheckpointError, "tiny-moe: not a merged checkpoint"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_one_line(model: Any, call: Any, kind: type[Exception], message: str):
    statistics = mcsmoe.collect(model, TEXTS, samples=1, length=8)
    with pytest.raises(kind) as error:
        call(model, statistics)
    assert re.search(message, str(error.value)), error.value
    assert "\n" not in str(error.value)
