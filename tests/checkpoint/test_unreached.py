"""Damage to experts that no token of the probe reaches is caught, too: by what was written, and by what is loaded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from mcsmoe.alignment.permute import write_permuted
from mcsmoe.checkpoint import fresh, streamed
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.streamed import Blocks
from mcsmoe.checkpoint.verify import verify_checkpoint, verify_stock
from mcsmoe.checkpoint.writer import Written, content_hash
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of, merged_layers
from mcsmoe.grouping.plan import LayerPlan, Plan
from mcsmoe.merging.apply import write_merged
from tests.checkpoint.damage import change
from tests.families.models import small_model
from tests.merging.material import nothing_measured
from tests.models import tiny_merged, tiny_switch

Write = Callable[[Any, Any, Path], Written]
Experts = list[dict[str, Tensor]]
LAYER = "decoder.1"  # the merged Switch has all of its eight experts there


def saved(model: Any, tokenizer: Any, directory: Path) -> Written:
    return save_model(model, tokenizer, directory)


def permuted(model: Any, tokenizer: Any, directory: Path) -> Written:
    model.save_pretrained(directory / "source")
    source = Checkpoint(directory / "source")
    return write_permuted(source, family_of(source.config).layers(source.config), lambda layer: {}, directory)


def merged(model: Any, tokenizer: Any, directory: Path) -> Written:
    model.save_pretrained(directory / "source")
    source = Checkpoint(directory / "source")
    layers = family_of(source.config).layers(source.config)
    untouched = {layer.name: LayerPlan.untouched(torch.ones(layer.experts)) for layer in layers}
    plan = Plan("none", "frequency", "none", "dominant", untouched)
    return write_merged(source, plan, nothing_measured(layers), directory)


# On disk, experts have a tensor each, or lie in a stack, gate and up in turn, or in a flat one.
CASES: dict[str, tuple[Callable[[], Any], Write]] = {
    "switch, trained": (tiny_switch, saved),
    "switch, permuted": (tiny_switch, permuted),
    "switch, merged and trained": (tiny_merged, saved),
    "mixtral, trained": (lambda: small_model("mixtral"), saved),
    "mixtral, permuted": (lambda: small_model("mixtral"), permuted),
    "mixtral, merged": (lambda: small_model("mixtral"), merged),
    "gpt_oss, trained": (lambda: small_model("gpt_oss"), saved),
    "gpt_oss, permuted": (lambda: small_model("gpt_oss"), permuted),
    "dbrx, trained": (lambda: small_model("dbrx"), saved),
    "dbrx, permuted": (lambda: small_model("dbrx"), permuted),
}


class Made(NamedTuple):
    """A checkpoint, what was written, the model's logits on the probe, and two experts that no token of it reaches."""

    directory: Path
    written: Written
    logits: Tensor
    unreached: tuple[int, int]


@pytest.fixture(params=CASES)
def made(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    build, write = CASES[request.param]
    directory = tmp_path / "made"
    directory.mkdir()
    written = write(build(), tokenizer, directory)
    model = load_model(directory)
    expected, left = logits(model), []
    for e, expert in enumerate(experts(model.state_dict(), model.config, in_memory=True)):
        kept = {name: value.clone() for name, value in expert.items()}
        zero(expert, expert)
        if torch.equal(logits(model), expected):
            left.append(e)
        for name, value in kept.items():
            expert[name].copy_(value)

    def answer(task: fresh.FreshLoad, scratch: Path) -> tuple[int, str]:
        save_file({"logits": expected}, scratch / fresh.LOGITS)
        hashes = {name: content_hash(value) for name, value in load_model(task.directory).state_dict().items()}
        (scratch / fresh.HASHES).write_text(json.dumps(hashes))
        return 0, ""

    monkeypatch.setattr(fresh, "start", answer)  # what a fresh process would find tells nothing here
    return Made(directory, written, expected, (left[0], left[-1]))


def probe(config: Any) -> dict[str, Tensor]:
    """Two tokens: they reach four of eight experts at most."""
    ids = torch.tensor([[7, 8]])
    return {"input_ids": ids} if family_of(config).causal else {"input_ids": ids, "decoder_input_ids": ids}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(**probe(model.config)).logits
    return found


def experts(tensors: dict[str, Tensor], config: Any, in_memory: bool = False) -> Experts:
    """The experts of `LAYER` as they lie in `tensors`."""
    family = family_of(config)
    layer = next(layer for layer in family.layers(config) if layer.name == LAYER)
    if merged_layers(config) is not None:
        return [{n: tensors[family.merged_tensor(layer, n)][e] for n in layer.layout} for e in range(layer.experts)]
    places = (layer.in_memory if in_memory else layer.places).items()
    return [{n: p.view(p.share(tensors[p.name(e)], e)) for n, p in places} for e in range(layer.experts)]


def zero(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for value in first.values():
        value.zero_()


def swap(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        kept = value.clone()
        value.copy_(second[name])
        second[name].copy_(kept)


@pytest.mark.parametrize("damage", [zero, swap])
def test_damage_to_the_file_is_caught_with_and_without_known_logits(made: Made, damage: Any):
    config = Checkpoint(made.directory).config
    for known in (made.logits, None):
        verify_checkpoint(made.directory, made.written, probe(config), known)

    def edit(tensors: dict[str, Tensor]) -> None:
        ours = experts(tensors, config)
        damage(*(ours[e] for e in made.unreached))

    change(made.directory, edit)
    for known in (made.logits, None):
        with pytest.raises(CheckpointError, match=r"is not what was written$"):
            verify_checkpoint(made.directory, made.written, probe(config), known)
        verify_checkpoint(made.directory, {}, probe(config), known)  # logits alone tell nothing
    with pytest.raises(CheckpointError, match=r"is not what was written$"):
        verify_stock(made.directory, made.written, probe(config))


@pytest.mark.parametrize("limit", [None, 1])
def test_a_whole_checkpoint_passes(made: Made, limit: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fresh, "start", fresh.fork)
    config, before = Checkpoint(made.directory).config, sorted(made.directory.parent.iterdir())
    verify_checkpoint(made.directory, made.written, probe(config), made.logits, limit)
    if merged_layers(config) is None:
        verify_stock(made.directory, made.written, probe(config), limit)
    assert sorted(made.directory.parent.iterdir()) == before


def test_a_large_model_is_read_block_by_block_without_a_limit(made: Made, monkeypatch: pytest.MonkeyPatch):
    """Then a fresh process loads it whole, also one of a stock class, which else nobody would."""
    tasks: list[fresh.FreshLoad] = []
    loaded: list[str] = []
    load = Blocks.load

    def noted(task: fresh.FreshLoad, directory: Path) -> Any:
        tasks.append(task)
        return fresh.fork(task, directory)

    def counted(self: Blocks, block: str) -> None:
        loaded.append(block)
        load(self, block)

    monkeypatch.setattr(streamed, "AT_ONCE", 1)
    monkeypatch.setattr(fresh, "start", noted)
    monkeypatch.setattr(Blocks, "load", counted)
    verify_checkpoint(made.directory, made.written, probe(Checkpoint(made.directory).config), made.logits)
    assert [task.places for task in tasks] == [None]
    assert loaded
    assert len(loaded) == len(set(loaded))


@pytest.mark.parametrize("damage", [zero, swap])
def test_damage_by_reading_block_by_block_is_caught(made: Made, damage: Any, monkeypatch: pytest.MonkeyPatch):
    config, load = Checkpoint(made.directory).config, Blocks.load
    path = next(layer.path for layer in family_of(config).layers(config) if layer.name == LAYER)

    def damaged(self: Blocks, block: str) -> None:
        load(self, block)
        if path.startswith(f"{block}."):
            ours = experts(self._model.state_dict(), config, in_memory=True)
            damage(*(ours[e] for e in made.unreached))

    monkeypatch.setattr(Blocks, "load", damaged)
    with pytest.raises(CheckpointError, match=r"reloaded: .* is not what the file holds"):
        verify_checkpoint(made.directory, made.written, probe(config), made.logits, memory_limit=1)


def test_other_values_in_the_fresh_process_are_caught(made: Made, monkeypatch: pytest.MonkeyPatch):
    """Even of an expert that no token of the probe reaches, so that its logits are right."""
    config = Checkpoint(made.directory).config
    tensors = load_model(made.directory).state_dict()
    name = next(name for name in reversed(tensors) if "experts" in name)

    def other(task: fresh.FreshLoad, directory: Path) -> Any:
        ended = fresh.fork(task, directory)
        hashes = json.loads((directory / fresh.HASHES).read_text())
        assert hashes.keys() == tensors.keys()
        assert hashes[name] == content_hash(tensors[name])
        (directory / fresh.HASHES).write_text(json.dumps(hashes | {name: "0"}))
        return ended

    monkeypatch.setattr(fresh, "start", other)
    with pytest.raises(CheckpointError, match=f"in a fresh process, {re.escape(name)} has other values"):
        verify_checkpoint(made.directory, made.written, probe(config), made.logits, memory_limit=1)


@pytest.mark.parametrize("damage", [zero, swap])
def test_damage_by_loading_is_caught(made: Made, damage: Any, monkeypatch: pytest.MonkeyPatch):
    config = Checkpoint(made.directory).config
    auto_class = getattr(transformers, family_of(config).auto_class)
    load = auto_class.from_pretrained

    def damaged(*arguments: Any, **options: Any) -> Any:
        model, report = load(*arguments, **options)
        ours = experts(model.state_dict(), model.config, in_memory=True)
        damage(*(ours[e] for e in made.unreached))
        return model, report

    monkeypatch.setattr(auto_class, "from_pretrained", damaged)
    with pytest.raises(CheckpointError, match=r"reloaded: .* is not what the file holds"):
        verify_checkpoint(made.directory, made.written, probe(config), made.logits)
    with pytest.raises(CheckpointError, match=r"reloaded: .* is not what the file holds"):
        verify_stock(made.directory, made.written, probe(config))
