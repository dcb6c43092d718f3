"""The merged checkpoint as a directory: weights, configuration, remote code, plan, tokenizer."""

from pathlib import Path

import torch

from mcsmoe.architectures.registry import family_of
from mcsmoe.checkpoint.atomic import write_json
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import MergedTensors, merged_shapes
from mcsmoe.merging.material import Material


def write_merged(source: Checkpoint, plan: Plan, material: Material, directory: Path) -> None:
    """Write `source` with `plan` applied into the empty `directory`, one layer in memory at a time.

    Raises `CheckpointError` where `source` is no stock checkpoint or holds NaN, `DiskFullError` without
    room.
    """
    family = family_of(source.config)
    layers = family.layers(source.config)
    shapes = merged_shapes({name: source.shape(name) for name in source.names()}, family, layers, plan)
    dtypes = {name: source.dtype(name) for name in source.names()}
    for layer in layers:
        dtypes[family.merged_map(layer)] = torch.int64
        for name in layer.layout:
            dtypes[family.merged_tensor(layer, name)] = source.dtype(layer.places[name].name(0))
    specs = {name: TensorSpec(dtypes[name], shape) for name, shape in shapes.items()}
    write_safetensors(directory / WEIGHTS, specs, MergedTensors(source, family, layers, plan, material).chunks)
    config = family.merged_config(source.config, plan.experts)
    write_json(directory / "config.json", config)
    write_remote_code(config, directory)
    copy_companions(source.directory, directory)
    plan.save(directory)
