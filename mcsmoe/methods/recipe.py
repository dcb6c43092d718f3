"""Recipes by name: read from files, overridden by `recipes:` in the params file, and checked before work begins."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcsmoe.errors import ParameterError, UnknownNameError
from mcsmoe.families import MoELayer, excluded_layers
from mcsmoe.fields import Number, Section
from mcsmoe.grouping.budget import BUDGETS, check
from mcsmoe.grouping.group import GROUPERS, check_capacity
from mcsmoe.grouping.importance import IMPORTANCES
from mcsmoe.grouping.policies import POLICIES
from mcsmoe.merging.apply import ALIGNMENTS, REFERENCES, looks
from mcsmoe.merging.rules import RULES
from mcsmoe.params import Merge, Params
from mcsmoe.reading import parse_yaml
from mcsmoe.registry import Registry
from mcsmoe.similarity.evidence import REVERSE, SIMILARITIES, needs

DIRECTORIES = (Path("recipes"), Path(__file__).parent.parent / "recipes")
"""Directories of recipes: the user's own come first, and hide those of this package with the same name."""


class Recipe(Section):
    """A method: what is compared, how experts are grouped, aligned and combined, and what the router does.

    `reference` is the member that the others of a group are aligned to. `importance` decides which experts are
    dominant, and how much each member weighs. `groups` and `budget` override those of the section `merge`. With
    `progressive`, experts are dropped during distillation instead of being merged before it.
    """

    similarity: str
    grouping: str
    alignment: str
    reference: str
    rule: str
    importance: str = "frequency"
    router: str = "map"
    progressive: bool = False
    groups: Number | None = None
    budget: str | None = None

    def with_budget(self, merge: Merge) -> Merge:
        """The section `merge` with this recipe's own budget, if any; a recipe with its own `groups` has no capacity."""
        own = {key: value for key in ("groups", "budget") if (value := getattr(self, key)) is not None}
        return merge.model_copy(update=own | ({"capacity": None} if "groups" in own else {}))

    @property
    def looks(self) -> bool:
        """Whether merging uses calibration tokens, for which the model must run over the sample."""
        return looks(self.rule, self.alignment)

    @property
    def needs(self) -> dict[str, str]:
        """Part of the recipe → the entry of `collect.also` it requires: `"rule 'fisher'"` → `"gradients"`."""
        found = {
            f"similarity {self.similarity!r}": needs(self.similarity),
            f"rule {self.rule!r}": RULES.fact(self.rule, "needs"),
            f"importance {self.importance!r}": IMPORTANCES.fact(self.importance, "needs"),
        }
        return {what: entry for what, entry in found.items() if entry is not None}

    @property
    def also(self) -> list[str]:
        """The entries of `collect.also` that the recipe requires, sorted."""
        return sorted(set(self.needs.values()))


def known_recipes() -> list[str]:
    """Names of the recipes in `recipes/` of the working directory and in this package."""
    return sorted({path.stem for directory in DIRECTORIES for path in directory.glob("[!.+-]*.yaml")})


def load_recipe(name: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """Read the recipe `name` and apply those of the `overrides`, which are by recipe and key, that are for it.

    Raises `UnknownNameError` for an unknown recipe or part of a recipe, and `ParameterError` for a file that cannot be
    read, for recipes that are like each other in a circle, and for a key that is missing, unknown or of the wrong type.
    """
    values, changes = _read(name), dict((overrides or {}).get(name, {}))
    recipe = Recipe.parse(values | changes, None if changes else str(_file(name)), f"recipes.{name}")
    _check_names(name, recipe)
    return recipe


def _file(name: str) -> Path:
    if name not in known_recipes():
        raise UnknownNameError("method", name, known_recipes())
    return next(file for directory in DIRECTORIES if (file := directory / f"{name}.yaml").is_file())


def _read(name: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a recipe file, over those of the recipe that `like` names; `before` are like this one."""
    file = _file(name)
    try:
        values = parse_yaml(file.read_bytes())
    except ValueError as error:
        raise ParameterError("recipe", name, str(error), str(file)) from None
    if not isinstance(values, dict) or not isinstance(like := values.pop("like", ""), str):
        raise ParameterError("recipe", name, "must be `key: value` lines; `like` names another recipe", str(file))
    if like in (*before, name):
        chain = " → ".join([*before, name, like])
        raise ParameterError(f"recipes.{name}.like", like, f"no recipe can be like itself: {chain}", str(file))
    return _read(like, (*before, name)) | values if like else values


def _check_names(name: str, recipe: Recipe) -> None:
    known: dict[str, list[str]] = {
        "similarity": list(SIMILARITIES),
        "grouping": list(GROUPERS),
        "alignment": list(ALIGNMENTS),
        "reference": list(REFERENCES),
        "rule": list(RULES),
        "importance": list(IMPORTANCES),
        "router": list(POLICIES),
    }
    values = recipe.model_dump() | {"similarity": recipe.similarity.removeprefix(REVERSE)}
    if recipe.budget is not None:
        known["budget"] = list(BUDGETS)
    for key, names in known.items():
        if values[key] not in names:
            raise UnknownNameError(f"recipes.{name}.{key}", values[key], names)


def parts(recipe: Recipe) -> list[tuple[Registry[Any], str]]:
    """The parts of a recipe: (registry, name) of each, such as (RULES, "fisher")."""
    found: list[tuple[Registry[Any], str]] = [
        (SIMILARITIES, recipe.similarity.removeprefix(REVERSE)),
        (IMPORTANCES, recipe.importance),
        (GROUPERS, recipe.grouping),
        (ALIGNMENTS, recipe.alignment),
        (REFERENCES, recipe.reference),
        (RULES, recipe.rule),
        (POLICIES, recipe.router),
    ]
    return found if recipe.budget is None else [*found, (BUDGETS, recipe.budget)]


def validate_recipes(params: Params, layers: Sequence[MoELayer] | None = None) -> None:
    """Check every method of the params file and, if the model's `layers` are given, its router policy and budget.

    Raises what `load_recipe`, `excluded_layers` and `budget.check` raise, and `ParameterError` for a method that needs
    what is not collected, that ignores the capacity, or that excludes experts from a router that cannot do so.
    """
    unknown = sorted(params.recipes.keys() - set(known_recipes()))
    if unknown:
        raise UnknownNameError("method in recipes:", unknown[0], known_recipes())
    recipes = {name: load_recipe(name, params.recipes) for name in params.methods.merge}
    for name, recipe in recipes.items():
        check_collected(name, recipe, params.collect.also)
    if layers is not None:
        for name, recipe in recipes.items():
            check_router(name, recipe, layers)
        for name, recipe in recipes.items():
            check_budget(name, recipe, params.merge, layers)


def check_collected(name: str, recipe: Recipe, also: Sequence[str]) -> None:
    """Raise `ParameterError` unless `also` names everything that the recipe needs measured."""
    for what, entry in recipe.needs.items():
        if entry not in also:
            raise ParameterError("also", [*also], f"{what} of method {name!r} needs {entry!r} in it")


def check_router(name: str, recipe: Recipe, layers: Sequence[MoELayer]) -> None:
    """Raise `ParameterError` for a recipe that excludes experts from routers that cannot do so."""
    if not recipe.progressive and not POLICIES.fact(recipe.router, "excludes"):
        return
    if not all(layer.excludes for layer in layers):
        what = "progressive" if recipe.progressive else "router"
        allowed = "routers of this model family cannot exclude experts; leave the method out"
        raise ParameterError(f"recipes.{name}.{what}", getattr(recipe, what), allowed)


def check_budget(name: str, recipe: Recipe, merge: Merge, layers: Sequence[MoELayer]) -> None:
    """Raise `ParameterError` if the layers cannot have the budget of the recipe, by default that of `merge`."""
    excluded = excluded_layers(merge.exclude, layers)
    experts = {layer.name: layer.experts for layer in layers if layer.name not in excluded}
    merge = recipe.with_budget(merge)
    try:
        check(merge.groups, experts, merge.budget, merge.capacity)
    except ParameterError as error:
        if recipe.groups is None:
            raise
        raise ParameterError(f"recipes.{name}.groups", error.value, error.allowed) from None
    check_capacity(recipe.grouping, merge.capacity, name)
