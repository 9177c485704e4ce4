"""The error-bound layer: every pixel is as near as was promised, decoders agree, and damage is told."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip import moves, residual
from sunzip.bounds import Bound, Measure, bounds_of
from sunzip.cube import Scale
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.errors import DamagedError
from tests.entropy.test_coder import Stack


def image(height=40, width=37, seed=0, level=300.0, noise=20.0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = level * (1 + np.sin(y / 7) * np.cos(x / 9))
    return (smooth + rng.normal(0, noise, (height, width))).astype(np.float32), smooth.astype(np.float32)


def correct(pixels, base, one, name, scale):
    """Correct a single image."""
    [data], [shown] = residual.correct(pixels[None], base[None], [name], {name: one}, scale)
    return data, shown


def corrected(base, data, name="171A"):
    return residual.corrected(base[None], [name], [name], [data])[0]


def bound(text, name="171A"):
    return bounds_of(f"{name}={text}")[name]


def held(pixels, base, text, name="171A", scale=Scale.MEAN):
    """Correct an image, hold it to the bound, and return the residual's bytes."""
    data, shown = correct(pixels, base, bound(text, name), name, scale)
    there = ~np.isnan(pixels)
    assert np.isfinite(shown).all()
    factor = 4 if scale is Scale.SUM else 1
    scaled = np.where(there, pixels, 0).astype(np.float32) * np.float32(factor)
    assert bound(text, name).outside(scaled[there], shown[there] * np.float32(factor), name, scale) == 0
    again = corrected(base, data, name)
    np.testing.assert_array_equal(again.view(np.uint32), shown.view(np.uint32))
    return data


BOUNDS = (
    "5%",
    "0.1%",
    "100%",
    "400%",
    "2sigma",
    "0.01sigma",
    "50sigma",
    "10DN/s",
    "0.001DN/s",
    "1e-9DN/s",
    "1e-7%",
)


@pytest.mark.parametrize("text", BOUNDS)
@pytest.mark.parametrize("shape", [(40, 37), (16, 16), (1, 1), (1, 50), (33, 2), (17, 64)])
def test_every_pixel_is_within_its_bound(text, shape):
    pixels, base = image(*shape)
    pixels[:1, :1] = np.nan
    held(pixels, base, text)


@settings(max_examples=150)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(BOUNDS),
    st.sampled_from(Scale),
    st.floats(-8, 30),
    st.floats(-8, 30),
)
def test_whatever_pixels_are_and_whatever_the_model_makes_of_them(shape, seed, text, scale, one, other):
    rng = np.random.default_rng(seed)
    pixels, base = (
        (rng.normal(0, 1, shape) * 10.0 ** rng.uniform(-8, size, shape)).astype(np.float32)
        for size in (one, other)
    )
    pixels[rng.random(shape) < 0.2] = 0
    base[rng.random(shape) < 0.2] = 0
    pixels[rng.random(shape) < 0.1] = np.nan
    same = rng.random(shape) < 0.2
    base[same] = np.nan_to_num(pixels)[same]
    held(pixels, base, text, scale=scale)


def test_sums_are_held_to_the_smallest_numbers_that_have_digits():
    sums = np.array([[2e-38, -4e-38, 1e-40, 1.0]], np.float32)
    base = np.array([[0, 0, 0, 0.25]], np.float32)
    data, shown = correct(sums / 4, base, bound("5%"), "171A", Scale.SUM)
    assert data
    assert bound("5%").outside(sums, shown * 4, "171A", Scale.SUM) == 0


def test_bounds_hold_exactly_not_only_as_far_as_floats_tell():
    pixels, base = image(64, 64)
    for text, share in (("5%", Fraction(5, 100)), ("0.7%", Fraction(7, 1000))):
        _, shown = correct(pixels, base, bound(text), "171A", Scale.MEAN)
        for x, y in zip(pixels.ravel().tolist(), shown.ravel().tolist(), strict=True):
            assert abs(Fraction(y) - Fraction(x)) <= share * abs(Fraction(x))
        # ... and for who checks it in float32.
        assert (np.abs(shown - pixels) <= np.float32(share) * np.abs(pixels)).all()


def test_pixels_that_are_near_enough_stay_as_the_model_has_them():
    pixels, base = image()
    data, shown = correct(pixels, base, bound("30DN/s"), "171A", Scale.MEAN)
    near = np.abs(pixels.astype(np.float64) - base) <= 30 * (1 - 1e-6)
    assert data
    assert 0.5 < near.mean() < 1
    np.testing.assert_array_equal(shown[near], base[near])
    assert (shown[~near] != base[~near]).all()
    data, shown = correct(pixels, base, bound("1000DN/s"), "171A", Scale.MEAN)
    assert data == b""
    np.testing.assert_array_equal(shown, base)


def test_missing_pixels_cost_nothing_and_hold_nothing():
    pixels, base = image()
    pixels[5:20] = np.nan
    one = held(pixels, base, "2sigma")
    base[5:20] += 5000  # what the model makes of nothing
    two = held(pixels, base, "2sigma")
    assert one == two
    pixels[:] = np.nan
    assert correct(pixels, base, bound("2sigma"), "171A", Scale.MEAN)[0] == b""


def test_the_looser_the_bound_and_the_better_the_model_the_fewer_the_bytes():
    pixels, base = image(128, 128)
    sizes = [len(held(pixels, base, text)) for text in ("1DN/s", "4DN/s", "16DN/s", "64DN/s")]
    assert sizes == sorted(sizes, reverse=True)
    assert (
        sizes[0] < 1.05 * pixels.size * np.log2(20 * np.sqrt(2 * np.pi * np.e) / 2) / 8
    )  # Shannon's, of noise
    far = base + np.random.default_rng(1).normal(0, 60, base.shape).astype(np.float32)
    assert len(held(pixels, far, "4DN/s")) > sizes[1]


def test_a_model_of_no_help_costs_bytes_and_never_accuracy():
    pixels, _ = image(64, 64)
    for base in (np.zeros_like(pixels), np.full_like(pixels, 3e38), np.full_like(pixels, -1e-40)):
        for text in BOUNDS:
            assert len(held(pixels, base, text)) < pixels.nbytes * 1.1


def test_a_bound_too_fine_for_float32_keeps_pixels_as_they_are():
    pixels, base = image()
    for text in ("1e-9DN/s", "1e-7%", "1e-9sigma"):
        data, shown = correct(pixels, base, bound(text), "171A", Scale.MEAN)
        assert data[0] == 4
        np.testing.assert_array_equal(shown, pixels)


def test_zeros_and_both_signs_are_within_shares_of_themselves():
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 30, (64, 64)).astype(np.float32)
    pixels[:20] = 0
    base = (pixels + rng.normal(0, 1, pixels.shape)).astype(np.float32)
    data, shown = correct(pixels, base, bound("10%", "Bz"), "Bz", Scale.MEAN)
    assert (shown[:20] == 0).all()
    assert len(data) < pixels.size


def test_noise_grows_with_the_pixel_and_so_does_what_is_allowed():
    pixels = np.geomspace(0.01, 1e5, 4096, dtype=np.float32).reshape(64, 64)
    base = np.zeros_like(pixels)
    held(pixels, base, "1sigma")
    held(4 * pixels, base, "1sigma", name="Bz")


#: The beginning of the sha256 of a residual, and of what it makes of an image: for ever.
GOLDEN = {
    "2sigma": "e65987d179787c20 cae23e7a458f51d9",
    "5%": "3a962935b95488b6 b01ef05537dfa589",
    "4DN/s": "04582a1c0f22e1e2 051361018f920006",
}


def golden_images():
    """Return an image and what a model might make of it, by integers alone."""
    state, numbers = 12345, []
    for _ in range(2 * 45 * 52):
        state = (1103515245 * state + 12345) % 2**31
        numbers.append(state >> 16)
    first, second = np.array(numbers).reshape(2, 45, 52)
    y, x = np.mgrid[:45, :52]
    base = ((y - 20) * (x - 30) + first % 7).astype(np.float32)
    return (base + second % 41 - 20 + (second % 997 == 0) * 5000).astype(np.float32), base


@pytest.mark.parametrize("text", GOLDEN)
def test_bytes_decode_for_ever_to_the_same_bits(text, monkeypatch):
    pixels, base = golden_images()
    # Found by sums of floats, these may differ from machine to machine; nothing else does.
    monkeypatch.setattr(moves, "fitted", lambda image, others: [5, -3])
    data, shown = correct(pixels, base, bound(text), "171A", Scale.MEAN)
    found = sha256(data).hexdigest()[:16] + " " + sha256(shown.astype("<f4").tobytes()).hexdigest()[:16]
    assert found == GOLDEN[text]


# docs/reference/format-v1.md, "Residuals", word by word, without numpy


BEGIN = (
    *(6, 14, 26, 42, 66, 98, 145, 210, 303, 434, 620, 882, 1254, 1778, 2521, 3570, 5055, 7154, 10124),
    *(14322, 20261, 28658, 40535),
)
RADIUS = (0,) * 10 + (1, 1, 2, 3, 4, 7, 9, 14, 19, 28, 39, 56, 79, 113)
RARER = (
    *(
        164,
        975,
        2352,
        4288,
        6985,
        10677,
        15557,
        21642,
        28600,
        35766,
        42421,
        48095,
        52642,
        56136,
        58749,
        60666,
    ),
    *(62058, 63059, 63776, 64287, 64651, 64909, 65092, 65222),
)


def logarithm(x):
    if x == 0:
        return -4096.0
    f, e = math.frexp(x)
    z = (f - 0.7071067811865476) / (f + 0.7071067811865476)
    total = 0.0
    for n in range(19, 0, -2):
        total = total * (z * z) + 1 / n
    return (z * total) * (2 / 0.6931471805599453) + (e - 0.5)


def exponential(w):
    w = min(max(w, -4096.0), 4096.0)
    r, total = (w - math.floor(w)) * 0.6931471805599453, 1.0
    for n in range(13, 0, -1):
        total = (total * r) * (1 / n) + 1
    try:
        return math.ldexp(total, math.floor(w))
    except OverflowError:
        return math.inf


def with_sign(value, of):
    return math.copysign(abs(value), of)


def place_of(kind, s, other, x):
    if kind == 1:
        return x
    if kind == 2:
        return with_sign(math.sqrt(abs(x) + other) - math.sqrt(other), x)
    o = (logarithm(abs(x)) - logarithm(other)) + s
    return with_sign(0.0 if o < s / 2 else o, x)


def pixel_at(kind, s, other, p):
    if kind == 1:
        return p
    if kind == 2:
        root = abs(p) + math.sqrt(other)
        return with_sign(root * root - other, p)
    return with_sign(0.0 if abs(p) < s / 2 else exponential((abs(p) - s) + logarithm(other)), p)


def pushes_of():
    """Yield the sets of rows and columns of each push, its half of the weights, and where neighbours are."""
    yield [(0, 0, 16, 16)], None, [], []
    for a in (16, 8, 4, 2):
        h = a // 2
        yield [(h, h, a, a)], 0, [(dy * h, dx * h) for dy in (-1, 1) for dx in (-1, 1)], []
        four = [(h, 0), (-h, 0), (0, h), (0, -h)]
        eight = [(dy * h, dx * h) for dy in (-2, -1, 1, 2) for dx in (-2, -1, 1, 2) if abs(dy) != abs(dx)]
        yield [(h, 0, a, a), (0, h, a, a)], 1, four, eight


def table_of(context, seen):
    c = context // 4
    side = [2**32]
    for _ in range(127):
        side.append(side[-1] * RARER[c] // 2**16)
    everything = side[0] + 2 * sum(side[1:])
    weights = []
    for v in range(-127, 128):
        near = sum(seen.get(u, 0) for u in range(max(v - RADIUS[c], -127), min(v + RADIUS[c], 127) + 1))
        weights.append(1024 * near // (2 * RADIUS[c] + 1) + 4096 * side[abs(v)] // everything)
    weights.append(1024 * sum(n for u, n in seen.items() if abs(u) > 127) + 1)
    found = [weight * (2**24 - 256) // sum(weights) + 1 for weight in weights]
    found[found.index(max(found))] += 2**24 - sum(found)
    return found


def popped(stack, index, tables, lowest):
    """Take one push off a stack: the symbols of a list of tables."""
    symbols, escaped = [None] * len(index), []
    for k in sorted(set(index)):
        for n in (n for n, of in enumerate(index) if of == k):
            entry = stack.decode(tables[k])
            symbols[n] = lowest + entry
            if entry == len(tables[k]) - 1:
                escaped.append(n)
    codes, going, shift = dict.fromkeys(escaped, 0), escaped, 0
    while going:
        read = [stack.decode([1 << 16] * 256) for _ in going]
        for n, byte in zip(going, read, strict=True):
            codes[n] |= (byte & 127) << shift
        going, shift = [n for n, byte in zip(going, read, strict=True) if byte > 127], shift + 7
    for n, code in codes.items():
        above = lowest + len(tables[index[n]]) - 1
        symbols[n] = lowest - 1 - code // 2 if code % 2 else above + code // 2
    return symbols


def steps_by_the_page(data, shape, others):
    """Return steps, by place, of a residual, and the numbers that follow them; others are their steps."""
    (height, width), begin = shape, 5 if data[0] == 1 else 9
    size = 2 * (1 + 2 * len(others))
    weights, stack = struct.unpack_from(f"<{size}b", data, begin), Stack(data[begin + size :])
    steps, off, seen = {}, {}, {}

    def u(of, i, j):
        d = of.get((i, j), 0)
        return 0 if d == 2**30 else min(max(d, -255), 255)

    for sets, half, four, eight in pushes_of():
        pixels = [
            (i, j)
            for top, left, down, across in sets
            for i in range(top, height, down)
            for j in range(left, width, across)
        ]
        contexts, means = [], []
        for i, j in pixels:
            m, e = 0, 224
            if half is not None:
                use = list(weights[half * (1 + 2 * len(others)) :])
                m = use.pop(0) * sum(u(steps, i + y, j + x) for y, x in four)
                for other in others:
                    m += use.pop(0) * u(other, i, j)
                    m += use.pop(0) * sum(u(other, i + y, j + x) for y, x in four)
                e = (5 if half else 7) * sum(off.get((i + y, j + x), 0) for y, x in four)
                e += sum(off.get((i + y, j + x), 0) for y, x in eight)
                e += 45 * abs(u(others[0], i, j)) if others else 0
            part = m - 64 * ((m + 32) // 64)
            c = sum(begin <= e for begin in BEGIN)
            contexts.append(4 * c + min(abs(part) // 8, 3))
            means.append(m)
        tables = {context: table_of(context, seen.get(context, {})) for context in set(contexts)}
        symbols = popped(stack, contexts, tables, -127)
        for (i, j), context, m, symbol in zip(pixels, contexts, means, symbols, strict=True):
            whole = (m + 32) // 64
            d = 2**30 if symbol == 2**30 else whole + (-symbol if m < 64 * whole else symbol)
            steps[i, j] = d
            off[i, j] = 2040 if d == 2**30 else min(abs(64 * u(steps, i, j) - m) // 8, 2040)
            here = seen.setdefault(context, {})
            here[symbol] = here.get(symbol, 0) + 1
    exact = sorted(at for at, d in steps.items() if d == 2**30)
    follow = bytes(popped(stack, [0] * 4 * len(exact), {0: [65535] * 256 + [256]}, 0))
    assert not stack.words
    return steps, dict(zip(exact, struct.unpack(f"<{len(exact)}f", follow), strict=True))


def by_the_page(base, data, steps, told):
    """Apply a residual as the format page says."""
    kind, out = data[0], np.empty_like(base)
    s, other = (*struct.unpack_from("<f" if kind == 1 else "<ff", data, 1), 0.0)[:2]
    for (i, j), d in steps.items():
        x = float(base[i, j])
        p = place_of(kind, s, other, x)
        if d == 0:
            out[i, j] = 0 if kind == 3 and p == 0 else x
        elif d == 2**30:
            out[i, j] = told[i, j]
        else:
            largest = float(np.finfo(np.float32).max)
            out[i, j] = min(max(pixel_at(kind, s, other, p + d * s), -largest), largest)
    return out


@pytest.mark.parametrize("text", ["2sigma", "0.5sigma", "5%", "40%", "4DN/s", "0.3DN/s"])
@pytest.mark.parametrize("shape", [(23, 40), (1, 1), (5, 18)])
def test_a_decoder_written_from_the_format_page_gives_the_same_bits(text, shape):
    pixels, base = image(*shape, noise=8)
    pixels[:3, :4] *= -0.01
    pixels[:1, 2:9] = 0
    pixels[-1:, -2:] *= 1000
    pixels[0, -1], base[0, -1] = 1e-9, 3e38
    data, shown = correct(pixels, base, bound(text), "171A", Scale.MEAN)
    assert 1 <= data[0] <= 4
    if data[0] < 4:
        assert by_the_page(base, data, *steps_by_the_page(data, shape, [])).tobytes() == shown.tobytes()


#: Those that a channel may look at, as the page has them.
LOOK = {"94A": (6, 4, 3, 2, 7), "131A": (2, 4, 3, 7), "171A": (3, 8, 11), "193A": (), "211A": (3, 8, 11)}


def frame_of(names, shape=(23, 40)):
    """Return images that err alike, and what a model might make of them."""
    pixels, base = zip(*[image(*shape, seed=n) for n in range(len(names))], strict=True)
    alike = np.random.default_rng(9).normal(0, 30, shape).astype(np.float32)
    return np.stack(pixels) + alike, np.stack(base)


def test_channels_tell_of_each_other():
    names = ["131A", "171A", "193A", "211A"]
    pixels, base = frame_of(names)
    bounds = bounds_of("171A=3sigma,193A=9sigma,211A=20DN/s,131A=30DN/s")
    parts, shown = residual.correct(pixels, base, names, bounds, Scale.MEAN)
    for c, name in enumerate(names):
        assert bounds[name].outside(pixels[c], shown[c], name, Scale.MEAN) == 0
    # Alone they take more.
    alone = [correct(pixels[c], base[c], bounds[n], n, Scale.MEAN)[0] for c, n in enumerate(names)]
    assert [len(part) < len(own) for part, own in zip(parts, alone, strict=True)] == [True, True, False, True]
    steps, told = {}, {}
    for name, index in (("193A", 3), ("171A", 2), ("211A", 4), ("131A", 1)):
        others = [steps[other] for other in LOOK[name] if other in steps][:2]
        data = parts[names.index(name)]
        steps[index], told[index] = steps_by_the_page(data, base.shape[1:], others)
        found = by_the_page(base[names.index(name)], data, steps[index], told[index])
        assert found.tobytes() == shown[names.index(name)].tobytes()
    for wanted in (["131A"], ["211A", "131A"], ["193A"], names):
        those = [names.index(name) for name in wanted]
        found = residual.corrected(base[those], wanted, names, parts)
        np.testing.assert_array_equal(found, shown[those])


def test_channels_that_are_not_moved_or_told_whole_tell_nothing():
    names = ["171A", "193A", "211A"]
    pixels, base = frame_of(names)
    for bounds in ("171A=3sigma", "171A=3sigma,193A=1e6DN/s", "171A=3sigma,193A=1e-9DN/s,211A=2%"):
        parts, shown = residual.correct(pixels, base, names, bounds_of(bounds), Scale.MEAN)
        assert parts[0] == correct(pixels[0], base[0], bound("3sigma"), "171A", Scale.MEAN)[0]
        np.testing.assert_array_equal(residual.corrected(base, names, names, parts), shown)
    np.testing.assert_array_equal(shown[1], pixels[1])


# Bytes of strangers


@pytest.mark.parametrize("text", ["2sigma", "5%", "4DN/s"])
def test_what_is_cut_off_or_changed_gives_an_error_or_pixels(text):
    pixels, base = image(24, 24)
    data = held(pixels, base, text)
    rng = np.random.default_rng(0)
    wrong = [data[:n] for n in range(1, len(data), max(1, len(data) // 40))]
    for _ in range(150):
        other = bytearray(data)
        other[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        wrong.append(bytes(other))
    told = 0
    for other in wrong:
        try:
            assert np.isfinite(corrected(base, other)).all()
        except DamagedError:
            told += 1
    # What steps are is no matter of damage; all else ends the coder elsewhere.
    assert told > 0.7 * len(wrong)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x00", "no kind"),
        (b"\x05" + bytes(8), "no kind"),
        (b"\x01\0\0", "ends where it begins"),
        (b"\x02" + bytes(4), "ends where it begins"),
        (b"\x01" + np.float32(np.nan).tobytes(), "step"),
        (b"\x01" + np.float32(0).tobytes(), "step"),
        (b"\x03" + np.float32([1, -1]).tobytes(), "step"),
        (b"\x04no zstd", "pixels states"),
        (b"\x01" + np.float32(1).tobytes() + b"\0", "ends where it begins"),
        (b"\x01" + np.float32(1).tobytes() + bytes(2), "does not end"),
        (b"\x01" + np.float32(1).tobytes() + bytes(3), "zero byte"),
    ],
)
def test_what_is_wrong_is_named(data, says):
    with pytest.raises(DamagedError, match=f"{says}"):
        corrected(np.zeros((16, 16), np.float32), data)


def moved(image, follow=()):
    """Return a residual of steps of 1 that moves an image so, as it is written."""
    encoder = Encoder()
    moves.push(encoder, image, [], [0, 0])
    follow = np.array(follow, np.int32)
    encoder.push(follow, np.zeros(len(follow), np.int32), residual._BYTES)
    return b"\x01" + np.float32(1).tobytes() + bytes(2) + encoder.finish()


def test_a_stranger_moves_pixels_as_far_as_can_be_and_no_further():
    base, image_of = np.zeros((16, 16), np.float32), np.zeros((16, 16), np.int32)
    image_of[3, 5], image_of[4, 4] = 2**30 - 2**20, -(2**30 - 2**20)
    out = corrected(base, moved(image_of))
    assert out[3, 5] == 2.0**30 - 2.0**20 == -out[4, 4]
    huge = b"\x01" + np.float32(2.0**99).tobytes() + moved(image_of)[5:]
    assert np.isfinite(corrected(np.full_like(base, 3e38), huge)).all()
    image_of[3, 5] = moves.TOLD
    assert corrected(base, moved(image_of, [0, 0, 128, 63]))[3, 5] == 1
    for follow, says in (([0, 0, 128, 127], "not finite"), ([0, 0, 1 << 20, 63], "no byte")):
        with pytest.raises(DamagedError, match=says):
            corrected(base, moved(image_of, follow))
    for wrong in (-moves.TOLD, moves.TOLD - 1, -(2**31), 2**31 - 1):
        image_of[3, 5] = wrong
        with pytest.raises(DamagedError, match="more steps"):
            corrected(base, moved(image_of))


@given(st.binary(min_size=10, max_size=10), st.integers(0, 2**32 - 1))
def test_weights_of_a_stranger_foretell_what_they_will(weights, seed):
    rng = np.random.default_rng(seed)
    others = [rng.integers(-(2**30), 2**30, (17, 20)).astype(np.int32) for _ in range(2)]
    image_of = rng.integers(-(2**29), 2**29, (17, 20)).astype(np.int32) * (rng.random((17, 20)) < 0.3)
    weights, encoder = np.frombuffer(weights, np.int8).tolist(), Encoder()
    moves.push(encoder, image_of.astype(np.int32), others, weights)
    found = moves.pop(Decoder(encoder.finish()), (17, 20), others, weights)
    np.testing.assert_array_equal(found, image_of)


def test_tables_sum_up_for_as_many_pixels_as_an_image_can_have():
    counts = moves._Counts()
    counts._seen[:, 100] = 16384**2
    tables, _ = counts.tables(np.arange(len(counts._seen), dtype=np.int32))
    assert len(tables) == len(counts._seen)


def test_logarithm_and_exponential_are_those_of_mathematics():
    x = np.geomspace(1e-300, 1e300, 5000)
    np.testing.assert_allclose(residual._octaves(x), np.log2(x), rtol=1e-9, atol=1e-9)
    w = np.linspace(-1000, 1000, 5000)
    np.testing.assert_allclose(residual._doubled(w), 2.0**w, rtol=1e-9)
    assert Bound(Measure.PERCENT, 5.0) == bound("5%")
