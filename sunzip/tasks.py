"""Work that other threads do, waited for in a way that Ctrl-C may break off at any moment."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Task(Generic[_T]):
    """Work that another thread does.

    Unlike a Future, it bears Ctrl-C while it is waited for: at the wrong moment that leaves a Future locked,
    and the thread that wants to set its result waits for ever.
    """

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[..., _T], *args: Any) -> None:
        self._box: SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = SimpleQueue()
        pool.submit(self._run, work, args)

    def _run(self, work: Callable[..., _T], args: tuple[Any, ...]) -> None:
        try:
            self._box.put((work(*args), None))
        except BaseException as error:
            self._box.put((None, error))

    def result(self) -> _T:
        """Wait for the work to be done, and return or raise what came of it; as often as asked."""
        found = self._box.get()
        self._box.put(found)
        if found[1] is not None:
            raise found[1]
        return found[0]
