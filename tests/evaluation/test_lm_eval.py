"""A merged, a compressed and a stock checkpoint in EleutherAI's lm-eval, against our own scoring of the same prompts."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

import mcsmoe.modeling  # noqa: F401 - without remote code, transformers finds our classes by it
from mcsmoe.checkpoint.load import load_model, load_tokenizer
from mcsmoe.checkpoint.save import save_model
from mcsmoe.compression.factorise import factorise_model
from mcsmoe.compression.merged_model import sparse_parts
from mcsmoe.evaluation.choices import choice_likelihoods
from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.quality import quality
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import Tokenizer
from mcsmoe.tasks.task import TASKS, Encoded, Example
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.compression.settings import compress
from tests.export.models import export, in_pairs, merge
from tests.families import small_model
from tests.pipeline.imports import ROOT
from tests.shared import DATA, needs_data
from tests.tasks.settings import settings

lm_eval = pytest.importorskip("lm_eval")

MERGED, COMPRESSED, STOCK = "artifacts/merge/m-smoe", "artifacts/compress/m-smoe", "stock"
WORDS = "the a tall old man woman dog boat river tree opens throws sees paints under over slowly again".split()
NEW_TOKENS = 6
README = re.compile(r"```yaml\n(group: local\n.*?)```.*?```\n(lm_eval .*?)```", re.DOTALL)
WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["mcsmoe"] = None
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


class Place(NamedTuple):
    directory: Path
    tasks: list[dict[str, Any]]


def text(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def write_data(directory: Path) -> None:
    """Rows as HellaSwag and WinoGrande have them."""
    rng = random.Random(0)
    stories = [
        {
            "activity_label": text(rng, 1, 2).capitalize(),
            "ctx_a": f"{text(rng, 4, 9).capitalize()}.",
            "ctx_b": text(rng, 1, 3),
            "endings": [f"{text(rng, 2, 9)}." for _ in range(4)],
            "label": str(rng.randrange(4)),
        }
        for _ in range(24)
    ]
    gaps = [
        {
            "sentence": f"{text(rng, 3, 6)} _ {text(rng, 3, 6)}",
            "option1": "man",
            "option2": "old woman",
            "answer": rng.choice("12"),
        }
        for _ in range(5)
    ]
    for name, rows in (("hellaswag", stories), ("winogrande", gaps)):
        for split in ("train", "validation"):
            file = directory / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(map(json.dumps, rows)))


def uneven(layer: Any) -> LayerPlan:
    """Two experts in the first layer, four in the second."""
    if layer.name == "decoder.1":
        return in_pairs(layer)
    return LayerPlan((Group(0, (0, 1, 2), (1, 1, 2)), Group(4, (3, 4, 5, 6, 7), (1, 2, 1, 1, 1))), merged=True)


def write_checkpoints(directory: Path) -> None:
    """What merge, compress and export write, of one small Mixtral from nothing."""
    tokenizer = train_tokenizer([" ".join(WORDS)], Tokenizer(kind="bpe", vocab_size=320), causal=True)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "initializer_range": 0.2}
    for name, groups in (("even", in_pairs), ("uneven", uneven)):
        tokenizer.save_pretrained(directory / name / "source")
        merged = merge(small_model("mixtral", **sizes), directory / name, groups)
        if name == "even":
            export(merged, directory / STOCK)
    (directory / MERGED).parent.mkdir(parents=True)
    (directory / "uneven/merged").rename(directory / MERGED)
    model = load_model(directory / MERGED)
    factorise_model(model, compress(rank=4, final_ratio=0.25), FactorisedLinears.from_factors)
    generator = torch.Generator().manual_seed(0)
    for part in sparse_parts(model).values():
        part.keep(torch.rand(len(part.values), generator=generator) < 0.25)
    model.update_config()
    save_model(model, tokenizer, directory / COMPRESSED)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lm-eval")
    write_checkpoints(directory)
    write_data(directory / "data")
    data = {"dataset_path": str(directory / "data/hellaswag"), "dataset_name": None}
    goes_on = {
        "task": "goes_on",
        "output_type": "generate_until",
        "test_split": "validation",
        "doc_to_text": "{{ctx_a}}",
        "doc_to_target": "{{endings[0]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(directory / "cache"))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it takes seconds to look around
        yield Place(directory, [{"group": "local", "task": [{"task": "hellaswag"} | data]}, goes_on | data])


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    known = Path(lm_eval.__file__).parent / "tasks"  # to read all of them takes seconds
    return TaskManager(include_path=[known / "hellaswag", known / "openbookqa"], include_defaults=False)


@pytest.fixture(scope="module")
def measured(place, manager):
    """Figures and samples of all checkpoints; our classes come from this package."""
    return {name: run(place.directory / name, place.tasks, manager) for name in (MERGED, COMPRESSED, STOCK)}


def run(checkpoint: Path, tasks: list[dict[str, Any]], manager: Any, **options: Any) -> Any:
    arguments = {"pretrained": str(checkpoint)}
    return lm_eval.simple_evaluate(
        "hf", arguments, tasks, task_manager=manager, batch_size=8, device="cpu", bootstrap_iters=0, **options
    )


def likelihoods(samples: Any) -> list[list[float]]:
    """Of each sample's choices."""
    return [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]


def asked(samples: Any, labels: Any) -> list[Example]:
    """What lm-eval asked, as examples of ours."""
    examples = []
    for sample, label in zip(samples, labels, strict=True):
        choices = tuple(choice.removeprefix(" ") for _, choice in sample["arguments"])
        examples.append(Example(sample["arguments"][0][0], choices[label], choices))
    return examples


def check_scoring(checkpoint: Path, results: Any, task: str, labels: Any) -> None:
    """Likelihood of each choice, and both accuracies, are as we measure them."""
    samples, figures = results["samples"][task], results["results"][task]
    ours, examples = TASKS[task], asked(samples, labels)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    given = (model, tokenizer, ours, settings(name=task, max_source_length=200), examples, 8, 0)
    np.testing.assert_allclose(likelihoods(samples), choice_likelihoods(*given), rtol=1e-4)
    scores = quality(*given)
    assert (figures["acc,none"], figures["acc_norm,none"]) == (scores["accuracy"], scores["normalized_accuracy"])
    assert 0 < scores["accuracy"] < 1


@pytest.mark.parametrize("name", [MERGED, COMPRESSED, STOCK])
def test_choices_are_scored_as_we_score_them(place, measured, name):
    samples = measured[name]["samples"]["hellaswag"]
    check_scoring(place.directory / name, measured[name], "hellaswag", [int(s["doc"]["label"]) for s in samples])


def test_checkpoints_are_different_models(measured):
    found = [likelihoods(each["samples"]["hellaswag"]) for each in measured.values()]
    assert not any(np.allclose(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", [MERGED, COMPRESSED, STOCK])
def test_text_is_generated_as_we_generate_it(place, measured, name):
    samples = measured[name]["samples"]["goes_on"]
    model, tokenizer = load_model(place.directory / name), load_tokenizer(place.directory / name)
    rows = [Encoded(tokenizer(sample["doc"]["ctx_a"])["input_ids"], []) for sample in samples]
    expected = generate(model, tokenizer, rows, 8, NEW_TOKENS)
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    assert len(set(expected)) > 1


def test_the_command_of_the_readme_by_remote_code_without_this_package(place, measured):
    ((tasks, command),) = README.findall((ROOT / "README.md").read_text())
    (place.directory / "local.yaml").write_text(tasks)
    assert [task["task"] for task in yaml.safe_load(tasks)["task"]] == ["hellaswag", "winogrande"]
    program, *options = shlex.split(command)
    assert program == "lm_eval"
    assert f"pretrained={COMPRESSED},trust_remote_code=True" in options
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THIS_PACKAGE, *options, "--output_path", "figures", "--log_samples"],
        cwd=place.directory,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place.directory / "home"), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (place.directory / "figures").rglob("samples_hellaswag_*.jsonl")
    found = likelihoods(map(json.loads, samples.read_text().splitlines()))
    expected = measured[COMPRESSED]
    np.testing.assert_allclose(found, likelihoods(expected["samples"]["hellaswag"]), rtol=1e-5)
    (figures,) = (place.directory / "figures").rglob("results_*.json")
    results = json.loads(figures.read_text())["results"]
    for metric in ("acc,none", "acc_norm,none"):
        assert results["hellaswag"][metric] == expected["results"]["hellaswag"][metric]
    assert 0 <= results["winogrande"]["acc,none"] <= 1


@needs_data
def test_real_questions(place, manager):
    task = {"task": "openbookqa", "dataset_path": str(DATA / "openbookqa"), "dataset_name": None}
    results = run(place.directory / COMPRESSED, [{"group": "local", "task": [task]}], manager, limit=40)
    labels = ["ABCD".index(sample["doc"]["answerKey"]) for sample in results["samples"]["openbookqa"]]
    check_scoring(place.directory / COMPRESSED, results, "openbookqa", labels)
