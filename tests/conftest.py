"""One torch thread: the models are tiny, and idle OpenMP threads starve whatever else runs."""

import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@pytest.fixture(scope="session", autouse=True)
def forked_processes() -> Iterator[None]:
    """Checkpoints are verified in forks that have nothing to import; see `tests.fresh`."""
    from mcsmoe.checkpoint import verify
    from tests import fresh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "subprocess", SimpleNamespace(run=fresh.run))
        yield
    fresh.stop()


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are verified in processes of their own, as they are for users."""
    from mcsmoe.checkpoint import verify

    monkeypatch.setattr(verify, "subprocess", subprocess)
