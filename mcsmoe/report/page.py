"""A page is one self-contained HTML file, without scripts, external fonts or images; the page that compares methods."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from mcsmoe.params import Params
from mcsmoe.report.results import smallest_near
from mcsmoe.report.section import PageSection, render, section
from mcsmoe.report.table import Metric, Result, operations, percent, signed, size, title

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


@dataclass(frozen=True)
class Tile:
    """One number at the top of a page: what it is, the number as shown, and a remark below it."""

    label: str
    value: str
    note: str


def html_page(
    name: str, kicker: str, heading: str, lead: str, tiles: Sequence[Tile], sections: Sequence[PageSection]
) -> str:
    """Return a page: `heading` below the small `kicker`, `lead`, tiles, links to the sections, and these.

    `name` is what a browser shows in its tab.
    """
    css = Markup(Path(__file__).with_suffix(".css").read_text())
    head = {"css": css, "title": name, "kicker": kicker, "heading": heading, "lead": lead, "tiles": tiles}
    return f"{render('page.html', **head, sections=sections).rstrip()}\n"


def report_page(task: str, results: Sequence[Result], metric: Metric, sections: Sequence[PageSection]) -> str:
    """Return the page that compares methods. `results` starts with the full model."""
    full, small = results[0], smallest_near(results, metric)
    before, after, name = full.scores, small.scores, title(metric.name)
    score = f"{after[metric.name]:.4f}"
    share = percent(after["bytes"] / before["bytes"])
    tiles = [
        Tile("full model", f"{before[metric.name]:.4f}", f"{name}, {size(before['bytes'])}"),
        Tile(f"{small.step} · {small.method}", score, f"{signed(after[metric.name] - before[metric.name])} to full"),
        Tile("its size", share, f"{size(after['bytes'])} of safetensors"),
        Tile(
            "its arithmetic",
            percent(after["flops_per_token"] / before["flops_per_token"]),
            f"{operations(after['flops_per_token'])} FLOPs a token",
        ),
    ]
    lead = Markup(
        "All models were measured on the test split of task <b>{}</b>. The figures below are those of the smallest "
        "model whose 95 % interval overlaps that of the full one, or else of the one that scores best."
    ).format(task)
    heading = f"{share} of the bytes, {name} {score} instead of {before[metric.name]:.4f}"
    return html_page(task, "merge, then compress", heading, lead, tiles, sections)
