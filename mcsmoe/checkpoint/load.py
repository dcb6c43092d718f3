"""Loading models and tokenizers; any missing or unexpected tensor is an error."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError

from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint, indexed_files
from mcsmoe.errors import CheckpointError
from mcsmoe.families import auto_class, family_of, language_config
from mcsmoe.fields import HUB_ID, find_directory, looked_in


def is_hub_id(source: Path | str) -> TypeGuard[str]:
    """Whether `source` can be a hub id: a `str` that does not look like a path, as "./a", "~/a", "a/" and "a/b/c" do.

    Nor can "models/mixtral" be one where there is a directory `models`.
    """
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        return False
    owner, _, name = source.rpartition("/")
    return not Path(owner).is_dir() if owner else not Path(name).exists()


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
BIN_INDEX = "pytorch_model.bin.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json")
ADAPTER = "adapter_config.json"
LOADING_REPORT = ("missing_keys", "unexpected_keys", "mismatched_keys")


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
        origin["trust_remote_code"] &= not has_native_class(source, revision)
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
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity; train or copy the model again")
    align_weights(model)
    compute_in(model, dtype)
    return model.eval()


def has_native_class(source: Path | str, revision: str | None = None) -> bool:
    """Whether transformers or this package has the class of a model; then it is used, whatever code is beside it."""
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes

    values, _ = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)
    return values.get("model_type") in transformers.CONFIG_MAPPING


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
        trusted = trust_remote_code and not has_native_class(source, revision)
        whole = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trusted)
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
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        if trust_remote_code and has_native_class(source, revision):
            options["config"] = transformers.AutoConfig.from_pretrained(source, revision=revision)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        except LOAD_ERRORS:
            described = transformers.models.auto.tokenization_auto.get_tokenizer_config(source, revision=revision)
            if trust_remote_code or "AutoTokenizer" not in (described.get("auto_map") or ()):
                raise
            reason = "its tokenizer is Python code beside it, which runs only where `trust_remote_code` is true"
            raise CheckpointError(f"{source}: {reason}") from None
    if tokenizer.pad_token_id is None:  # most causal models were trained without one
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# Hub repositories often hold the same weights in other formats, too.
SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "tokenizer*", "LICENSE*", "NOTICE*"]
WANTED = [*SMALL, "*.safetensors", "*.bin"]
UNWANTED = ["[!a]*/*", "a[!d]*/*", "consolidated*"]  # of folders, only additional_chat_templates


def fetch(source: Path | str, revision: str | None = None, patterns: Sequence[str] = WANTED) -> Path:
    """The directory of a checkpoint; files of a hub id that match `patterns` are fetched into the hub's cache first.

    A relative directory is found by `find_directory`. Raises `CheckpointError` for what is neither a directory nor
    something that the hub gives.
    """
    directory = find_directory(source)
    if directory.is_dir():
        return directory
    if not is_hub_id(source):
        raise _no_directory(source)
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
        if (directory / BIN_INDEX).is_file():
            indexed_files(directory / BIN_INDEX)  # transformers would follow any path
        if (directory / ADAPTER).is_file():
            remedy = (
                "merge them into the model (in peft: merge_and_unload) and save it, or take the adapter's files away"
            )
            raise CheckpointError(
                f"{directory}: {ADAPTER}: weights of an adapter are beside those of the model; {remedy}"
            )
        if any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
            config = language_config(Checkpoint(directory).config)
            if not any_family:
                family_of(config)
    elif not is_hub_id(source):
        raise _no_directory(source)


def _no_directory(source: Path | str) -> CheckpointError:
    where = looked_in(source)
    return CheckpointError(f"{source}: no such directory{where}; give the path of a saved checkpoint or a hub id")


class _Failures:
    """Context manager that turns errors of the loading libraries into a `CheckpointError`."""

    def __init__(self, source: Path | str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, LOAD_ERRORS):
            reason = str(error).strip() or type(error).__name__
            if isinstance(error, pickle.UnpicklingError):  # whose own message says how to run the code in the file
                reason = "a `.bin` file holds other things than tensors, or is damaged; look for safetensors"
            raise CheckpointError(f"{self.source}: cannot be loaded: {reason}") from error
