"""The whole chain from pixels to bytes and back: the one module that knows every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import copy
from functools import lru_cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from sunzip.arguments import whole
from sunzip.bounds import Bounds, told
from sunzip.channels import BEYOND, NAMES
from sunzip.codec.decoding import (
    Job,
    Painter,
    Wanted,
    coded_of,
    holes_of,
    in_turn,
    jobs_of,
    masks_of,
    pixels_of,
)
from sunzip.codec.family import Family, Float, Known, Latents, Reference, Written
from sunzip.codec.hyperprior import HyperpriorFamily
from sunzip.codec.images import (
    There,
    channels_of,
    indexes_of,
    means_of,
    nbytes_of,
    present_of,
    raw_pixels,
    scaled,
    stable_of,
    there_of,
    to_mean,
)
from sunzip.codec.lanes import as_ready, side_by_side
from sunzip.codec.lanes import count as lanes_here
from sunzip.codec.order import Kept, Step, around, likeness, order
from sunzip.codec.processes import elsewhere
from sunzip.codec.sigma_vae import SigmaVaeFamily
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Scale
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
from sunzip.gaps import pack_gaps
from sunzip.residual import correct, corrected
from sunzip.weights import Model, load, register

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_T = TypeVar("_T")


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
        indexes = indexes_of(channels)
        self._check(data, indexes)
        frames, _, height, width = data.shape
        frames_per_block = whole(frames_per_block, "frames_per_block", 1, MAX_FRAMES)

        # Frames that build on others wait for them.
        chain = frames_per_block if self.family.sequential else 1
        measured: dict[int, _T] = {}

        def planned(begin: int) -> _Plan:
            present = [present_of(np.isnan(frame)) for frame in data[begin : begin + chain]]
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
            entry, left, found = elsewhere(self._code, *args, back=keep * nbytes_of(known.shape))
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
        here = there_of(data, indexes)
        (missing, shown, has), gaps = here, here.gaps
        mask, gap = sum(1 << i for i in has), b"" if gaps is None else pack_gaps(gaps)
        known = known._replace(channels=has, missing=gaps)
        raw, written, left, moved, pixels = None, Written(b""), None, b"", None
        if BEYOND <= max(np.fmax.reduce(data, None), -np.fmin.reduce(data, None)) < np.inf:
            # Symbols end where no measurement is, and one such pixel spoils those that are about it.
            raw = pack_raw(means_of(data, shown, indexes, scale), 2 * data.nbytes)
        if raw is None:
            analysed = steady or self._analyse(data, here, indexes, scale)
            written = self.family.encode(analysed, self.quality, known, own)
            if keep and written.decoded is not None:
                left = self.family.reference(written.decoded, has, known.shape)
            if self.bounds:
                moved, pixels = self._bounded(data, here, indexes, scale, written, left)
            most = len(written.payload) + len(gap) + len(moved)
            raw = pack_raw(means_of(data, shown, indexes, scale), most)
        if raw is None:
            entry, decoded = Entry(mask, written.payload, gap, moved), written.decoded
        else:
            entry, decoded, left = Entry(mask, raw, b""), None, None
        if measure is None:
            return entry, left, None
        if raw is not None:
            pixels = raw_pixels(raw, has, indexes, known.shape, scale)
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
        here: There,
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
        means = means_of(data, here.present, indexes, scale)
        pixels = self._pixels(has, written.decoded, left, b"", has, shape, Scale.MEAN)
        names = [NAMES[index] for index in has]
        parts, pixels = correct(means, pixels, names, self.bounds, scale)
        pixels = scaled(pixels, has, scale)
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

        def analysed(frame: Float, here: There) -> tuple[Latents, tuple[int, ...]]:
            return self._analyse(frame, here, indexes, scale), here.channels

        here = there_of(data, indexes)
        own, has = analysed(data, here)
        others = ((*analysed(frame, there_of(frame, indexes)), apart) for frame, apart in near)
        known = known._replace(channels=has, missing=here.gaps)
        return self.family.steadied(own, others, self.quality, known, likeness)

    def _likeness(self, three: Float, indexes: Sequence[int], scale: Scale) -> float:
        """Return how alike frames of a block are, by three (3, C, Y, X) that follow each other."""
        here = [there_of(frame, indexes) for frame in three]
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
        entry = Wanted(block, rows[-1], block.pack())
        *_, [(_, latents)] = [job.run() for job in self._jobs([entry], [0])]
        return self.family.reference(latents, channels_of(block.masks[rows[-1]]), block.shape)

    def _analyse(
        self,
        data: Float,
        here: There,
        indexes: Sequence[int],
        scale: Scale,
    ) -> Latents:
        """Return the latents of one frame, (C, Y, X) of which some channel is there."""
        factor = to_mean(indexes, scale)
        images = np.zeros((1, len(NAMES), *data.shape[1:]), np.float32)
        # A channel at a time: what comes between takes little memory, that of the one before.
        for c, index in enumerate(indexes):
            if np.isinf(data[c]).any():
                raise InputError("pixels are infinite; replace them by NaN to have them kept as missing")
            means = data[c] if factor is None else data[c] * factor[c]
            images[0, index] = stable_of(means, here.missing[c], index, self.family.stabiliser)
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
        indexes = indexes_of(channels)
        self._check(data, indexes)
        here = [there_of(frame, indexes) for frame in data]
        shape = (data.shape[2], data.shape[3])

        def pixels(t: int) -> list[tuple[int, Float]]:
            latents = self.family.unquantised(self._analyse(data[t], here[t], indexes, scale), self.quality)
            return [(t, self._pixels(here[t].channels, latents, None, b"", indexes, shape, scale))]

        jobs = [Job(partial(pixels, t)) for t, there in enumerate(here) if there.channels]
        present = np.array([there.present for there in here]).reshape(data.shape[:2])
        out = pixels_of(jobs, present, shape)
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
        return self._decode(entries, indexes_of(channels), shape, scale)

    def _decode(
        self,
        entries: Sequence[Wanted],
        indexes: Sequence[int],
        shape: tuple[int, int],
        scale: Scale,
        normalised: bool = False,
    ) -> Float:
        """See `decode`, and `decode_tensor` for pixels `normalised`."""
        masks = masks_of(entries)
        painter = partial(self._pixels, indexes=indexes, shape=shape, scale=scale, normalised=normalised)
        jobs = self._jobs(entries, coded_of(entries, masks, indexes), painter=painter)
        out = pixels_of(jobs, masks[:, indexes], shape)
        for t, places, pixels in self._raw_frames(entries, masks, indexes, shape, scale, normalised):
            out[t, places] = pixels
        for t, c, hole in holes_of(entries, masks, indexes, shape):
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

        indexes = indexes_of(channels)
        entries = self._entries(blocks, shape, frames, frames_per_block)
        place = torch.device(device)
        on_cpu = place.type == "cpu"
        # Bounds hold for the pixels of `decode` alone. Where these are the same everywhere no network makes
        # them, so that on a CPU nothing is gained by several together, and what was decoded lately is lost.
        if (self.family.exact and on_cpu) or any(entry.residual for entry in entries):
            return torch.from_numpy(self._decode(entries, indexes, shape, scale, normalised)).to(place)
        masks = masks_of(entries)
        count = len(entries), len(indexes)
        out = torch.full((*count, *shape), torch.nan, dtype=torch.float32, device=place)
        shown = coded_of(entries, masks, indexes)
        together = max(1, (_PIXELS_CPU if on_cpu else _PIXELS_ELSEWHERE) // (shape[0] * shape[1]))
        if on_cpu:
            together = min(together, -(-len(shown) // lanes_here()) or 1)

        jobs = self._jobs(entries, shown)
        if not self.family.sequential:
            # Frames that build on no others can go through the network together.
            batches = [jobs[begin : begin + together] for begin in range(0, len(jobs), together)]
            jobs = [Job(partial(in_turn, batch)) for batch in batches]

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
        for t, c, hole in holes_of(entries, masks, indexes, shape):
            out[t, c][torch.from_numpy(hole).to(place)] = torch.nan
        return out

    def _physical(self, images: Tensor, indexes: Sequence[int], scale: Scale) -> Tensor:
        """Undo the stabilisation of (N, C, Y, X) images, as `Stabiliser.inverse` does, on their device."""
        import torch

        terms = self.family.stabiliser.subset(indexes).inverse_terms()
        gain, root, b = (torch.from_numpy(term).to(images.device) for term in terms)
        physical = (images.abs().mul_(gain).add_(root).square_().sub_(b)).copysign_(images)
        factor = to_mean(indexes, scale)
        return physical if factor is None else physical / torch.from_numpy(factor).to(images.device)

    def _entries(
        self,
        blocks: Sequence[bytes],
        shape: tuple[int, int],
        frames: Collection[int] | None,
        frames_per_block: int | None,
    ) -> list[Wanted]:
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
            entries += [Wanted(block, place, data) for place in range(len(block.masks))]
        return entries if frames is None else [entries[i] for i in frames]

    def _jobs(
        self,
        entries: Sequence[Wanted],
        rows: Iterable[int],
        *,
        painter: Painter | None = None,
        coarse: bool = False,
    ) -> list[Job]:
        """Return what decodes some of the entries: see `jobs_of`."""
        return jobs_of(entries, rows, self.family, self._read, self._token, painter=painter, coarse=coarse)

    def _read(
        self,
        payload: bytes,
        quality: int,
        known: Known,
        show: bool,
        keep: bool,
        painter: Painter | None,
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
            factor = None if normalised else to_mean(channels, scale)
            if factor is not None:
                physical /= factor
        if not np.isfinite(physical).all():
            np.nan_to_num(physical, copy=False)
        return stabiliser.forward(physical) if normalised else physical

    def _raw_frames(
        self,
        entries: Sequence[Wanted],
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
                pixels = raw_pixels(entry.payload, has, indexes, shape, Scale.MEAN if normalised else scale)
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
