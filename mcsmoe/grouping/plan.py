"""The plan of a merge, `plan.json`: which experts become one. It holds no weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from mcsmoe.checkpoint.output import write_files
from mcsmoe.errors import PlanError
from mcsmoe.reading import parse_as

PLAN = "plan.json"
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Group:
    """Experts that become one, such as dominant 5 of members (2, 5, 7).

    `members` are in ascending order and include `dominant`; `weights` are their importances, by default their
    activation frequencies ν.
    """

    __pydantic_config__ = STRICT

    dominant: int
    members: tuple[int, ...]
    weights: tuple[float, ...]

    def fault(self) -> str | None:
        """What cannot be in a group; None if all is well."""
        if self.dominant not in self.members:
            return f"expert {self.dominant} is dominant in a group that it is no member of"
        if list(self.members) != sorted(set(self.members)):
            return f"members of the group of expert {self.dominant} are not in ascending order"
        if len(self.weights) != len(self.members):
            return f"the group of expert {self.dominant} needs a weight for each member"
        return None


@dataclass(frozen=True)
class LayerPlan:
    """The groups of one layer, in the order of the merged experts; `merged` is False for an untouched layer.

    The router keeps all its rows, and an index map sends their tokens to the merged experts. `dropped` experts are in
    no group: the router gives them no probability.
    """

    __pydantic_config__ = STRICT

    groups: tuple[Group, ...]
    merged: bool
    dropped: tuple[int, ...] = ()

    def fault(self) -> str | None:
        """What cannot be in a layer; None if every expert is in one group, or dropped."""
        experts = sorted([*self.dropped, *(e for group in self.groups for e in group.members)])
        if not self.groups or experts != list(range(len(experts))):
            return "each expert must be in one group, or be dropped; none can be left out, or be there twice"
        if not self.merged and (self.dropped or len(self.groups) < len(experts)):
            return "it is not merged, but holds groups of several experts, or dropped ones"
        if not math.isfinite(sum(abs(weight) for group in self.groups for weight in group.weights)):
            return "the weights have no finite sum"
        return next(filter(None, (group.fault() for group in self.groups)), None)

    @property
    def expert_map(self) -> Tensor:
        """Index map [E] int64: the merged expert of each expert, −1 for a dropped one."""
        experts = sum(len(group.members) for group in self.groups) + len(self.dropped)
        labels = [-1] * experts
        for k, group in enumerate(self.groups):
            for e in group.members:
                labels[e] = k
        return torch.tensor(labels)

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

    __pydantic_config__ = STRICT

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
            plan: Plan = parse_as(cls, path.read_bytes())
            plan.check()
        except (FileNotFoundError, NotADirectoryError):
            raise PlanError(f"{source}: no {PLAN}") from None
        except (ValueError, PlanError) as error:
            raise PlanError(f"{path} is not a plan ({error})") from None
        return plan

    def check(self) -> None:
        """Raise `PlanError` for a plan that cannot be: an expert in two groups, a dominant one that is no member."""
        for name, layer in self.layers.items():
            if wrong := layer.fault():
                raise PlanError(f"{name}: {wrong}")
        if unknown := set(self.excluded) - self.layers.keys():
            raise PlanError(f"excluded: no layer is called {min(unknown)!r}")
        experts = sum(len(layer.expert_map) for layer in self.layers.values())
        if self.keep is not None and not 1 <= self.keep <= experts:
            raise PlanError(f"keep = {self.keep}: the layers have {experts} experts")

    def check_model(self, experts: Mapping[str, int]) -> None:
        """Raise `PlanError` unless this is a plan for a model with so many `experts` in each sparse layer."""
        self.check()
        planned = {name: len(layer.expert_map) for name, layer in self.layers.items()}
        for name in [*experts, *planned]:
            ours, theirs = planned.get(name, "no"), experts.get(name, "no")
            if ours != theirs:
                raise PlanError(f"the plan is for another model: {name} has {ours} experts, in the model {theirs}")


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
