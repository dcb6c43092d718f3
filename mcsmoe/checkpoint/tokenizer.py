"""Loading tokenizers, checked against the model that they belong to."""

from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.config import read_config
from mcsmoe.checkpoint.load import Failures, has_native_class
from mcsmoe.checkpoint.source import SMALL, check_source, fetch
from mcsmoe.errors import CheckpointError
from mcsmoe.families import language_config

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json")


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

    with Failures(source):
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
