"""The sphere on the detector: pixels, filters in frequency space, points, and textures that cover the sphere.

Textures (network, quiet corona) are slices through periodic volumes of noise by the unit sphere.
Sky coordinates: x west, y north, z towards the observer, centre of the Sun at 0, in solar radii.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.sparse

from sunzip.cube import disk_radius

Floats = npt.NDArray[np.float32]


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


def cut(p: Floats, voxels: float, pick: Sequence[int], *keys: int) -> Floats:
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
    # Written out: the last digits of a library's product depend on how many threads it takes.
    turned = turn[:, [0]] * p[0] + turn[:, [1]] * p[1] + turn[:, [2]] * p[2]
    q = turned * np.float32(voxels) + (rng.random((3, 1)) * _VOLUME + 40 * _VOLUME).astype(np.float32)
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


# --- image geometry ---------------------------------------------------------------------------------------


#: Position angles told apart around the limb.
_ANGLES = 720
#: What is known beyond the limb by position angle and height: at these angles from the west, and heights.
POLAR_ANGLES = np.arange(180) * (2 * np.pi / 180)
POLAR_HEIGHTS = np.linspace(0, 1, 48) ** 1.7


class Grid:
    """What depends on the image's size alone: coordinates of pixels, filters in frequency space."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.radius = disk_radius(n)
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
        self.from_polar = self._polar_weights(angle[self.off])
        # Textures whose voxels are several pixels wide are cut on every `step`-th pixel and interpolated.
        step = self.step = max(1, n // 64)
        self.coarse = (np.arange(-(-n // step) + 2) - 0.5) * step - 0.5
        at = (np.arange(n) + 0.5) / step + 0.5
        lower = at.astype(np.int64)
        weights = np.concatenate([1 - (at - lower), at - lower]).astype(np.float32)
        where = np.tile(np.arange(n), 2), np.concatenate([lower, lower + 1])
        self.stretch = scipy.sparse.csr_array((weights, where), shape=(n, len(self.coarse)))
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
        self._covers: dict[float, Floats] = {}
        # Six elongated kernels in steps of 30°, ten times longer than wide.
        long2, wide2 = np.float32(0.032**2 / 2), np.float32(0.0032**2 / 2)
        self.stripes = []
        for j in range(6):
            c, s = math.cos(j * math.pi / 6), math.sin(j * math.pi / 6)
            along, across = self.kx * c + self.ky * s, self.ky * c - self.kx * s
            kernel = np.exp(-(along**2) * long2 - across**2 * wide2)
            self.stripes.append(
                (kernel, np.float32(math.cos(j * math.pi / 3)), np.float32(math.sin(j * math.pi / 3)))
            )

    def _polar_weights(self, angle: npt.NDArray[np.floating]) -> scipy.sparse.csr_array:
        """Interpolation from (angles × heights) to the pixels off the limb, as a sparse matrix."""
        j = angle * (len(POLAR_ANGLES) / _ANGLES)
        k = np.interp(self.height, POLAR_HEIGHTS, np.arange(len(POLAR_HEIGHTS))).clip(
            0, len(POLAR_HEIGHTS) - 1.001
        )
        j0, k0 = np.floor(j).astype(np.int64), np.floor(k).astype(np.int64)
        rows = np.arange(len(angle))
        weights, places = [], []
        for dj, wj in ((0, 1 - (j - j0)), (1, j - j0)):
            for dk, wk in ((0, 1 - (k - k0)), (1, k - k0)):
                weights.append((wj * wk).astype(np.float32))
                places.append((j0 + dj) % len(POLAR_ANGLES) * len(POLAR_HEIGHTS) + k0 + dk)
        shape = (len(angle), len(POLAR_ANGLES) * len(POLAR_HEIGHTS))
        where = (np.tile(rows, 4), np.concatenate(places))
        return scipy.sparse.csr_array((np.concatenate(weights), where), shape=shape)

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

    def around(self, spectrum: npt.NDArray[np.complexfloating], sigma: float) -> Floats:
        """(N,) mean over a Gaussian's share of the disk, of an image's spectrum that is 0 elsewhere."""
        if sigma not in self._covers:
            cover = self.smooth(self.disk.astype(np.float32), sigma)
            self._covers[sigma] = np.maximum(cover, 0.05).ravel()[self.on]
        out: Floats = self.inverse(spectrum * self.gauss(sigma)).ravel()[self.on] / self._covers[sigma]
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
def grid_of(n: int) -> Grid:
    return Grid(n)
