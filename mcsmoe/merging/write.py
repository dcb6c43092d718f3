"""The merged checkpoint as a directory: weights, configuration, remote code, plan, tokenizer."""

from functools import partial
from pathlib import Path

import torch

from mcsmoe.architectures.registry import family_of
from mcsmoe.checkpoint.atomic import write_json
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.writer import TensorSpec
from mcsmoe.checkpoint.written import Written
from mcsmoe.errors import CheckpointError
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import merged_pieces
from mcsmoe.merging.material import Material


def write_merged(
    source: Checkpoint, plan: Plan, material: Material, directory: Path, notes: Path | None = None
) -> Written:
    """Write `source` with `plan` applied into `directory`, group by group.

    Peak memory is the greater of m + 1 experts, m the members of the largest group, with rules that sum weights
    up, and, while members are aligned by weights, two experts, 4 f² bytes of costs and a tensor of each in float32: no
    more for more layers or groups. Gives what was written; for shards and `notes` see `write_parts`.
    Raises `CheckpointError` where `source` is no stock checkpoint or holds NaN, `DiskFullError` without
    room.
    """
    family = family_of(source.config)
    layers = family.layers(source.config)
    ours = {place.name(e) for layer in layers for e in range(layer.experts) for place in layer.places.values()}
    missing = sorted(ours - set(source.names()))
    if missing:
        raise CheckpointError(f"no tensor {missing[0]}: merging needs a stock checkpoint, as permute writes it")
    parts = []
    for layer in layers:
        specs = {family.merged_map(layer): TensorSpec(torch.int64, (layer.experts,))}
        for name, shape in layer.shapes().items():
            dtype = source.dtype(layer.places[name].name(0))
            specs[family.merged_tensor(layer, name)] = TensorSpec(dtype, (plan.experts[layer.name], *shape))
        parts.append(Part(layer.name, specs, partial(merged_pieces, source, family, layer, plan, material)))
    renamed = family.merged_names(source.config, [name for name in source.names() if name not in ours])
    others = {new: old for old, new in renamed.items()}
    rest = {new: TensorSpec(source.dtype(old), source.shape(old)) for new, old in others.items()}
    everything = [*parts, *other_parts(rest, lambda name: source.tensor(others[name]))]
    written = write_parts(directory, everything, f"merge {plan.method}", notes)
    config = family.merged_config(source.config, plan.experts)
    write_json(directory / "config.json", config)
    write_remote_code(config, directory)
    copy_companions(source.directory, directory)
    plan.save(directory)
    return written
