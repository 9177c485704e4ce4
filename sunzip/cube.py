"""Cube: a stretch of aligned frames in physical units, what sources give and sinks take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel
from sunzip.errors import InputError

#: SDOML's geometry: the disk is scaled to 976″ radius at 4.8″ a pixel of 512 (Galvez et al. 2019, 3.1).
DISK_RADIUS, PIXEL_OF_512 = 976.0, 4.8

#: The same radius in pixels of a 512² image.
DISK_RADIUS_512 = DISK_RADIUS / PIXEL_OF_512

#: Pixels along a side of the largest image that is read and coded: the format's limit (see `sunzip.frame`).
MAX_SIDE = 16384

#: Solar radius in metres, as SDO's own headers have it (RSUN_REF).
RSUN_M = 696_000_000.0


def disk_radius(side: float) -> float:
    """Return the same radius in pixels of images of so many pixels a side."""
    return DISK_RADIUS_512 * side / 512


#: One FITS header as plain values; the keywords of one frame of one channel.
Header = Mapping[str, str | int | float | bool | None]


class Scale(StrEnum):
    """How the AIA pixels of a frame were binned down: as means (SDOML v2) or as sums of 2×2 (SDOML v1).

    The sum is four times the mean. It is a property that a source states, never a guess from values.
    HMI channels are means in both.
    """

    MEAN = "mean"
    SUM = "sum"

    @classmethod
    def of(cls, wish: str) -> Scale:
        """Return a scale that may be given as text, as archives and datasets have it.

        Raises
        ------
        InputError
            If it is none.
        """
        try:
            return cls(wish)
        except ValueError:
            raise InputError(f"a scale is 'mean' or 'sum', not {wish!r:.60}") from None


def summed(name: str, scale: str) -> int:
    """Return how many times the mean of 2×2 pixels of SDOML a pixel is: 4 where AIA pixels are sums, or 1."""
    return 4 if Scale.of(scale) is Scale.SUM and channel(name).instrument == "AIA" else 1


@dataclass(slots=True)
class Cube:
    """Frames of the Sun on one time axis.

    Attributes
    ----------
    data
        (T, C, Y, X) float32, C-contiguous; DN/s for AIA, G for HMI; row 0 is south.
        NaN where there is no measurement.
    channels
        The C channel names, a subset of `sunzip.channels.NAMES` in that order.
    time
        (T,) datetime64[ms], UTC, strictly increasing: the nominal time of each frame.
    t_obs
        (T, C) datetime64[ms], UTC: when each image was really taken; NaT where it is missing.
    valid
        (T, C) bool: whether there is an image. Where False, `data` is NaN throughout.
    headers
        [T][C]: the FITS keywords as the source had them; empty where the image is missing.
    scale
        Whether AIA pixels are 2×2 means or sums.
    """

    data: npt.NDArray[np.float32]
    channels: tuple[str, ...]
    time: npt.NDArray[np.datetime64]
    t_obs: npt.NDArray[np.datetime64]
    valid: npt.NDArray[np.bool_]
    headers: list[list[Header]]
    scale: Scale

    def __post_init__(self) -> None:
        self.scale = Scale.of(self.scale)
        t, c = self.valid.shape
        if self.data.ndim != 4 or self.data.shape[:2] != (t, c) or self.data.dtype != np.float32:
            raise ValueError(
                f"data must be float32 of shape ({t}, {c}, Y, X), not {self.data.dtype} {self.data.shape}"
            )
        if self.channels != tuple(n for n in NAMES if n in self.channels) or len(self.channels) != c:
            raise ValueError(f"channels must be {c} known names in canonical order, not {self.channels}")
        if self.time.shape != (t,) or self.t_obs.shape != (t, c):
            raise ValueError("time and t_obs must have shapes (T,) and (T, C)")
        if len(self.headers) != t or any(len(row) != c for row in self.headers):
            raise ValueError("headers must be T lists of C mappings")

    def __len__(self) -> int:
        return int(self.data.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels as float32, missing images not counted."""
        return int(self.valid.sum()) * int(np.prod(self.data.shape[2:])) * 4

    def pick(self, channels: tuple[str, ...]) -> Cube:
        """Return the cube with these of its channels only; itself if they are all."""
        if channels == self.channels:
            return self
        at = [self.channels.index(name) for name in channels]
        headers = [[row[c] for c in at] for row in self.headers]
        data, t_obs, valid = self.data[:, at], self.t_obs[:, at], self.valid[:, at]
        return Cube(data, channels, self.time, t_obs, valid, headers, self.scale)

    def to_scale(self, scale: Scale | Literal["mean", "sum"]) -> Cube:
        """Return the cube with AIA pixels as means or sums; itself if it has that scale already.

        Raises
        ------
        InputError
            If it is neither ``"mean"`` nor ``"sum"``.
        """
        scale = Scale.of(scale)
        if scale is self.scale:
            return self
        data = self.data.copy()
        for i, name in enumerate(self.channels):
            data[:, i] *= np.float32(summed(name, scale) / summed(name, self.scale))
        return Cube(data, self.channels, self.time, self.t_obs, self.valid, self.headers, scale)
