"""Places where stages have run on a small random model; tests work in copies."""

import shutil
from pathlib import Path

import pytest

from stages import collect, merge, permute
from tests.stages.workplace import enter


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a model, before any other stage."""
    directory = tmp_path_factory.mktemp("finetuned")
    with pytest.MonkeyPatch.context() as patch:
        enter(directory, patch)
    return directory


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, finetuned: Path) -> Path:
    """A place where permute, collect and merge have run."""
    directory = tmp_path_factory.mktemp("finished") / "place"
    shutil.copytree(finetuned, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        permute.main()
        collect.main()
        for method in ("none", "m-smoe", "one"):
            merge.main(method)
    return directory


@pytest.fixture
def place(finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finetuned, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def merged(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"
