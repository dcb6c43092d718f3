"""The place of `tests.shrinking.place`, made once and copied for each test."""

from pathlib import Path

import pytest

from tests.shrinking.place import enter, fill


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shrinking")
    fill(directory / "place")
    return directory / "place"


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(made, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
