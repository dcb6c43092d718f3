"""Interrupted passes over a model that is streamed go on where they stopped, with the same bits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from mcsmoe.calibration import collect as module
from mcsmoe.calibration.collect import collect_layers
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.checkpoint.journal import Call, Journal
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.streamed import Blocks, load_streamed
from mcsmoe.errors import CheckpointError, DiskFullError
from mcsmoe.families import family_of
from tests.calibration.test_streamed import MODELS, ragged, save
from tests.checkpoint.damage import change_config


class Run(NamedTuple):
    """Sums that were kept, blocks that were loaded, and the layer of each look."""

    sums: dict[str, LayerStatistics]
    loaded: list[str]
    seen: list[str]


def run(directory: Path, store: Store | None, done: Any = (), stop: tuple[str, int] | None = None) -> Run:
    """Collect from all layers but those `done`; Ctrl-C comes at the n-th look at the layer that `stop` names."""
    model, found = load_streamed(directory), Run({}, [], [])
    family, load, accumulate = family_of(model.config), Blocks.load, module.accumulate

    def counted(self: Blocks, block: str) -> None:
        found.loaded.append(block)
        load(self, block)

    def interrupted(sums: Any, layer: Any, *rest: Any) -> None:
        found.seen.append(layer.name)
        if stop and stop == (layer.name, found.seen.count(layer.name)):
            raise KeyboardInterrupt
        accumulate(sums, layer, *rest)

    layers = [layer for layer in family.layers(model.config) if layer.name not in done]
    journal = Journal(store) if store else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Blocks, "load", counted)
        patch.setattr(module, "accumulate", interrupted)
        try:
            collect_layers(model, family, layers, ragged(model), found.sums.__setitem__, journal=journal)
        except KeyboardInterrupt:
            assert stop
    return found


def equal(found: dict[str, LayerStatistics], expected: dict[str, LayerStatistics]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name].tensors()[key], value)
        for name, layer in expected.items()
        for key, value in layer.tensors().items()
    )


@pytest.mark.parametrize("model_type", MODELS)
def test_no_block_before_the_layer_runs_again(model_type: str, tmp_path: Path):
    directory, store = save(model_type, tmp_path / "model"), Store(tmp_path / "notes")
    whole = run(directory, None)
    last = list(whole.sums)[-1]
    before = run(directory, store, stop=(last, 2))
    after = run(directory, store, done=before.sums)
    assert equal({**before.sums, **after.sums}, whole.sums)
    assert before.loaded == whole.loaded
    assert after.loaded == whole.loaded[-1:]
    assert after.seen == [last] * 3


@pytest.mark.parametrize("name", ["encoder.1", "encoder.3", "decoder.1", "decoder.3"])
def test_interrupted_anywhere_and_more_than_once(name: str, tmp_path: Path):
    directory, store = save("switch_transformers", tmp_path / "model"), Store(tmp_path / "notes")
    sums: dict[str, LayerStatistics] = {}
    whole = run(directory, None)
    loaded: list[str] = []
    for look in (1, 3, 0):
        part = run(directory, store, sums, (name, look))
        sums |= part.sums
        loaded += part.loaded
    assert equal(sums, whole.sums)
    again = [block for block in whole.loaded if loaded.count(block) == 3]
    assert len(again) == 1  # the one that was interrupted twice
    assert sorted(loaded) == sorted(whole.loaded + 2 * again)
    # Of each stack, what came out of its last block but the last of all.
    left = {note.rpartition(".")[0].rpartition(".")[0] for note in store.names() if note.endswith(".pass")}
    assert left == {"encoder.block.3", "decoder.block.2"}


def test_passes_that_are_not_where_they_were_are_refused(tmp_path: Path):
    directory, store = save("mixtral", tmp_path / "model"), Store(tmp_path / "notes")
    before = run(directory, store, stop=("decoder.1", 1))
    change_config(directory, lambda values: values["rope_parameters"].update(rope_theta=5.0))
    with pytest.raises(CheckpointError, match="passes do not go on as they stopped"):
        run(directory, store, done=before.sums)


@pytest.mark.parametrize("wrap", [lambda output: {"hidden": output}, lambda output: output[:, ::2]])
def test_what_cannot_be_kept_starts_anew(wrap: Any, tmp_path: Path):
    journal = Journal(Store(tmp_path))
    journal.keep("layers.0", 0, wrap(torch.zeros(1, 4, 2)))
    journal.passed("layers.0", [Call("layers.1", (), {})])
    assert list(tmp_path.iterdir()) == []


def test_outputs_come_back_as_they_lay_in_memory(tmp_path: Path):
    turned = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)
    output = (turned, None, (torch.ones(1, 2, dtype=torch.bfloat16),))
    journal = Journal(Store(tmp_path))
    journal.keep("layers.0", 0, output)
    journal.passed("layers.0", [Call("layers.1", (turned,), {"mask": None})])
    again = Journal(Store(tmp_path))
    found = again.output("layers", 0)
    assert torch.equal(found[0], turned)
    assert found[0].stride() == turned.stride()
    assert found[1] is None
    assert torch.equal(found[2][0], output[2][0])
    again.check(0, Call("layers.1", (found[0],), {"mask": None}))
    with pytest.raises(CheckpointError):
        again.check(0, Call("layers.1", (found[0].contiguous(),), {"mask": None}))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiskFullError, match="bytes needed"):
        Journal(Store(tmp_path)).keep("layers.0", 0, torch.zeros(8))
