"""A method by name: a recipe file of this package, changed or added to by `recipes:` in the params file."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mcsmoe.errors import ParameterError, UnknownNameError
from mcsmoe.params import Merge, Params, Section

DIRECTORY = Path(__file__).parent


class Recipe(Section):
    """A method: what is compared, how experts are grouped, aligned and combined, what the router does.

    `groups` and `budget` override those of `merge`; `reference` is whom the members of a group are aligned
    to. With `progressive`, experts are dropped during distillation instead of being merged before it.
    """

    similarity: str
    grouping: str
    alignment: str
    reference: str
    rule: str
    router: str = "map"
    progressive: bool = False
    groups: float | None = None
    budget: str | None = None

    def with_budget(self, merge: Merge) -> Merge:
        """The section `merge` with this recipe's own budget, where it has one; no capacity limits that."""
        own = {key: value for key in ("groups", "budget") if (value := getattr(self, key)) is not None}
        return merge.model_copy(update=own | ({"capacity": None} if "groups" in own else {}))


def known_recipes() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load_recipe(name: str, params: Params) -> Recipe:
    """The recipe `name` with its changes in `params.recipes`.

    Raises `UnknownNameError` for an unknown name, also of what the recipe is made of, and `ParameterError`
    for a recipe with a missing, surplus or ill-typed key.
    """
    try:
        recipe = Recipe.model_validate(_read(name) | params.recipes.get(name, {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["recipes", name, *(str(part) for part in first["loc"])])
        raise ParameterError(key, _shown(first["input"]), first["msg"]) from None
    _check_names(name, recipe)
    return recipe


def _read(name: str) -> dict[str, Any]:
    """The values of a recipe file; `like` names another one that it changes."""
    if name not in known_recipes():
        raise UnknownNameError("method", name, known_recipes())
    values: dict[str, Any] = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text())
    return _read(values.pop("like")) | values if "like" in values else values


def _shown(value: Any) -> Any:
    return "{…}" if isinstance(value, dict) else value


def _check_names(name: str, recipe: Recipe) -> None:
    from mcsmoe.grouping.budget import BUDGETS
    from mcsmoe.grouping.registry import GROUPERS
    from mcsmoe.merging.align import ALIGNMENTS, REFERENCES
    from mcsmoe.merging.registry import RULES
    from mcsmoe.router.registry import POLICIES
    from mcsmoe.similarity.registry import REVERSE, SIMILARITIES

    known: dict[str, list[str]] = {
        "similarity": list(SIMILARITIES),
        "grouping": list(GROUPERS),
        "alignment": list(ALIGNMENTS),
        "reference": list(REFERENCES),
        "rule": list(RULES),
        "router": list(POLICIES),
    }
    values = recipe.model_dump() | {"similarity": recipe.similarity.removeprefix(REVERSE)}
    if recipe.budget is not None:
        known["budget"] = list(BUDGETS)
    for key, names in known.items():
        if values[key] not in names:
            raise UnknownNameError(f"recipes.{name}.{key}", values[key], names)
