"""In which order the frames of a block are coded, and which others each builds on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

from sunzip.errors import DamagedError

#: Frames furthest apart of which one may build on the other; a payload has four bits for the number.
FURTHEST = 15

#: Decoded frames that may wait at once for others that build on them. In `order` never more than 5 do.
MOST_KEPT = 32

#: Frames of a group, whose last is coded before the others; and how alike they must be for that.
GROUP, _ALIKE = 8, 0.3

#: How alike frames are that are taken for it without asking others of the block.
_SURELY_ALIKE = 0.9

_T = TypeVar("_T")


class Step(NamedTuple):
    """A frame to be coded.

    Attributes
    ----------
    place
        Its number among those to be coded.
    back, ahead
        How many frames before and after it those are that it builds on; 0 for none.
    depth
        0 for a frame that builds on none, 1 for the last of a group, and one more for each halving of what
        lies between.
    """

    place: int
    back: int
    ahead: int
    depth: int

    @property
    def builds_on(self) -> tuple[int | None, int | None]:
        """Places of the frames before and after it on which it builds."""
        return (
            self.place - self.back if self.back else None,
            self.place + self.ahead if self.ahead else None,
        )


def order(count: int, follows: bool, likeness: float) -> Iterator[Step]:
    """Yield frames in an order in which what they build on comes first.

    First the last of a group, from what comes before the group; then the one in the middle, from both; and
    so on within each half. Of frames that are too unlike each builds on the one before it.

    Parameters
    ----------
    count
        Frames.
    follows
        Whether a frame that the first may build on comes before them.
    likeness
        See `sunzip.codec.family.Family.likeness`.
    """
    if count and not follows:
        yield Step(0, 0, 0, 0)
    last = -1 if follows else 0
    group = GROUP if likeness >= _ALIKE else 1
    while last < count - 1:
        end = min(last + group, count - 1)
        yield Step(end, end - last, 0, 1)
        yield from _between(last, end, 2)
        last = end


def _between(begin: int, end: int, depth: int) -> Iterator[Step]:
    if end - begin > 1:
        middle = (begin + end) // 2
        yield Step(middle, middle - begin, end - middle, depth)
        yield from _between(begin, middle, depth + 1)
        yield from _between(middle, end, depth + 1)


def around(place: int, count: int) -> list[int]:
    """Return some of so many frames, rising, that build on one or lie beside such: every other one."""
    near = [place + sign * n for sign in (-1, 1) for n in range(1, GROUP - 1, 2)]
    return sorted(n for n in near if 0 <= n < count)


def likeness(frames: Sequence[_T], of: Callable[[Sequence[_T]], float]) -> float:
    """Return how alike frames are, by what is said `of` three that follow each other; 0 of fewer than three.

    Those in the middle are asked, and where they are not surely alike the first and the last as well: a frame
    among them may be spoiled, which says nothing of the others. The median is taken.
    """
    last = len(frames) - 3
    if last < 0:
        return 0.0
    found: list[float] = []
    for begin in dict.fromkeys(((last + 1) // 2, 0, last)):
        found.append(of(frames[begin : begin + 3]))
        if found[0] >= _SURELY_ALIKE:
            break
    return sorted(found)[len(found) // 2]


def needed(wanted: Iterable[int], builds_on: Callable[[int], Iterable[int]]) -> list[int]:
    """Return the frames wanted and all that these build on, each after those that it builds on.

    Raises
    ------
    DamagedError
        If frames build on each other in a circle, or more than `MOST_KEPT` are to be kept at once.
    """
    done: dict[int, bool] = {}  # whether all that it builds on has been seen
    found = []
    for first in wanted:
        stack = [first]
        while stack:
            place = stack[-1]
            if place not in done:
                done[place] = False
                below = [other for other in builds_on(place) if not done.get(other)]
                if any(other in done for other in below):
                    raise DamagedError("frames of a block build on each other in a circle")
                stack += below
                continue
            stack.pop()
            if not done[place]:
                done[place] = True
                found.append(place)
    _refuse_many(found, builds_on)
    return found


def _refuse_many(places: Sequence[int], builds_on: Callable[[int], Iterable[int]]) -> None:
    """Refuse frames that, decoded in this order, have too many kept: few bytes would take all memory."""
    last = {other: place for place in places for other in builds_on(place)}
    ends = Counter(last.values())
    kept = 0
    for place in places:
        kept += (place in last) - ends[place]
        if kept > MOST_KEPT:
            raise DamagedError(f"more than {MOST_KEPT} frames of a block wait for others that build on them")


class Kept(Generic[_T]):
    """What is left of frames, each for as long as some frame that builds on it is to come.

    Threads may share it.

    Parameters
    ----------
    uses
        Every frame that is built on, once for each that does so; None is nothing.
    """

    def __init__(self, uses: Iterable[int | None]) -> None:
        self._uses = Counter(place for place in uses if place is not None)
        self._left: dict[int, _T] = {}
        self._lock = Lock()

    def wanted(self, place: int) -> bool:
        """Tell whether some frame is still to build on it."""
        return self._uses[place] > 0

    def put(self, place: int, value: _T) -> None:
        """Keep a frame, if it is wanted."""
        with self._lock:
            if self.wanted(place):
                self._left[place] = value

    def take(self, place: int | None) -> _T | None:
        """Return a frame for one that builds on it; None if there is none."""
        if place is None:
            return None
        with self._lock:
            self._uses[place] -= 1
            return self._left.get(place) if self.wanted(place) else self._left.pop(place, None)
