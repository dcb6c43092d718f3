"""Methods by name, and what they say of themselves."""

import pytest

from mcsmoe.errors import UnknownNameError
from mcsmoe.registry import Registry


def rules() -> Registry[str]:
    found: Registry[str] = Registry("merging rule", "tests.methods", needs=None, looks=False)
    found.register("plain")("the plain one")
    found.register("curious", looks=True)("the curious one")
    return found


def test_a_method_says_what_differs_from_most():
    found = rules()
    assert found["curious"] == "the curious one"
    assert [found.fact(name, "looks") for name in found] == [True, False]
    assert [found.fact(name, "needs") for name in found] == [None, None]


def test_what_nobody_knows_is_refused():
    found = rules()
    with pytest.raises(UnknownNameError, match="unknown merging rule 'plane'; known: curious, plain"):
        found.fact("plane", "looks")
    with pytest.raises(UnknownNameError, match="unknown fact of a merging rule 'look'; known: looks, needs"):
        found.register("shy", look=False)
    with pytest.raises(UnknownNameError, match="unknown fact of a merging rule 'look'"):
        found.fact("plain", "look")
    assert "shy" not in found


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'plain' is registered twice"):
        rules().register("plain")("another")
