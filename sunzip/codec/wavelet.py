"""The wavelet family: a pyramid coded from coarse to fine with what a small exact network foretells.

How a frame is coded is chosen here; `sunzip.codec.walk` goes through its pyramid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip import wavelet
from sunzip.channels import CHANNELS, NAMES
from sunzip.codec.family import Family, Float, Known, Latents, Reference, Written, part, quality_arrays
from sunzip.codec.head import (
    LEVELLED,
    LINKED,
    NEWS,
    PLACED,
    TILED,
    Quality,
    Turns,
    Ways,
    departs,
    links,
    packed,
    qualities,
    unpacked,
)
from sunzip.codec.light import levels, lit, raise_by, sums
from sunzip.codec.order import GROUP
from sunzip.codec.prices import LARGEST, price
from sunzip.codec.symbols import (
    CENTRED,
    VARIANTS,
    Coder,
    Draft,
    Int,
    Reader,
    Sets,
    Writer,
    as_shifted,
    weighed,
)
from sunzip.codec.tiles import are_tiled
from sunzip.codec.walk import Frame, Plan, Walk
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError
from sunzip.limb import KNOTS, disk, shows_disk
from sunzip.limb import fitted as fitted_disk
from sunzip.nn.exact import QUALITIES, ExactContext
from sunzip.nn.planes import SCALES
from sunzip.normalize import Stabiliser
from sunzip.pyramid import (
    MAX_DEPTH,
    Grid,
    bands_of,
    from_lazy,
    grid_of,
    places_of,
    to_lazy,
    to_picture,
    to_pyramid,
)
from sunzip.rotation import foretold, turned
from sunzip.weights import Model

if TYPE_CHECKING:
    from torch import Tensor

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

#: Channels whose pixels may be better coded as they are: the field, sampled without smoothing, is made of
#: points.
POINTS = [c.index for c in CHANNELS if c.instrument == "HMI"]

#: Channels whose mean disk may be told beforehand: those of the photosphere, whose limb is sharp.
DISKS = [NAMES.index(name) for name in ("1600A", "1700A")]

#: The units of a mean disk are this share of a channel's step, or of its spread if that is larger.
_DISK_UNIT = 1 / 64

#: The lazy wavelet is taken if the other costs more than it by this factor, as far as can be told beforehand.
_LAZY_GAIN = 1.1

#: So many of the finest levels are no part of the small picture that stands for a frame as a whole.
_FINE = 4

#: Side of the pictures in which the disk is looked for.
_GLANCE = 64

#: Side of the pictures by which two frames are compared, and the squared error, as a share of the picture's
#: variance, from which the one before is no help.
_SMALL, _STRANGE = 128, 0.5

#: A frame that differs by less than so much while further turns bring it no nearer is turned as it should be.
_NEAR = 0.25

#: Coefficients of fewer steps say nothing of how alike frames are.
_HEARD = 1.0

#: By how much the quality of frames of a film departs from the block's, by their depth: what others build on
#: is worth more, and what lies between such frames is nearly as good as they are for a few bytes. That is
#: where they are so alike; where they are so unlike, all are as the block's.
_CHANGES, _ALIKE, _UNLIKE = (8, 4, -8, -14, -18), 0.9, 0.5

#: A frame on which others build leans on these where they differ by little, less than about so many steps of
#: frames of such a depth: what one of them has, if it is near in time, then counts so many times as much as
#: what it has itself.
_LITTLE, _SEEN_BY, _LEANS = 0.7, 3, 2.0

#: So alike to what others foretell, a frame need not be tried by itself. One that is not alike at all is not
#: tried with them: that would save 2 % of it at most, and take three times the time.
_SURE = 0.2

#: Rotations in minutes among which the encoder looks for that between two frames.
_TURNS = (
    *(0, 6, 12, 18, 24, 30, 36, 48, 60, 72, 84, 96, 108, 120, 144, 180, 240, 300, 360, 420, 480, 600, 720),
    *(960, 1200, 1440, 2160, 2880, 3600, 4320, 5760, 7200, 8640),
)


class _Tried(NamedTuple):
    """What coding a frame comes to: a draft and what it decodes to, levels worth it (None: all), the cost."""

    plan: Plan
    draft: Draft
    decoded: Float
    coded: Int | None
    cost: float


class WaveletFamily(Family):
    """See the module.

    Raises
    ------
    DamagedError
        If the model's parts are missing or do not fit each other.
    """

    sequential = True
    exact = True
    latents_coded = False

    def __init__(self, model: Model) -> None:
        self.model = model
        count = len(NAMES)
        self.stabiliser = Stabiliser(*(model.numbers(key, count) for key in ("a", "b", "spread")))
        self.default_quality = model.config.get("default_quality", 0)
        if type(self.default_quality) is not int or not 0 <= self.default_quality <= 100:
            raise DamagedError(f"model {model.name}: config.json names no default quality")
        self.context = part(ExactContext, model, "context")
        later = ("disk", "trusts")
        stored = [n for n in Sets._fields if n not in later or model.arrays(f"{n}_tables")]
        tables = {name: part(Tables.from_arrays, model, f"{name}_tables") for name in stored}
        disks, trusts = (tables.pop(name, None) for name in later)
        self.tables = Sets(disk=disks, trusts=trusts, **tables)
        wanted: list[tuple[str, tuple[int, ...], type[np.generic]]] = [
            ("step", (QUALITIES, count), np.float32),
            ("base_mean", (count,), np.float32),
            ("relation", (count,), np.float32),
            ("base_index", (2, QUALITIES, count, MAX_DEPTH + 1), np.int32),
            ("silent_index", (QUALITIES,), np.int32),
        ]
        if "halved" in model.arrays("quality"):
            wanted.append(("halved", (count,), np.int32))
        found = quality_arrays(model, wanted, 2.0**20)
        self.step, self.base_mean = found["step"], found["base_mean"]
        self.base_index, self.silent_index = found["base_index"], found["silent_index"]
        # Networks from before learned nothing of small pictures.
        self.halved = found.get("halved", np.zeros(count, np.int32))
        if (
            # Models from before frames built on frames after them have no tables that count from means.
            len(self.tables.bands) not in (SCALES * VARIANTS, SCALES * CENTRED[0])
            or len(self.tables.base) <= self.base_index.max()
            or len(self.tables.silent) < (self.silent_index.max() + 1) * count
            or len(self.tables.weights) != 2 * count
            or len(self.tables.shifts) != count
            or (self.tables.disk is not None and len(self.tables.disk) != len(KNOTS))
            or (self.tables.trusts is not None and len(self.tables.trusts) != 4 * count)
            or found["relation"].min() < 2.0**-10
            or min(self.base_index.min(), self.silent_index.min(), self.halved.min()) < 0
            or self.step.min() < 2.0**-10
        ):
            raise DamagedError(f"model {model.name}: its tables do not fit its network")
        # Networks from before did not learn what symbols that count from a mean are like: there are no tables
        # of such, and where in its cell a coefficient then lies is not asked.
        self.learned = len(self.tables.bands) == SCALES * VARIANTS
        self.trusting = self.tables.trusts is not None
        self.inverse = np.reciprocal(self.step)
        # What a weight of 1 makes of another channel's coefficients.
        self._spread = relation = found["relation"]
        self.relation = relation[:, None] / relation

    @cached_property
    def bits(self) -> Float:
        """Bits of the bands' symbols, see `weighed`."""
        return weighed(self.tables.bands)

    @cached_property
    def shifted(self) -> Float:
        """The same with the scales of all tables shifted, see `as_shifted`."""
        return as_shifted(self.bits)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(12, Y/16, X/16) of the padded image: the picture made small."""
        grid = grid_of(height, width)
        fine = min(_FINE, grid.depth)
        return (len(NAMES), grid.height >> fine, grid.width >> fine)

    def latents(self, payload: bytes, quality: int, known: Known) -> Float:
        """See `Family.latents`: the picture made small, in units of noise; channels not there are 0."""
        pyramid = self._read(payload, quality, known, _FINE)
        grid = grid_of(*known.shape)
        fine = min(_FINE, grid.depth)
        return to_picture(pyramid, grid, grid.depth - fine) * np.float32(2.0**-fine)

    def analyse(self, images: Float, present: Float, quality: int) -> Sequence[Latents]:
        """See `Family.analyse`; main is the pyramid, side is empty, but see `steadied`."""
        grid = grid_of(*images.shape[-2:])
        found = []
        for image, shown in zip(images, present, strict=True):
            pyramid = np.zeros((len(NAMES), grid.height, grid.width), np.float32)
            for rows in _runs(np.flatnonzero(shown)):
                to_pyramid(image[rows], grid, pyramid[rows])
            found.append(Latents(pyramid, np.zeros(0, np.float32)))
        return found

    def synthesise_tensor(self, latents: Tensor, present: Tensor, height: int, width: int) -> Tensor:
        """See `Family.synthesise_tensor`: elementwise, so the same to the bit wherever it runs."""
        grid = grid_of(height, width)
        low = latents[..., : grid.height >> grid.depth, : grid.width >> grid.depth]
        for n in range(grid.depth):
            low = wavelet.synthesise(low, places_of(latents, *grid.level(n)))
        return low[..., :height, :width]

    def reference(self, latents: Float, channels: Sequence[int], shape: tuple[int, int]) -> Reference:
        """See `Family.reference`."""
        grid = grid_of(*shape)
        height, width = grid.level(grid.within(_SMALL))
        coarse = latents[list(channels), :height, :width]
        return Reference(_pictures(latents, channels, grid), coarse, channels)

    def show(
        self, latents: Float, channels: Sequence[int], wanted: Sequence[int], shape: tuple[int, int]
    ) -> Float:
        """See `Family.show`: channels that are not wanted take no time."""
        height, width = shape
        return _pictures(latents, wanted, grid_of(*shape))[:, :height, :width]

    def unquantised(self, latents: Latents, quality: int) -> Float:
        """See `Family.unquantised`."""
        return latents.main

    def encode(self, latents: Latents, quality: int, known: Known, own: int | None = None) -> Written:
        """See `Family.encode`."""
        encoder = Encoder()
        head, decoded = self.write(self._writer(encoder), latents, quality, known, own)
        return Written(head + encoder.finish(), decoded)

    def write(
        self, writer: Writer, latents: Latents, quality: int, known: Known, own: int | None = None
    ) -> tuple[bytes, Float]:
        """Choose a frame's symbols; return the payload's head and what is decoded of it.

        Parameters
        ----------
        writer
            Takes the symbols.
        latents, quality, known, own
            As in `encode`.
        """
        fine = self.quality_of(quality if own is None else own, known)
        grid = grid_of(*known.shape)
        turns = self._turns(latents.main, grid, known, fine)
        lazy, pyramid = self._lazy(latents.main, grid, fine, known.channels)
        names = list(known.channels)
        inverse = fine.inverse[names][:, None, None]
        time = self._turned(known, grid, turns, lazy)
        alike = 0.0 if time is None else self._alike(pyramid, time[0], names, inverse)
        if not alike:
            time, turns = None, Turns()
        limbed, placed = [], 0
        light, whole = self._light(latents, grid, known)
        if whole:
            # The network knows it from square pictures; where there are points alone it gains little by that.
            placed = PLACED if grid.height == grid.width and not lazy[names].all() else 0
            # Frames that are alike show the limb already.
            told = () if time is None or alike < _SURE else time[1]
            limbed = [c for c in DISKS if c in names and c not in told]
        numbers, disks = self._disks(latents.main, grid, fine, known, limbed)
        ways = Ways(lazy, np.isin(np.arange(len(NAMES)), list(numbers)))
        if disks:
            pyramid = pyramid.copy()
        _add(disks, -1, pyramid, known.channels)
        if time is not None:
            _add(disks, -1, *time)
        tiled = TILED if are_tiled(grid.level(grid.depth - 1)) else 0
        linked = 0 if time is None else LINKED
        if linked and self.trusting and len(names) > 1:
            linked |= NEWS
        bright = lit(names) if self.trusting else []
        levelled = LEVELLED if bright else 0
        plan = Plan(known.channels, ways, grid, fine, linked | tiled | placed | levelled, time)
        self._code_disks(writer, ways, numbers)
        if time is None:
            decoded = Walk(self, plan, writer, pyramid).through(grid.depth)
        else:
            tried = self._tried(plan, pyramid)
            if alike < _SURE:
                alone = self._tried(plan._replace(bits=plan.bits & ~(LINKED | NEWS), time=None), pyramid)
                tried = (tried, alone)[self._best((tried.cost, alone.cost))]
            plan, decoded = tried.plan, tried.decoded
            if plan.time is None:
                turns = Turns()
            if tried.coded is None:
                tried.draft.hand_to(writer)
            else:
                decoded = Walk(self, plan, writer, pyramid).through(grid.depth, tried.coded)
        head = packed(plan.bits, turns, known, quality, fine, ways)
        decoded = _whole(decoded, ways, disks, grid)
        if bright:
            step = fine.step[bright]
            found = levels(light, self._sums(decoded, grid, known, whole=whole), step)
            writer.begin_with("levels", np.zeros(len(bright), np.int32), found)
            raise_by(found, step, decoded, bright, grid)
        return head, decoded

    def _light(self, latents: Latents, grid: Grid, known: Known) -> tuple[Float | Float64, bool]:
        """Return the light (C,) of images before they are steadied, and whether they show the whole Sun.

        Both are told of the same images: those that are steadied may show it no longer, and their light would
        be held against that of other pixels.
        """
        if latents.side.size:
            return latents.side[:-1], bool(latents.side[-1])
        whole = self._shows_disk(latents.main, grid, known)
        return self._sums(latents.main, grid, known, whole=whole)[0], whole

    def _sums(self, pyramid: Float, grid: Grid, known: Known, *, whole: bool) -> Float64:
        """See `sums`: of the channels of a frame that have levels."""
        bright = lit(known.channels)
        missing = known.missing
        if missing is not None:
            missing = missing[np.isin(known.channels, bright)]
        return sums(pyramid, bright, grid, known.shape, self.stabiliser, whole=whole, missing=missing)

    @staticmethod
    def _shows_disk(pyramid: Float, grid: Grid, known: Known) -> bool:
        """Tell whether a frame shows the whole Sun: a small picture is enough to see that."""
        n = grid.within(_GLANCE)
        height, width = (-(-side >> (grid.depth - n)) for side in known.shape)
        with np.errstate(over="ignore", invalid="ignore"):  # of pixels that no Sun has
            picture = to_picture(pyramid[list(known.channels)], grid, n)
        return shows_disk(picture[:, :height, :width])

    def _tried(self, plan: Plan, pyramid: Float) -> _Tried:
        """Return what coding a frame comes to."""
        draft = Draft(self.tables, self.bits, self.shifted)
        decoded = Walk(self, plan, draft, pyramid).through(plan.grid.depth)
        left_out, coded = self._left_out(pyramid, plan), None
        if plan.time is not None:
            # What a level tells may be less than other frames do without it.
            coded = draft.worth(plan.channels, left_out)
        return _Tried(plan, draft, decoded, coded, draft.cost(plan.channels, left_out, coded))

    def quality_of(self, quality: int, known: Known) -> Quality:
        """Return how finely an encoder codes a frame of that quality."""
        return self._quality(quality, departs(known.channels, known.shape))

    def _quality(self, quality: int, departing: bool) -> Quality:
        of = qualities(quality, departing)
        each = np.arange(len(NAMES))
        return Quality(quality, departing, of, self.step[of, each], self.inverse[of, each])

    def _lazy(
        self, pyramid: Float, grid: Grid, quality: Quality, channels: Sequence[int]
    ) -> tuple[Bool, Float]:
        """Return for which channels (12,) the lazy wavelet is better, and the pyramid with theirs by it."""
        lazy = np.zeros(len(NAMES), bool)
        those = [c for c in POINTS if c in channels]
        if those:
            plain = to_lazy(to_picture(pyramid[those], grid, grid.depth), grid)
            inverse = quality.inverse
            for c, points in zip(those, plain, strict=True):
                lazy[c] = price(points * inverse[c], c) * _LAZY_GAIN < price(pyramid[c] * inverse[c], c)
            if lazy.any():
                pyramid = pyramid.copy()
                pyramid[lazy] = plain[lazy[those]]
        return lazy, pyramid

    def _disks(
        self, pyramid: Float, grid: Grid, quality: Quality, known: Known, channels: Sequence[int]
    ) -> tuple[dict[int, Int], dict[int, Float]]:
        """Return the mean disks of channels: their numbers (K,), and the pyramids (Y, X) that these make."""
        if not channels or self.tables.disk is None:
            return {}, {}
        height, width = known.shape
        picture = to_picture(pyramid[list(channels)], grid, grid.depth)[:, :height, :width]
        values = fitted_disk(picture) / self._disk_unit(quality, channels)[:, None]
        whole = np.rint(np.clip(np.nan_to_num(values), -(2.0**24), 2.0**24)).astype(np.int32)
        numbers = dict(zip(channels, whole, strict=True))
        return numbers, self._shown(numbers, quality, known, grid)

    def _disk_unit(self, quality: Quality, channels: Sequence[int]) -> Float:
        """Return the units (C,) of mean disks."""
        both = np.maximum(quality.step[list(channels)], self._spread[list(channels)])
        return np.asarray(both * np.float32(_DISK_UNIT))

    def _shown(self, numbers: dict[int, Int], quality: Quality, known: Known, grid: Grid) -> dict[int, Float]:
        """Return the pyramids (Y, X) of the mean disks of channels."""
        if not numbers:
            return {}
        names = list(numbers)
        values = np.stack([numbers[c] for c in names]).astype(np.float32)
        values *= self._disk_unit(quality, names)[:, None]
        return dict(zip(names, to_pyramid(disk(values, *known.shape), grid), strict=True))

    @staticmethod
    def _code_disks(coder: Coder, ways: Ways, numbers: dict[int, Int] | None) -> dict[int, Int]:
        """Give or take the numbers of mean disks: each as it differs from that of the knot before."""
        found = {}
        for c in np.flatnonzero(ways.round).tolist():
            wanted = None if numbers is None else np.diff(numbers[c], prepend=np.int32(0))
            symbols = coder.side("disk", np.arange(len(KNOTS), dtype=np.int32), wanted)
            found[c] = np.cumsum(symbols, dtype=np.int64).clip(-(2**30), 2**30).astype(np.int32)
        return found

    @staticmethod
    def _best(costs: Sequence[float]) -> int:
        """Choose among ways to code a frame: with other frames and without."""
        return int(np.argmin(costs))

    def decode(self, payload: bytes, quality: int, known: Known) -> Float:
        """See `Family.decode`."""
        return self._read(payload, quality, known)

    def likeness(self, three: Sequence[Latents], quality: int, known: Known) -> float:
        """See `Family.likeness`: by what the frame in the middle would cost given the others, and alone."""
        grid = grid_of(*known.shape)
        first, middle, last = (latents.main for latents in three)
        before, after = (self.reference(other, known.channels, known.shape) for other in (first, last))
        around = known._replace(before=before, after=after)
        fine = self.quality_of(quality, known)
        turns = self._turns(middle, grid, around, fine)
        time = self._turned(around, grid, turns, np.zeros(len(NAMES), bool))
        if time is None:
            return 0.0
        inverse = fine.inverse[list(known.channels)][:, None, None]
        return self._alike(middle, time[0], known.channels, inverse)

    @staticmethod
    def _alike(pyramid: Float, other: Float, names: Sequence[int], inverse: Float) -> float:
        """Return which share of what channels of a pyramid (12, Y, X) cost another spares, or so.

        `inverse` (C, 1, 1) is 1 over their steps.
        """
        alone = given = 0.0
        # One at a time: they then stay in the processor's cache.
        for c, factor in zip(names, inverse, strict=True):
            own, told = pyramid[c] * factor, other[c] * factor
            # What is too small to be coded in both, of noise the most, is lost with others as without them.
            heard = (np.abs(own) >= _HEARD) | (np.abs(told) >= _HEARD)
            own, told = own[heard], told[heard]
            alone += price(own, c)
            given += price(own - told, c)
        return max(0.0, 1 - given / alone) if alone else 0.0

    def own_quality(self, quality: int, depth: int, likeness: float) -> int:
        """See `Family.own_quality`."""
        change = round(_leaning(likeness) * _CHANGES[min(depth, len(_CHANGES) - 1)])
        return min(max(quality + change, 0), QUALITIES - 1)

    def leans(self, likeness: float) -> bool:
        """See `Family.leans`."""
        return _leaning(likeness) > 0

    def steadied(
        self,
        latents: Latents,
        others: Iterable[tuple[Latents, Sequence[int], int]],
        quality: int,
        known: Known,
        likeness: float,
    ) -> Latents:
        """See `Family.steadied`: drawn towards the mean where frames differ by less than they will tell.

        What only this frame has, its noise above all, would cost its own bits, and then those of all others
        to take it back. What differs by more stays as it is, and so does the images' light, which is kept as
        the latents' side, with whether they show the whole Sun.
        """
        grid = grid_of(*known.shape)
        pyramid = latents.main
        fine = self.quality_of(quality, known)
        seen_by = self.quality_of(self.own_quality(quality, _SEEN_BY, likeness), known)
        inverse = seen_by.inverse / np.float32(_LITTLE)
        drawn, weights = np.zeros_like(pyramid), np.zeros_like(pyramid)
        for (other, _), has, apart in others:
            sign = -1 if apart > 0 else 1
            shown = self.reference(other, has, known.shape)
            minutes = self._turn(pyramid, grid, known, fine, shown, sign)
            if minutes is None:
                continue
            most = np.float32(_LEANS * _leaning(likeness) * (1 - abs(apart) / GROUP))
            # One at a time: they then stay in the processor's cache.
            for c in (c for c in known.channels if c in has):
                change = to_pyramid(turned(shown.picture(c), sign * minutes), grid)
                change -= pyramid[c]
                weight = _nearness(change * inverse[c], grid)
                weight *= most
                weights[c] += weight[0]
                change *= weight
                drawn[c] += change[0]
        weights += 1
        drawn /= weights
        drawn += pyramid
        return Latents(drawn, np.append(*self._light(latents, grid, known)).astype(np.float32))

    def links(self, payload: bytes) -> tuple[int, int]:
        """See `Family.links`."""
        return links(payload, trusts=self.trusting)

    def _read(self, payload: bytes, quality: int, known: Known, fine: int = 0) -> Float:
        """Decode all but so many of the finest levels, or all if any channel's wavelet is the lazy one."""
        grid = grid_of(*known.shape)
        disks = self.tables.disk is not None
        tiles = are_tiled(grid.level(grid.depth - 1))
        head = unpacked(payload, quality, known, disks=disks, trusts=self.trusting, tiles=tiles)
        ways, own = head.ways, self._quality(head.quality, head.departing)
        if ways.lazy.any():
            fine = 0  # a picture made small by leaving pixels out would be another one
        decoder = Decoder(payload[head.size :])
        reader = Reader(decoder, self.tables)
        bright, raised = lit(known.channels), None
        if head.levelled:
            raised = reader.side("levels", np.zeros(len(bright), np.int32), None)
        shown = self._shown(self._code_disks(reader, ways, None), own, known, grid)
        time = self._turned(known, grid, head.turns, ways.lazy)
        if time is not None:
            _add(shown, -1, *time)
        plan = Plan(known.channels, ways, grid, own, head.bits, time)
        decoded = Walk(self, plan, reader, None).through(grid.depth - fine)
        if not fine:
            decoder.finish()
        decoded = _whole(decoded, ways, shown, grid)
        if raised is not None:
            raise_by(raised, own.step[bright], decoded, bright, grid)
        return decoded

    def _writer(self, encoder: Encoder) -> Writer:
        return Writer(encoder, self.tables, self.bits, self.shifted)

    def _turns(self, pyramid: Float, grid: Grid, known: Known, quality: Quality) -> Turns:
        """Return by how much those that a frame may build on are turned."""
        before = self._turn(pyramid, grid, known, quality, known.before, 1)
        return Turns(before, self._turn(pyramid, grid, known, quality, known.after, -1))

    def _turn(
        self, pyramid: Float, grid: Grid, known: Known, quality: Quality, other: Reference | None, sign: int
    ) -> int | None:
        """Return the minutes of rotation that bring another frame nearest to this; None if none does.

        Forward for a frame before it, if the sign is 1, backward for one after it. Channels count by what
        they are in steps: one of noise alone says nothing.
        """
        both = [] if other is None else [c for c in known.channels if c in other.channels]
        if other is None or not both:
            return None
        # A small picture is enough to see where things went.
        inverse = quality.inverse[both][:, None, None]
        n = grid.within(_SMALL)
        parts = pyramid[both], other.coarse[other.places(both)]
        now, then = (to_picture(part, grid, n) * inverse for part in parts)
        spread = max(float(now.var((1, 2), dtype=np.float64).sum()), 1e-6) * now[0].size

        def error(minutes: int) -> float:
            apart = turned(then, sign * minutes) - now
            with np.errstate(over="ignore"):  # of pixels that no Sun has
                return float(np.square(apart, out=apart).sum(dtype=np.float64) / spread)

        # The error falls towards the best turn, and rises behind it; where it is large it may fall again.
        errors: dict[int, float] = {}
        for n in range(0, len(_TURNS), 4):
            errors[n] = error(_TURNS[n])
            if n > 4 and errors[n - 8] < min(errors[n - 4], _NEAR) and errors[n - 4] < errors[n]:
                break
        for step in (2, 1):
            best = min(errors, key=errors.__getitem__)
            near = (n for n in (best - step, best + step) if 0 <= n < len(_TURNS))
            errors |= {n: error(_TURNS[n]) for n in near}
        best = min(errors, key=errors.__getitem__)
        return _TURNS[best] if errors[best] < _STRANGE else None

    def _turned(self, known: Known, grid: Grid, turns: Turns, lazy: Bool) -> Frame | None:
        """Return the pyramid that other frames foretell, and those of the channels wanted that it has."""
        sources: dict[int, list[tuple[Float, int]]] = {}
        for other, minutes, sign in zip((known.before, known.after), turns, (1, -1), strict=True):
            if other is None or minutes is None:
                continue
            for c in (c for c in known.channels if c in other.channels):
                sources.setdefault(c, []).append((other.picture(c), sign * minutes))
        if not turns:
            return None
        pyramid = np.zeros((len(NAMES), grid.height, grid.width), np.float32)
        for kind, transform in ((False, to_pyramid), (True, to_lazy)):
            rows = [c for c in sorted(sources) if lazy[c] == kind]
            if rows:
                pictures = np.concatenate([foretold(sources[c]) for c in rows])
                pyramid[rows] = transform(pictures, grid)
        return pyramid, sorted(sources)

    def _left_out(self, pyramid: Float, plan: Plan) -> Float64:
        """Return squared errors (C, levels), in steps, where levels are as other frames have them, or 0."""
        found = np.zeros((len(plan.channels), plan.grid.depth), np.float64)
        for of_channel, c in zip(found, plan.channels, strict=True):
            apart = pyramid[c] if plan.time is None else pyramid[c] - plan.time[0][c]
            apart = np.asarray(apart * plan.quality.inverse[c])
            np.clip(apart, -LARGEST, LARGEST, out=apart)
            for n in range(plan.grid.depth):
                bands = bands_of(apart, *plan.grid.level(n))
                of_channel[n] = np.square(bands, dtype=np.float64).sum()
        return found


def _add(disks: dict[int, Float], sign: int, pyramid: Float, channels: Sequence[int]) -> None:
    """Add mean disks to those channels of a pyramid (12, Y, X), or take them away."""
    for c in disks.keys() & set(channels):
        pyramid[c] += sign * disks[c]


def _whole(pyramid: Float, ways: Ways, disks: dict[int, Float], grid: Grid) -> Float:
    """Return a decoded pyramid (12, Y, X) with its mean disks, and the same wavelet in all channels."""
    _add(disks, 1, pyramid, list(disks))
    if ways.lazy.any():
        pyramid[ways.lazy] = to_pyramid(from_lazy(pyramid[ways.lazy], grid), grid)
    return pyramid


def _leaning(likeness: float) -> float:
    """Return how much frames of such a likeness lean on each other: 0 is not at all, 1 as much as any."""
    return min(max((likeness - _UNLIKE) / (_ALIKE - _UNLIKE), 0), 1)


def _nearness(change: Float, grid: Grid) -> Float:
    """Return for pyramids (C, Y, X) of changes 1 where these are small, 0 where they are large beside 1.

    Judged are the three bands of a level together and, where there are as many, 2×2 places of them: of a
    single coefficient noise would say too little.
    """
    with np.errstate(over="ignore"):
        square = np.square(change, out=change)
    h, w = grid.level(0)
    near = np.empty_like(change)
    near[:, :h, :w] = square[:, :h, :w]
    for n in range(grid.depth):
        h, w = grid.level(n)
        one, two, three = places_of(square, h, w)
        mean = (one + two + three) / np.float32(3)
        if not (h % 2 or w % 2):
            blocks = mean[:, ::2] + mean[:, 1::2]
            blocks = (blocks[..., ::2] + blocks[..., 1::2]) / np.float32(4)
            mean = blocks.repeat(2, 1).repeat(2, 2)
        for place in places_of(near, h, w):
            place[:] = mean
    return np.exp(np.negative(near, out=near), out=near)


def _pictures(pyramid: Float, channels: Sequence[int], grid: Grid) -> Float:
    """Return the pictures (n, Y, X) of some channels of a pyramid (12, Y, X)."""
    out = np.empty((len(channels), grid.height, grid.width), np.float32)
    begin = 0
    for rows in _runs(channels):
        end = begin + rows.stop - rows.start
        to_picture(pyramid[rows], grid, grid.depth, out[begin:end])
        begin = end
    return out


def _runs(channels: Sequence[int] | npt.NDArray[np.intp]) -> list[slice]:
    """Return rising channels as slices, of arrays that need not be copied then."""
    ends = np.flatnonzero(np.diff(channels) > 1) + 1
    return [slice(run[0], run[-1] + 1) for run in np.split(channels, ends) if len(run)]
