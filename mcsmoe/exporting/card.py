"""The model card beside a merged checkpoint: its source, its making, its cost, and what got worse."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mcsmoe.families import Family
from mcsmoe.grouping.plan import Plan
from mcsmoe.methods.recipe import Recipe
from mcsmoe.report.shrunk import Continuation

Groups = Mapping[str, Sequence[Sequence[int]]]
"""Layer → groups of experts, each with its dominant expert first."""

TAGS = ["mixture-of-experts", "expert-merging", "mc-smoe", "arxiv:2310.01334"]


@dataclass(frozen=True)
class Origin:
    """What a merged model was made of.

    `name` is a directory or a hub id (None: random weights), `hub` the id to link to, and `training` says how it was
    trained before merging, such as "fine-tuned on `sst2`"; None if it was taken as it is.
    """

    name: str | None
    hub: str | None = None
    revision: str | None = None
    training: str | None = None


@dataclass(frozen=True)
class Figure:
    """One measured number of the full and of the merged model, and whether the merged model's is worse."""

    name: str
    full: float
    merged: float
    worse: bool


@dataclass(frozen=True)
class Measured:
    """Figures, `on` what they were measured, and whether they are those of this very checkpoint.

    If they are not, they are those of the merged model with an index map that it was exported from.
    """

    figures: Sequence[Figure]
    on: str
    itself: bool


@dataclass(frozen=True)
class Card:
    """Everything that a card says.

    `experts` is how many a layer had, `kept` how many the layers have. `router` names the source of the router rows;
    None if the checkpoint keeps all rows and an index map. `calibration` says on which tokens experts were compared,
    `recipe` how. `agreement` is the share of each layer's gates that go to the same merged experts as by the full
    router; None if it was not measured. `command` is what measures the checkpoint.
    """

    family: Family
    model_type: str
    experts: int
    kept: Sequence[int]
    path: str
    remote_code: bool
    origin: Origin
    calibration: str
    plan: Plan
    recipe: Recipe | None
    groups: Groups
    router: str | None
    agreement: Mapping[str, float] | None
    measured: Measured | None
    command: str
    continuations: Sequence[Continuation] = ()

    @property
    def range(self) -> str:
        """How many experts the layers have: "4" or "3 to 9"."""
        least, most = min(self.kept), max(self.kept)
        return str(least) if least == most else f"{least} to {most}"

    @property
    def auto_class(self) -> str:
        """Name of the transformers class that loads the checkpoint."""
        return self.family.auto_class

    @property
    def front(self) -> str:
        """Front matter as YAML; without `base_model` for a local directory, to which a hub cannot link."""
        base = {} if self.origin.hub is None else {"base_model": self.origin.hub}
        values: dict[str, Any] = {"library_name": "transformers"} | base | {"tags": TAGS}
        return yaml.safe_dump(values, sort_keys=False).strip()

    def markdown(self) -> str:
        """The card as Markdown, with front matter for model hubs."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= {"percent": lambda share: f"{share:.1%}", "spaced": lambda name: name.replace("_", " ")}
        environment.filters |= {"quoted": _quoted, "code": code, "fenced": _fenced, "plain": _plain}
        return environment.get_template("card.md").render(card=self, plan=self.plan, measured=self.measured)


def _plain(text: str) -> str:
    """Text on one line in which nothing is Markdown or HTML: "<b>" → "\\<b\\>"."""
    return re.sub(r"([\\`*_\[\]<>&|#!~$=]|^[-+])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text on one line as code, in more backticks than it holds; a bar would end the cell of a table."""
    flat = " ".join(text.split()).replace("|", "¦")
    ticks = "`" * (_backticks(flat) + 1)
    gap = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{gap}{flat}{gap}{ticks}"


def _fenced(text: str) -> str:
    """Text as a block of code, which ends at more backticks than it holds."""
    fence = "`" * max(3, _backticks(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def _backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _quoted(text: str) -> str:
    """Text as a quote in which nothing is Markdown or HTML: it cannot end the quote, start a heading or load images."""
    return "\n".join(f"> {_plain(line)}" for line in text.splitlines() or [""])
