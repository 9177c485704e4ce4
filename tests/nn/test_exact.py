"""The context network's integers: against other arithmetic, in every way to run them, and at their bounds."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from sunzip.errors import DamagedError, UnsupportedError
from sunzip.nn import exact as exact_module
from sunzip.nn.exact import (
    ACTIVATION_MAX,
    EXACT,
    LAYERS,
    MAX_SHIFT,
    PLANE_MAX,
    QUALITIES,
    WEIGHT_MAX,
    ExactContext,
    _prove_sums,
    macs_per_position,
    parts_of,
)
from sunzip.nn.planes import COUNT_NOW, COUNT_TIME, FLAGS, LEVELS, WIDTHS, halves

Arrays = dict[str, np.ndarray]

#: Layers that add a bias of a table's.
PLACES = [layer for layer, (_, place) in LAYERS.items() if place is not None]


def random_arrays(seed: int = 0) -> Arrays:
    """Return weights all over their range, and shifts that leave activations all over theirs."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for n, width in enumerate(WIDTHS):
        depths = 4 if n == 0 else 1
        arrays[f"bias.{n}"] = rng.integers(
            -(2**17), 2**17, (QUALITIES, 12, depths, len(PLACES), width), np.int32
        )
        arrays[f"flags.{n}"] = rng.integers(-(2**18), 2**18, (depths, 3, width), np.int32)
        parts = parts_of(width, WIDTHS[max(n - 1, 0)])
        for name, (shape, _) in parts.items():
            arrays[f"{n}.{name}"] = rng.integers(-WEIGHT_MAX, WEIGHT_MAX, shape, np.int16, endpoint=True)
        for layer, (names, _) in LAYERS.items():
            outputs = parts[names[0]][0][0]
            arrays[f"{n}.{layer}.shift"] = rng.integers(9, 14, outputs, np.uint8)
            arrays[f"{n}.{layer}.bias"] = rng.integers(-(2**18), 2**18, outputs, np.int32)
    for name in [k for k in arrays if k.startswith("flags.")]:
        more = rng.integers(
            -(2**18), 2**18, (*arrays[name].shape[:1], FLAGS - 3, arrays[name].shape[2]), np.int32
        )
        arrays[name] = np.concatenate((arrays[name], more), 1)
    return arrays


class Inputs:
    """What a level's network is given, integers all over their range."""

    def __init__(self, level: int, channels: list[int], side: int = 8, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        count, h, w = len(channels), side, side + 2

        def planes(*shape: int, low: int = -PLANE_MAX, high: int = PLANE_MAX) -> np.ndarray:
            return rng.integers(low, high, shape, endpoint=True).astype(np.float32)

        self.level, self.channels, self.quality = level, channels, 37
        self.flags = planes(count, 3, low=0, high=1)
        self.planes, self.time = planes(count, COUNT_NOW, h, w), planes(count, COUNT_TIME, h, w)
        below = WIDTHS[max(network_of(level) - 1, 0)]
        coarser = -(-h // 2), -(-w // 2)
        self.carry = planes(count, below, *coarser, low=0, high=ACTIVATION_MAX)
        self.known = planes(count, COUNT_TIME, h, w)
        self.flags = np.concatenate((self.flags, planes(count, FLAGS - 3, low=0, high=1)), 1)

    def of(self, row: int) -> Inputs:
        one = object.__new__(Inputs)
        one.level, one.quality, one.channels = self.level, self.quality, [self.channels[row]]
        for name in ("flags", "planes", "time", "carry", "known"):
            setattr(one, name, getattr(self, name)[row : row + 1])
        return one


def network_of(level: int) -> int:
    """Return the network of a level: the first serves the four coarsest."""
    return max(level - 4, 0)


def run(context: ExactContext, at: Inputs, carry: np.ndarray | None = None) -> list[np.ndarray]:
    carry = at.carry if carry is None else carry
    which = at.level, at.channels, at.quality
    size = at.planes.shape[-2:]
    here = np.arange(size[0] * size[1])
    features, outputs = context.enter(*which, at.flags, at.planes, at.time, carry, here)
    beside = context.beside(*which, features, at.known, here)
    settled = context.settle(*which, features, at.known, None)
    return [features, *(x.reshape(*x.shape[:2], *size) for x in (outputs, beside, settled))]


def reference(arrays: Arrays, at: Inputs, carry: bool = True, time: bool = True) -> list[np.ndarray]:
    """Do the same as docs/reference/format-v1.md states it, in 64-bit integers."""
    n, depth = network_of(at.level), at.level - 1 if at.level < 5 else 0

    def convolve(x: np.ndarray, name: str) -> np.ndarray:
        weight = arrays[f"{n}.{name}"].astype(np.int64)
        r = weight.shape[-1] // 2
        padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (r, r), (r, r)))
        h, w = x.shape[-2:]
        total = np.zeros((len(x), len(weight), h, w), np.int64)
        for i in range(2 * r + 1):
            for j in range(2 * r + 1):
                total += np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[..., i : i + h, j : j + w])
        return total

    def finish(total: np.ndarray, layer: str, clip: bool = True) -> np.ndarray:
        shift = arrays[f"{n}.{layer}.shift"].astype(np.int64)[:, None, None]
        total = total + arrays[f"{n}.{layer}.bias"][:, None, None]
        rounded = (2 * total + (1 << shift)) >> (shift + 1)
        out: np.ndarray = np.clip(rounded, 0, ACTIVATION_MAX) if clip else rounded
        return out

    tabled = arrays[f"bias.{n}"][at.quality][at.channels][:, depth].astype(np.int64)[..., None, None]
    flags = at.flags.astype(np.int64) @ arrays[f"flags.{n}"][depth].astype(np.int64)
    total = convolve(at.planes, "now") + tabled[:, 0] + flags[..., None, None]
    if time:
        total = total + convolve(at.time, "time")
    if carry:
        total = total + convolve(at.carry, "carry").repeat(2, -1).repeat(2, -2)
    h = finish(total, "enter")
    h = finish(convolve(h, "deep") + tabled[:, 1], "deep")
    first = finish(convolve(finish(convolve(h, "first"), "first"), "first_out"), "first_out", clip=False)
    branches = []
    for near, layer, place in (("beside", "second", 2), ("after", "settle", 3)):
        inner = finish(convolve(h, layer) + convolve(at.known, near) + tabled[:, place], layer)
        branches.append(finish(convolve(inner, f"{layer}_out"), f"{layer}_out", clip=False))
    return [h, first, *branches]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return random_arrays()


@pytest.fixture(scope="module")
def context(arrays: Arrays) -> ExactContext:
    return ExactContext(arrays)


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_it_computes_what_integers_compute(context: ExactContext, arrays: Arrays, level: int) -> None:
    at = Inputs(level, [3, 0, 11])
    found = run(context, at)
    assert ((found[0] > 0) & (found[0] < ACTIVATION_MAX)).mean() > 0.1  # not all clipped
    assert len(np.unique(found[1])) > 50
    assert same(found, reference(arrays, at))


def test_without_a_frame_before_and_without_a_coarser_level(context: ExactContext, arrays: Arrays) -> None:
    at = Inputs(6, [2, 7])
    features, outputs = context.enter(6, [2, 7], 37, at.flags, at.planes, None, None, np.arange(80))
    expected = reference(arrays, at, carry=False, time=False)
    assert same([features, outputs.reshape(2, 12, 8, 10)], expected[:2])


@pytest.mark.parametrize("side", [7, 300])
def test_places_are_looked_at_as_if_all_were(context: ExactContext, side: int) -> None:
    at = Inputs(8, [3, 8, 2], side)
    everywhere = run(context, at)
    for here in (*halves(side, side + 2), np.array([0, side, 5, 5])):
        features, outputs = context.enter(8, at.channels, 37, at.flags, at.planes, at.time, at.carry, here)
        others = context.beside(8, at.channels, 37, features, at.known, here)
        settled = context.settle(8, at.channels, 37, features, at.known, here)
        expected = [x.reshape(*x.shape[:2], -1)[..., here] for x in everywhere[1:]]
        assert same([features, outputs, others, settled], [everywhere[0], *expected])
        # Of each channel other places.
        each = np.stack([here, here[::-1], np.roll(here, 1)])
        _, outputs = context.enter(8, at.channels, 37, at.flags, at.planes, at.time, at.carry, each)
        others = context.beside(8, at.channels, 37, features, at.known, each)
        settled = context.settle(8, at.channels, 37, features, at.known, each)
        rows = [x.reshape(*x.shape[:2], -1) for x in everywhere[1:]]
        expected = [np.take_along_axis(x, each[:, None], -1) for x in rows]
        assert same([outputs, others, settled], expected)


@pytest.mark.parametrize("side", [8, 13, 37])
def test_large_planes_are_looked_at_piece_by_piece(
    context: ExactContext, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = Inputs(8, [3, 8, 2], side)
    some = halves(side, side + 2)[1]

    def found() -> list[np.ndarray]:
        which = 8, at.channels, 37
        features, outputs = context.enter(*which, at.flags, at.planes, at.time, at.carry, some)
        others = context.beside(*which, features, at.known, some)
        bare, _ = context.enter(*which, at.flags, at.planes, None, None, some)
        return [*run(context, at), features, outputs, others, bare]

    expected = found()
    for size in (1, 4 * (side + 2), 10 * (side + 2) + 3):
        monkeypatch.setattr(exact_module, "_CACHED", size)
        assert same(found(), expected)


def test_a_single_channel_stands_for_all_that_are_given(context: ExactContext) -> None:
    at = Inputs(8, [3, 3, 3])
    at.flags[:] = at.flags[0]
    expected = run(context, at)
    at.flags, at.channels = at.flags[:1], [3]
    assert same(run(context, at), expected)


@pytest.mark.parametrize("zero", [slice(3, 15), slice(15, None), slice(None)])
def test_planes_that_are_0_need_no_multiplication(context: ExactContext, arrays: Arrays, zero: slice) -> None:
    at = Inputs(8, [3, 8])
    at.planes[:, zero] = 0
    assert same(run(context, at), reference(arrays, at))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", [4, 7, 8])
def test_it_gives_the_same_on_any_number_of_threads(arrays: Arrays, level: int, threads: int) -> None:
    at = Inputs(level, list(range(7)), side=64)
    with threadpool_limits(threads, "blas"):
        assert same(run(ExactContext(arrays), at), reference(arrays, at))


def test_rows_of_a_batch_are_those_of_single_runs(context: ExactContext) -> None:
    at = Inputs(7, [4, 2, 7, 9, 0, 1, 11], side=10)
    together = run(context, at)
    for row in range(7):
        assert same(run(context, at.of(row)), [part[row : row + 1] for part in together])


def test_the_layout_of_memory_does_not_matter(context: ExactContext) -> None:
    at = Inputs(6, [1, 6, 0], side=10)
    expected = run(context, at)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        assert same(run(context, at, layout(at.carry)), expected)
    for name in ("planes", "time", "known", "flags"):
        setattr(at, name, np.asfortranarray(getattr(at, name)))
    assert same(run(context, at), expected)


def bound(arrays: Arrays, n: int, layer: str, output: int) -> int:
    """Return how large the sums of an output could get."""
    names, place = LAYERS[layer]
    parts = parts_of(WIDTHS[n], WIDTHS[max(n - 1, 0)])
    total = abs(int(arrays[f"{n}.{layer}.bias"][output]))
    for name in names:
        total += parts[name][1] * int(np.abs(arrays[f"{n}.{name}"][output].astype(np.int64)).sum())
    if place is not None:
        total += int(np.abs(arrays[f"bias.{n}"][..., place, output].astype(np.int64)).max())
    if layer == "enter":
        total += int(np.abs(arrays[f"flags.{n}"][..., output].astype(np.int64)).sum(1).max())
    return total


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("n", [0, 4])
def test_sums_that_could_lose_a_digit_are_refused(n: int, layer: str) -> None:
    arrays = random_arrays(2)
    bias = arrays[f"{n}.{layer}.bias"]
    bias[5] = 0
    most = EXACT - 2**MAX_SHIFT - bound(arrays, n, layer, 5)
    assert most > 0
    for sign in (1, -1):
        bias[5] = sign * (most - 1)
        ExactContext(arrays)
        bias[5] = sign * most
        with pytest.raises(DamagedError, match=f"{n}.{layer} could exceed 2\\^24"):
            ExactContext(arrays)


def test_models_of_three_flags_do_not_tell_lazy_channels(arrays: Arrays) -> None:
    fewer = {k: np.array(v[:, :3]) if k.startswith("flags.") else v for k, v in arrays.items()}
    at = Inputs(8, [3, 11])
    at.flags[:, 3] = 1
    found = run(ExactContext(fewer), at)
    at.flags[:, 3] = 0
    assert same(found, run(ExactContext(arrays), at))


def test_tabled_biases_and_flags_count_towards_the_bound() -> None:
    for name, place in (("bias.4", (100, 11, 0, 2, 7)), ("bias.0", (0, 0, 3, 1, 0)), ("flags.2", (0, 1, 3))):
        arrays = random_arrays(3)
        arrays[name][place] = -(2**31)
        with pytest.raises(DamagedError, match="could exceed"):
            ExactContext(arrays)


def test_sums_at_the_bound_are_exact() -> None:
    """The largest planes, each with the sign of its weight, and a bias that fills what is left."""
    arrays = random_arrays(4)
    arrays["4.enter.shift"][:] = 0
    arrays["4.enter.bias"][:] = 0
    most = EXACT - 2**MAX_SHIFT - bound(arrays, 4, "enter", 3)
    arrays["4.enter.bias"][3] = most - 1
    arrays["4.enter.shift"][3] = MAX_SHIFT
    at = Inputs(8, [0], side=4)
    at.planes[0, :, :3, :3] = PLANE_MAX * np.sign(arrays["4.now"][3])
    at.time[0, :, :3, :3] = PLANE_MAX * np.sign(arrays["4.time"][3])
    assert same(run(ExactContext(arrays), at), reference(arrays, at))


@pytest.mark.parametrize("change", [-(WEIGHT_MAX + 1), WEIGHT_MAX + 1, -(2**15)])
def test_weights_beyond_eight_bits_are_refused(change: int) -> None:
    arrays = random_arrays(5)
    arrays["3.second"][0, 0, 0, 0] = change
    with pytest.raises(DamagedError, match=r"3\.second has weights above 256"):
        ExactContext(arrays)


def test_shifts_beyond_what_the_bound_allows_for_are_refused(arrays: Arrays) -> None:
    wrong = arrays | {"2.first.shift": np.full(WIDTHS[2], MAX_SHIFT + 1, np.uint8)}
    with pytest.raises(DamagedError, match=r"2\.first could exceed"):
        ExactContext(wrong)


def test_arrays_that_are_missing_or_of_another_kind_are_refused(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not name.startswith(("1.", "bias.4", "flags.0")):
            continue
        for wrong in (None, array[:-1], array.astype(np.float32), array.astype(np.int64)):
            changed = {k: v for k, v in arrays.items() if k != name}
            if wrong is not None:
                changed[name] = wrong
            with pytest.raises(DamagedError, match=f"{name} is missing or of a wrong"):
                ExactContext(changed)


def test_multiplications_are_counted_as_they_are_done(
    context: ExactContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolve, mix, done = ExactContext.convolved, ExactContext.mixed, []

    def convolved(known: list[tuple[np.ndarray, np.ndarray]], bias: np.ndarray) -> np.ndarray:
        out = convolve(known, bias)
        done.extend(kernel.size * out[:, 0].size for _, kernel in known)
        return out

    def mixed(planes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        done.append(kernel.size * planes[:, 0].size)
        return mix(planes, kernel)

    monkeypatch.setattr(ExactContext, "convolved", staticmethod(convolved))
    monkeypatch.setattr(ExactContext, "mixed", staticmethod(mixed))
    for level in (1, 5, 8):
        at = Inputs(level, [0])
        which = level, [0], at.quality
        done.clear()
        first, second = halves(*at.planes.shape[-2:])
        features, _ = context.enter(*which, at.flags, at.planes, at.time, at.carry, first)
        context.beside(*which, features, at.known, second)
        context.settle(*which, features, at.known, None)
        positions = at.planes.shape[-1] * at.planes.shape[-2]
        assert sum(done) == positions * macs_per_position(network_of(level))


def test_every_machine_gets_these_bits(arrays: Arrays) -> None:
    """Weights and planes by integer arithmetic, which no random number generator's next version changes."""
    # Of three flags, as models have them that were made before there were four.
    arrays = {name: v[:, :3] if name.startswith("flags.") else v for name, v in arrays.items()}
    arrays = {
        name: (np.arange(v.size, dtype=np.int64) ** 2 % 449 - 224).astype(v.dtype).reshape(v.shape)
        for name, v in arrays.items()
    }
    for name in arrays:
        if name.endswith(".shift"):
            arrays[name] = np.full(arrays[name].shape, 12, np.uint8)
    context, at = ExactContext(arrays), Inputs(8, [5, 1, 6, 0, 10], side=16)
    for name in ("planes", "time", "known"):
        v = getattr(at, name)
        v[...] = (np.arange(v.size) ** 3 % 255 - 127).reshape(v.shape)
    at.flags[...] = 1
    at.carry[...] = (np.arange(at.carry.size) ** 2 % 256).reshape(at.carry.shape)
    digest = hashlib.sha256(b"".join(v.tobytes() for v in run(context, at)))
    assert digest.hexdigest()[:16] == "1f6aea23c9af16c4"


@pytest.mark.parametrize("name", ["convolved", "mixed"])
def test_a_library_whose_sums_are_none_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _prove_sums.__wrapped__()
    plain = getattr(ExactContext, name)

    def transformed(*given: object) -> np.ndarray:
        out: np.ndarray = plain(*given)
        return out + np.float32(2**-8) * out.mean()

    monkeypatch.setattr(ExactContext, name, staticmethod(transformed))
    with pytest.raises(UnsupportedError, match="not exact on this machine"):
        _prove_sums.__wrapped__()


def test_a_library_that_rounds_what_it_multiplies_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some do with bfloat16 where low precision is allowed: all that a network has is exact in it."""
    convolve, mix = ExactContext.convolved, ExactContext.mixed

    def rounded(x: np.ndarray) -> np.ndarray:
        # Half of the last bit that bfloat16 has is added, and all after it are cut off.
        bits = (np.ascontiguousarray(x).view(np.uint32) + np.uint32(1 << 15)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)

    def convolved(known: list[tuple[np.ndarray, np.ndarray]], bias: np.ndarray) -> np.ndarray:
        return convolve([(rounded(planes), rounded(kernel)) for planes, kernel in known], bias)

    whole = np.arange(-max(WEIGHT_MAX, ACTIVATION_MAX, PLANE_MAX), WEIGHT_MAX + 1, dtype=np.float32)
    assert np.array_equal(rounded(whole), whole)
    monkeypatch.setattr(ExactContext, "convolved", staticmethod(convolved))
    monkeypatch.setattr(ExactContext, "mixed", staticmethod(lambda *both: mix(*map(rounded, both))))
    _prove_sums.__wrapped__()
