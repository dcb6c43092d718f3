"""What a checkpoint holds beside weights and config.json: tokenizer, chat templates, generation settings, code."""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.older import DRAFT, for_older_programs, tokenizer_for_older_programs
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.paths import leads_out
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import contents

TEMPLATES = "additional_chat_templates"
"""The folder with the chat templates that have names; no other folder travels."""
WEIGHTS_OF_OTHERS = {
    ".bin", ".ckpt", ".ggml", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".ot", ".pickle", ".pkl", ".pt", ".pth",
    ".safetensors",
}  # fmt: skip
OURS = {"config.json", "README.md", "plan.json", "export.json", "shrink.json", "report.html"}
"""Written for each checkpoint anew; those of the source tell of the source."""
LARGEST = 256 * 1024**2
"""Bytes. The largest tokenizers have 40 MB; whatever is larger than this holds weights of some kind."""


def companions(directory: Path) -> Iterator[Path]:
    """The files of a checkpoint that travel with every model made of it, relative to `directory`.

    That is every file but weights, config.json and what is written anew. Raises `CheckpointError` for a link to a file
    outside the directory, which is not followed: a checkpoint from somebody else could publish `~/.ssh/id_rsa` with it.
    """
    for path in sorted([*directory.iterdir(), *(directory / TEMPLATES).glob("*.jinja")]):
        name = path.name
        if name.startswith(".") or name in OURS or name.endswith(".index.json") or path.suffix in WEIGHTS_OF_OTHERS:
            continue
        if not path.is_file() or path.stat().st_size > LARGEST:
            continue
        if leads_out(path, directory):
            where = f"a link to {path.resolve()}, outside the checkpoint"
            raise CheckpointError(f"{path}: {where}; put a copy of the file there")
        yield path.relative_to(directory)


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the companions of the checkpoint `source`. Raises `CheckpointError` as `companions` does."""
    for path in companions(source):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, directory / path)


def complete(directory: Path, source: Path | None = None) -> None:
    """Add what a checkpoint lacks whose weights and config.json are written, so that all programs read it alike.

    These are the companions of `source`, the checkpoint that it was made of; the code of ours that its config.json
    names; and, in config.json and tokenizer_config.json, the names that older programs look for. Files that need no
    change keep their bytes. Raises `CheckpointError` as `companions` does.
    """
    made_of: Mapping[str, Any] = {}
    if source is not None:
        copy_companions(source, directory)
        made_of = read_json(source / "config.json")
    config = read_json(directory / "config.json")
    copy_own_code(config, directory)
    draft = bool(config.get(DRAFT) and contents(config, Checkpoint(directory).names(), directory).mtp)
    _change(directory / "config.json", config, with_code(for_older_programs(config, made_of, draft), directory))
    path = directory / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else None
    if isinstance(values, dict):
        _change(path, values, with_code(tokenizer_for_older_programs(values), directory))


def _change(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if new != old:
        write_json(path, new)


def with_code(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A config without the classes of its `auto_map` whose Python file is neither in `directory` nor elsewhere.

    "modeling_phimoe.PhiMoEForCausalLM" is in modeling_phimoe.py; "owner/name--modeling_x.X" is in a hub repository.
    """
    classes = values.get("auto_map")
    if not isinstance(classes, Mapping):
        return dict(values)

    def there(reference: Any) -> bool:
        each = [one for one in (reference if isinstance(reference, list) else [reference]) if one]
        return all(
            isinstance(one, str) and ("--" in one or (directory / f"{one.split('.')[0]}.py").is_file()) for one in each
        )

    left = {name: reference for name, reference in classes.items() if there(reference)}
    rest = {name: value for name, value in values.items() if name != "auto_map"}
    return dict(values) | {"auto_map": left} if left else rest


MODELING = Path(__file__).parent.parent / "modeling"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def own_code(config: Mapping[str, Any]) -> set[str]:
    """Names of the files of ours, without ".py", that the `auto_map` of a config.json names; no other code may run."""
    classes = config.get("auto_map")
    named = {str(reference).split(".")[0] for reference in classes.values()} if isinstance(classes, Mapping) else set()
    return {name for name in named if (MODELING / f"{name}.py").is_file()}


def copy_own_code(config: Mapping[str, Any], directory: Path) -> None:
    """Copy the files of ours that the `auto_map` of a config.json names, and the files that they import."""
    todo, done = own_code(config), set[str]()
    while todo:
        name = todo.pop()
        shutil.copyfile(MODELING / f"{name}.py", directory / f"{name}.py")
        done.add(name)
        todo |= set(RELATIVE_IMPORT.findall((MODELING / f"{name}.py").read_text())) - done
