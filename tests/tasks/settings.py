"""Task settings for tests."""

from typing import Any

from mcsmoe.params import TaskSection


def settings(**changes: Any) -> TaskSection:
    values = {
        "name": "skills",
        "data": None,
        "hub": None,
        "subset": None,
        "column": None,
        "revision": None,
        "max_source_length": 64,
        "max_target_length": 32,
        "selection": 10,
        "train_limit": None,
    }
    return TaskSection(**(values | changes))
