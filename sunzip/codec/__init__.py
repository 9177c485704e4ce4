"""The whole chain from pixels to bytes and back: the one module that knows every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sunzip.channels import CHANNELS, NAMES, channel
from sunzip.codec.family import Family, Float, Latents
from sunzip.codec.hyperprior import HyperpriorFamily
from sunzip.codec.sigma_vae import SigmaVaeFamily
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, UnsupportedError
from sunzip.frame import Block, pack_gaps, unpack_gaps
from sunzip.weights import Model, load

_FAMILIES: dict[str, Callable[[Model], Family]] = {
    "hyperprior": HyperpriorFamily,
    "sigma-vae": SigmaVaeFamily,
}

#: Pixels of one channel that go through a network at a time: 4 frames of 512², 64 of 128².
_BATCH_PIXELS = 1 << 20


class Codec:
    """Codes frames with one model at one quality.

    Parameters
    ----------
    model
        The model to use.
    quality
        0 (smallest) to 100 (finest); None is the model's own default. Only encoding looks at it.

    Raises
    ------
    DamagedError
        If the model's files do not make a model.
    UnsupportedError
        If its family is unknown.
    InputError
        If the quality is not between 0 and 100.

    Examples
    --------
    >>> import numpy as np, sunzip.weights
    >>> codec = Codec(sunzip.weights.load())
    >>> frames = np.full((2, 1, 32, 32), 100, np.float32)
    >>> blocks = codec.encode(frames, ["171A"])
    >>> codec.decode(blocks, ["171A"], (32, 32)).shape
    (2, 1, 32, 32)
    """

    def __init__(self, model: Model, quality: int | None = None) -> None:
        try:
            family = _FAMILIES[model.family]
        except KeyError:
            raise UnsupportedError(
                f"model {model.name} is of the family {model.family!r}, unknown to this sunzip; update sunzip"
            ) from None
        self.model = model
        self.family = family(model)
        self.quality = self.family.default_quality if quality is None else quality
        if not 0 <= self.quality <= 100:
            raise InputError(f"quality {quality} is not between 0 and 100")
        self._id = bytes.fromhex(model.sha256)[:4]

    def encode(
        self, data: Float, channels: Sequence[str], scale: Scale = Scale.MEAN, *, frames_per_block: int = 1
    ) -> list[bytes]:
        """Code frames.

        Parameters
        ----------
        data
            (T, C, Y, X) float32 in DN/s or G; NaN where there is no measurement. A channel of a frame that is
            NaN throughout is coded as absent.
        channels
            Names of the C channels, in canonical order.
        scale
            Of the AIA pixels.
        frames_per_block
            Frames that one block holds; the last block is filled up with empty frames.

        Returns
        -------
        ⌈T / frames_per_block⌉ blocks.

        Raises
        ------
        InputError
            If the model cannot code images of this size, or pixels are infinite.
        """
        frames, _, height, width = data.shape
        self.family.check_size(height, width)
        indexes = [channel(name).index for name in channels]
        missing: npt.NDArray[np.bool_] = np.isnan(data)
        present = _present(missing)
        masks = [int(sum(1 << i for i, p in zip(indexes, row, strict=True) if p)) for row in present]
        payloads, gaps = [], []
        coded = iter(self._analyse(data, missing, present, indexes, scale))
        for t in range(frames):
            holes = missing[t, present[t]]
            gaps.append(pack_gaps(holes) if holes.any() else b"")
            payloads.append(self.family.encode(next(coded)) if masks[t] else b"")
        blocks = []
        for begin in range(0, frames, frames_per_block):
            rows = slice(begin, begin + frames_per_block)
            fill = frames_per_block - len(masks[rows])
            block = Block(
                self._id,
                (height, width),
                self.quality,
                (*masks[rows], *[0] * fill),
                (*payloads[rows], *[b""] * fill),
                (*gaps[rows], *[b""] * fill),
            )
            blocks.append(block.pack())
        return blocks

    def _analyse(
        self,
        data: Float,
        missing: npt.NDArray[np.bool_],
        present: npt.NDArray[np.bool_],
        indexes: Sequence[int],
        scale: Scale,
    ) -> Iterator[Latents]:
        """Yield the latents of the frames that have any channel."""
        stabiliser = self.family.stabiliser.subset(indexes)
        factor = _to_mean(indexes, scale)
        for rows in _batches(np.flatnonzero(present.any(1)), data.shape[2:]):
            physical = np.where(missing[rows], np.float32(0), data[rows])
            if not np.isfinite(physical).all():
                raise InputError("pixels are infinite; replace them by NaN to have them kept as missing")
            if factor is not None:
                physical *= factor
            images = np.zeros((len(rows), len(NAMES), *data.shape[2:]), np.float32)
            images[:, indexes] = stabiliser.forward(physical)
            shown = np.zeros((len(rows), len(NAMES)), np.float32)
            shown[:, indexes] = present[rows]
            yield from self.family.analyse(images, shown, self.quality)

    def unquantised(self, data: Float, channels: Sequence[str], scale: Scale = Scale.MEAN) -> Float:
        """Return (T, C, Y, X) float32 as decoded from latents that were never rounded."""
        indexes = [channel(name).index for name in channels]
        missing: npt.NDArray[np.bool_] = np.isnan(data)
        present = _present(missing)
        latents = {
            int(t): self.family.unquantised(found, self.quality)
            for t, found in zip(
                np.flatnonzero(present.any(1)),
                self._analyse(data, missing, present, indexes, scale),
                strict=True,
            )
        }
        out = self._synthesise(latents, present, indexes, data.shape, scale)
        out[missing] = np.nan
        return out

    def decode(
        self,
        blocks: Sequence[bytes],
        channels: Sequence[str],
        shape: tuple[int, int],
        scale: Scale = Scale.MEAN,
        *,
        frames: Sequence[int] | None = None,
    ) -> Float:
        """Decode blocks.

        Parameters
        ----------
        blocks
            What `encode` returned, one or many.
        channels
            The channels wanted, in canonical order; one that a frame lacks is NaN.
        shape
            (Y, X) that the blocks must have.
        scale
            Of the AIA pixels wanted.
        frames
            Which of all the blocks' frames are wanted, in increasing order; None is all. Only they go through
            the network.

        Returns
        -------
        (T, C, Y, X) float32, the same in every call on one machine.

        Raises
        ------
        DamagedError
            If a block is damaged, has another shape or was coded with another model.
        """
        indexes = [channel(name).index for name in channels]
        entries = self._entries(blocks, shape)
        if frames is not None:
            entries = [entries[i] for i in frames]
        masks = np.zeros((len(entries), len(NAMES)), bool)
        for t, (_, mask, _, _) in enumerate(entries):
            masks[t] = [mask >> i & 1 for i in range(len(NAMES))]
        latents = {}
        for t, (quality, mask, payload, _) in enumerate(entries):
            if mask and masks[t, indexes].any():
                latents[t] = self.family.decode(payload, *shape, quality)
        out = self._synthesise(
            latents, masks[:, indexes], indexes, (len(entries), len(indexes), *shape), scale, masks
        )
        for t, (_, _, _, gap) in enumerate(entries):
            if gap:
                has = np.flatnonzero(masks[t])
                holes = unpack_gaps(gap, len(has), *shape)
                for hole, index in zip(holes, has, strict=True):
                    if index in indexes:
                        out[t, indexes.index(int(index))][hole] = np.nan
        return out

    def _entries(
        self, blocks: Sequence[bytes], shape: tuple[int, int]
    ) -> list[tuple[int, int, bytes, bytes]]:
        entries = []
        for data in blocks:
            block = Block.unpack(data)
            if block.shape != shape:
                raise DamagedError(f"a block holds images of {block.shape}, the archive says {shape}")
            if block.model != self._id:
                raise DamagedError(
                    f"a block was coded with model {block.model.hex()}…, the archive names {self._id.hex()}…"
                )
            entries += [
                (block.quality, *row) for row in zip(block.masks, block.payloads, block.gaps, strict=True)
            ]
        return entries

    def _synthesise(
        self,
        latents: dict[int, Float],
        present: npt.NDArray[np.bool_],
        indexes: Sequence[int],
        shape: tuple[int, ...],
        scale: Scale,
        masks: npt.NDArray[np.bool_] | None = None,
    ) -> Float:
        """Turn latents by frame into (T, C, Y, X) physical pixels; NaN where no image is present."""
        out = np.full(shape, np.nan, np.float32)
        stabiliser = self.family.stabiliser.subset(indexes)
        factor = _to_mean(indexes, scale)
        if masks is None:
            masks = np.zeros((shape[0], len(NAMES)), bool)
            masks[:, indexes] = present
        for rows in _batches(np.array(sorted(latents), np.intp), shape[2:]):
            stack = np.stack([latents[int(t)] for t in rows])
            images = self.family.synthesise(stack, masks[rows].astype(np.float32), *shape[2:])
            physical = stabiliser.inverse(images[:, indexes])
            if factor is not None:
                physical /= factor
            out[rows] = np.where(present[rows][:, :, None, None], physical, np.float32(np.nan))
        return out

    def latents(self, blocks: Sequence[bytes], shape: tuple[int, int]) -> Float:
        """Entropy-decode the latents alone: (T, …) float32, NaN for empty frames; torch is not loaded.

        Raises
        ------
        DamagedError
            As `decode`.
        """
        entries = self._entries(blocks, shape)
        out = np.full((len(entries), *self.family.latent_shape(*shape)), np.nan, np.float32)
        for t, (quality, mask, payload, _) in enumerate(entries):
            if mask:
                out[t] = self.family.decode(payload, *shape, quality)
        return out


@lru_cache(maxsize=4)
def codec_for(sha256: str, quality: int | None = None) -> Codec:
    """Return the process-wide codec of a model, so that its network is loaded once.

    Raises
    ------
    ModelNotFoundError
        If no such model is on this machine.
    """
    return Codec(load(sha256), quality)


def _present(missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell from the (T, C, Y, X) missing pixels which (T, C) images are there."""
    return np.logical_not(missing.all((2, 3)))


def _to_mean(indexes: Sequence[int], scale: Scale) -> Float | None:
    """Return the (C, 1, 1) factor from a scale to means, or None if it is 1 throughout."""
    if scale is Scale.MEAN:
        return None
    aia = [CHANNELS[i].instrument == "AIA" for i in indexes]
    return np.where(aia, np.float32(0.25), np.float32(1))[:, None, None].astype(np.float32)


def _batches(rows: npt.NDArray[np.intp], shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.intp]]:
    size = max(1, _BATCH_PIXELS // (shape[0] * shape[1]))
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]
