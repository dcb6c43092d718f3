"""Damaged copies of a file, the same for the same seed."""

import random
from collections.abc import Callable

MARKS = (b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"\n", b"\r", b"{", b"]", b",")
VALUES = (b"-1", b"1e999", b"NaN", b"null", b"true", b'"\\ud800"', b"9" * 5000, b"[" * 3000, b'{"a":' * 3000)
"""Bytes that stand for something else where they are put: marks, numbers out of range, thousands of levels."""


def mutated(data: bytes, seed: int) -> bytes:
    """`data` after one to three changes of the kinds in `CHANGES`."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(CHANGES)(data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start, length = rng.randint(0, len(data)), rng.choice((1, 2, 4, 16, 64))
    return start, min(len(data), start + length)


def _flip(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _bit(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    return data[:start] + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[start : start + 1]) + data[start + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _span(data, rng)[0]]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.randint(1, 4) + data[end:]


def _put(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.choice(MARKS + VALUES) + data[rng.choice((start, end)) :]


def _encode(data: bytes, rng: random.Random) -> bytes:
    return data.decode("latin-1").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _bit, _cut, _delete, _repeat, _put, _encode)
