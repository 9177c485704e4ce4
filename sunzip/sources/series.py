"""Series: the images of one or several sources, brought onto one time axis and read as Cubes."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.channels import BEYOND, CHANNELS, NAMES, any_of_aia, canonical
from sunzip.cube import Cube, Header, Scale, summed
from sunzip.display import Report, Shown, span
from sunzip.errors import InputError, UnreadableError, without_secrets
from sunzip.sources.base import Imaged, Source, tell_progress
from sunzip.sources.patience import reading_pool
from sunzip.tasks import Task
from sunzip.times import When, parse_date, parse_duration

_T = TypeVar("_T")

#: How far from a frame's first image another may be and still belong to it, where no grid is given.
_NATIVE_TOLERANCE = "6min"

#: How many times longer than that before the image at hand a pause must be to part two frames instead. Images
#: that come evenly have no pause that tells moments apart: jitter must not cut their frames to pieces.
_PAUSE = 2

#: Frames after those that are read in which sources are told that they will be asked for more of a part: the
#: rows of a store may lie scattered over as many.
_SOON = 64

_EMPTY, _INFINITE, _BEYOND, _UNREADABLE = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class AlignmentReport(Report):
    """What became of every image of the sources: found = the sum of all that follows for images.

    Attributes
    ----------
    frames
        Frames of the series.
    frames_dropped
        Frames left out because a channel was missing, with ``missing="drop"``; those in which an image holds
        no measurement are among them once `Series.whole` has looked.
    images_found
        Images per channel, with or without a usable time.
    images_used
        Images that are in the series.
    images_dropped
        Images of the frames that were dropped.
    duplicates
        Images of a channel that had to give way to another in the same frame: a nearer one or, without
        cadence, one of the very same time.
    out_of_tolerance
        Images too far from any time of the grid.
    unusable_times
        Images without a usable time.
    not_selected
        Images outside start, stop and every.
    odd
        What was found odd and handled, by name: by the sources while indexing, and up to now by reading.
    """

    frames: int
    frames_dropped: int
    images_found: dict[str, int]
    images_used: int
    images_dropped: int
    duplicates: int
    out_of_tolerance: int
    unusable_times: int
    not_selected: int
    odd: dict[str, int] = field(default_factory=dict)


class Notes(NamedTuple):
    """What reading some frames showed, as another process can take it over; see `Series.notes`.

    Attributes
    ----------
    start
        The first of the frames.
    seen
        (T, C) uint8: what was odd about each image.
    absent
        Of each source, `Source.absent`.
    """

    start: int
    seen: npt.NDArray[np.uint8]
    absent: tuple[frozenset[tuple[str, int, int]], ...]


class _Part(NamedTuple):
    """Images of one channel that lie together in a source: their frames, and whether more follow soon."""

    source: int
    channel: int
    frames: list[int]
    again: bool


class Series(Shown):
    """Aligned frames with random access in time; holds nothing but indexes, reads when asked.

    Made by `join`. Safe to use from several threads, as its sources are; pickled, it takes its indexes along.

    Attributes
    ----------
    channels
        The C channels, in canonical order.
    shape
        (Y, X) of every frame.
    scale
        Whether AIA pixels are 2×2 means or sums; `join` takes that of the first source.
    time
        (T,) datetime64[ms], UTC, strictly increasing: the nominal time of each frame.
    t_obs
        (T, C) datetime64[ms]: when each image was taken; NaT where there is none.
    missing
        ``"drop"`` if only frames with all channels are wanted, else ``"mask"``.
    urls, layouts
        Of each source.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        channels: tuple[str, ...],
        shape: tuple[int, int],
        time: npt.NDArray[np.datetime64],
        t_obs: npt.NDArray[np.datetime64],
        source: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        report: AlignmentReport,
        missing: Literal["mask", "drop"],
        scale: Scale,
    ) -> None:
        self.channels = channels
        self.shape = shape
        self.scale = scale
        self.time = time
        self.t_obs = t_obs
        self.missing = missing
        # They go into archives, reports and cards of models.
        self.urls = tuple(without_secrets(s.url) for s in sources)
        self.layouts = tuple(s.layout for s in sources)
        self._sources = tuple(sources)
        self._source = source
        self._row = row
        self._report = report
        # One byte per image says what reading it showed, so that reading twice does not count twice.
        self._seen = np.zeros(row.shape, np.uint8)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.time)

    def __repr__(self) -> str:
        y, x = self.shape
        return (
            f"<Series of {len(self)} frames {self.time[0]} … {self.time[-1]}, "
            f"{len(self.channels)} channels ({' '.join(self.channels)}), {y}×{x}, {self.scale}>"
        )

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`: images of which none was read yet may hold no measurement."""
        counts = (~np.isnat(self.t_obs)).sum(axis=0).tolist()
        return {
            "sources": list(self.urls),
            "frames": len(self),
            "times": span(*self.time[[0, -1]]) if len(self) else None,
            "pixels": "×".join(map(str, self.shape)),
            "AIA pixels": f"2×2 {self.scale}s" if any_of_aia(self.channels) else None,
            "images": [dict(zip(self.channels, counts, strict=True))],
            "found on the way": self.report.odd,
        }

    @property
    def pixels(self) -> int:
        """Pixels of a frame, in all channels."""
        return len(self.channels) * self.shape[0] * self.shape[1]

    @property
    def report(self) -> AlignmentReport:
        """What became of the sources' images, with what reading has shown so far."""
        odd = Counter(self._report.odd)
        for source in self._sources:
            odd.update(source.counts)
            odd["chunk absent"] += len(source.absent)
        with self._lock:
            odd += self._oddities()
        return replace(self._report, odd=dict(+odd))

    @property
    def skipped(self) -> int:
        """How many files and images the sources passed over as of no use."""
        return sum(source.skipped for source in self._sources)

    @property
    def unreadable(self) -> int:
        """How many images were left out up to now since reading found them damaged."""
        with self._lock:
            return int(np.count_nonzero(self._seen & _UNREADABLE))

    def _oddities(self, frames: npt.NDArray[np.intp] | slice = slice(None)) -> Counter[str]:
        """Count what reading images of some frames showed, by the names that the report prints."""
        seen = self._seen[frames]
        odd = Counter(
            {
                "image without a measurement": int(np.count_nonzero(seen & (_EMPTY | _UNREADABLE) == _EMPTY)),
                "image with infinite pixels": int(np.count_nonzero(seen & _INFINITE)),
                f"image with pixels of {BEYOND:g} or more": int(np.count_nonzero(seen & _BEYOND)),
            }
        )
        if len(places := np.argwhere(seen & _UNREADABLE)):
            frame, channel = places[0].tolist()
            first = (
                f"{self.channels[channel]} of {self.t_obs[frames][frame, channel].item():%Y-%m-%d %H:%M:%S}"
            )
            odd[f"image that is damaged (the first: {first})"] = len(places)
        return odd

    def notes(self, start: int, stop: int) -> Notes:
        """Return what reading frames ``start`` to ``stop`` showed, for `note` in another process."""
        with self._lock:
            seen = self._seen[start:stop].copy()
        return Notes(start, seen, tuple(frozenset(s.absent) for s in self._sources))

    def note(self, notes: Notes) -> None:
        """Take over what reading showed in another process, so that `report` tells it."""
        with self._lock:
            self._seen[notes.start : notes.start + len(notes.seen)] |= notes.seen
            for source, found in zip(self._sources, notes.absent, strict=True):
                source.absent |= found

    def note_valid(self, valid: npt.NDArray[np.bool_]) -> None:
        """Take over which (T, C) images were found to hold a measurement, by a run that was broken off."""
        with self._lock:
            self._seen[(self._source >= 0) & ~valid] |= _EMPTY

    @property
    def stored_bytes(self) -> int | None:
        """Bytes that the images in use occupy in their stores, by each store's average; None if unknown."""
        total = 0.0
        for i, source in enumerate(self._sources):
            used = int(np.count_nonzero(self._source == i))
            if used:
                stored = source.stored_bytes()
                if stored is None:
                    return None
                total += stored * used / sum(len(source.times(c)) for c in source.channels)
        return round(total)

    def fingerprint(self) -> str:
        """Return a sha256 that tells these frames from others: by their plan and the pixels of the first.

        The plan is times, channels, shape and scale. Where the frames lie does not matter.

        Raises
        ------
        InputError
            If the first frame cannot be read.
        """
        digest = hashlib.sha256()
        digest.update(repr((self.channels, self.shape, str(self.scale), self.t_obs.shape)).encode())
        digest.update(self.time.astype("<i8").tobytes())
        digest.update(self.t_obs.astype("<i8").tobytes())
        digest.update(self.read(0, 1).data.astype("<f4").tobytes())
        return digest.hexdigest()

    def whole(self, doubtful: npt.NDArray[np.bool_] | None = None) -> Series:
        """Return the series without the frames in which an image holds no measurement.

        Only reading tells, so that all images are read once, those of a row side by side.

        Parameters
        ----------
        doubtful
            (T,) the frames to look at; by default all.

        Returns
        -------
        Series
            Its report counts what was left out.

        Raises
        ------
        InputError
            If an image cannot be read, or no frame is left.
        """
        looked_at = self._source >= 0
        if doubtful is not None:
            looked_at &= doubtful[:, None]
        frame, channel = np.nonzero(looked_at)
        # As they lie in their stores: rows that are shuffled in time share chunks with their neighbours.
        order = np.lexsort((self._row[frame, channel], self._source[frame, channel]))
        frame, channel = frame[order], channel[order]
        source, row = self._source[frame, channel], self._row[frame, channel]
        steps = np.flatnonzero((np.diff(source) != 0) | (np.diff(row) != 0)) + 1

        def look(i: int) -> None:
            self._read_image(np.empty(self.shape, np.float32), (int(frame[i]), int(channel[i])))

        with reading_pool(len(self.channels)) as pool:
            for begin, end in zip([0, *steps], [*steps, len(frame)], strict=True):
                # A row at a time: an error, or Ctrl-C, waits for no more than that.
                list(pool.map(look, range(begin, end)))
                tell_progress("reading all images", end, len(frame))
        keep = ~(self._seen & _EMPTY).any(axis=1)
        if not keep.any():
            raise self.none_whole()
        lost = int(np.count_nonzero(self._source[~keep] >= 0))
        report = replace(
            self._report,
            frames=int(keep.sum()),
            frames_dropped=self._report.frames_dropped + int((~keep).sum()),
            images_used=self._report.images_used - lost,
            images_dropped=self._report.images_dropped + lost,
            odd=dict(Counter(self._report.odd) + self._oddities(np.flatnonzero(~keep))),
        )
        kept = Series(
            self._sources,
            self.channels,
            self.shape,
            self.time[keep],
            self.t_obs[keep],
            self._source[keep],
            self._row[keep],
            report,
            self.missing,
            self.scale,
        )
        kept._seen[:] = self._seen[keep]
        return kept

    def following(
        self,
        times: npt.NDArray[np.datetime64],
        channels: tuple[str, ...],
        scale: Scale,
        taken: npt.NDArray[np.datetime64],
    ) -> Series:
        """Return the frames after those of some times, to be added to these.

        Parameters
        ----------
        times
            In order; there may be none.
        channels, scale
            Those of the others: channels that the sources lack are missing.
        taken
            (T, C) when the images of the others were taken; what they have is left out.
        """
        after = self.time > times[-1] if len(times) else np.ones(len(self), np.bool_)
        cells = (int(after.sum()), len(channels))
        into = [channels.index(name) for name in self.channels]
        source, row = (np.full(cells, -1, np.int32) for _ in range(2))
        t_obs = np.full(cells, np.datetime64("NaT", "ms"), "datetime64[ms]")
        source[:, into], row[:, into] = self._source[after], self._row[after]
        t_obs[:, into] = self.t_obs[after]
        # Without a grid an image may have come to lie in a later frame as others followed it.
        again = np.stack([np.isin(t_obs[:, c], taken[:, c]) for c in range(len(channels))], axis=1)
        source[again] = row[again] = -1
        t_obs[again] = np.datetime64("NaT", "ms")
        other, there = int(np.count_nonzero(source >= 0)), source[:, into] >= 0
        keep = there.all(axis=1) if self.missing == "drop" else there.any(axis=1)
        used = int(np.count_nonzero(source[keep] >= 0))
        dropped = int(np.count_nonzero(~keep)) if self.missing == "drop" else 0
        report = replace(
            self._report,
            frames=int(keep.sum()),
            frames_dropped=self._report.frames_dropped + dropped,
            images_used=used,
            images_dropped=self._report.images_dropped + other - used,
            # Those before, and those that the others have.
            not_selected=self._report.not_selected + self._report.images_used - other,
        )
        return Series(
            self._sources,
            channels,
            self.shape,
            self.time[after][keep],
            t_obs[keep],
            source[keep],
            row[keep],
            report,
            self.missing,
            scale,
        )

    def none_whole(self) -> InputError:
        """Return what is to be said if in every frame an image holds no measurement."""
        return InputError(
            f"{_named(self._sources)}: no frame has measurements in all of {' '.join(self.channels)}; "
            "keep incomplete ones with missing=mask, or ask for fewer channels"
        )

    def prepare(self, frame: int) -> None:
        """Have the sources get what they read once for many frames, of which this is one.

        Raises
        ------
        InputError
            If it cannot be read.
        """

        def get(channel: int) -> None:
            source, row = self._source[frame, channel], self._row[frame, channel]
            self._sources[source].prepare(self.channels[channel], int(row))

        held = np.flatnonzero(self._source[frame] >= 0).tolist()
        _side_by_side(max(source.at_once for source in self._sources), get, held)

    def read(self, start: int, stop: int) -> Cube:
        """Read frames ``start`` to ``stop``, the latter not included.

        An image of nothing but NaN, or of nothing but zeros in AIA, is no measurement: it is marked as
        missing and counted. Pixels that are infinite or beyond any measurement, as some programs mark those
        that are missing, become NaN, and their images are counted.

        Parts of the stores, chunks for instance, are read once each, and as many side by side as each source
        allows (`Source.at_once`).

        Returns
        -------
        Cube
            ``stop - start`` frames of all channels.

        Raises
        ------
        InputError
            If an image cannot be read; the message names the file.
        IndexError
            If the series does not have these frames.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"frames {start} to {stop} of {len(self)}")
        n, c = stop - start, len(self.channels)
        data = np.full((n, c, *self.shape), np.nan, np.float32)
        valid = np.zeros((n, c), bool)
        t_obs = self.t_obs[start:stop].copy()
        headers: list[list[Header]] = [[{} for _ in range(c)] for _ in range(n)]
        found: dict[tuple[int, int], Callable[[], Header]] = {}

        def fill(part: _Part) -> None:
            source, j = self._sources[part.source], part.channel
            rows = self._row[part.frames, j].tolist()
            try:
                images = source.read_part(self.channels[j], rows, part.again)
            except UnreadableError:
                self._leave_out(part.frames, j)
                return
            for frame, imaged in zip(part.frames, images, strict=True):
                t = frame - start
                keywords = self._take(imaged, data[t, j], (frame, j))
                if keywords is not None:
                    found[t, j] = keywords

        for which, source in enumerate(self._sources):
            if parts := self._parts(which, start, stop):
                _side_by_side(source.at_once, fill, parts)

        def tell(cells: list[tuple[int, int]]) -> None:
            for t, j in cells:
                source = self._sources[int(self._source[start + t, j])]
                valid[t, j] = True
                headers[t][j] = resized_header(found[t, j](), source.shape[0] // self.shape[0])

        # In the order of time: a source has the keywords of one year of each channel at hand, and those of
        # another take long.
        of_channels = [sorted(cell for cell in found if cell[1] == j) for j in range(c)]
        _side_by_side(max(source.at_once for source in self._sources), tell, of_channels)
        t_obs[~valid] = np.datetime64("NaT", "ms")
        return Cube(data, self.channels, self.time[start:stop].copy(), t_obs, valid, headers, self.scale)

    def _parts(self, which: int, start: int, stop: int) -> list[_Part]:
        """Return the parts of one source in which the images of some frames lie, in the order of frames."""
        source = self._sources[which]
        found: dict[tuple[int, int], _Part] = {}
        soon = slice(stop, stop + max(stop - start, _SOON))
        for j, name in enumerate(self.channels):
            here = start + np.flatnonzero(self._source[start:stop, j] == which)
            if len(here):
                later = self._row[soon, j][self._source[soon, j] == which]
                again = set(source.parts(name, later).tolist())
                for frame, number in zip(
                    here.tolist(), source.parts(name, self._row[here, j]).tolist(), strict=True
                ):
                    part = found.setdefault((j, number), _Part(which, j, [], number in again))
                    part.frames.append(frame)
        return sorted(found.values(), key=lambda p: (p.frames[0], p.channel))

    def holds(self, frame: int, channel: int) -> bool:
        """Return whether there is an image and it holds a measurement, which only reading it tells.

        Raises
        ------
        InputError
            As `read`.
        """
        if self._source[frame, channel] < 0:
            return False
        return self._read_image(np.empty(self.shape, np.float32), (frame, channel)) is not None

    def _read_image(self, into: npt.NDArray[np.float32], at: tuple[int, int]) -> Callable[[], Header] | None:
        """Read one image into its place; return what gives its keywords, None if it holds no measurement."""
        source = self._sources[int(self._source[at])]
        try:
            imaged = source.image(self.channels[at[1]], int(self._row[at]))
        except UnreadableError:
            self._leave_out([at[0]], at[1])
            return None
        return self._take(imaged, into, at)

    def _leave_out(self, frames: list[int], channel: int) -> None:
        """Take images that are damaged for such as hold no measurement."""
        with self._lock:
            self._seen[frames, channel] |= _EMPTY | _UNREADABLE

    def _take(
        self, imaged: Imaged, into: npt.NDArray[np.float32], at: tuple[int, int]
    ) -> Callable[[], Header] | None:
        """Bring an image that was read into its place, as `_read_image`."""
        name, row = self.channels[at[1]], int(self._row[at])
        source = self._sources[int(self._source[at])]
        image, keywords = imaged
        if image.shape != source.shape:
            raise InputError(
                f"{source.url}: image {row} of {name} is {image.shape[0]}×{image.shape[1]}, "
                f"the others are {source.shape[0]}×{source.shape[1]}"
            )
        known = np.abs(image) < BEYOND
        if not known.all():
            others = image[~known]
            infinite, beyond = np.isinf(others), np.isfinite(others)
            with self._lock:
                self._seen[at] |= _INFINITE * bool(infinite.any()) | _BEYOND * bool(beyond.any())
            image = np.where(known, image, np.float32(np.nan))
        is_aia = CHANNELS[NAMES.index(name)].instrument == "AIA"
        if not known.any() or (is_aia and not np.any(image[known])):
            with self._lock:
                self._seen[at] |= _EMPTY
            return None
        image = block_mean(image, source.shape[0] // self.shape[0])
        if source.scale is not self.scale:
            image = image * np.float32(summed(name, self.scale) / summed(name, source.scale))
        into[:] = image
        return keywords


def join(
    sources: Sequence[Source],
    *,
    cadence: str | timedelta | np.timedelta64 | None = "12min",
    tolerance: str | timedelta | np.timedelta64 | None = None,
    start: When | None = None,
    stop: When | None = None,
    every: str | timedelta | np.timedelta64 | None = None,
    channels: Iterable[str] | None = None,
    missing: Literal["mask", "drop"] = "mask",
    size: int | None = None,
) -> Series:
    """Bring the images of one or several sources onto one time axis.

    Nominal times are the multiples of `cadence`, counted from 1970-01-01 UTC. An image belongs to the
    nearest one, if that is within `tolerance`; of several images of a channel the nearest is used, then the
    earliest, then that of the first source. A frame is a nominal time with at least one image.

    Parameters
    ----------
    sources
        One or more; the first one decides the scale.
    cadence
        Step of the nominal times, or None or ``"native"`` to take the times as they are and lose no image:
        a frame then has the time of its first image and takes in what follows within `tolerance`, until a
        channel comes again. Where a pause at least twice as long lies before that, it ends there, so that
        images of one moment stay together although one lacks. Only images of one channel and the very same
        time, as two sources may have them, compete.
    tolerance
        How far an image may be from its nominal time; by default half of the cadence, 6 minutes without.
    start, stop
        Nominal times to keep, from start (included) to stop (not included).
    every
        Keep only nominal times that are whole multiples of this after `start`, or after the first frame if
        no start is given. It must be a multiple of the cadence. Without cadence the first frame of each
        such span is kept.
    channels
        What to read, in any spelling; by default all of which an image is selected.
    missing
        ``"mask"`` keeps frames that lack channels, ``"drop"`` leaves them out. That an image is there but
        holds no measurement is known only by reading it: `Series.whole` leaves out such frames, too.
    size
        Reduce images to size × size by averaging blocks of pixels, NaN left out.

    Returns
    -------
    Series

    Raises
    ------
    InputError
        If an argument makes no sense, image sizes differ or do not divide, or no frame is left.
    """
    if not sources:
        raise InputError("no source of images given")
    held = canonical(c for s in sources for c in s.channels)
    wanted = held if channels is None else canonical(channels)
    if lacking := [c for c in wanted if c not in held]:
        raise InputError(f"{_named(sources)}: holds no {' '.join(lacking)}; it holds {' '.join(held)}")
    if missing not in ("mask", "drop"):
        raise InputError(f"missing must be 'mask' or 'drop', not {missing!r}")
    step = None if cadence in (None, "native") else _ms(parse_duration(cadence, name="cadence"))
    if tolerance is not None:
        reach = _ms(parse_duration(tolerance, name="tolerance"))
    else:
        reach = _ms(parse_duration(_NATIVE_TOLERANCE)) if step is None else step // 2
    first = None if start is None else _ms(parse_date(start, name="start"))
    last = None if stop is None else _ms(parse_date(stop, name="stop"))
    if first is not None and last is not None and first >= last:
        raise InputError(f"start {start} is not before stop {stop}")
    stride = None if every is None else _ms(parse_duration(every, name="every"))
    if stride is not None and step is not None and stride % step:
        raise InputError(f"every {every} is not a multiple of the cadence {cadence}")

    images = _Images.of(sources, wanted)
    found = {c: int(np.count_nonzero(images.channel == j)) for j, c in enumerate(wanted)}
    timed = images.take(images.time != _NAT)
    # Of such a channel nothing is left, as when a store has lost the file of its times.
    untimed = [c for j, c in enumerate(wanted) if found[c] and not (timed.channel == j).any()]
    nominal = (
        _moments(timed.time, timed.channel, reach)
        if step is None
        else (timed.time + step // 2) // step * step
    )
    near = np.abs(timed.time - nominal) <= reach
    aligned, nominal = timed.take(near), nominal[near]

    keep = np.ones(len(nominal), bool)
    if first is not None:
        keep &= nominal >= first
    if last is not None:
        keep &= nominal < last
    if stride is not None and keep.any():
        origin = int(nominal[keep].min()) if first is None else first
        if step is not None:
            origin = -(-origin // step) * step  # the first nominal time that is not before start
            keep &= (nominal - origin) % stride == 0
        else:
            frames = np.unique(nominal[keep])
            _, firsts = np.unique((frames - origin) // stride, return_index=True)
            keep &= np.isin(nominal, frames[firsts])
    chosen, nominal = aligned.take(keep), nominal[keep]

    # Per channel and nominal time the image that sorts first: nearest, then earliest, then as stored.
    order = np.lexsort(
        (chosen.row, chosen.source, chosen.time, np.abs(chosen.time - nominal), chosen.channel, nominal)
    )
    chosen, nominal = chosen.take(order), nominal[order]
    single = np.ones(len(nominal), bool)
    single[1:] = (nominal[1:] != nominal[:-1]) | (chosen.channel[1:] != chosen.channel[:-1])
    unique, nominal = chosen.take(single), nominal[single]

    time, frame = np.unique(nominal, return_inverse=True)
    whole = np.bincount(frame, minlength=len(time)) == len(wanted)
    full = whole if missing == "drop" else np.ones(len(time), bool)
    used = unique.take(full[frame])
    place = (np.cumsum(full) - 1)[frame[full[frame]]], used.channel
    cells = (int(full.sum()), len(wanted))
    if cells[0] == 0:
        raise InputError(_why_empty(sources, wanted, timed.time, missing if len(time) else None))
    row = np.full(cells, -1, np.int32)
    source = np.full(cells, -1, np.int32)
    t_obs = np.full(cells, np.datetime64("NaT", "ms"), "datetime64[ms]")
    row[place], source[place] = used.row, used.source
    t_obs[place] = used.time.astype("datetime64[ms]")
    if channels is None:
        # A channel without an image in the selection would only be an empty plane in every frame.
        kept = np.flatnonzero((source >= 0).any(axis=0))
        wanted = tuple(wanted[j] for j in kept)
        row, source, t_obs = (np.ascontiguousarray(a[:, kept]) for a in (row, source, t_obs))
    report = AlignmentReport(
        frames=cells[0],
        frames_dropped=len(time) - cells[0],
        images_found=found,
        images_used=len(used),
        images_dropped=len(unique) - len(used),
        duplicates=len(chosen) - len(unique),
        out_of_tolerance=len(timed) - len(aligned),
        unusable_times=len(images) - len(timed),
        not_selected=len(aligned) - len(chosen),
        odd={f"channel without any usable time ({' '.join(untimed)})": len(untimed)} if untimed else {},
    )
    times = time[full].astype("datetime64[ms]")
    shape = _common_shape(sources, wanted, size)
    return Series(sources, wanted, shape, times, t_obs, source, row, report, missing, sources[0].scale)


def _side_by_side(threads: int, work: Callable[[_T], None], parts: Sequence[_T]) -> None:
    """Do the work for all parts, several at a time; of what goes wrong the first in order is raised."""
    if min(threads, len(parts)) == 1:
        for part in parts:
            work(part)
        return
    with reading_pool(min(threads, len(parts))) as pool:
        for task in [Task(pool, work, part) for part in parts]:
            task.result()


def block_mean(image: npt.NDArray[np.float32], factor: int) -> npt.NDArray[np.float32]:
    """Average factor × factor blocks of pixels over what is finite in them.

    Sums of 2×2 pixels (SDOML v1) stay sums of 2×2: the scale speaks of SDOML's own binning, so that a
    smaller image shows the same brightness.

    Parameters
    ----------
    image
        (Y, X) float32, both divisible by `factor`.
    factor
        At least 1.

    Returns
    -------
    numpy.ndarray
        (Y / factor, X / factor) float32; NaN where a block has no finite pixel.
    """
    if factor == 1:
        return image
    y, x = image.shape
    blocks = image.reshape(y // factor, factor, x // factor, factor)
    finite = np.isfinite(blocks)
    number = finite.sum(axis=(1, 3))
    total = np.where(finite, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    mean = np.full(number.shape, np.nan, np.float32)
    np.divide(total, number, out=mean, where=number > 0, casting="same_kind")
    return mean


def resized_header(header: Header, factor: int) -> Header:
    """Return the keywords of an image reduced by a factor; those that speak of pixels are converted.

    The centre of the first pixel is at 1 (FITS WCS, Greisen & Calabretta 2002, A&A 395, 1061), so that
    CRPIX becomes ``(CRPIX - 0.5) / factor + 0.5``.
    """
    if factor == 1:
        return header
    new = dict(header)
    for key, value in header.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        with suppress(OverflowError):  # an integer beyond all floats is of no pixel
            if key in ("CDELT1", "CDELT2"):
                new[key] = value * factor
            elif key in ("CRPIX1", "CRPIX2"):
                new[key] = (value - 0.5) / factor + 0.5
            elif key == "R_SUN":
                new[key] = value / factor
            elif key in ("NAXIS1", "NAXIS2"):
                new[key] = value // factor
    return new


#: NaT as the int64 that datetime64 stores.
_NAT = np.iinfo(np.int64).min


@dataclass(slots=True)
class _Images:
    """The images of all sources as columns: time in ms since 1970, channel number, source number, row."""

    time: npt.NDArray[np.int64]
    channel: npt.NDArray[np.int8]
    source: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def of(cls, sources: Sequence[Source], channels: tuple[str, ...]) -> _Images:
        parts = [
            (i, j, source.times(name).astype("datetime64[ms]").astype(np.int64))
            for i, source in enumerate(sources)
            for j, name in enumerate(channels)
            if name in source.channels
        ]
        return cls(
            np.concatenate([t for _, _, t in parts]),
            np.concatenate([np.full(len(t), j, np.int8) for _, j, t in parts]),
            np.concatenate([np.full(len(t), i, np.int32) for i, _, t in parts]),
            np.concatenate([np.arange(len(t), dtype=np.int32) for _, _, t in parts]),
        )

    def take(self, where: npt.NDArray[Any]) -> _Images:
        return _Images(self.time[where], self.channel[where], self.source[where], self.row[where])


def _moments(
    times: npt.NDArray[np.int64], channels: npt.NDArray[np.int8], reach: int
) -> npt.NDArray[np.int64]:
    """Return for each image the first time of its frame, where no grid tells which images belong together.

    A frame takes in one image after the other, until one is of a channel that it has or beyond its reach. It
    then ends before that image, unless it holds a decidedly longer pause: there the next one begins, lest a
    single image that lacks shift all that follow from one moment into the next.
    """
    order = np.lexsort((channels, times))
    sorted_times, sorted_channels = times[order], channels[order]
    # Images of one channel and the very same time do compete for one place.
    other = np.ones(len(order), bool)
    other[1:] = (np.diff(sorted_times) != 0) | (np.diff(sorted_channels) != 0)
    t = sorted_times[other]
    at, pause = t.tolist(), np.diff(t, prepend=t[:1]).tolist()
    last = [-1] * len(NAMES)
    begins, begin = [0] if at else [], 0
    for i, (now, channel) in enumerate(zip(at, sorted_channels[other].tolist(), strict=True)):
        # The frame may end behind any image from here on.
        since = last[channel]
        last[channel] = i
        if since < begin:
            if now - at[begin] <= reach:
                continue
            since = begin
        between = pause[since + 1 : i + 1]
        longest = max(between)
        begin = i if longest < _PAUSE * between[-1] else since + 1 + between.index(longest)
        begins.append(begin)
    starts = t[begins]
    return starts[np.searchsorted(starts, times, side="right") - 1]


def _common_shape(sources: Sequence[Source], wanted: tuple[str, ...], size: int | None) -> tuple[int, int]:
    """Return the shape that all sources give, after reduction to `size` if that is given."""
    used = [s for s in sources if any(c in wanted for c in s.channels)]
    if size is None:
        if len({s.shape for s in used}) > 1:
            told = ", ".join(f"{s.url} {s.shape[0]}×{s.shape[1]}" for s in used)
            raise InputError(f"image sizes differ ({told}); bring them to a common one with size")
        return used[0].shape
    if size < 1:
        raise InputError(f"size must be at least 1, not {size}")
    for source in used:
        y, x = source.shape
        if y != x or y % size:
            raise InputError(
                f"{source.url}: images of {y}×{x} cannot be averaged to {size}×{size}; they must be square, "
                "and the size (--size) must divide a side"
            )
    return size, size


def _ms(value: np.timedelta64 | np.datetime64) -> int:
    return int(value.astype(np.int64))


def _named(sources: Sequence[Source]) -> str:
    """Return how a message should call the sources together."""
    return sources[0].url if len(sources) == 1 else f"{sources[0].url} and {len(sources) - 1} more"


def _why_empty(
    sources: Sequence[Source], wanted: tuple[str, ...], times: npt.NDArray[np.int64], missing: str | None
) -> str:
    """Say why no frame is left, and what the sources hold."""
    name = _named(sources)
    if not len(times):
        dated = "; or ".join(dict.fromkeys(source.dated for source in sources))
        return f"{name}: no image of {' '.join(wanted)} has a usable time; times are read from {dated}"
    first, last = np.array([times.min(), times.max()], "datetime64[ms]").astype("datetime64[s]")
    if missing == "drop":
        return (
            f"{name}: no frame has all of {' '.join(wanted)} within the tolerance; keep incomplete ones "
            f"with missing=mask, or ask for fewer channels (images from {first} to {last})"
        )
    return f"{name}: no image in the chosen times; it holds images from {first} to {last} UTC"
