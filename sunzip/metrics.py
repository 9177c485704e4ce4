"""How well decoded images agree with the originals: the four metrics of the paper, its way and strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import canonical, channel, listed
from sunzip.cube import disk_radius
from sunzip.errors import InputError

#: The two modes, in the order in which tables print them.
MODES = ("paper", "strict")

_Images = npt.NDArray[np.floating[Any]]
_Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """Metrics of each image; every array has the images' leading shape.

    Attributes
    ----------
    r
        Pearson correlation; NaN where the original or the decoded image is constant.
    ppe10, ppe50
        Share of the pixels with |x − x̂| < 0.1·|x| (0.5·|x|); NaN where no pixel counts.
    rmse
        Root mean squared error, in the images' unit.
    max_error
        Largest |x − x̂|, in the images' unit.
    rmse_sigma
        Root mean squared error after the variance-stabilising function, in standard deviations
        of the noise; NaN if there is none.
    pixels
        How many pixels of the original counted.
    lost
        How many of those the decoded image has no finite value for. They are misses in `ppe10` and
        `ppe50`; the other metrics can only be taken over the rest.
    """

    r: _Float
    ppe10: _Float
    ppe50: _Float
    rmse: _Float
    max_error: _Float
    rmse_sigma: _Float
    pixels: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]


def disk_mask(shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return where the Sun's disk is in a full-Sun image of SDOML geometry: (Y, X) bool.

    The radius is 976″ at 4.8·512/n ″/px, about the centre of the n×n image.

    Raises
    ------
    InputError
        If the shape is not square: then it is no full-Sun image of SDOML geometry.
    """
    y, x = shape
    if x != y:
        raise InputError(f"image of {y}×{x} pixels is not square, so its disk is unknown; pass on_disk")
    offset = np.arange(x) - (x - 1) / 2
    radius = disk_radius(x)
    return np.asarray(offset[:, None] ** 2 + offset**2 <= radius**2)


def image_metrics(
    x: _Images,
    x_hat: _Images,
    *,
    strict: bool = False,
    on_disk: npt.NDArray[np.bool_] | None = None,
    stabilise: Callable[[_Float], _Float] | None = None,
) -> ImageMetrics:
    """Compare decoded images with the originals, one by one, in float64.

    In the paper's mode every pixel with a finite original value counts, and a pixel with x = 0 is a
    miss in `ppe10` and `ppe50`. In strict mode only pixels on the disk with x ≠ 0 count.

    Parameters
    ----------
    x, x_hat
        (..., Y, X), originals and decoded images in the same unit. NaN in `x` is no measurement.
    strict
        Whether to use strict mode.
    on_disk
        (Y, X), the disk for strict mode; `disk_mask` of the shape if absent.
    stabilise
        Function of pixel values that makes their noise 1; applied elementwise to both.

    Raises
    ------
    InputError
        If the shapes do not agree.

    References
    ----------
    The four metrics are those of section 2.3 of Brown et al., "Learning the solar latent space:
    sigma-variational autoencoders for multiple channel solar imaging".

    Examples
    --------
    >>> m = image_metrics(np.array([[0.0, 10.0, 10.0, 10.0]]), np.array([[0.0, 10.5, 14.0, 20.0]]))
    >>> float(m.ppe10), float(m.ppe50), float(m.max_error)
    (0.25, 0.5, 10.0)
    """
    _check_shapes(x, x_hat)
    *leading, y, w = x.shape
    disk: npt.NDArray[np.bool_] | None = None
    if strict:
        disk = disk_mask((y, w)) if on_disk is None else on_disk
        if disk.shape != (y, w):
            raise InputError(f"on_disk has shape {disk.shape}, the images have {(y, w)}")
    count = math.prod(leading)
    values = np.full((6, count), np.nan)
    pixels, lost = np.zeros((2, count), np.int64)
    # One image at a time: its temporaries stay in the cache, and memory does not grow with the images.
    for i, (a, b) in enumerate(zip(x.reshape(count, y, w), x_hat.reshape(count, y, w), strict=True)):
        counts = np.isfinite(a)
        if disk is not None:
            counts &= disk & (a != 0)
        both = counts & np.isfinite(b)
        pixels[i] = np.count_nonzero(counts)
        lost[i] = pixels[i] - np.count_nonzero(both)
        if pixels[i]:
            # Most images are whole, and to pick all of their pixels takes a sixth of the time.
            whole = pixels[i] - lost[i] == a.size
            one, other = ((x.ravel() if whole else x[both]).astype(np.float64) for x in (a, b))
            values[:, i] = _compare(one, other, pixels[i], stabilise)
    r, ppe10, ppe50, rmse, max_error, rmse_sigma = values.reshape(6, *leading)
    return ImageMetrics(
        r, ppe10, ppe50, rmse, max_error, rmse_sigma, pixels.reshape(leading), lost.reshape(leading)
    )


def _check_shapes(x: npt.NDArray[Any], x_hat: npt.NDArray[Any]) -> None:
    if x.ndim < 2 or x.shape != x_hat.shape:
        raise InputError(
            f"original and decoded images must have the same shape, not {x.shape} and {x_hat.shape}"
        )


def _compare(
    x: _Float, y: _Float, pixels: np.int64, stabilise: Callable[[_Float], _Float] | None
) -> tuple[float, float, float, float, float, float]:
    """Return r, ppe10, ppe50, rmse, max_error, rmse_sigma of (n,) pixels, n of `pixels` that count."""
    if not x.size:
        return math.nan, 0.0, 0.0, math.nan, math.nan, math.nan
    error = np.abs(x - y)
    magnitude = np.abs(x)
    rmse_sigma = math.nan
    if stabilise is not None:
        # What the function does outside its domain shows as NaN in the result, not as a warning.
        with np.errstate(all="ignore"):
            rmse_sigma = math.sqrt(np.mean((stabilise(x) - stabilise(y)) ** 2))
    return (
        _pearson(x, y),
        float(np.count_nonzero(error < 0.1 * magnitude) / pixels),
        float(np.count_nonzero(error < 0.5 * magnitude) / pixels),
        math.sqrt(np.mean(error**2)),
        float(error.max()),
        rmse_sigma,
    )


def _is_constant(x: _Float) -> bool:
    # Compared exactly, because the rounded variance of a constant image need not be zero; the first and the
    # middle pixel mostly tell.
    return bool(x[0] == x[len(x) // 2] and (x == x[0]).all())


def _pearson(x: _Float, y: _Float) -> float:
    if _is_constant(x) or _is_constant(y):
        return math.nan
    dx = x - x.mean()
    dy = y - y.mean()
    # No np.dot: it sums in another order with another number of threads, and archives hold what comes of it.
    norm = math.sqrt((dx * dx).sum()) * math.sqrt((dy * dy).sum())
    return min(1.0, max(-1.0, float((dx * dy).sum()) / norm)) if norm else math.nan


@dataclass(frozen=True, slots=True)
class ChannelMetrics:
    """Metrics of one channel over all its images; NaN where no image gives a value.

    Attributes
    ----------
    unit
        Of `rmse` and `max_error`.
    r, ppe10, ppe50, rmse, rmse_sigma
        Means over the images of `ImageMetrics`; `r` over those that are not constant.
    max_error
        The largest of any pixel.
    images
        How many images had a pixel that counted.
    constant
        How many of those have no correlation because the original or the decoded image is constant.
    empty
        How many valid images had no pixel that counted.
    pixels, lost
        Sums over the images.
    """

    unit: str
    r: float
    ppe10: float
    ppe50: float
    rmse: float
    max_error: float
    rmse_sigma: float
    images: int
    constant: int
    empty: int
    pixels: int
    lost: int


@dataclass(slots=True)
class _Sums:
    """Running sums of one channel in one mode: of r, ppe10, ppe50, rmse, rmse_sigma, with their counts."""

    total: _Float = field(default_factory=lambda: np.zeros(5))
    count: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(5, np.int64))
    max_error: float = math.nan
    images: int = 0
    constant: int = 0
    empty: int = 0
    pixels: int = 0
    lost: int = 0

    def add(self, m: ImageMetrics) -> None:
        """Add the metrics of one image, whose arrays have shape ()."""
        if not m.pixels:
            self.empty += 1
            return
        values = np.array([m.r, m.ppe10, m.ppe50, m.rmse, m.rmse_sigma])
        known = ~np.isnan(values)
        self.total[known] += values[known]
        self.count += known
        self.max_error = float(np.fmax(self.max_error, m.max_error))
        self.images += 1
        # A wholly lost image has no correlation either, but `lost` says so already.
        self.constant += int(np.isnan(m.r) and m.lost < m.pixels)
        self.pixels += int(m.pixels)
        self.lost += int(m.lost)

    def merge(self, other: _Sums) -> None:
        self.total += other.total
        self.count += other.count
        self.max_error = float(np.fmax(self.max_error, other.max_error))
        self.images += other.images
        self.constant += other.constant
        self.empty += other.empty
        self.pixels += other.pixels
        self.lost += other.lost

    def result(self, unit: str) -> ChannelMetrics:
        r, ppe10, ppe50, rmse, rmse_sigma = (
            float(t / n) if n else math.nan for t, n in zip(self.total, self.count, strict=True)
        )
        return ChannelMetrics(
            unit=unit,
            r=r,
            ppe10=ppe10,
            ppe50=ppe50,
            rmse=rmse,
            max_error=self.max_error,
            rmse_sigma=rmse_sigma,
            images=self.images,
            constant=self.constant,
            empty=self.empty,
            pixels=self.pixels,
            lost=self.lost,
        )


class Accumulator:
    """Metrics per channel over any number of frames in both modes, in memory that does not grow with them.

    Parameters
    ----------
    channels
        The C channel names, in canonical order.
    stabilise
        Function (values, channel name) → values that makes the noise of a channel 1, for
        `rmse_sigma`; elementwise.
    on_disk
        (Y, X), the disk for strict mode; `disk_mask` of the shape if absent.

    Raises
    ------
    InputError
        If a channel is unknown, or the names are not in canonical order.

    Examples
    --------
    >>> total = Accumulator(["171A"])
    >>> x = np.arange(64.0).reshape(1, 1, 8, 8)
    >>> total.add(x, x)
    >>> total.result()["paper"]["171A"].ppe10
    0.984375
    """

    def __init__(
        self,
        channels: Sequence[str],
        *,
        stabilise: Callable[[_Float, str], _Float] | None = None,
        on_disk: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.channels = listed(channels)
        if self.channels != canonical(self.channels):
            raise InputError(f"channels must be in canonical order, not {' '.join(self.channels)}")
        self._stabilise = stabilise
        self._on_disk = on_disk
        self._sums = {mode: [_Sums() for _ in self.channels] for mode in MODES}

    def add(self, x: _Images, x_hat: _Images, valid: npt.NDArray[np.bool_] | None = None) -> None:
        """Add frames.

        Parameters
        ----------
        x, x_hat
            (T, C, Y, X), originals and decoded frames in DN/s and G. NaN in `x` is no measurement.
        valid
            (T, C), which images there are; all if absent.

        Raises
        ------
        InputError
            If the shapes do not agree.
        """
        _check_shapes(x, x_hat)
        if x.ndim != 4 or x.shape[1] != len(self.channels):
            raise InputError(f"frames must have shape (T, {len(self.channels)}, Y, X), not {x.shape}")
        if valid is None:
            valid = np.ones(x.shape[:2], np.bool_)
        if valid.shape != x.shape[:2]:
            raise InputError(f"valid has shape {valid.shape}, the frames have {x.shape[:2]}")
        on_disk = disk_mask(x.shape[2:]) if self._on_disk is None else self._on_disk
        for t, c in np.argwhere(valid):
            stabilise = self._stabiliser(self.channels[c])
            for mode in MODES:
                self._sums[mode][c].add(
                    image_metrics(
                        x[t, c], x_hat[t, c], strict=mode == "strict", on_disk=on_disk, stabilise=stabilise
                    )
                )

    def _stabiliser(self, name: str) -> Callable[[_Float], _Float] | None:
        function = self._stabilise
        return None if function is None else lambda values: function(values, name)

    def merge(self, other: Accumulator) -> None:
        """Add what another accumulator saw, in another thread or process, say.

        Raises
        ------
        InputError
            If it has other channels.
        """
        if other.channels != self.channels:
            raise InputError(
                f"cannot merge metrics of {' '.join(other.channels)} into {' '.join(self.channels)}"
            )
        for mode in MODES:
            for mine, theirs in zip(self._sums[mode], other._sums[mode], strict=True):
                mine.merge(theirs)

    def result(self) -> dict[str, dict[str, ChannelMetrics]]:
        """Return the metrics by mode, ``"paper"`` and ``"strict"``, and channel name."""
        return {
            mode: {
                name: sums.result(channel(name).unit)
                for name, sums in zip(self.channels, self._sums[mode], strict=True)
            }
            for mode in MODES
        }

    def as_dict(self) -> dict[str, dict[str, dict[str, str | int | float | None]]]:
        """Return `result` as plain values for JSON, with None for what has no finite value."""
        return {
            mode: {
                name: {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in asdict(metrics).items()
                }
                for name, metrics in table.items()
            }
            for mode, table in self.result().items()
        }


def over_images(metrics: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """Return the mean of a metric over the images of all channels; None if none of them has it.

    Parameters
    ----------
    metrics
        By channel, of one mode, as `Accumulator.as_dict` gives them.
    key
        ``"r"``, ``"ppe10"``, ``"ppe50"`` or ``"rmse_sigma"``; constant images have no part in ``"r"``.
    """
    known = [
        (m[key], m["images"] - m["constant"] * (key == "r")) for m in metrics.values() if m[key] is not None
    ]
    return float(sum(value * n for value, n in known) / sum(n for _, n in known)) if known else None
