"""Every method of a params file checked before work begins."""

from collections.abc import Mapping, Sequence

from mcsmoe.architectures.exclude import excluded_layers
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.errors import ParameterError, UnknownNameError
from mcsmoe.grouping.budget import check
from mcsmoe.grouping.registry import GROUPERS, check_capacity
from mcsmoe.merging.registry import NEEDS
from mcsmoe.params import Params
from mcsmoe.recipes.load import Recipe, known_recipes, load_recipe
from mcsmoe.router.registry import EXCLUDING
from mcsmoe.similarity.registry import needs


def validate_recipes(params: Params, layers: Sequence[MoELayer] | None = None) -> None:
    """Check every method of the params file and, where the model's layers are known, its budget.

    Raises what `load_recipe`, `excluded_layers` and `budget.check` raise, and `ParameterError` for a method
    that needs what is not collected, or that cannot keep to the capacity.
    """
    unknown = sorted(params.recipes.keys() - set(known_recipes()))
    if unknown:
        raise UnknownNameError("method in recipes:", unknown[0], known_recipes())
    recipes = {name: load_recipe(name, params) for name in params.methods.merge}
    for name, recipe in recipes.items():
        _check_collected(name, recipe, params)
    if layers is None:
        return
    if not all(layer.excludes for layer in layers):
        _check_router(recipes)
    excluded = excluded_layers(params.merge.exclude, layers)
    experts = {layer.name: layer.experts for layer in layers if layer.name not in excluded}
    for name, recipe in recipes.items():
        merge = recipe.with_budget(params.merge)
        parameter = "merge.groups" if recipe.groups is None else f"recipes.{name}.groups"
        check(merge.groups, experts, merge.budget, merge.capacity, parameter)
        check_capacity(GROUPERS[recipe.grouping], merge.capacity, f"grouping {recipe.grouping!r} of method {name!r}")


def _check_router(recipes: Mapping[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        if recipe.progressive or recipe.router in EXCLUDING:
            what = "progressive" if recipe.progressive else "router"
            raise ParameterError(
                f"recipes.{name}.{what}",
                getattr(recipe, what),
                "routers of this model family cannot exclude experts; leave the method out",
            )


def _check_collected(name: str, recipe: Recipe, params: Params) -> None:
    wanted = {
        f"similarity {recipe.similarity!r}": needs(recipe.similarity),
        f"rule {recipe.rule!r}": NEEDS.get(recipe.rule),
    }
    for what, entry in wanted.items():
        if entry is not None and entry not in params.collect.also:
            raise ParameterError(
                "collect.also", params.collect.also, f"{what} of method {name!r} needs {entry!r} in it"
            )
