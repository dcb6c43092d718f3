"""Damaged inputs, for tests of readers: every mutation of a file is read right, or refused in one line.

    @pytest.mark.parametrize("seed", range(COUNT))
    def test_a_damaged_plan(seed):
        PATH.write_bytes(mutated(WHOLE, seed))
        with right_or_one_line():
            Plan.load(PATH)

`MUTATIONS=1000 python -m pytest -k damaged` tries a thousand of each.
"""

import os
import random
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mcsmoe.errors import UserError

COUNT = int(os.environ.get("MUTATIONS", "25"))
"""Mutations of each file that a test tries: the environment variable MUTATIONS, by default 25."""
SECONDS = 20
"""A reader that takes longer hangs."""

TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+')
VALUES = (
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b".inf", b"-1", b"0", b"1.5", b"1e999", b"9223372036854775808"),
    *(b'""', b'"x"', b"[]", b"{}", b"[[]]", b'{"a": null}', b'"../../x"', b"2020-13-45", b"*a", b"&a [*a]", b"!!int x"),
    *(b"9" * 5000, b'"\\ud800"', b"\xff", b"\x00"),
)
ROOTS = (b"", b"\n", b"null", b"[]", b"{}", b"0", b'"text"', b"[[{}]]", b"--- a\n--- b\n", b"\x80\x04.", b"PK\x03\x04")


def mutated(data: bytes, seed: int) -> bytes:
    """`data` with one damage, or its neighbour; any ten seeds in a row give damages of all kinds."""
    damages = (_flip, _cut, _double, _delete, _swap, _replace, _replace, _nest, _encode, _root)
    return damages[seed % len(damages)](data, random.Random(seed))


@contextmanager
def right_or_one_line() -> Iterator[None]:
    """Let a `UserError` of one line pass; anything else, and work that does not end, fails the test."""

    def hang(_: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still reading after {SECONDS} s")

    line = "right"
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    except UserError as error:
        line = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert line.strip()
    assert "\n" not in line
    assert len(line) < 2000, "a line that nobody can read"


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.choice((1, 8, 64, 512)))


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 32)) if data else 0):
        changed[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _double(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:end] + data[start:]


def _delete(data: bytes, chance: random.Random) -> bytes:
    start, end = _span(data, chance)
    return data[:start] + data[end:]


def _swap(data: bytes, chance: random.Random) -> bytes:
    a, b, c, d = sorted(_span(data, chance) + _span(data, chance))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _token(data: bytes, chance: random.Random) -> tuple[int, int]:
    """Where a word, a number or a quoted text stands."""
    return chance.choice([found.span() for found in TOKEN.finditer(data)] or [(0, len(data))])


def _replace(data: bytes, chance: random.Random) -> bytes:
    """Put another value in the place of a token: one of `VALUES`, or another token of the file."""
    start, end = _token(data, chance)
    other = slice(*_token(data, chance))
    return data[:start] + chance.choice((*VALUES, data[other])) + data[end:]


def _nest(data: bytes, chance: random.Random) -> bytes:
    """Put a value in the place of a token that is nested deeper than parsers recurse, or nearly so."""
    start, end = _token(data, chance)
    depth = chance.choice((200, 20_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a": ', b"}"), (b"- ", b"")))
    return data[:start] + opening * depth + b"0" + closing * depth + data[end:]


def _encode(data: bytes, chance: random.Random) -> bytes:
    """Another encoding, a byte order mark, or bytes that no text has."""
    text = data.decode("utf-8", "replace")
    damages = (
        text.encode("utf-16"),
        text.encode("utf-32"),
        b"\xef\xbb\xbf" + data,
        data.replace(b"a", "ä".encode("latin-1")),
        data.replace(b"\n", b"\r"),
        data.replace(b" ", b"\t"),
        data + b"\x00" * 100,
        b"\x00" * len(data),
    )
    return chance.choice(damages)


def _root(_: bytes, chance: random.Random) -> bytes:
    return chance.choice(ROOTS)
