"""The magnetic state of the synthetic Sun at any instant: regions that emerge and decay, and what they leave.

It is made of things that can be written down for any instant without stepping through time:

- *Active regions* are drawn per window of 27 days from a generator seeded by (seed, window), by the
  solar cycle's rate and latitudes; each is a bipole of many flux fragments that emerge, separate,
  drift apart as in a random walk and fade into the network.
- *Flux transport* follows the same fragments further: differential rotation, meridional flow and the
  random walk of supergranules carry what has left a region until it has met its opposite. That is the
  solution of the transport equation by particles, which needs no history.
- *The large-scale field*, once a day: harmonics of the transported flux and of the polar caps, a
  potential field up to a source surface at 2.5 R☉, and its field lines traced from every 3.75° of the
  surface: where it is open, and how long its loops are.

All lengths are in solar radii, times in days since 2000-01-01 (UTC), fields in gauss.
Longitudes are west of the central meridian at the time meant.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.special

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: 1e21 Mx in G R☉², with R☉ = 6.957e10 cm.
GAUSS_PER_1E21_MX = 1e21 / 6.957e10**2

WINDOW_DAYS = 27.0
#: No region lives longer than this; it bounds how many windows a frame looks back on.
MAX_LIFE_DAYS = 108.0
#: Flux that has left its region is followed for this long.
MAX_TRANSPORT_DAYS = 270.0


# --- hashing: random numbers that need no state -----------------------------------------------------------


def hashed(*keys: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Mix integers into 64 random bits (splitmix64's finaliser), broadcasting over arrays."""
    h = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for k in keys:
            h = (h ^ np.asarray(k).astype(np.int64).view(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def uniform(*keys: npt.ArrayLike) -> Doubles:
    """Uniform numbers in (0, 1), a pure function of the keys."""
    return ((hashed(*keys) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(*keys: npt.ArrayLike) -> Doubles:
    """Normal numbers, a pure function of the keys (Box-Muller)."""
    u, v = uniform(*keys, 1), uniform(*keys, 2)
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


def polar_field(t: float) -> float:
    """Axial dipole in −1…1, north positive: flips about half a year before each maximum (Hale)."""
    year = 2000.0 + t / 365.25
    guess = 24 + math.floor((year - 2008.5) / 11.0)
    flips = [(year - _cycle(n)[0] - 4.9, n) for n in range(guess - 2, guess + 2)]
    since, number = min(flips, key=lambda flip: abs(flip[0]))
    # A cycle of even number leaves the north positive.
    return math.tanh(since / 1.3) * (1.0 if number % 2 == 0 else -1.0)


def rotation(lat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Synodic rotation in rad/day (Snodgrass & Ulrich 1990, magnetic features; 0.9856°/day is Earth's)."""
    s2 = np.sin(lat) ** 2
    out: npt.NDArray[np.floating] = np.deg2rad(14.38 - 1.95 * s2 - 2.17 * s2 * s2 - 0.9856)
    return out


def _sun_seen(t: float) -> tuple[float, float]:
    """Ecliptic longitude of the Sun in rad and its distance in au (Astronomical Almanac, p. C5)."""
    d = t - 0.5
    g = math.radians(357.528 + 0.9856003 * d)
    longitude = 280.460 + 0.9856474 * d + 1.915 * math.sin(g) + 0.020 * math.sin(2 * g)
    return math.radians(longitude), 1.00014 - 0.01671 * math.cos(g) - 0.00014 * math.cos(2 * g)


def tilt_b0(t: float) -> float:
    """Heliographic latitude of the disk's centre in rad (Carrington: inclined 7.25°, node 73.67° in 1850)."""
    node = math.radians(73.6667 + 1.3958333 * (t + 54786.5) / 36525)
    return math.asin(math.sin(_sun_seen(t)[0] - node) * math.sin(math.radians(7.25)))


def solar_radius_arcsec(t: float) -> float:
    """Apparent radius of the Sun from the Earth: 959.63″ at 1 au, as SDO's keywords have it."""
    return 959.63 / _sun_seen(t)[1]


def to_sky(lat: Doubles, lon: Doubles, b0: float) -> Doubles:
    """(3, N) sky vectors of points at heliographic latitude and longitude west of the central meridian."""
    cl, sl = np.cos(lat), np.sin(lat)
    zc = cl * np.cos(lon)
    return np.stack(
        [cl * np.sin(lon), sl * math.cos(b0) - zc * math.sin(b0), sl * math.sin(b0) + zc * math.cos(b0)]
    )


# --- active regions ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
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


def make_window(seed: int, index: int) -> Window:
    """Draw the regions born in window `index`."""
    rng = np.random.default_rng([seed, index & 0xFFFFFFFF, 0x5A])
    t0 = index * WINDOW_DAYS
    cycles = _cycles_at(t0 + WINDOW_DAYS / 2)
    activity = sum(c[2] for c in cycles)
    # About one and a half regions a day on the whole Sun at the maximum of an average cycle.
    n = int(rng.poisson(WINDOW_DAYS * (1.6 * activity + 0.05)))
    which = rng.choice(3, n, p=np.array([c[2] + 0.01 for c in cycles]) / (activity + 0.03))
    number = np.array([c[0] for c in cycles])[which]
    age = np.array([c[1] for c in cycles])[which]
    north = rng.random(n) < 0.5
    # Butterfly: Hathaway's 28° exp(−age / 7.5 a), scatter shrinking with it.
    mean = 28.0 * np.exp(-np.clip(age, 0, 12) / 7.5)
    lat = np.deg2rad(np.clip(mean + rng.normal(0, 1, n) * (2.5 + 0.14 * mean), 2, 42)) * np.where(
        north, 1, -1
    )
    birth = t0 + rng.random(n) * WINDOW_DAYS
    # Active longitudes: nearly half of the regions emerge close to one of a few nests.
    nests = rng.random((2, 3)) * 2 * np.pi
    lon = np.where(
        rng.random(n) < 0.45,
        nests[north.astype(int), rng.integers(0, 3, n)] + rng.normal(0, 0.16, n),
        rng.random(n) * 2 * np.pi,
    )
    # Nests turn with the Sun: where they are when the region is born.
    lon = lon + rotation(lat) * (birth - t0)
    flux = np.clip(np.exp(rng.normal(math.log(3.4), 1.0, n)), 0.3, 70.0)
    decay = 8.0 * flux**0.34
    rise = 1.2 + 0.9 * flux**0.25
    life = np.minimum(rise + 4.2 * decay, MAX_LIFE_DAYS)
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
    size = 0.010 * flux[region] ** 0.36
    offset = rng.normal(0, 1, (2, total)) * size * np.array([[1.25], [0.85]])
    # Each polarity has up to three spots; a spot's points lie in a disk with its share of the flux
    which_spot = rng.integers(0, 3, total) * rng.integers(0, 2, total)
    centre = rng.normal(0, 1, (2, n, 2, 3)) * np.array([0.0, 0.9, 0.9])
    where = centre[:, region, leads.astype(int), which_spot] * size if n else np.zeros((2, 0))
    # of the region, at some 2.2 kG: r² = Φ / (π B).
    spread = np.sqrt(share * np.where(leads, 1.0, 0.45) * flux[region] * GAUSS_PER_1E21_MX / (np.pi * 2200))
    rho = np.sqrt(rng.random(total)) * spread / (1 + 0.5 * (which_spot > 0))
    angle = rng.random(total) * 2 * np.pi
    offset = np.where(spot, where + rho * np.stack([np.cos(angle), np.sin(angle)]), offset)
    walk = rng.normal(0, 1, (2, total)) * np.where(spot, 0.25, 1.0)

    flares = rng.poisson(np.clip(0.02 * flux * np.minimum(life, 14), 0, 20)) if n else np.zeros(0, int)
    fr = np.repeat(np.arange(n), flares)
    m = len(fr)
    flare_time = birth[fr] + rise[fr] * 0.5 + rng.random(m) * np.minimum(life[fr] - rise[fr], 14.0)
    # Peaks follow a power law (index 2); 1 is a small C flare in these units.
    peak = np.minimum((1 - rng.random(m)) ** -1.0, 150.0)
    return Window(
        birth, life, rise, decay, lat, lon, flux * GAUSS_PER_1E21_MX, lead, tilt,
        hashed(seed, index, np.arange(n)).view(np.int64), first, count, region, polarity, spot,
        weight, offset, walk, rng.random((2, total)), fr, flare_time, peak,
        (12 + 14 * rng.random(m) * peak**0.3) / 1440,
    )  # fmt: skip


def strength(w: Window, age: Doubles) -> Doubles:
    """(R,) share of each region's flux that is still in it at `age` (R,): it emerges, then decays."""
    live = (age > 0) & (age < w.life)
    age = np.clip(age, 0, w.life)
    ramp = np.clip(age / w.rise, 0, 1)
    ending = np.clip((w.life - age) / (0.15 * w.life), 0, 1)
    out: Doubles = ramp**2 * (3 - 2 * ramp) * np.exp(-np.maximum(age - w.rise, 0) / w.decay) * ending * live
    return out


def separation(w: Window, age: Doubles) -> Doubles:
    """(R,) half the distance of the two polarities."""
    apart = 0.030 * (w.flux / GAUSS_PER_1E21_MX) ** 0.33
    out: Doubles = apart * (0.35 + 0.65 * np.clip(age / (1.6 * w.rise), 0, 1) ** 0.7)
    return out


def fragments(w: Window, t: float, pick: Ints) -> tuple[Doubles, Doubles]:
    """Latitude and longitude of the fragments `pick` at `t`, carried by all motions of the surface."""
    r = w.region[pick]
    age = np.maximum(t - w.birth, 0)
    # A random walk with 250 km²/s: its sigma in solar radii.
    walk = np.sqrt(2 * 250 * 86400 * age) / 6.957e5
    leads = w.polarity[pick] * w.lead[r] > 0
    side = np.where(leads, 1.0, -1.0) * separation(w, age)[r]
    wiggle = 0.004 * np.sin(2 * np.pi * (t / (1.5 + 3 * w.phase[:, pick]) + w.phase[::-1, pick]))
    west, north = w.offset[:, pick] + w.walk[:, pick] * walk[r] + wiggle
    west = west + side * np.cos(w.tilt[r])
    # The tilt's sign is the hemisphere's: the leader lies nearer to the equator.
    north = north + side * np.sin(w.tilt[r])
    # Meridional flow of 10 m/s at 45° carries old flux towards the poles.
    lat = np.clip(w.lat[r] + north + 0.00124 * np.sin(2 * w.lat[r]) * age[r], -1.5, 1.5)
    lon = w.lon[r] + west / np.cos(w.lat[r]) + rotation(lat) * age[r]
    return lat, lon


# --- the large-scale field --------------------------------------------------------------------------------

_LATITUDES, _LONGITUDES, _DEGREE = 48, 96, 22
_SOURCE_SURFACE = 2.5
_SHELLS = np.linspace(1, _SOURCE_SURFACE, 11)
#: Rigid rotation that the large-scale maps are carried on by between days: Carrington's, in rad/day.
CARRINGTON = math.radians(13.199)


@dataclass(frozen=True, slots=True)
class LargeScale:
    """Maps of the whole surface at one instant: (48, 96) float32, south to north, longitude from −180°.

    Attributes
    ----------
    net
        Radial field, G, smoothed over some 8°.
    strength
        Mean |B| of what regions have brought, G.
    closed
        1 where field lines return to the surface, 0 where they reach the source surface; blurred by a cell.
    length
        Half the length of closed field lines.
    """

    net: Floats
    strength: Floats
    closed: Floats
    length: Floats


@functools.lru_cache(maxsize=1)
def _harmonics() -> tuple[Doubles, Doubles, Doubles]:
    """Normalised Legendre functions (lat, l, m), their derivative by colatitude, and latitudes."""
    lat = (np.arange(_LATITUDES) + 0.5) / _LATITUDES * np.pi - np.pi / 2
    value = np.zeros((_LATITUDES, _DEGREE + 1, _DEGREE + 1))
    slope = np.zeros_like(value)
    for m in range(_DEGREE + 1):
        for l in range(m, _DEGREE + 1):  # noqa: E741
            log = scipy.special.gammaln(l - m + 1) - scipy.special.gammaln(l + m + 1)
            norm = math.sqrt((2 * l + 1) / (4 * np.pi) * math.exp(log))
            a, b, c = (norm * scipy.special.lpmv(m, l, np.sin(lat + h)) for h in (-1e-5, 0.0, 1e-5))
            value[:, l, m], slope[:, l, m] = b, (a - c) / 2e-5
    return value, slope, lat


def _analyse(image: Doubles) -> npt.NDArray[np.complex128]:
    """Harmonic coefficients (l, m), m ≥ 0, of a map (lat, lon)."""
    value, _, lat = _harmonics()
    fourier = np.fft.rfft(image, axis=1)[:, : _DEGREE + 1] * (2 * np.pi / _LONGITUDES)
    out: npt.NDArray[np.complex128] = np.einsum("alm,am->lm", value, fourier * np.cos(lat)[:, None])
    return out * (np.pi / _LATITUDES)


def _fourier_to_map(rows: npt.NDArray[np.complexfloating]) -> Doubles:
    """Turn coefficients (…, lat, m) to maps (…, lat, lon)."""
    out: Doubles = np.fft.irfft(rows, _LONGITUDES, axis=-1) * _LONGITUDES
    return out


def _potential_field(a: npt.NDArray[np.complex128]) -> Floats:
    """Cartesian field (shell, lat, lon, 3), radial at the source surface (Altschuler & Newkirk 1969)."""
    value, slope, lat = _harmonics()
    degree = np.arange(_DEGREE + 1)
    r = _SHELLS[:, None]
    far = _SOURCE_SURFACE ** (-2.0 * degree - 1)
    norm = degree + 1 + degree * far
    radial = ((degree + 1) * r ** (-degree - 2.0) + degree * r ** (degree - 1.0) * far) / norm
    along = (r ** (-degree - 1.0) - r**degree * far) / norm / r
    order = np.arange(_DEGREE + 1)
    br = _fourier_to_map(np.einsum("alm,lm,rl->ram", value, a, radial))
    bt = -_fourier_to_map(np.einsum("alm,lm,rl->ram", slope, a, along))
    bp = -_fourier_to_map(np.einsum("alm,lm,rl->ram", value, a * 1j * order, along) / np.cos(lat)[:, None])
    lon = np.arange(_LONGITUDES) * (2 * np.pi / _LONGITUDES) - np.pi
    sl, cl, so, co = np.sin(lat)[:, None], np.cos(lat)[:, None], np.sin(lon), np.cos(lon)
    out = np.stack(
        [
            br * cl * co + bt * sl * co - bp * so,
            br * cl * so + bt * sl * so + bp * co,
            br * sl - bt * cl,
        ],
        axis=-1,
    )
    return out.astype(np.float32)


def _trace(field: Floats) -> tuple[Floats, Floats]:
    """Follow the field line from every point of the surface: (closed, half its length), each (lat, lon)."""
    lat = _harmonics()[2]
    lon = np.arange(_LONGITUDES) * (2 * np.pi / _LONGITUDES) - np.pi
    flat = field.reshape(-1, 3)
    sl, cl = np.sin(lat)[:, None], np.cos(lat)[:, None]
    start = np.stack([cl * np.cos(lon), cl * np.sin(lon), sl + 0 * lon], -1).reshape(-1, 3).astype(np.float32)
    sign = np.sign((field[0].reshape(-1, 3) * start).sum(1))[:, None]
    closed, length = np.ones(len(start), np.float32), np.zeros(len(start), np.float32)
    spacing = np.float32(_SHELLS[1] - 1)

    def direction(p: Floats) -> Floats:
        r = np.sqrt((p * p).sum(1))
        i = np.clip((r - 1) / spacing, 0, len(_SHELLS) - 1.001)
        j = np.clip(
            (np.arcsin(np.clip(p[:, 2] / r, -1, 1)) / np.pi + 0.5) * _LATITUDES - 0.5, 0, _LATITUDES - 1.001
        )
        k = (np.arctan2(p[:, 1], p[:, 0]) / (2 * np.pi) + 0.5) * _LONGITUDES
        i0, j0, k0 = i.astype(np.int64), j.astype(np.int64), k.astype(np.int64)
        fi, fj, fk = ((x - y).astype(np.float32)[:, None] for x, y in ((i, i0), (j, j0), (k, k0)))
        k1 = (k0 + 1) % _LONGITUDES
        k0 = k0 % _LONGITUDES
        base = (i0 * _LATITUDES + j0) * _LONGITUDES
        row, shell = _LONGITUDES, _LATITUDES * _LONGITUDES
        low, high = (
            (flat[base + o + k0] * (1 - fk) + flat[base + o + k1] * fk) * (1 - fj)
            + (flat[base + o + row + k0] * (1 - fk) + flat[base + o + row + k1] * fk) * fj
            for o in (0, shell)
        )
        b = low * (1 - fi) + high * fi
        out: Floats = b / (np.sqrt((b * b).sum(1, keepdims=True)) + np.float32(1e-9))
        return out

    going, p = np.arange(len(start)), start * np.float32(1.002)
    for _ in range(90):
        h = 0.035 + 0.16 * (np.sqrt((p * p).sum(1, keepdims=True)) - 1)
        middle = p + direction(p) * (sign[going] * h / 2)
        p = p + direction(middle) * (sign[going] * h)
        length[going] += h[:, 0]
        r = np.sqrt((p * p).sum(1))
        closed[going[r >= _SOURCE_SURFACE]] = 0
        on = (r < _SOURCE_SURFACE) & (r > 1)
        going, p = going[on], p[on]
        if len(going) == 0:
            break
    shape = (_LATITUDES, _LONGITUDES)
    return _blur(closed.reshape(shape)), np.exp(_blur(np.log(length.reshape(shape) / 2)))


def _blur(image: Floats) -> Floats:
    """Average a map over 3 × 3 cells."""
    rows = np.concatenate([image[:1], image, image[-1:]])
    rows = (rows[:-2] + rows[1:-1] + rows[2:]) / 3
    out: Floats = (np.roll(rows, 1, 1) + rows + np.roll(rows, -1, 1)) / 3
    return out


def large_scale(windows: list[Window], t: float) -> LargeScale:
    """Bring what the regions of `windows` left to the whole surface at `t`, and trace its field lines.

    Parameters
    ----------
    windows
        All that reach back ``MAX_TRANSPORT_DAYS``.
    t
        When.
    """
    net, unsigned = np.zeros(_LATITUDES * _LONGITUDES), np.zeros(_LATITUDES * _LONGITUDES)
    for w in windows:
        age = t - w.birth
        here = (age > 0) & (age < MAX_TRANSPORT_DAYS)
        # One pair of fragments of four stands for all.
        within = np.arange(len(w.region)) - w.first[w.region]
        pick = np.flatnonzero(here[w.region] & (within // 2 % 4 == 0))
        if len(pick) == 0:
            continue
        lat, lon = fragments(w, t, pick)
        r = w.region[pick]
        still = strength(w, age)
        # What has left the region wanders on in the network until it has met its opposite.
        gone = np.where(age > w.rise, 1 - np.exp(-np.maximum(age - w.rise, 0) / w.decay), 0) * np.exp(
            -age / 120
        )
        share = w.flux[r] / np.bincount(r, minlength=len(w.birth))[r] * 2
        row = ((lat / np.pi + 0.5) * _LATITUDES).astype(np.int64).clip(0, _LATITUDES - 1)
        column = np.floor((lon / (2 * np.pi) + 0.5) * _LONGITUDES + 0.5).astype(np.int64) % _LONGITUDES
        cell = row * _LONGITUDES + column
        net += np.bincount(cell, share * w.polarity[pick] * (still + 0.6 * gone)[r], len(net))
        unsigned += np.bincount(cell, share * (still + 0.6 * gone)[r], len(net))
    lat = _harmonics()[2]
    area = np.cos(lat)[:, None] * (np.pi / _LATITUDES) * (2 * np.pi / _LONGITUDES)
    polar = polar_cap(t, lat)[:, None]
    degree = np.arange(_DEGREE + 1)[:, None]
    smooth = np.exp(-degree * (degree + 1) * math.radians(6.0) ** 2 / 2)
    a = _analyse(net.reshape(_LATITUDES, _LONGITUDES) / area + polar) * smooth
    # There are no monopoles: what the sampling of fragments leaves over goes.
    a[0] = 0
    strong = _analyse(unsigned.reshape(_LATITUDES, _LONGITUDES) / area) * smooth
    value = _harmonics()[0]
    maps = [_fourier_to_map(np.einsum("alm,lm->am", value, c)) for c in (a, strong)]
    # Fourier phases start at longitude −180°, where the maps do.
    closed, length = _trace(_potential_field(a))
    return LargeScale(maps[0].astype(np.float32), np.maximum(maps[1], 0).astype(np.float32), closed, length)


def polar_cap(t: float, lat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Radial field of the polar caps, G: what years of transport have left there (Svalgaard 1978: sin⁸)."""
    s = np.sin(lat)
    out: npt.NDArray[np.floating] = 9.0 * polar_field(t) * np.sign(s) * np.abs(s) ** 8
    return out


def sample(maps: Floats, lat: npt.NDArray[np.floating], lon: npt.NDArray[np.floating]) -> Floats:
    """Interpolate maps (K, 48, 96) at latitudes and longitudes (N,): (K, N)."""
    j = np.clip((lat / np.pi + 0.5) * _LATITUDES - 0.5, 0, _LATITUDES - 1.001)
    k = (lon / (2 * np.pi) + 0.5) * _LONGITUDES % _LONGITUDES
    j0, k0 = j.astype(np.int64), k.astype(np.int64) % _LONGITUDES
    fj, fk = (j - j0).astype(np.float32), (k - k0).astype(np.float32)
    k1 = (k0 + 1) % _LONGITUDES
    out: Floats = (maps[:, j0, k0] * (1 - fk) + maps[:, j0, k1] * fk) * (1 - fj)
    out += (maps[:, j0 + 1, k0] * (1 - fk) + maps[:, j0 + 1, k1] * fk) * fj
    return out
