"""Section: what the numbers come from. Nothing in it changes when the same run is made again.

A file cannot name the commit that holds it; the section says how git finds that commit from the file.
"""

import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from mcsmoe.params import Params
from mcsmoe.report.section import Section, section

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "dvc")
EXECUTION_ONLY = {"threads", "launch"}


def versions() -> dict[str, str]:
    """Python's minor version and packages', without what tells builds of one version apart (`+cpu`)."""
    python = ".".join(str(part) for part in sys.version_info[:2])
    return {"mcsmoe": version("mcsmoe"), "Python": python} | {name: version(name).split("+")[0] for name in PACKAGES}


def provenance_section(
    params: Params, calibration: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]
) -> Section:
    """`calibration` is the provenance of the routing statistics, `data` size and fingerprint of each split."""
    values = params.model_dump(exclude=EXECUTION_ONLY)
    return section(
        "Provenance",
        "provenance.html",
        params=params,
        calibration=calibration,
        data=data,
        versions=versions(),
        settings=yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100),
    )
