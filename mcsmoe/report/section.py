"""A part of the report: a file of this package with the markup, filled with what its neighbour computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mcsmoe.report.table import percent, signed, title

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"percent": percent, "signed": signed, "title": title}


@dataclass(frozen=True)
class Section:
    """What stands under one heading; `anchor` is its id in the page."""

    anchor: str
    heading: str
    body: Markup


def render(template: str, **values: Any) -> Markup:
    """The markup file `template` with `values`, which are escaped unless they are markup themselves."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


def section(heading: str, template: str, **values: Any) -> Section:
    """The section that `template` draws; its anchor is the template's name."""
    return Section(Path(template).stem.replace("_", "-"), heading, render(template, **values))
