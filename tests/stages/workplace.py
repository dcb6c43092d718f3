"""A directory in which stages can run: params.yaml and a small random model as artifacts/finetune."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcsmoe.errors import UserError
from mcsmoe.methods.recipe import known_recipes
from mcsmoe.methods.resolved import ResolvedMethod
from mcsmoe.params import Params
from mcsmoe.tasks.task import TASKS
from mcsmoe.tasks.tokenizer import train_tokenizer
from stages.common import RECIPES
from tests.methods.params import small_params
from tests.models import tiny_switch

FINETUNED = Path("artifacts/finetune")


def enter(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `directory` such a place and the current directory."""
    monkeypatch.chdir(directory)
    write_params()
    params = Params.load()
    assert params.model.tokenizer is not None
    texts = [e.source + " " + e.target for e in TASKS["skills"].examples(params.task, "train")]
    tokenizer = train_tokenizer(texts, params.model.tokenizer)
    tiny_switch(vocab_size=params.model.tokenizer.vocab_size).save_pretrained(FINETUNED)
    tokenizer.save_pretrained(FINETUNED)


def write_params(**sections: Any) -> None:
    """Write params.yaml: few examples, and `sections` changed key by key; and all recipes that it allows, resolved."""
    few = {"task": {"train_limit": 200, "selection": 20}, "calibration": {"samples": 40, "batch_size": 16}}
    values = small_params()
    for name, section in (few | sections).items():
        values[name] = values[name] | section if isinstance(section, dict) else section
    Path("params.yaml").write_text(yaml.safe_dump(values))
    shutil.rmtree(RECIPES, ignore_errors=True)
    RECIPES.mkdir(parents=True)
    for name in known_recipes():
        with suppress(UserError):
            ResolvedMethod.of(name, Params.parse(values)).save(RECIPES / f"{name}.yaml")
