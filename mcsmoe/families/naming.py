"""Names of a model's tensors on disk, from transformers' own conversion rules in reverse."""

from collections.abc import Iterable
from typing import Any

from mcsmoe.errors import CheckpointError

SPLITS = (["SplitModulelist"], ["Chunk", "SplitModulelist"])
"""Reversed rules that `Naming` understands: split a stack into experts, or split gate from up first."""


class Naming:
    """Names on disk of the tensors of `model`, which may be a skeleton without weights."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import PrefixChange, WeightConverter, WeightRenaming

        rules = [r for r in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(r, PrefixChange)]
        backwards = [rule.reverse_transform() for rule in rules[::-1]]
        self._renamings = [rule for rule in backwards if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in backwards if isinstance(rule, WeightConverter)]

    def parts(self, name: str) -> list[str]:
        """Names on disk of the tensor that is called `name` in memory: one, or one each for gate and up.

        `{expert}` stands for the number of the expert if each has a tensor of its own. Mixtral:
        `….experts.gate_up_proj` → `[….experts.{expert}.w1.weight, ….experts.{expert}.w3.weight]`.
        Raises `CheckpointError` for a storage form that is not supported.
        """
        from transformers.core_model_loading import apply_converters, apply_renamings

        renamed, pattern = apply_converters(name, self._converters)
        if pattern is None:
            return [apply_renamings(name, self._renamings)]
        rule = next(rule for rule in self._converters if pattern in rule.source_patterns)
        if [type(step).__name__ for step in rule.operations] not in SPLITS:
            raise CheckpointError(f"{name}: stored in a form that is not supported ({rule.operations})")
        first = rule.target_patterns[0]
        names = [renamed.replace(first, each) for each in rule.target_patterns]
        return [apply_renamings(each, self._renamings).replace("*", "{expert}") for each in names]

    def others(self, names: Iterable[str]) -> dict[str, str]:
        """Name on disk → name in memory, for tensors outside the experts. Raises `CheckpointError` as `parts` does."""
        found = {}
        for name in names:
            parts = self.parts(name)
            if len(parts) > 1 or "{expert}" in parts[0]:
                raise CheckpointError(f"{name}: stored in a form that is not supported ({', '.join(parts)})")
            found[parts[0]] = name
        return found
