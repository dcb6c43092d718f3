"""What came out of a run of `shrink`: the result beside its source, as figures, as a model card, and as a page."""

import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor

from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.companions import own_code
from mcsmoe.checkpoint.output import json_text, write_files
from mcsmoe.errors import CheckpointError
from mcsmoe.evaluation.quality import interval
from mcsmoe.exporting.card import Card, Figure, Measured, Origin, code
from mcsmoe.exporting.write import CARD, Agreement
from mcsmoe.fields import shown_size
from mcsmoe.grouping.plan import Plan
from mcsmoe.model import Model
from mcsmoe.reading import parse_as
from mcsmoe.report.plain import facts
from mcsmoe.report.shrunk import Continuation, Estimate, KindLoss, Shrunk, shrunk_page
from mcsmoe.shrinking.job import Job
from mcsmoe.shrinking.measure import Predictions, equal_share, prompts, relative_change
from mcsmoe.tasks.score import Column, Score

PAGE = "report.html"
Bytes = Annotated[int, Field(gt=0)]


def estimate(losses: Tensor, tokens: Tensor) -> Estimate:
    """exp of the mean of `losses` over `tokens`, which are sums by row [N]: a perplexity, or a ratio of two.

    The bounds are those of a bootstrap over the rows.
    """
    columns = (np.asarray(losses.double()), np.asarray(tokens.double()))
    low, high = interval(Score(columns, _exp_mean))
    return Estimate(*(float(f"{bound:.6g}") for bound in (_exp_mean(*columns), low, high)))


def _exp_mean(losses: Column, tokens: Column) -> float:
    return math.exp(min(700.0, losses.sum() / tokens.sum()))


@dataclass(frozen=True)
class Outcome:
    """The result of a run beside its source.

    `experts` maps a layer to how many it had and keeps; `size` holds the bytes of source and result. `source` and
    `result` are perplexities, `ratio` is that of the result over that of the source, row by row the same text.
    `weights` identifies the files of the source. The other figures are those of `Shrunk`.
    """

    settings: dict[str, Any]
    model_type: str
    experts: dict[str, tuple[int, int]]
    size: tuple[Bytes, Bytes]
    source: Estimate
    result: Estimate
    ratio: Estimate
    equal_tokens: float
    by_kind: dict[str, KindLoss]
    by_block: dict[str, float]
    agreement: Agreement | None
    continuations: tuple[Continuation, ...]
    weights: str = ""

    FILE: ClassVar[str] = "shrink.json"

    @classmethod
    def of(
        cls,
        job: Job,
        weights: str,
        agreement: Agreement | None,
        full: Predictions,
        merged: Predictions,
        source: Model,
        result: Model,
    ) -> "Outcome":
        """Compare what two models make of the held-out rows of a job."""
        tokens = full.tokens
        asked = prompts(job.rows.held_out, source.family.causal)
        shown = source.tokenizer.batch_decode([row.source for row in asked])
        before = {layer.name: layer.experts for layer in source.layers}
        return cls(
            settings=job.settings,
            model_type=source.config.model_type,
            experts={name: (before[name], kept) for name, kept in result.experts.items()},
            size=(source.checkpoint.size_bytes, result.checkpoint.size_bytes),
            source=estimate(full.losses, tokens),
            result=estimate(merged.losses, tokens),
            ratio=estimate(merged.losses - full.losses, tokens),
            equal_tokens=round(equal_share(full, merged), 6),
            by_kind=_by_kind(job.rows.kinds, full, merged),
            by_block={_short(name): round(value, 6) for name, value in relative_change(full, merged).items()},
            agreement=agreement,
            continuations=tuple(map(Continuation, shown, full.texts, merged.texts)),
            weights=weights,
        )

    @property
    def tokens(self) -> int:
        """Tokens that the models were measured on."""
        return sum(kind.tokens for kind in self.by_kind.values())

    def to_json(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        return asdict(self)

    def save(self, directory: Path, card: Card, page: str) -> None:
        """Write the figures, the model card, the plan and the page into the directory of the result."""
        card.plan.save(directory)
        figures = json_text(self.to_json())
        write_files({directory / self.FILE: figures, directory / CARD: card.markdown(), directory / PAGE: page})

    @classmethod
    def load(cls, directory: Path) -> "Outcome":
        """Read the figures that `save` wrote. Raises `CheckpointError` if they are damaged."""
        path = directory / cls.FILE
        try:
            found: Outcome = parse_as(cls, path.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove {directory} and run again") from None
        return found

    def __repr__(self) -> str:
        return "\n".join(facts(self.lines()))

    def lines(self) -> list[tuple[str, str]]:
        """The figures for people, as (heading, text)."""
        before, after = self.size
        change, low, high = (100 * (each - 1) for each in (self.ratio.value, self.ratio.low, self.ratio.high))
        found = [
            ("result", f"{shown_size(after)}, {after / before:.1%} of {shown_size(before)}"),
            ("perplexity", f"{self.source.value:.4g} → {self.result.value:.4g} ({change:+.1f} %, with 95 % confidence "
             f"{low:+.1f} to {high:+.1f} %)"),
            ("next token", f"the same for {self.equal_tokens:.1%} of {self.tokens:,}"),
        ]  # fmt: skip
        if len(self.by_kind) > 1:
            kind, lost = max(self.by_kind.items(), key=lambda item: item[1].difference)
            found.append(("most lost", f"{kind}: {lost.source:.3f} → {lost.result:.3f} nats a token"))
        if self.agreement:
            name = min(self.agreement, key=self.agreement.__getitem__)
            found.append(
                (
                    "routing",
                    f"{self.agreement[name]:.1%} of the gates go to the same experts in {name}, the worst layer",
                )
            )
        for each in self.continuations:
            found += [
                ("", ""),
                ("prompt", _line(each.prompt)),
                ("source", _line(each.source)),
                ("result", _line(each.result)),
            ]
        return found

    def page(self, plan: Plan, statistics: RoutingStatistics) -> str:
        """The page of the run as HTML."""
        settings = self.settings
        return shrunk_page(
            Shrunk(
                source=settings["source"],
                recipe=settings["recipe"],
                format=settings["form"],
                bytes_before=self.size[0],
                bytes_after=self.size[1],
                perplexity_before=self.source,
                perplexity_after=self.result,
                equal_tokens=self.equal_tokens,
                by_kind=self.by_kind,
                by_block=self.by_block,
                agreement=self.agreement,
                continuations=self.continuations,
                plan=plan,
                frequency={name: layer.frequency.tolist() for name, layer in statistics.layers.items()},
                settings={name: settings[name] for name in ("text", "samples", "experts", "budget", "seed")},
            )
        )

    def card(self, job: Job, plan: Plan, statistics: RoutingStatistics, result: Model) -> Card:
        """The model card of the result."""
        request = job.request
        text = request.text or "a mix of texts from the hub"
        (before, after), counts = self.size, zip(*self.experts.values(), strict=True)
        had, kept = map(sum, counts)
        figures = [
            Figure("perplexity", self.source.value, self.result.value, worse=self.ratio.low > 1),
            Figure("bytes", before, after, worse=after > before),
            Figure("experts", had, kept, worse=False),
        ]
        hub = None if Path(request.source).is_dir() else request.source
        groups = {
            name: [[group.dominant, *(e for e in group.members if e != group.dominant)] for group in layer.groups]
            for name, layer in plan.layers.items()
        }
        calibrated = int(max(layer.tokens for layer in statistics.layers.values()))
        measure = ["mcsmoe", "evaluate", str(request.output), "--samples", str(request.samples)]
        return Card(
            family=result.family,
            model_type=self.model_type,
            experts=max(before for before, _ in self.experts.values()),
            kept=[after for _, after in self.experts.values()],
            path=str(request.output),
            remote_code=bool(own_code(result.checkpoint.config)),
            origin=Origin(request.source, hub),
            calibration=f"{calibrated:,} tokens of {code(text)}",
            plan=plan,
            recipe=job.recipe,
            groups=groups,
            router=None if request.form == "mapped" else "dominant",
            agreement=self.agreement,
            measured=Measured(figures, f"{self.tokens:,} other tokens of {code(text)}", itself=True),
            command=shlex.join([*measure, "--text", request.text] if request.text else measure),
            continuations=self.continuations,
        )


def _by_kind(kinds: list[str], full: Predictions, merged: Predictions) -> dict[str, KindLoss]:
    found = {}
    for kind in dict.fromkeys(kinds):
        mine = [i for i, each in enumerate(kinds) if each == kind]
        count = int(full.tokens[mine].sum())
        one, other = (round(float(each.losses[mine].sum()) / count, 6) for each in (full, merged))
        found[kind] = KindLoss(one, other, count)
    return found


def _short(block: str) -> str:
    """ "model.layers.3" → "3"; "encoder.block.3" → "encoder 3"."""
    stack, _, index = block.rpartition(".")
    return f"{stack.split('.')[0]} {index}" if stack.startswith(("encoder", "decoder")) else index


def _line(text: str, most: int = 100) -> str:
    """A text on one line, cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"
