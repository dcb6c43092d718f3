"""Where the text for comparing experts and measuring models comes from: files, a hub data set, or a mix of them."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.fields import HUB_ID
from mcsmoe.tasks.files import READERS, Row, names, read_file
from mcsmoe.tasks.reading import check_shape

Texts = dict[str, Iterator[str]]
"""Kind of text, such as "code" → its texts."""


@dataclass(frozen=True)
class HubText:
    """A data set on the hub: its id, configuration and split, and the columns whose texts make one text.

    Columns with messages, lists of `{"role": ..., "content": ...}`, are read in the form that the model was taught.
    """

    hub: str
    subset: str | None = None
    split: str = "train"
    columns: tuple[str, ...] = ("text",)


LANGUAGES = ("de", "fr", "es", "zh", "ja", "ar", "ru")
MIX: Mapping[str, tuple[HubText, ...]] = {
    "code": (HubText("theblackcat102/evol-codealpaca-v1", columns=("instruction", "output")),),
    "chat": (HubText("HuggingFaceH4/ultrachat_200k", split="train_sft", columns=("messages",)),),
    "prose": (HubText("HuggingFaceFW/fineweb-edu", "sample-10BT"),),
    "mathematics": (HubText("open-web-math/open-web-math"),),
    "languages": tuple(HubText("wikimedia/wikipedia", f"20231101.{language}") for language in LANGUAGES),
}
"""Kind of text → data sets that are read in turn, for those who give no text of their own."""

MOST_KINDS = 16
PASSAGE = 4_000
"""Characters of the longest text; a longer one is cut, so that one book is not the whole sample."""
TEXT_COLUMNS = ("text", "content", "messages", "conversation", "sentence")
"""Columns that are looked for, in this order, in files and data sets that nobody described."""
MESSAGES = [{"role": str, "content": str}]
PLAIN = (".txt", ".md")
FILES = (*PLAIN, *READERS)


def read_texts(source: str | None, seed: int, tokenizer: Any) -> Texts:
    """The texts of a directory, a file, a hub data set, or (None) of `MIX`, by kind, each kind in a seeded order.

    The kind of a text from a directory is the name of its file, without a split; that of any other text is its source.
    Texts come as they are needed. Raises `DataError` if there is no such source; reading raises it, too, if a file is
    damaged or no hub can be reached.
    """
    if source is None:
        return {kind: in_turn([_hub(each, seed, tokenizer) for each in sets]) for kind, sets in MIX.items()}
    if Path(source).is_dir():
        return {kind: _files(files, seed, tokenizer) for kind, files in _by_kind(Path(source)).items()}
    if Path(source).is_file():
        return {Path(source).name.split(".")[0]: _files([Path(source)], seed, tokenizer)}
    if HUB_ID.fullmatch(source) and not source.endswith(FILES):
        return {source: _hub(HubText(source, columns=()), seed, tokenizer)}
    raise DataError(f"text {source}: there is no such directory or file, and it is no hub id")


def in_turn(iterators: list[Iterator[Any]]) -> Iterator[Any]:
    """One item of each, again and again, until all are at an end."""
    left = list(iterators)
    while left:
        for iterator in tuple(left):
            try:
                yield next(iterator)
            except StopIteration:
                left.remove(iterator)


def _by_kind(directory: Path) -> dict[str, list[Path]]:
    """Files with text by kind: `code/train.jsonl` and `code.jsonl` are "code", `train.jsonl` is named by its directory.

    Many small files, such as the chapters of a book, are one kind.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name.endswith(FILES):
            stem = path.name.split(".")[0]
            kind = path.parent.name if stem in ("train", "validation", "test") else stem
            found.setdefault(kind, []).append(path)
    if not found:
        raise DataError(f"text {directory}: no file that ends with {', '.join(FILES)}")
    return found if len(found) <= MOST_KINDS else {directory.name: list(chain.from_iterable(found.values()))}


def _files(paths: list[Path], seed: int, tokenizer: Any) -> Iterator[str]:
    order, rng = list(paths), random.Random(seed)
    rng.shuffle(order)
    for path in order:
        yield from _file(path, seed, tokenizer)


def _file(path: Path, seed: int, tokenizer: Any) -> Iterator[str]:
    """The texts of a file in a seeded order; all rows are looked at before the first is given."""
    if path.suffix in PLAIN:
        try:
            passages = list(_passages(path.read_text("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise DataError(f"text {path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        random.Random(seed).shuffle(passages)
        yield from passages
        return
    found = [(row.where, _values(row, ())) for row in read_file(path)]
    for i in np.random.default_rng(seed).permutation(len(found)):
        where, values = found[i]
        yield from _passages(_text(values, where, tokenizer))


def _hub(source: HubText, seed: int, tokenizer: Any) -> Iterator[str]:
    """The texts of a hub data set, read from the network as they are needed."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(source.hub, source.subset, split=source.split, streaming=True)
        for each in rows.shuffle(seed=seed, buffer_size=1_000):
            row = Row(f"text {source.hub}", each)
            yield from _passages(_text(_values(row, source.columns), row.where, tokenizer))
    except DataError:
        raise
    except Exception as error:  # whatever the network or the data set raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"text {source.hub}: the hub does not give it ({reason[:200]}); give text of your own: "
            "--text with a directory, or a .txt, .jsonl, .parquet or .csv file"
        ) from None


def _values(row: Row, columns: tuple[str, ...]) -> list[Any]:
    """The texts or messages of one row: its `columns`, or the first of `TEXT_COLUMNS` that it has.

    Raises `DataError` for a column that is missing or holds neither.
    """
    wanted = columns or next(((name,) for name in TEXT_COLUMNS if name in row.values), ())
    if not wanted or not all(name in row.values for name in wanted):
        missing = " or ".join(columns or TEXT_COLUMNS)
        raise DataError(f"{row.where}: no column {missing}; there are {names(row.values)}")
    values = [row.values[name] for name in wanted]
    for name, value in zip(wanted, values, strict=True):
        check_shape(value, MESSAGES if isinstance(value, list) else str, f"{row.where}: column {name}")
    return values


def _text(values: list[Any], where: str, tokenizer: Any) -> str:
    """Texts and messages as one text."""
    return "\n\n".join(each if isinstance(each, str) else _conversation(each, where, tokenizer) for each in values)


def _conversation(messages: list[Any], where: str, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(each["content"] for each in messages)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # whatever the template raises, such as for roles that it does not know
        raise DataError(f"{where}: the model's chat template refuses these messages ({error})") from None


def _passages(text: str) -> Iterator[str]:
    """The text in passages of at most about `PASSAGE` characters, cut between lines where there are any."""
    passage = ""
    for line in text.splitlines(keepends=True):
        if passage and len(passage) + len(line) > PASSAGE:
            yield passage
            passage = ""
        passage += line
        while len(passage) > 2 * PASSAGE:
            yield passage[:PASSAGE]
            passage = passage[PASSAGE:]
    if passage.strip():
        yield passage
