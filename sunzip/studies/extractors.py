"""What forecasts look at: latents straight from an archive, and what rivals make of its decoded images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sunzip.channels import channel
from sunzip.codec.lanes import alone, side_by_side
from sunzip.cube import summed
from sunzip.errors import InputError, needing
from sunzip.features import pooled
from sunzip.files import read_within
from sunzip.normalize import Stabiliser
from sunzip.sun import Sun

if TYPE_CHECKING:
    from sunzip.nn.resnet import ResNet18

Float = npt.NDArray[np.float32]
Counted = Callable[[int], None]

#: The channel that the paper's ResNet looks at.
RESNET_CHANNEL = "211A"

#: Latent maps are averaged over so many fields a side where nothing else is asked for.
POOL = 4

# Numbers of latents and pixels that are held at a time, and of features in all: 1 GB.
_STRETCH, _MAX_NUMBERS = 1 << 22, 1 << 28

# Images are averaged over so many fields a side before principal components are taken of them.
_FIELDS = 32

# ImageNet's colours, which torchvision's weights expect, at the size that they were trained with.
_MEAN, _SPREAD, _SIDE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
# DN/s of 211 Å that are white: a bright active region.
_WHITE = 3000.0
_MAX_WEIGHTS = 1 << 28


@dataclass(frozen=True, slots=True)
class Days:
    """The frames that stand for days: of each day the first one that has all channels of the archive.

    Attributes
    ----------
    frames
        (N,) their numbers in the archive.
    time
        (N,) datetime64[ms]: when the last of their images was taken, or their nominal time if that is later.
    known
        (N,) datetime64[ms]: the same of the last frame that they may be coded given.
    """

    frames: npt.NDArray[np.intp]
    time: npt.NDArray[np.datetime64]
    known: npt.NDArray[np.datetime64]

    @classmethod
    def of(cls, sun: Sun) -> Days:
        """Find them.

        Raises
        ------
        InputError
            If no frame has all channels.
        """
        whole = np.flatnonzero(sun.archive.valid.all(1))
        if not whole.size:
            raise InputError(
                f"{sun.archive.path}: no frame has all of its channels; there is nothing to learn from"
            )
        # A frame's nominal time may be that of its first image, shortly before midnight, or of a coarse grid:
        # what an image shows must not count as known before it was taken.
        time = np.fmax(sun.time, np.fmax.reduce(sun.archive.t_obs, axis=1))
        _, first = np.unique(time[whole].astype("M8[D]"), return_index=True)
        frames = whole[first]
        last = np.minimum((frames // sun.together + 1) * sun.together, len(sun)) - 1
        return cls(frames, time[frames], np.maximum.accumulate(time)[last])

    def take(self, which: npt.NDArray[np.intp]) -> Days:
        """Return some of the days, by number."""
        return Days(self.frames[which], self.time[which], self.known[which])

    @property
    def date(self) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[D], ascending, each once."""
        return self.time.astype("M8[D]")


def latent_features(sun: Sun, days: Days, pool: int | None, counted: Counted) -> Float:
    """Return (N, F) latents, maps averaged over `pool` × `pool` fields; nothing is decoded to pixels.

    Raises
    ------
    InputError
        If they cannot be pooled so, or are too many to be held.
    """
    whole = sun.latents.shape[1:]
    width = int(np.prod(whole)) if pool is None else pooled(np.zeros((1, *whole), np.float32), pool).size
    if width * len(days.frames) > _MAX_NUMBERS:
        raise InputError(
            f"{sun.archive.path}: {width:,} latents on each of {len(days.frames):,} days are too many; "
            "average them (--pool)"
        )
    out = np.empty((len(days.frames), width), np.float32)
    step = max(1, _STRETCH // int(np.prod(whole)))
    for begin in range(0, len(out), step):
        found = sun.latents.take(days.frames[begin : begin + step].tolist())
        found = found if pool is None else pooled(found, pool)
        out[begin : begin + step] = found.reshape(len(found), -1)
        counted(len(found))
    return out


@dataclass(frozen=True, slots=True)
class Pictures:
    """What rivals see of the decoded images.

    Attributes
    ----------
    means
        (N, C): mean of each channel, in DN/s and G; of a magnetic channel that of its strength.
    fields
        (N, C·n·n): means over fields of images whose noise is the same everywhere.
    resnet
        (N, 512) of 211 Å; None without weights.
    """

    means: Float
    fields: Float
    resnet: Float | None


def picture_features(sun: Sun, days: Days, network: ResNet18 | None, counted: Counted) -> Pictures:
    """Decode the images of some days, and take from them what rivals of the latents look at.

    With a network, the archive must hold `RESNET_CHANNEL`.
    """
    stabiliser = Stabiliser.for_channels(sun.channels)
    magnetic = np.array([channel(n).instrument == "HMI" for n in sun.channels])
    side = min(_FIELDS, *sun.archive.shape)
    shape = len(days.frames), len(sun.channels)
    means = np.empty(shape, np.float32)
    fields = np.empty((shape[0], shape[1] * side**2), np.float32)
    deep = None if network is None else np.empty((shape[0], 512), np.float32)
    for i, frame in enumerate(decoded(sun, days.frames.tolist(), sun.channels)):
        images = np.nan_to_num(frame)
        values = np.where(magnetic[:, None, None], np.abs(images), images)
        means[i] = values.mean((1, 2), dtype=np.float64)
        fields[i] = pooled(stabiliser.forward(images)[None], side).ravel()
        if network is not None and deep is not None:
            (deep[i],) = side_by_side(_seen_by(network), [images[sun.channels.index(RESNET_CHANNEL)]])
        counted(1)
    return Pictures(means, fields, deep)


def decoded(sun: Sun, frames: Sequence[int], channels: Sequence[str]) -> Iterator[Float]:
    """Yield some frames of an archive, by rising numbers: (C, Y, X) in DN/s (2×2 means) and G."""
    step = max(1, _STRETCH // int(np.prod((len(channels), *sun.archive.shape))))
    # Sums of 2×2 pixels are four times their means; fields are means.
    unit = np.array([summed(name, sun.scale) for name in channels])
    for some in sun.stretches(frames, step):
        for frame in sun.take(some, channels):
            yield frame / unit[:, None, None].astype(np.float32)


def _seen_by(network: ResNet18) -> Callable[[Float], Float]:
    def see(image: Float) -> Float:
        import torch
        from torch.nn.functional import interpolate

        alone()
        grey = np.log1p(np.clip(image, 0, _WHITE)) / np.float32(np.log1p(_WHITE))
        x = interpolate(torch.from_numpy(grey)[None, None], (_SIDE, _SIDE), mode="bilinear", antialias=True)
        mean, spread = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (_MEAN, _SPREAD))
        out: Float = network((x - mean) / spread)[0].numpy()
        return out

    return see


def load_resnet(path: str | os.PathLike[str]) -> ResNet18:
    """Read the weights of a ResNet-18, as torchvision names them, from a safetensors file.

    Raises
    ------
    InputError
        If the file is none, or holds other weights; if PyTorch is not installed.
    """
    from safetensors import SafetensorError

    with needing("torch", "a ResNet-18 needs"):
        from safetensors.torch import load

        from sunzip.nn.resnet import with_weights

    name = os.fspath(path)
    data = read_within(name, _MAX_WEIGHTS, "the weights of a ResNet-18 have 45 MB")
    try:
        return with_weights(load(data))
    except SafetensorError:
        raise InputError(
            f"{name}: is no safetensors file; docs/how-to/forecast.md says how to write torchvision's "
            "weights as one"
        ) from None
    except ValueError as error:
        raise InputError(f"{name}: holds no weights of a ResNet-18: {error}") from None
