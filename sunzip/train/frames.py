"""Frames for training: read from their sources once into a memory map, then split by date."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.cube import Cube, Scale
from sunzip.errors import InputError, OutputError, SunzipError
from sunzip.files import put
from sunzip.sources.series import Series
from sunzip.times import parse_date

Half = npt.NDArray[np.float16]

#: Share of the span of time, its end, that is held out where no rule says otherwise.
LAST_SHARE = 0.1

#: Frames that a process reads at a time; fewer in all are read without any other process.
_STRETCH = 32

#: Hexadecimal digits by which the files of one series are told from those of another.
_DIGITS = 16

#: Stands in the file of presence for a frame that has not been read.
_UNREAD = 255


@dataclass(frozen=True, slots=True)
class Example:
    """One frame in memory: (C, Y, X) float16 in DN/s (2×2 means) or G, NaN where missing."""

    pixels: Half
    present: npt.NDArray[np.bool_]


def examples(cube: Cube) -> Iterator[Example]:
    """Yield a cube's frames over all 12 channels; half precision holds SDO's range to 1 part in 2000."""
    indexes = [NAMES.index(name) for name in cube.channels]
    data = cube.to_scale(Scale.MEAN).data
    for frame, valid in zip(data, cube.valid, strict=True):
        pixels = np.full((len(NAMES), *frame.shape[1:]), np.nan, np.float16)
        # Stores hold a few flare pixels beyond float16; they saturate, as the detector does.
        pixels[indexes] = np.clip(frame, -60000, 60000)
        present = np.zeros(len(NAMES), bool)
        present[indexes] = valid
        yield Example(pixels, present)


class Frames(Sequence[Example]):
    """Frames of one size in order of time, some rows of arrays that may lie on disk.

    Parameters
    ----------
    pixels
        (N, 12, Y, X) float16 as in `Example`.
    present
        (N, 12) bool.
    time
        (N,) datetime64[ms], UTC.
    rows
        Which of them are meant; all if absent.
    """

    def __init__(
        self,
        pixels: Half,
        present: npt.NDArray[np.bool_],
        time: npt.NDArray[np.datetime64],
        rows: npt.NDArray[np.intp] | None = None,
    ) -> None:
        self._pixels, self._present, self._time = pixels, present, time
        self._rows = np.arange(len(time)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Example | Frames:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = self._rows[index]
        return Example(self._pixels[row], self._present[row])

    @property
    def time(self) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC: nominal times."""
        return self._time[self._rows]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(N, 12) bool."""
        return self._present[self._rows]

    @property
    def side(self) -> tuple[int, int]:
        """(Y, X)."""
        y, x = self._pixels.shape[2:]
        return y, x

    def take(self, which: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Frames:
        """Return some of the frames, by number or by mask."""
        return Frames(self._pixels, self._present, self._time, self._rows[which])

    def spread_out(self, most: int) -> Frames:
        """Return at most so many frames, evenly spread over all."""
        if len(self) <= most:
            return self
        return self.take(np.unique(np.linspace(0, len(self) - 1, most).round().astype(np.intp)))


def cached(
    series: Series,
    folder: Path,
    *,
    fingerprint: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Frames:
    """Read a series into a folder's files unless it is there already, and open them.

    Frames of which an image holds no measurement are not among them if the series is to have none such.

    What an earlier run began is continued. The files are named after the series' fingerprint and its sources'
    URLs, so that another series is read anew, and a source whose times or first frame changed.

    Parameters
    ----------
    series
        The frames to read.
    folder
        Made if need be. Takes 2 bytes a pixel: 0.39 MB a frame of 12 × 128².
    fingerprint
        The series', where it is known: finding it takes reading a frame.
    workers
        Processes that read; the number of cores if absent.
    progress
        Called with the frames done and all of them.

    Raises
    ------
    InputError
        If an image cannot be read, no frame is left, or processes that read cannot be started.
    OutputError
        If the folder cannot be written or has too little room.
    SunzipError
        If a process that reads was killed.
    """
    count, shape = len(series), (len(series), len(NAMES), *series.shape)
    base = _base(series, folder, fingerprint or series.fingerprint())
    pixels_path, present_path = base.with_suffix(".f16"), base.with_suffix(".present")
    size = int(np.prod(shape)) * 2
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {pixels_path: size, present_path: count * len(NAMES)}
        complete = {path: path.exists() and path.stat().st_size == n for path, n in sizes.items()}
        if not all(complete.values()):
            free = shutil.disk_usage(folder).free
            if free < size:
                raise OutputError(
                    f"{folder}: {count} frames take {size / 1e6:,.1f} MB as float16, {free / 1e6:,.1f} MB "
                    "are free; use --every, or name a folder with room by --cache"
                )
            if not complete[pixels_path]:
                # Marks whose pixels somebody removed would tell of new ones that they are read.
                present_path.unlink(missing_ok=True)
            # Not emptied: another training may have begun here at the same time.
            with pixels_path.open("ab") as file:
                file.truncate(size)
            about = {
                "sources": series.urls,
                "shape": shape,
                "dtype": "float16",
                "order": "time, channel, y, x",
            }
            # The marks last: by them a later run takes the rest for whole.
            put({base.with_suffix(".json"): json.dumps(about, indent=1).encode() + b"\n"})
            put({present_path: np.full((count, len(NAMES)), _UNREAD, np.uint8).tobytes()})
        marks = _marks(present_path)
    except OSError as error:
        raise OutputError(f"{folder}: frames cannot be kept there: {error.strerror or error}") from None
    if progress:
        progress(int((marks != _UNREAD).all(1).sum()), count)
    # Again if another training that began a moment later has put its own marks there.
    while len(unread := np.flatnonzero((marks == _UNREAD).any(1))):
        _read(series, base, unread, workers, progress)
        marks = _marks(present_path)
    pixels = np.memmap(pixels_path, np.float16, "r", shape=shape)
    present = marks.astype(bool)
    frames = Frames(pixels, present, series.time)
    if series.missing == "drop":
        # By now all are read, which alone tells of images that hold no measurement.
        whole = np.flatnonzero(present[:, [NAMES.index(name) for name in series.channels]].all(1))
        if not len(whole):
            raise series.none_whole()
        frames = frames.take(whole)
    return frames


def forget_others(series: Series, folder: Path, fingerprint: str) -> None:
    """Remove from a folder the frames of other series, which a training that was there has left.

    Parameters
    ----------
    series, folder, fingerprint
        As `cached`.
    """
    mine = _base(series, folder, fingerprint).name
    for path in folder.glob(f"frames-{'[0-9a-f]' * _DIGITS}.*"):
        if path.stem != mine:
            with suppress(OSError):
                path.unlink()


def _base(series: Series, folder: Path, fingerprint: str) -> Path:
    """Return what the files of a series' frames are called, without their suffixes."""
    digest = hashlib.sha256(repr((fingerprint, series.urls)).encode()).hexdigest()
    return folder / f"frames-{digest[:_DIGITS]}"


def _marks(path: Path) -> npt.NDArray[np.uint8]:
    return np.fromfile(path, np.uint8).reshape(-1, len(NAMES))


def _read(
    series: Series,
    base: Path,
    unread: npt.NDArray[np.intp],
    workers: int | None,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Read some frames into the files, in several processes if they are many."""
    stretches = [unread[i : i + _STRETCH] for i in range(0, len(unread), _STRETCH)]
    if len(stretches) == 1:
        _fill(series, base, stretches[0])
        return
    done = len(series) - len(unread)
    # Processes, as rendering and decoding hold the interpreter's lock; spawned, as torch has threads.
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    pool = ProcessPoolExecutor(
        min(workers or os.cpu_count() or 1, len(stretches)), context, initializer=_attend, initargs=(begun,)
    )
    try:
        for future in as_completed([pool.submit(_fill, series, base, rows) for rows in stretches]):
            done += future.result()
            if progress:
                progress(done, len(series))
    except BrokenProcessPool:
        if not begun.is_set():
            # They run the program's own script first, which may fail, or begin this training once more.
            raise InputError(
                f"{base.parent}: processes that read frames cannot be started here; in a script training "
                'needs its work below `if __name__ == "__main__":`'
            ) from None
        raise SunzipError(
            f"{base.parent}: a process that read frames was killed, as happens where memory is short; what "
            "is read is kept there"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _attend(begun: Event) -> None:
    """Tell that a process that reads has begun, and how it is to end.

    Ctrl-C, which reaches all, is the first one's to obey; with that this one ends. One that is killed cannot
    tell the others, which would wait for more work for ever.
    """
    begun.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = multiprocessing.parent_process()
    assert first is not None

    def follow() -> None:
        first.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _fill(series: Series, base: Path, rows: npt.NDArray[np.intp]) -> int:
    """Read some frames into the files, and mark them as read only once their pixels are written."""
    present = np.zeros((len(rows), len(NAMES)), np.uint8)
    path = base.with_suffix(".f16")
    try:
        marks = np.memmap(base.with_suffix(".present"), np.uint8, "r+", shape=(len(series), len(NAMES)))
        # Not through a memory map: a disk that has become full would kill the process.
        with path.open("r+b") as file:
            for i, row in enumerate(rows):
                example = next(examples(series.read(int(row), int(row) + 1)))
                file.seek(int(row) * example.pixels.nbytes)
                file.write(example.pixels.data)
                present[i] = example.present
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"{path}: frames cannot be kept there: {error.strerror or error}") from None
    marks[rows] = present
    marks.flush()
    return len(rows)


def held_out(time: npt.NDArray[np.datetime64], rules: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Tell which frames are held out from training, by their date alone.

    Parameters
    ----------
    time
        (N,) datetime64[ms], increasing.
    rules
        ``"2014-03-01..2014-06-01"``, the latter not included, or ``"months=1,3"``, the Januaries and
        Marches of all years. A frame is held out by any of them. Without a rule it is the last tenth of
        the span of time.

    Returns
    -------
    (N,) bool.

    Raises
    ------
    InputError
        If a rule is not understood, holds out nothing, or no frame is left to train on.
    """
    if not rules:
        return np.asarray(time > time[-1] - (time[-1] - time[0]) * LAST_SHARE)
    found = np.zeros(len(time), bool)
    months = time.astype("datetime64[M]").astype(np.int64) % 12 + 1
    for rule in rules:
        begin, dots, end = rule.partition("..")
        if dots:
            first, last = parse_date(begin, name="hold-out"), parse_date(end, name="hold-out")
            mine = (time >= first) & (time < last)
        else:
            key, _, values = rule.partition("=")
            numbers = [int(v) for v in values.split(",") if v.strip().isascii() and v.strip().isdigit()]
            if key != "months" or len(numbers) != len(values.split(",")) or set(numbers) - set(range(1, 13)):
                raise InputError(
                    f"hold-out {rule!r} is not understood; write 2014-03-01..2014-06-01 or months=1,3"
                )
            mine = np.isin(months, numbers)
        if not mine.any():
            raise InputError(f"hold-out {rule} meets no frame; there are frames from {time[0]} to {time[-1]}")
        found |= mine
    if found.all():
        raise InputError("every frame is held out, so that none is left to train on; hold out less")
    return found
