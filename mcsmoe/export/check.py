"""What a stock configuration cannot describe."""

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.errors import CheckpointError
from mcsmoe.export.mapped import Mapped


def check_stock(mapped: Mapped) -> None:
    """Raise `CheckpointError` where K experts in each layer, and no map, are not what the model is, or cannot route."""
    kept = {name: len(groups) for name, groups in mapped.members.items()}
    directory = mapped.checkpoint.directory
    if len(set(kept.values())) > 1:
        untouched = [layer.name for layer in mapped.layers if kept[layer.name] == layer.experts]
        if untouched:
            raise CheckpointError(
                f"{directory}: {', '.join(untouched)} keep all their experts, others do not; a stock config has one "
                "number for all layers: merge without merge.exclude and with merge.budget = uniform (m-smoe-uniform)"
            )
        raise CheckpointError(
            f"{directory}: layers keep {min(kept.values())} to {max(kept.values())} experts; a stock config has one "
            "number for all layers: merge with merge.budget = uniform, as the recipe m-smoe-uniform does"
        )
    for layer in mapped.layers:
        reason = _cannot_route(layer, kept[layer.name])
        if reason:
            raise CheckpointError(f"{directory}: {layer.name} keeps {kept[layer.name]} experts, but {reason}")


def _cannot_route(layer: MoELayer, kept: int) -> str | None:
    if kept < layer.top_k:
        return f"its router selects {layer.top_k}: merge to at least as many groups"
    limit = layer.limit
    if limit is None:
        return None
    if kept % limit.groups:
        return f"its router has {limit.groups} groups (n_group): merge to a multiple of them"
    size = kept // limit.groups
    if limit.kept * size < layer.top_k:
        return (
            f"its router selects {layer.top_k} inside {limit.kept} of {limit.groups} groups (topk_group, n_group), "
            f"which hold {limit.kept * size}: merge to more groups"
        )
    if size < limit.scored:
        return f"its router scores a group by {limit.scored} experts: merge to at least {limit.scored * limit.groups}"
    return None
