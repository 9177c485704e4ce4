"""Images of a frame as arrays: which are there, of which channels, and in which scale their pixels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS, NAMES, canonical, listed
from sunzip.codec.family import Float
from sunzip.cube import Scale, summed
from sunzip.errors import InputError
from sunzip.frame import unpack_raw
from sunzip.gaps import filled
from sunzip.normalize import Stabiliser


def nbytes_of(shape: tuple[int, int]) -> int:
    """Return the bytes of a frame of all channels."""
    return 4 * len(NAMES) * shape[0] * shape[1]


def channels_of(mask: int) -> tuple[int, ...]:
    """Return the channels of a frame's mask, rising."""
    return tuple(i for i in range(len(NAMES)) if mask >> i & 1)


def raw_pixels(
    payload: bytes, has: Sequence[int], indexes: Sequence[int], shape: tuple[int, int], scale: Scale
) -> Float:
    """Return the pixels (n, Y, X), of those channels of `indexes` that a frame stored as pixels has."""
    channels = [index for index in indexes if index in has]
    pixels: Float = unpack_raw(payload, len(has), *shape)[[has.index(index) for index in channels]]
    return scaled(pixels, channels, scale)


def scaled(means: Float, channels: Sequence[int], scale: Scale) -> Float:
    """Return means (n, Y, X) of channels as pixels of a scale, finite where they are."""
    factor = to_mean(channels, scale)
    if factor is None:
        return means
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        found: Float = np.clip(means / factor, -largest, largest)
    return found


def means_of(data: Float, present: npt.NDArray[np.bool_], indexes: Sequence[int], scale: Scale) -> Float:
    """Return the (n, Y, X) present channels of a frame, AIA pixels as means."""
    factor = to_mean(indexes, scale)
    means: Float = data if present.all() else data[present]
    return means if factor is None else means * factor[present]


class There(NamedTuple):
    """What of a frame (C, Y, X) is there.

    Attributes
    ----------
    missing
        Pixels (C, Y, X) that are not.
    present
        Images (C,) that are.
    channels
        Theirs.
    """

    missing: npt.NDArray[np.bool_]
    present: npt.NDArray[np.bool_]
    channels: tuple[int, ...]

    @property
    def gaps(self) -> npt.NDArray[np.bool_] | None:
        """Pixels (n, Y, X) of the images that are there that are not; None if all are."""
        missing = self.missing[self.present]
        return missing if missing.any() else None


def there_of(frame: Float, indexes: Sequence[int]) -> There:
    """Return what of a frame (C, Y, X) is there; `indexes` are its channels' places among all 12."""
    missing: npt.NDArray[np.bool_] = np.isnan(frame)
    present = present_of(missing)
    return There(missing, present, tuple(i for i, p in zip(indexes, present.tolist(), strict=True) if p))


def present_of(missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell from the (…, C, Y, X) missing pixels which (…, C) images are there."""
    return np.logical_not(missing.all((-2, -1)))


def stable_of(means: Float, missing: npt.NDArray[np.bool_], index: int, stabiliser: Stabiliser) -> Float:
    """Return the image (Y, X) of a channel stabilised, and something wherever its pixels are missing.

    One of AIA is continued there. What is not known of a field is likeliest 0, as it is off the disk.
    """
    image: Float = stabiliser.subset([index]).forward(np.where(missing, np.float32(0), means)[None])[0]
    return filled(image, missing) if CHANNELS[index].instrument == "AIA" else image


def stable_frame(means: Float, indexes: Sequence[int], stabiliser: Stabiliser) -> Float:
    """Return the images (n, Y, X) of some channels as `stable_of` has each; NaN is what is missing."""
    images = zip(means, indexes, strict=True)
    return np.stack([stable_of(image, np.isnan(image), index, stabiliser) for image, index in images])


def to_mean(indexes: Sequence[int], scale: Scale) -> Float | None:
    """Return the (C, 1, 1) factor from a scale to means, or None if it is 1 throughout."""
    if Scale.of(scale) is Scale.MEAN:
        return None
    return np.array([1 / summed(NAMES[i], scale) for i in indexes], np.float32)[:, None, None]


def indexes_of(channels: str | Sequence[str]) -> list[int]:
    """Return the places of channels among all 12; gap maps rely on their order.

    Raises
    ------
    InputError
        If one is unknown, or they are not once each in canonical order.
    """
    names = listed(channels)
    if names != canonical(names):
        raise InputError(f"channels must be once each in the order {' '.join(NAMES)}, not {' '.join(names)}")
    return [NAMES.index(name) for name in names]
