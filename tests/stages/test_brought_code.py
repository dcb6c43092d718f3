"""A model whose tokenizer is Python code beside it, through all stages, and what the check refuses of such models."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers.dynamic_module_utils

from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import CheckpointError
from stages import check, collect, distill, evaluate, export, finetune, merge, permute
from stages.common import explained
from stages.launch import LAUNCHED
from tests.causal import tiny_mixtral
from tests.methods.params import small_params
from tests.moon import write_moon
from tests.stages.workplace import write_params

WORDS = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(40))]
BROUGHT = ["additional_chat_templates/tool.jinja", "chat_template.jinja", "moon.json", "tokenization_moon.py"]
TRAINING = {"epochs": 0.2, "warmup_steps": 0, "batch_size": 8}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(LAUNCHED, "1")  # no second check, in a process of its own
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    source = tmp_path / "source"
    tiny_mixtral().save_pretrained(source)
    (source / "additional_chat_templates").mkdir()
    for name in BROUGHT:
        (source / name).write_text(name)
    write_moon(source, WORDS)
    # Many models name classes that their own class in transformers has replaced; that code must not run.
    config = json.loads((source / "config.json").read_text()) | {"auto_map": {"AutoConfig": "configuration_moon.Moon"}}
    (source / "config.json").write_text(json.dumps(config))
    (source / "configuration_moon.py").write_text("raise AssertionError")
    Path("data").mkdir()
    for split in ("train", "validation"):
        Path(f"data/{split}.jsonl").write_text(f"{json.dumps({'text': ' '.join(WORDS[3:] * 2)})}\n" * 20)
    configure(trusted=True)
    return tmp_path


def configure(trusted: bool, source: str = "source") -> None:
    write_params(
        methods={
            "merge": ["m-smoe-uniform"],
            "distill": ["m-smoe-uniform"],
            "compress": [],
            "dense": [],
        },
        model=small_params()["model"]
        | {"source": source, "trust_remote_code": trusted, "config": {}, "tokenizer": None},
        task={"name": "lm", "data": "data", "max_source_length": 16, "selection": 4},
        calibration={"samples": 8, "batch_size": 8},
        merge={"groups": 2},
        finetune=TRAINING | {"evaluations": 1},
        distill=TRAINING,
    )


def test_it_is_taken_and_travels_through_all_stages(place: Path):
    check.main()
    finetune.main(Path("artifacts/finetune"))
    permute.main()
    collect.main()
    method = "m-smoe-uniform"
    merge.main(method)
    distill.main(method)
    merged = Path("artifacts/merge") / method
    evaluate.main(str(merged), output=Path("figures.json"))
    export.main(merged, Path("stock"))
    steps = [Path("artifacts") / step for step in ("finetune", "permute")]
    for directory in [*steps, merged, Path("artifacts/distill") / method, Path("stock")]:
        assert all((directory / name).read_bytes() == (place / "source" / name).read_bytes() for name in BROUGHT)
        assert load_tokenizer(directory, trust_remote_code=True)("w0 w1")["input_ids"] == [3, 4]


def as_it_is(source: Path) -> None:
    pass


def adapted(source: Path) -> None:
    (source / "adapter_config.json").write_text("{}")


def linked(source: Path) -> None:
    (source / "vocab.json").symlink_to(source.parent / "params.yaml")


def merged_before(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    layers = {f"decoder.{i}": {"experts": 2, "path": f"model.layers.{i}.mlp", "router": "gate"} for i in range(2)}
    values = config | {"model_type": "mcsmoe_mixtral", "moe_layers": layers}
    (source / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "trusted", "message"),
    [
        (as_it_is, False, "source: its tokenizer is Python code .* runs only where model.trust_remote_code is true$"),
        (adapted, True, "source: adapter_config.json: weights of an adapter are beside those of the model; merge them"),
        (linked, True, "source/vocab.json: a link to .*params.yaml, outside the checkpoint"),
        (merged_before, True, "source: merged already; give the model that it was made of"),
    ],
)
def test_what_the_check_refuses(place: Path, change: Callable[[Path], None], trusted: bool, message: str):
    change(place / "source")
    configure(trusted)
    with pytest.raises(CheckpointError) as refused:
        check.main()
    line = explained(refused.value)
    assert "\n" not in line
    assert re.search(message, line), line
