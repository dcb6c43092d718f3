"""A directory with small models and text, as a user of `shrink` has them."""

import json
import shutil
from pathlib import Path
from typing import Any

from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.causal import tiny_mixtral
from tests.families.models import small_model
from tests.models import tiny_switch

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PROSE = [f"the {a} cat saw {b} dogs and {a} of the {b} birds near its house" for a in NUMBERS for b in NUMBERS]
CODE = [f"def {a} ( {b} ) : return {a} + {b} if {b} else {a}" for a in NUMBERS for b in NUMBERS]
POSITIONS = 24


def fill(directory: Path) -> None:
    """Write the text (`text/code.jsonl`, `text/prose.txt`), and the models `mixtral`, `deepseek` and `switch`."""
    text = directory / "text"
    text.mkdir(parents=True)
    (text / "code.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in CODE))
    (text / "prose.txt").write_text("\n".join(PROSE * 8))
    sizes: dict[str, Any] = {"vocab_size": 128, "max_position_embeddings": POSITIONS}
    models = {
        "mixtral": tiny_mixtral(**sizes),
        "deepseek": small_model("deepseek_v3", n_group=2, topk_group=2, **sizes),
        "switch": tiny_switch(vocab_size=128),
    }
    for name, model in models.items():
        settings = TokenizerSection(kind="word", vocab_size=128)
        tokenizer = train_tokenizer([*PROSE, *CODE], settings, causal=name != "switch")
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)


def enter(made: Path, directory: Path) -> None:
    """Copy the place that `fill` made."""
    shutil.copytree(made, directory, dirs_exist_ok=True)


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a result, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}
