"""Work on the next batch beside the backward pass of this one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


class Ahead(Generic[Item, Value]):
    """Makes a value of each item; the next one can be made in a thread while this one is used.

        with Ahead(items, make, beside=True) as made:
            item, value = made.take()
            loss = ...       # Python code, beside which a thread would only wait its turn
            made.start()     # begins to make the next value
            loss.backward()  # needs no interpreter, which is then free for the thread

    Items are drawn in the caller's thread. What `make` raises, `take` raises. With `beside` false there is no thread,
    and `take` makes the value, which is the same: torch computes alike in all threads.
    """

    def __init__(self, items: Iterator[Item], make: Callable[[Item], Value], beside: bool) -> None:
        self._items, self._make = items, make
        self._thread = ThreadPoolExecutor(1) if beside else None
        self._next: tuple[Item, Callable[[], Value]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)

    def start(self) -> None:
        """Begin with the next item; do nothing after the last."""
        for item in islice(self._items, 1):
            made = self._thread.submit(self._make, item).result if self._thread else partial(self._make, item)
            self._next = item, made

    def take(self) -> tuple[Item, Value]:
        """The next item and its value. Raises `StopIteration` after the last."""
        if self._next is None:
            self.start()
        if self._next is None:
            raise StopIteration
        (item, made), self._next = self._next, None
        return item, made()
