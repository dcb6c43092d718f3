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
        ("merge", {"groups": 0}, ParameterError, "merge.groups = 0 in my.yaml: must be at least 1"),
        ("merge", {"groups": float("inf")}, ParameterError, "merge.groups = inf in my.yaml: must be a finite number"),
        ("merge", {"groups": True}, ParameterError, "merge.groups = True in my.yaml: a number, not true or false"),
        ("merge", {"grups": 3, "groups": ...}, ParameterError, "merge.grups = 3 in my.yaml: unknown key; known: "
         "groups, budget, capacity, exclude; did you mean 'groups'?"),
        ("permute", {"matching": "wieght"}, ParameterError, "permute.matching = 'wieght' in my.yaml: must be 'weight' "
         "or 'activation'; did you mean 'weight'?"),
        ("compress", {"beta": 1}, ParameterError, "compress.beta = 1 in my.yaml: must be at least 0 and less than 1"),
        ("collect", {"also": ["output"]}, ParameterError, "collect.also.0 = 'output' in my.yaml: must be 'input-gram'"),
        ("seed", True, ParameterError, "seed = True in my.yaml: a number, not true or false"),
        ("seed", 2**32, ParameterError, "seed = 4294967296 in my.yaml: must be at least 0 and less than 4,294,967,296"),
        ("plugins", [".x"], ParameterError, "plugins.0 = '.x' in my.yaml: a module as in `import`"),
        ("methods", {"merge": [".."]}, ParameterError, "methods.merge.0 = '..' in my.yaml: a method is named by "),
        ("model", {"hub": "../x"}, ParameterError, "model.hub = '../x' in my.yaml: an id as on the hub: OWNER/NAME"),
        ("model", None, ParameterError, "model = None in my.yaml: must be a section"),
        ("memory_limit", {"a": 1}, ParameterError, "memory_limit = {'a': 1} in my.yaml: a size such as 16GB"),
        ("launch", {"fsdp": True}, ConflictError, "my.yaml: launch.fsdp = true shares a model out among processes"),
        ("merge", {"groups": ...}, UserError, "my.yaml: merge.groups is missing"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_params_file_is_named_with_the_file(section, change, kind, message):
    values = small_params()
    old = values[section]
    change = {k: v for k, v in ((old or {}) | change).items() if v is not ...} if isinstance(change, dict) else change
    values[section] = change
    with pytest.raises(kind) as error:
        Params.parse(values, "my.yaml")
    assert str(error.value).startswith(message)
