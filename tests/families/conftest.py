"""A small model of each family, saved."""

from pathlib import Path

import pytest

from tests.families.models import SETTINGS, small_model
from tests.families.planted import Made, save


@pytest.fixture(params=SETTINGS)
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return save(small_model(request.param), tmp_path / "stock")
