"""Registries of methods, tasks and families by name, filled by importing the package that contains them."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mcsmoe.errors import UnknownNameError

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """Named entries of one kind; the modules of `package` are imported at the first lookup.

    `facts` are the properties that an entry may declare, with their defaults:

        RULES = Registry("merging rule", "mcsmoe.merging", needs=None)
        @RULES.register("fisher", needs="gradients")
        RULES.fact("fisher", "needs")  # "gradients"

    Raises `UnknownNameError`, which lists the known names, for an unknown name or fact.
    """

    def __init__(self, kind: str, package: str, **facts: Any) -> None:
        self.kind = kind
        self._package = package
        self._defaults = facts
        self._entries: dict[str, Any] = {}
        self._modules: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._complete = False

    def register(self, name: str, **facts: Any) -> Callable[[S], S]:
        """Decorator that registers an object under `name`, with its facts.

        Raises `ValueError` for a name that is taken, `UnknownNameError` for an unknown fact.
        """
        module: str = sys._getframe(1).f_globals["__name__"]
        for fact in facts:
            self._check_fact(fact)

        def file(entry: S) -> S:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            self._modules[name] = module
            self._facts[name] = self._defaults | facts
            return entry

        return file

    def fact(self, name: str, fact: str) -> Any:
        """The value of a fact that the entry `name` declares, or the default."""
        self._check_fact(fact)
        self[name]  # raises for an unknown name
        return self._facts[name][fact]

    def _check_fact(self, fact: str) -> None:
        if fact not in self._defaults:
            raise UnknownNameError(f"fact of a {self.kind}", fact, self._defaults)

    def __getitem__(self, name: str) -> T:
        self._import_all()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def module_of(self, name: str) -> str:
        """The module that registered `name`, which need not be the one that defines the class of the object."""
        self[name]
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        self._import_all()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        self._import_all()
        return name in self._entries

    def _import_all(self) -> None:
        if not self._complete:
            self._complete = True
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                importlib.import_module(f"{self._package}.{module.name}")
