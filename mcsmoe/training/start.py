"""The model and tokenizer that fine-tuning starts from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.companions import companions
from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.source import SMALL, fetch
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.checkpoint.verify import check_headers
from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.families import family_of, language_config, merged_layers, sparse_layers
from mcsmoe.params import ModelSection
from mcsmoe.tasks.task import Example
from mcsmoe.tasks.tokenizer import train_tokenizer
from mcsmoe.training.untrained import in_plain_safetensors

FROM_TOKENIZER = ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")


def check_model(settings: ModelSection) -> Any:
    """Return the model's configuration, to refuse a wrong one before any data is read.

    Of a checkpoint in a directory, names, shapes and dtypes of the tensors are checked, too.
    Raises `CheckpointError` for a checkpoint that is missing, merged already or beside an adapter, or that has tensors
    that are not the model's, `ParameterError` for a key of `config` that the model type does not have.
    """
    directory = origin_directory(settings)
    if directory is None:
        return _configuration(settings, {})
    config = load_config(directory, trust_remote_code=settings.trust_remote_code)
    if merged_layers(config) is not None:
        raise CheckpointError(f"{settings.origin}: merged already; give the model that it was made of")
    source = source_tensors(settings) if isinstance(settings.origin, Path) else None
    if source is not None:
        check_headers(source)
    return config


def check_companions(settings: ModelSection) -> None:
    """Raise `CheckpointError` if the checkpoint to start from has no tokenizer that loads, or links out of it."""
    directory = origin_directory(settings)
    if directory is not None:
        load_tokenizer(directory, trust_remote_code=settings.trust_remote_code)
        list(companions(directory))


def origin_directory(settings: ModelSection) -> Path | None:
    """The directory of the checkpoint to start from, its small files fetched if it is on the hub; None without one.

    Raises `CheckpointError` if it is missing.
    """
    return None if settings.origin is None else fetch(settings.origin, settings.revision, SMALL)


def source_tensors(settings: ModelSection) -> Published | None:
    """The tensors of the checkpoint to start from; None if they cannot be read one by one, or if there is none.

    Raises `ParameterError` if they cannot and layers for multi-token prediction should be kept.
    """
    if settings.origin is None:
        return None
    directory = fetch(settings.origin, settings.revision)
    config = read_json(directory / "config.json")
    if in_plain_safetensors(directory) and language_config(config) is config:
        return Published(Checkpoint(directory), keep_mtp=settings.keep_mtp)
    if settings.keep_mtp:
        raise ParameterError("keep_mtp", True, f"{settings.origin} has no plain safetensors to copy such layers from")
    return None


def start_model(settings: ModelSection, examples: Sequence[Example]) -> tuple[Any, Any]:
    """Return (model, tokenizer): those of a checkpoint, or random weights and a tokenizer trained on `examples`.

    Random weights depend on torch's global seed. Raises `CheckpointError` or `ParameterError`, as `check_model` does.
    """
    tokenizer = start_tokenizer(settings, examples)
    if settings.origin is not None:
        origin: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
        return load_model(settings.origin, **origin), tokenizer
    causal = family_of(check_model(settings)).causal
    return _random_model(_configuration(settings, _ids(tokenizer, causal))), tokenizer


def start_tokenizer(settings: ModelSection, examples: Sequence[Example]) -> Any:
    """Return the tokenizer of `start_model`, without the model. Raises `CheckpointError` if the checkpoint has none."""
    if settings.origin is not None:
        return load_tokenizer(settings.origin, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    assert settings.tokenizer is not None  # params refuse it
    texts = (text for e in examples for text in dict.fromkeys((e.source, e.target)))
    return train_tokenizer(texts, settings.tokenizer, causal=family_of(check_model(settings)).causal)


def check_dense(settings: ModelSection, config: Any) -> None:
    """Check that a model with configuration `config` can have the dense baseline that `settings` ask for.

    Raises `ParameterError` if it cannot, `CheckpointError` for a checkpoint that is missing.
    """
    if settings.origin is None:
        if family_of(config).dense_type is None:
            raise ParameterError("dense", ["dense"], f"{config.model_type} has no dense counterpart")
    elif settings.dense_origin is None:
        raise ParameterError("dense_source", None, "a model with a source needs a dense checkpoint beside it")
    elif sparse_layers(load_config(settings.dense_origin, trust_remote_code=settings.trust_remote_code)):
        raise ParameterError(
            "dense_source", settings.dense_source or settings.dense_hub, "it has experts; name a dense model"
        )


def start_dense(settings: ModelSection, config: Any, tokenizer: Any) -> Any:
    """Return the dense baseline of a model with configuration `config`: one of the same active size.

    It starts from a checkpoint if the full model does, else from random weights. Raises as `check_dense` does, and
    `ParameterError` for a checkpoint with a smaller vocabulary than the tokenizer.
    """
    check_dense(settings, config)
    if settings.origin is None:
        import transformers

        return _random_model(transformers.AutoConfig.for_model(**family_of(config).dense_config(config)))
    assert settings.dense_origin is not None  # checked above
    model = load_model(settings.dense_origin, trust_remote_code=settings.trust_remote_code)
    if model.config.vocab_size < len(tokenizer):
        raise ParameterError(
            "dense_source",
            settings.dense_source or settings.dense_hub,
            f"has {model.config.vocab_size} tokens, the full model's tokenizer {len(tokenizer)}",
        )
    return model


def _random_model(config: Any) -> Any:
    import transformers

    return getattr(transformers, family_of(config).auto_class).from_config(config)


def _ids(tokenizer: Any, causal: bool) -> dict[str, int]:
    """Configuration fields that the tokenizer sets; a decoder starts with the pad token, as in T5."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    start = {"bos_token_id": end} if causal else {"decoder_start_token_id": pad}
    return {"vocab_size": len(tokenizer), "pad_token_id": pad, "eos_token_id": end} | start


def _configuration(settings: ModelSection, ids: dict[str, int]) -> Any:
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    values = dict(settings.config)
    model_type = values.pop("model_type", None)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ParameterError("config.model_type", model_type, "must name a model type of transformers")
    known = transformers.AutoConfig.for_model(model_type)
    for name in values:
        if not hasattr(known, name):
            raise ParameterError(f"config.{name}", values[name], f"{model_type} has no such field")
        if name in FROM_TOKENIZER:
            raise ParameterError(f"config.{name}", values[name], "is set by the tokenizer; leave it out")
    return transformers.AutoConfig.for_model(model_type, **values, **ids)
