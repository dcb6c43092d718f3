"""Methods by name, each with what it says of itself, found by importing the package that holds them."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mcsmoe.errors import UnknownNameError

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """Named entries of one kind; the modules of `package` are imported at the first look-up.

    `facts` are what an entry may say of itself, with what holds where it says nothing:
    `Registry("merging rule", "mcsmoe.merging", needs=None)`, then `@RULES.register("fisher", needs="gradients")`.
    Raises `UnknownNameError`, which lists the known names, for a name or a fact that is not there.
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
        """Decorator that files the decorated object under `name`, with its facts."""
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
        """What the entry `name` says of itself, or what holds for those that say nothing."""
        self._check_fact(fact)
        self[name]  # known, or refused
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
        """The module that registered `name`; an object may come from elsewhere than its class or function."""
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
