"""What was made lately and may be wanted again, within a limit of memory; threads and forks share it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import Event, Lock
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """Values by key, of which those are forgotten first that were asked for longest ago.

    For a module, not for objects that come and go: the process tells it of forks as long as it runs.

    Parameters
    ----------
    most
        Bytes of all that are kept.
    fewest
        Values that are kept even if they have more.
    """

    def __init__(self, most: int, fewest: int = 0) -> None:
        self._most, self._fewest = most, fewest
        self._held: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self._bytes = 0
        self._made: dict[_K, Event] = {}
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):  # Windows knows no fork
            os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        # A fork may find the lock taken, and values being made, by threads that it has not.
        self._lock = Lock()
        self._made = {}

    def get(self, key: _K) -> _V | None:
        """Return a value, or None if it is forgotten or was never there."""
        with self._lock:
            return self._get(key)

    def _get(self, key: _K) -> _V | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    @contextmanager
    def making(self, key: _K) -> Iterator[_V | None]:
        """Yield a value, or None if it is to be made inside; whoever asks meanwhile waits until it is.

        Nobody waits twice: where what was made is not kept, being too large, all make it side by side.
        """
        with self._lock:
            found, other = self._get(key), self._made.get(key)
            ours = found is None and other is None
            if ours:
                self._made[key] = Event()
        if not ours:
            if found is None and other is not None:
                other.wait()
                found = self.get(key)
            yield found
            return
        try:
            yield None
        finally:
            with self._lock:
                made = self._made.pop(key, None)  # who forked meanwhile has none
            if made is not None:
                made.set()

    def put(self, key: _K, value: _V, nbytes: int) -> None:
        """Remember a value of so many bytes."""
        with self._lock:
            self._bytes += nbytes - self._held.pop(key, (None, 0))[1]
            self._held[key] = value, nbytes
            while self._bytes > self._most and len(self._held) > self._fewest:
                self._bytes -= self._held.popitem(last=False)[1][1]
