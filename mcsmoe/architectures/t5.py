"""T5 (arXiv 1910.10683), the dense model that a Switch Transformer is compared with: it has no experts."""

from typing import Any, NoReturn

from mcsmoe.architectures.layer import Family
from mcsmoe.architectures.registry import FAMILIES
from mcsmoe.errors import CheckpointError


def no_experts(*_: Any) -> NoReturn:
    """Refuse what needs experts."""
    raise CheckpointError("a T5 is dense: there are no experts to merge or to compress")


FAMILIES.register("t5")(
    Family(
        model_type="t5",
        auto_class="AutoModelForSeq2SeqLM",
        layers=lambda config: [],
        routing=no_experts,
        merged_config=no_experts,
        merged_tensor=no_experts,
        merged_map=no_experts,
        merged_names=lambda config, names: {name: name for name in names},
        expert_counts=(),
        expert_axes=no_experts,
    )
)
