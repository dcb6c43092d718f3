"""The page of one model that was made smaller: what was merged with what, and where quality went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from mcsmoe.grouping.plan import Plan
from mcsmoe.report.figure import FAINT, PALETTE, STYLE, inline, thinned
from mcsmoe.report.page import Tile, html_page
from mcsmoe.report.section import PageSection, section
from mcsmoe.report.table import percent, size
from mcsmoe.report.use import groupings, use_rows, use_section


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class KindLoss:
    """Cross-entropy of one kind of text in nats per token, of the source and of the result, over `tokens` tokens."""

    source: float
    result: float
    tokens: int

    @property
    def difference(self) -> float:
        """How much worse the result is, in nats per token."""
        return self.result - self.source


@dataclass(frozen=True)
class Continuation:
    """What both models write after the same prompt."""

    prompt: str
    source: str
    result: str


@dataclass(frozen=True)
class Shrunk:
    """A model before and after merging; numbers without a unit are shares in [0, 1].

    `equal_tokens`: share of positions where both models find the same next token most likely.
    `by_block`: ‖h_result − h_source‖ / ‖h_source‖ of the hidden states h after each block, on the same text.
    `agreement`: share of the gates that the router of a layer gives to the same merged experts as the source's; None
    where the result keeps the source's routers. `settings` are shown as they are.
    """

    source: str
    recipe: str
    format: str
    bytes_before: int
    bytes_after: int
    perplexity_before: Estimate
    perplexity_after: Estimate
    equal_tokens: float
    by_kind: Mapping[str, KindLoss]
    by_block: Mapping[str, float]
    agreement: Mapping[str, float] | None
    continuations: Sequence[Continuation]
    plan: Plan
    frequency: Mapping[str, Sequence[float]]  # [E] by layer, before merging
    settings: Mapping[str, Any]

    @property
    def experts(self) -> tuple[int, int]:
        """Experts kept and experts before: of a layer if all layers are alike, else of all sparse layers together."""
        counts = [(kept, len(self.frequency[name])) for name, kept in self.plan.experts.items()]
        kept, before = np.array(counts).sum(0).tolist()
        return counts[0] if len(set(counts)) == 1 else (kept, before)


def shrunk_page(shrunk: Shrunk) -> str:
    """Return the page as HTML: a summary, the groups, where quality went, texts of both models, and the settings."""
    before, after = shrunk.perplexity_before, shrunk.perplexity_after
    kept, experts = shrunk.experts
    share = shrunk.bytes_after / shrunk.bytes_before
    lead = Markup(
        "The recipe <b>{}</b> merged the experts, and the result was saved in the format <b>{}</b>. It was not trained "
        "afterwards. Perplexity was measured on text that was not used for merging, and lower is better."
    ).format(shrunk.recipe, shrunk.format)
    tiles = [
        Tile("perplexity of the source", f"{before.value:.2f}", f"95 % interval {before.low:.2f} to {before.high:.2f}"),
        Tile("perplexity of the result", f"{after.value:.2f}", f"95 % interval {after.low:.2f} to {after.high:.2f}"),
        Tile("size", percent(share), f"{size(shrunk.bytes_after)} instead of {size(shrunk.bytes_before)}"),
        Tile("equal next tokens", percent(shrunk.equal_tokens), "both models prefer the same token"),
    ]
    use = {shrunk.recipe: use_rows(shrunk.plan, shrunk.frequency)}
    sections = [quality_section(shrunk), use_section(groupings(use))]
    if shrunk.continuations:
        sections.append(section("Texts side by side", "continuations.html", continuations=shrunk.continuations))
    settings = {"source": shrunk.source, "recipe": shrunk.recipe, "format": shrunk.format, **shrunk.settings}
    sections.append(section("Settings", "settings.html", settings=settings))
    heading = f"{shrunk.source}: {kept} of {experts} experts, {100 * share:.0f} % of the bytes"
    return html_page(shrunk.source, "merged experts", heading, lead, tiles, sections)


def quality_section(shrunk: Shrunk) -> PageSection:
    """Show the loss by kind of text, the change of hidden states by block, and gates that go to other experts."""
    kinds = sorted(shrunk.by_kind.items(), key=lambda kind: -kind[1].difference)
    pictures = []
    if shrunk.by_block:
        figure = line(shrunk.by_block, "Relative change of the hidden states", "% of their norm", PALETTE[0])
        pictures.append(inline(figure, "blocks", "relative change of the hidden states after each block"))
    moved = {name: 1 - share for name, share in (shrunk.agreement or {}).items()}
    if moved:
        figure = line(moved, "Gates that go to other experts", "% of a layer's gates", PALETTE[1])
        pictures.append(inline(figure, "moved", "share of the gates that go to other experts in each layer"))
    return section(
        "Where quality went",
        "quality.html",
        kinds=kinds,
        pictures=pictures,
        changed=_largest(shrunk.by_block),
        moved=_largest(moved),
    )


def line(values: Mapping[str, float], title: str, unit: str, colour: str) -> Figure:
    """Draw shares by block or layer as a line, in percent; `unit` says of what."""
    heights = [round(100 * value, 2) for value in values.values()]  # the same bytes on another CPU
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 2.4))
        axes = figure.add_subplot()
        axes.plot(heights, color=colour, linewidth=1.6, marker="o", markersize=3)
        axes.fill_between(range(len(heights)), heights, color=colour, alpha=0.12, linewidth=0)
        thinned(axes.xaxis, list(values), 4)
        axes.tick_params(axis="x", color=FAINT)
        axes.set_title(title, pad=8)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        axes.grid(axis="y", linewidth=0.8)
    return figure


def _largest(values: Mapping[str, float]) -> tuple[str, float] | None:
    return max(values.items(), key=lambda item: item[1], default=None)
