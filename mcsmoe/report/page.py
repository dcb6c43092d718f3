"""The whole report as one self-contained HTML file, without scripts, external fonts or images."""

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from mcsmoe.params import Params
from mcsmoe.report.results import smallest_near
from mcsmoe.report.section import PageSection, render, section
from mcsmoe.report.table import Metric, Result

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "dvc")
EXECUTION_ONLY = {"threads", "launch"}


def versions() -> dict[str, str]:
    """Versions of Python (major.minor) and packages, without the suffix of a build: 2.8.0+cpu → 2.8.0."""
    python = ".".join(str(part) for part in sys.version_info[:2])
    return {"mcsmoe": version("mcsmoe"), "Python": python} | {name: version(name).split("+")[0] for name in PACKAGES}


def provenance_section(
    params: Params, calibration: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]
) -> PageSection:
    """Show parameters, data and versions; `calibration` is the provenance of the routing statistics.

    `data` has the number of examples and the fingerprint of each split.
    """
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


def report_page(task: str, results: Sequence[Result], metric: Metric, sections: Sequence[PageSection]) -> str:
    """Return the page as HTML: a summary, then the sections. `results` starts with the full model."""
    css = Markup(Path(__file__).with_suffix(".css").read_text())
    small = smallest_near(results, metric)
    full = results[0]
    page = render("page.html", css=css, task=task, metric=metric, full=full, small=small, sections=sections)
    return f"{page.rstrip()}\n"
