"""How many bytes frames take, over a quiet and an active Sun, each way of sending them; and at what error."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.api import Alignment, open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.normalize import Stabiliser
from sunzip.sources.synthetic import render
from sunzip.studies.onboard.camera import Camera, Raw
from sunzip.studies.onboard.mission import Floats, Mission
from sunzip.studies.onboard.ways import lossy_jpeg2000, peers

Float = npt.NDArray[np.float32]

#: The synthetic Sun's quiet and active periods: the minimum before cycle 24 and the maximum of cycle 23, each
#: a year, so that frames see every phase of its rotation; the instrument is as it was at launch.
SYNTHETIC = (("quiet Sun", "2008-07-01", 365), ("active Sun", "2001-01-01", 365))

#: Frames that are made ready, and coded, side by side.
_TOGETHER = 2

#: Qualities of the curve of error against bytes.
_QUALITIES = (0, 25, 50, 75, 100)


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of frames.

    Attributes
    ----------
    name
        What the report calls it.
    share
        Of the mission's time.
    source
        Where the frames come from.
    count
        How many frames it has.
    frame
        Gives one: (C, Y, X) in DN/s (2×2 means) and G.
    """

    name: str
    share: float
    source: str
    count: int
    frame: Callable[[int], Float]


def periods(
    mission: Mission, sources: Sequence[str], count: int, side: int, *, hmi: str | None, anon: bool
) -> list[Period]:
    """Return where frames come from: sources that the user names, or the synthetic Sun, quiet and active.

    Parameters
    ----------
    mission
        Says which channels, and how much of the time the Sun is active.
    sources
        As `sunzip.api.open_series` takes them, each a period of its own.
    count
        Most frames of a period, evenly spread over it.
    side
        Pixels along a side.
    hmi, anon
        As in `sunzip.api.open_series`.

    Raises
    ------
    InputError
        If a source cannot be used.
    """
    if not sources:
        shares = (1 - mission.active, mission.active)
        return [
            _synthetic(name, share, start, days, count, side, mission.channels)
            for (name, start, days), share in zip(SYNTHETIC, shares, strict=True)
            # What never comes about has no part in the mission's largest frames.
            if share > 0
        ]
    if len(set(sources)) < len(sources):
        raise InputError(f"sources {' '.join(sources)}: one is named twice; each is a period of its own")
    return [_of_source(url, 1 / len(sources), count, side, mission, hmi, anon) for url in sources]


def _synthetic(
    name: str, share: float, start: str, days: int, count: int, side: int, channels: tuple[str, ...]
) -> Period:
    at = [NAMES.index(c) for c in channels]
    begin = np.datetime64(start, "ms")
    step = np.timedelta64(days * 86_400_000 // count, "ms")

    def frame(n: int) -> Float:
        return render(begin + n * step, size=side)[at]

    return Period(name, share, f"synthetic Sun, {count} frames from {start}, {days} days", count, frame)


def _of_source(
    url: str, share: float, count: int, side: int, mission: Mission, hmi: str | None, anon: bool
) -> Period:
    # A missing image would be black, and black takes no bytes.
    align = Alignment(channels=mission.channels, size=side, missing="drop")
    series = open_series(url, hmi=hmi, anon=anon, align=align)
    wanted = np.zeros(len(series), bool)
    wanted[np.linspace(0, len(series) - 1, count).round().astype(int)] = True
    # So is one that holds no measurement, which only reading tells.
    whole = series.whole(wanted)
    rows = np.flatnonzero(np.isin(whole.time, series.time[wanted])).tolist()
    if not rows:
        raise InputError(
            f"{url}: each of the {np.count_nonzero(wanted)} frames that were looked at has an image without "
            "any measurement; look at more (--frames), or take another stretch"
        )

    def frame(n: int) -> Float:
        found: Float = whole.read(rows[n], rows[n] + 1).to_scale(Scale.MEAN).data[0]
        return found

    return Period(url, share, f"{len(rows)} of {len(series)} frames", len(rows), frame)


@dataclass(slots=True)
class Sizes:
    """Bytes of each measured frame, each way, by period.

    Attributes
    ----------
    ways
        Titles by key, in the order in which reports show them.
    notes
        What is to say about each way.
    bytes
        [key][period] → (N,) bytes of a measured frame.
    """

    ways: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, dict[str, Floats]] = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """What measuring found; bytes are of a measured frame and not yet of the mission's.

    Attributes
    ----------
    side
        Pixels along a side of a measured frame.
    periods
        The periods.
    sizes
        See `Sizes`.
    stress
        Title → bytes of frames that no Sun shows, as the model codes them.
    errors
        Of the first frame of each period: root mean square error in units of the noise of a pixel, ``read``
        against what the camera read, ``true`` against the frame before the camera's noise, ``read_jpeg2000``
        of JPEG 2000 in as many bytes.
    curve
        Of the same frames, at several qualities, or the one of a model that has none: bits per sample,
        ``read`` and ``true``.
    seconds
        That coding a measured frame takes, on one core of this machine.
    """

    side: int
    periods: list[Period]
    sizes: Sizes
    stress: dict[str, float]
    errors: dict[str, dict[str, float | None]]
    curve: list[dict[str, float | None]]
    seconds: float


def measure(
    mission: Mission,
    codec: Codec,
    found: list[Period],
    side: int,
    advance: Callable[[str, int, int], object],
) -> Measured:
    """Code the frames of all periods each way.

    Parameters
    ----------
    mission
        The mission.
    codec
        Of the model, at the quality to be studied.
    found
        Where frames come from.
    side
        Pixels along a side.
    advance
        Told what is done, how much of it and of how much.
    """
    camera = Camera(mission.channels, mission.bits, mission.binning)
    sizes = Sizes()
    others = peers(mission.bits)
    at = "" if codec.shown_quality is None else f" q{codec.shown_quality}"
    sizes.ways = {"model": f"sunzip, {codec.model.name}{at}", "raw": f"raw, {mission.bits} bit"}
    sizes.notes = {"model": "lossy; see the error", "raw": "bits of the camera, packed"}
    for peer in others:
        sizes.ways[peer.key], sizes.notes[peer.key] = peer.title, peer.note
    sizes.bytes = {key: {} for key in ("model", "raw", *(p.key for p in others if p.encode))}
    errors: dict[str, dict[str, float | None]] = {}
    kept: list[tuple[Float, Raw]] = []
    done, total = 0, sum(p.count for p in found)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for period in found:

            def prepare(n: int, period: Period = period) -> tuple[Float, Raw, dict[str, float]]:
                frame = period.frame(n)
                raw = camera.expose(frame, np.random.default_rng(n))
                coded = {p.key: float(sum(map(p.encode, raw))) for p in others if p.encode}
                return frame, raw, {"raw": raw.size * mission.bits / 8, **coded}

            rows: dict[str, list[float]] = {key: [] for key in sizes.bytes}
            for begin in range(0, period.count, _TOGETHER):
                ready = list(pool.map(prepare, range(begin, min(begin + _TOGETHER, period.count))))
                blocks = codec.encode(
                    np.stack([camera.physical(raw) for _, raw, _ in ready]), mission.channels
                )
                for block, (frame, raw, coded) in zip(blocks, ready, strict=True):
                    if not rows["model"]:
                        errors[period.name] = _errors(camera, mission, codec, frame, raw, block)
                        kept.append((frame, raw))
                    rows["model"].append(len(block))
                    for key, size in coded.items():
                        rows[key].append(size)
                done += len(ready)
                advance("coding frames", done, total)
            for key, values in rows.items():
                sizes.bytes[key][period.name] = np.array(values)
    advance("error against bytes", done, total)
    curve = _curve(mission, codec, camera, kept)
    stress = _stress(mission, codec, camera, kept[-1][0])
    return Measured(side, found, sizes, stress, errors, curve, _seconds(mission, codec, camera, kept[-1][1]))


def _seconds(mission: Mission, codec: Codec, camera: Camera, raw: Raw) -> float:
    """Return the seconds that coding one frame takes on one core: the best of three."""
    frames = camera.physical(raw)[None]
    found = []
    for _ in range(3):
        begin = clock.perf_counter()
        codec.encode(frames, mission.channels)
        found.append(clock.perf_counter() - begin)
    return min(found)


def _rms(difference: Float, noise: Float) -> float:
    """Return the error in units of noise: root mean square of each image, averaged over the images."""
    ratio = (difference / noise).astype(np.float64)
    return float(np.sqrt(np.mean(ratio**2, axis=(1, 2))).mean())


def _errors(
    camera: Camera, mission: Mission, codec: Codec, frame: Float, raw: Raw, block: bytes
) -> dict[str, float | None]:
    decoded = codec.decode([block], mission.channels, frame.shape[1:])[0]
    true = np.nan_to_num(frame)
    seen, noise = camera.physical(raw), camera.noise(true)
    units = Stabiliser.for_channels(mission.channels)
    # Halves of a unit of noise of 512², which is finer than that of any camera studied here.
    low = units.forward(camera.physical(np.zeros_like(raw[:, :1, :1])))

    def stable(values: Raw) -> Floats:
        return np.clip((units.forward(camera.physical(values)) - low).astype(np.float64) * 2, 0, 65535)

    def undo(values: Floats) -> Raw:
        physical = units.inverse((values / 2).astype(np.float32) + low)
        return camera.counts(physical)

    other = lossy_jpeg2000(raw, stable, undo, len(block))
    return {
        "read": _rms(decoded - seen, noise),
        "true": _rms(decoded - true, noise),
        "read_jpeg2000": None if other is None else _rms(camera.physical(other) - seen, noise),
    }


def _curve(
    mission: Mission, codec: Codec, camera: Camera, kept: list[tuple[Float, Raw]]
) -> list[dict[str, float | None]]:
    rows: list[dict[str, float | None]] = []
    for quality in sorted({*_QUALITIES, codec.quality}) if codec.family.has_qualities else [codec.quality]:
        at = codec.at(quality)
        points = []
        for frame, raw in kept:
            seen, true = camera.physical(raw), np.nan_to_num(frame)
            noise = camera.noise(true)
            (block,) = at.encode(seen[None], mission.channels)
            decoded = at.decode([block], mission.channels, frame.shape[1:])[0]
            points.append(
                (8 * len(block) / raw.size, _rms(decoded - seen, noise), _rms(decoded - true, noise))
            )
        bits, read, true_error = np.mean(points, axis=0).tolist()
        rows.append({"quality": at.shown_quality, "bits_per_sample": bits, "read": read, "true": true_error})
    return rows


def _stress(mission: Mission, codec: Codec, camera: Camera, frame: Float) -> dict[str, float]:
    """Return bytes of frames of which buffers must not be surprised: no Sun, but cameras give them."""
    rng = np.random.default_rng(1)
    raw = camera.expose(frame, rng)
    top = (1 << mission.bits) - 1
    struck = raw.copy()
    # A proton storm: a hundredth of all pixels hit, by anything up to saturation.
    hit = rng.random(raw.shape) < 0.01
    struck[hit] = rng.integers(0, top, int(hit.sum()), dtype=np.uint16, endpoint=True)
    noise = rng.integers(0, top, raw.shape, dtype=np.uint16, endpoint=True)
    return {
        title: float(len(codec.encode(camera.physical(image)[None], mission.channels)[0]))
        for title, image in (
            ("proton storm, 1 % of pixels hit", struck),
            ("nothing but random pixels", noise),
        )
    }


def quantile(values: Floats, p: float) -> tuple[float, bool]:
    """Return a quantile, and whether it lies beyond what so few values show.

    Within the sample it is the empirical one. Beyond, where fewer than one value would exceed it, a
    generalised Pareto distribution is fitted to the largest tenth, at least 5 values, by the method of
    moments (Hosking and Wallis 1987, Technometrics 29, 339), and read at p; never below the largest value.
    Of up to ten values the largest has to do.
    """
    n = len(values)
    if n * (1 - p) >= 1 or np.ptp(values) == 0:
        return float(np.quantile(values, p)), False
    ordered = np.sort(values)
    k = max(5, n // 10)
    if n <= 2 * k:
        return float(ordered[-1]), True
    threshold = float(ordered[-k - 1])
    over = ordered[-k:] - threshold
    mean, variance = float(over.mean()), float(over.var(ddof=1))
    if variance <= 0 or mean <= 0:
        return float(ordered[-1]), True
    shape = 0.5 * (1 - mean**2 / variance)
    scale = 0.5 * mean * (mean**2 / variance + 1)
    ratio = (1 - p) * n / k
    tail = scale * -math.log(ratio) if abs(shape) < 1e-6 else scale / shape * (ratio**-shape - 1)
    return max(threshold + tail, float(ordered[-1])), True


def statistics(sizes: Floats) -> dict[str, Any]:
    """Return mean, 95th and 99.9th percentile and largest of (N,) bytes; and whether the tail is a fit."""
    p95, _ = quantile(sizes, 0.95)
    p999, fitted = quantile(sizes, 0.999)
    return {
        "frames": len(sizes),
        "mean": float(sizes.mean()),
        "p95": p95,
        "p999": p999,
        "p999_fitted": fitted,
        "worst": float(sizes.max()),
    }
