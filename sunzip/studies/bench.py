"""How fast this machine codes and decodes, on how many cores, and whether it decodes to the right pixels."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.api import OnStep, compress, longest_block, open
from sunzip.arguments import whole
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.lanes import BUSY, count
from sunzip.codec.processes import ahead, pids, settle
from sunzip.display import Report
from sunzip.errors import InputError
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.studies.timing import fastest

#: Frames after which one core has done all that it does: the second builds on the first.
_WARM = 2

#: How long each direction is timed at least.
_SECONDS = 2.0

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from sunzip.studies.bench import serve
serve(*sys.argv[2:])
"""

#: Three frames of 32×32 in all channels as a model coded them: its sha256, the block, and the sha256 of the
#: pixels, as little-endian float32, that it decodes to on every machine.
KNOWN = (
    "c6b32836d1081899acf16c437b8d6b01619cc1c9132aace60e77dffa3ad312d6",
    base64.b64decode(
        "UwEqAQAAXMMeYcazKDYjAkAfwAcA/w/rARIpK4AB8Yn9eBqUZob134KWg1KiK961+o8qPTKSczIvhakeWMBQp6Wkly+h"
        "OIdmYfgHeYjgb0IXhwBQ6p0lTPKxhw5nhqvbwLu8qk3AibmOZOBEbDCE9T3OHP3ovE7F+HNAIq5GWrG0FTLbDKdRWxPR"
        "yISb9qPPI6fJDygjj7i3nFxLIWZFGOINSQkKMp5DM6Ie6b2wyb9apBWcaWBbAvjfm2MA101HYXf3woMJJ2o1GRvO78Fl"
        "yle7wArFMDuIONBb/equpTyknQWuCldzGV8eaGYnQg5gOWM9YSBXsMU9zr8lWHyTFdchXcwJcREAABvJT+/Bkb7uHvIO"
        "8T4GcQIAJ8xk8VLNHvJz4JTu7+EnlA=="
    ),
    "96a8c97f6f423a4335722aa47cc7c0829ba2c352d543cb64493a9ef8efb4c166",
)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """What a number of cores does.

    Attributes
    ----------
    cores
        How many.
    frames
        How many were coded in each round.
    in_mb_s, in_frames_s
        MB of float32, and frames, a second: from pixels in memory to an archive on disk, errors measured.
    out_mb_s, out_frames_s
        From that archive to pixels.
    in_hours, out_hours
        That 1 TB of float32 would take.
    peak_bytes
        The most memory that all processes had, each by itself; None where the system does not tell.
    """

    cores: int
    frames: int
    in_mb_s: float
    in_frames_s: float
    out_mb_s: float
    out_frames_s: float
    in_hours: float
    out_hours: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class BenchReport(Report):
    """How fast a machine is.

    Attributes
    ----------
    processor, platform
        What it is.
    model, model_sha256, quality
        What coded; a quality of None is that of a model that has none.
    block
        Frames coded together.
    channels, shape
        Of each frame of the synthetic Sun.
    load
        How many programs had a core, or waited for one, before anything began: the system's average over a
        minute. They slow what is timed. None where the system does not tell.
    exact
        Whether a block that was coded elsewhere decodes to the pixels that it has there; None if none is
        known of this model.
    seconds
        Wall time.
    rows
        By number of cores.
    """

    processor: str
    platform: str
    model: str
    model_sha256: str
    quality: int | None
    block: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    load: float | None
    exact: bool | None
    seconds: float
    rows: tuple[BenchRow, ...]


def bench(
    *,
    model: str | Path = weights.DEFAULT,
    quality: int | None = None,
    size: int = 512,
    cores: Iterable[int] | None = None,
    progress: OnStep | None = None,
) -> BenchReport:
    """Time coding and decoding of a film of the synthetic Sun, 12 channels every 12 minutes.

    Each number of cores is timed in a process of its own, and after what happens but once has happened:
    networks are loaded, and lanes have their processes. Frames are made, and read, outside of the time.

    Parameters
    ----------
    model
        Its name, sha256 or folder.
    quality
        0 (smallest) to 100 (finest); None is the model's default.
    size
        Pixels a side, a multiple of 16.
    cores
        How many; by default 1, 2, 4 and so on, and all that there are.
    progress
        Told what is done, how much of it and of how much.

    Raises
    ------
    InputError, ModelNotFoundError
        If model, quality or size cannot be; or a process that was timed did not live to its end.
    """
    begin, load = clock.monotonic(), os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    codec = Codec(weights.load(model), quality)
    size = whole(size, "size (--size)", 16)
    codec.family.check_size(size, size)
    codec.family.load()  # which says so if PyTorch is not installed
    numbers = _numbers(count()) if cores is None else [whole(n, "a number of cores", 1) for n in cores]
    sun = Synthetic(frames=_rendered(size), size=size)
    advance = progress or (lambda *_: None)
    rows, block = [], 1
    with tempfile.TemporaryDirectory(prefix="sunzip-bench-") as folder:
        with Path(folder, "film").open("wb") as file:
            for row in range(len(sun.time)):
                advance("making frames", row, len(sun.time))
                file.write(sun.frame(row).data)
        for done, n in enumerate(numbers):
            advance(f"timing {n} core{'s' * (n > 1)}", done, len(numbers))
            found = _timed(folder, size, n, str(model), codec.quality)
            block = found.pop("block")
            rows.append(_row(n, size, **found))
    return BenchReport(
        processor=_processor(),
        platform=platform.platform(),
        model=codec.model.name,
        model_sha256=codec.model.sha256,
        quality=codec.shown_quality,
        block=block,
        channels=NAMES,
        shape=(size, size),
        load=load,
        exact=_exact(codec),
        seconds=clock.monotonic() - begin,
        rows=tuple(rows),
    )


def _rendered(size: int) -> int:
    """Return how many frames of a size are made, that follow each other again and again: those of a block."""
    return longest_block(len(NAMES) * size * size)


def _numbers(most: int) -> list[int]:
    """Return the powers of two below a number of cores, and that number."""
    return [1 << n for n in range(most.bit_length()) if 1 << n < most] + [most]


def _row(cores: int, size: int, frames: int, into: float, out: float, peak: int | None) -> BenchRow:
    megabytes = frames * 4 * len(NAMES) * size * size / 1e6
    return BenchRow(
        cores=cores,
        frames=frames,
        in_mb_s=megabytes / into,
        in_frames_s=frames / into,
        out_mb_s=megabytes / out,
        out_frames_s=frames / out,
        in_hours=1e6 / 3600 * into / megabytes,
        out_hours=1e6 / 3600 * out / megabytes,
        peak_bytes=peak,
    )


def _timed(folder: str, size: int, cores: int, model: str, quality: int) -> dict[str, Any]:
    """Have a process time so many cores."""
    folders = [path for path in sys.path if isinstance(path, str)]
    told = (json.dumps(folders), folder, *map(str, (size, cores)), model, str(quality))
    done = subprocess.run(
        [sys.executable, "-P", "-c", _START, *told],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": str(cores)},
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"code {done.returncode}"
        raise InputError(
            f"the process that timed {cores} core{'s' * (cores > 1)} ended early ({last}); if memory is "
            "short, take smaller frames (--size) or fewer cores (OMP_NUM_THREADS)"
        )
    return dict(json.loads(done.stdout))


class _Film(Synthetic):
    """Frames that were rendered before, over and over."""

    def __init__(self, file: Path, frames: int, size: int) -> None:
        super().__init__(frames=frames, size=size)
        self._file, self._rendered = file, _rendered(size)

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        pixels = self.shape[0] * self.shape[1]
        at = 4 * pixels * (row % self._rendered * len(NAMES) + self._index(channel))
        # Not mapped, which would count as memory.
        return np.fromfile(self._file, np.float32, pixels, offset=at).reshape(self.shape)


def serve(folder: str, size: str, cores: str, model: str, quality: str) -> None:
    """Time so many cores, and print what was found: what a process runs."""
    side, lanes = int(size), count()
    out = os.path.join(folder, "film.lat")

    def film(frames: int) -> Series:
        return join([_Film(Path(folder, "film"), frames, side)])

    def code(series: Series) -> None:
        compress(series, out, model=model, quality=int(quality), force=True)

    def decode() -> None:
        with open(out, model=model) as sun:
            for stretch in sun.stretches(range(len(sun)), sun.together):
                sun.take(stretch)

    # As in a run of which no end is to be seen.
    with ahead(1 << 62):
        blocks = -(-lanes // BUSY)
        settle(partial(code, film(blocks * _rendered(side) if lanes > 1 else _WARM)))
        series = film(lanes * _rendered(side))
        into = fastest(partial(code, series), _SECONDS, 1, warm=True)
        back = fastest(decode, _SECONDS, 1, warm=True)
    with open(out, model=model) as sun:
        block = sun.together
    print(json.dumps({"frames": len(series), "into": into, "out": back, "peak": _peak(), "block": block}))


def _peak() -> int | None:
    """Return the most bytes of memory that this process and those of its lanes had, each by itself."""
    # What getrusage tells begins with the memory of the process that started this one.
    with suppress(OSError):
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in (os.getpid(), *pids())]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("VmHWM:")]
        return sum(int(line.split()[1]) * 1024 for line in lines) or None
    return None


def _exact(codec: Codec) -> bool | None:
    """Tell whether the known block decodes to the known pixels."""
    model, block, pixels = KNOWN
    if model != codec.model.sha256:
        return None
    decoded = codec.decode([block], NAMES, (32, 32))
    return hashlib.sha256(decoded.astype("<f4").tobytes()).hexdigest() == pixels


def _processor() -> str:
    """Return what the processor calls itself."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
