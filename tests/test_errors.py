"""The library speaks of its arguments; where they stand in params.yaml, and which stage to run, only stages say."""

import ast
import re
from pathlib import Path

import pytest

import mcsmoe
from mcsmoe.errors import ConflictError, MemoryLimitError, ParameterError, UserError
from mcsmoe.params import Params
from tests.methods.params import small_params

PACKAGE = Path(mcsmoe.__file__).parent
PIPELINE = re.compile(r"params\.yaml|python -m stages|\bdvc\b", re.IGNORECASE)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_string_of_the_library_speaks_of_the_pipeline(file: Path):
    if file == PACKAGE / "params.py":
        return
    constants = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
    strings = [node.value for node in constants if isinstance(node.value, str)]
    # "dvc" alone is the name of a package, whose version the report gives.
    assert [text for text in strings if PIPELINE.search(text) and text != "dvc"] == []


def test_an_argument_that_cannot_be_used():
    error = ParameterError("groups", 9, "36 groups asked of all\nmerged layers")
    assert (error.name, error.value, error.where) == ("groups", 9, None)
    assert str(error) == "groups = 9: 36 groups asked of all merged layers"
    assert str(ParameterError("rank", "x", "a number", "my.yaml")) == "rank = 'x' in my.yaml: a number"
    assert str(MemoryLimitError(5, "merge", 1000, "raise it")) == "memory_limit = 5: merge needs 1,000 bytes; raise it"


@pytest.mark.parametrize(
    ("section", "change", "kind", "message"),
    [
        ("merge", {"groups": 0}, ParameterError, "merge.groups = 0 in my.yaml: Input should be greater than or equal"),
        ("memory_limit", {"a": 1}, ParameterError, "memory_limit = {'a': 1} in my.yaml: a size such as 16GB"),
        ("launch", {"fsdp": True}, ConflictError, "my.yaml: launch.fsdp = true shares a model out among processes"),
        ("merge", {"groups": ...}, UserError, "my.yaml: merge.groups is missing"),
    ],
)
def test_a_mistake_in_a_params_file_is_named_with_the_file(section, change, kind, message):
    values = small_params()
    old = values[section]
    values[section] = {k: v for k, v in ((old or {}) | change).items() if v is not ...}
    with pytest.raises(kind) as error:
        Params.parse(values, "my.yaml")
    assert str(error.value).startswith(message)
