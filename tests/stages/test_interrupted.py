"""Interrupted permuting and merging go on where they stopped, and give the same bytes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mcsmoe.alignment import pairs
from mcsmoe.alignment import permute as alignment
from mcsmoe.alignment.matching import Match
from mcsmoe.calibration.observer import Observer
from mcsmoe.checkpoint import shards
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import MoELayer, sparse_layers
from mcsmoe.merging import apply
from mcsmoe.training import loop
from stages import finetune, merge, permute
from stages.launch import LAUNCHED
from tests.models import EXPERTS
from tests.stages.workplace import FINETUNED, write_params
from tests.training.processes import in_two_processes

MERGED = Path("artifacts/merge")


class Reads:
    """Layers whose experts were read from one checkpoint."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._layers: set[str] = set()
        layers = sparse_layers(Checkpoint(directory).config)
        places = [(layer.name, p.name(e)) for layer in layers for p in layer.places.values() for e in range(EXPERTS)]
        owner, read = {tensor: name for name, tensor in places}, Checkpoint.tensor

        def tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
            if checkpoint.directory == directory and name in owner:
                self._layers.add(owner[name])
            return read(checkpoint, name)

        monkeypatch.setattr(Checkpoint, "tensor", tensor)

    def take(self) -> set[str]:
        """Those read since the last time."""
        seen, self._layers = self._layers, set()
        return seen


def interrupt(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, calls: int) -> None:
    """Ctrl-C at the next call of a function after `calls` calls."""
    real = getattr(module, name)

    def function(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls -= 1
        if calls == -1:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, function)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_interrupted_permuting_matches_no_layer_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    write_params(permute={"reference": "first"})
    permute.main()
    expected, report = contents(Path("artifacts/permute")), Path("artifacts/figures/permute.json").read_bytes()
    assert "model.safetensors.index.json" in expected
    shutil.rmtree("artifacts/permute")
    reads = Reads(FINETUNED, monkeypatch)
    interrupt(monkeypatch, pairs, "match", 2 * (EXPERTS - 1))
    with pytest.raises(KeyboardInterrupt, match="what is finished is kept"):
        permute.main()
    assert reads.take() == {"encoder.1", "encoder.3", "decoder.1"}
    assert not Path("artifacts/permute").exists()
    capsys.readouterr()
    permute.main()
    assert reads.take() == {"decoder.1", "decoder.3"}
    assert "resuming at decoder.1: 2 of " in capsys.readouterr().out
    assert contents(Path("artifacts/permute")) == expected
    assert Path("artifacts/figures/permute.json").read_bytes() == report
    assert sorted(path.name for path in Path("artifacts").iterdir()) == ["figures", "finetune", "permute", "recipes"]


@pytest.mark.parametrize("matching", ["weight", "activation"])
def test_two_processes_share_out_the_layers(place: Path, matching: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    write_params(permute={"matching": matching})
    permute.main()
    expected, report = contents(Path("artifacts/permute")), Path("artifacts/figures/permute.json").read_bytes()
    shutil.rmtree("artifacts/permute")
    write_params(permute={"matching": matching}, launch={"processes": 2})
    monkeypatch.setenv(LAUNCHED, "1")
    asked = {layer.name for layer in sparse_layers(Checkpoint(FINETUNED).config)}

    def work(rank: int) -> None:
        found: set[str] = set()
        real = alignment.MATCHINGS[matching]

        def match(layer: MoELayer, reference: int, observer: Observer) -> Mapping[int, Match]:
            found.add(layer.name)
            return real(layer, reference, observer)

        monkeypatch.setitem(alignment.MATCHINGS, matching, match)
        permute.main()
        Path(f"found-{rank}").write_text(" ".join(sorted(found)))

    in_two_processes(work)
    found = [set(Path(f"found-{rank}").read_text().split()) for rank in range(2)]
    assert found[0] | found[1] == asked
    assert not found[0] & found[1]
    assert contents(Path("artifacts/permute")) == expected
    assert Path("artifacts/figures/permute.json").read_bytes() == report


@pytest.mark.parametrize("groups", [2, 1])
def test_interrupted_merging_goes_on_by_the_same_plan_only(
    merged: Path, groups: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    before = contents(MERGED / "m-smoe")
    write_params(merge={"groups": groups, "budget": "uniform"})
    merge.main("m-smoe")
    expected = contents(MERGED / "m-smoe")
    assert expected != before
    write_params(merge={"groups": 2, "budget": "uniform"})
    reads = Reads(Path("artifacts/permute"), monkeypatch)
    interrupt(monkeypatch, apply, "merge_group", 3)  # in the second layer
    with pytest.raises(KeyboardInterrupt):
        merge.main("m-smoe")
    assert reads.take() == {"encoder.1", "encoder.3"}
    assert contents(MERGED / "m-smoe") == expected
    write_params(merge={"groups": groups, "budget": "uniform"})
    capsys.readouterr()
    merge.main("m-smoe")
    again = {"encoder.3", "decoder.1", "decoder.3"}
    assert reads.take() == (again if groups == 2 else again | {"encoder.1"})
    assert ("resuming at encoder.3: 1 of " in capsys.readouterr().out) == (groups == 2)
    assert contents(MERGED / "m-smoe") == expected
    assert not list(MERGED.glob(".*"))
    load_model(MERGED / "m-smoe")


def test_interrupted_training_goes_on_with_the_same_parameters_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(LAUNCHED, "1")

    def settle(rate: float) -> None:
        settings = {"epochs": 1, "batch_size": 8, "evaluations": 1, "learning_rate": rate}
        write_params(task={"train_limit": 80, "selection": 8}, launch={"checkpoint_minutes": 0}, finetune=settings)

    for rate, goes_on in ((1e-3, True), (2e-3, False)):
        settle(rate)
        finetune.main(Path("expected"))
        settle(1e-3)
        with monkeypatch.context() as patch:
            interrupt(patch, loop, "collate", loop.LOOK + 1)
            with pytest.raises(KeyboardInterrupt):
                finetune.main(Path("trained"))
        settle(rate)
        capsys.readouterr()
        finetune.main(Path("trained"))
        assert ("resuming after step 5 of 9" in capsys.readouterr().out) == goes_on
        assert contents(Path("trained")) == contents(Path("expected"))
        assert not list(Path().glob(".trained*"))
