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

from sunzip import residual
from sunzip.bounds import Bound, Measure, bounds_of
from sunzip.cube import Scale
from sunzip.entropy.coder import Encoder
from sunzip.errors import DamagedError
from sunzip.residual import correct, corrected
from tests.entropy.test_coder import Stack


def image(height=40, width=37, seed=0, level=300.0, noise=20.0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = level * (1 + np.sin(y / 7) * np.cos(x / 9))
    return (smooth + rng.normal(0, noise, (height, width))).astype(np.float32), smooth.astype(np.float32)


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
    again = corrected(base, data)
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
    assert correct(pixels, base, bound("1000DN/s"), "171A", Scale.MEAN) == (b"", base)


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
    "2sigma": "10e61fba2220fe00 68f4bcddb27dc89f",
    "5%": "6db82b744357f288 b01ef05537dfa589",
    "4DN/s": "a9b8358e6d3225da 051361018f920006",
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
def test_bytes_decode_for_ever_to_the_same_bits(text):
    pixels, base = golden_images()
    data, shown = correct(pixels, base, bound(text), "171A", Scale.MEAN)
    found = sha256(data).hexdigest()[:16] + " " + sha256(shown.astype("<f4").tobytes()).hexdigest()[:16]
    assert found == GOLDEN[text]


# docs/reference/format-v1.md, "Residuals", word by word, without numpy


BEGIN = (
    1,
    2,
    4,
    6,
    9,
    13,
    19,
    27,
    38,
    55,
    78,
    111,
    157,
    223,
    316,
    447,
    632,
    895,
    1266,
    1791,
    2533,
    3583,
    5067,
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


def pushes_of(height, width):
    """Yield the sets of rows and columns of each push, and how its pixels' neighbours weigh."""
    yield [(0, 0, 16, 16)], None
    for a in (16, 8, 4, 2):
        h = a // 2
        yield [(h, h, a, a)], [(7, dy * h, dx * h) for dy in (-1, 1) for dx in (-1, 1)]
        four = [(5, h, 0), (5, -h, 0), (5, 0, h), (5, 0, -h)]
        eight = [(1, dy * h, dx * h) for dy in (-2, -1, 1, 2) for dx in (-2, -1, 1, 2) if abs(dy) != abs(dx)]
        yield [(h, 0, a, a), (0, h, a, a)], four + eight


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


def by_the_page(base, data):
    """Apply a residual as the format page says."""
    kind, (height, width) = data[0], base.shape
    count = 1 if kind == 1 else 2
    s, other = (*struct.unpack(f"<{count}f", data[1 : 1 + 4 * count]), 0.0)[:2]
    stack, moves, seen = Stack(data[1 + 4 * count :]), {}, {}
    for sets, near in pushes_of(height, width):
        pixels = [
            (i, j)
            for top, left, down, across in sets
            for i in range(top, height, down)
            for j in range(left, width, across)
        ]
        contexts, signs = [], []
        for i, j in pixels:
            size, leaning = 28, 0
            if near is not None:
                around = [(w, min(max(moves.get((i + y, j + x), 0), -255), 255)) for w, y, x in near]
                size, leaning = sum(w * abs(d) for w, d in around), sum(w * d for w, d in around)
            c = sum(begin <= size for begin in BEGIN)
            contexts.append(4 * c + sum(n * (size + 1) <= 8 * abs(leaning) for n in (1, 3, 5)))
            signs.append(-1 if leaning < 0 else 1)
        tables = {context: table_of(context, seen.get(context, {})) for context in set(contexts)}
        symbols = popped(stack, contexts, tables, -127)
        for at, context, sign, symbol in zip(pixels, contexts, signs, symbols, strict=True):
            moves[at] = sign * symbol
            here = seen.setdefault(context, {})
            here[symbol] = here.get(symbol, 0) + 1
    exact = sorted(at for at, d in moves.items() if abs(d) == 2**30)
    follow = bytes(popped(stack, [0] * 4 * len(exact), {0: [65535] * 256 + [256]}, 0))
    assert not stack.words
    out = np.empty_like(base)
    for (i, j), d in moves.items():
        x = float(base[i, j])
        p = place_of(kind, s, other, x)
        if d == 0:
            out[i, j] = 0 if kind == 3 and p == 0 else x
        elif abs(d) == 2**30:
            out[i, j] = struct.unpack_from("<f", follow, 4 * exact.index((i, j)))[0]
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
        assert by_the_page(base, data).tobytes() == shown.tobytes()


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
        (b"\x01" + np.float32(1).tobytes(), "does not end"),
        (b"\x01" + np.float32(1).tobytes() + b"\0", "zero byte"),
    ],
)
def test_what_is_wrong_is_named(data, says):
    with pytest.raises(DamagedError, match=f"{says}"):
        corrected(np.zeros((16, 16), np.float32), data)


def moved(moves, follow=()):
    """Return a residual of steps of 1 that moves an image so, as it is written."""
    encoder, counts = Encoder(), residual._Counts()
    for views, contexts, signs in residual._walk(moves):
        symbols = np.concatenate([view.ravel() for view in views]) * signs
        tables, index = counts.tables(contexts)
        encoder.push(symbols, index, tables)
        counts.count(contexts, symbols)
    follow = np.array(follow, np.int32)
    encoder.push(follow, np.zeros(len(follow), np.int32), residual._BYTES)
    return b"\x01" + np.float32(1).tobytes() + encoder.finish()


def test_a_stranger_moves_pixels_as_far_as_can_be_and_no_further():
    base, moves = np.zeros((16, 16), np.float32), np.zeros((16, 16), np.int32)
    moves[3, 5], moves[4, 4] = (1 << 30) - 1, -((1 << 30) - 1)
    out = corrected(base, moved(moves))
    assert out[3, 5] == 2.0**30 == -out[4, 4]
    moves[3, 5] = 1 << 30
    assert corrected(base, moved(moves, [0, 0, 128, 63]))[3, 5] == 1
    for follow, says in (([0, 0, 128, 127], "not finite"), ([0, 0, 1 << 20, 63], "no byte")):
        with pytest.raises(DamagedError, match=says):
            corrected(base, moved(moves, follow))
    moves[3, 5] = (1 << 30) + 1
    with pytest.raises(DamagedError, match="more steps"):
        corrected(base, moved(moves))
    huge = (
        b"\x01"
        + np.float32(2.0**99).tobytes()
        + moved(np.where(moves, (1 << 30) - 1, 0).astype(np.int32))[5:]
    )
    assert np.isfinite(corrected(np.full_like(base, 3e38), huge)).all()


def test_tables_sum_up_for_as_many_pixels_as_an_image_can_have():
    counts = residual._Counts()
    counts._seen[:, 100] = 16384**2
    tables, _ = counts.tables(np.arange(len(counts._seen), dtype=np.int32))
    assert len(tables) == len(counts._seen)


def test_logarithm_and_exponential_are_those_of_mathematics():
    x = np.geomspace(1e-300, 1e300, 5000)
    np.testing.assert_allclose(residual._octaves(x), np.log2(x), rtol=1e-9, atol=1e-9)
    w = np.linspace(-1000, 1000, 5000)
    np.testing.assert_allclose(residual._doubled(w), 2.0**w, rtol=1e-9)
    assert Bound(Measure.PERCENT, 5.0) == bound("5%")
