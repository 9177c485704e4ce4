"""Sources as aligned frames: opened as a user names them, or as an archive was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import takewhile
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.archive import Archive
from sunzip.arguments import whole
from sunzip.channels import listed
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError
from sunzip.sources import layout_at, open_source
from sunzip.sources.base import Source
from sunzip.sources.series import Series, join
from sunzip.sun import Sun
from sunzip.times import Times, When, format_utc, parse_date, parse_duration

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Alignment:
    """How images are brought onto one time axis: the arguments of `sunzip.sources.series.join`.

    Times and spans that are no texts become such; one name of a channel becomes a tuple of one.

    Raises
    ------
    InputError
        If a value is none.
    """

    cadence: str | timedelta | np.timedelta64 | None = "12min"
    tolerance: str | timedelta | np.timedelta64 | None = None
    start: When | None = None
    stop: When | None = None
    every: str | timedelta | np.timedelta64 | None = None
    channels: str | Iterable[str] | None = None
    missing: Literal["mask", "drop"] = "mask"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", listed(self.channels))
        if self.size is not None:
            object.__setattr__(self, "size", whole(self.size, "size (--size)", 1))
        # Archives tell how they were aligned, in JSON.
        for name in ("start", "stop"):
            if not isinstance(value := getattr(self, name), str | None):
                object.__setattr__(self, name, str(parse_date(value, name=name)))
        for name in ("cadence", "tolerance", "every"):
            if not isinstance(value := getattr(self, name), str | None):
                ms = int(parse_duration(value, name=name).astype(np.int64))
                object.__setattr__(self, name, f"{ms // 1000}.{ms % 1000:03d}s")


def open_series(
    src: Sources,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
) -> Series:
    """Open one or several sources as aligned frames.

    Parameters
    ----------
    src
        Paths, fsspec URLs or ``synthetic:…``; several are joined in time.
    hmi
        The second store of SDOML v2.
    anon
        Ask S3 without credentials.
    degradation
        Folder with tables of AIA's degradation, for FITS files that do not state theirs.
    align
        How; by default onto a grid of 12 minutes.

    Raises
    ------
    InputError
        If a source cannot be used or no image is left.
    """
    if align is not None and not isinstance(align, Alignment):
        raise InputError(f"align must be an Alignment, not {type(align).__name__}")
    refuse_idle_tables(degradation, src, anon=anon)
    return joined(src, hmi, anon, degradation, align or Alignment())


def refuse_idle(**given: object) -> None:
    """Refuse arguments, by name, that say how to open what is an archive or a series.

    Raises
    ------
    InputError
        If one of them was given.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} does nothing for archives, and for series that are aligned already")


def refuse_idle_tables(degradation: str | None, *sources: Sources, anon: bool) -> None:
    """Refuse tables of degradation that were given though none of the sources is of FITS files.

    Those that an archive was made with are for those of its sources that are, if any is at hand.

    Raises
    ------
    InputError
        If so, or there is nothing at one of the sources that were looked at.
    """
    urls = [url for src in sources for url in _urls(src)] if degradation is not None else []
    layouts = ((url, layout_at(url, anon)) for url in urls)
    others = list(takewhile(lambda found: found[1] != "fits", layouts))
    if others and len(others) == len(urls):
        url, layout = others[0]
        raise InputError(f"{url}: is of layout {layout}; only FITS files are corrected for degradation here")


def joined(src: Sources, hmi: str | None, anon: bool, degradation: str | None, align: Alignment) -> Series:
    """Open sources as `open_series` does; tables of degradation may be of no use to any of them."""
    return join(_opened(src, hmi, anon, degradation), **asdict(align))


def _opened(src: Sources, hmi: str | None, anon: bool, degradation: str | None) -> list[Source]:
    return [
        open_source(url, hmi=None if i else hmi, anon=anon, degradation=degradation)
        for i, url in enumerate(_urls(src))
    ]


def _urls(src: Sources) -> list[str]:
    urls = [src] if isinstance(src, str | os.PathLike) else list(src) if isinstance(src, Iterable) else []
    # The empty name would be the folder that the program runs in.
    if not urls or not all(isinstance(url, str | os.PathLike) and os.fspath(url) for url in urls):
        raise InputError("no source named; it is a path, a URL, synthetic:…, or a list of these")
    return [os.fspath(url) for url in urls]


def settled(series: Series, known: Times | None = None) -> Series:
    """Return the frames of which none will be left out any more, which only reading them can tell.

    Parameters
    ----------
    series
        As they were opened.
    known
        Times of frames that need not be read, as an archive has them.

    Raises
    ------
    InputError
        As `Series.whole`.
    """
    if series.missing != "drop":
        return series
    return series.whole(None if known is None else ~np.isin(series.time, known))


def source_of(
    sun: Sun,
    src: Sources | Series,
    *,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
) -> Series:
    """Open an archive's source, aligned as it was when the archive was made.

    Parameters
    ----------
    sun
        The archive.
    src, hmi, anon, degradation
        As `open_series`.

    Raises
    ------
    InputError
        If the source has other channels or another image size than the archive, or is a series and `hmi` or
        `degradation` is given.
    DamagedError
        If the archive does not say how its source was aligned.
    """
    archive = sun.archive
    if isinstance(src, Series):
        refuse_idle(hmi=hmi, degradation=degradation)
        series = src
    else:
        align = alignment_of(archive)
        if align is None:
            raise InputError(f"{archive.path}: was made from a series in memory; hold it against that series")
        refuse_idle_tables(degradation, src, anon=anon)
        tables = degradation or _degradation_of(archive)
        series = joined(src, hmi, anon, tables, replace(align, channels=archive.channels))
    if series.shape != archive.shape or series.channels != archive.channels:
        raise _unlike(series, archive, "name the archive's own source")
    return series


class Following(NamedTuple):
    """What a source has for an archive, and what of that comes too late to be added after its last frame.

    Attributes
    ----------
    series
        The frames that are to be coded; there may be none.
    align
        How an archive of all frames is aligned; None if one came as a series in memory.
    kept
        How many of the archive's frames come before these, and stay as they are.
    held
        (T, C) which of their images the archive has, too, in frames that are coded anew.
    frames
        Times of frames that would have to come before the archive's last, that it lacks, and that are not
        among those to be coded.
    images
        How many images the frames lack that stay. Those without a measurement are among them where they were
        not looked for: only reading tells.
    """

    series: Series
    align: Alignment | None
    kept: int
    held: npt.NDArray[np.bool_]
    frames: Times
    images: int

    def late(self) -> dict[str, int]:
        """Return how much is not coded for coming late, in words of what was found odd."""
        lacking = "image that the archive's frames lack: late, lost or without a measurement"
        return {
            "frame before the archive's last (see --late)": len(self.frames),
            f"{lacking} (see --late)": self.images,
        }


def what_follows(
    archive: Archive,
    src: Sources | Series,
    *,
    hmi: str | None,
    anon: bool,
    degradation: str | None,
    stop: When | None,
    late: bool,
) -> Following:
    """Open what is to be added to an archive: the frames of a source that come after its last.

    Parameters
    ----------
    archive
        The archive, whose channels, size, scale and alignment the frames have.
    src, hmi, anon, degradation
        As `open_series`; a source may lack channels of the archive.
    stop
        Time to stop before.
    late
        Whether the archive's frames are to be coded anew from the first shard on that lacks something.

    Raises
    ------
    InputError
        If the source has none of the archive's channels, or another image size, or is a series and `hmi` or
        `degradation` is given; with `late` also if it lacks images that the archive has.
    DamagedError
        If the archive does not say how its source was aligned.
    """
    align = alignment_of(archive)
    sources: list[Source] = []
    if isinstance(src, Series):
        refuse_idle(hmi=hmi, degradation=degradation)
        series, align = src, None
    else:
        if align is None:
            raise InputError(
                f"{archive.path}: was made from a series in memory; what is added must be one as well"
            )
        refuse_idle_tables(degradation, src, anon=anon)
        sources = _opened(src, hmi, anon, degradation or _degradation_of(archive))
        named = {name for source in sources for name in source.channels}
        common = [name for name in archive.channels if name in named]
        if not common:
            raise InputError(
                f"{sources[0].url}: has none of {' '.join(archive.channels)}, the channels of {archive.path}"
            )
        if align.missing == "drop" and len(common) < len(archive.channels):
            lacking = " ".join(name for name in archive.channels if name not in named)
            raise InputError(
                f"{sources[0].url}: holds no {lacking}, and {archive.path} was made of whole frames alone "
                "(--missing drop); name the source of these channels, too"
            )
        align = replace(align, stop=stop)
        series = join(sources, **asdict(replace(align, start=_start(archive, align), channels=common)))
    if series.shape != archive.shape or not set(series.channels) <= set(archive.channels):
        raise _unlike(series, archive, "add images of these")
    # Frames that the archive left out for an image without measurement are not absent from it.
    series = settled(series, archive.time)
    new = _new(archive, series)
    kept = _complete(archive, series, new) if late else archive.frames
    following = series.following(
        archive.time[:kept], archive.channels, Scale(archive.scale), _taken(archive)[:kept]
    )
    held = _held(archive, kept, following, sources, stop)
    if late:
        new[:] = False  # all of it is coded
    there = np.isin(series.time, archive.time)
    absent = new.any(axis=1) & ~there & (series.time < archive.time[-1])
    return Following(following, align, kept, held, series.time[absent], int(np.count_nonzero(new[there])))


def _start(archive: Archive, align: Alignment) -> When | None:
    """Return the time to start from: frames from before an archive's first are late ones, too.

    What is left out of `every` frame is counted from where the archive began.
    """
    if align.start is not None or align.every is None:
        return align.start
    first, step = archive.time[0], parse_duration(align.every, name="every")
    since = np.datetime64(0, "ms")
    start: np.datetime64 = first if first < since else since + (first - since) % step
    return start


def _taken(archive: Archive) -> Times:
    """Return when the images (T, C) of an archive were taken; NaT where there is none."""
    return np.where(archive.valid, archive.t_obs, np.datetime64("NaT", "ms"))


def _new(archive: Archive, series: Series) -> npt.NDArray[np.bool_]:
    """Return which images (T, C) of a series an archive has in none of its frames.

    An image has its place in a frame of the archive, too, if a nearer one has come there since, but not if it
    is another's that the series has elsewhere, as it may without a grid.
    """
    into = [archive.channels.index(name) for name in series.channels]
    taken, valid = _taken(archive)[:, into], archive.valid[:, into]
    new = ~np.isnat(series.t_obs)
    _, frames, rows = np.intersect1d(series.time, archive.time, assume_unique=True, return_indices=True)
    for c in range(len(into)):
        found = np.isin(series.t_obs[:, c], taken[:, c])
        elsewhere = np.isin(taken[:, c], series.t_obs[:, c])
        found[frames] |= (valid[:, c] & ~elsewhere)[rows]
        new[:, c] &= ~found
    return new


def _complete(archive: Archive, series: Series, new: npt.NDArray[np.bool_]) -> int:
    """Return how many of an archive's frames, in whole shards or all, lack nothing that a series has.

    `new` is what `_new` returns.
    """
    kept, per_shard = archive.frames, archive.frames_per_shard
    late = new & (series.time <= archive.time[-1])[:, None]
    for frame in np.flatnonzero(late.any(axis=1)):
        place = int(np.searchsorted(archive.time, series.time[frame]))
        # Images without a measurement are in no archive: only reading tells them from those that are late.
        there = archive.time[place] == series.time[frame]
        if not there or any(series.holds(int(frame), int(c)) for c in np.flatnonzero(late[frame])):
            kept = place - place % per_shard
            break
    # Without a grid images of what is coded anew may have come into a frame before that.
    taken = _taken(archive)
    while 0 < kept < archive.frames:
        before = series.time <= archive.time[kept - 1]
        if not any(
            np.isin(taken[kept:, archive.channels.index(name)], series.t_obs[before, c]).any()
            for c, name in enumerate(series.channels)
        ):
            break
        kept -= per_shard
    return kept


def _held(
    archive: Archive, kept: int, following: Series, sources: Sequence[Source], stop: When | None
) -> npt.NDArray[np.bool_]:
    """Return which images (T, C) of a series the archive has, too, in its frames from `kept` on.

    Parameters
    ----------
    archive, kept, following
        The archive, how many of its frames stay, and what is to come after these.
    sources, stop
        Where the series was taken from, if known, and the time that it was to stop before.

    Raises
    ------
    InputError
        If these have images that the series lacks: coded anew they would be lost.
    """
    listed = ~np.isnat(following.t_obs)
    if kept == archive.frames:
        return np.zeros_like(listed)
    time, t_obs, valid = archive.time[kept:], archive.t_obs[kept:], archive.valid[kept:]
    lost = valid & ~_among(time, t_obs, following.time, following.t_obs, listed)
    if lost.any():
        gone = lost & ~_offered(sources, archive.channels, t_obs, stop)
        frame, channel = np.argwhere(gone if gone.any() else lost)[0]
        name = archive.channels[channel]
        if gone.any():
            raise would_lose(f"{following.urls[0]}: lacks", name, time[frame], archive.path, time[0])
        # Without a grid images that came late may part frames: one may then not be whole, or not be due.
        raise InputError(
            f"{following.urls[0]}: has {name} of {format_utc(t_obs[frame, channel, None])[0]}, which "
            f"{archive.path} has and would lose: other images have come since, and by --missing or --every "
            "its frame is now left out; leave out --late, or compress all sources again"
        )
    return listed & _among(following.time, following.t_obs, time, t_obs, valid)


def _offered(
    sources: Sequence[Source], channels: Sequence[str], t_obs: Times, stop: When | None
) -> npt.NDArray[np.bool_]:
    """Return which images (T, C) sources have, at the very time, whatever is made of them."""
    found = np.zeros(t_obs.shape, np.bool_)
    for c, name in enumerate(channels):
        for source in sources:
            if name in source.channels:
                found[:, c] |= np.isin(t_obs[:, c], source.times(name))
    return found if stop is None else found & (t_obs < parse_date(stop, name="stop"))


def _among(
    time: Times, t_obs: Times, others: Times, taken: Times, there: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which images (T, C) have the frame or the time of observation of one `there` among others.

    Without a grid a frame has the time of its first image, and another one if an earlier image is added.
    """
    found = np.zeros(t_obs.shape, np.bool_)
    _, mine, theirs = np.intersect1d(time, others, assume_unique=True, return_indices=True)
    found[mine] = there[theirs]
    for c, when in enumerate(t_obs.T):
        found[:, c] |= np.isin(when, taken[there[:, c], c])
    return found


def would_lose(fault: str, channel: str, when: np.datetime64, path: str, begin: np.datetime64) -> InputError:
    """Return what is to be said of an image that an archive has, where coding it anew would lose it.

    Parameters
    ----------
    fault
        Whose, and what is wrong with the image there.
    channel, when
        Of the image.
    path
        The archive.
    begin
        The first frame that is coded anew.
    """
    since, at = format_utc(np.array([begin, when]))
    return InputError(
        f"{fault} {channel} of {at}, which {path} has and would lose; name sources that have all since "
        f"{since}, without a --stop before its end, or leave out --late"
    )


def _degradation_of(archive: Archive) -> str | None:
    """Return the folder with tables of AIA's degradation that an archive's source was read with."""
    recorded = archive.coding.get("degradation")
    return recorded if isinstance(recorded, str) else None


def _unlike(series: Series, archive: Archive, remedy: str) -> InputError:
    mine, theirs = ("×".join(map(str, shape)) for shape in (series.shape, archive.shape))
    return InputError(
        f"{series.urls[0]}: has {' '.join(series.channels)} at {mine} pixels, the archive {archive.path} "
        f"has {' '.join(archive.channels)} at {theirs}; {remedy}"
    )


def alignment_of(archive: Archive) -> Alignment | None:
    """Return how the source of an archive was aligned; None if it was a series in memory.

    Raises
    ------
    DamagedError
        If the archive does not say.
    """
    settings = archive.coding.get("align", {})
    if settings is None:
        return None
    with suppress(TypeError, InputError):
        align = Alignment(**{**settings, "channels": archive.channels})
        if all(
            v is None or type(v) is (int if k == "size" else str)
            for k, v in asdict(align).items()
            if k != "channels"
        ):
            return replace(align, channels=settings.get("channels"))
    raise DamagedError(f"{archive.path}: its alignment settings are not known to this sunzip")
