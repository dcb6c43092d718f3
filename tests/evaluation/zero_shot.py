"""What lm-eval is given in tests: checkpoints as merge, compress and export write them, and local task data."""

import json
import random
import re
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.save import save_model
from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.compression.settings import compress
from tests.exporting.models import export, in_pairs, merge
from tests.families.models import small_model

MERGED, COMPRESSED, STOCK = CHECKPOINTS = ("artifacts/merge/m-smoe", "artifacts/compress/m-smoe", "stock")
WORDS = re.findall(r"\w+", "The old man sees a tall woman, she paints under a tree; slowly the dog opens a boat again")


def write_data(directory: Path) -> None:
    """`hellaswag` and `winogrande` with columns as on the hub."""
    rng = random.Random(0)
    for name, row, count in (("hellaswag", story, 24), ("winogrande", gap, 5)):
        (directory / name).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = [json.dumps(row(rng)) for _ in range(count)]
            (directory / name / f"{split}.jsonl").write_text("\n".join(lines))


def text(rng: random.Random, low: int, high: int) -> str:
    """So many random words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def story(rng: random.Random) -> dict[str, Any]:
    """With four endings of different lengths."""
    return {
        "activity_label": text(rng, 1, 2).capitalize(),
        "ctx_a": f"{text(rng, 4, 9).capitalize()}.",
        "ctx_b": text(rng, 1, 3),
        "endings": [f"{text(rng, 2, 9)}." for _ in range(4)],
        "label": str(rng.randrange(4)),
    }


def gap(rng: random.Random) -> dict[str, Any]:
    """With two names to fill it."""
    sentence = f"{text(rng, 3, 6)} _ {text(rng, 3, 6)}"
    return {"sentence": sentence, "option1": "man", "option2": "old woman", "answer": rng.choice("12")}


def write_checkpoints(directory: Path) -> None:
    """`CHECKPOINTS` of a small Mixtral from nothing; the stock one has four experts in each layer."""
    tokenizer = train_tokenizer([" ".join(WORDS)], TokenizerSection(kind="bpe", vocab_size=320), causal=True)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "initializer_range": 0.2}
    for name in ("even", "uneven"):
        tokenizer.save_pretrained(directory / name / "source")
    export(merge(small_model("mixtral", **sizes), directory / "even", in_pairs), directory / STOCK)
    merge(small_model("mixtral", **sizes), directory / "uneven", uneven)
    (directory / MERGED).parent.mkdir(parents=True)
    (directory / "uneven/merged").rename(directory / MERGED)
    model = load_model(directory / MERGED)
    factorise_model(model, compress(rank=4, final_ratio=0.25), FactorisedLinears.from_factors)
    generator = torch.Generator().manual_seed(0)
    for part in sparse_parts(model).values():
        part.keep(torch.rand(len(part.values), generator=generator) < 0.25)
    model.update_config()
    save_model(model, tokenizer, directory / COMPRESSED)


def uneven(layer: Any) -> LayerPlan:
    """Two experts in the first layer, four in the second."""
    if layer.name == "decoder.1":
        return in_pairs(layer)
    return LayerPlan((Group(0, (0, 1, 2), (1, 1, 2)), Group(4, (3, 4, 5, 6, 7), (1, 2, 1, 1, 1))), merged=True)
