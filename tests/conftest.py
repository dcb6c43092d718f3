"""One torch thread: the models are tiny, and idle OpenMP threads starve whatever else runs."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are verified by new interpreters, as they are where there is no warm process."""
    from mcsmoe.checkpoint import fresh

    monkeypatch.setattr(fresh, "start", fresh.interpreter)
