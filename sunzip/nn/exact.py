"""The context network while it codes: integers of 8 bits carried in float32, so that every machine agrees.

Integers up to 2^8 are exact in bfloat16 and TF32 as well, and sums of their products that stay below 2^24 are
exact in float32 in any order. `ExactContext` proves that bound for each layer when it is loaded. What comes
out is then the same for every number of threads, batch and library, whatever precision a library is set to.

Convolutions are products of matrices in NumPy, so that nothing else is needed to code, nor loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.errors import DamagedError, UnsupportedError
from sunzip.nn.planes import COUNT_NOW, COUNT_TIME, FLAGS, LEVELS, WIDTHS, Places, network_of

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

#: Largest integers of planes, activations and weights. Weights keep to what bfloat16 has exactly.
PLANE_MAX, ACTIVATION_MAX, WEIGHT_MAX = 127, 255, 256
EXACT = 2**24
MAX_SHIFT = 20

#: Outputs for three bands: means in 64ths of a step, gates of time and channels in 16ths, scales.
_OUTPUTS = 12
QUALITIES = 101

#: Positions of a level that go through a network at once, those whose neighbours are laid side by side at
#: once, and how many rows around those of a piece the network looks at.
_CACHED = 1 << 16
_BESIDE = 1 << 12
_AROUND = 2

#: What sums are clipped to: rounded down it is the largest activation.
_MOST = np.float32(ACTIVATION_MAX + 0.5)


def parts_of(width: int, below: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return a network's weights: shape, and the largest integer of what they are applied to."""
    return {
        "now": ((width, COUNT_NOW, 3, 3), PLANE_MAX),
        "time": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "carry": ((width, below, 1, 1), ACTIVATION_MAX),
        "deep": ((width, width, 3, 3), ACTIVATION_MAX),
        "first": ((width, width, 1, 1), ACTIVATION_MAX),
        "first_out": ((_OUTPUTS, width, 1, 1), ACTIVATION_MAX),
        "beside": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "second": ((width, width, 1, 1), ACTIVATION_MAX),
        "second_out": ((_OUTPUTS, width, 1, 1), ACTIVATION_MAX),
        "after": ((width, COUNT_TIME, 3, 3), PLANE_MAX),
        "settle": ((width, width, 1, 1), ACTIVATION_MAX),
        "settle_out": ((9, width, 1, 1), ACTIVATION_MAX),
    }


#: The sums that layers form: of which weights, and which of the four tabled biases they have.
LAYERS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "enter": (("now", "time", "carry"), 0),
    "deep": (("deep",), 1),
    "first": (("first",), None),
    "first_out": (("first_out",), None),
    "second": (("second", "beside"), 2),
    "second_out": (("second_out",), None),
    "settle": (("settle", "after"), 3),
    "settle_out": (("settle_out",), None),
}


class ExactContext:
    """Runs the networks of all levels.

    Parameters
    ----------
    arrays
        ``{net}.{part}`` int16 weights; ``{net}.{layer}.shift`` uint8 and ``{net}.{layer}.bias`` int32 of each
        output; ``bias.{net}`` (101, 12, depths, 4, width) int32 and ``flags.{net}`` (depths, 4, width) int32,
        which depend on quality, channel and how deep the level lies. Models that knew no lazy wavelet have
        three flags.

    Raises
    ------
    DamagedError
        If an array is missing, has a wrong dtype or shape, or a sum could reach 2^24.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self._arrays = dict(arrays)
        for n, width in enumerate(WIDTHS):
            parts = parts_of(width, WIDTHS[max(n - 1, 0)])
            depths = LEVELS - len(WIDTHS) + 1 if n == 0 else 1
            tabled = self._take(f"bias.{n}", (QUALITIES, len(NAMES), depths, 4, width), np.int32)
            flags = self._arrays.get(f"flags.{n}")
            if flags is not None and flags.shape == (depths, FLAGS - 1, width):
                self._arrays[f"flags.{n}"] = np.concatenate((flags, np.zeros_like(flags[:, :1])), 1)
            flags = self._take(f"flags.{n}", (depths, FLAGS, width), np.int32)
            for layer, (names, place) in LAYERS.items():
                outputs = parts[names[0]][0][0]
                shift = self._take(f"{n}.{layer}.shift", (outputs,), np.uint8)
                total = np.abs(self._take(f"{n}.{layer}.bias", (outputs,), np.int32).astype(np.float64))
                for name in names:
                    shape, largest = parts[name]
                    weight = np.abs(self._take(f"{n}.{name}", shape, np.int16).astype(np.float64))
                    if weight.max() > WEIGHT_MAX:
                        raise DamagedError(f"context network: {n}.{name} has weights above {WEIGHT_MAX}")
                    total += largest * weight.sum((1, 2, 3))
                if place is not None:
                    total += np.abs(tabled[..., place, :].astype(np.float64)).max((0, 1, 2))
                if layer == "enter":
                    total += np.abs(flags.astype(np.float64)).sum(1).max(0)
                if shift.max() > MAX_SHIFT or not (total + 2.0**MAX_SHIFT < EXACT).all():
                    raise DamagedError(
                        f"context network: {n}.{layer} could exceed 2^24 and would not be exact"
                    )

    def _take(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        found = self._arrays.get(name)
        if found is None or found.dtype != dtype or found.shape != shape:
            raise DamagedError(f"context network: {name} is missing or of a wrong shape")
        return found

    @cached_property
    def _weights(self) -> dict[str, Float]:
        """Weights (O, y · x, K) and biases, with the powers of two that sums are divided by in them.

        A power of two in all that is summed is as exact as one afterwards. Half a unit in a bias, too, makes
        of rounding a floor; it is lost among the largest sums that are not divided, and not needed there.
        """
        _prove_sums()
        out: dict[str, Float] = {}
        for n in range(len(WIDTHS)):
            for layer, (names, _) in LAYERS.items():
                shift = self._arrays[f"{n}.{layer}.shift"].astype(np.int32)
                # Powers of two are exact by construction, not by how well a library's exponential rounds.
                power = np.ldexp(np.float32(1), -shift)
                bias = self._arrays[f"{n}.{layer}.bias"].astype(np.float32) * power
                out[f"{n}.{layer}.power"] = power
                out[f"{n}.{layer}.bias"] = bias + np.where(shift > 0, np.float32(0.5), np.float32(0))
                for name in names:
                    weight = self._arrays[f"{n}.{name}"].astype(np.float32) * power[:, None, None, None]
                    out[f"{n}.{name}"] = _kernel(weight)
        return out

    def _bias(
        self, level: int, layer: str, channels: Sequence[int], quality: int | Int, flags: Float | None = None
    ) -> Float:
        """Return a layer's biases (C, width) of channels."""
        n, depth = network_of(level), depth_of(level)
        tabled = self._arrays[f"bias.{n}"][quality, list(channels), depth, LAYERS[layer][1]]
        total: Float = tabled.astype(np.float32)
        if flags is not None:
            flagged = flags[:, :, None] * self._arrays[f"flags.{n}"][depth].astype(np.float32)
            total = total + flagged.sum(1)
        total *= self._weights[f"{n}.{layer}.power"]
        total += self._weights[f"{n}.{layer}.bias"]
        return total

    def enter(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        flags: Float,
        planes: Float,
        time: Float | None,
        carry: Float | None,
        here: Places,
    ) -> tuple[Float, Float]:
        """Look at what is known before any of a level's coefficients is.

        Parameters
        ----------
        level
            1 to `LEVELS`.
        channels
            The C channels coded together, or a single one of whose bands C windows are given.
        quality
            0 to 100, of all or (C,) of each of them.
        flags
            (C, FLAGS) which of two references and of other frames are there, and which channels are
            lazy; (1, FLAGS) for windows.
        planes, time
            (C, COUNT_NOW, h, w) and (C, COUNT_TIME, h, w), or None.
        carry
            Features of the next coarser level for the same channels, or None.
        here
            (N,) places of the coefficients that come first, counted along the rows; or (C, N).

        Returns
        -------
        features
            (C, width, h, w) of this level, for `beside`, `settle` and the next finer level.
        outputs
            (C, 12, N) integers: means, two kinds of gates, numbers of scales, at those places.
        """
        t, n = self._weights, network_of(level)
        entering = self._bias(level, "enter", channels, quality, flags)
        deeper = self._bias(level, "deep", channels, quality)
        count, _, height, width = planes.shape
        features = _empty((count, WIDTHS[n], height, width))
        outputs = np.empty((count, _OUTPUTS, here.shape[-1]), np.float32)
        for piece in _pieces(planes, here):
            # Planes that are all 0 add nothing, as do those of channels that see no others.
            given = piece.around(planes)
            seen = [k for k in range(COUNT_NOW) if given[:, k].any()] or [0]
            known = [(given[:, seen], t[f"{n}.now"][:, :, seen])]
            if time is not None:
                known.append((piece.around(time), t[f"{n}.time"]))
            h = self.convolved(known, piece.of(entering))
            if carry is not None:
                _add_doubled(self.mixed(piece.above(carry), t[f"{n}.carry"]), h)
            h = piece.inner(self.convolved([(_active(h), t[f"{n}.deep"])], piece.of(deeper)))
            found = _active(h, into=piece.within(features))
            assert piece.here is not None
            h = self.mixed(_at(found, piece.here), t[f"{n}.first"])
            h += t[f"{n}.first.bias"][:, None, None]
            self._put_out(_active(h), f"{n}.first_out", piece.listed(outputs))
        return features, outputs

    def beside(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        features: Float,
        known: Float,
        here: Places,
    ) -> Float:
        """Look at those coefficients of the level that came first, to foretell the others.

        Parameters
        ----------
        features
            What `enter` returned.
        known
            (C, COUNT_TIME, h, w) planes of the coefficients known, 0 elsewhere.
        here
            (N,) places of the others.

        Returns
        -------
        As the second of `enter`.
        """
        return self._branch(level, channels, quality, features, known, ("beside", "second"), here)

    def settle(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        features: Float,
        known: Float,
        here: Places | None,
    ) -> Float:
        """Look at all symbols of a level, to tell where in their cells the coefficients lie.

        Parameters
        ----------
        features, known
            As for `beside`.
        here
            As there; None for all places.

        Returns
        -------
        (C, 9, N) integers: distances from the symbols in 64ths of a step, two kinds of gates in 16ths.
        """
        return self._branch(level, channels, quality, features, known, ("after", "settle"), here)

    def _branch(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        features: Float,
        known: Float,
        names: tuple[str, str],
        here: Places | None,
    ) -> Float:
        t, n = self._weights, network_of(level)
        near, layer = names
        bias = self._bias(level, layer, channels, quality)
        count, _, height, width = known.shape
        places = height * width if here is None else here.shape[-1]
        outputs = np.empty((count, len(t[f"{n}.{layer}_out"]), places), np.float32)
        for piece in _pieces(known, here):
            h = piece.inner(self.convolved([(piece.around(known), t[f"{n}.{near}"])], piece.of(bias)))
            seen = piece.within(features)
            if piece.here is not None:
                h, seen = (_at(planes, piece.here) for planes in (h, seen))
            h += self.mixed(seen, t[f"{n}.{layer}"])
            self._put_out(_active(h), f"{n}.{layer}_out", piece.listed(outputs))
        return outputs

    @staticmethod
    def convolved(known: Sequence[tuple[Float, Float]], bias: Float) -> Float:
        """Return sums (C, O, h, w) over planes and the neighbours of each place, none beyond the edges.

        Parameters
        ----------
        known
            Planes (C, K, h, w), each with weights (O, 9, K).
        bias
            (C, O), or (1, O) for all: what comes on top.
        """
        count, _, h, w = known[0][0].shape
        # Images lie one after another along one row, with zeros after each line and each image: neighbours of
        # a place are everywhere as far from it.
        tall, wide = h + 1, w + 1
        size, before = count * tall * wide, wide + 1
        width = sum(planes.shape[1] for planes, _ in known)
        laid = np.zeros((width, size + 2 * before), np.float32)
        room = laid[:, before : before + size].reshape(width, count, tall, wide)[:, :, :h, :w]
        np.concatenate([planes.swapaxes(0, 1) for planes, _ in known], out=room)
        matrix = np.concatenate([weight for _, weight in known], -1).reshape(-1, 9 * width)
        total = np.empty((len(matrix), size), np.float32)
        beside = np.empty(0, np.float32)
        for begin in range(0, size, _BESIDE):
            part = total[:, begin : begin + _BESIDE]
            many = part.shape[1]
            if beside.shape[-1] != many:
                beside = np.empty((9, width, many), np.float32)
            for n in range(9):
                first = begin + n // 3 * wide + n % 3
                beside[n] = laid[:, first : first + many]
            np.matmul(matrix, beside.reshape(-1, many), out=part)
        found = total.reshape(-1, count, tall, wide)[:, :, :h, :w] + bias.T[:, :, None, None]
        return np.asarray(found.swapaxes(0, 1))

    @staticmethod
    def mixed(planes: Float, kernel: Float) -> Float:
        """Return sums (C, O, h, w) over planes (C, K, h, w), with weights (O, 1, K)."""
        count, width, *sides = planes.shape
        total = kernel[:, 0] @ planes.swapaxes(0, 1).reshape(width, -1)
        return np.asarray(total.reshape(len(kernel), count, *sides).swapaxes(0, 1))

    def _put_out(self, hidden: Float, layer: str, into: Float) -> None:
        """Write a last layer's outputs (C, K, N) of activations (C, width, y, x), N places in all."""
        outputs = self.mixed(hidden, self._weights[layer])
        outputs += self._weights[f"{layer}.bias"][:, None, None]
        np.floor(outputs.reshape(into.shape), out=into)


class _Piece(NamedTuple):
    """What goes through a network at once: some channels, or some rows of one.

    Attributes
    ----------
    some
        The channels.
    rows, wider
        The rows, and those with others around them that the network looks at; even ones begin the latter.
    here
        Places (N,) or (C, N) in these rows at which outputs are wanted, None for all.
    places
        Which of all the places wanted these are.
    """

    some: slice
    rows: slice
    wider: slice
    here: Places | None
    places: slice

    def around(self, planes: Float) -> Float:
        return planes[self.some, :, self.wider]

    def above(self, carry: Float) -> Float:
        """Return what the coarser level hands on."""
        return carry[self.some, :, self.wider.start // 2 : -(-self.wider.stop // 2)]

    def inner(self, planes: Float) -> Float:
        """Return of planes of the wider rows those of the rows."""
        begin = self.rows.start - self.wider.start
        return planes[:, :, begin : begin + self.rows.stop - self.rows.start]

    def within(self, features: Float) -> Float:
        return features[self.some, :, self.rows]

    def of(self, each: Float) -> Float:
        """Return those of the channels, or what is one for all."""
        return each if len(each) == 1 else each[self.some]

    def listed(self, outputs: Float) -> Float:
        return outputs[self.some, :, self.places]


def _pieces(planes: Float, here: Places | None) -> Iterator[_Piece]:
    """Yield in what pieces planes (C, K, h, w) go through a network.

    As much as the processor's cache has room for; small ones one at a time would take more time to begin
    than to do.
    """
    count, _, h, w = planes.shape
    step, tall = max(1, _CACHED // (h * w)), max(2 * _AROUND, _CACHED // w // 2 * 2)
    # Other places than those in order along the rows are those of small planes.
    ordered = here is None or (here.ndim == 1 and (here[1:] >= here[:-1]).all())
    if tall >= h or not ordered:
        for begin in range(0, count, step):
            some = slice(begin, begin + step)
            of_these = here if here is None or here.ndim == 1 else here[some]
            yield _Piece(some, slice(0, h), slice(0, h), of_these, slice(None))
        return
    for channel in range(count):
        for begin in range(0, h, tall):
            end = min(begin + tall, h)
            places, inside = slice(begin * w, end * w), None
            if here is not None:
                places = slice(*np.searchsorted(here, (places.start, places.stop)).tolist())
                inside = here[places] - begin * w
            wider = slice(max(begin - _AROUND, 0), min(end + _AROUND, h))
            yield _Piece(slice(channel, channel + 1), slice(begin, end), wider, inside, places)


def _empty(shape: tuple[int, int, int, int]) -> Float:
    """Return planes (C, K, h, w) of anything, with all C of one of the K after another in memory.

    So are all planes that layers give: for products of matrices they are (K, C · h · w).
    """
    count, width, *sides = shape
    return np.empty((width, count, *sides), np.float32).swapaxes(0, 1)


def _kernel(weight: Float) -> Float:
    """Return weights (O, K, y, x) as (O, y · x, K)."""
    outputs, width = weight.shape[:2]
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(outputs, -1, width)


def _add_doubled(coarse: Float, planes: Float) -> None:
    """Add to planes (C, K, h, w), at each place, what (C, K, ⌈h / 2⌉, ⌈w / 2⌉) have there."""
    for y in (0, 1):
        for x in (0, 1):
            part = planes[..., y::2, x::2]
            part += coarse[..., : part.shape[-2], : part.shape[-1]]


def _active(total: Float, into: Float | None = None) -> Float:
    """Clip and round sums to activations, in place or into other planes."""
    np.clip(total, np.float32(0), _MOST, out=total)
    return np.floor(total, out=total if into is None else into)


def _at(planes: Float, here: Places) -> Float:
    """Return some places of planes (C, K, h, w), (N,) or (C, N), as (C, K, N, 1)."""
    count, width, h, w = planes.shape
    stacked = planes.swapaxes(0, 1).reshape(width, count, h * w)
    if here.ndim == 1:
        found = stacked.take(here, -1)
    else:
        found = stacked.reshape(width, -1).take(here + np.arange(0, count * h * w, h * w)[:, None], -1)
    return np.asarray(found[..., None].swapaxes(0, 1))


@cache
def _prove_sums() -> None:
    """Try whether products of matrices here are sums of products, as their bound has it.

    Libraries may compute them otherwise (Strassen's, Winograd's), of which no such bound holds, and choose by
    size: so it is tried on sizes that occur, with large integers, and compared in some places.

    Raises
    ------
    UnsupportedError
        If they are not.
    """
    rng = np.random.default_rng(0)
    square = zip(WIDTHS[::-1], ((side, side) for side in (128, 96, 64, 16, 8)), strict=True)
    for width, (tall, wide) in (*square, (WIDTHS[-1], (8, 2048))):  # a piece of a large plane
        images = rng.integers(0, ACTIVATION_MAX + 1, (2, width, tall + 2, wide + 2))
        planes = images.astype(np.float32)
        # Of one sign; no larger than what keeps their sums below the bound, or than bfloat16 has exactly.
        most = [min(EXACT // (n * width * ACTIVATION_MAX), WEIGHT_MAX) for n in (9, 1)]
        weight = rng.integers(0, most[0], (width, width, 3, 3))
        matrix = rng.integers(0, most[1], (_OUTPUTS, width))
        nothing = np.zeros((1, width), np.float32)
        found = ExactContext.convolved([(planes, _kernel(weight.astype(np.float32)))], nothing)[
            :, :, 1:-1, 1:-1
        ]
        mixed = ExactContext.mixed(planes, matrix[:, None].astype(np.float32))
        for n, y, x in rng.integers(0, (2, tall, wide), (50, 3)):
            patch = images[n, :, y : y + 3, x : x + 3]
            if not (
                np.array_equal(found[n, :, y, x], (weight * patch).sum((1, 2, 3)))
                and np.array_equal(mixed[n, :, y, x], matrix @ images[n, :, y, x])
            ):
                raise UnsupportedError(
                    f"matrix products of numpy {np.__version__} are not exact on this machine, so that no "
                    "wavelet model can be used here; switch off its fast mathematics, or take another numpy"
                )


def depth_of(level: int) -> int:
    """Return which of its network's tables serves a level."""
    return level - 1 if network_of(level) == 0 else 0


def macs_per_position(n: int) -> int:
    """Return the multiply-accumulates of network `n` for one position of a level's bands in one channel."""
    parts = parts_of(WIDTHS[n], WIDTHS[max(n - 1, 0)])
    # Once for four positions; or at either half of them.
    fewer = {"carry": 4, "first": 2, "first_out": 2, "second": 2, "second_out": 2}
    return sum(int(np.prod(shape)) // fewer.get(name, 1) for name, (shape, _) in parts.items())
