"""Text of all kinds of sources, and what is refused."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest

from mcsmoe.errors import DataError
from mcsmoe.shrinking import texts as module
from mcsmoe.shrinking.texts import MIX, PASSAGE, read_texts

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


class Chatty:
    """A tokenizer with a chat template."""

    chat_template = "yes"

    def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
        assert not tokenize
        return "".join(f"<{each['role']}>{each['content']}" for each in messages)


def read(source: str | None, tokenizer: Any = None, seed: int = 0) -> dict[str, list[str]]:
    return {kind: list(found) for kind, found in read_texts(source, seed, tokenizer).items()}


def test_files_of_a_directory_are_kinds(tmp_path: Path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.jsonl").write_text('{"text": "x = 1"}\n{"text": "y = 2"}\n')
    (tmp_path / "german.txt").write_text("Guten Tag")
    (tmp_path / "notes.pdf").write_text("not text")
    datasets.Dataset.from_dict({"content": ["a", "b"]}).to_parquet(tmp_path / "web.parquet")
    found = read(str(tmp_path))
    assert {kind: sorted(each) for kind, each in found.items()} == {
        "code": ["x = 1", "y = 2"],
        "german": ["Guten Tag"],
        "web": ["a", "b"],
    }


def test_the_order_is_that_of_the_seed(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(50)))
    first, again, other = (read(str(tmp_path / "a.jsonl"), seed=seed)["a"] for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_a_book_is_many_texts(tmp_path: Path):
    lines = [f"line {i} of a long book" for i in range(2_000)]
    (tmp_path / "book.txt").write_text("\n".join(lines))
    found = read(str(tmp_path / "book.txt"))["book"]
    assert len(found) > 5
    assert max(map(len, found)) <= PASSAGE
    assert sorted("".join(each if each.endswith("\n") else f"{each}\n" for each in found).splitlines()) == sorted(lines)
    (tmp_path / "line.txt").write_text("x" * (5 * PASSAGE))
    assert sum(map(len, read(str(tmp_path / "line.txt"))["line"])) == 5 * PASSAGE


def test_messages_take_the_form_the_model_was_taught(tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")
    assert read(str(tmp_path))["chat"] == ["hello\n\ngood day"]
    assert read(str(tmp_path), Chatty())["chat"] == ["<user>hello<assistant>good day"]


def test_without_a_source_all_kinds_come_from_the_hub(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load(hub: str, subset: str | None, split: str, streaming: bool) -> Any:
        asked.append((hub, subset, split))
        assert streaming
        columns = next(each.columns for sets in MIX.values() for each in sets if each.hub == hub)
        row = {name: MESSAGES if name == "messages" else f"{subset or hub} {name}" for name in columns}
        return datasets.IterableDataset.from_generator(lambda: iter([row] * 3))

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = {kind: list(islice(each, 4)) for kind, each in read_texts(None, 0, Chatty()).items()}
    assert list(found) == ["code", "chat", "prose", "mathematics", "languages"]
    assert found["code"][0] == (
        "theblackcat102/evol-codealpaca-v1 instruction\n\ntheblackcat102/evol-codealpaca-v1 output"
    )
    assert found["languages"] == [f"20231101.{language} text" for language in ("de", "fr", "es", "zh")]


def test_a_table_gives_the_text_that_stands_in_it(tmp_path: Path):
    texts = ["NA", "007", "3.10", "2020-01-02", "two\nlines"]
    (tmp_path / "a.csv").write_text("text,n\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(texts)))
    assert sorted(read(str(tmp_path))["a"]) == sorted(texts)


def test_messages_that_the_template_refuses_are_one_line(tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")

    class Strict(Chatty):
        def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
            raise TypeError("roles must\nalternate")

    message = r"chat\.jsonl, line 1: the model's chat template refuses these messages \(roles must alternate\)"
    with pytest.raises(DataError, match=message):
        read(str(tmp_path), Strict())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"story": "x"}\n', "no column text or content or messages .*; there are story"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": 7}\n', r"a\.jsonl, line 3: column text holds 7, not text"),
        ("a.jsonl", '{"text": null}\n', "column text holds null, not text"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "column text holds half a surrogate pair"),
        ("a.jsonl", '{"text": ["x"]}\n', r'column text\[0\] holds "x", not an object'),
        (
            "a.jsonl",
            '{"text": [{"role": "user", "content": null}]}\n',
            r"column text\[0\]\.content holds null, not text",
        ),
        ("a.jsonl", "{not json\n", r"a\.jsonl, line 1: not JSON"),
        ("a.csv", "story\nx\n", "no column text or .*; there are story"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.pdf", "x", r"no file that ends with \.txt"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, text: str | bytes, message: str):
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError, match=message) as error:
        read(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_source_that_is_nowhere(monkeypatch: pytest.MonkeyPatch):
    for path in ("no/such/place", "notes.txt", "texts/notes.jsonl"):
        with pytest.raises(DataError, match=f"text {path}: there is no such directory or file"):
            read(path)

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for source in ("someone/something", None):
        with pytest.raises(DataError, match=r"the hub does not give it \(no route\); give text of your own"):
            read(source)
    assert module.MIX  # what the second asked for
