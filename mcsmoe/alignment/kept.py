"""What matching found, kept on disk until the checkpoint that needs it is written: it takes the longest."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.alignment.matching import Match
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.checkpoint.atomic import write_json


@dataclass(frozen=True)
class LayerMatch:
    """How the experts of a layer match its `reference`."""

    reference: int
    matches: Mapping[int, Match]

    @property
    def orders(self) -> dict[int, Tensor]:
        """The new order [f] of each expert's hidden neurons."""
        return {e: match.perm for e, match in self.matches.items()}

    @property
    def summary(self) -> dict[str, float]:
        """The reference, and the mean normalised objective before and after."""
        matches, count = self.matches.values(), max(len(self.matches), 1)
        return {
            "reference": self.reference,
            "before": round(sum(match.before for match in matches) / count, 6),
            "after": round(sum(match.after for match in matches) / count, 6),
        }


class KeptMatches:
    """The matches of each layer: found when they are first asked for, read from `directory` from then on."""

    def __init__(self, directory: Path, find: Callable[[MoELayer], LayerMatch]) -> None:
        self._directory, self._find = directory, find

    def __call__(self, layer: MoELayer) -> LayerMatch:
        """The matches of `layer`."""
        path = self._directory / f"{layer.name}.json"
        if not path.is_file():
            found = self._find(layer)
            rows = {e: {**vars(match), "perm": match.perm.tolist()} for e, match in found.matches.items()}
            write_json(path, {"reference": found.reference, "matches": rows})
        values = json.loads(path.read_text())
        return LayerMatch(values["reference"], {int(e): _match(**row) for e, row in values["matches"].items()})


def _match(perm: list[int], before: float, after: float) -> Match:
    return Match(torch.tensor(perm), before, after)
