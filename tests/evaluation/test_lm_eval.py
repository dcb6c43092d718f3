"""A merged, a compressed and a stock checkpoint in EleutherAI's lm-eval, against our own scoring of its prompts."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mcsmoe.modeling  # noqa: F401 - without remote code, transformers finds our classes by it
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.quality import choice_likelihoods, quality
from mcsmoe.tasks.task import TASKS, Encoded, Example
from tests.evaluation.zero_shot import CHECKPOINTS, COMPRESSED, write_checkpoints, write_data
from tests.pipeline.imports import ROOT
from tests.shared import DATA, needs_data
from tests.tasks.settings import settings

lm_eval = pytest.importorskip("lm_eval")

DOCUMENTED = re.compile(r"```yaml\n(group: local\n.*?)```.*?```sh\n(lm_eval .*?)```", re.DOTALL)
WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["mcsmoe"] = None
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
NEW_TOKENS = 6
GOES_ON = {
    "task": "goes_on",
    "output_type": "generate_until",
    "test_split": "validation",
    "doc_to_text": "{{ctx_a}}",
    "doc_to_target": "{{endings[0]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lm-eval")
    write_checkpoints(directory)
    write_data(directory / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(directory / "cache"))
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # it takes seconds to look around
        yield directory


@pytest.fixture(scope="module")
def measured(place):
    """Figures and samples of all checkpoints; our classes come from this package."""
    data = {"dataset_path": str(place / "data/hellaswag"), "dataset_name": None}
    tasks = [local({"task": "hellaswag"} | data), GOES_ON | data]
    return {name: run(place / name, tasks) for name in CHECKPOINTS}


def local(task: dict[str, Any]) -> dict[str, Any]:
    """A task that lm-eval knows, with changes, which only a group may name."""
    return {"group": "local", "task": [task]}


def run(checkpoint: Path, tasks: list[dict[str, Any]], **options: Any) -> Any:
    from lm_eval.tasks import TaskManager

    known = Path(lm_eval.__file__).parent / "tasks"  # to read all of them takes seconds
    manager = TaskManager(include_path=[known / "hellaswag", known / "openbookqa"], include_defaults=False)
    given = {"model_args": {"pretrained": str(checkpoint)}, "tasks": tasks, "task_manager": manager}
    return lm_eval.simple_evaluate("hf", **given, batch_size=8, device="cpu", bootstrap_iters=0, **options)


def likelihoods(samples: Iterable[Any]) -> list[list[float]]:
    """Of each sample's choices."""
    return [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]


def asked(sample: Any, label: int) -> Example:
    """What lm-eval asked, as an example of ours."""
    choices = tuple(choice.removeprefix(" ") for _, choice in sample["arguments"])
    return Example(sample["arguments"][0][0], choices[label], choices)


def check_scoring(checkpoint: Path, results: Any, task: str, labels: list[int]) -> None:
    """The likelihood of each choice, and both accuracies, are as we measure them."""
    samples, figures = results["samples"][task], results["results"][task]
    examples = [asked(sample, label) for sample, label in zip(samples, labels, strict=True)]
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    given = (model, tokenizer, TASKS[task], settings(name=task, max_source_length=200), examples, 8, 0)
    np.testing.assert_allclose(likelihoods(samples), choice_likelihoods(*given), rtol=1e-4)
    scores = quality(*given)
    assert (figures["acc,none"], figures["acc_norm,none"]) == (scores["accuracy"], scores["normalized_accuracy"])
    assert 0 < scores["accuracy"] < 1


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_choices_are_scored_as_we_score_them(place, measured, name):
    labels = [int(sample["doc"]["label"]) for sample in measured[name]["samples"]["hellaswag"]]
    check_scoring(place / name, measured[name], "hellaswag", labels)


def test_checkpoints_are_different_models(measured):
    found = [likelihoods(each["samples"]["hellaswag"]) for each in measured.values()]
    assert not any(np.allclose(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_text_is_generated_as_we_generate_it(place, measured, name):
    samples = measured[name]["samples"]["goes_on"]
    model, tokenizer = load_model(place / name), load_tokenizer(place / name)
    rows = [Encoded(tokenizer(sample["doc"]["ctx_a"])["input_ids"], []) for sample in samples]
    expected = generate(model, tokenizer, rows, 8, NEW_TOKENS)
    assert [sample["filtered_resps"][0] for sample in samples] == expected
    assert len(set(expected)) > 1


@pytest.mark.slow
def test_the_documented_command_by_remote_code_without_this_package(place, measured):
    """In a process of its own, as users run it; to import and to index all of its tasks it needs seconds."""
    ((tasks, command),) = DOCUMENTED.findall((ROOT / "docs/tasks.md").read_text())
    (place / "local.yaml").write_text(tasks)
    program, *options = shlex.split(command)
    assert program == "lm_eval"
    assert f"pretrained={COMPRESSED},trust_remote_code=True" in options
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_THIS_PACKAGE, *options, "--output_path", "figures", "--log_samples"],
        cwd=place,
        env=os.environ | home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (place / "figures").rglob("samples_hellaswag_*.jsonl")
    found, expected = map(json.loads, samples.read_text().splitlines()), measured[COMPRESSED]
    np.testing.assert_allclose(likelihoods(found), likelihoods(expected["samples"]["hellaswag"]), rtol=1e-5)
    (figures,) = (place / "figures").rglob("results_*.json")
    results = json.loads(figures.read_text())["results"]
    for metric in ("acc,none", "acc_norm,none"):
        assert results["hellaswag"][metric] == expected["results"]["hellaswag"][metric]
    assert 0 <= results["winogrande"]["acc,none"] <= 1


@needs_data
def test_real_questions(place):
    task = {"task": "openbookqa", "dataset_path": str(DATA / "openbookqa"), "dataset_name": None}
    results = run(place / COMPRESSED, [local(task)], limit=40)
    labels = ["ABCD".index(sample["doc"]["answerKey"]) for sample in results["samples"]["openbookqa"]]
    check_scoring(place / COMPRESSED, results, "openbookqa", labels)
