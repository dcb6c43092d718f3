"""Loading models and tokenizers; any missing or unexpected tensor is an error."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mcsmoe.checkpoint.config import precision, read_config
from mcsmoe.checkpoint.pickled import pickled_tensors
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.errors import CheckpointError, UserError
from mcsmoe.families import auto_class, family_of, language_config, skeleton, sort_unexpected, sparse_layers
from mcsmoe.fields import HUB_ID, find_directory, looked_in

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json")
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"


def is_hub_id(source: Path | str) -> TypeGuard[str]:
    """Whether `source` can be a hub id: a `str` that does not look like a path, as "./a", "~/a", "a/" and "a/b/c" do.

    Nor can "models/mixtral" be one where there is a directory `models`.
    """
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        return False
    owner, _, name = source.rpartition("/")
    return not Path(owner).is_dir() if owner else not Path(name).exists()


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
    directory = fetch(source, revision)
    import transformers

    from mcsmoe.modeling.aligned_mcsmoe import align_weights

    config, checkpoint, whole = _opened(directory, trust_remote_code, any_family)
    trusted = trust_remote_code and not has_native_class(directory)
    options: dict[str, Any] = {"config": config, "trust_remote_code": trusted}
    if getattr(config, "quantization_config", None):  # nothing here computes on quantised weights
        config.quantization_config["dequantize"] = True
    else:
        options["dtype"] = config.dtype or torch.float32
    if dtype is not None:
        options["dtype"] = dtype
    # With `ignore_mismatched_sizes` tensors of the wrong shape appear in the report, by name.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _Failures(source):
        if checkpoint is None or checkpoint.as_stored:
            model, report = getattr(transformers, auto_class(config)).from_pretrained(directory, **options)
        else:
            values = {name: _Late(partial(checkpoint.tensor, name)) for name in checkpoint.names()}
            model, report = type(skeleton(config)).from_pretrained(None, state_dict=values, **options)
            if (directory / GENERATION).is_file():
                model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
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


def has_native_class(directory: Path) -> bool:
    """Whether transformers or this package has the class of a model; then it is used, whatever code is beside it."""
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes

    return read_config(directory).get("model_type") in transformers.CONFIG_MAPPING


class _Late:
    """A tensor that is read when transformers asks for its values, as it does with slices of safetensors."""

    def __init__(self, read: Callable[[], Tensor]) -> None:
        self._read = read

    def __getitem__(self, _: object) -> Tensor:
        return self._read()


def compute_in(model: Any, dtype: torch.dtype | None) -> None:
    """Choose kernels that support `dtype`: the default for experts, a grouped matrix product, takes no float64."""
    if dtype == torch.float64 and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")


def load_config(
    source: Path | str, *, revision: str | None = None, trust_remote_code: bool = False, any_family: bool = False
) -> Any:
    """The configuration of a checkpoint of a supported family (or of `any_family`), or of the language model in it.

    Its `dtype` is the one in which most of the weights are stored, whatever config.json says; of weights in FP8, that
    in which they are restored. Of a hub id, whose weights are not at hand, it is what config.json says.
    Raises `CheckpointError` for a missing or damaged source, an unsupported architecture, a configuration of which no
    model can be built, and a tensor of integers where the model has numbers.
    """
    return _opened(fetch(source, revision, SMALL), trust_remote_code, any_family)[0]


def _opened(directory: Path, trust_remote_code: bool, any_family: bool) -> tuple[Any, Checkpoint | None, Any]:
    """The configuration of a directory, its checkpoint (None without safetensors), and the outer configuration."""
    checkpoint = check_source(directory, any_family=any_family)
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes

    with _Failures(directory):
        trusted = trust_remote_code and not has_native_class(directory)
        whole = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=trusted)
        config = language_config(whole)
    if checkpoint is not None:
        stored = {name: checkpoint.stored_dtype(name) for name in checkpoint.names()}
        own = checkpoint.precision
        if "quantization_config" not in checkpoint.config and hasattr(config, "quantization_config"):
            del config.quantization_config
    else:
        held = {name: value for _, name, value in pickled_tensors(directory)}
        stored = {name: value.dtype for name, value in held.items()}
        own = precision(((value.dtype, value.numel()) for value in held.values()), config.dtype)
    if own is not None and own != (config.dtype or torch.float32):
        config.dtype = own
    if not any_family:
        family_of(config)
        with _Failures(directory, "config.json describes no model that can be built"):
            skeleton(config)
            sparse_layers(config)
        if getattr(config, "quantization_config", None) is None:
            check_numbers(directory, config, stored)
    return config, checkpoint, whole


def check_numbers(directory: Path, config: Any, stored: Mapping[str, torch.dtype]) -> None:
    """Raise `CheckpointError`, naming the tensor, for integers in `stored` where a model of `config` has numbers.

    `stored` are the tensors of its checkpoint and their dtypes. Read as numbers, packed weights would be noise.
    """
    whole = [name for name, dtype in stored.items() if not dtype.is_floating_point]
    if not whole:
        return
    model = skeleton(config)
    kept = {_leaf(name) for name, value in model.named_buffers() if not value.is_floating_point()}
    numbers = {_leaf(name) for name, _ in model.named_parameters()}
    numbers |= {_leaf(place.tensor) for layer in sparse_layers(config) for place in layer.places.values()}
    for name in whole:
        if _leaf(name) in numbers - kept:
            what = f"{name} is stored as {stored[name]}".replace("torch.", "")
            raise CheckpointError(f"{directory}: {what}, packed or damaged; take the model in float32 or bfloat16")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def load_tokenizer(
    source: Path | str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    any_family: bool = False,
) -> Any:
    """Load the tokenizer of a checkpoint; if it has no padding token, it pads with its end token.

    If it has no end token, it takes that of config.json. Raises `CheckpointError` if there is no tokenizer or no end
    token, and for token ids that the model has no embedding for.
    """
    directory = fetch(source, revision, SMALL)
    check_source(directory, any_family=any_family)
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"{directory}: no tokenizer; save it with the model: {', '.join(TOKENIZER_FILES)}")
    import transformers

    with _Failures(source):
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if trust_remote_code and has_native_class(directory):
            options["config"] = transformers.AutoConfig.from_pretrained(directory)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **options)
        except Exception:
            described = transformers.models.auto.tokenization_auto.get_tokenizer_config(directory)
            if trust_remote_code or "AutoTokenizer" not in (described.get("auto_map") or ()):
                raise
            reason = "its tokenizer is Python code beside it, which runs only where `trust_remote_code` is true"
            raise CheckpointError(f"{source}: {reason}") from None
        known = tokenizer.get_vocab()
    config = language_config(read_config(directory))
    rows, last = config.get("vocab_size"), max(known, key=known.__getitem__, default="")
    if isinstance(rows, int) and known and known[last] >= rows:
        what = f"the tokenizer has {last!r} as token {known[last]}, the model embeddings of {rows} tokens"
        raise CheckpointError(f"{source}: {what}; take the token out, or resize the embeddings")
    if tokenizer.eos_token_id is None:
        end = config.get("eos_token_id")
        token = next((token for token, number in known.items() if number == end and type(end) is int), None)
        if token is None:
            what = "the tokenizer has no end token, and config.json names none (eos_token_id)"
            raise CheckpointError(f"{source}: {what}; set eos_token in tokenizer_config.json")
        tokenizer.eos_token = token
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


def check_source(source: Path | str, *, any_family: bool = False) -> Checkpoint | None:
    """Raise `CheckpointError` for a directory that is missing, visibly damaged or of an unsupported architecture.

    Returns the checkpoint in it; None for a hub id, and without safetensors. Fast: transformers is not imported.
    """
    directory = Path(source)
    if directory.is_dir():
        described = read_config(directory)
        if (directory / ADAPTER).is_file():
            remedy = "merge them into the model (in peft: merge_and_unload) and save it, or take the files away"
            raise CheckpointError(
                f"{directory}: {ADAPTER}: weights of an adapter are beside those of the model; {remedy}"
            )
        found = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
        if not any_family:
            family_of(language_config(described))
        return Checkpoint(directory) if found else None
    if not is_hub_id(source):
        raise _no_directory(source)
    return None


def _no_directory(source: Path | str) -> CheckpointError:
    where = looked_in(source)
    return CheckpointError(f"{source}: no such directory{where}; give the path of a saved checkpoint or a hub id")


class _Failures:
    """Context manager that turns whatever loading libraries raise for files of a user into a `CheckpointError`."""

    def __init__(self, source: Path | str, what: str = "cannot be loaded") -> None:
        self.source, self.what = source, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = shorten(str(error).strip() or type(error).__name__, 400, placeholder=" …")
            raise CheckpointError(f"{self.source}: {self.what}: {reason}") from error
