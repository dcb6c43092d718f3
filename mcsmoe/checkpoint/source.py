"""Where a checkpoint lies: in a directory, or under an id on the model hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from mcsmoe.checkpoint.config import read_config
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint, indexed_files
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of, language_config
from mcsmoe.fields import HUB_ID, find_directory, looked_in

ADAPTER = "adapter_config.json"
# Hub repositories often hold the same weights in other formats, too.
SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "tokenizer*", "LICENSE*", "NOTICE*"]
WANTED = [*SMALL, "*.safetensors", "*.bin"]
UNWANTED = ["[!a]*/*", "a[!d]*/*", "consolidated*"]  # of folders, only additional_chat_templates


def is_hub_id(source: Path | str) -> TypeGuard[str]:
    """Whether `source` can be a hub id: a `str` that does not look like a path, as "./a", "~/a", "a/" and "a/b/c" do.

    Nor can "models/mixtral" be one where there is a directory `models`.
    """
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        return False
    owner, _, name = source.rpartition("/")
    return not Path(owner).is_dir() if owner else not Path(name).exists()


def fetch(source: Path | str, revision: str | None = None, patterns: Sequence[str] = WANTED) -> Path:
    """The directory of a checkpoint; files of a hub id that match `patterns` are fetched into the hub's cache first.

    A relative directory is found by `find_directory`. Raises `CheckpointError` for what is neither a directory nor
    something that the hub gives.
    """
    directory = find_directory(source)
    if directory.is_dir():
        return directory
    if not is_hub_id(source):
        where = looked_in(source)
        raise CheckpointError(f"{source}: no such directory{where}; give the path of a saved checkpoint or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(source, revision=revision, allow_patterns=[*patterns], ignore_patterns=UNWANTED)
    except LocalEntryNotFoundError:
        message = f"{source}: no such directory, and no model hub can be reached; give the path of a saved checkpoint"
        raise CheckpointError(message) from None
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source}: no such directory, and the hub does not give it: {reason}") from None
    return Path(found)


def is_local(source: Path | str) -> bool:
    """Whether `fetch` takes a directory of this machine."""
    return find_directory(source).is_dir()


def check_source(directory: Path, *, any_family: bool = False) -> Checkpoint | None:
    """Raise `CheckpointError` for a directory that is missing, visibly damaged or of an unsupported architecture.

    Returns the checkpoint in it; None without safetensors, and if there is only their index: before the work, only the
    small files of a hub id are fetched. Fast: transformers is not imported.
    """
    described = read_config(directory)
    if (directory / ADAPTER).is_file():
        what = "weights of an adapter are beside those of the model"
        remedy = "merge them into the model (in peft: merge_and_unload) and save it, or take the files away"
        raise CheckpointError(f"{directory}: {ADAPTER}: {what}; {remedy}")
    if not any_family:
        family_of(language_config(described))
    sharded = (directory / INDEX).is_file() and indexed_files(directory / INDEX)
    return Checkpoint(directory) if sharded or (directory / WEIGHTS).is_file() else None
