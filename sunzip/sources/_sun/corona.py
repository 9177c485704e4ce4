"""What glows above the synthetic Sun's field: its plasma by temperature, folded with each channel's response.

Every structure (the closed and the open corona, loops of active regions, bright points) is an emission
measure in nine bins of temperature; the seven EUV channels see its product with one matrix of responses,
so that channels agree because they look at the same plasma. The atmosphere of a closed field line obeys
the scaling laws of Rosner, Tucker & Vaiana (1978), heated in proportion to the field's strength.

Emission measures are in 1e26 cm⁻⁵, images in DN/s per pixel of AIA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.fft

from sunzip.cube import DISK_RADIUS_512
from sunzip.sources._sun import field
from sunzip.sources._sun.field import GAUSS_PER_1E21_MX, LargeScale, Window, normal, rotation, uniform
from sunzip.sources._sun.sphere import POLAR_ANGLES, POLAR_HEIGHTS, Grid, cut

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: log10 of the temperature in K at the middle of each bin, and the bins' widths.
_LOG_T = np.array([5.5, 5.75, 5.95, 6.1, 6.25, 6.4, 6.6, 6.85, 7.1], np.float32)
_WIDTH = np.gradient(_LOG_T).astype(np.float32)

#: By channel index: DN/s per pixel and 1e26 cm⁻⁵ in each bin: SolarSoft's aia_get_response (version 9,
#: normalised to EVE; Boerner et al. 2014) averaged over ±0.09 dex. 304 Å sees, apart from the chromosphere,
#: Si XI.
_RESPONSE: dict[int, tuple[float, ...]] = {
    0: (0.0115, 0.0674, 0.1295, 0.1226, 0.0818, 0.0504, 0.1107, 0.292, 0.0846),
    1: (1.385, 3.382, 1.915, 0.699, 0.2475, 0.1213, 0.0746, 0.3557, 1.086),
    2: (9.371, 65.33, 97.25, 46.37, 9.128, 1.887, 0.2663, 0.0598, 0.0387),
    3: (9.143, 13.96, 26.62, 47.18, 38.46, 9.38, 0.8933, 0.51, 1.052),
    4: (2.513, 3.044, 4.757, 8.886, 13.81, 7.632, 0.8264, 0.1305, 0.0433),
    5: (0.5, 0.3, 0.2, 0.7, 1.2, 0.6, 0.2, 0.05, 0.05),
    6: (0.4928, 0.4071, 0.4594, 0.4026, 0.4304, 0.5355, 0.3461, 0.0904, 0.0484),
}
#: What brings the means of 2010-14 to those of SDOML v2; the responses are known to some 25 %.
_CALIBRATION = (1.2, 1.35, 1.05, 0.97, 0.87, 1.0, 0.97)
_MATRIX = np.array([[c * v for v in _RESPONSE[i]] for i, c in enumerate(_CALIBRATION)], np.float32)

#: By channel index: DN/s in the middle of a small C flare (1e-6 W/m²). The largest, X15, are 150 times as
#: bright: the maxima that SDOML v2 recorded in 2010-14.
_FLARE = np.array([84.4, 41.1, 270, 265, 38.9, 107, 44.8, 37.8, 195], np.float32)

#: (index, DN/s of the quiet disk's centre, gain of faculae, of network, DN/s of stray light at the limb),
#: found from the table of statistics: 1600 Å 35.8 ± 37.2, 1700 Å 445 ± 470 DN/s.
_PHOTOSPHERE = ((7, 75.0, 2.3, 0.25, 9.0), (8, 1060.0, 1.6, 0.20, 120.0))

#: Heat flux in erg/cm²/s per gauss of mean field, and the share of the volume that is so heated: 6e5 for the
#: quiet Sun's 8 G where Withbroe & Noyes (1977) have 3e5 on average.
_HEAT_PER_GAUSS, _FILLED = 6e5 / 8, 0.42
#: Emission scale heights per bin: half the hydrostatic one, 0.068 R☉ per MK, and what loops add to it.
_SCALE = np.minimum(0.022 + 0.034 * 10.0 ** (_LOG_T - 6), 0.16).astype(np.float32)
#: Lines of sight that graze the limb pass through spicules, which take the lowest layers' light.
_DEPTH = (2 * _SCALE / np.pi + 0.045).astype(np.float32)


def atmosphere(strength: Floats, half: Floats, closed: Floats) -> tuple[Floats, Floats]:
    """Plasma over a place of the surface.

    Parameters
    ----------
    strength, half, closed
        (N,) mean |B| in G, half the length of field lines in R☉, share of the field that is closed.

    Returns
    -------
    (9, N) emission measure of a vertical column; (N,) pressure in dyn/cm² at its base.
    """
    # RTV: T = 1400 (pL)^⅓, heating 9.8e4 p^(7/6) L^(−5/6), which is the heat flux over L.
    log_l = np.log(half * np.float32(6.957e10))
    log_p = (np.log(strength) + np.float32(math.log(_HEAT_PER_GAUSS / 9.8e4)) - log_l / 6) * np.float32(6 / 7)
    log_t = np.float32(math.log(1400)) + (log_p + log_l) / 3
    temperature = np.exp(log_t)
    pressure = np.exp(log_p)
    density = pressure / (np.float32(2 * 1.381e-16) * temperature)
    column = np.minimum(0.034e-6 * temperature, half * np.float32(2 / np.pi)) * np.float32(6.957e10)
    measure = np.float32(_FILLED) * (density * np.float32(1e-13)) ** 2 * column * closed
    log10_t = log_t / np.float32(math.log(10))
    out = np.empty((len(_LOG_T), len(strength)), np.float32)
    for k, (centre, width) in enumerate(zip(_LOG_T, _WIDTH, strict=True)):
        share = np.exp(((log10_t - centre) / np.float32(0.13)) ** 2 * np.float32(-0.5))
        out[k] = measure * share * (width / np.float32(0.13 * math.sqrt(2 * math.pi)))
    # Open field: thin plasma of 0.9 MK, whatever the field.
    for k, amount in ((1, 0.05), (2, 0.22), (3, 0.17), (4, 0.05)):
        out[k] += np.float32(amount) * (1 - closed)
    return out, pressure


def _step(x: Floats | Doubles, at: float, width: float) -> Floats:
    """Smooth step from 0 to 1."""
    return (0.5 + 0.5 * np.tanh((x - at) / width)).astype(np.float32)


class State(Protocol):
    """What a scene asks the Sun for."""

    seed: int

    def windows(self, t: float, days: float) -> list[Window]: ...
    def day(self, index: int) -> LargeScale: ...


class Scene:
    """One instant: the field first, then what glows above it."""

    def __init__(self, sun: State, t: float, grid: Grid) -> None:
        self.sun, self.seed, self.t, self.grid = sun, sun.seed, t, grid
        self.b0 = field.tilt_b0(t)
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

    def _heliographic(self, p: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude of sky directions (3, N)."""
        x, y, z = p
        c, s = np.float32(math.cos(self.b0)), np.float32(math.sin(self.b0))
        return np.arcsin(np.clip(y * c + z * s, -1, 1)), np.arctan2(x, z * c - y * s)

    def _texture(self, name: int, voxels: float, period: float, pick: Sequence[int], coarse: bool) -> Floats:
        """(len(pick), N) noise on the disk that turns with it and renews itself over `period` days."""
        grid = self.grid
        lat, lon = self._heliographic(grid.coarse_xyz if coarse else grid.xyz)
        north, flat, rate = np.sin(lat), np.cos(lat), rotation(lat).astype(np.float32)
        phase = self.t / period
        g = math.floor(phase)
        f = (phase - g) * math.pi / 2
        out = np.zeros((len(pick), len(lat)), np.float32)
        for generation, w in ((g, math.cos(f)), (g + 1, math.sin(f))):
            turned = lon - rate * np.float32(self.t - generation * period)
            p = np.stack([flat * np.cos(turned), flat * np.sin(turned), north])
            out += np.float32(w) * cut(p, voxels, pick, self.seed, name, generation)
        if not coarse:
            return out
        return np.stack([grid.refine(v).ravel()[grid.on] for v in out])

    def _rays(self) -> Floats:
        """(M,) noise off the limb, drawn out along the radius; it renews itself as the limb turns."""
        phase = self.t / 4.0
        g = math.floor(phase)
        f = (phase - g) * math.pi / 2
        noise = math.cos(f) * cut(self.grid.ray, 40.0, (2,), self.seed, 9, g)[0]
        noise += math.sin(f) * cut(self.grid.ray, 40.0, (2,), self.seed, 9, g + 1)[0]
        out: Floats = np.exp(np.float32(0.30) * self.grid.refine(noise).ravel()[self.grid.off])
        return out

    def _large_scale(self, p: Floats) -> Floats:
        """(4, N) large-scale maps at sky directions (3, N): net field, strength, closed, ln half length."""
        lat, lon = self._heliographic(p)
        day = math.floor(self.t)
        out = np.zeros((4, p.shape[1]), np.float32)
        for index, w in ((day, 1 - (self.t - day)), (day + 1, self.t - day)):
            if w:
                m = self.sun.day(index)
                maps = np.stack([m.net, m.strength, m.closed, np.log(m.length)])
                out += np.float32(w) * field.sample(maps, lat, lon - field.CARRINGTON * (self.t - index))
        return out

    # -- field --

    def _regions(self) -> None:
        """Collect what the living regions of the past windows bring to this instant."""
        for window in self.sun.windows(self.t, field.MAX_LIFE_DAYS):
            age = self.t - window.birth
            if ((age > 0) & (age < window.life)).any():
                self._window_regions(window, age)

    def _window_regions(self, w: Window, age: Doubles) -> None:
        """Bring one window's regions to age `age` (R,): fragments, loops, flares."""
        live = (age > 0) & (age < w.life)
        strength = field.strength(w, age)
        frag = np.flatnonzero(live[w.region])
        r = w.region[frag]
        leads = w.polarity[frag] * w.lead[r] > 0
        sky = field.to_sky(*field.fragments(w, self.t, frag), self.b0)
        total = np.bincount(r * 2 + leads, w.weight[frag], 2 * len(w.birth))
        share = w.weight[frag] / total[r * 2 + leads]
        # A spot's flux goes sooner than the plage around it.
        share *= np.where(w.spot[frag], np.exp(-np.maximum(age - w.rise, 0) / (1.5 * w.decay))[r], 1.0)
        self.flux_points.append(sky)
        self.flux_values.append(w.polarity[frag] * share * (0.75 * w.flux * strength)[r])
        self._window_loops(w, np.clip(age, 0, w.life), strength * (w.flux / GAUSS_PER_1E21_MX))
        place = np.full(len(w.region), -1)
        place[frag] = np.arange(len(frag))
        self._window_flares(w, live, sky, place)

    def _window_loops(self, w: Window, age: Doubles, flux: Doubles) -> None:
        """Join the polarities by nested loops, as a bipole's field lines: slots with a life of some hours."""
        here = np.flatnonzero(flux > 0.1)
        number = np.clip(20 + 36 * np.sqrt(flux[here]), 24, 200).astype(np.int64)
        r = np.repeat(here, number)
        key = w.key[r]
        slot = np.arange(len(r)) - np.repeat(np.cumsum(number) - number, number)
        phase = self.t / (0.4 + 0.8 * uniform(key, slot, 7)) + uniform(key, slot, 8)
        generation = np.floor(phase)
        phase -= generation
        # Where a loop is rooted stays; how it glows changes with each generation.
        apart = field.separation(w, age)[r]
        size = 0.010 * (w.flux[r] / GAUSS_PER_1E21_MX) ** 0.36
        # Nested as in a bipole: low loops join the inner edges of the polarities, high ones the outer.
        reach = 0.35 + 1.5 * uniform(key, slot, 9) ** 1.6
        across = size * normal(key, slot, 10) * 1.1
        feet = []
        for sign in (1, -1):
            along = sign * apart * reach + 0.25 * size * normal(key, slot, 20 + sign)
            aside = across + 0.25 * size * normal(key, slot, 23 + sign)
            tilt = w.tilt[r]
            west, north = (
                along * np.cos(tilt) - aside * np.sin(tilt),
                along * np.sin(tilt) + aside * np.cos(tilt),
            )
            lat = np.clip(w.lat[r] + north + 0.00124 * np.sin(2 * w.lat[r]) * age[r], -1.5, 1.5)
            lon = w.lon[r] + west / np.cos(w.lat[r]) + (rotation(w.lat) * age)[r]
            feet.append(field.to_sky(lat, lon, self.b0))
        # Heated at once, then cooling: first seen hot, last cool.
        heat = np.exp(0.65 * normal(key, slot, generation, 11).clip(-2, 2))
        shape = np.stack(
            [
                across / size,
                uniform(key, slot, 13),
                uniform(key, slot, 14),
                reach,
                phase,
                uniform(key, slot, 15),
            ]
        )
        self.loops.append((feet[0], feet[1], flux[r], heat, shape))

    def _window_flares(self, w: Window, live: npt.NDArray[np.bool_], sky: Doubles, place: Ints) -> None:
        """Find the flares that burn now: a rise of minutes, a decay of tens of minutes."""
        since = self.t - w.flare_time
        burning = np.flatnonzero((since > -0.02) & (since < 0.5) & live[w.flare_region])
        if len(burning) == 0:
            return
        since, decay = since[burning], w.flare_decay[burning]
        level = np.where(since < 0, np.exp(-((since / 0.004) ** 2)), np.exp(-np.maximum(since, 0) / decay))
        r = w.flare_region[burning]
        foot = w.first[r] + 2 * (uniform(w.key[r], burning, 21) * (w.count[r] // 2)).astype(np.int64)
        self.flares.append((sky[:, place[foot]], sky[:, place[foot + 1]], w.flare_peak[burning] * level))

    def _ephemeral(self) -> None:
        """Small bipoles all over the Sun, a day old at most: bright points of the corona."""
        slot = np.arange(900)
        phase = self.t / (0.6 + 1.2 * uniform(self.seed, slot, 31)) + uniform(self.seed, slot, 32)
        g = np.floor(phase)
        age = phase - g
        lat = np.arcsin(2 * uniform(self.seed, slot, g, 33) - 1)
        # A generation's longitude is drawn for the time when it is at its half.
        life = 0.6 + 1.2 * uniform(self.seed, slot, 31)
        lon = 2 * np.pi * uniform(self.seed, slot, g, 34) + rotation(lat) * (age - 0.5) * life
        turn = 2 * np.pi * uniform(self.seed, slot, g, 35)
        flux = 0.045 * np.exp(0.7 * normal(self.seed, slot, g, 36)) * np.sin(np.pi * age) ** 2
        d = 0.004 + 0.008 * age
        pole = np.where(uniform(self.seed, slot, g, 37) < 0.5, 1.0, -1.0)
        north, west = d * np.sin(turn), d * np.cos(turn) / np.cos(lat)
        sky = [field.to_sky(lat + sign * north, lon + sign * west, self.b0) for sign in (1, -1)]
        self.flux_points += sky
        self.flux_values += [flux * GAUSS_PER_1E21_MX * pole, -flux * GAUSS_PER_1E21_MX * pole]
        # A bright point is a tiny loop: its two feet and its top.
        share = 0.2 + 0.6 * uniform(self.seed, slot, g, 39)
        glow = 0.006 * flux * np.exp(normal(self.seed, slot, g, 38))
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
        strong = grid.smooth(raw, 0.0042)

        fine = self._texture(1, 330.0, 1.5, (0, 1, 2, 3), False)
        self.lane = np.exp(-((fine[0] / 0.42) ** 2))
        self.fine = fine
        self.slow = self._texture(2, 26.0, 9.0, (1, 2, 3), True)
        self.large = self._texture(3, 14.0, 24.0, (2, 3), True)

        maps = self._large_scale(grid.coarse_xyz)
        self.wide = grid.refine(maps[0])
        net, self.around, closed, half = (grid.refine(m).ravel()[grid.on] for m in maps)
        # The maps know holes to 4°: the texture of the corona gives them their edges.
        self.closed = _step(closed + 0.10 * self.slow[1] + 0.06 * self.fine[2], 0.45, 0.10)
        self.half = np.exp(half)
        # Mixed polarity in the lanes, tipped towards the sign of the large-scale field.
        patch = fine[1] * (0.4 + 0.6 * np.abs(fine[3])) + 1.1 * np.tanh(net / 7.0)
        self.patch = patch
        network = 42.0 * self.lane**1.5 * np.sign(patch) * np.maximum(np.abs(patch) - 0.5, 0) ** 1.5
        # Plage is gathered into the same lanes, spots are not.
        plage = strong.ravel()[grid.on]
        gathered = 0.12 + 2.3 * self.lane**2
        weak = np.exp(-((plage / 450.0) ** 2))
        br = plage * (weak * gathered + (1 - weak)) + network + 0.05 * net
        self.br_disk = br.astype(np.float32)
        self.br = self._full(self.br_disk)
        self.spectrum = scipy.fft.rfft2(self.br)
        self.abs_spectrum = scipy.fft.rfft2(np.abs(self.br))

    # -- what glows --

    def _arcs(self) -> Floats:
        """Splat the loops: (9, n, n) emission measure, not yet spread over their width."""
        grid = self.grid
        out = np.zeros((len(_LOG_T), grid.n, grid.n), np.float32)
        if not self.loops:
            return out
        pa, pb = (np.concatenate([loop[i] for loop in self.loops], 1) for i in (0, 1))
        flux, heat = (np.concatenate([loop[i] for loop in self.loops]) for i in (2, 3))
        shape = np.concatenate([loop[4] for loop in self.loops], 1)
        middle, half = (pa + pb) / 2, (pa - pb) / 2
        length = np.linalg.norm(half, axis=0)
        up = middle / np.linalg.norm(middle, axis=0)
        side = np.cross(half.T, up.T).T / np.maximum(length, 1e-6)
        # Field lines fan out to the sides of a bipole, and lean.
        lean = -0.35 * shape[0] + 0.5 * (shape[1] - 0.5)
        apex = (up * np.cos(lean) + side * np.sin(lean)) * (0.65 + 0.6 * shape[2]) * length
        near = (middle[2] + length > -0.1) & (length < 0.35)
        middle, half, apex = (v[:, near].astype(np.float32) for v in (middle, half, apex))
        length, flux, heat = length[near], flux[near], heat[near]
        reach, phase, kind = shape[3:, near]
        # A point for every pixel and a half of length, and more at the feet, where a loop is seen end on.
        steps = np.clip(length * np.pi * grid.radius / 1.5, 4, 160).astype(np.int64)
        loop = np.repeat(np.arange(len(steps)), steps)
        u = (np.arange(len(loop)) - np.repeat(np.cumsum(steps) - steps, steps) + 0.5) / steps[loop] * np.pi
        c, s = np.cos(u).astype(np.float32), np.sin(u).astype(np.float32)
        p = np.stack(
            [m[loop] + h[loop] * c + a[loop] * s for m, h, a in zip(middle, half, apex, strict=True)]
        )
        visible = (p[2] > 0) | (p[0] ** 2 + p[1] ** 2 > 1)
        p, loop = p[:, visible], loop[visible]
        height = np.maximum(np.sqrt((p * p).sum(0)) - 1, 0)
        # RTV as in `atmosphere`, for field of some 100 G at the feet; then cooling, as the phase goes on.
        cm = np.maximum(length, 0.008) * (np.pi / 2 * 6.957e10)
        foot = 140.0 * flux**0.25 * heat / (0.3 + reach)
        pressure = (_HEAT_PER_GAUSS / 9.8e4 * foot * cm ** (-1 / 6)) ** (6 / 7)
        peak = 1400 * (pressure * cm) ** (1 / 3)
        density = pressure / (2 * 1.381e-16 * peak)
        # Half of the loops are heated steadily to some 1 MK, denser than the laws have it.
        warm = kind < 0.5
        log_t = np.where(warm, 5.85 + 0.5 * kind, np.log10(peak) + 0.12 - 0.42 * phase)
        density *= np.where(warm, 10 ** (0.35 * (np.log10(peak) - log_t)), 1.0)
        # n² times the loop's cross-section and the length of a step, over the area of a pixel.
        width = 0.0011 + 0.02 * length
        amount = (density * 1e-13) ** 2 * 6.957e10 * width**2 * (2 * length * np.pi / 2) * grid.radius**2
        amount *= np.where(warm, 0.20, 3.0) * np.sin(np.pi * phase) ** 2 / steps
        scale = 0.022 + 0.034 * 10 ** (log_t - 6)
        amount = amount.astype(np.float32)[loop] * np.exp(-height / scale.astype(np.float32)[loop])
        # Shared between the two nearest bins.
        position = np.interp(log_t, _LOG_T, np.arange(len(_LOG_T))).clip(0.5, len(_LOG_T) - 1.001)
        lower = position.astype(np.int64)
        upper = (position - lower).astype(np.float32)
        order = np.argsort(lower[loop], kind="stable")
        edges = np.searchsorted(lower[loop][order], np.arange(len(_LOG_T) + 1))
        for k in range(len(_LOG_T) - 1):
            which = order[edges[k] : edges[k + 1]]
            if len(which):
                share = upper[loop[which]]
                out[k : k + 2] += grid.splat(p[:2, which], amount[which] * np.stack([1 - share, share]))
        return out

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
        # At larger scales the disk would pass for all of the field, and bend strands around its middle.
        potential = self.spectrum * (grid.gauss(0.06) - grid.gauss(0.22)) / grid.k
        hx, hy = grid.inverse(1j * grid.kx * potential), grid.inverse(1j * grid.ky * potential)
        strength = hx * hx + hy * hy + np.float32(1e-6)
        # The direction's double angle: a strand has no sign.
        c2, s2 = (hx * hx - hy * hy) / strength, 2 * hx * hy / strength
        noise = scipy.fft.rfft2(self._full(self.fine[2] + 0.3 * self.fine[1]))
        combed = np.zeros((grid.n, grid.n), np.float32)
        norm = np.full((grid.n, grid.n), 1e-6, np.float32)
        for kernel, cj, sj in grid.stripes:
            w = np.maximum(c2 * cj + s2 * sj, 0) ** 2
            combed += w * grid.inverse(noise * kernel)
            norm += w
        comb: Floats = (combed / norm).ravel()[grid.on]
        comb /= comb.std() + np.float32(1e-6)
        return comb

    def _filaments(self) -> Floats:
        """(N,) 1 in filaments: over neutral lines of the large-scale field where the slow texture allows."""
        grid = self.grid
        gy, gx = np.gradient(self.wide)
        slope = np.hypot(gx, gy).ravel()[grid.on] * np.float32(grid.radius)
        distance = np.abs(self.wide.ravel()[grid.on] + 2.0 * self.slow[0]) / (slope + np.float32(8))
        out: Floats = np.exp(-((distance / 0.011) ** 2))
        return (
            out
            * _step(slope, 25.0, 8.0)
            * _step(self.slow[2] + 0.5 * self.large[1], 0.7, 0.12)
            * _step(grid.mu.ravel()[grid.on], 0.25, 0.08)
        )

    def _beyond(self) -> Floats:
        """(9, M) emission measure off the limb: the atmosphere integrated along lines of sight."""
        grid = self.grid
        angles, heights = POLAR_ANGLES, POLAR_HEIGHTS
        phi = np.linspace(-0.85, 0.85, 13)
        cp, sp = np.cos(phi), np.sin(phi)
        p = np.stack(
            [np.outer(np.cos(angles), cp), np.outer(np.sin(angles), cp), np.outer(np.ones(len(angles)), sp)]
        ).astype(np.float32)
        _, strength, closed, half = self._large_scale(p.reshape(3, -1))
        measure, _ = atmosphere(
            6.4 + 0.25 * strength, np.clip(np.exp(half), 0.11, 0.28), _step(closed, 0.45, 0.15)
        )
        measure = measure.reshape(len(_LOG_T), len(angles), len(phi))
        radius = (1 + heights)[:, None] / cp
        path = np.exp(-(radius - 1) / _SCALE[:, None, None]) * (1 + heights)[:, None] / cp**2
        path *= 1.7 / np.sqrt(_DEPTH)[:, None, None] / path[:, :1].sum(2, keepdims=True)
        polar = np.einsum("kaf,khf->kah", measure, path).astype(np.float32)
        channels = np.einsum("ck,kah->cah", _MATRIX, polar)
        out: Floats = (grid.from_polar @ channels.reshape(7, -1).T).T
        return out

    def _glow(self, comb: Floats) -> Floats:
        """(7, n, n) of loops, bright points and flares."""
        grid = self.grid
        out = np.zeros((7, grid.n, grid.n), np.float32)
        # What loops add is as finely structured as the rest; the hottest plasma is smooth.
        woven = self._full(np.exp(0.25 * comb + 0.25 * self.fine[2]) - 1) + 1
        for k, arcs in enumerate(self._arcs()):
            if not arcs.any():
                continue
            # Half of each loop's light is in a thin strand, half in the haze around it.
            strand, haze = 0.0014 + 0.0004 * k, 0.010 + 0.003 * k
            image = grid.inverse(scipy.fft.rfft2(arcs) * (0.5 * grid.gauss(strand) + 0.5 * grid.gauss(haze)))
            image = np.maximum(image, 0)
            if k < 6:
                image *= woven
            for i in range(7):
                out[i] += _MATRIX[i, k] * image
        seen = (self.points[2] > 0) | ((self.points[:2] ** 2).sum(0) > 1)
        points = grid.splat(self.points[:2], self.point_glow * seen * grid.radius**2)
        bright = np.maximum(grid.smooth(points, 0.0048), 0)
        spectrum = _MATRIX @ np.array([0.1, 0.15, 0.3, 0.35, 0.3, 0.15, 0.02, 0, 0], np.float32)
        out += spectrum[:, None, None] * bright
        self.burning = None
        if self.flares:
            self.burning = np.maximum(grid.smooth(self._flare(), 0.005), 0)
            out += _FLARE[:7, None, None] * self.burning
        return out

    def channels(self) -> Floats:
        """Return (12, n, n) float32 in DN/s and G, as an ideal telescope sees them."""
        self.field()
        grid, n = self.grid, self.grid.n
        on, off = grid.on, grid.off
        mu = grid.mu.ravel()[on]
        # The field's strength around each pixel, over 0.5 to 40 pixels of 512.
        a05, a2, a6, a16 = (
            np.maximum(grid.around(self.abs_spectrum, sigma), 0) for sigma in (0.0025, 0.008, 0.028, 0.075)
        )
        filament, rays = self._filaments(), self._rays()
        # Strands are seen where the field is strong.
        comb = self._comb() * (0.75 + 0.25 * _step(a6, 30.0, 12.0))
        # Five-minute oscillations: nothing of them is left from one frame to the next.
        rng = np.random.Generator(np.random.SFC64([self.seed, int(self.t * 1440) & 0xFFFFFFFF, 3]))
        sigma = np.float32(0.1 * n / 512)
        shimmer = rng.standard_normal(len(on), dtype=np.float32) * sigma - sigma**2 / 2
        lane = self.lane * (0.75 + 0.25 * self.fine[3])
        grain = 0.6 * self.fine[1] + 0.4 * self.fine[3]

        cloud = np.exp(0.13 * self.slow[1] + 0.10 * self.large[1])
        fuzz = 0.21 * comb + 0.14 * self.slow[0] + 0.07 * self.fine[2]
        knots = 0.17 * comb + 0.16 * self.slow[0] + 0.28 * self.fine[2] + 0.05 * self.fine[1]
        heated = (5.8 + 0.10 * a2 + 0.32 * a6 + 0.05 * a16 + 0.10 * self.around) * cloud
        measure, pressure = atmosphere(heated, np.clip(self.half, 0.11, 0.28), self.closed)
        # The transition region at the feet of everything: as its pressure, where the field is rooted.
        moss = pressure * (0.006 * a2 / (1 + a2 / 200)) * self.closed
        low = (0.50 + 0.05 * np.sqrt(a2)) * (0.75 + 0.25 * self.closed)
        for k, (a, b) in enumerate(((0.5, 0.05), (0.9, 0.15), (0.4, 0.28), (0.1, 0.12))):
            measure[k] += np.float32(a) * moss + np.float32(b) * low
        for k, depth in enumerate(_DEPTH):
            # The hotter, the smoother.
            measure[k] *= np.exp(knots if k < 4 else fuzz * np.float32(1.25 - 0.12 * k))
            measure[k] *= np.sqrt((1 + depth) / (mu**2 + depth))
        corona = _MATRIX @ measure
        corona *= 1 - np.array([0.35, 0.5, 0.5, 0.6, 0.6, 0, 0.5], np.float32)[:, None] * filament
        beyond: Floats = self._beyond() * rays

        out = np.empty((12, n, n), np.float32)
        out[:7] = self._glow(comb)
        for i in range(7):
            image = out[i].ravel()
            image[on] += corona[i]
            image[off] += beyond[i]
        # Bright cores, and the wide plage around them, which has most of the light.
        plage = 0.05 * a2**2 / (a2 + 30) / (1 + a2 / 100) + 0.045 * a6**2 / (a6 + 30) / (1 + a6 / 60)
        fine = np.exp(
            0.25 * grain + 0.13 * self.fine[2] + 0.15 * self.slow[0] + 0.105 * self.large[0] + shimmer
        )
        # Fibrils blur the network: single pixels of 304 Å differ less than those of 1600 Å.
        chromo = grid.around(scipy.fft.rfft2(self._full((0.48 + 0.45 * lane + plage) * fine)), 0.002)
        chromo *= (1 - 0.45 * filament) * (0.75 + 0.25 * self.closed)
        out[5] += 54 * self._chromosphere(chromo, 0.020, 0.55, rays)

        self._photosphere(out, a05, lane, grain, shimmer)
        self._field_vector(out)
        return out

    def _photosphere(self, out: Floats, a05: Floats, lane: Floats, grain: Floats, shimmer: Floats) -> None:
        """Make 1600 and 1700 Å: limb darkening, dark spots, bright faculae and network."""
        grid = self.grid
        mu = grid.mu.ravel()[grid.on]
        photo = (0.38 + 0.62 * mu) * np.exp(0.045 * grain + shimmer - (self.br_disk / 800.0) ** 2)
        facula = a05 / (a05 + 150.0) * (1.15 - 0.3 * mu)
        for i, level, gain, net, stray in _PHOTOSPHERE:
            value = photo * (1 + gain * facula + net * lane * (np.abs(self.patch) - 0.5))
            out[i] = self._full(np.float32(level) * value)
            out[i].ravel()[grid.off] = stray * np.exp(grid.height * np.float32(-1 / 0.22)) + 0.01 * level
            if self.burning is not None:
                # Ribbons of flares reach down to the temperature minimum.
                out[i] += _FLARE[i] * self.burning

    def _field_vector(self, out: Floats) -> None:
        """Make Bx to the west, By to the north, Bz towards the observer; 0 off the disk."""
        grid = self.grid
        # The potential field's horizontal part lies in the surface, which is seen aslant. It is computed in a
        # plane, which tells nothing of scales at which the Sun is round, nor of the limb.
        potential = self.spectrum * (grid.gauss(0.004) * (1 - grid.gauss(0.12))) / grid.k
        hx, hy = (-grid.inverse(1j * k * potential) for k in (grid.kx, grid.ky))
        hz = -(grid.x * hx + grid.y * hy) / np.maximum(grid.mu, 0.3) * _step(grid.mu, 0.5, 0.1)
        out[9] = (self.br * grid.x + hx) * grid.disk
        out[10] = (self.br * grid.y + hy) * grid.disk
        out[11] = (self.br * grid.mu + hz) * grid.disk

    def _chromosphere(self, base: Floats, scale: float, depth: float, rays: Floats) -> Floats:
        """Bring an emission per unit of depth to the sky: longer paths at the limb, a fall-off beyond it."""
        grid = self.grid
        mu = grid.mu.ravel()[grid.on]
        image = self._full(base / np.sqrt(mu**2 + np.float32(depth)) * np.float32(math.sqrt(1 + depth)))
        fall = 0.8 * np.exp(grid.height * np.float32(-1 / scale))
        fall += 0.2 * np.exp(grid.height * np.float32(-1 / (2.4 * scale)))
        edge = grid.rim(base) * np.float32(0.9 * math.sqrt((1 + depth) / depth))
        image.ravel()[grid.off] = edge * fall * rays
        return image
