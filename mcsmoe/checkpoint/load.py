"""Loading models and their configurations; any missing or unexpected tensor is an error."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsmoe.checkpoint.config import precision, read_config
from mcsmoe.checkpoint.pickled import pickled_tensors
from mcsmoe.checkpoint.reader import Checkpoint, check_values
from mcsmoe.checkpoint.source import SMALL, check_source, fetch
from mcsmoe.errors import CheckpointError, UserError
from mcsmoe.families import auto_class, family_of, language_config, skeleton, sort_unexpected, sparse_layers

GENERATION = "generation_config.json"
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

    config, checkpoint, whole, trusted = _opened(directory, trust_remote_code, any_family)
    options: dict[str, Any] = {"config": config, "trust_remote_code": trusted}
    if getattr(config, "quantization_config", None):  # nothing here computes on quantised weights
        config.quantization_config["dequantize"] = True
    else:
        options["dtype"] = config.dtype or torch.float32
    if dtype is not None:
        options["dtype"] = dtype
    # With `ignore_mismatched_sizes` tensors of the wrong shape appear in the report, by name.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with Failures(source):
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
        check_values(source, name, value)
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
    return _opened(fetch(source, revision, SMALL), trust_remote_code, any_family).config


class _Opened(NamedTuple):
    """A configuration, what `check_source` returns, the outer configuration, and whether code of the source may run."""

    config: Any
    checkpoint: Checkpoint | None
    whole: Any
    trusted: bool


def _opened(directory: Path, trust_remote_code: bool, any_family: bool) -> _Opened:
    checkpoint = check_source(directory, any_family=any_family)
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the merged classes

    with Failures(directory):
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
        with Failures(directory, "config.json describes no model that can be built"):
            skeleton(config)
            sparse_layers(config)
        if getattr(config, "quantization_config", None) is None:
            check_numbers(directory, config, stored)
    return _Opened(config, checkpoint, whole, trusted)


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


class Failures:
    """Context manager that turns whatever loading libraries raise for files of a user into a `CheckpointError`."""

    def __init__(self, source: Path | str, what: str = "cannot be loaded") -> None:
        self.source, self.what = source, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = shorten(str(error).strip() or type(error).__name__, 400, placeholder=" …")
            raise CheckpointError(f"{self.source}: {self.what}: {reason}") from error
