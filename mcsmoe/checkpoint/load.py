"""Loading models and tokenizers; any missing or unexpected tensor is an error."""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import auto_class, family_of, language_config, sort_unexpected

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
# What transformers, safetensors and torch raise for damaged, missing or mismatched files.
LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    ImportError,
    SafetensorError,
    pickle.UnpicklingError,
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model")
LOADING_REPORT = ("missing_keys", "mismatched_keys")


def load_model(
    source: Path | str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    any_family: bool = False,
) -> Any:
    """Load a model of a supported family in eval mode; `source` is a directory, or a hub id if it is a `str`.

    Reads safetensors and old `.bin` files. From a model that reads more than text, only the language model is loaded.
    `dtype` defaults to the checkpoint's; quantised weights are dequantised. `any_family` accepts every model of
    transformers that generates text, for measurements that need to know nothing about experts.
    Raises `CheckpointError` for a missing or damaged source, an unsupported architecture, a tensor that is missing,
    unexpected or of the wrong shape, and for weights that are not finite.
    """
    check_source(source, any_family=any_family)
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes
    from mcsmoe.modeling.aligned_mcsmoe import align_weights

    origin: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _Failures(source):
        whole = transformers.AutoConfig.from_pretrained(source, **origin)
    config = language_config(whole)
    if not any_family:
        family_of(config)
    if getattr(config, "quantization_config", None):  # nothing here computes on quantised weights
        config.quantization_config["dequantize"] = True
    # With this option tensors of the wrong shape appear in the report, by name.
    options = origin | {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if dtype is not None:
        options["dtype"] = dtype
    with _Failures(source):
        model, report = getattr(transformers, auto_class(config)).from_pretrained(source, config=config, **options)
    if config is not whole:
        inside = f"{model.base_model_prefix}."
        report["unexpected_keys"] = {key for key in report["unexpected_keys"] if key.startswith(inside)}
    for kind in LOADING_REPORT:
        if report[kind]:
            names = sorted(key if isinstance(key, str) else key[0] for key in report[kind])
            what = kind.replace("_keys", "")
            raise CheckpointError(f"{source}: {len(names)} {what} tensors, the first is {names[0]}")
    sort_unexpected(model, report["unexpected_keys"], source)
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity; train or copy the model again")
    align_weights(model)
    compute_in(model, dtype)
    return model.eval()


def compute_in(model: Any, dtype: torch.dtype | None) -> None:
    """Choose kernels that support `dtype`: the default for experts, a grouped matrix product, takes no float64."""
    if dtype == torch.float64 and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def load_config(
    source: Path | str, *, revision: str | None = None, trust_remote_code: bool = False, any_family: bool = False
) -> Any:
    """The configuration of a checkpoint of a supported family (or of `any_family`), or of the language model in it.

    Raises `CheckpointError` for a missing or damaged source and for an unsupported architecture.
    """
    check_source(source, any_family=any_family)
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes

    with _Failures(source):
        whole = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    config = language_config(whole)
    if not any_family:
        family_of(config)
    return config


def load_tokenizer(
    source: Path | str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    any_family: bool = False,
) -> Any:
    """Load the tokenizer of a checkpoint; if it has no padding token, it pads with its end token.

    Raises `CheckpointError` if there is none.
    """
    check_source(source, any_family=any_family)
    directory = Path(source)
    if directory.is_dir() and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{directory}: no tokenizer; save it with the model: {', '.join(TOKENIZER_FILES)}")
    import transformers

    with _Failures(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token_id is None:  # most causal models were trained without one
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# Hub repositories often hold the same weights in other formats, too.
SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
WANTED = [*SMALL, "*.safetensors", "*.bin"]
UNWANTED = ["*/*", "consolidated*"]


def fetch(source: Path | str, revision: str | None = None, patterns: Sequence[str] = WANTED) -> Path:
    """The directory of a checkpoint; files of a hub id that match `patterns` are fetched into the hub's cache first.

    Raises `CheckpointError` for what is neither a directory nor something that the hub gives.
    """
    if Path(source).is_dir():
        return Path(source)
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such directory; give the path of a saved checkpoint or a hub id")
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


def local_directory(source: Path | str) -> Path:
    """The directory with the files of `source`; a hub id must have been loaded before."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils.hub import cached_file

    return Path(cached_file(source, "config.json", local_files_only=True)).parent


def check_source(source: Path | str, *, any_family: bool = False) -> None:
    """Raise `CheckpointError` for a directory that is missing, visibly damaged or of an unsupported architecture.

    Fast: transformers is not imported.
    """
    directory = Path(source)
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise CheckpointError(f"{directory}: no config.json; is it a checkpoint directory?")
        if any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
            config = language_config(Checkpoint(directory).config)
            if not any_family:
                family_of(config)
    elif isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise CheckpointError(f"{source}: no such directory; give the path of a saved checkpoint or a hub id")


class _Failures:
    """Context manager that turns errors of the loading libraries into a `CheckpointError`."""

    def __init__(self, source: Path | str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, LOAD_ERRORS):
            reason = str(error).strip() or type(error).__name__
            raise CheckpointError(f"{self.source}: cannot be loaded: {reason}") from error
