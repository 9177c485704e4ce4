"""Films to train the wavelet codec on: frames, each with the one before it as a codec leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, overload

import numpy as np

from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.codec.images import stable_frame
from sunzip.codec.lanes import side_by_side
from sunzip.codec.wavelet import WaveletFamily
from sunzip.normalize import Stabiliser
from sunzip.rotation import MAX_MINUTES, foretold
from sunzip.train.frames import Frames, Half
from sunzip.train.pyramids import Pyramid, pyramid
from sunzip.train.wavelet import Film, coded

#: Frames of a film, and the quality below which a film's is drawn: above, no frame needs another.
LENGTH, COARSE = 5, 90

#: Ways in which a frame can be mirrored and turned by quarters.
_SYMMETRIES = 8


class Left(NamedTuple):
    """What a decoder can foretell of a frame by others.

    Attributes
    ----------
    channels
        Those that it has in common with them.
    images
        (C, S, S) stabilised, in single or half precision.
    step
        (C,) steps with which it is coded then; None if those others are as they were.
    """

    channels: list[int]
    images: Float | Half
    step: Float | None


def whole(images: Float, channels: Sequence[int]) -> Float:
    """Return (12, S, S) of images (C, S, S) of some channels; 0 elsewhere."""
    out = np.zeros((len(NAMES), *images.shape[1:]), np.float32)
    out[list(channels)] = images
    return out


def follow(frames: Frames) -> dict[int, int]:
    """Return the numbers of frames that those before tell something of, and the minutes between."""
    apart = np.rint(np.diff(frames.time) / np.timedelta64(1, "m")).astype(int)
    present = frames.present
    both = (present[1:] & present[:-1]).any(1)
    return {int(n) + 1: int(apart[n]) for n in np.flatnonzero((apart <= MAX_MINUTES) & both)}


class Films(Sequence[Pyramid]):
    """Frames as pyramids, each in eight symmetries, made when they are asked for.

    Parameters
    ----------
    frames
        Square ones whose side is a power of two.
    stabiliser
        What they go through.
    rows
        Numbers of those that are meant; such as have some channel.
    before
        Called with such a number, it returns what others foretell of that frame, or None.
    """

    def __init__(
        self,
        frames: Frames,
        stabiliser: Stabiliser,
        rows: Sequence[int],
        before: Callable[[int], Left | None] = lambda _: None,
    ) -> None:
        self._frames, self._stabiliser = frames, stabiliser
        self._rows, self._before = rows, before

    def __len__(self) -> int:
        return _SYMMETRIES * len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pyramid: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pyramid]: ...
    def __getitem__(self, index: int | slice) -> Pyramid | Sequence[Pyramid]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row, symmetry = self._rows[index // _SYMMETRIES], index % _SYMMETRIES
        left = self._before(row)
        channels, images = stable(self._frames, row, self._stabiliser)
        if left is None:
            return pyramid(images, channels, None, None, symmetry, index)
        images = images[[channels.index(c) for c in left.channels]]
        known = left.images.astype(np.float32)
        return pyramid(images, left.channels, known, left.step, symmetry, index)


def stable(frames: Frames, row: int, stabiliser: Stabiliser) -> tuple[list[int], Float]:
    """Return a frame's channels and their stabilised images, (C, S, S), as codecs hand them to a family."""
    example = frames[row]
    channels = np.flatnonzero(example.present).tolist()
    return channels, stable_frame(example.pixels[channels].astype(np.float32), channels, stabiliser)


def as_they_were(frames: Frames, stabiliser: Stabiliser) -> Callable[[int], Left | None]:
    """Return what tells of frames before others as they were, for a first model."""
    minutes = follow(frames)

    def before(row: int) -> Left | None:
        if row not in minutes:
            return None
        earlier, images = stable(frames, row - 1, stabiliser)
        channels = [c for c in earlier if frames[row].present[c]]
        images = images[[earlier.index(c) for c in channels]]
        return Left(channels, foretold([(images, minutes[row])]), None)

    return before


class Shot(NamedTuple):
    """A film among frames: the numbers of frames that follow each other, and the channels that all have."""

    rows: list[int]
    channels: list[int]

    def read(self, frames: Frames, stabiliser: Stabiliser) -> Film:
        """Return its images."""
        images = []
        for row in self.rows:
            has, shown = stable(frames, row, stabiliser)
            images.append(whole(shown[[has.index(c) for c in self.channels]], self.channels))
        return images, self.channels


def shots_of(frames: Frames, count: int, seed: int) -> list[Shot]:
    """Choose films of up to `LENGTH` frames."""
    rng = np.random.default_rng([seed, 3])
    known, present = follow(frames), frames.present
    found = []
    for begin in rng.permutation(np.flatnonzero(present.any(1)))[:count].tolist():
        rows, shared = [begin], present[begin]
        while len(rows) < LENGTH and rows[-1] + 1 in known and (shared & present[rows[-1] + 1]).any():
            rows.append(rows[-1] + 1)
            shared = shared & present[rows[-1]]
        found.append(Shot(rows, np.flatnonzero(shared).tolist()))
    return found


def as_coded(
    family: WaveletFamily,
    frames: Frames,
    stabiliser: Stabiliser,
    shots: Sequence[Shot],
    seed: int,
    progress: Callable[[int, int], object],
) -> dict[int, Left]:
    """Code films, each with a quality of its own; return what frames foretell of others.

    Half of the films go on from frame to frame, as one does to which frames are added one by one.

    Half precision keeps them: what it loses is less than what coding did.
    """
    rng = np.random.default_rng([seed, 4])
    jobs = [(shot, int(rng.integers(COARSE)), bool(rng.integers(2))) for shot in shots]
    apart = follow(frames)

    def one(job: tuple[Shot, int, bool]) -> dict[int, Left]:
        shot, quality, chained = job
        minutes = np.cumsum([0, *(apart[row] for row in shot.rows[1:])]).tolist()
        left = {}
        for shown in coded(family, shot.read(frames, stabiliser), quality, chained=chained):
            known = shown.foretold(minutes)
            if known is not None:
                images = known[shot.channels].astype(np.float16)
                left[shot.rows[shown.place]] = Left(shot.channels, images, shown.step[shot.channels])
        return left

    found: dict[int, Left] = {}
    for n, left in enumerate(side_by_side(one, jobs)):
        found |= left
        progress(n + 1, len(jobs))
    return found
