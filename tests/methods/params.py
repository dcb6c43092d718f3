"""The embedded default as plain values, with a budget that tests can count on."""

from pathlib import Path
from typing import Any

import yaml

TINY = Path(__file__).parent.parent.parent / "presets" / "tiny.yaml"


def small_params() -> dict[str, Any]:
    """`presets/tiny.yaml` with two groups a layer on average."""
    values: dict[str, Any] = yaml.safe_load(TINY.read_text())
    merge = {"groups": 2, "budget": "global", "capacity": None, "exclude": {"encoder": [], "decoder": []}}
    return values | {"merge": merge, "recipes": {}}
