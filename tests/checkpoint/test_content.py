"""Hashes of what an output depends on."""

import os
from pathlib import Path

import pytest

from mcsmoe.checkpoint import content
from mcsmoe.checkpoint.content import Content, identity, source_code


def test_identity_changes_with_every_file(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    seen = identity(tmp_path)
    (tmp_path / "b").write_text("2")
    assert identity(tmp_path)["a"] == seen["a"]
    assert identity(tmp_path)["b"] != seen["b"]


@pytest.mark.parametrize("large", [2**26, 2**18])
def test_identity_is_content_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int):
    """A weight that differs far behind the header, in a file of the same size and time, is another model."""
    monkeypatch.setattr(content, "LARGE", large)
    file, other, values = tmp_path / "a", tmp_path / "other", bytearray(2**21)
    file.write_bytes(values)
    os.utime(file, (1e9, 1e9))
    seen = identity(tmp_path)
    os.utime(file)
    assert identity(tmp_path) == seen
    values[-1] = 1
    other.write_bytes(values)
    os.utime(other, (1e9, 1e9))
    other.replace(file)
    assert identity(tmp_path).keys() == seen.keys()
    assert identity(tmp_path) != seen


def test_code_is_that_of_this_project_and_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_rules.py").write_text("a = 1")
    monkeypatch.syspath_prepend(tmp_path)
    seen = {source_code(), source_code(["my_rules"]), source_code(["tests"]), source_code(["my_rules"])}
    assert len(seen) == 3
    (tmp_path / "my_rules.py").write_text("a = 2")
    assert source_code(["my_rules"]) not in seen


def test_content_is_that_from_the_beginning(tmp_path: Path):
    (tmp_path / "a").write_text("1")
    first = Content(tmp_path)
    assert first() == identity(tmp_path)
    (tmp_path / "a").write_text("22")
    assert first() == {} != Content(tmp_path)()
