"""One torch thread: the models are tiny, and idle OpenMP threads starve whatever else runs."""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@pytest.fixture(scope="session", autouse=True)
def forked_processes() -> Iterator[None]:
    """Checkpoints are verified in forks that have nothing to import; see `tests.forks`."""
    from mcsmoe.checkpoint import fresh
    from tests import forks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "start", forks.fork)
        yield
    forks.stop()


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are verified in processes of their own, as they are for users."""
    from mcsmoe.checkpoint import fresh

    monkeypatch.setattr(fresh, "start", fresh.interpreter)
