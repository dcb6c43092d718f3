"""All stages on a small Mixtral and a small fairseq GPT, from a configuration to a compressed checkpoint."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import ParameterError
from mcsmoe.grouping.plan import Plan
from stages import check, collect, compress, distill, evaluate, finetune, merge, permute
from stages.launch import LAUNCHED
from tests.families.models import SETTINGS
from tests.methods.params import small_params
from tests.stages.workplace import write_params

TEXT = "the router sends every token to an expert and few experts do most of the work"
TRAINING = {"epochs": 1, "warmup_steps": 0, "batch_size": 8}
SIZES = {"hidden_size": 32, "intermediate_size": 48}
MODELS = {
    "mixtral": SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "fsgpt_moe": SIZES,
}


@pytest.fixture(params=MODELS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    for split, count in (("train", 60), ("validation", 10)):
        passages = (" ".join(rng.choices(TEXT.split(), k=20)) for _ in range(count))
        lines = [json.dumps({"text": text}) for text in passages]
        Path("data").mkdir(exist_ok=True)
        (Path("data") / f"{split}.jsonl").write_text("\n".join(lines))
    default = small_params()
    config = {"model_type": request.param} | SETTINGS[request.param] | MODELS[request.param]
    write_params(
        methods={"merge": ["m-smoe", "one"], "distill": ["m-smoe"], "compress": ["m-smoe"], "dense": []},
        model=default["model"] | {"config": config, "tokenizer": {"kind": "bpe", "vocab_size": 300}},
        task={"name": "lm", "data": "data", "max_source_length": 16, "selection": 10},
        merge={"groups": 4},
        finetune=TRAINING | {"evaluations": 1},
        distill=TRAINING,
        compress=TRAINING | {"rank": 2, "final_ratio": 0.2, "interval": 1},
    )
    return tmp_path


def test_all_stages(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LAUNCHED, "1")  # no second check, in a process of its own
    check.main()
    finetune.main()
    permute.main()
    collect.main()
    merge.main("m-smoe")
    distill.main("m-smoe")
    compress.main("m-smoe")
    steps = [Path("artifacts/finetune"), *(Path("artifacts") / step / "m-smoe" for step in ("merge", "compress"))]
    sizes = [Checkpoint(step).size_bytes for step in steps]
    assert sizes == sorted(sizes, reverse=True)
    plan = Plan.load(steps[1])
    assert sum(plan.experts.values()) == 4 * len(plan.layers)
    figures = [measure(step) for step in steps]
    assert [row["experts"] for row in figures] == [8 * len(plan.layers), 4 * len(plan.layers), 4 * len(plan.layers)]
    assert all(1 < row["perplexity"] < 300 for row in figures)
    assert figures[2]["flops_per_token"] < figures[1]["flops_per_token"]
    assert load_model(steps[2]).config.moe_layers


def measure(step: Path) -> Any:
    output = Path("artifacts/figures/scores") / f"{step.parent.name}.json"
    evaluate.main(str(step), output)
    return json.loads(output.read_text())


@pytest.mark.parametrize("method", ["task-specific", "pruning-excluded"])
def test_methods_that_need_a_router_that_excludes_are_refused(place: Path, method: str):
    values = place / "params.yaml"
    values.write_text(values.read_text().replace("m-smoe", method))
    with pytest.raises(ParameterError, match=rf"recipes\.{method}\..*cannot exclude experts"):
        check.main()
