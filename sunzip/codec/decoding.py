"""Which frames of blocks are decoded for the sake of those that are wanted, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.codec.family import Family, Float, Known, Reference
from sunzip.codec.images import channels_of, nbytes_of
from sunzip.codec.lanes import as_ready
from sunzip.codec.order import Kept, needed
from sunzip.codec.processes import elsewhere
from sunzip.frame import Block, is_raw
from sunzip.gaps import unpack_gaps
from sunzip.recent import Recent


class Wanted(NamedTuple):
    """A frame that is wanted: its block, where in it, and the block's bytes."""

    block: Block
    place: int
    data: bytes

    @property
    def mask(self) -> int:
        """Bits of the channels that it has."""
        return self.block.masks[self.place]

    @property
    def gap(self) -> bytes:
        """Its missing pixels, packed."""
        return self.block.gaps[self.place]

    @property
    def payload(self) -> bytes:
        """Its symbols, or its pixels."""
        return self.block.payloads[self.place]

    @property
    def residual(self) -> bytes:
        """What brings its pixels within their bounds, packed."""
        return self.block.residuals[self.place]


class Job(NamedTuple):
    """A frame to be decoded, for others or because it is wanted.

    Attributes
    ----------
    run
        Returns its latents, or its pixels, with each number under which they are wanted.
    waits
        Numbers of the jobs that come before it.
    """

    run: Callable[[], list[tuple[int, Float]]]
    waits: Sequence[int] = ()


#: Makes pixels of a decoded frame: see `Codec._pixels`.
Painter = Callable[[Sequence[int], Float, Reference | None, bytes], Float]

#: Decodes a frame of which others that it builds on are known: see `Codec._read`.
Reader = Callable[
    [bytes, int, Known, bool, bool, Painter | None, bytes], tuple[Float | None, Reference | None]
]


#: Frames of films on which others build, decoded lately for some of these: by codec, block and number. So
#: many bytes are those of 20 frames of 12 channels of 512², or 5 of 1024²; of one channel of 4096², 3.
_lately: Recent[tuple[object, bytes, int], Reference] = Recent(256 << 20)

#: What stands for latents where what others have of a frame is enough to show it.
_NO_LATENTS = np.zeros(0, np.float32)


def masks_of(entries: Sequence[Wanted]) -> npt.NDArray[np.bool_]:
    """Return (T, 12): which channels each frame has."""
    masks = np.zeros((len(entries), len(NAMES)), bool)
    for t, entry in enumerate(entries):
        masks[t, list(channels_of(entry.mask))] = True
    return masks


def holes_of(
    entries: Sequence[Wanted], masks: npt.NDArray[np.bool_], indexes: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
    """Yield frame, place among the wanted channels and (Y, X) missing pixels of the images that have any."""
    for t, entry in enumerate(entries):
        if entry.gap:
            has = np.flatnonzero(masks[t])
            holes = unpack_gaps(entry.gap, len(has), *shape)
            for hole, index in zip(holes, has, strict=True):
                if index in indexes:
                    yield t, indexes.index(int(index)), hole


def coded_of(entries: Sequence[Wanted], masks: npt.NDArray[np.bool_], indexes: Sequence[int]) -> list[int]:
    """Return the numbers of the frames that have some wanted channel, in latents."""
    some = np.flatnonzero(masks[:, indexes].any(1)).tolist()
    return [t for t in some if not is_raw(entries[t].payload)]


def pixels_of(jobs: Sequence[Job], shown: npt.NDArray[np.bool_], shape: tuple[int, int]) -> Float:
    """Return the pixels (T, C, Y, X) that jobs give of the images that are `shown` (T, C); NaN elsewhere."""
    out = np.empty((*shown.shape, *shape), np.float32)
    out[~shown] = np.nan

    def fill(job: int) -> None:
        for t, pixels in jobs[job].run():
            out[t, shown[t]] = pixels

    as_ready(fill, [job.waits for job in jobs])
    return out


def in_turn(jobs: Sequence[Job]) -> list[tuple[int, Float]]:
    """Do jobs one after another."""
    return [found for job in jobs for found in job.run()]


def jobs_of(
    entries: Sequence[Wanted],
    rows: Iterable[int],
    family: Family,
    read: Reader,
    token: object,
    *,
    painter: Painter | None = None,
    coarse: bool = False,
) -> list[Job]:
    """Return what decodes some of the entries that are not empty.

    Parameters
    ----------
    entries, rows
        Frames, and the numbers of those that are wanted.
    family, read
        What decodes them.
    token
        Stands for these among what was decoded lately.
    painter
        What makes pixels of them; without one they are given as latents.
    coarse
        Give what `Family.latents` does instead.
    """
    jobs: list[Job] = []
    blocks: dict[int, list[int]] = {}
    for t in rows:
        blocks.setdefault(id(entries[t].block), []).append(t)
    for wanted in blocks.values():
        block = entries[wanted[0]].block
        # Frames count those that are not empty.
        places = [place for place, mask in enumerate(block.masks) if mask]
        numbers = {place: number for number, place in enumerate(places)}
        here: dict[int, list[int]] = {}
        for t in wanted:
            here.setdefault(numbers[entries[t].place], []).append(t)
        data = entries[wanted[0]].data
        jobs += _jobs_of_block(block, data, places, here, len(jobs), family, read, token, painter, coarse)
    return jobs


def _jobs_of_block(
    block: Block,
    data: bytes,
    places: Sequence[int],
    wanted: dict[int, list[int]],
    begin: int,
    family: Family,
    read: Reader,
    token: object,
    painter: Painter | None,
    coarse: bool,
) -> Iterator[Job]:
    """Yield the jobs of one block, the first of which has the number `begin`.

    Parameters
    ----------
    data
        The block's bytes, which tell it from others.
    places
        Of the frames that are not empty.
    wanted
        Those that are wanted, by their number in `places`, and under which numbers.
    family, read, token, painter, coarse
        As in `jobs_of`.
    """
    links = [family.links(block.payloads[place]) for place in places]

    def builds_on(number: int) -> list[int]:
        back, ahead = links[number]
        found = [number - back] * bool(back) + [number + ahead] * bool(ahead)
        return [other for other in found if 0 <= other < len(links)]

    # Who goes through a film frame by frame asks again and again for what others build on.
    held: dict[int, Reference] = {}
    parts = len(wanted) < len(places)
    digest = blake2b(data).digest() if parts else b""
    for number in range(len(places)) if parts else ():
        found = _lately.get((token, digest, number))
        if found is not None and (number not in wanted or (painter is not None and not coarse)):
            held[number] = found

    steps = needed(sorted(wanted), lambda number: [] if number in held else builds_on(number))
    todo = [number for number in steps if number in wanted or number not in held]
    jobs = {number: begin + n for n, number in enumerate(todo) if number not in held}
    kept: Kept[Reference] = Kept(
        [other for number in steps if number not in held for other in builds_on(number)]
    )
    for number, reference in held.items():
        kept.put(number, reference)

    def run(number: int) -> list[tuple[int, Float]]:
        payload, mask = block.payloads[places[number]], block.masks[places[number]]
        moved = block.residuals[places[number]]
        if is_raw(payload):
            return []
        those = wanted.get(number, [])
        if number in held:
            assert painter is not None
            pixels = painter(channels_of(mask), _NO_LATENTS, held[number], moved)
            return [(t, pixels) for t in those]
        back, ahead = links[number]
        before = kept.take(number - back) if back else None
        after = kept.take(number + ahead) if ahead else None
        known = Known(channels_of(mask), block.shape, before, after)
        found: list[tuple[int, Float]] = []
        if coarse and those:
            small = family.latents(payload, block.quality, known)
            found = [(t, small) for t in those]
        if not coarse or kept.wanted(number):
            show, keep = bool(those) and not coarse, kept.wanted(number)
            args = payload, block.quality, known, show, keep, painter, moved
            shown, key = None, (token, digest, number)
            # Another thread, which reads other frames of the block, may be at what both build on.
            shared = parts and keep and (painter is not None or not show)
            with _lately.making(key) if shared else nullcontext() as left:
                if left is None:
                    shown, left = elsewhere(read, *args, back=(show + keep) * nbytes_of(block.shape))
                    if left is not None and parts:
                        _lately.put(key, left, left.pictures.nbytes + left.coarse.nbytes)
            if left is not None:
                kept.put(number, left)
                if show and shown is None and painter is not None:
                    shown = painter(known.channels, _NO_LATENTS, left, moved)
            if shown is not None:
                found = [(t, shown) for t in those]
        return found

    for number in todo:
        below = () if number in held else builds_on(number)
        yield Job(partial(run, number), [jobs[other] for other in below if other in jobs])
