"""The full model taken as it is, to merge a model without training it first."""

import shutil
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.load import fetch, load_model, load_tokenizer
from mcsmoe.checkpoint.output import atomic_directory, check_room, copy_companions
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint, read_json
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.shards import other_parts, write_parts
from mcsmoe.checkpoint.verify import check_inventory
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, written_pieces
from mcsmoe.families import configuration, contents, empty_model, language_config, skeleton
from mcsmoe.params import ModelSection


def take(settings: ModelSection, output: Path) -> None:
    """Write the checkpoint that the full model starts from to `output`.

    Files in safetensors are copied, whatever their size; tensors that the model does not use, or names that are not the
    published ones, make it write all tensors anew, one by one. From a model that reads more than text, only the tensors
    of its language model are copied. A quantised or `.bin` checkpoint is loaded into memory and saved again, in the
    precision that transformers restores. Raises `CheckpointError` if names, shapes or values are not those of the
    model, `DiskFullError` if there is no room; `output` then stays as it was.
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
                written = (_copy if source.as_in_files else _rewritten)(source, scratch)
        else:
            model = _anew(load_model(directory, trust_remote_code=trust_remote_code))
            written = save_model(model, load_tokenizer(directory, trust_remote_code=trust_remote_code), scratch)
        check_inventory(Checkpoint(scratch), written)


def in_plain_safetensors(directory: Path) -> bool:
    """Whether the tensors of a checkpoint can be read one by one: it is neither quantised nor in `.bin` files."""
    found = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    return found and "quantization_config" not in read_json(directory / "config.json")


def _anew(model: Any) -> Any:
    """A copy as if never quantised, because transformers saves a once quantised model under its quantised names."""
    same = empty_model(model.config, model.dtype, type(model))
    same.load_state_dict(model.state_dict(), assign=True)
    same.tie_weights()
    same.generation_config = model.generation_config
    return same


def _copy(source: Checkpoint, target: Path) -> Written:
    check_room(target / WEIGHTS, source.size_bytes)
    names = [path.name for path in source.files] + ["config.json"]
    if (source.directory / INDEX).is_file() and not (source.directory / WEIGHTS).is_file():
        names.append(INDEX)
    for name in names:
        shutil.copyfile(source.directory / name, target / name)
    copy_companions(source.directory, target)
    return written_pieces(Piece(name, None, source.tensor(name)) for name in source.names())


def _rewritten(source: Checkpoint, target: Path) -> Written:
    """The tensors under their published names, one by one."""
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    shutil.copyfile(source.directory / "config.json", target / "config.json")
    copy_companions(source.directory, target)
    return write_parts(target, other_parts(specs, source.tensor))


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
    copy_companions(source.directory, target)
    return write_parts(target, other_parts(specs, lambda name: source.tensor(names[name])))
