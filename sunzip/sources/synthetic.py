"""The synthetic Sun as a source: 12 coherent channels of any date, for demonstrations, tests and training."""

from __future__ import annotations

import datetime as dt
import functools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS, NAMES, canonical, channel
from sunzip.cube import Cube, Header, Scale, disk_radius
from sunzip.errors import InputError
from sunzip.sources import _sun
from sunzip.sources._sun import field, instrument, radio
from sunzip.sources.base import Source
from sunzip.times import parse_duration, t_obs_keyword, tai_to_utc

_EPOCH = np.datetime64("2000-01-01T00:00:00.000", "ms")

#: AIA takes its channels one after another within 12 s: seconds after the nominal time.
_OFFSET_MS = (1120, 8620, 350, 5840, 10620, 8120, 2630, 4120, 5710)

#: Of images as public stores have them: shares that are missing, nothing but NaN, stored twice; share of
#: keywords without a value; how many images wait for a channel's next row, of which any may be it.
_MISSING, _EMPTY, _TWICE, _UNKNOWN, _LATE = 0.05, 0.02, 0.03, 0.02, 4

_MIN_SIZE, _MAX_SIZE = 16, 4096

#: 22 years at 12 minutes. An index of them, with all channels, takes 2 GB.
_MAX_FRAMES = 1_000_000

#: Keywords write years in four digits, and HMI's are some seconds ahead.
_FIRST, _LAST = np.datetime64("0001-01-02", "ms"), np.datetime64("9999-12-31", "ms")


@functools.lru_cache(maxsize=4)
def _sun_of(seed: int) -> _sun.Sun:
    return _sun.Sun(seed)


def _milliseconds(time: np.datetime64 | dt.datetime | str) -> np.datetime64:
    if isinstance(time, dt.datetime) and time.tzinfo is not None:
        time = time.astimezone(dt.UTC).replace(tzinfo=None)
    try:
        out: npt.NDArray[np.datetime64] = np.array(time, "M8[ms]")
    except (ValueError, TypeError) as error:
        raise InputError(f"{time!r} is not a time; write it as 2012-03-01T00:00:00") from error
    if np.isnat(out):
        raise InputError("the synthetic Sun needs a time, not NaT")
    return np.datetime64(int(out.astype(np.int64)), "ms")


def render(
    time: np.datetime64 | dt.datetime | str, *, size: int = 512, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Render the synthetic Sun at one instant: a pure function of its arguments.

    Parameters
    ----------
    time
        UTC (naive datetimes are taken as UTC).
    size
        Pixels per side, a multiple of 16.
    seed
        Which Sun.

    Returns
    -------
    (12, size, size) float32 in canonical channel order, DN/s and G; row 0 south; HMI exactly 0 off the disk.

    Raises
    ------
    InputError
        If the time or the size cannot be used.
    """
    when = _milliseconds(time)
    _check_size(size)
    elapsed = int((when - _EPOCH).astype(np.int64))
    days = elapsed / 86_400_000
    image = _sun_of(int(seed))(days, size)
    keys = [seed & 0x7FFF_FFFF_FFFF_FFFF, elapsed & 0xFFFFFFFFFFFF, size]
    instrument.add_noise(image, days, np.random.Generator(np.random.SFC64(keys)))
    return image


def radio_flux(
    dates: npt.NDArray[np.datetime64], *, seed: int = 0
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Return the daily radio flux of the synthetic Sun at 30 and 10.7 cm: of the state that its images show.

    Parameters
    ----------
    dates
        (N,) datetime64[D].
    seed
        Which Sun.

    Returns
    -------
    ``f30`` and ``f107``: flux as observed at the Earth and adjusted to 1 au, each (N,) in solar flux units.
    """
    sun, out = _sun_of(int(seed)), {name: np.empty((2, len(dates))) for name in radio.BANDS}
    # F30 is observed in Japan, at 3 h UTC.
    days = (dates.astype("M8[D]") - _EPOCH.astype("M8[D]")).astype(np.float64) + 3 / 24
    for i, t in enumerate(days.tolist()):
        seen = radio.components(sun.windows(t, field.MAX_TRANSPORT_DAYS), t)
        for name, band in radio.BANDS.items():
            out[name][:, i] = radio.flux(seen, t, band, sun.seed)
    return {name: (both[0], both[1]) for name, both in out.items()}


def _times(frames: int, start: np.datetime64, step: np.timedelta64) -> npt.NDArray[np.datetime64]:
    """Return the nominal times, (frames,) datetime64[ms]; as Python's integers they are seen to overflow."""
    if not 1 <= frames <= _MAX_FRAMES:
        raise InputError(f"the synthetic Sun has 1 to {_MAX_FRAMES:,} frames, not {frames:,}")
    first, last, begin, ms = (int(t.astype(np.int64)) for t in (_FIRST, _LAST, start, step))
    if not first <= begin <= begin + (frames - 1) * ms <= last:
        raise InputError(
            f"frames={frames:,}, one each {ms / 1000:,.15g} s from {start} on, leave the years 1 to 9999 "
            "of the synthetic Sun; ask for fewer, a shorter cadence or another start"
        )
    times: npt.NDArray[np.datetime64] = start + np.arange(frames) * step
    return times


def _check_size(size: int) -> None:
    if not _MIN_SIZE <= size <= _MAX_SIZE or size % 16:
        raise InputError(
            f"size {size} of the synthetic Sun is not a multiple of 16 from {_MIN_SIZE} to {_MAX_SIZE}"
        )


class Synthetic(Source):
    """A made-up but coherent Sun: every channel follows from one magnetic state, at any date.

    Parameters
    ----------
    frames
        How many, up to a million.
    size
        Pixels per side, a multiple of 16 up to 4096.
    start
        UTC time of the first frame; the last one is in the year 9999 at the latest.
    cadence
        Time between frames: ``"12min"``, ``"6h"``, ``"1d"``, ``"30s"``.
    seed
        Which Sun: the same seed gives the same one at every size, cadence and start.
    channels
        Which channels to give.

    Raises
    ------
    InputError
        If an argument cannot be used.
    """

    def __init__(
        self,
        *,
        frames: int = 64,
        size: int = 512,
        start: str | np.datetime64 | dt.datetime = "2012-03-01T00:00:00",
        cadence: str = "12min",
        seed: int = 0,
        channels: Iterable[str] = NAMES,
    ) -> None:
        _check_size(size)
        self.url = f"synthetic:seed={seed}"
        self.layout = "synthetic"
        self.scale = Scale.MEAN
        self.channels = canonical(channels)
        self.shape = (size, size)
        self.counts: Counter[str] = Counter()
        self.seed = int(seed)
        self.time = _times(frames, _milliseconds(start), parse_duration(cadence, name="cadence"))
        self._lock = threading.Lock()
        self._last: tuple[int, npt.NDArray[np.float32]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_last")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _last=None)

    def frame(self, row: int) -> npt.NDArray[np.float32]:
        """Render the whole frame of one row: (12, Y, X) float32, all channels whatever `channels` says.

        The array is the caller's own.
        """
        return self._frame(row).copy()

    def _frame(self, row: int) -> npt.NDArray[np.float32]:
        if not 0 <= row < len(self.time):
            raise InputError(f"{self.url} has {len(self.time)} frames and no row {row}")
        # One lock for the rendering, too: threads that ask for 12 channels of one row wait for one rendering.
        with self._lock:
            if self._last is None or self._last[0] != row:
                self._last = (row, render(self.time[row], size=self.shape[0], seed=self.seed))
            return self._last[1]

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC: a few seconds after the nominal times, as the instruments have it."""
        return _observed(self._index(channel), self.time)

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image: (Y, X) float32."""
        image: npt.NDArray[np.float32] = self._frame(row)[self._index(channel)].copy()
        return image

    def header(self, channel: str, row: int) -> Header:
        """Return the keywords that SDOML v2 keeps, for one image."""
        index = self._index(channel)
        if not 0 <= row < len(self.time):
            raise InputError(f"{self.url} has {len(self.time)} frames and no row {row}")
        when = _observed(index, self.time[row : row + 1])[0]
        n = self.shape[0]
        days = float((when - _EPOCH).astype(np.int64)) / 86_400_000
        radius_px = disk_radius(n)
        radius = round(field.solar_radius_arcsec(days), 6)
        out: dict[str, str | int | float | bool | None] = {}
        if index < 9:
            whole, ms = str(when).split(".")
            out["T_OBS"] = f"{whole}.{ms[:2]}Z"
            out["EXPTIME"] = CHANNELS[index].exposure
            out["DEG_COR"] = round(instrument.sensitivity(index, days), 6)
        else:
            out["T_OBS"] = t_obs_keyword(when, "HMI")
        out |= {
            "WAVELNTH": CHANNELS[index].wavelength,
            "WAVEUNIT": "angstrom",
            "QUALITY": 0,
            "CDELT1": radius / radius_px,
            "CDELT2": radius / radius_px,
            "CRPIX1": (n + 1) / 2,
            "CRPIX2": (n + 1) / 2,
            "CRVAL1": 0.0,
            "CRVAL2": 0.0,
            "CTYPE1": "HPLN-TAN",
            "CTYPE2": "HPLT-TAN",
            "CUNIT1": "arcsec",
            "CUNIT2": "arcsec",
            "CROTA2": 0.0,
            "RSUN_OBS": radius,
            "R_SUN": radius_px,
            "NAXIS1": float(n),
            "NAXIS2": float(n),
            "TELESCOP": "SDO/AIA" if index < 9 else "SDO/HMI",
            "PIXLUNIT": "DN/s" if index < 9 else "Gauss",
        }
        return out

    def stored_bytes(self) -> int | None:
        """Nothing is stored: None."""
        return None

    def _index(self, name: str) -> int:
        found = channel(name)
        if found.name not in self.channels:
            raise InputError(f"{self.url} has no channel {found.name}; it has {' '.join(self.channels)}")
        return found.index


def cubes(sun: Synthetic, *, wild: bool = False) -> Iterator[Cube]:
    """Give the frames one by one, with all 12 channels, as a sink takes them.

    Parameters
    ----------
    sun
        The frames.
    wild
        Give them as rows stand in public stores: shuffled within each year, and differently for each
        channel; images missing, of nothing but NaN, or twice; keywords without a value. ``cube.time``
        is then of the right year only.
    """
    observed = np.stack([_observed(c, sun.time) for c in range(len(NAMES))], axis=1)
    if not wild:
        for row in range(len(sun.time)):
            one = slice(row, row + 1)
            headers = [[sun.header(name, row) for name in NAMES]]
            valid = np.ones((1, len(NAMES)), bool)
            yield Cube(sun.frame(row)[None], NAMES, sun.time[one], observed[one], valid, headers, Scale.MEAN)
        return
    rng = np.random.default_rng([sun.seed & 0x7FFF_FFFF_FFFF_FFFF, 0x111D])
    years = sun.time.astype("M8[Y]")
    for year in np.unique(years):
        waiting: list[list[_Row]] = [[] for _ in NAMES]
        for row in rng.permutation(np.flatnonzero(years == year)).tolist():
            frame = sun.frame(row)
            for c, name in enumerate(NAMES):
                fate = rng.random()
                if fate < _MISSING:
                    continue
                image = np.full_like(frame[c], np.nan) if fate < _MISSING + _EMPTY else frame[c].copy()
                header = {
                    key: None if key != "T_OBS" and rng.random() < _UNKNOWN else value
                    for key, value in sun.header(name, row).items()
                }
                for _ in range(2 if fate > 1 - _TWICE else 1):
                    waiting[c].insert(
                        int(rng.integers(len(waiting[c]) + 1)), (image, observed[row, c], header)
                    )
            yield from _next_rows(sun, waiting, sun.time[row], _LATE)
        yield from _next_rows(sun, waiting, sun.time[row], 0)


#: An image, when it was taken, its keywords.
_Row = tuple[npt.NDArray[np.float32], np.datetime64, Header]


def _next_rows(sun: Synthetic, waiting: list[list[_Row]], time: np.datetime64, most: int) -> Iterator[Cube]:
    """Give images away until at most `most` wait in each channel."""
    while any(len(rows) > most for rows in waiting):
        now = [rows.pop(0) if len(rows) > most else None for rows in waiting]
        data = np.full((1, len(NAMES), *sun.shape), np.nan, np.float32)
        taken = np.full((1, len(NAMES)), np.datetime64("NaT", "ms"))
        headers: list[Header] = [{} for _ in NAMES]
        for c, found in enumerate(now):
            if found is not None:
                data[0, c], taken[0, c], headers[c] = found
        valid = np.array([[found is not None for found in now]])
        yield Cube(data, NAMES, np.array([time], "M8[ms]"), taken, valid, [headers], Scale.MEAN)


def _observed(index: int, nominal: npt.NDArray[np.datetime64]) -> npt.NDArray[np.datetime64]:
    """UTC at which channel `index` was taken for each nominal time."""
    if index < 9:
        return nominal + np.timedelta64(_OFFSET_MS[index], "ms")
    # HMI's grid is in TAI, so that its images lie the leap seconds earlier; records are 4 s late on it.
    tai: npt.NDArray[np.datetime64] = nominal.astype("M8[s]").astype("M8[ms]")
    tai += np.timedelta64(4_000, "ms")
    return tai_to_utc(tai)
