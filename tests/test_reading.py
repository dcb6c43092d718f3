"""YAML and JSON mean one thing, or are refused in one line."""

from pathlib import Path

import pytest

from mcsmoe.errors import ParameterError
from mcsmoe.fields import find_directory
from mcsmoe.params import Params
from mcsmoe.reading import parse_as, parse_json, parse_yaml
from tests.mutations import COUNT, mutated, right_or_one_line

PARAMS = Path(__file__).parent.parent / "params.yaml"
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 10)) for name in b"bcdefg"
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: 1\nb: {c: 1, c: 2}", "^the key 'c' twice .line 2.$"),
        (
            b"a: !!python/object/apply:os.getcwd []",
            "^the tag tag:yaml.org,2002:python/object/apply:os.getcwd .line 1.$",
        ),
        (b"a: !!int 3", "^the tag "),
        (b"a: &a [*a]", "^nested more than 50 deep$"),
        (b"[" * 100_000, "^nested more than 50 deep$"),
        (BOMB, "^more than 100,000 values$"),
        (b"? [a]\n: b", "^a list or a mapping as a key .line 1.$"),
        (b"a:\n- .inf", "^.inf is no number .line 2.$"),
        (b"a: .nan", "^.nan is no number"),
        (b'a: "\\0"', "is no text .line 1.$"),
        (b'a: "\\ud800"', "is no text .line 1.$"),
        (b"a: [1", "^not YAML: .*line 1"),
        (b"--- a\n--- b", "^not YAML: .*another document"),
        (b"a: " + b"9" * 5000, "4300 digits"),
        ("a: 1".encode("utf-16"), "^not text in UTF-8: byte 1 is 0xff$"),
        ("a: ü".encode("latin-1"), "^not text in UTF-8: byte 4 is 0xfc$"),
    ],
)
def test_yaml_that_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(data)


def test_yaml_that_is_taken():
    text = "\ufeffday: 2024-01-32\nshared: &x {a: 1}\nagain: *x\nsame: [=, <<, ü]\n"
    values = {"day": "2024-01-32", "shared": {"a": 1}, "again": {"a": 1}, "same": ["=", "<<", "ü"]}
    assert parse_yaml(text.encode()) == values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 1}', "^the key 'a' twice$"),
        (b"[NaN]", "^NaN is no number$"),
        (b"[-Infinity]", "^-Infinity is no number$"),
        (b"[1e999]", "^1e999 is no number$"),
        (b"[" * 100_000, "^nested more than 50 deep$"),
        (b"[" * 60 + b"]" * 60, "^nested more than 50 deep$"),
        (b"", "Expecting value"),
        (b"[1]\x00", "Extra data"),
        ("{}".encode("utf-16"), "^not text in UTF-8"),
    ],
)
def test_json_that_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        parse_json(data)


def test_json_of_a_type():
    assert parse_as(dict[str, int | float], b'\xef\xbb\xbf{"a": 1, "b": 2.0}') == {"a": 1, "b": 2.0}
    with pytest.raises(ValueError, match=r"^a\.int: "):
        parse_as(dict[str, int | float], b'{"a": true}')


def test_damaged_params_are_one_line(tmp_path):
    whole = PARAMS.read_bytes()
    for seed in range(COUNT):
        (tmp_path / "my.yaml").write_bytes(mutated(whole, seed))
        with right_or_one_line():
            Params.load(tmp_path / "my.yaml")


@pytest.mark.parametrize("source", ["x" * 5000, "a/" * 3000, "\ud800", "\0"])
def test_a_path_that_cannot_be_is_one_of_nothing(source):
    assert find_directory(source) == Path(source)


def test_what_is_no_yaml_names_the_file(tmp_path):
    (tmp_path / "my.yaml").write_bytes(b"a: 1\na: 2")
    with pytest.raises(ParameterError, match=r"^file = .*my\.yaml: the key 'a' twice .line 2.$"):
        Params.load(tmp_path / "my.yaml")
