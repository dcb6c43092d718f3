"""Resolved methods: everything that decides a merge besides the checkpoint and its measurements.

The stage `merge` depends on a file with a resolved method, not on the params. So it reruns only if the method's recipe
changed, the recipe that it is `like`, the budget, or the code of a plugin that it uses.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml

from mcsmoe.checkpoint.content import code_hash
from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.fields import Name, Section
from mcsmoe.methods.recipe import Recipe, load_recipe, parts
from mcsmoe.params import Merge, Params
from mcsmoe.reading import parse_yaml
from mcsmoe.registry import Registry


class ResolvedMethod(Section):
    """A method: its recipe with `like` and overrides applied, its budget, and a hash of each plugin that it uses."""

    method: Name
    recipe: Recipe
    merge: Merge
    plugins: dict[str, str]

    @classmethod
    def of(cls, name: str, params: Params) -> Self:
        """Resolve the method `name`; plugins must be imported already. Raises what `load_recipe` raises."""
        recipe = load_recipe(name, params.recipes)
        merge = recipe.with_budget(params.merge)
        used = parts(recipe.model_copy(update={"budget": merge.budget}))
        return cls(method=name, recipe=recipe, merge=merge, plugins=code_of(params.plugins, used))

    def save(self, path: Path) -> None:
        """Write the method as YAML; equal methods give equal bytes."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` if it is missing, `ParameterError` if it is damaged."""
        try:
            found = cls.parse(parse_yaml(path.read_bytes()), str(path))
        except FileNotFoundError:
            raise CheckpointError(f"no resolved recipe at {path}: run check") from None
        except ValueError as error:
            raise ParameterError("file", str(path), f"{error}; run check again") from None
        if found.method != path.stem:
            raise ParameterError("method", found.method, f"the file of {path.stem!r}; run check again", str(path))
        return found


def code_of(plugins: Iterable[str], used: Iterable[tuple[Registry[Any], str]]) -> dict[str, str]:
    """Plugin module → hash of its code, for those of `plugins` that registered one of the `used` entries."""
    modules = {registry.module_of(name) for registry, name in used}
    return {plugin: code_hash([plugin]) for plugin in plugins if plugin in modules}
