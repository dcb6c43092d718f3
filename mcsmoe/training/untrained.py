"""The full model taken as it is, to merge a model without training it first."""

import shutil
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.companions import complete
from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.fp8 import only_transformers_restores
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.output import atomic_directory, check_room
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.shards import other_parts, write_parts
from mcsmoe.checkpoint.source import fetch
from mcsmoe.checkpoint.verify import check_inventory
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, written_pieces
from mcsmoe.families import configuration, contents, empty_model, language_config, skeleton
from mcsmoe.params import ModelSection


def take(settings: ModelSection, output: Path) -> None:
    """Write the checkpoint that the full model starts from to `output`.

    Files in safetensors are copied, whatever their size. Where the model is read otherwise than they hold it, all
    tensors are written anew, one by one: FP8 restored to bfloat16, one precision, published names, without those that
    the model does not use. So are those of the language model in a model that reads more than text. Other quantised
    weights and `.bin` files are loaded into memory and saved again, in the precision that transformers restores.
    Raises `CheckpointError` if names, shapes or values are not those of the model, `DiskFullError` if there is no room;
    `output` then stays as it was.
    """
    assert settings.origin is not None  # params refuse it
    restore(fetch(settings.origin, settings.revision), output, settings.trust_remote_code, settings.keep_mtp)


def restore(directory: Path, output: Path, trust_remote_code: bool = False, keep_mtp: bool = False) -> None:
    """Write the language model of `directory` to `output` in safetensors and the precision that it computes in.

    See `take`.
    """
    with atomic_directory(output) as scratch:
        if in_plain_safetensors(directory):
            files = Checkpoint(directory)
            if language_config(files.config) is not files.config:
                written = _cut_out(files, scratch)
            else:
                source = Published(files, keep_mtp=keep_mtp)
                source.tell()
                written = (_copy if source.as_stored and source.as_in_files else _rewritten)(source, scratch)
        else:
            model = _anew(load_model(directory, trust_remote_code=trust_remote_code))
            written = save_model(model, None, scratch, directory)
        check_inventory(Checkpoint(scratch), written)


def in_plain_safetensors(directory: Path) -> bool:
    """Whether the tensors of a checkpoint can be read one by one: not if quantised (but FP8 can) or in `.bin` files."""
    found = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    path = directory / "config.json"
    return found and not only_transformers_restores(read_json(path), path)


def _anew(model: Any) -> Any:
    """A copy as if never quantised, because transformers saves a once quantised model under its quantised names."""
    same = empty_model(model.config, model.dtype, type(model))
    same.load_state_dict(model.state_dict(), assign=True)
    same.tie_weights()
    same.generation_config = model.generation_config
    return same


def _copy(source: Checkpoint, target: Path) -> Written:
    check_room(target / WEIGHTS, source.size_bytes)
    names = [path.name for path in source.files]
    if (source.directory / INDEX).is_file() and not (source.directory / WEIGHTS).is_file():
        names.append(INDEX)
    for name in names:
        shutil.copyfile(source.directory / name, target / name)
    _copy_rest(source, target)
    return written_pieces(Piece(name, None, source.tensor(name)) for name in source.names())


def _rewritten(source: Checkpoint, target: Path) -> Written:
    """The tensors as they are read, one by one."""
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    written = write_parts(target, other_parts(specs, source.tensor))
    _copy_rest(source, target)
    return written


def _copy_rest(source: Checkpoint, target: Path) -> None:
    (target / "config.json").write_bytes(source.config_text.encode())
    complete(target, source.directory)


def _cut_out(source: Checkpoint, target: Path) -> Written:
    """The language model in `source`, as transformers would save it."""
    config = language_config(configuration(source.config))
    model = skeleton(config)
    config.architectures, config.dtype = [type(model).__name__], model.config.dtype
    config.save_pretrained(target)
    inside = f"{model.base_model_prefix}."
    names = {name.removeprefix(inside): name for name in source.names() if name.startswith(inside)}
    unused = contents(config, names, source.directory).unused
    names = {new: old for new, old in names.items() if new not in unused}
    specs = {new: TensorSpec(source.dtype(old), source.shape(old)) for new, old in names.items()}
    written = write_parts(target, other_parts(specs, lambda name: source.tensor(names[name])))
    complete(target, source.directory)
    return written
