"""A section of the report: an HTML template of this package, filled by the Python file beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mcsmoe.report.table import operations, percent, signed, size, title

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"operations": operations, "percent": percent, "signed": signed, "size": size, "title": title}


@dataclass(frozen=True)
class PageSection:
    """A heading and the HTML below it; `anchor` is the section's id on the page."""

    anchor: str
    heading: str
    body: Markup


def render(template: str, **values: Any) -> Markup:
    """Fill the file `template` with `values`, which are escaped unless they are `Markup`."""
    return Markup(ENVIRONMENT.get_template(template).render(values))


def section(heading: str, template: str, **values: Any) -> PageSection:
    """Return the section that `template` renders; its anchor is the template's name: stable_rank.html → stable-rank."""
    return PageSection(Path(template).stem.replace("_", "-"), heading, render(template, **values))
