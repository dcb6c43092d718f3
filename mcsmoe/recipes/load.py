"""A method by name: a recipe file of this package, changed or added to by `recipes:` in the params file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mcsmoe.architectures.exclude import excluded_layers
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.errors import ParameterError, UnknownNameError
from mcsmoe.grouping.budget import check
from mcsmoe.params import Merge, Params, Section

DIRECTORY = Path(__file__).parent


class Recipe(Section):
    """A method: what is compared, how experts are grouped, aligned and combined.

    `groups` overrides `merge.groups`; `reference` is whom the members of a group are aligned to.
    """

    similarity: str
    grouping: str
    alignment: str
    reference: str
    rule: str
    groups: float | None = None

    def budget(self, merge: Merge) -> float:
        """Groups a layer."""
        return merge.groups if self.groups is None else self.groups


def known_recipes(params: Params) -> list[str]:
    """Names of the recipes of this package and of the params file."""
    return sorted({path.stem for path in DIRECTORY.glob("*.yaml")} | params.recipes.keys())


def load_recipe(name: str, params: Params) -> Recipe:
    """The recipe `name` with its changes in `params.recipes`.

    Raises `UnknownNameError` for an unknown name, also of what the recipe is made of, and `ParameterError`
    for a recipe with a missing, surplus or ill-typed key.
    """
    if name not in known_recipes(params):
        raise UnknownNameError("method", name, known_recipes(params))
    path = DIRECTORY / f"{name}.yaml"
    values = (yaml.safe_load(path.read_text()) if path.is_file() else {}) | params.recipes.get(name, {})
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["recipes", name, *(str(part) for part in first["loc"])])
        raise ParameterError(key, _shown(first["input"]), first["msg"]) from None
    _check_names(name, recipe)
    return recipe


def _shown(value: Any) -> Any:
    return "{…}" if isinstance(value, dict) else value


def _check_names(name: str, recipe: Recipe) -> None:
    from mcsmoe.grouping.registry import GROUPERS
    from mcsmoe.merging.apply import ALIGNMENTS, REFERENCES
    from mcsmoe.merging.registry import RULES
    from mcsmoe.similarity.registry import SIMILARITIES

    known: dict[str, list[str]] = {
        "similarity": list(SIMILARITIES),
        "grouping": list(GROUPERS),
        "alignment": list(ALIGNMENTS),
        "reference": list(REFERENCES),
        "rule": list(RULES),
    }
    for key, names in known.items():
        if getattr(recipe, key) not in names:
            raise UnknownNameError(f"recipes.{name}.{key}", getattr(recipe, key), names)


def validate_recipes(params: Params, layers: Sequence[MoELayer] | None = None) -> None:
    """Check every method of the params file and, where the model's layers are known, its budget.

    Meant for the start of a run. Raises what `load_recipe`, `excluded_layers` and `budget.check` raise.
    """
    recipes = {name: load_recipe(name, params) for name in params.methods.merge}
    if layers is None:
        return
    excluded = excluded_layers(params.merge.exclude, layers)
    experts = {layer.name: layer.experts for layer in layers if layer.name not in excluded}
    for name, recipe in recipes.items():
        parameter = "merge.groups" if recipe.groups is None else f"recipes.{name}.groups"
        check(recipe.budget(params.merge), experts, params.merge.budget, parameter)
