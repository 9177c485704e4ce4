"""The whole chain from pixels to bytes and back: the one module that knows every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from functools import lru_cache, partial
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.arguments import whole
from sunzip.bounds import Bounds, told
from sunzip.channels import BEYOND, CHANNELS, NAMES, canonical, listed
from sunzip.codec.family import Family, Float, Known, Latents, Reference, Written
from sunzip.codec.hyperprior import HyperpriorFamily
from sunzip.codec.lanes import as_ready, side_by_side
from sunzip.codec.lanes import count as lanes_here
from sunzip.codec.order import Kept, Step, around, likeness, needed, order
from sunzip.codec.processes import elsewhere
from sunzip.codec.sigma_vae import SigmaVaeFamily
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Scale, summed
from sunzip.display import Shown
from sunzip.errors import BoundNotMetError, DamagedError, InputError, UnsupportedError, needing
from sunzip.frame import (
    EMPTY,
    MAX_FRAMES,
    Block,
    Entry,
    is_raw,
    pack_raw,
    pack_residuals,
    unpack_raw,
    unpack_residuals,
)
from sunzip.gaps import filled, pack_gaps, unpack_gaps
from sunzip.recent import Recent
from sunzip.residual import correct, corrected
from sunzip.weights import Model, load, register

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_T = TypeVar("_T")


class _Entry(NamedTuple):
    """A frame that is wanted: its block, where in it, and the block's bytes."""

    block: Block
    place: int
    data: bytes

    @property
    def mask(self) -> int:
        return self.block.masks[self.place]

    @property
    def gap(self) -> bytes:
        return self.block.gaps[self.place]

    @property
    def payload(self) -> bytes:
        return self.block.payloads[self.place]

    @property
    def residual(self) -> bytes:
        return self.block.residuals[self.place]


class _Plan(NamedTuple):
    """How frames of a block are coded.

    Attributes
    ----------
    rows
        Numbers of those that have some channel.
    like
        How alike they are.
    steps
        The order in which they are coded; places are those in `rows`.
    left
        Those on which others build, decoded.
    """

    rows: list[int]
    like: float
    steps: list[Step]
    left: Kept[Reference]


class _Job(NamedTuple):
    """A frame to be decoded, for others or because it is wanted.

    Attributes
    ----------
    run
        Returns its latents, or its pixels, with each number under which they are wanted.
    waits
        Numbers of the jobs that come before it.
    """

    run: Callable[[], list[tuple[int, Float]]]
    waits: Sequence[int] = ()


#: Makes pixels of a decoded frame: see `Codec._pixels`.
_Painter = Callable[[Sequence[int], Float, Reference | None, bytes], Float]


#: Frames of films on which others build, decoded lately for some of these: by codec, block and number. So
#: many bytes are those of 20 frames of 12 channels of 512², or 5 of 1024²; of one channel of 4096², 3.
_lately: Recent[tuple[object, bytes, int], Reference] = Recent(256 << 20)

#: What stands for latents where what others have of a frame is enough to show it.
_NO_LATENTS = np.zeros(0, np.float32)


_FamilyClass = type[HyperpriorFamily] | type[SigmaVaeFamily] | type[WaveletFamily]

_FAMILIES: dict[str, _FamilyClass] = {
    "hyperprior": HyperpriorFamily,
    "sigma-vae": SigmaVaeFamily,
    "wavelet": WaveletFamily,
}


#: Pixels of a channel that `decode_tensor` sends through the network at once. On a CPU larger batches only
#: leave the caches; an accelerator wants to be filled.
_PIXELS_CPU, _PIXELS_ELSEWHERE = 1 << 17, 1 << 22

#: The quality where errors are bounded and none is named: from there on, for bounds of about the noise, what
#: the model takes more and what residuals take less are the same.
BOUNDED_QUALITY = 70


class Codec(Shown):
    """Codes frames with one model at one quality; may be shared by threads.

    Frames go through the networks one at a time, each on one core, several side by side (`lanes`). Libraries
    sum in another order for another batch or number of threads, which moves a latent over a rounding edge now
    and then: so a frame has the same bytes and the same pixels whatever it is coded or read together with,
    and on however many cores.

    Parameters
    ----------
    model
        The model to use.
    quality
        0 (smallest) to 100 (finest); None is the model's own default, or `BOUNDED_QUALITY` where there are
        bounds. Only encoding looks at it.
    bounds
        How far decoded pixels may be from the original, by channel; residuals then bring those nearer that
        are not. Only encoding looks at it.

    Raises
    ------
    DamagedError
        If the model's files do not make a model.
    UnsupportedError
        If its family is unknown.
    InputError
        If the quality is no whole number from 0 to 100, or there are bounds and the model does not give the
        same pixels everywhere.

    Examples
    --------
    >>> import numpy as np, sunzip.weights
    >>> codec = Codec(sunzip.weights.load())
    >>> frames = np.full((2, 1, 32, 32), 100, np.float32)
    >>> blocks = codec.encode(frames, ["171A"])
    >>> codec.decode(blocks, ["171A"], (32, 32)).shape
    (2, 1, 32, 32)
    """

    def __init__(self, model: Model, quality: int | None = None, bounds: Bounds | None = None) -> None:
        self.model = model
        self.bounds = promised(model, bounds)
        self.family: Family = _family_of(model)(model)
        self.quality = self._quality(quality)
        self._id = bytes.fromhex(model.sha256)[:4]
        self._token = object()

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self._told().items() if value is not None)
        return f"<Codec {told}>"

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`."""
        return {
            "model": f"{self.model.name} {self.model.sha256[:12]}",
            "quality": self.shown_quality,
            "max error": told(self.bounds) or None,
            "pixels": "the same on every machine" if self.family.exact or self.bounds else "of this machine",
        }

    def __reduce__(self) -> tuple[Callable[..., Codec], tuple[Model, int, Bounds]]:
        # Not with its network, which a process loads but once. Who changes that in memory must do all work
        # `here`, or a lane's process would do it with the network as it was.
        return _again, (self.model, self.quality, self.bounds)

    def __copy__(self) -> Codec:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def _quality(self, wanted: int | None) -> int:
        if wanted is None:
            return BOUNDED_QUALITY if self.bounds else self.family.default_quality
        return whole(wanted, "quality", 0, 100)

    @property
    def shown_quality(self) -> int | None:
        """The quality, for people; None if it is that of a model that has none."""
        return self.quality if self.family.has_qualities else None

    def at(self, quality: int | None) -> Codec:
        """Return a codec of another quality that shares this one's network and bounds.

        Raises
        ------
        InputError
            If the quality is no whole number from 0 to 100.
        """
        other = copy(self)
        other.quality = self._quality(quality)
        return other

    def within(self, bounds: Bounds | None, quality: int | None = None) -> Codec:
        """Return a codec of other bounds that shares this one's network.

        Parameters
        ----------
        bounds, quality
            As for a new one.

        Raises
        ------
        InputError
            As for a new one.
        """
        other = copy(self)
        other.bounds = promised(self.model, bounds)
        return other.at(quality)

    def encode(
        self,
        data: Float,
        channels: Sequence[str],
        scale: Scale = Scale.MEAN,
        *,
        frames_per_block: int = 1,
        after: Block | None = None,
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
        after
            A block whose frames come before the first of these in the block that they are coded for.

        Returns
        -------
        ⌈T / frames_per_block⌉ blocks. A frame whose symbols take more bytes than its pixels do, compressed
        with zstd, is stored as these pixels and comes back as it was.

        Raises
        ------
        InputError
            If data or channels are not as said, the model cannot code images of this size, or pixels are
            infinite.
        BoundNotMetError
            If a pixel would not be within its bound: a defect of sunzip.
        """
        return self._encode(data, channels, scale, frames_per_block, after, None)[0]

    def encode_measured(
        self,
        data: Float,
        channels: Sequence[str],
        scale: Scale = Scale.MEAN,
        *,
        frames_per_block: int = 1,
        after: Block | None = None,
        measure: Callable[[Float, Float], _T],
    ) -> tuple[list[bytes], list[_T]]:
        """Code frames, and return beside the blocks what is measured of each frame and of what it decodes to.

        Where the encoder follows the decoder step by step, as the wavelet family's does, nothing is decoded
        for it: its latents are those of the decoder by construction. No decoded frame is held for longer than
        it takes to measure it.

        Parameters
        ----------
        measure
            Function of a frame and of what `decode` makes of it, both (C, Y, X) float32; called in lanes, or
            in their processes if it can be pickled.

        Raises
        ------
        InputError, BoundNotMetError
            As `encode`.
        """
        return self._encode(data, channels, scale, frames_per_block, after, measure)

    def _encode(
        self,
        data: Float,
        channels: Sequence[str],
        scale: Scale,
        frames_per_block: int,
        after: Block | None,
        measure: Callable[[Float, Float], _T] | None,
    ) -> tuple[list[bytes], list[_T]]:
        """See `encode_measured`; without `measure` nothing is measured."""
        indexes = _indexes(channels)
        self._check(data, indexes)
        frames, _, height, width = data.shape
        frames_per_block = whole(frames_per_block, "frames_per_block", 1, MAX_FRAMES)

        # Frames that build on others wait for them.
        chain = frames_per_block if self.family.sequential else 1
        measured: dict[int, _T] = {}

        def planned(begin: int) -> _Plan:
            present = [_present(np.isnan(frame)) for frame in data[begin : begin + chain]]
            rows = [begin + row for row, shown in enumerate(present) if shown.any()]
            first = None if after is None or begin else self._last(after)
            like = likeness(rows, lambda three: elsewhere(self._likeness, data[three], indexes, scale))
            steps = list(order(len(rows), first is not None, like))
            left: Kept[Reference] = Kept([place for step in steps for place in step.builds_on])
            if first is not None:
                left.put(-1, first)
            return _Plan(rows, like, steps, left)

        def code(plan: _Plan, step: Step) -> Entry:
            t = plan.rows[step.place]
            before, ahead = (plan.left.take(place) for place in step.builds_on)
            own = self.family.own_quality(self.quality, step.depth, plan.like)
            known = Known((), (height, width), before, ahead, step.back, step.ahead)
            steady = None
            if step.depth <= 1 and self.family.leans(plan.like):
                near = [(data[plan.rows[n]], n - step.place) for n in around(step.place, len(plan.rows))]
                steady = self._steadied(data[t], near, indexes, scale, known, plan.like)
            keep = plan.left.wanted(step.place)
            args = data[t], indexes, scale, own, known, steady, keep, measure
            entry, left, found = elsewhere(self._code, *args, back=keep * _nbytes(known.shape))
            if left is not None:
                plan.left.put(step.place, left)
            if found is not None:
                measured[t] = found
            return entry

        plans = list(side_by_side(planned, range(0, frames, chain)))
        jobs = [(plan, step) for plan in plans for step in plan.steps]
        numbers = {plan.rows[step.place]: n for n, (plan, step) in enumerate(jobs)}
        waits = [
            [numbers[plan.rows[place]] for place in step.builds_on if place is not None and place >= 0]
            for plan, step in jobs
        ]
        coded = as_ready(lambda n: code(*jobs[n]), waits)
        entries = [EMPTY if t not in numbers else coded[numbers[t]] for t in range(frames)]
        blocks = []
        for begin in range(0, frames, frames_per_block):
            rows = entries[begin : begin + frames_per_block]
            parts = zip(*rows, *[EMPTY] * (frames_per_block - len(rows)), strict=True)
            blocks.append(Block(self._id, (height, width), self.quality, *parts).pack())
        if measure is None:
            return blocks, []
        # An empty frame decodes to what it is.
        return blocks, [measured[t] if t in measured else measure(data[t], data[t]) for t in range(frames)]

    def _code(
        self,
        data: Float,
        indexes: Sequence[int],
        scale: Scale,
        own: int,
        known: Known,
        steady: Latents | None,
        keep: bool,
        measure: Callable[[Float, Float], _T] | None,
    ) -> tuple[Entry, Reference | None, _T | None]:
        """Code one frame (C, Y, X) of which some channel is there.

        Parameters
        ----------
        own
            The frame's quality.
        known
            What its decoder will know besides its channels.
        steady
            Its latents, if they are not simply those of its pixels.
        keep
            Whether others build on it.
        measure
            What to measure of it and of what it decodes to, if anything.

        Returns
        -------
        The entry; what those others have of it, if there is any; and what was measured.
        """
        here = _there(data, indexes)
        (missing, shown, has), gaps = here, here.gaps
        mask, gap = sum(1 << i for i in has), b"" if gaps is None else pack_gaps(gaps)
        known = known._replace(channels=has, missing=gaps)
        raw, written, left, moved, pixels = None, Written(b""), None, b"", None
        if BEYOND <= max(np.fmax.reduce(data, None), -np.fmin.reduce(data, None)) < np.inf:
            # Symbols end where no measurement is, and one such pixel spoils those that are about it.
            raw = pack_raw(_means(data, shown, indexes, scale), 2 * data.nbytes)
        if raw is None:
            analysed = steady or self._analyse(data, here, indexes, scale)
            written = self.family.encode(analysed, self.quality, known, own)
            if keep and written.decoded is not None:
                left = self.family.reference(written.decoded, has, known.shape)
            if self.bounds:
                moved, pixels = self._bounded(data, here, indexes, scale, written, left)
            most = len(written.payload) + len(gap) + len(moved)
            raw = pack_raw(_means(data, shown, indexes, scale), most)
        if raw is None:
            entry, decoded = Entry(mask, written.payload, gap, moved), written.decoded
        else:
            entry, decoded, left = Entry(mask, raw, b""), None, None
        if measure is None:
            return entry, left, None
        if raw is not None:
            pixels = _raw_pixels(raw, has, indexes, known.shape, scale)
        elif pixels is None:
            if decoded is None:
                decoded = self.family.decode(written.payload, self.quality, known)
            pixels = self._pixels(has, decoded, left, b"", indexes, known.shape, scale)
        seen = np.full_like(data, np.nan)
        seen[shown] = pixels
        seen[missing] = np.nan
        return entry, left, measure(data, seen)

    def _bounded(
        self,
        data: Float,
        here: _There,
        indexes: Sequence[int],
        scale: Scale,
        written: Written,
        left: Reference | None,
    ) -> tuple[bytes, Float]:
        """Bring a coded frame (C, Y, X) within the bounds; return its residual, and its pixels (n, Y, X).

        `left` is what others have of it, if any builds on it.
        """
        has, shape = here.channels, (data.shape[1], data.shape[2])
        # A family that gives the same pixels everywhere knows them when it has coded a frame.
        assert written.decoded is not None
        means = _means(data, here.present, indexes, scale)
        pixels = self._pixels(has, written.decoded, left, b"", has, shape, Scale.MEAN)
        names = [NAMES[index] for index in has]
        parts, pixels = correct(means, pixels, names, self.bounds, scale)
        pixels = _scaled(pixels, has, scale)
        for image, original, name in zip(pixels, data[here.present], names, strict=True):
            if name in self.bounds and self.bounds[name].outside(original, image, name, scale):
                raise BoundNotMetError(
                    f"pixels of {name} cannot be held to the error that is allowed (max_error, "
                    "--max-error); this is a defect of sunzip, please report it"
                )
        return pack_residuals(parts), pixels

    def _steadied(
        self,
        data: Float,
        near: Sequence[tuple[Float, int]],
        indexes: Sequence[int],
        scale: Scale,
        known: Known,
        likeness: float,
    ) -> Latents:
        """Return the latents of a frame (C, Y, X) on which others build: see `Family.steadied`.

        `near` are those others, and how many frames each is after it.
        """

        def analysed(frame: Float, here: _There) -> tuple[Latents, tuple[int, ...]]:
            return self._analyse(frame, here, indexes, scale), here.channels

        here = _there(data, indexes)
        own, has = analysed(data, here)
        others = ((*analysed(frame, _there(frame, indexes)), apart) for frame, apart in near)
        known = known._replace(channels=has, missing=here.gaps)
        return self.family.steadied(own, others, self.quality, known, likeness)

    def _likeness(self, three: Float, indexes: Sequence[int], scale: Scale) -> float:
        """Return how alike frames of a block are, by three (3, C, Y, X) that follow each other."""
        here = [_there(frame, indexes) for frame in three]
        shared = tuple(i for i in indexes if all(i in there.channels for there in here))
        if not shared:
            return 0.0
        found = [
            self._analyse(frame, there, indexes, scale) for frame, there in zip(three, here, strict=True)
        ]
        return self.family.likeness(found, self.quality, Known(shared, (three.shape[2], three.shape[3])))

    def _last(self, block: Block) -> Reference | None:
        """Return what a frame that follows those of a block builds on."""
        rows = [place for place, mask in enumerate(block.masks) if mask]
        if not self.family.sequential or not rows or is_raw(block.payloads[rows[-1]]):
            return None
        entry = _Entry(block, rows[-1], block.pack())
        *_, [(_, latents)] = [job.run() for job in self._jobs([entry], [0])]
        return self.family.reference(latents, _channels(block.masks[rows[-1]]), block.shape)

    def _analyse(
        self,
        data: Float,
        here: _There,
        indexes: Sequence[int],
        scale: Scale,
    ) -> Latents:
        """Return the latents of one frame, (C, Y, X) of which some channel is there."""
        factor = _to_mean(indexes, scale)
        images = np.zeros((1, len(NAMES), *data.shape[1:]), np.float32)
        # A channel at a time: what comes between takes little memory, that of the one before.
        for c, index in enumerate(indexes):
            physical = np.where(here.missing[c], np.float32(0), data[c])
            if not np.isfinite(physical).all():
                raise InputError("pixels are infinite; replace them by NaN to have them kept as missing")
            if factor is not None:
                physical *= factor[c]
            image = self.family.stabiliser.subset([index]).forward(physical[None])[0]
            # What is not known of a field is likeliest 0, as it is off the disk.
            gaps = CHANNELS[index].instrument == "AIA" and here.present[c] and here.missing[c].any()
            images[0, index] = filled(image, here.missing[c]) if gaps else image
        shown = np.zeros((1, len(NAMES)), np.float32)
        shown[0, indexes] = here.present
        (found,) = self.family.analyse(images, shown, self.quality)
        return found

    def _check(self, data: Float, indexes: Sequence[int]) -> None:
        check_unmasked(data)
        if data.ndim != 4 or data.shape[1] != len(indexes) or data.dtype != np.float32:
            raise InputError(
                f"frames must be float32 of shape (time, {len(indexes)}, y, x), not {data.dtype} {data.shape}"
            )
        self.family.check_size(*data.shape[2:])

    def unquantised(self, data: Float, channels: Sequence[str], scale: Scale = Scale.MEAN) -> Float:
        """Return (T, C, Y, X) float32 as decoded from latents that were never rounded.

        Raises
        ------
        InputError
            As `encode`.
        """
        indexes = _indexes(channels)
        self._check(data, indexes)
        here = [_there(frame, indexes) for frame in data]
        shape = (data.shape[2], data.shape[3])

        def pixels(t: int) -> list[tuple[int, Float]]:
            latents = self.family.unquantised(self._analyse(data[t], here[t], indexes, scale), self.quality)
            return [(t, self._pixels(here[t].channels, latents, None, b"", indexes, shape, scale))]

        jobs = [_Job(partial(pixels, t)) for t, there in enumerate(here) if there.channels]
        present = np.array([there.present for there in here]).reshape(data.shape[:2])
        out = _filled(jobs, present, shape)
        for frame, there in zip(out, here, strict=True):
            frame[there.missing] = np.nan
        return out

    def decode(
        self,
        blocks: Sequence[bytes],
        channels: Sequence[str],
        shape: tuple[int, int],
        scale: Scale = Scale.MEAN,
        *,
        frames: Collection[int] | None = None,
        frames_per_block: int | None = None,
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
            Which of all the blocks' frames are wanted; None is all. Only they go through the network.
        frames_per_block
            How many frames every block must hold; None is any number.

        Returns
        -------
        (T, C, Y, X) float32, the same in every call on one machine. NaN is nothing but a missing measurement:
        where the network gives no finite number, the pixel is 0 or the largest float32.

        Raises
        ------
        InputError
            If a channel is unknown or out of order.
        DamagedError
            If a block is damaged, has another shape or number of frames, or was coded with another model.
        """
        entries = self._entries(blocks, shape, frames, frames_per_block)
        return self._decode(entries, _indexes(channels), shape, scale)

    def _decode(
        self,
        entries: Sequence[_Entry],
        indexes: Sequence[int],
        shape: tuple[int, int],
        scale: Scale,
        normalised: bool = False,
    ) -> Float:
        """See `decode`, and `decode_tensor` for pixels `normalised`."""
        masks = _masks(entries)
        painter = partial(self._pixels, indexes=indexes, shape=shape, scale=scale, normalised=normalised)
        jobs = self._jobs(entries, _coded(entries, masks, indexes), painter=painter)
        out = _filled(jobs, masks[:, indexes], shape)
        for t, places, pixels in self._raw_frames(entries, masks, indexes, shape, scale, normalised):
            out[t, places] = pixels
        for t, c, hole in _holes(entries, masks, indexes, shape):
            out[t, c][hole] = np.nan
        return out

    def decode_tensor(
        self,
        blocks: Sequence[bytes],
        channels: Sequence[str],
        shape: tuple[int, int],
        scale: Scale = Scale.MEAN,
        *,
        frames: Collection[int] | None = None,
        frames_per_block: int | None = None,
        device: str | torch.device = "cpu",
        normalised: bool = False,
    ) -> Tensor:
        """Decode blocks into a torch tensor on a device, several frames in one run of the network.

        The pixels are those of `decode`, of models whose pixels are the same everywhere to the bit. Of others
        they are so but for the order in which libraries sum: on a CPU they agree to 1e-4 of the spread of a
        channel. An accelerator that multiplies in TF32, torch's default for convolutions, has three digits.
        Archives are written and read with `decode`.

        Parameters
        ----------
        blocks, channels, shape, scale, frames, frames_per_block
            As in `decode`.
        device
            Where the network runs and the tensor will be.
        normalised
            Leave the pixels as the model has them: stabilised (`sunzip.normalize`) and divided by its spread
            of each channel, which is 1 in wavelet models; `scale` does not matter then.

        Returns
        -------
        (T, C, Y, X) float32; NaN as in `decode`.

        Raises
        ------
        InputError, DamagedError
            As `decode`; if PyTorch is not installed as well.
        """
        with needing("torch", "tensors need"):
            import torch

        indexes = _indexes(channels)
        entries = self._entries(blocks, shape, frames, frames_per_block)
        place = torch.device(device)
        on_cpu = place.type == "cpu"
        # Bounds hold for the pixels of `decode` alone. Where these are the same everywhere no network makes
        # them, so that on a CPU nothing is gained by several together, and what was decoded lately is lost.
        if (self.family.exact and on_cpu) or any(entry.residual for entry in entries):
            return torch.from_numpy(self._decode(entries, indexes, shape, scale, normalised)).to(place)
        masks = _masks(entries)
        count = len(entries), len(indexes)
        out = torch.full((*count, *shape), torch.nan, dtype=torch.float32, device=place)
        shown = _coded(entries, masks, indexes)
        together = max(1, (_PIXELS_CPU if on_cpu else _PIXELS_ELSEWHERE) // (shape[0] * shape[1]))
        if on_cpu:
            together = min(together, -(-len(shown) // lanes_here()) or 1)

        jobs = self._jobs(entries, shown)
        if not self.family.sequential:
            # Frames that build on no others can go through the network together.
            batches = [jobs[begin : begin + together] for begin in range(0, len(jobs), together)]
            jobs = [_Job(partial(_together, batch)) for batch in batches]

        # An accelerator has memory for one batch, and works on it while lanes entropy-decode the next.
        alone = nullcontext() if on_cpu else Lock()

        def show(job: int) -> None:
            decoded = jobs[job].run()
            if not decoded:
                return
            rows, latents = [t for t, _ in decoded], np.stack([found for _, found in decoded])
            with torch.inference_mode(), alone:
                present = torch.from_numpy(masks[rows]).to(place)
                images = self.family.synthesise_tensor(
                    torch.from_numpy(latents).to(place), present.float(), *shape
                )[:, indexes]
                if not normalised:
                    images = self._physical(images, indexes, scale)
                images = torch.nan_to_num(images)
                out[torch.tensor(rows, device=place)] = torch.where(
                    present[:, indexes, None, None], images, torch.nan
                )

        as_ready(show, [job.waits for job in jobs])
        for t, places, pixels in self._raw_frames(entries, masks, indexes, shape, scale, normalised):
            out[t, places] = torch.from_numpy(pixels).to(place)
        for t, c, hole in _holes(entries, masks, indexes, shape):
            out[t, c][torch.from_numpy(hole).to(place)] = torch.nan
        return out

    def _physical(self, images: Tensor, indexes: Sequence[int], scale: Scale) -> Tensor:
        """Undo the stabilisation of (N, C, Y, X) images, as `Stabiliser.inverse` does, on their device."""
        import torch

        terms = self.family.stabiliser.subset(indexes).inverse_terms()
        gain, root, b = (torch.from_numpy(term).to(images.device) for term in terms)
        physical = (images.abs().mul_(gain).add_(root).square_().sub_(b)).copysign_(images)
        factor = _to_mean(indexes, scale)
        return physical if factor is None else physical / torch.from_numpy(factor).to(images.device)

    def _entries(
        self,
        blocks: Sequence[bytes],
        shape: tuple[int, int],
        frames: Collection[int] | None,
        frames_per_block: int | None,
    ) -> list[_Entry]:
        """Return the wanted frames of the blocks, which must all be what they should be."""
        entries = []
        for data in blocks:
            block = Block.unpack(data)
            if block.shape != shape:
                raise DamagedError(f"a block holds images of {block.shape}, the archive says {shape}")
            if frames_per_block not in (None, len(block.masks)):
                raise DamagedError(
                    f"a block holds {len(block.masks)} frames, the archive says {frames_per_block}"
                )
            if block.quality > 100:
                raise DamagedError(f"a block was coded at quality {block.quality} of 100")
            if block.model != self._id:
                raise DamagedError(
                    f"a block was coded with model {block.model.hex()}…, the archive names {self._id.hex()}…"
                )
            try:
                self.family.check_size(*shape)
            except InputError:
                raise DamagedError(
                    f"a block holds images of {shape}, which no encoder codes with model {self.model.name}"
                ) from None
            entries += [_Entry(block, place, data) for place in range(len(block.masks))]
        return entries if frames is None else [entries[i] for i in frames]

    def _jobs(
        self,
        entries: Sequence[_Entry],
        rows: Iterable[int],
        *,
        painter: _Painter | None = None,
        coarse: bool = False,
    ) -> list[_Job]:
        """Return what decodes some of the entries that are not empty.

        With a `painter` they give pixels, with `coarse` what `Family.latents` does, else latents.
        """
        jobs: list[_Job] = []
        blocks: dict[int, list[int]] = {}
        for t in rows:
            blocks.setdefault(id(entries[t].block), []).append(t)
        for wanted in blocks.values():
            block = entries[wanted[0]].block
            # Frames count those that are not empty.
            places = [place for place, mask in enumerate(block.masks) if mask]
            numbers = {place: number for number, place in enumerate(places)}
            here: dict[int, list[int]] = {}
            for t in wanted:
                here.setdefault(numbers[entries[t].place], []).append(t)
            jobs += self._jobs_of(block, entries[wanted[0]].data, places, here, len(jobs), painter, coarse)
        return jobs

    def _jobs_of(
        self,
        block: Block,
        data: bytes,
        places: Sequence[int],
        wanted: dict[int, list[int]],
        begin: int,
        painter: _Painter | None,
        coarse: bool,
    ) -> Iterator[_Job]:
        """Yield the jobs of one block, the first of which has the number `begin`.

        Parameters
        ----------
        data
            The block's bytes, which tell it from others.
        places
            Of the frames that are not empty.
        wanted
            Those that are wanted, by their number in `places`, and under which numbers.
        """
        links = [self.family.links(block.payloads[place]) for place in places]

        def builds_on(number: int) -> list[int]:
            back, ahead = links[number]
            found = [number - back] * bool(back) + [number + ahead] * bool(ahead)
            return [other for other in found if 0 <= other < len(links)]

        # Who goes through a film frame by frame asks again and again for what others build on.
        held: dict[int, Reference] = {}
        parts = len(wanted) < len(places)
        digest = blake2b(data).digest() if parts else b""
        for number in range(len(places)) if parts else ():
            found = _lately.get((self._token, digest, number))
            if found is not None and (number not in wanted or (painter is not None and not coarse)):
                held[number] = found

        steps = needed(sorted(wanted), lambda number: [] if number in held else builds_on(number))
        todo = [number for number in steps if number in wanted or number not in held]
        jobs = {number: begin + n for n, number in enumerate(todo) if number not in held}
        kept: Kept[Reference] = Kept(
            [other for number in steps if number not in held for other in builds_on(number)]
        )
        for number, reference in held.items():
            kept.put(number, reference)

        def run(number: int) -> list[tuple[int, Float]]:
            payload, mask = block.payloads[places[number]], block.masks[places[number]]
            moved = block.residuals[places[number]]
            if is_raw(payload):
                return []
            those = wanted.get(number, [])
            if number in held:
                assert painter is not None
                pixels = painter(_channels(mask), _NO_LATENTS, held[number], moved)
                return [(t, pixels) for t in those]
            back, ahead = links[number]
            before = kept.take(number - back) if back else None
            after = kept.take(number + ahead) if ahead else None
            known = Known(_channels(mask), block.shape, before, after)
            found: list[tuple[int, Float]] = []
            if coarse and those:
                small = self.family.latents(payload, block.quality, known)
                found = [(t, small) for t in those]
            if not coarse or kept.wanted(number):
                show, keep = bool(those) and not coarse, kept.wanted(number)
                args = payload, block.quality, known, show, keep, painter, moved
                shown, key = None, (self._token, digest, number)
                # Another thread, which reads other frames of the block, may be at what both build on.
                shared = parts and keep and (painter is not None or not show)
                with _lately.making(key) if shared else nullcontext() as left:
                    if left is None:
                        shown, left = elsewhere(self._read, *args, back=(show + keep) * _nbytes(block.shape))
                        if left is not None and parts:
                            _lately.put(key, left, left.pictures.nbytes + left.coarse.nbytes)
                if left is not None:
                    kept.put(number, left)
                    if show and shown is None and painter is not None:
                        shown = painter(known.channels, _NO_LATENTS, left, moved)
                if shown is not None:
                    found = [(t, shown) for t in those]
            return found

        for number in todo:
            below = () if number in held else builds_on(number)
            yield _Job(partial(run, number), [jobs[other] for other in below if other in jobs])

    def _read(
        self,
        payload: bytes,
        quality: int,
        known: Known,
        show: bool,
        keep: bool,
        painter: _Painter | None,
        moved: bytes,
    ) -> tuple[Float | None, Reference | None]:
        """Decode a frame to show it, to keep it for others that build on it, or both.

        It is shown as its latents, or as its pixels, given a painter, `moved` by its residual.
        """
        latents = self.family.decode(payload, quality, known)
        left = self.family.reference(latents, known.channels, known.shape) if keep else None
        if not show:
            return None, left
        return (latents if painter is None else painter(known.channels, latents, left, moved)), left

    def _pixels(
        self,
        has: Sequence[int],
        latents: Float,
        left: Reference | None,
        moved: bytes,
        indexes: Sequence[int],
        shape: tuple[int, int],
        scale: Scale,
        normalised: bool = False,
    ) -> Float:
        """Return the pixels (n, Y, X), of those channels of `indexes` that a frame has, from its latents.

        Others may build on it: what they have of it are its images. `moved` is its residual.
        """
        channels = [i for i in indexes if i in has]
        if left is None:
            images = self.family.show(latents, has, channels, shape)
        else:
            images = left.pictures[left.places(channels), : shape[0], : shape[1]]
        if normalised and not moved:
            return np.nan_to_num(images)
        stabiliser = self.family.stabiliser.subset(channels)
        with np.errstate(over="ignore", invalid="ignore"):
            physical = stabiliser.inverse(images)
            if moved:
                wanted, names = ([NAMES[index] for index in of] for of in (channels, has))
                np.nan_to_num(physical, copy=False)
                physical = corrected(physical, wanted, names, unpack_residuals(moved, len(has)))
            factor = None if normalised else _to_mean(channels, scale)
            if factor is not None:
                physical /= factor
        if not np.isfinite(physical).all():
            np.nan_to_num(physical, copy=False)
        return stabiliser.forward(physical) if normalised else physical

    def _raw_frames(
        self,
        entries: Sequence[_Entry],
        masks: npt.NDArray[np.bool_],
        indexes: Sequence[int],
        shape: tuple[int, int],
        scale: Scale,
        normalised: bool,
    ) -> Iterator[tuple[int, list[int], Float]]:
        """Yield frame, places among the wanted channels, and their (n, Y, X), of frames stored as pixels."""
        for t, entry in enumerate(entries):
            if is_raw(entry.payload):
                has = np.flatnonzero(masks[t]).tolist()
                places = [c for c, index in enumerate(indexes) if index in has]
                pixels = _raw_pixels(entry.payload, has, indexes, shape, Scale.MEAN if normalised else scale)
                if normalised:
                    pixels = self.family.stabiliser.subset([indexes[c] for c in places]).forward(pixels)
                yield t, places, pixels

    def latents(
        self,
        blocks: Sequence[bytes],
        shape: tuple[int, int],
        *,
        frames: Collection[int] | None = None,
        frames_per_block: int | None = None,
    ) -> Float:
        """Decode the latents alone: (T, …) float32, NaN for frames empty or stored as pixels.

        They are the same to the bit on every machine. Of a wavelet model they are the picture made
        small. `frames` and `frames_per_block` are as in `decode`.

        Raises
        ------
        DamagedError
            As `decode`.
        """
        entries = self._entries(blocks, shape, frames, frames_per_block)
        out = np.full((len(entries), *self.family.latent_shape(*shape)), np.nan, np.float32)
        rows = np.flatnonzero([e.mask for e in entries]).tolist()
        jobs = self._jobs(entries, rows, coarse=True)

        def fill(job: int) -> None:
            for t, found in jobs[job].run():
                out[t] = found

        as_ready(fill, [job.waits for job in jobs])
        for entry in entries:
            if is_raw(entry.payload):  # what claims to be pixels must be some
                unpack_raw(entry.payload, entry.mask.bit_count(), *shape)
        return out


def _family_of(model: Model) -> _FamilyClass:
    try:
        return _FAMILIES[model.family]
    except KeyError:
        raise UnsupportedError(
            f"model {model.name} is of the family {model.family!r}, unknown to this sunzip; update sunzip"
        ) from None


def promised(model: Model, bounds: Bounds | None) -> Bounds:
    """Return the bounds that errors of a model are to have, once it is known that it can keep them.

    Raises
    ------
    InputError
        If there are any, and the model does not give the same pixels everywhere.
    UnsupportedError
        If its family is unknown.
    """
    if bounds and not _family_of(model).exact:
        raise InputError(
            f"model {model.name}: its pixels differ from machine to machine, so that no error can "
            "be bounded (max_error, --max-error); take a model of the wavelet family, as the default is"
        )
    return bounds or {}


def check_unmasked(data: npt.NDArray[Any]) -> None:
    """Refuse an array with a mask, beneath which numbers lie that nobody measured.

    Raises
    ------
    InputError
        If it is one.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise InputError("masks of arrays are not coded; give data.filled(nan) to keep them as missing")


@lru_cache(maxsize=4)
def _codec(sha256: str) -> Codec:
    return Codec(load(sha256))


def codec_for(sha256: str, quality: int | None = None, bounds: Bounds | None = None) -> Codec:
    """Return the process-wide codec of a model, so that its network is loaded once for all qualities.

    Raises
    ------
    ModelNotFoundError
        If no such model is on this machine.
    """
    return _codec(sha256).within(bounds, quality)


def _again(model: Model, quality: int, bounds: Bounds) -> Codec:
    """Return the process-wide codec of a model that may not be installed."""
    register(model)
    return codec_for(model.sha256, quality, bounds)


def _filled(jobs: Sequence[_Job], shown: npt.NDArray[np.bool_], shape: tuple[int, int]) -> Float:
    """Return the pixels (T, C, Y, X) that jobs give of the images that are `shown` (T, C); NaN elsewhere."""
    out = np.empty((*shown.shape, *shape), np.float32)
    out[~shown] = np.nan

    def fill(job: int) -> None:
        for t, pixels in jobs[job].run():
            out[t, shown[t]] = pixels

    as_ready(fill, [job.waits for job in jobs])
    return out


def _together(jobs: Sequence[_Job]) -> list[tuple[int, Float]]:
    """Do jobs one after another."""
    return [found for job in jobs for found in job.run()]


def _nbytes(shape: tuple[int, int]) -> int:
    """Return the bytes of a frame of all channels."""
    return 4 * len(NAMES) * shape[0] * shape[1]


def _channels(mask: int) -> tuple[int, ...]:
    """Return the channels of a frame's mask, rising."""
    return tuple(i for i in range(len(NAMES)) if mask >> i & 1)


def _masks(entries: Sequence[_Entry]) -> npt.NDArray[np.bool_]:
    """Return (T, 12): which channels each frame has."""
    masks = np.zeros((len(entries), len(NAMES)), bool)
    for t, entry in enumerate(entries):
        masks[t, list(_channels(entry.mask))] = True
    return masks


def _holes(
    entries: Sequence[_Entry], masks: npt.NDArray[np.bool_], indexes: Sequence[int], shape: tuple[int, int]
) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
    """Yield frame, place among the wanted channels and (Y, X) missing pixels of the images that have any."""
    for t, entry in enumerate(entries):
        if entry.gap:
            has = np.flatnonzero(masks[t])
            holes = unpack_gaps(entry.gap, len(has), *shape)
            for hole, index in zip(holes, has, strict=True):
                if index in indexes:
                    yield t, indexes.index(int(index)), hole


def _coded(entries: Sequence[_Entry], masks: npt.NDArray[np.bool_], indexes: Sequence[int]) -> list[int]:
    """Return the numbers of the frames that have some wanted channel, in latents."""
    some = np.flatnonzero(masks[:, indexes].any(1)).tolist()
    return [t for t in some if not is_raw(entries[t].payload)]


def _raw_pixels(
    payload: bytes, has: Sequence[int], indexes: Sequence[int], shape: tuple[int, int], scale: Scale
) -> Float:
    """Return the pixels (n, Y, X), of those channels of `indexes` that a frame stored as pixels has."""
    channels = [index for index in indexes if index in has]
    pixels: Float = unpack_raw(payload, len(has), *shape)[[has.index(index) for index in channels]]
    return _scaled(pixels, channels, scale)


def _scaled(means: Float, channels: Sequence[int], scale: Scale) -> Float:
    """Return means (n, Y, X) of channels as pixels of a scale, finite where they are."""
    factor = _to_mean(channels, scale)
    if factor is None:
        return means
    largest = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        scaled: Float = np.clip(means / factor, -largest, largest)
    return scaled


def _means(data: Float, present: npt.NDArray[np.bool_], indexes: Sequence[int], scale: Scale) -> Float:
    """Return the (n, Y, X) present channels of a frame, AIA pixels as means."""
    factor = _to_mean(indexes, scale)
    means: Float = data if present.all() else data[present]
    return means if factor is None else means * factor[present]


class _There(NamedTuple):
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


def _there(frame: Float, indexes: Sequence[int]) -> _There:
    missing: npt.NDArray[np.bool_] = np.isnan(frame)
    present = _present(missing)
    return _There(missing, present, tuple(i for i, p in zip(indexes, present.tolist(), strict=True) if p))


def _present(missing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell from the (…, C, Y, X) missing pixels which (…, C) images are there."""
    return np.logical_not(missing.all((-2, -1)))


def _to_mean(indexes: Sequence[int], scale: Scale) -> Float | None:
    """Return the (C, 1, 1) factor from a scale to means, or None if it is 1 throughout."""
    if Scale.of(scale) is Scale.MEAN:
        return None
    return np.array([1 / summed(NAMES[i], scale) for i in indexes], np.float32)[:, None, None]


def _indexes(channels: str | Sequence[str]) -> list[int]:
    """Return the places of channels among all 12; gap maps rely on their order."""
    names = listed(channels)
    if names != canonical(names):
        raise InputError(f"channels must be once each in the order {' '.join(NAMES)}, not {' '.join(names)}")
    return [NAMES.index(name) for name in names]
