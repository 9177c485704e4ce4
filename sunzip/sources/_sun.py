"""The physics of the synthetic Sun: one magnetic state, a function of time, which all 12 channels show.

The state is made of things that can be written down for any instant without stepping through time:

- *Active regions* are drawn per window of 27 days from a generator seeded by (seed, window), by the
  solar cycle's rate and latitudes; each is a bipole of many flux fragments that emerge, separate,
  drift apart as in a random walk and fade, and of loops that join the two polarities.
- *Populations* that renew themselves within about a day (ephemeral regions, loops) are slots whose
  generation number is ``floor(t / life + phase)``; a hash of (seed, slot, generation) draws them.
- *Textures* (network, quiet corona) are slices through periodic volumes of noise by the unit
  sphere, sheared by differential rotation and cross-faded between generations.

All lengths are in solar radii, times in days since 2000-01-01 (UTC), fields in gauss.
Sky coordinates: x west, y north, z towards the observer, centre of the Sun at 0.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Radius of the disk in pixels of a 512² image: 976″ at 4.8″ (SDOML geometry).
DISK_RADIUS_512 = 976.0 / 4.8

#: 1e21 Mx in G R☉², with R☉ = 6.957e10 cm.
_GAUSS_PER_1E21_MX = 1e21 / 6.957e10**2

_WINDOW_DAYS = 27.0
#: No region lives longer than this; it bounds how many windows a frame looks back on.
_MAX_LIFE_DAYS = 108.0
_MIN_INTERNAL = 256


# --- hashing: random numbers that need no state -----------------------------------------------------------


def _hash(*keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Mix integers into 64 random bits (splitmix64's finaliser), broadcasting over arrays."""
    h = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for k in keys:
            h = (h ^ np.asarray(k).astype(np.int64).view(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def _uniform(*keys: npt.ArrayLike) -> Doubles:
    """Uniform numbers in (0, 1), a pure function of the keys."""
    return ((_hash(*keys) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _normal(*keys: npt.ArrayLike) -> Doubles:
    """Normal numbers, a pure function of the keys (Box-Muller)."""
    u, v = _uniform(*keys, 1), _uniform(*keys, 2)
    out: Doubles = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return out


# --- the solar cycle and the Sun's rotation ---------------------------------------------------------------

#: Start (year) and amplitude of cycles 23 to 25; the others repeat every 11 years with amplitude 1.
_CYCLES = {23: (1996.6, 1.5), 24: (2008.5, 1.0), 25: (2019.6, 1.45)}


def _cycle(number: int) -> tuple[float, float]:
    if number in _CYCLES:
        return _CYCLES[number]
    near = 23 if number < 23 else 25
    return _CYCLES[near][0] + 11.0 * (number - near), 1.0


def _cycle_shape(years: float) -> float:
    """Activity `years` after a cycle's start, at most 1 (Hathaway: x³/(exp(x²) − c), c = 0.71)."""
    if years <= 0:
        return 0.0
    x = years / 4.67
    return 1.43 * x**3 / (math.exp(min(x * x, 60.0)) - 0.71)


def _cycles_at(t: float) -> list[tuple[int, float, float]]:
    """(number, years since its start, activity) of the cycles that overlap at `t`."""
    year = 2000.0 + t / 365.25
    guess = 24 + math.floor((year - 2008.5) / 11.0)
    out = []
    for number in range(guess - 1, guess + 2):
        start, amplitude = _cycle(number)
        out.append((number, year - start, amplitude * _cycle_shape(year - start)))
    return out


def _polar_field(t: float) -> float:
    """Axial dipole in −1…1, north positive: flips about half a year before each maximum (Hale)."""
    year = 2000.0 + t / 365.25
    guess = 24 + math.floor((year - 2008.5) / 11.0)
    flips = [(year - _cycle(n)[0] - 4.9, n) for n in range(guess - 2, guess + 2)]
    since, number = min(flips, key=lambda flip: abs(flip[0]))
    # A cycle of even number leaves the north positive.
    return math.tanh(since / 1.3) * (1.0 if number % 2 == 0 else -1.0)


def _rotation(lat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Synodic rotation in rad/day (Snodgrass & Ulrich 1990, magnetic features; 0.9856°/day is Earth's)."""
    s2 = np.sin(lat) ** 2
    out: npt.NDArray[np.floating] = np.deg2rad(14.38 - 1.95 * s2 - 2.17 * s2 * s2 - 0.9856)
    return out


def tilt_b0(t: float) -> float:
    """Heliographic latitude of the disk's centre in rad, to about 0.2° (zero on 6 June and 7 December)."""
    return math.radians(7.25) * math.sin(2 * math.pi * (t - 157.5) / 365.2422)


def solar_radius_arcsec(t: float) -> float:
    """Apparent radius of the Sun from 1 AU's orbit (perihelion about 3 January)."""
    return 959.63 / (1 - 0.0167 * math.cos(2 * math.pi * (t - 2.5) / 365.2596))


def _to_sky(lat: Doubles, lon: Doubles, b0: float) -> Doubles:
    """(3, N) sky vectors of points at heliographic latitude and longitude west of the central meridian."""
    cl, sl = np.cos(lat), np.sin(lat)
    zc = cl * np.cos(lon)
    return np.stack(
        [cl * np.sin(lon), sl * math.cos(b0) - zc * math.sin(b0), sl * math.sin(b0) + zc * math.cos(b0)]
    )


# --- active regions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """The active regions born within one window, their fragments and flares.

    Attributes
    ----------
    birth, life, rise, decay
        (R,) per region, in days.
    lat, lon
        (R,) rad; where it emerges, west of the central meridian at that time.
    flux
        (R,) of one polarity at the peak, G R☉².
    lead, tilt
        (R,) sign of the leading polarity; angle of the axis in rad.
    key
        (R,) what hashes of the region start from.
    first, count
        (R,) its fragments: `count` of them from `first` on, alternately leading and following.
    region, polarity, spot, weight
        (F,) per fragment: its region, sign, whether it belongs to a spot, its share.
    offset, walk, phase
        (2, F) place within the polarity in R☉, direction of the random walk, phase of small motions.
    flare_region, flare_time, flare_peak, flare_decay
        (K,) per flare; times in days, peaks in units of a small C flare.
    """

    birth: Doubles
    life: Doubles
    rise: Doubles
    decay: Doubles
    lat: Doubles
    lon: Doubles
    flux: Doubles
    lead: Doubles
    tilt: Doubles
    key: Ints
    first: Ints
    count: Ints
    region: Ints
    polarity: Doubles
    spot: npt.NDArray[np.bool_]
    weight: Doubles
    offset: Doubles
    walk: Doubles
    phase: Doubles
    flare_region: Ints
    flare_time: Doubles
    flare_peak: Doubles
    flare_decay: Doubles


def _make_window(seed: int, index: int) -> _Window:
    """Draw the regions born in window `index`."""
    rng = np.random.default_rng([seed, index & 0xFFFFFFFF, 0x5A])
    t0 = index * _WINDOW_DAYS
    cycles = _cycles_at(t0 + _WINDOW_DAYS / 2)
    activity = sum(c[2] for c in cycles)
    # Somewhat over two regions a day on the whole Sun at the maximum of an average cycle.
    n = int(rng.poisson(_WINDOW_DAYS * (2.4 * activity + 0.06)))
    which = rng.choice(3, n, p=np.array([c[2] + 0.01 for c in cycles]) / (activity + 0.03))
    number = np.array([c[0] for c in cycles])[which]
    age = np.array([c[1] for c in cycles])[which]
    north = rng.random(n) < 0.5
    # Butterfly: Hathaway's 28° exp(−age / 7.5 a), scatter shrinking with it.
    mean = 28.0 * np.exp(-np.clip(age, 0, 12) / 7.5)
    lat = np.deg2rad(np.clip(mean + rng.normal(0, 1, n) * (2.5 + 0.14 * mean), 2, 42)) * np.where(
        north, 1, -1
    )
    birth = t0 + rng.random(n) * _WINDOW_DAYS
    # Active longitudes: nearly half of the regions emerge close to one of a few nests.
    nests = rng.random((2, 3)) * 2 * np.pi
    lon = np.where(
        rng.random(n) < 0.45,
        nests[north.astype(int), rng.integers(0, 3, n)] + rng.normal(0, 0.16, n),
        rng.random(n) * 2 * np.pi,
    )
    # Nests turn with the Sun: where they are when the region is born.
    lon = lon + _rotation(lat) * (birth - t0)
    flux = np.clip(np.exp(rng.normal(math.log(3.4), 1.0, n)), 0.3, 70.0)
    decay = 8.0 * flux**0.34
    rise = 1.2 + 0.9 * flux**0.25
    life = np.minimum(rise + 4.2 * decay, _MAX_LIFE_DAYS)
    # Hale: the leader of a northern region is negative in even cycles.
    lead = np.where(number % 2 == 0, -1.0, 1.0) * np.where(north, 1, -1)
    # Joy: the leader lies nearer to the equator, by about half the latitude.
    tilt = -(0.5 * lat) + rng.normal(0, 0.2, n)

    count = (2 * (14 + 26 * np.sqrt(flux)).astype(np.int64)).clip(30, 400)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64) if n else np.zeros(0, np.int64)
    region = np.repeat(np.arange(n), count)
    total = int(count.sum())
    # Fragments alternate in polarity: even ones lead.
    leads = (np.arange(total) - first[region]) % 2 == 0 if n else np.zeros(0, bool)
    polarity = np.where(leads, 1.0, -1.0) * lead[region]
    u = rng.random(total)
    # Spots: a third of a large leader, less of a follower, none in small regions.
    share = np.clip(0.22 * np.log2(np.maximum(flux, 0.1) / 2.0), 0, 0.38)[region]
    spot = u < np.where(leads, share, 0.45 * share)
    weight = rng.gamma(1.3, 1.0, total) * np.where(spot, 1.1, 1.0)
    size = 0.012 * flux[region] ** 0.36
    offset = rng.normal(0, 1, (2, total)) * size * np.array([[1.25], [0.85]])
    # Each polarity has up to three spots; a spot's points lie in a disk whose area goes with its flux.
    which_spot = rng.integers(0, 3, total) * rng.integers(0, 2, total)
    centre = rng.normal(0, 1, (2, n, 2, 3)) * np.array([0.0, 0.9, 0.9])
    where = centre[:, region, leads.astype(int), which_spot] * size if n else np.zeros((2, 0))
    rho = np.sqrt(rng.random(total)) * 0.0052 * flux[region] ** 0.36 / (1 + 0.8 * (which_spot > 0))
    angle = rng.random(total) * 2 * np.pi
    offset = np.where(spot, where + rho * np.stack([np.cos(angle), np.sin(angle)]), offset)
    walk = rng.normal(0, 1, (2, total)) * np.where(spot, 0.25, 1.0)

    flares = rng.poisson(np.clip(0.02 * flux * np.minimum(life, 14), 0, 20)) if n else np.zeros(0, int)
    fr = np.repeat(np.arange(n), flares)
    m = len(fr)
    flare_time = birth[fr] + rise[fr] * 0.5 + rng.random(m) * np.minimum(life[fr] - rise[fr], 14.0)
    # Peaks follow a power law (index 2); 1 is a small C flare in these units.
    peak = np.minimum((1 - rng.random(m)) ** -1.0, 150.0)
    return _Window(
        birth, life, rise, decay, lat, lon, flux * _GAUSS_PER_1E21_MX, lead, tilt,
        _hash(seed, index, np.arange(n)).view(np.int64), first, count, region, polarity, spot,
        weight, offset, walk, rng.random((2, total)), fr, flare_time, peak,
        (12 + 14 * rng.random(m) * peak**0.3) / 1440,
    )  # fmt: skip


# --- textures ---------------------------------------------------------------------------------------------

_VOLUME = 64
#: Volumes of noise: band-passed at the scale of supergranules, finer, and two of a power law.
_VOLUME_CHANNELS = 4


@functools.lru_cache(maxsize=1)
def _volume() -> Floats:
    """(4, 64³) float32 periodic noise of unit variance, the same for all Suns, which cut it differently."""
    n = _VOLUME
    rng = np.random.default_rng(20100501)
    f = np.fft.fftfreq(n)
    k = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + np.fft.rfftfreq(n)[None, None, :] ** 2)
    k[0, 0, 0] = 1.0
    shapes = (
        np.exp(-(((k - 1 / 19) / 0.022) ** 2)),
        np.exp(-(((k - 1 / 8) / 0.07) ** 2)),
        (k**2 + (1 / 22) ** 2) ** -0.95,
        (k**2 + (1 / 22) ** 2) ** -0.95,
    )
    out = np.empty((_VOLUME_CHANNELS, n, n, n), np.float32)
    for i, shape in enumerate(shapes):
        spectrum = scipy.fft.rfftn(rng.standard_normal((n, n, n), dtype=np.float32)) * shape.astype(
            np.float32
        )
        spectrum[0, 0, 0] = 0
        v = scipy.fft.irfftn(spectrum, s=(n, n, n))
        out[i] = v / v.std()
    return out.reshape(_VOLUME_CHANNELS, -1)


def _slice(p: Floats, voxels: float, pick: Sequence[int], *keys: int) -> Floats:
    """Cut the volume by points of the sphere, at a random place and orientation.

    Parameters
    ----------
    p
        (3, N) unit vectors.
    voxels
        Voxels per solar radius.
    pick
        Which of the volumes to cut.
    keys
        What the place and the orientation are drawn from.

    Returns
    -------
    (len(pick), N) float32, trilinear between voxels.
    """
    rng = np.random.default_rng([k & 0xFFFF_FFFF_FFFF_FFFF for k in keys])
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    q = (turn @ p) * np.float32(voxels) + (rng.random((3, 1)) * _VOLUME + 40 * _VOLUME).astype(np.float32)
    i = q.astype(np.int32)
    f = q - i.astype(np.float32)
    # Per axis: the index's share and the weight of the lower and of the upper neighbour.
    step = np.array([[_VOLUME * _VOLUME], [_VOLUME], [1]], np.int32)
    low, high = ((j % _VOLUME * step).astype(np.intp) for j in (i, i + 1))
    ends = [((low[k], 1 - f[k]), (high[k], f[k])) for k in range(3)]
    out = np.zeros((len(pick), p.shape[1]), np.float32)
    volumes = _volume()
    for (a, wa), (b, wb), (c, wc) in itertools.product(*ends):
        index, w = a + b + c, wa * wb * wc
        for channel, values in zip(pick, out, strict=True):
            values += volumes[channel].take(index, mode="clip") * w
    return out


# --- response of the channels -----------------------------------------------------------------------------

#: By channel index: which quiet emission a channel sees and its DN/s, then DN/s per unit of what shines in
#: loops at about 0.8, 1.5, 2.2 and 4 MK, in bright points and in flares. Ratios follow the peaks of AIA's
#: temperature responses; the levels make the means and standard deviations of frames of 2010-14 those of
#: SDOML v2 within a factor of about 1.5 (94 Å: 0.53 ± 1.1 … 193 Å: 117 ± 156 … 304 Å: 28.6 ± 33.3 DN/s).
_RESPONSE: dict[int, tuple[str, float, tuple[float, ...]]] = {
    0: ("core", 0.5, (0.05, 0.0, 0.08, 0.55, 0.2, 40.0)),
    1: ("cool", 2.3, (1.15, 0.5, 0.0, 0.4, 1.8, 120.0)),
    2: ("cool", 72.0, (32.0, 15.0, 0.0, 0.0, 45.0, 120.0)),
    3: ("warm", 92.0, (8.0, 26.0, 20.0, 0.0, 65.0, 260.0)),
    4: ("hot", 29.0, (1.5, 5.0, 13.0, 0.0, 15.0, 90.0)),
    5: ("chromo", 38.0, (5.0, 3.5, 0.0, 2.0, 7.0, 120.0)),
    6: ("core", 1.7, (0.0, 0.15, 0.8, 1.6, 0.8, 18.0)),
}

#: (index, DN/s of the quiet disk's centre, gain of faculae, of network, DN/s of stray light at the limb),
#: found likewise: 1600 Å 35.8 ± 37.2, 1700 Å 445 ± 470 DN/s.
_PHOTOSPHERE = ((7, 75.0, 1.35, 0.36, 9.0), (8, 1060.0, 1.0, 0.30, 120.0))


# --- image geometry ---------------------------------------------------------------------------------------


#: Position angles told apart around the limb.
_ANGLES = 720


class _Grid:
    """What depends on the image's size alone: coordinates of pixels, filters in frequency space."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.radius = DISK_RADIUS_512 * n / 512
        axis = (np.arange(n) - (n - 1) / 2) / self.radius
        self.x = np.broadcast_to(axis[None, :], (n, n)).astype(np.float32)
        self.y = np.broadcast_to(axis[:, None], (n, n)).astype(np.float32)
        self.r = np.hypot(self.x, self.y)
        self.disk = self.r < 1
        self.on = np.flatnonzero(self.disk)
        self.mu = np.sqrt(np.maximum(1 - self.r**2, 0)).astype(np.float32)
        self.xyz = np.stack([self.x.ravel()[self.on], self.y.ravel()[self.on], self.mu.ravel()[self.on]])
        self.off = np.flatnonzero(~self.disk)
        # Off the limb one sees the corona of the rim continued: both are sorted by position angle.
        angle = np.mod(np.arctan2(self.y, self.x).ravel() / (2 * np.pi), 1) * _ANGLES
        near = np.flatnonzero(self.r.ravel()[self.on] > 0.9)
        self.rim_pixels, self.rim_angle = near, angle[self.on[near]].astype(np.int64) % _ANGLES
        self.off_angle = angle[self.off].astype(np.int64) % _ANGLES
        self.height = (self.r.ravel()[self.off] - 1).astype(np.float32)
        # Textures whose voxels are several pixels wide are cut on every `step`-th pixel and interpolated.
        step = max(1, n // 64)
        self.coarse = (np.arange(-(-n // step) + 2) - 0.5) * step - 0.5
        at = (np.arange(n) + 0.5) / step + 0.5
        lower = at.astype(np.int64)
        self.stretch = np.zeros((n, len(self.coarse)), np.float32)
        self.stretch[np.arange(n), lower] = 1 - (at - lower)
        self.stretch[np.arange(n), lower + 1] += at - lower
        cx, cy = np.meshgrid(*((self.coarse - (n - 1) / 2) / self.radius for _ in range(2)))
        cr = np.hypot(cx, cy)
        mu = np.sqrt(np.maximum(1 - cr**2, 0))
        # Beyond the limb the surface is continued by its rim, for the interpolation's sake.
        self.coarse_xyz = (np.stack([cx, cy, mu]) / np.maximum(cr, 1)).reshape(3, -1).astype(np.float32)
        # Rays: textures off the limb vary with direction much faster than with height.
        self.ray = (
            (np.stack([cx, cy, 0 * cx]) / np.maximum(cr, 0.3) ** 0.93).reshape(3, -1).astype(np.float32)
        )
        fx = np.fft.rfftfreq(n).astype(np.float32) * np.float32(2 * np.pi * self.radius)
        fy = np.fft.fftfreq(n).astype(np.float32) * np.float32(2 * np.pi * self.radius)
        self.kx, self.ky = np.meshgrid(fx, fy)
        self.k = np.hypot(self.kx, self.ky)
        self.k[0, 0] = 1
        self._filters: dict[float, Floats] = {}
        # Six elongated kernels in steps of 30°, ten times longer than wide.
        long2, wide2 = np.float32(0.032**2 / 2), np.float32(0.0022**2 / 2)
        self.stripes = []
        for j in range(6):
            c, s = math.cos(j * math.pi / 6), math.sin(j * math.pi / 6)
            along, across = self.kx * c + self.ky * s, self.ky * c - self.kx * s
            kernel = np.exp(-(along**2) * long2 - across**2 * wide2)
            self.stripes.append(
                (kernel, np.float32(math.cos(j * math.pi / 3)), np.float32(math.sin(j * math.pi / 3)))
            )

    def refine(self, values: npt.NDArray[np.floating]) -> Floats:
        """Interpolate values on the coarse grid to every pixel: (n, n)."""
        m = len(self.coarse)
        out: Floats = np.asarray(self.stretch @ values.reshape(m, m) @ self.stretch.T, np.float32)
        return out

    def gauss(self, sigma: float) -> Floats:
        """Transfer function of a Gaussian of `sigma` solar radii."""
        if sigma not in self._filters:
            self._filters[sigma] = np.exp(self.k**2 * np.float32(-(sigma**2) / 2))
        return self._filters[sigma]

    def inverse(self, spectrum: npt.NDArray[np.complexfloating]) -> Floats:
        out: Floats = scipy.fft.irfft2(spectrum, s=(self.n, self.n))
        return out

    def smooth(self, image: Floats, sigma: float) -> Floats:
        return self.inverse(scipy.fft.rfft2(image) * self.gauss(sigma))

    def rim(self, values: npt.NDArray[np.floating]) -> Floats:
        """Average the disk above 0.9 R over 3° of position angle: (M,) for the pixels off the limb."""
        total = np.bincount(self.rim_angle, values[self.rim_pixels], _ANGLES)
        count = np.bincount(self.rim_angle, minlength=_ANGLES)
        blur = np.exp(-2 * (np.pi * np.fft.rfftfreq(_ANGLES) * _ANGLES / 120) ** 2)
        both = np.fft.irfft(np.fft.rfft(np.stack([total, count])) * blur, _ANGLES)
        out: Floats = (both[0] / both[1]).astype(np.float32)[self.off_angle]
        return out

    def splat(self, xy: npt.NDArray[np.floating], weight: npt.NDArray[np.floating]) -> Floats:
        """Add points to an image, shared among the four nearest pixels, so that their sum is kept.

        Parameters
        ----------
        xy
            (2, N) sky coordinates; points outside the image are left out.
        weight
            (N,) or (K, N).

        Returns
        -------
        (n, n) or (K, n, n) float32.
        """
        n = self.n
        px, py = xy * xy.dtype.type(self.radius) + xy.dtype.type((n - 1) / 2)
        inside = (px >= 0) & (py >= 0) & (px < n - 1) & (py < n - 1)
        px, py = px[inside], py[inside]
        ix, iy = px.astype(np.int64), py.astype(np.int64)
        fx, fy = (px - ix).astype(np.float32), (py - iy).astype(np.float32)
        base = iy * n + ix
        rows = np.atleast_2d(weight)[:, inside]
        out = np.zeros((len(rows), n * n))
        for index, share in (
            (base, (1 - fx) * (1 - fy)),
            (base + 1, fx * (1 - fy)),
            (base + n, (1 - fx) * fy),
            (base + n + 1, fx * fy),
        ):
            for image, values in zip(out, rows, strict=True):
                image += np.bincount(index, values * share, n * n)
        return out.astype(np.float32).reshape(*weight.shape[:-1], n, n)


@functools.lru_cache(maxsize=6)
def _grid(n: int) -> _Grid:
    return _Grid(n)


# --- the Sun ----------------------------------------------------------------------------------------------


def _step(x: Floats | Doubles, at: float, width: float) -> Floats:
    """Smooth step from 0 to 1."""
    return (0.5 + 0.5 * np.tanh((x - at) / width)).astype(np.float32)


class Sun:
    """A Sun: call it with a time and a size to see it in 12 channels, free of noise.

    Parameters
    ----------
    seed
        Which Sun.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed) & 0x7FFF_FFFF_FFFF_FFFF
        self._windows: OrderedDict[int, _Window] = OrderedDict()
        self._lock = threading.Lock()

    def _window(self, index: int) -> _Window:
        with self._lock:
            found = self._windows.get(index)
            if found is None:
                found = self._windows[index] = _make_window(self.seed, index)
            self._windows.move_to_end(index)
            while len(self._windows) > 24:
                self._windows.popitem(last=False)
            return found

    def __call__(self, t: float, size: int) -> Floats:
        """Render one frame without noise.

        Parameters
        ----------
        t
            Days since 2000-01-01 UTC.
        size
            Pixels per side.

        Returns
        -------
        (12, size, size) float32 in DN/s and G, in canonical channel order.
        """
        # Small images are block means of larger ones: a loop narrower than a pixel stays what it is.
        factor = 1
        while size * factor < _MIN_INTERNAL:
            factor *= 2
        image = _Scene(self, t, _grid(size * factor)).channels()
        if factor > 1:
            image = image.reshape(12, size, factor, size, factor).mean((2, 4), dtype=np.float32)
            image[9:] *= _grid(size).disk
        return image


class _Scene:
    """One instant: the field first, then what glows above it."""

    def __init__(self, sun: Sun, t: float, grid: _Grid) -> None:
        self.sun, self.seed, self.t, self.grid = sun, sun.seed, t, grid
        self.b0 = tilt_b0(t)
        _, y, z = grid.xyz
        c, s = np.float32(math.cos(self.b0)), np.float32(math.sin(self.b0))
        self.lat = np.arcsin(np.clip(y * c + z * s, -1, 1))
        self.flux_points: list[Doubles] = []
        self.flux_values: list[Doubles] = []
        self.loops: list[tuple[Doubles, Doubles, Doubles, Doubles, Doubles]] = []
        self.flares: list[tuple[Doubles, Doubles, Doubles]] = []

    def _full(self, values: npt.NDArray[np.floating]) -> Floats:
        out = np.zeros((self.grid.n, self.grid.n), np.float32)
        out.ravel()[self.grid.on] = values
        return out

    def _texture(self, name: int, voxels: float, period: float, pick: Sequence[int], coarse: bool) -> Floats:
        """(len(pick), N) noise on the disk that turns with it and renews itself over `period` days."""
        grid = self.grid
        x, y, z = grid.coarse_xyz if coarse else grid.xyz
        c, s = np.float32(math.cos(self.b0)), np.float32(math.sin(self.b0))
        north = np.clip(y * c + z * s, -1, 1)
        flat = np.sqrt(1 - north**2)
        lon, rate = np.arctan2(x, z * c - y * s), _rotation(np.arcsin(north)).astype(np.float32)
        phase = self.t / period
        g = math.floor(phase)
        f = (phase - g) * math.pi / 2
        out = np.zeros((len(pick), len(x)), np.float32)
        for generation, w in ((g, math.cos(f)), (g + 1, math.sin(f))):
            turned = lon - rate * np.float32(self.t - generation * period)
            p = np.stack([flat * np.cos(turned), flat * np.sin(turned), north])
            out += np.float32(w) * _slice(p, voxels, pick, self.seed, name, generation)
        if not coarse:
            return out
        return np.stack([grid.refine(v).ravel()[grid.on] for v in out])

    def _rays(self) -> Floats:
        """(M,) noise off the limb, drawn out along the radius; it renews itself as the limb turns."""
        phase = self.t / 2.0
        g = math.floor(phase)
        f = (phase - g) * math.pi / 2
        noise = math.cos(f) * _slice(self.grid.ray, 40.0, (2,), self.seed, 9, g)[0]
        noise += math.sin(f) * _slice(self.grid.ray, 40.0, (2,), self.seed, 9, g + 1)[0]
        out: Floats = np.exp(np.float32(0.30) * self.grid.refine(noise).ravel()[self.grid.off])
        return out

    # -- field --

    def _regions(self) -> None:
        """Collect what the living regions of the past windows bring to this instant."""
        last = math.floor(self.t / _WINDOW_DAYS)
        back = math.ceil(_MAX_LIFE_DAYS / _WINDOW_DAYS) + 1
        for index in range(last - back, last + 1):
            window = self.sun._window(index)
            age = self.t - window.birth
            if ((age > 0) & (age < window.life)).any():
                self._window_regions(window, age)

    def _window_regions(self, w: _Window, age: Doubles) -> None:
        """Bring one window's regions to age `age` (R,): fragments, loops, flares."""
        live = (age > 0) & (age < w.life)
        age = np.clip(age, 0, w.life)
        ramp = np.clip(age / w.rise, 0, 1)
        ending = np.clip((w.life - age) / (0.15 * w.life), 0, 1)
        strength = ramp**2 * (3 - 2 * ramp) * np.exp(-np.maximum(age - w.rise, 0) / w.decay) * ending * live
        apart = 0.030 * (w.flux / _GAUSS_PER_1E21_MX) ** 0.33
        apart = apart * (0.35 + 0.65 * np.clip(age / (1.6 * w.rise), 0, 1) ** 0.7)
        # A random walk with 250 km²/s: its sigma in solar radii.
        walk = np.sqrt(2 * 250 * 86400 * age) / 6.957e5

        frag = np.flatnonzero(live[w.region])
        r = w.region[frag]
        leads = w.polarity[frag] * w.lead[r] > 0
        side = np.where(leads, 1.0, -1.0) * apart[r]
        wiggle = 0.004 * np.sin(2 * np.pi * (self.t / (1.5 + 3 * w.phase[:, frag]) + w.phase[::-1, frag]))
        west, north = w.offset[:, frag] + w.walk[:, frag] * walk[r] + wiggle
        west += side * np.cos(w.tilt[r])
        # The tilt's sign is the hemisphere's: the leader lies nearer to the equator.
        north += side * np.sin(w.tilt[r])
        # Meridional flow of 10 m/s at 45° carries old flux towards the poles.
        lat = w.lat[r] + north + 0.00124 * np.sin(2 * w.lat[r]) * age[r]
        lon = w.lon[r] + west / np.cos(w.lat[r]) + _rotation(lat) * age[r]
        sky = _to_sky(lat, lon, self.b0)
        total = np.bincount(r * 2 + leads, w.weight[frag], 2 * len(w.birth))
        share = w.weight[frag] / total[r * 2 + leads]
        # A spot's flux goes sooner than the plage around it.
        share *= np.where(w.spot[frag], np.exp(-np.maximum(age - w.rise, 0) / (1.5 * w.decay))[r], 1.0)
        self.flux_points.append(sky)
        self.flux_values.append(w.polarity[frag] * share * (0.85 * w.flux * strength)[r])

        place = np.full(len(w.region), -1)
        place[frag] = np.arange(len(frag))
        self._window_loops(w, strength * (w.flux / _GAUSS_PER_1E21_MX), sky, place)
        self._window_flares(w, live, sky, place)

    def _window_loops(self, w: _Window, density: Doubles, sky: Doubles, place: Ints) -> None:
        """Join fragments by loops: slots with a life of some hours, between opposite polarities."""
        here = np.flatnonzero(density > 0.05)
        number = np.clip(20 + 24 * np.sqrt(density[here]), 16, 170).astype(np.int64)
        number = np.minimum(number, 3 * w.count[here])
        r = np.repeat(here, number)
        key = w.key[r]
        slot = np.arange(len(r)) - np.repeat(np.cumsum(number) - number, number)
        phase = self.t / (0.4 + 0.7 * _uniform(key, slot, 7)) + _uniform(key, slot, 8)
        generation = np.floor(phase)
        # Where a loop is rooted stays; how it glows changes with each generation.
        half = w.count[r] // 2
        a = w.first[r] + 2 * (_uniform(key, slot, 9) * half).astype(np.int64)
        b = w.first[r] + 2 * (_uniform(key, slot, 10) * half).astype(np.int64) + 1
        glow = np.sin(np.pi * (phase - generation)) ** 2
        glow *= np.exp(0.8 * _normal(key, slot, generation, 11)) / 1.4
        shape = np.stack([_uniform(key, slot, k) for k in (12, 13, 14, 15)])
        self.loops.append((sky[:, place[a]], sky[:, place[b]], glow, density[r], shape))

    def _window_flares(self, w: _Window, live: npt.NDArray[np.bool_], sky: Doubles, place: Ints) -> None:
        """Find the flares that burn now: a rise of minutes, a decay of tens of minutes."""
        since = self.t - w.flare_time
        burning = np.flatnonzero((since > -0.02) & (since < 0.5) & live[w.flare_region])
        if len(burning) == 0:
            return
        since, decay = since[burning], w.flare_decay[burning]
        level = np.where(since < 0, np.exp(-((since / 0.004) ** 2)), np.exp(-np.maximum(since, 0) / decay))
        r = w.flare_region[burning]
        foot = w.first[r] + 2 * (_uniform(w.key[r], burning, 21) * (w.count[r] // 2)).astype(np.int64)
        self.flares.append((sky[:, place[foot]], sky[:, place[foot + 1]], w.flare_peak[burning] * level))

    def _ephemeral(self) -> None:
        """Small bipoles all over the Sun, a day old at most: bright points of the corona."""
        slot = np.arange(900)
        phase = self.t / (0.6 + 1.2 * _uniform(self.seed, slot, 31)) + _uniform(self.seed, slot, 32)
        g = np.floor(phase)
        age = phase - g
        lat = np.arcsin(2 * _uniform(self.seed, slot, g, 33) - 1)
        # A generation's longitude is drawn for the time when it is at its half.
        life = 0.6 + 1.2 * _uniform(self.seed, slot, 31)
        lon = 2 * np.pi * _uniform(self.seed, slot, g, 34) + _rotation(lat) * (age - 0.5) * life
        turn = 2 * np.pi * _uniform(self.seed, slot, g, 35)
        flux = 0.045 * np.exp(0.7 * _normal(self.seed, slot, g, 36)) * np.sin(np.pi * age) ** 2
        d = 0.004 + 0.008 * age
        pole = np.where(_uniform(self.seed, slot, g, 37) < 0.5, 1.0, -1.0)
        north, west = d * np.sin(turn), d * np.cos(turn) / np.cos(lat)
        sky = [_to_sky(lat + sign * north, lon + sign * west, self.b0) for sign in (1, -1)]
        self.flux_points += sky
        self.flux_values += [flux * _GAUSS_PER_1E21_MX * pole, -flux * _GAUSS_PER_1E21_MX * pole]
        # A bright point is a tiny loop: its two feet and its top.
        share = 0.2 + 0.6 * _uniform(self.seed, slot, g, 39)
        glow = 0.012 * flux * np.exp(_normal(self.seed, slot, g, 38))
        self.points = np.concatenate([sky[0], (sky[0] + sky[1]) / 2, sky[1]], 1)
        self.point_glow = np.concatenate([glow * share, 0.7 * glow, glow * (1 - share)])

    def field(self) -> None:
        """Make the radial field of the photosphere and the textures that everything shares."""
        grid = self.grid
        self._regions()
        self._ephemeral()
        points, values = np.concatenate(self.flux_points, 1), np.concatenate(self.flux_values)
        seen = points[2] > 0
        # Flux per area of the surface, which is seen foreshortened.
        raw = grid.splat(points[:2, seen], values[seen] * points[2, seen] * grid.radius**2)
        spectrum = scipy.fft.rfft2(raw)
        strong = grid.inverse(spectrum * grid.gauss(0.0042))

        fine = self._texture(1, 270.0, 1.1, (0, 1, 2, 3), False)
        self.lane = np.exp(-((fine[0] / 0.42) ** 2))
        self.fine = fine
        self.slow = self._texture(2, 26.0, 9.0, (1, 2, 3), True)
        self.large = self._texture(3, 14.0, 24.0, (2, 3), True)

        polar = _polar_field(self.t)
        lat_sin = np.sin(self.lat)
        self.polar_bias = np.float32(6.0 * polar) * np.sign(lat_sin) * np.abs(lat_sin) ** 8
        # Mixed polarity in the lanes, tipped towards the sign of what decays around it.
        around = grid.inverse(spectrum * grid.gauss(0.05)).ravel()[grid.on]
        tip = (self.polar_bias + 1.2 * around) / 9.0
        patch = fine[1] * (0.4 + 0.6 * np.abs(fine[3])) + 1.1 * np.tanh(tip)
        self.patch = patch
        net = 60.0 * self.lane * np.sign(patch) * np.maximum(np.abs(patch) - 0.7, 0) ** 1.2
        # Plage is gathered into the same lanes, spots are not.
        plage = strong.ravel()[grid.on]
        gathered = 0.3 + 1.5 * self.lane
        weak = np.exp(-((plage / 450.0) ** 2))
        br = plage * (weak * gathered + (1 - weak)) + net + 0.5 * self.polar_bias
        self.br_disk = br.astype(np.float32)
        self.br = self._full(self.br_disk)
        self.spectrum = scipy.fft.rfft2(self.br)
        self.abs_spectrum = scipy.fft.rfft2(np.abs(self.br))

    # -- what glows --

    def _arcs(self) -> Floats:
        """Splat the loops: (4, n, n) emission at about 0.8, 1.5, 2.2 and 4 MK."""
        out = np.zeros((4, self.grid.n, self.grid.n), np.float32)
        if not self.loops:
            return out
        pa, pb = (np.concatenate([loop[i] for loop in self.loops], 1) for i in (0, 1))
        glow, density = (np.concatenate([loop[i] for loop in self.loops]) for i in (2, 3))
        shape = np.concatenate([loop[4] for loop in self.loops], 1)
        # Loops shrunk towards the region's middle are short, dense and hot; stretched ones long and cool.
        middle = (pa + pb) / 2
        stretch = 0.25 + 1.15 * shape[0]
        half = (pa - pb) / 2 * stretch
        length = np.linalg.norm(half, axis=0)
        up = middle / np.linalg.norm(middle, axis=0)
        side = np.cross(half.T, up.T).T / np.maximum(length, 1e-6)
        lean = 1.1 * (shape[1] - 0.5)
        apex = (up * np.cos(lean) + side * np.sin(lean)) * (0.55 + 0.75 * shape[2]) * length
        near = (middle[2] + length > -0.1) & (length < 0.35) & (glow > 0.06)
        middle, half, apex = (v[:, near].astype(np.float32) for v in (middle, half, apex))
        length = length[near]
        glow, density, shape = glow[near], density[near], shape[:, near]
        # A point for every other pixel of length: the loops beside and across fill the gaps.
        steps = np.clip(length * np.pi * self.grid.radius / 2.2, 4, 120).astype(np.int64)
        loop = np.repeat(np.arange(len(steps)), steps)
        u = (np.arange(len(loop)) - np.repeat(np.cumsum(steps) - steps, steps) + 0.5) / steps[loop] * np.pi
        c, s = np.cos(u).astype(np.float32), np.sin(u).astype(np.float32)
        p = np.stack(
            [m[loop] + h[loop] * c + a[loop] * s for m, h, a in zip(middle, half, apex, strict=True)]
        )
        visible = (p[2] > 0) | (p[0] ** 2 + p[1] ** 2 > 1)
        p, loop = p[:, visible], loop[visible]
        height = np.maximum(np.sqrt((p * p).sum(0)) - 1, 0)
        # Emission: heating with field strength over length, falling with each temperature's scale height;
        # per length of loop, not per point.
        power = 0.18 * glow * density**0.55 * length**1.35 * self.grid.radius**2 / steps
        temperature = shape[3] - 0.55 * (length / 0.07 - 1).clip(-1, 1)
        weights = np.empty((4, len(loop)), np.float32)
        for i, (centre, width, scale) in enumerate(
            ((-0.1, 0.28, 0.055), (0.25, 0.32, 0.085), (0.6, 0.32, 0.11), (1.05, 0.32, 0.13))
        ):
            share = (power * np.exp(-(((temperature - centre) / width) ** 2))).astype(np.float32)
            weights[i] = share[loop] * np.exp(height * np.float32(-1 / scale))
        return self.grid.splat(p[:2], weights)

    def _flare(self) -> Floats:
        """(n, n) glow of flares: an arcade over the neutral line, 1 in the middle of a small flare's peak."""
        out = np.zeros((self.grid.n, self.grid.n), np.float32)
        # All arcades have the same loops, so that a flare looks the same whatever else burns.
        rng = np.random.default_rng(5)
        u, blur = rng.random(160), rng.normal(0, 0.006, (3, 160))
        # A 20th of the points lies within a pixel of 512 around the middle.
        share = (self.grid.radius / DISK_RADIUS_512) ** 2 / 20
        for pa, pb, level in self.flares:
            for a, b, brightness in zip(pa.T, pb.T, level, strict=True):
                middle, half = (a + b)[:, None] / 2, (a - b)[:, None]
                half *= 0.014 / max(float(np.linalg.norm(half)), 1e-6)
                p = middle * (1 + 0.014 * np.sin(np.pi * u)) + half * np.cos(np.pi * u) + blur
                seen = (p[2] > 0) | (p[0] ** 2 + p[1] ** 2 > 1)
                out += self.grid.splat(p[:2], seen * brightness * share)
        return out

    def _comb(self) -> Floats:
        """(N,) strands of the quiet corona: fine noise combed along the horizontal field, unit variance."""
        grid = self.grid
        potential = self.spectrum * grid.gauss(0.03) / grid.k
        hx, hy = grid.inverse(1j * grid.kx * potential), grid.inverse(1j * grid.ky * potential)
        strength = hx * hx + hy * hy + np.float32(1e-6)
        # The direction's double angle: a strand has no sign.
        c2, s2 = (hx * hx - hy * hy) / strength, 2 * hx * hy / strength
        noise = scipy.fft.rfft2(self._full(self.fine[2] + 0.8 * self.fine[1]))
        combed = np.zeros((grid.n, grid.n), np.float32)
        norm = np.full((grid.n, grid.n), 1e-6, np.float32)
        for kernel, cj, sj in grid.stripes:
            w = np.maximum(c2 * cj + s2 * sj, 0) ** 2
            combed += w * grid.inverse(noise * kernel)
            norm += w
        comb: Floats = (combed / norm).ravel()[grid.on]
        comb /= comb.std() + np.float32(1e-6)
        return comb

    def _closed(self, b40: Floats) -> Floats:
        """(N,) 1 where the field is closed, 0 in coronal holes.

        They are at the poles while the dipole is strong, and where the large-scale texture says so, away
        from strong fields.
        """
        dipole = abs(_polar_field(self.t))
        edge = math.radians(58.0 + 26.0 * (1 - dipole)) + 0.07 * self.slow[1]
        polar = _step(np.abs(self.lat) - edge, 0.0, 0.045)
        patch = _step(self.large[0] + 0.35 * self.slow[1], 1.25, 0.12) * np.exp(-b40 / 16.0)
        out: Floats = 1 - np.maximum(polar, 0.9 * patch)
        return out

    def _filaments(self, b6: Floats) -> Floats:
        """(N,) 1 in filaments: over neutral lines of the large-scale field where the slow texture allows."""
        grid = self.grid
        wide = grid.inverse(self.spectrum * grid.gauss(0.055))
        gy, gx = (g.ravel()[grid.on] * np.float32(grid.radius) for g in np.gradient(wide))
        distance = np.abs(wide.ravel()[grid.on]) / (np.hypot(gx, gy) + np.float32(1e-3))
        out: Floats = np.exp(-((distance / 0.011) ** 2) - b6 / 60.0)
        # Towards the limb the field's edge would pass for a neutral line.
        return (
            out
            * _step(self.slow[2] + 0.5 * self.large[1], 0.9, 0.12)
            * _step(grid.mu.ravel()[grid.on], 0.3, 0.08)
        )

    def _corona(self, base: npt.NDArray[np.floating], scale: float, depth: float, rays: Floats) -> Floats:
        """Bring an emission per unit of depth to the sky: longer paths at the limb, a fall-off beyond it.

        Parameters
        ----------
        base
            (N,) on the disk.
        scale
            Scale height beyond the limb.
        depth
            Limits the brightening 1/√(μ² + depth) at the limb.
        rays
            (M,) factor beyond the limb.
        """
        grid = self.grid
        mu = grid.mu.ravel()[grid.on]
        image = self._full(base / np.sqrt(mu**2 + np.float32(depth)) * np.float32(math.sqrt(1 + depth)))
        fall = 0.8 * np.exp(grid.height * np.float32(-1 / scale))
        fall += 0.2 * np.exp(grid.height * np.float32(-1 / (2.4 * scale)))
        edge = grid.rim(base) * np.float32(1.35 * math.sqrt((1 + depth) / depth))
        image.ravel()[grid.off] = edge * fall * rays
        return image

    def _glow(self, comb: Floats) -> list[Floats | None]:
        """Images of what `_RESPONSE` weighs: loops of four temperatures, bright points, flares (or None)."""
        grid = self.grid
        spectra = scipy.fft.rfft2(self._arcs())
        # Half of each loop's light is in a thin strand, half in the haze around it.
        loops = [
            np.maximum(grid.inverse(spectrum * (0.45 * grid.gauss(strand) + 0.55 * grid.gauss(haze))), 0)
            for spectrum, strand, haze in zip(
                spectra, (0.0015, 0.0018, 0.0024, 0.0036), (0.018, 0.03, 0.04, 0.022), strict=True
            )
        ]
        # What loops add is as finely structured as the rest; the hottest plasma is smooth.
        woven = self._full(np.exp(0.30 * comb + 0.30 * self.fine[2]) - 1) + 1
        for image in loops[:3]:
            image *= woven
        seen = (self.points[2] > 0) | ((self.points[:2] ** 2).sum(0) > 1)
        points = grid.splat(self.points[:2], self.point_glow * seen * grid.radius**2)
        bright = np.maximum(grid.smooth(points, 0.0048), 0)
        flare = np.maximum(grid.smooth(self._flare(), 0.005), 0) if self.flares else None
        return [*loops, bright, flare]

    def channels(self) -> Floats:
        """Return (12, n, n) float32 in DN/s and G."""
        self.field()
        grid, n = self.grid, self.grid.n
        on, off = grid.on, grid.off
        mu = grid.mu.ravel()[on]
        # The field's strength around each pixel, over 0.5 to 40 pixels of 512.
        a05, a2, a6, a16, a40 = (
            np.maximum(grid.inverse(self.abs_spectrum * grid.gauss(sigma)), 0).ravel()[on]
            for sigma in (0.0025, 0.008, 0.028, 0.075, 0.19)
        )
        comb, closed, filament = self._comb(), self._closed(a40), self._filaments(a6)
        glow, rays = self._glow(comb), self._rays()
        # Five-minute oscillations: nothing of them is left from one frame to the next.
        rng = np.random.Generator(np.random.SFC64([self.seed, int(self.t * 1440) & 0xFFFFFFFF, 3]))
        sigma = np.float32(0.1 * n / 512)
        shimmer = rng.standard_normal(len(on), dtype=np.float32) * sigma - sigma**2 / 2
        lane = self.lane * (0.75 + 0.25 * self.fine[3])
        grain = 0.6 * self.fine[1] + 0.4 * self.fine[3]

        # Emission per unit of depth, in units of the quiet Sun's: fed by the field below, within textures.
        cloud = np.exp(0.32 * self.slow[1] + 0.28 * self.large[1])
        fuzz = np.exp(0.15 * comb + 0.10 * self.slow[0] + 0.10 * self.fine[2])
        knots = np.exp(0.27 * comb + 0.26 * self.slow[0] + 0.28 * self.fine[2])
        clear = 1 - 0.65 * filament
        cool = (0.65 + 0.040 * a05**0.75 + 0.03 * a16) * knots * cloud**0.5 * (0.55 + 0.45 * closed)
        warm = 0.60 + 0.010 * a2**0.9 + 0.013 * a6**0.9 + 0.055 * a16
        warm *= fuzz * cloud * (0.20 + 0.80 * closed) * clear
        hot = 0.40 + 0.005 * a2**0.9 + 0.010 * a6**0.9 + 0.080 * a16
        hot *= fuzz * cloud * (0.15 + 0.85 * closed) * clear
        core = (0.40 + 0.0010 * a6**1.3 + 0.016 * a16**1.25) * cloud**0.7 * fuzz**0.5
        chromo = (0.45 + 0.32 * lane + 0.10 * a2**0.65) * np.exp(0.36 * grain + 0.15 * self.fine[2] + shimmer)
        chromo *= 1 - 0.45 * filament
        quiet = {
            "cool": self._corona(cool * (1 + 0.4 * shimmer), 0.075, 0.17, rays**1.3),
            "warm": self._corona(warm, 0.085, 0.14, rays**1.2),
            "hot": self._corona(hot, 0.095, 0.14, rays**1.1),
            "core": self._corona(core, 0.10, 0.22, rays),
            "chromo": self._corona(chromo, 0.022, 0.55, rays),
        }
        out = np.empty((12, n, n), np.float32)
        for i, (kind, level, gains) in _RESPONSE.items():
            out[i] = np.float32(level) * quiet[kind]
            for gain, image in zip(gains, glow, strict=True):
                if gain and image is not None:
                    out[i] += np.float32(gain) * image

        # The photosphere: limb darkening, dark spots, bright faculae and network.
        photo = (0.38 + 0.62 * mu) * np.exp(0.045 * grain + shimmer - (self.br_disk / 800.0) ** 2)
        facula = np.tanh(a05 / 150.0) * (1.15 - 0.3 * mu)
        for i, level, gain, net, stray in _PHOTOSPHERE:
            value = photo * (1 + gain * facula + net * lane * (np.abs(self.patch) - 0.5))
            out[i] = self._full(np.float32(level) * value)
            out[i].ravel()[off] = stray * np.exp(grid.height * np.float32(-1 / 0.22)) + 0.01 * level
            if glow[-1] is not None:
                # Ribbons of flares reach down to the temperature minimum.
                out[i] += np.float32(0.3 * level) * glow[-1]

        # The telescope's point spread, a third of a pixel of 512: three taps of that variance on each axis.
        tap = np.float32(min((0.0016 * grid.radius) ** 2 / 2, 0.25))
        for image in out[:9]:
            image[1:-1] += tap * (image[2:] + image[:-2] - 2 * image[1:-1])
            image[:, 1:-1] += tap * (image[:, 2:] + image[:, :-2] - 2 * image[:, 1:-1])

        # Transverse field: the potential field's horizontal part, and the radial field seen aslant.
        potential = self.spectrum * grid.gauss(0.004) / grid.k
        out[9] = (self.br * grid.x - grid.inverse(1j * grid.kx * potential)) * grid.disk
        out[10] = (self.br * grid.y - grid.inverse(1j * grid.ky * potential)) * grid.disk
        out[11] = self.br * grid.mu
        return out
