"""The archive in a training loop: a torch Dataset of frames or latents, decoded in batches and in workers."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel, listed
from sunzip.display import Shown, span
from sunzip.errors import InputError, needing
from sunzip.normalize import Stabiliser
from sunzip.sun import open
from sunzip.times import When
from sunzip.weights import Model

with needing("torch", "sunzip.torch needs"):
    import torch
    from torch.utils.data import Dataset, get_worker_info


class LatDataset(Shown, Dataset[torch.Tensor]):
    """Frames of an archive, or their latents, by number: what `torch.utils.data.DataLoader` takes.

    An item is read from one block and decoded by one run of the network; the items of a batch are decoded
    together. Datasets are small, may be forked and pickled, and share one network in each process.

    Parameters
    ----------
    path
        The archive; a path or fsspec URL.
    channels
        One name or several, whose order is that of the items; None is all that the archive holds.
    latents
        Give the dequantised latents instead of pixels: no images are made, and they are the same numbers on
        every machine.
    normalised
        Give pixels as the model has them, instead of in DN/s and G: stabilised (`sunzip.normalize`) and
        divided by the model's spread of each channel. That is 1 in wavelet models, and pixels are in units of
        noise, up to hundreds; in others they are about 1 in size. `stabiliser` leads back.
    fill
        What stands where there is no measurement.
    transform
        Called with each item; what it returns takes its place. Workers that are spawned need one that can be
        pickled, thus no lambda.
    start, stop
        Frame numbers or times; start included, stop not.
    device
        Where frames are decoded and items are. Workers have the CPU only.
    model
        What decodes the archive, if it is neither embedded nor installed.
    anon
        Ask S3 without credentials.

    Attributes
    ----------
    channels
        Names along the first axis of an item of pixels.
    time
        (N,) datetime64[ms], UTC: the nominal time of each item.

    Raises
    ------
    InputError
        If the archive lacks a channel or any frame from `start` to `stop`, options contradict each other or
        there is no such device.
    InputError, DamagedError, UnsupportedError, ModelNotFoundError
        If the archive or its model cannot be used.

    Examples
    --------
    >>> frames = LatDataset("sun.lat", ["171A", "193A"], normalised=True, fill=0)  # doctest: +SKIP
    >>> loader = torch.utils.data.DataLoader(frames, 8, shuffle=True, num_workers=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        channels: str | Iterable[str] | None = None,
        *,
        latents: bool = False,
        normalised: bool = False,
        fill: float = math.nan,
        transform: Callable[[torch.Tensor], Any] | None = None,
        start: int | When | None = None,
        stop: int | When | None = None,
        device: str | torch.device = "cpu",
        model: str | Path | Model | None = None,
        anon: bool = False,
    ) -> None:
        if latents and (normalised or channels is not None):
            raise InputError("latents are of all channels together and have no units: name none of them")
        if not isinstance(fill, int | float | np.integer | np.floating):
            raise InputError(f"fill must be a number, not {fill!r}")
        self.device = _device(device)
        self.latents = latents
        self.normalised = normalised
        self.fill = float(fill)
        self.transform = transform
        self._sun = sun = open(path, model=model, anon=anon)
        # So that a model that is not at hand is told here, and not by workers.
        self._stabiliser = sun.codec.family.stabiliser
        self.channels = sun.channels if channels is None else tuple(channel(n).name for n in listed(channels))
        self._names = sun.held(self.channels)
        self._order = [self._names.index(name) for name in self.channels]
        frames = sun.frames_from(start, stop)
        self._numbers = range(frames.start, frames.stop)
        self.time = sun.time[frames]

    def __repr__(self) -> str:
        what = "latents" if self.latents else " ".join(self.channels)
        times = f"{self.time[0]} … {self.time[-1]}"
        return f"<LatDataset {self._sun.archive.path}: {len(self)} frames {times}, {what}>"

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`."""
        return {
            "file": self._sun.archive.path,
            "frames": len(self),
            "times": span(*self.time[[0, -1]]),
            "items": "latents" if self.latents else " ".join(self.channels),
        }

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        """Return one item: (C, Y, X) float32, or latents of the model's shape."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return items decoded together, as `DataLoader` asks for a batch."""
        # `range` knows negative numbers and raises the IndexError that ends a loop.
        frames = [self._numbers[operator.index(i)] for i in indices]
        return [self._item(frame) for frame in self._decode(frames)]

    def __iter__(self) -> Iterator[Any]:
        """Return the items one after the other: what frames of a block have in common is decoded once."""
        for frames in self._sun.stretches(self._numbers, 1):
            yield from map(self._item, self._decode(frames))

    def _item(self, frame: torch.Tensor) -> Any:
        # A clone, since who keeps one item is not to keep those that were decoded with it.
        item = frame.clone()
        return item if self.transform is None else self.transform(item)

    def _decode(self, frames: Sequence[int]) -> torch.Tensor:
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise InputError(
                f"workers of a DataLoader cannot decode on {self.device}: take num_workers=0, or device='cpu'"
            )
        if self.latents:
            found = torch.from_numpy(self._sun.latents.take(frames)).to(self.device)
        else:
            found = self._sun.tensor(frames, self._names, device=self.device, normalised=self.normalised)
            found = found[:, self._order]
        if not math.isnan(self.fill):
            found = torch.nan_to_num(found, nan=self.fill)
        return found

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(N, C) bool: whether an item has the image of each of `channels`."""
        pick = [self._sun.channels.index(name) for name in self.channels]
        rows = slice(self._numbers.start, self._numbers.stop)
        valid: npt.NDArray[np.bool_] = self._sun.archive.valid[rows][:, pick]
        return valid

    @property
    def stabiliser(self) -> Stabiliser:
        """What turns pixels of `channels` (2×2 means) into normalised ones, and back by its `inverse`."""
        return self._stabiliser.subset([NAMES.index(name) for name in self.channels])


def _device(wanted: str | torch.device) -> torch.device:
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InputError(f"device {str(wanted)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
