"""Do two hold the same? Archives and sources held against each other, image by image."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.api._pairs import Decoded, Stabilise, in_both
from sunzip.api._reports import ChannelDiff, DiffReport, Lone, OnProgress, Progress, Side
from sunzip.api._series import Alignment, Sources, alignment_of, joined, refuse_idle, refuse_idle_tables
from sunzip.archive import names_archive, summary, verify
from sunzip.bounds import told
from sunzip.channels import NAMES, channel
from sunzip.cube import Cube, Header, Scale, summed
from sunzip.errors import MEND, DamagedError
from sunzip.sources.series import Series
from sunzip.sun import Sun, open
from sunzip.times import Times, format_utc
from sunzip.weights import Model

#: How many times are named of what only one has.
_TOLD = 5

#: In place of a keyword that a header lacks.
_ABSENT: Any = object()


class _Held(ABC):
    """One of the two: its frames, read or decoded one by one.

    Attributes
    ----------
    about
        What the report says of it.
    channels, shape, scale, time
        As of `Sun` and `Series`.
    t_obs
        (T, C) datetime64[ms]: when each image was taken; NaT where there is none.
    unseen
        Images that are in no frame, and files that give no image.
    """

    about: Side
    channels: tuple[str, ...]
    shape: tuple[int, int]
    scale: Scale
    time: Times
    t_obs: Times
    unseen: int = 0

    @abstractmethod
    def read(self, frame: int, channels: tuple[str, ...]) -> Cube:
        """Return one frame of some channels, always the same ones."""

    @abstractmethod
    def measured(self, frame: int) -> bool:
        """Whether a frame holds any image."""

    def damaged(self) -> int:
        """How many images were found damaged, by reading them, and left out."""
        return 0

    @abstractmethod
    def holds(self, channel: str) -> bool:
        """Whether any image of a channel is one, of those that `filled` has."""

    @property
    def filled(self) -> tuple[str, ...]:
        """The channels of which there are images."""
        none = np.isnat(self.t_obs)
        return tuple(name for c, name in enumerate(self.channels) if not none[:, c].all())

    def of(self, channels: tuple[str, ...]) -> Times:
        """Return `t_obs` of some channels."""
        return self.t_obs[:, [self.channels.index(name) for name in channels]]


class _Archive(_Held):
    def __init__(self, sun: Sun) -> None:
        archive = sun.archive
        found = archive.summary()
        quality = archive.coding.get("quality")
        self.about = Side(
            path=archive.path,
            archive=True,
            frames=int(archive.valid.any(axis=1).sum()),
            images=int(archive.valid.sum()),
            shape=archive.shape,
            scale=archive.scale,
            format=found["format"],
            bytes=archive.size,
            model=str(archive.model["name"]),
            model_sha256=str(archive.model["sha256"]),
            quality=quality if type(quality) is int else None,
            max_error=told(archive.bounds) or None,
            block=archive.frames_per_block,
            embedded=found["model"]["embedded"],
        )
        self.sun = sun
        self.channels, self.shape, self.scale, self.time = sun.channels, archive.shape, sun.scale, sun.time
        self.t_obs = np.where(archive.valid, archive.t_obs, np.datetime64("NaT", "ms"))
        self._decoded: Decoded | None = None

    def read(self, frame: int, channels: tuple[str, ...]) -> Cube:
        self._decoded = self._decoded or Decoded(self.sun, channels)
        return self._decoded.read(frame)

    def measured(self, frame: int) -> bool:
        return not np.isnat(self.t_obs[frame]).all()

    def holds(self, channel: str) -> bool:
        return True


class _Source(_Held):
    def __init__(self, series: Series) -> None:
        found = series.report
        self.unseen = (
            found.images_dropped
            + found.duplicates
            + found.out_of_tolerance
            + found.unusable_times
            + series.skipped
        )
        self.about = Side(
            path=", ".join(series.urls),
            archive=False,
            frames=len(series),
            images=int(np.count_nonzero(~np.isnat(series.t_obs))),
            shape=series.shape,
            scale=str(series.scale),
        )
        self.series = series
        self.channels, self.shape, self.scale = series.channels, series.shape, series.scale
        self.time, self.t_obs = series.time, series.t_obs

    def read(self, frame: int, channels: tuple[str, ...]) -> Cube:
        return self.series.read(frame, frame + 1).pick(channels)

    def damaged(self) -> int:
        return self.series.unreadable

    def measured(self, frame: int) -> bool:
        # Only reading tells whether an image holds any measurement.
        return bool(self.series.read(frame, frame + 1).valid.any())

    def holds(self, channel: str) -> bool:
        c = self.channels.index(channel)
        frames = np.flatnonzero(~np.isnat(self.t_obs[:, c])).tolist()
        return any(self.series.read(frame, frame + 1).valid[0, c] for frame in frames)


def diff(
    a: Sources | Series,
    b: Sources | Series,
    *,
    hmi_a: str | None = None,
    hmi_b: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    cadence: str | timedelta | np.timedelta64 | None = None,
    model: str | Path | Model | None = None,
    progress: OnProgress | None = None,
) -> DiffReport:
    """Hold two against each other that should hold the same, each an archive or a source of images.

    Archives are verified first. Frames of one nominal time are held against each other, and those that have
    an image of the same time in common; in these, images of one channel. Pixels are the same if their bits
    are, or if both are NaN. AIA pixels that are 2×2 sums are taken as means.

    Parameters
    ----------
    a, b
        Archives, local or remote, and what `compress` takes as a source.
    hmi_a, hmi_b
        The second store of each, if that is SDOML v2.
    anon
        Ask S3 without credentials, for both.
    degradation
        Folder with tables of AIA's degradation, for FITS files, in either, that do not state theirs.
    cadence
        The time grid onto which sources are brought. By default that of the other one's source, if that one
        is an archive, and else none, so that no image is lost.
    model
        What decodes the archives, if it is neither embedded nor installed.
    progress
        Called with a `Progress` at the beginning and after each frame.

    Raises
    ------
    InputError, ModelNotFoundError, UnsupportedError
        If one of them cannot be opened or decoded, or an argument is given that does nothing for them.
    DamagedError
        If an archive is not whole.

    Examples
    --------
    >>> sunzip.diff("sun.lat", "copy/sun.lat").same  # doctest: +SKIP
    True
    """
    if isinstance(model, str | Path):
        model = weights.load(model)
    paths = [_path_of_archive(x) for x in (a, b)]
    given = [path for path in paths if path is not None]
    sources = [
        None if path is not None or isinstance(x, Series) else x
        for x, path in zip((a, b), paths, strict=True)
    ]
    to_open = [x for x in sources if x is not None]
    if sources[0] is None:
        refuse_idle(hmi_a=hmi_a)
    if sources[1] is None:
        refuse_idle(hmi_b=hmi_b)
    if not to_open:
        refuse_idle(degradation=degradation, cadence=cadence)
    refuse_idle_tables(degradation, *to_open, anon=anon)
    for path in given:
        _refuse_damaged(path, anon)
    if model is not None and any(summary(x, anon=anon)["model"]["sha256"] == model.sha256 for x in given):
        # Of two models only one can be given; the other archive finds its own.
        weights.register(model)
        model = None
    with ExitStack() as stack:
        suns = [
            None if path is None else stack.enter_context(open(path, model=model, anon=anon))
            for path in paths
        ]
        align = Alignment(cadence or "native")
        for sun in filter(None, suns):
            made = alignment_of(sun.archive)
            if cadence is None and made is not None:
                align = Alignment(made.cadence, made.tolerance)

        def held(x: Sources | Series, sun: Sun | None, hmi: str | None) -> _Held:
            if sun is not None:
                return _Archive(sun)
            if not isinstance(x, Series):
                x = joined(x, hmi, anon, degradation, align)
            return _Source(x)

        one, other = held(a, suns[0], hmi_a), held(b, suns[1], hmi_b)
        return _Comparison(one, other).run(progress)


def _path_of_archive(x: Sources | Series) -> str | None:
    return os.fspath(x) if isinstance(x, str | os.PathLike) and names_archive(os.fspath(x)) else None


def _refuse_damaged(path: str, anon: bool) -> None:
    """Raise `DamagedError` unless an archive is whole: what is the same in both could be damaged in both."""
    problems = verify(path, anon=anon).problems
    if problems:
        more = f" and in {len(problems) - 1} more (`sunzip verify`)" if len(problems) > 1 else ""
        raise DamagedError(f"{path}: is damaged in {problems[0]}{more}; {MEND}")


class _Comparison:
    def __init__(self, a: _Held, b: _Held) -> None:
        self.a, self.b = a, b
        self.common = tuple(name for name in a.filled if name in b.filled)
        self.comparable = a.shape == b.shape and bool(self.common)
        self.channels = {name: _Images(name) for name in self.common}
        self.alone = (Counter[str](), Counter[str]())
        self.frames = self.retimed = self.renamed = 0
        self.apart = np.timedelta64(0, "ms")
        self.worded = 0
        self.words: Counter[str] = Counter()
        self.raw = 0
        self.shared = self._shared()

    def run(self, progress: OnProgress | None) -> DiffReport:
        a, b = self.a, self.b
        ours, theirs = in_both(a.time, a.of(self.common), b.time, b.of(self.common))
        lone = [np.setdiff1d(np.arange(len(x.time)), n) for x, n in ((a, ours), (b, theirs))]
        total = len(ours) + len(lone[0]) + len(lone[1])
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(Progress(done, total, self.raw, 0))

        if progress:
            progress(Progress(0, total, 0, 0))
        for i, j in zip(ours.tolist(), theirs.tolist(), strict=True):
            self.pair(i, j)
            advance()
        only = []
        for x, numbers in zip((a, b), lone, strict=True):
            found = _Named()
            for i in numbers.tolist():
                if x.measured(i):
                    found.add(x.time[i])
                advance()
            only.append(found.told())
        return self.report((only[0], only[1]))

    def _shared(self) -> frozenset[int]:
        """Return the shards that hold the same in two archives, by checksums that were verified."""
        if not isinstance(self.a, _Archive) or not isinstance(self.b, _Archive):
            return frozenset()
        one, other = self.a.sun.archive, self.b.sun.archive
        alike = all(
            getattr(one, name) == getattr(other, name)
            for name in ("channels", "shape", "scale", "codec", "frames_per_block", "frames_per_shard")
        )
        if not alike or one.model["sha256"] != other.model["sha256"]:
            return frozenset()
        pairs = zip(one.digests, other.digests, strict=False)
        return frozenset(n for n, (x, y) in enumerate(pairs) if x == y)

    def pair(self, i: int, j: int) -> None:
        """Hold a frame of the one against a frame of the other."""
        a, b = self.a, self.b
        self.renamed += bool(a.about.archive and b.about.archive and a.time[i] != b.time[j])
        if i == j and isinstance(a, _Archive) and i // a.sun.archive.frames_per_shard in self.shared:
            self.frames += a.measured(i)
            for name, t_obs in zip(self.common, a.of(self.common)[i], strict=True):
                if not np.isnat(t_obs):
                    self.channels[name].add_same(a.shape[0] * a.shape[1])
            return
        if not self.comparable:
            self.frames += a.measured(i) and b.measured(j)
            return
        x, y = (h.read(n, self.common).to_scale(Scale.MEAN) for h, n in ((a, i), (b, j)))
        self.raw += x.nbytes + y.nbytes
        self.frames += bool(x.valid.any() or y.valid.any())
        for c, name in enumerate(self.common):
            here, there = bool(x.valid[0, c]), bool(y.valid[0, c])
            if here and there:
                self.channels[name].add(x.data[0, c], y.data[0, c])
                apart = abs(x.t_obs[0, c] - y.t_obs[0, c])
                self.retimed += bool(apart)
                self.apart = max(self.apart, apart)
                words = list(_words(x.headers[0][c], y.headers[0][c]))
                self.words.update(words)
                self.worded += bool(words)
            elif here or there:
                self.alone[there][name] += 1

    def report(self, frames_only: tuple[Lone, Lone]) -> DiffReport:
        a, b = self.a, self.b
        channels_only = tuple(
            tuple(name for name in x.filled if name not in y.filled and x.holds(name))
            for x, y in ((a, b), (b, a))
        )
        images_only = tuple({n: alone[n] for n in NAMES if alone[n]} for alone in self.alone)
        rows = {name: found.told() for name, found in self.channels.items()} if self.comparable else {}
        differs = {
            "channels": any(channels_only),
            "image size": a.shape != b.shape,
            "scale": any(summed(name, a.scale) != summed(name, b.scale) for name in self.common),
            "frames": any(lone.frames for lone in frames_only),
            "images": any(images_only),
            "nominal times": bool(self.renamed),
            "times": bool(self.retimed),
            "pixels": any(row.differing for row in rows.values()),
            "keywords": bool(self.worded),
        }
        return DiffReport(
            a=a.about,
            b=b.about,
            differs=tuple(name for name, wrong in differs.items() if wrong),
            frames=self.frames,
            images=sum(row.images for row in rows.values()),
            channels_only=(channels_only[0], channels_only[1]),
            frames_only=frames_only,
            images_only=(images_only[0], images_only[1]),
            unseen=(a.unseen + a.damaged(), b.unseen + b.damaged()),
            nominal_times=self.renamed,
            times=self.retimed,
            seconds_apart=int(self.apart.astype(np.int64)) / 1000,
            keywords=self.worded,
            keyword_names=dict(sorted(self.words.items(), key=lambda item: (-item[1], item[0]))),
            channels=rows,
        )


class _Named:
    """Counts frames and keeps the first few times of them."""

    def __init__(self) -> None:
        self.count = 0
        self.times: list[np.datetime64] = []

    def add(self, time: np.datetime64) -> None:
        self.count += 1
        if len(self.times) <= _TOLD:
            self.times.append(time)
        else:
            self.times[-1] = time

    def told(self) -> Lone:
        texts = format_utc(np.array(self.times, "datetime64[ms]"))
        return Lone(self.count, tuple(texts[:_TOLD]), texts[-1] if texts else None)


class _Images:
    """What differs in the images of one channel, in memory that does not grow with them."""

    _stabilise = Stabilise()

    def __init__(self, name: str) -> None:
        self.name = name
        self.images = self.identical = self.pixels = self.differing = self.nan_in_one = self.measured = 0
        self.most = self.most_sigma = self.rmse = self.rmse_sigma = 0.0

    def add_same(self, pixels: int) -> None:
        self.images += 1
        self.identical += 1
        self.measured += 1
        self.pixels += pixels

    def add(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> None:
        """Add two images (Y, X) of the channel, AIA as means."""
        nan = np.isnan(x), np.isnan(y)
        other = (x.view(np.uint32) != y.view(np.uint32)) & ~(nan[0] & nan[1])
        if not other.any():
            self.add_same(x.size)
            return
        self.images += 1
        self.pixels += x.size
        self.differing += int(np.count_nonzero(other))
        self.nan_in_one += int(np.count_nonzero(nan[0] != nan[1]))
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return
        self.measured += 1
        one, two = x[known].astype(np.float64), y[known].astype(np.float64)
        error = np.abs(one - two)
        sigmas = np.abs(self._stabilise(one, self.name) - self._stabilise(two, self.name))
        self.most, self.most_sigma = (
            max(self.most, float(error.max())),
            max(self.most_sigma, float(sigmas.max())),
        )
        self.rmse += float(np.sqrt(np.mean(error**2)))
        self.rmse_sigma += float(np.sqrt(np.mean(sigmas**2)))

    def told(self) -> ChannelDiff:
        n = self.measured
        return ChannelDiff(
            unit=channel(self.name).unit,
            images=self.images,
            identical=self.identical,
            pixels=self.pixels,
            differing=self.differing,
            nan_in_one=self.nan_in_one,
            max_error=self.most if n else None,
            rmse=self.rmse / n if n else None,
            max_sigma=self.most_sigma if n else None,
            rmse_sigma=self.rmse_sigma / n if n else None,
        )


def _words(x: Header, y: Header) -> Iterator[str]:
    """Yield the keywords that only one of two headers has, or that have another value."""
    for key in x.keys() | y.keys():
        here, there = x.get(key, _ABSENT), y.get(key, _ABSENT)
        # NaN is the same as NaN, and equals nothing.
        if here != there and not (here != here and there != there):
            yield key
