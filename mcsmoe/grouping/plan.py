"""The plan of a merge, `plan.json`: which experts become one. It holds no weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsmoe.checkpoint.output import write_files
from mcsmoe.errors import PlanError

PLAN = "plan.json"


@dataclass(frozen=True)
class Group:
    """Experts that become one, such as dominant 5 of members (2, 5, 7).

    `members` are in ascending order and include `dominant`; `weights` are their importances, by default their
    activation frequencies ν.
    """

    dominant: int
    members: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class LayerPlan:
    """The groups of one layer, in the order of the merged experts; `merged` is False for an untouched layer.

    The router keeps all its rows, and an index map sends their tokens to the merged experts. `dropped` experts are in
    no group: the router gives them no probability.
    """

    groups: tuple[Group, ...]
    merged: bool
    dropped: tuple[int, ...] = ()

    @property
    def expert_map(self) -> Tensor:
        """Index map [E] int64: the merged expert of each expert, −1 for a dropped one."""
        experts = sum(len(group.members) for group in self.groups) + len(self.dropped)
        labels = torch.full((experts,), -1)
        for k, group in enumerate(self.groups):
            labels[list(group.members)] = k
        return labels

    @classmethod
    def untouched(cls, importance: Tensor) -> "LayerPlan":
        """Make the plan of a layer left as it is: each expert in a group of its own. `importance` is [E]."""
        return cls(tuple(Group(e, (e,), (float(weight),)) for e, weight in enumerate(importance)), merged=False)


@dataclass(frozen=True, repr=False)
class Plan:
    """The whole plan of a merge: the groups of each layer, and how members are aligned and combined.

    With `keep`, nothing is merged yet: experts are dropped one after another during distillation until `keep` are
    left over all layers outside `excluded`. Layers in `excluded` stay as they are in every stage, also in compression.
    """

    method: str
    rule: str
    alignment: str
    reference: str
    layers: Mapping[str, LayerPlan]
    keep: int | None = None
    excluded: tuple[str, ...] = ()

    def __repr__(self) -> str:
        before = sum(len(layer.expert_map) for layer in self.layers.values())
        return f"Plan({self.method}: {len(self.layers)} layers, {sum(self.experts.values())} of {before} experts)"

    @property
    def experts(self) -> dict[str, int]:
        """Number K of merged experts by layer."""
        return {name: len(layer.groups) for name, layer in self.layers.items()}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)

    def save(self, directory: Path) -> None:
        """Write `plan.json` with one line per group, so that `diff` can compare two plans."""
        write_files({directory / PLAN: _one_line_a_group(self.to_json()) + "\n"})

    @classmethod
    def load(cls, source: Path | str) -> "Plan":
        """Read what `save` wrote: a directory with plan.json, or a file. Raises `PlanError` if it is not a plan."""
        source = Path(source)
        path = source if source.is_file() else source / PLAN
        try:
            values = json.loads(path.read_text())
            layers = {
                name: LayerPlan(
                    tuple(Group(g["dominant"], tuple(g["members"]), tuple(g["weights"])) for g in layer["groups"]),
                    layer["merged"],
                    tuple(layer["dropped"]),
                )
                for name, layer in values.pop("layers").items()
            }
            return cls(**values | {"excluded": tuple(values["excluded"])}, layers=layers)
        except (FileNotFoundError, NotADirectoryError):
            raise PlanError(f"{source}: no {PLAN}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path} is not a plan ({error})") from None


def _one_line_a_group(values: dict[str, Any]) -> str:
    head = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items() if key != "layers"]
    layers = []
    for name, layer in values["layers"].items():
        groups = ",\n".join(f"        {json.dumps(group)}" for group in layer["groups"])
        rest = [f"      {json.dumps(key)}: {json.dumps(layer[key])}" for key in ("merged", "dropped")]
        body = ",\n".join([*rest, f'      "groups": [\n{groups}\n      ]'])
        layers.append(f"    {json.dumps(name)}: {{\n{body}\n    }}")
    inner = ",\n".join(layers)
    return "{\n" + ",\n".join([*head, f'  "layers": {{\n{inner}\n  }}']) + "\n}"
