"""The wavelet family: what is decoded is what the encoder saw, alone and in blocks, and damage is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from sunzip import weights
from sunzip.api import open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec, lanes, walk, wavelet
from sunzip.codec.family import Float, Known, Latents, Reference, Written
from sunzip.codec.head import DEPARTURES, Turns, Ways, as_told, departs, qualities, unpacked
from sunzip.codec.order import order
from sunzip.codec.symbols import SHIFT_MOST, VARIANTS, Coefficients, Draft, Int, Reader, Writer
from sunzip.codec.walk import Frame, Plan, Walk
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Scale, disk_radius
from sunzip.entropy.coder import Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError, InputError
from sunzip.frame import EMPTY, Block, is_raw
from sunzip.nn.exact import ExactContext, parts_of
from sunzip.nn.planes import LEVELS, SCALES, TRUST_MOST, WIDTHS, Places, decoded_planes, level_of, references
from sunzip.pyramid import bands_of, from_lazy, grid_of, to_picture
from sunzip.recent import Recent
from sunzip.rotation import MAX_MINUTES, turned
from sunzip.weights import TENSORS, Model, pack

Frames = Callable[..., np.ndarray]
THREE, FOUR = ("171A", "304A", "Bz"), ("171A", "193A", "304A", "Bz")
ALL = tuple(range(12))
PLACED, TIMED, LAZY, ROUND, LINKED, OWN, NEWS = 1, 2, 4, 8, 16, 32, 64
LEVELLED = TIMED  # with models of trusts

#: How alike frames are taken to be, and how to find that out.
ALIKE = 1.0
likeness, alike = WaveletFamily.likeness, WaveletFamily._alike

#: No coefficient with a symbol lies further from what is decoded, in steps: 1.5 to the cheaper symbol, 0.75
#: from there.
FURTHEST = 2.3

#: What may be wrong with symbols that are read where there are none.
ENDED = "more than any can|more than can be|escape|does not end"


@pytest.fixture(autouse=True, scope="module")
def believing() -> Iterator[None]:
    """Have encoders build on other frames if they may: the networks here are random, and do not tell.

    Three and more frames are taken to be alike.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaveletFamily, "_alike", staticmethod(lambda *pyramids: ALIKE))
        patch.setattr(WaveletFamily, "likeness", lambda *frames: ALIKE)
        yield


@pytest.fixture(autouse=True)
def lately(monkeypatch: pytest.MonkeyPatch) -> Recent[Any, Reference]:
    """Frames on which others build, as if none had been decoded before."""
    recent: Recent[Any, Reference] = Recent(1 << 28)
    monkeypatch.setattr("sunzip.codec.decoding._lately", recent)
    return recent


@pytest.fixture(scope="module")
def codec(wavelet_model: Model) -> Codec:
    return Codec(wavelet_model, 85)


@pytest.fixture(scope="module")
def family(codec: Codec) -> WaveletFamily:
    assert isinstance(codec.family, WaveletFamily)
    return codec.family


def film(t: int, c: int, y: int, x: int, minutes: int = 60, seed: int = 0) -> Float:
    """Return frames that turn with the Sun and change a little: (t, c, y, x)."""
    rng = np.random.default_rng(seed)
    up, right = np.mgrid[:y, :x] / 4.0
    phase = rng.uniform(0, 6, (3, c, 1, 1))
    first = 300 + 200 * np.sin(up + phase[0]) * np.cos(right * 1.3 + phase[1]) * np.sin(
        up * right / 9 + phase[2]
    )
    frames = [first.astype(np.float32)]
    for _ in range(t - 1):
        frames.append(turned(frames[-1], minutes))
    return (np.stack(frames) + rng.normal(0, 3, (t, c, y, x))).astype(np.float32)


def images_of(family: WaveletFamily, frame: Float, channels: Sequence[int], quality: int) -> Latents:
    """Return the latents of a frame (C, Y, X) of physical units."""
    images = np.zeros((1, 12, *frame.shape[1:]), np.float32)
    images[0, list(channels)] = family.stabiliser.subset(channels).forward(frame)
    present = np.zeros((1, 12), np.float32)
    present[0, list(channels)] = 1
    return family.analyse(images, present, quality)[0]


@cache
def payload_of(family: WaveletFamily, quality: int = 50, channels: tuple[int, ...] = (2, 5, 11)) -> bytes:
    latents = images_of(family, film(1, len(channels), 32, 32)[0], channels, quality)
    return family.encode(latents, quality, Known(channels, (32, 32))).payload


class Told(NamedTuple):
    """What a payload tells: by its bits, of frames that it builds on, of its quality, and what follows."""

    bits: int
    back: int
    ahead: int
    minutes: list[int]
    own: int | None
    departing: bool
    rest: bytes

    @classmethod
    def by(cls, payload: bytes) -> Told:
        """Read it as the format says."""
        bits, rest = payload[0], payload[1:]
        back = ahead = 0
        minutes, own, departing = [], None, False
        if bits & LINKED:
            back, ahead, rest = rest[0] & 15, rest[0] >> 4, rest[1:]
            for _ in range(bool(back) + bool(ahead)):
                minutes.append(rest[0] * 6 if rest[0] <= 120 else 720 + (rest[0] - 120) * 60)
                rest = rest[1:]
        if bits & OWN:
            own, departing, rest = rest[0] % 128, rest[0] >= 128, rest[1:]
        return cls(bits, back, ahead, minutes, own, departing, rest)


def alone(payload: bytes) -> bytes:
    """Return a payload that builds on no frame as it is in a block of that quality."""
    told = Told.by(payload)
    assert not told.bits & LINKED
    return bytes([told.bits & ~OWN]) + told.rest


def levels_told(family: WaveletFamily, payload: bytes, quality: int, known: Known) -> dict[int, int]:
    """Return of each channel of how many levels, from the coarsest, a payload holds symbols."""
    depth, told, side = grid_of(*known.shape).depth, [], Reader.side

    def asked(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        found = side(self, kind, index, values)
        if kind == "silent":
            told.extend((depth - found).tolist())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "side", asked)
        family.decode(payload, quality, known)
    return dict(zip(known.channels, told, strict=True))


def foretold_of(family: WaveletFamily, payload: bytes, quality: int, known: Known) -> Frame | None:
    """Return what other frames foretell of one, and of which channels; None if it builds on none."""
    head = unpacked(payload, quality, known, disks=True, trusts=True, tiles=True)
    return family._turned(known, grid_of(*known.shape), head.turns, head.ways.lazy)


def hold_near(family: WaveletFamily, written: Written, latents: Latents, quality: int, known: Known) -> None:
    """Hold coefficients to lie near what they were, or to be as other frames foretell them if left out."""
    grid, time = grid_of(*known.shape), foretold_of(family, written.payload, quality, known)
    told = Told.by(written.payload)
    assert written.decoded is not None
    of_channels = qualities(quality if told.own is None else told.own, told.departing)
    step = family.step[of_channels, ALL][:, None, None]
    apart = np.abs(written.decoded - latents.main) / step
    h, w = grid.height >> grid.depth, grid.width >> grid.depth
    assert apart[:, :h, :w].max() < FURTHEST
    for c, levels in levels_told(family, written.payload, quality, known).items():
        for n in range(grid.depth):
            if n < levels or time is None:
                assert bands_of(apart[[c]], *grid.level(n)).max() < FURTHEST
                continue
            found, expected = (bands_of(p[[c]], *grid.level(n)) for p in (written.decoded, time[0]))
            np.testing.assert_array_equal(found, expected if c in time[1] else 0)


# --- one frame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "quality"), [((16, 16), 0), ((48, 80), 60), ((100, 130), 30), ((128, 128), 10), ((17, 40), 100)]
)
def test_decoded_is_what_the_encoder_made_of_it(
    family: WaveletFamily, shape: tuple[int, int], quality: int
) -> None:
    then, now, later = film(3, 3, *shape)
    channels = (2, 5, 11)
    known = Known(channels, shape)
    others = []
    for frame in (then, later):
        fine = max(quality, 70)  # so that they are known for what they are
        written = family.encode(images_of(family, frame, channels, fine), fine, known)
        assert written.decoded is not None
        assert (family.decode(written.payload, fine, known) == written.decoded).all()
        others.append(written.decoded)
    early, late = (family.reference(other, channels, shape) for other in others)
    given: list[tuple[Reference | None, Reference | None]] = [(None, None), (early, None), (early, late)]
    if max(shape) <= 80:
        strange = family.reference(others[0], (0, 1), shape)
        given += [(None, late), (strange, late), (strange, None)]
        given += [(family.reference(others[0], (2, 11), shape), family.reference(others[1], (5, 11), shape))]
    latents = images_of(family, now, channels, quality)
    for before, after in given:
        known = Known(channels, shape, before, after, 3, 15)
        for own in (None, 35):
            written = family.encode(latents, quality, known, own)
            told = Told.by(written.payload)
            # Those without a common channel are of no use.
            useful = [other is not None and 11 in other.channels for other in (before, after)]
            assert (told.back, told.ahead) == (3 * useful[0], 15 * useful[1])
            assert bool(told.bits & LINKED) == any(useful)
            assert told.own == own
            assert written.decoded is not None
            assert written.decoded.shape == latents.main.shape
            _, h, w = family.latent_shape(*shape)
            coarse = family.latents(written.payload, quality, known)
            assert coarse.shape == (12, h, w)
            assert not coarse[np.setdiff1d(ALL, channels)].any()
            assert (family.decode(written.payload, quality, known) == written.decoded).all()
            hold_near(family, written, latents, quality, known)
            assert not written.decoded[np.setdiff1d(ALL, channels)].any()


def test_levels_left_out_are_what_other_frames_foretell(family: WaveletFamily) -> None:
    channels, shape, quality = (2, 5, 11), (64, 64), 60
    latents = images_of(family, film(1, 3, *shape)[0], channels, quality)
    first = family.encode(latents, quality, Known(channels, shape)).decoded
    assert first is not None
    before = family.reference(first, channels, shape)
    known = Known(channels, shape, before)
    same = Latents(first, np.zeros(0, np.float32))
    written = family.encode(same, quality, known)
    assert Told.by(written.payload).minutes == [0]
    assert len(written.payload) < 64
    assert written.decoded is not None
    step = family.step[quality][:, None, None]
    assert (np.abs(written.decoded - first) / step).max() < 0.01
    assert (family.decode(written.payload, quality, known) == written.decoded).all()
    # Halfway between two they are halfway between these, where neither lies an audible step from there.
    other = first.copy()
    other[list(channels), 32:, 32:] += step[list(channels)] * 0.8
    middle = (first + other) / 2
    known = Known(channels, shape, before, family.reference(other, channels, shape))
    written = family.encode(Latents(middle, np.zeros(0, np.float32)), quality, known)
    assert Told.by(written.payload).minutes == [0, 0]
    assert written.decoded is not None
    assert (np.abs(written.decoded - middle) / step).max() < 0.01
    assert (np.abs(written.decoded - first) / step).max() > 0.3


def test_what_others_build_on_is_the_better_and_all_qualities_exist(family: WaveletFamily) -> None:
    for quality in range(101):
        for like in (0, 0.2, 0.5, 0.7, 0.9, 1):
            found = [family.own_quality(quality, depth, like) for depth in range(12)]
            assert all(0 <= own <= 100 for own in found)
            assert found == sorted(found, reverse=True)
            if like == 0:
                assert found == [quality] * 12
    alike, less = ([family.own_quality(50, depth, like) for depth in range(12)] for like in (1, 0.7))
    assert alike[0] > 50 > alike[2]
    assert np.ptp(less) < np.ptp(alike)


def test_frames_are_alike_if_those_around_tell_what_is_between(
    family: WaveletFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WaveletFamily, "_alike", staticmethod(alike))
    channels, shape = (2, 5, 11), (64, 64)

    def found(frames: Float, quality: int = 60) -> float:
        three = [images_of(family, frame, channels, quality) for frame in frames]
        return likeness(family, three, quality, Known(channels, shape))

    same = film(1, 3, *shape).repeat(3, 0)
    turning = film(3, 3, *shape, minutes=120)
    others = np.concatenate([film(1, 3, *shape, seed=seed) for seed in range(3)])
    assert found(same) > 0.999
    assert 0.2 < found(turning) < 1
    assert found(turning, 30) > found(turning, 100)  # of noise, the more of which is coded, they tell nothing
    # One after another, and not all at once.
    assert found(turning[[0, 2, 1]]) < found(turning)
    assert found(others) == 0
    assert found(np.zeros_like(same)) in (0, 1)
    # Noise that is too faint to be coded says nothing, in however many channels.
    units = family.stabiliser.subset(channels)
    stable = units.forward(same)
    noise = np.random.default_rng(4).normal(0, 0.2, (3, 2, *shape))
    stable[:, 1:] = noise * family.step[60, [5, 11]][:, None, None]
    faint = units.inverse(stable)
    assert found(faint) > 0.9


def test_frames_that_are_unlike_build_each_on_the_one_before(
    codec: Codec, series: Float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unlike(self: WaveletFamily, three: Sequence[Latents], quality: int, known: Known) -> float:
        asked.append((len(three), quality, known.channels, known.shape))
        return 0.0

    monkeypatch.setattr(WaveletFamily, "likeness", unlike)
    (block,) = codec.encode(series, FOUR, frames_per_block=6)
    # Three in the middle of those that are not empty, the first and the last, by the channels they share.
    assert asked == [(3, 85, shared, (32, 48)) for shared in ((11,), (11,), (5, 11))]
    told = [Told.by(payload) for payload in Block.unpack(block).payloads if payload]
    assert [(t.back, t.ahead) for t in told] == [(0, 0), *[(1, 0)] * 4]
    assert all(t.own is None for t in told)
    together = codec.decode([block], FOUR, (32, 48))
    assert (np.isnan(together) == np.isnan(series)).all()
    for t in range(6):
        one = codec.decode([block], FOUR, (32, 48), frames=[t])[0]
        assert np.array_equal(one, together[t], equal_nan=True)
    # Of two, or three without a common channel, nothing is asked.
    codec.encode(series[:3], FOUR, frames_per_block=3)
    apart = film(3, 3, 16, 16)
    apart[0, 0] = apart[1, 1] = apart[2, 2] = np.nan
    codec.encode(apart, THREE, frames_per_block=3)
    assert len(asked) == 3


def steadied(
    family: WaveletFamily, frames: Float, place: int = 0, quality: int = 40, likeness: float = 1.0
) -> tuple[Float, Float]:
    """Return one of some frames (T, 3, Y, X) as the others have it, and as it is: pictures (3, Y, X)."""
    channels, shape = (2, 5, 11), (frames.shape[2], frames.shape[3])
    grid = grid_of(*shape)
    latents = [images_of(family, frame, channels, quality) for frame in frames]
    others = ((latents[n], channels, n - place) for n in range(len(frames)) if n != place)
    found = family.steadied(latents[place], others, quality, Known(channels, shape), likeness)
    assert not found.main[[c for c in ALL if c not in channels]].any()
    pictures = (to_picture(p.main[list(channels)], grid, grid.depth) for p in (found, latents[place]))
    new, old = pictures
    return new, old


def noisy(t: int, quality: int, family: WaveletFamily, share: float) -> tuple[Float, Float]:
    """Return frames (t, 3, 64, 64) of one scene, whose noise is some share of a step, and the scene."""
    scene = family.stabiliser.subset([2, 5, 11]).forward(film(1, 3, 64, 64)[0])
    noise = np.random.default_rng(3).normal(0, share, (t, 3, 64, 64)).astype(np.float32)
    noise *= family.step[quality, [2, 5, 11]][:, None, None]
    return family.stabiliser.subset([2, 5, 11]).inverse(scene + noise), scene


@pytest.mark.parametrize("place", [0, 2, 4])
def test_what_others_build_on_has_less_noise_than_it_had(family: WaveletFamily, place: int) -> None:
    frames, scene = noisy(5, 40, family, 0.2)
    new, old = steadied(family, frames, place)
    assert ((new - scene).std((1, 2)) < 0.7 * (old - scene).std((1, 2))).all()


def test_frames_that_are_less_alike_lean_less_on_each_other(family: WaveletFamily) -> None:
    frames, scene = noisy(5, 40, family, 0.2)
    errors = [float((steadied(family, frames, likeness=like)[0] - scene).std()) for like in (0.6, 0.7, 1)]
    assert errors == sorted(errors, reverse=True)
    assert [family.leans(like) for like in (0, 0.5, 0.6, 1)] == [False, False, True, True]


def test_what_only_one_frame_has_stays(family: WaveletFamily) -> None:
    """A flare of one frame is not taken from it, nor given to another."""
    frames, _ = noisy(4, 40, family, 0.1)
    flare = np.zeros((64, 64), np.float32)
    flare[20:26, 30:36] = 5000
    for place in (0, 1):
        frames[place, :2] += flare
        new, old = steadied(family, frames)
        frames[place, :2] -= flare
        step = family.step[40, [2, 5, 11]][:, None, None]
        assert (np.abs(new - old) / step).max() < 0.7
        assert (np.abs(new - old) / step)[:2, 20:26, 30:36].mean() < 0.1


def test_without_others_a_frame_is_as_it_is(family: WaveletFamily) -> None:
    new, old = steadied(family, film(1, 3, 48, 64))
    assert np.array_equal(new, old)
    # Of channels that another lacks nothing is told, and what is nothing like it has no say.
    known, quality = Known((2, 5, 11), (64, 64)), 40
    first, second = (images_of(family, frame, (2, 5, 11), quality) for frame in noisy(2, 40, family, 0.2)[0])
    found = family.steadied(first, [(second, (5,), 1)], quality, known, 1.0).main
    assert [c for c in ALL if not np.array_equal(found[c], first.main[c])] == [5]
    other = images_of(family, film(1, 3, 64, 64, seed=9)[0], (2, 5, 11), quality)
    assert np.array_equal(
        family.steadied(first, [(other, (2, 5, 11), 1)], quality, known, 1.0).main, first.main
    )
    huge = Latents(first.main * np.float32(1e25), first.side)
    found = family.steadied(first, [(huge, (2, 5, 11), 1)], quality, known, 1.0).main
    assert np.isfinite(found).all()


def test_films_whose_frames_lean_on_each_other_take_fewer_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = Codec(weights.load(), 60)
    assert isinstance(codec.family, WaveletFamily)
    rng = np.random.default_rng(5)
    sun = open_series("synthetic:frames=9,size=64,start=2013-05-01,cadence=12min").read(0, 9).data[:, 2:4]
    scene = codec.family.stabiliser.subset([2, 3]).forward(sun)
    scene += rng.normal(0, 0.3 * codec.family.step[60, 2], scene.shape).astype(np.float32)
    frames = codec.family.stabiliser.subset([2, 3]).inverse(scene)

    def coded() -> tuple[int, float]:
        (block,) = codec.encode(frames, ["171A", "193A"], frames_per_block=9)
        decoded = codec.decode([block], ["171A", "193A"], (64, 64))
        return len(block), float((codec.family.stabiliser.subset([2, 3]).forward(decoded) - scene).std())

    size, error = coded()
    monkeypatch.setattr(WaveletFamily, "leans", lambda *args: False)
    plain, least = coded()
    assert size < 0.9 * plain
    assert error < 1.05 * least


def test_every_turn_that_an_encoder_tries_has_a_byte() -> None:
    for minutes in wavelet._TURNS:
        told = as_told(minutes)
        assert 0 <= told <= 252
        assert minutes == (6 * told if told <= 120 else 720 + 60 * (told - 120))
    assert max(wavelet._TURNS) <= MAX_MINUTES


def test_turns_are_told_and_frames_are_numbered_both_ways(family: WaveletFamily) -> None:
    channels, shape = (2, 5, 11), (64, 64)
    frames = film(3, 3, *shape, minutes=240)
    pyramids = [images_of(family, frame, channels, 60) for frame in frames]
    early, late = (family.reference(pyramids[n].main, channels, shape) for n in (0, 2))
    for before, after, back, ahead, minutes in (
        (early, None, 2, 0, [240]),
        (None, late, 0, 7, [240]),
        (early, late, 15, 1, [240, 240]),
    ):
        known = Known(channels, shape, before, after, back or 1, ahead or 1)
        payload = family.encode(pyramids[1], 60, known).payload
        told = Told.by(payload)
        assert family.links(payload) == (told.back, told.ahead) == (back, ahead)
        assert told.minutes == minutes


def test_latents_are_the_picture_made_small(family: WaveletFamily) -> None:
    channels = (2, 5, 11)
    known = Known(channels, (128, 128))
    written = family.encode(images_of(family, film(1, 3, 128, 128)[0], channels, 60), 60, known)
    assert written.decoded is not None
    image = np.zeros((12, 128, 128), np.float32)
    image[list(channels)] = family.show(written.decoded, channels, channels, known.shape)
    small = image.reshape(12, 8, 16, 8, 16).mean((2, 4))
    found = family.latents(written.payload, 60, known)
    for c in channels:
        assert np.abs(found[c] - small[c]).max() < 0.2 * np.ptp(image[c])


@pytest.mark.parametrize("shape", [(16, 16), (33, 50)])
def test_frames_come_back_near_what_they_were(codec: Codec, shape: tuple[int, int]) -> None:
    x = film(2, 12, *shape)
    y = codec.at(100).decode(codec.at(100).encode(x, NAMES), NAMES, shape)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    stabilise = codec.family.stabiliser.forward
    assert np.sqrt(np.mean((stabilise(x) - stabilise(y)) ** 2)) < 1.5  # units of noise; steps are of 2


@settings(max_examples=5, deadline=None)
@given(mask=st.integers(1, 4095), quality=st.integers(0, 100))
def test_any_channels_are_coded_together(codec: Codec, mask: int, quality: int) -> None:
    channels = tuple(i for i in ALL if mask >> i & 1)
    names = tuple(NAMES[i] for i in channels)
    x = film(2, len(channels), 16, 24, seed=mask)
    at = codec.at(quality)
    blocks = at.encode(x, names, frames_per_block=2)
    assert at.encode(x.copy(order="F"), names, frames_per_block=2) == blocks
    y = at.decode(blocks, NAMES, (16, 24))
    assert np.isnan(y[:, np.setdiff1d(ALL, channels)]).all()
    assert np.isfinite(y[:, channels]).all()
    assert np.array_equal(at.decode(blocks, names, (16, 24)), y[:, channels])


def test_missing_pixels_come_back_where_they_were(codec: Codec) -> None:
    x = film(3, 3, 40, 40)
    x[0, 0, 3:9, 30:] = np.nan
    x[1, 1] = np.nan
    x[2, :, ::2] = np.nan
    y = codec.decode(codec.encode(x, THREE, frames_per_block=3), THREE, (40, 40))
    assert (np.isnan(y) == np.isnan(x)).all()


def test_quality_buys_accuracy_for_bytes(codec: Codec) -> None:
    x = film(1, 4, 48, 48)
    names = ("94A", "171A", "304A", "1700A")
    sizes, errors = [], []
    stabilise = codec.family.stabiliser.subset([0, 2, 5, 8]).forward
    for quality in (0, 20, 40, 60, 80, 100):
        blocks = codec.at(quality).encode(x, names)
        sizes.append(len(blocks[0]))
        y = codec.decode(blocks, names, (48, 48))
        errors.append(np.mean((stabilise(x) - stabilise(y)) ** 2))
    assert (np.diff(sizes) > 0).all()
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("value", [0, -5, 1e6, -3e38])
def test_constant_frames_however_large(codec: Codec, family: WaveletFamily, value: float) -> None:
    x = np.full((2, 3, 24, 32), value, np.float32)
    blocks = codec.encode(x, THREE, frames_per_block=2)
    y = codec.decode(blocks, THREE, (24, 32))
    assert np.isfinite(y).all()
    if abs(value) < 1e7:
        stabilise = codec.family.stabiliser.subset([2, 5, 11]).forward
        steps = family.step[codec.quality, [2, 5, 11], None, None]
        assert (np.abs(stabilise(x) - stabilise(y)) < 2 * steps).all()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), log=st.floats(-3, 38), quality=st.integers(0, 100))
def test_noise_of_any_size_decodes_to_what_the_encoder_saw(
    family: WaveletFamily, seed: int, log: float, quality: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-1, 1, (2, 3, 16, 32)) * 10.0**log * 3).astype(np.float32)
    before = None
    for frame in x:
        known = Known((1, 2, 11), (16, 32), before)
        written = family.encode(images_of(family, frame, known.channels, quality), quality, known)
        assert written.decoded is not None
        assert np.isfinite(written.decoded).all()
        assert (family.decode(written.payload, quality, known) == written.decoded).all()
        before = family.reference(written.decoded, known.channels, known.shape)


def test_what_lies_beyond_all_symbols_is_coded_as_the_last(family: WaveletFamily) -> None:
    rng = np.random.default_rng(0)
    pyramid = np.zeros((12, 16, 16), np.float32)
    pyramid[3] = rng.choice(np.array([1e38, -1e38, 1, 0], np.float32), (16, 16))
    known = Known((3,), (16, 16))
    written = family.encode(Latents(pyramid, np.zeros(0, np.float32)), 80, known)
    assert written.decoded is not None
    assert np.isfinite(written.decoded).all()
    assert (family.decode(written.payload, 80, known) == written.decoded).all()


def test_small_images_are_refused_and_large_ones_planned(family: WaveletFamily) -> None:
    with pytest.raises(InputError, match="smaller than the model's 16×16"):
        family.check_size(15, 100)
    for side in (16, 100, 1000, 4096, 16384):
        grid = grid_of(side, side)
        assert min(grid.height, grid.width) >> grid.depth >= 2
        assert side**2 <= grid.height * grid.width <= 1.15 * side**2
        for n in range(grid.depth):
            h, w = grid.level(n)
            assert 1 <= level_of(h, w) <= LEVELS
            assert h << grid.depth - n == grid.height
            assert w << grid.depth - n == grid.width


# --- points ----------------------------------------------------------------------------------------------


def points(t: int, y: int, x: int) -> Float:
    """Return frames (t, 3, y, x): 171 Å, and two components of a field that is made of points."""
    rng = np.random.default_rng(3)
    frames = film(t, 3, y, x, minutes=6)
    for c in (0, 2):
        frames[:, c] = rng.normal(0, 400, (y, x)) * (rng.random((y, x)) < 0.02)
        frames[:, c] += rng.normal(0, 2, (t, y, x))
    return frames[:, [1, 0, 2]]


@pytest.mark.parametrize("shape", [(64, 64), (50, 83)])
@pytest.mark.parametrize("quality", [40, 70])
def test_a_field_of_points_keeps_them_as_they_are(
    family: WaveletFamily, shape: tuple[int, int], quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # But for their mean.
    monkeypatch.setattr(wavelet, "levels", lambda light, *others: np.zeros(len(light), np.int32))
    channels, before = (2, 9, 11), None
    for frame in points(3, *shape):
        latents = images_of(family, frame, channels, quality)
        known = Known(channels, shape, before)
        written = family.encode(latents, quality, known)
        told = Told.by(written.payload)
        assert told.bits & LAZY
        if quality == 70:
            assert bool(told.bits & LINKED) == (before is not None)
        assert told.rest[:2] == (1 << 9 | 1 << 11).to_bytes(2, "little")
        assert written.decoded is not None
        np.testing.assert_array_equal(family.decode(written.payload, quality, known), written.decoded)
        pictures = [family.show(p, ALL, ALL, shape) for p in (written.decoded, latents.main)]
        apart = np.abs(pictures[0] - pictures[1]) / family.step[quality][:, None, None]
        time = foretold_of(family, written.payload, quality, known)
        if time is not None:
            # Pixels of levels that are left out are as other frames have them.
            foretold = from_lazy(time[0], grid_of(*shape))[:, : shape[0], : shape[1]]
            apart = np.minimum(apart, 100 * np.abs(pictures[0] - foretold))
        assert apart[[9, 11]].max() < FURTHEST
        _, h, w = family.latent_shape(*shape)
        small = family.latents(written.payload, quality, known)
        np.testing.assert_array_equal(small, small_picture(written.decoded, shape))
        assert small.shape == (12, h, w)
        before = family.reference(written.decoded, channels, shape)


def small_picture(pyramid: Float, shape: tuple[int, int]) -> Float:
    grid = grid_of(*shape)
    fine = min(4, grid.depth)
    return to_picture(pyramid, grid, grid.depth - fine) * np.float32(2.0**-fine)


def test_points_cost_far_less_than_as_waves() -> None:
    codec = Codec(weights.load(), 40)
    x = points(1, 256, 256)[:, 2:]
    found = {}
    for gain in (1.1, 0.0, 1e9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sunzip.codec.wavelet._LAZY_GAIN", gain)
            blocks = codec.encode(x, ["Bz"])
        y = codec.decode(blocks, ["Bz"], (256, 256))
        found[gain] = len(blocks[0]), float(np.square(x - y).mean())
    assert found[1.1] == found[0.0]
    assert found[1.1][0] < 0.75 * found[1e9][0]
    assert found[1.1][1] < found[1e9][1]


def test_a_smooth_field_is_waves(family: WaveletFamily) -> None:
    assert not payload_of(family, 40)[0] & LAZY


# --- disks -----------------------------------------------------------------------------------------------


def photosphere(t: int, y: int, x: int) -> Float:
    """Return frames (t, 3, y, x) of 171, 1600 and 1700 Å: the last two are disks with little on them."""
    frames = film(t, 3, y, x)
    rows, columns = np.mgrid[:y, :x]
    r = np.hypot(rows - (y - 1) / 2, columns - (x - 1) / 2) / disk_radius(min(y, x))
    for c, bright in ((1, 90.0), (2, 1500.0)):
        frames[:, c] = bright * np.where(r < 1, 0.4 + 0.6 * np.sqrt(np.clip(1 - r * r, 0, 1)), 0.02)
        frames[:, c] *= 1 + 0.02 * np.random.default_rng(c).normal(size=(t, y, x))
    return frames.astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (50, 83)])
def test_mean_disks_are_told_beforehand_unless_the_frame_before_shows_them(
    family: WaveletFamily, shape: tuple[int, int]
) -> None:
    first, second = photosphere(2, *shape)
    channels = (2, 7, 8)
    decoded = family.encode(images_of(family, first, channels, 30), 30, Known(channels, shape)).decoded
    assert decoded is not None
    before = family.reference(decoded, channels, shape)
    lacking = {c: family.reference(decoded, [i for i in channels if i != c], shape) for c in channels}
    latents = images_of(family, second, channels, 30)
    for known, told in (
        (Known(channels, shape), 1 << 7 | 1 << 8),
        (Known(channels, shape, lacking[7]), 1 << 7),
        (Known(channels, shape, before), 0),
        (Known(channels, shape, None, lacking[8]), 1 << 8),
        (Known(channels, shape, lacking[2], before), 0),
    ):
        written = family.encode(latents, 30, known)
        head = Told.by(written.payload)
        assert bool(head.bits & ROUND) == bool(told)
        links = known.before is not None, known.after is not None
        assert (head.back, head.ahead) == links
        assert bool(head.bits & LINKED) == any(links)
        if told:
            assert head.rest[:2] == told.to_bytes(2, "little")
        assert written.decoded is not None
        np.testing.assert_array_equal(family.decode(written.payload, 30, known), written.decoded)
        apart = np.abs(written.decoded - latents.main) / family.step[30][:, None, None]
        assert apart.max() < FURTHEST
        small = family.latents(written.payload, 30, known)
        np.testing.assert_array_equal(small, small_picture(written.decoded, shape))


def test_models_without_their_tables_tell_no_disks(wavelet_model: Model) -> None:
    arrays = {k: v for k, v in load(wavelet_model.files[TENSORS]).items() if not k.startswith("disk_")}
    family = WaveletFamily(pack(wavelet_model.config, arrays))
    latents, known = images_of(family, photosphere(1, 64, 64)[0], (2, 7, 8), 30), Known((2, 7, 8), (64, 64))
    payload = family.encode(latents, 30, known).payload
    assert not payload[0] & ROUND
    with pytest.raises(DamagedError, match="disks that no encoder"):
        family.decode(bytes([payload[0] | ROUND, 1 << 7, 0]) + payload[1:], 30, known)
    arrays["disk_tables.length"] = np.ones(3, np.int32)
    with pytest.raises(DamagedError):
        WaveletFamily(pack(wavelet_model.config, arrays))


def test_what_is_no_disk_is_not_told_as_one(family: WaveletFamily) -> None:
    channels = (7, 8)
    latents = images_of(family, film(1, 2, 64, 64)[0], channels, 30)
    assert not family.encode(latents, 30, Known(channels, (64, 64))).payload[0] & ROUND


# --- what others tell ------------------------------------------------------------------------------------


def without_trusts(model: Model) -> dict[str, np.ndarray]:
    """Return the arrays of a model as they were before others were trusted more or less."""
    return {k: v for k, v in load(model.files[TENSORS]).items() if not k.startswith("trusts_")}


@pytest.fixture(scope="module")
def plain(wavelet_model: Model) -> WaveletFamily:
    """A model as they were then."""
    return WaveletFamily(pack(wavelet_model.config, without_trusts(wavelet_model)))


def flickering(t: int, c: int, y: int, x: int) -> Float:
    """Return frames (t, c, y, x) whose channels differ, and change alike."""
    news = np.concatenate([film(1, 1, y, x, seed=20 + n) for n in range(t)]) - 300
    return (film(1, c, y, x) + news * 0.3).astype(np.float32)


#: Channels of the frames of a film, some of which have more of a group than those that they build on.
COMING = [(2, 3, 4, 9), (3, 4, 8), (2, 3, 4, 8, 9), (1, 2, 3, 4, 5, 9, 11), (2, 4, 8, 9)]


@pytest.mark.parametrize("trusting", [True, False])
def test_films_whose_channels_come_and_go_are_what_the_encoder_saw(
    family: WaveletFamily, plain: WaveletFamily, trusting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, shape, quality = family if trusting else plain, (48, 64), 70
    frames = flickering(len(COMING), 12, *shape)
    asked: list[set[int]] = []
    told: set[int] = set()
    side = Reader.side

    def seen(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        found = side(self, kind, index, values)
        if kind == "trusts":
            asked.append(set((index % 2).tolist()))
            told.update(found.tolist())
        return found

    monkeypatch.setattr(Reader, "side", seen)
    done: dict[int, Reference] = {}
    for step in order(len(COMING), False, ALIKE):
        channels = COMING[step.place]
        before, after = (None if n is None else done[n] for n in step.builds_on)
        known = Known(channels, shape, before, after, step.back, step.ahead)
        latents = images_of(here, frames[step.place, channels], channels, quality)
        written = here.encode(latents, quality, known, here.own_quality(quality, step.depth, ALIKE))
        assert Told.by(written.payload)[1:3] == (step.back, step.ahead)
        assert written.decoded is not None
        np.testing.assert_array_equal(here.decode(written.payload, quality, known), written.decoded)
        hold_near(here, written, latents, quality, known)
        done[step.place] = here.reference(written.decoded, channels, shape)
    # Channels that other frames foretell, that they do not, and both in one group.
    assert [kind in asked for kind in ({0}, {1}, {0, 1})] == [trusting] * 3
    assert (len(told) > 3) == trusting


def test_models_without_trusts_make_blocks(plain: WaveletFamily, series: Float) -> None:
    codec = Codec(plain.model, 60)
    blocks, left = codec.encode_measured(series, FOUR, frames_per_block=6, measure=lambda _, decoded: decoded)
    np.testing.assert_array_equal(left, codec.decode(blocks, FOUR, (32, 48)))
    assert any(Told.by(payload).ahead for payload in Block.unpack(blocks[0]).payloads if payload)


@pytest.mark.parametrize("trusting", [True, False])
def test_other_channels_tell_what_they_are_and_not_what_is_new(
    family: WaveletFamily, plain: WaveletFamily, trusting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, shape, quality = family if trusting else plain, (64, 64), 80
    frames, channels = flickering(2, 12, *shape), (2, 3, 4, 5, 11)
    frames[1, 11] = 4 * (frames[1, 4] - frames[0, 4])
    first = images_of(here, frames[0, channels], channels, 90).main
    # Not of 2, beside 4; nor of 11, on which 4 looks.
    known = Known(channels, shape, here.reference(first, (3, 4, 5), shape))
    latents = images_of(here, frames[1, channels], channels, quality)
    payload = here.encode(latents, quality, known).payload
    assert not payload[0] & (LAZY | ROUND)
    told, time = levels_told(here, payload, quality, known), foretold_of(here, payload, quality, known)
    assert time is not None
    assert time[1] == [3, 4, 5]
    seen: list[tuple[list[int], Float, Int]] = []
    weights = np.zeros((12, 2), np.int32)
    side, enter = Reader.side, ExactContext.enter

    def asked(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        found = side(self, kind, index, values)
        if kind == "weights":
            weights[index // 2, index % 2] += found
        return found

    def enters(
        self: ExactContext,
        level: int,
        group: list[int],
        quality: int,
        flags: Float,
        planes: Float,
        *others: Any,
    ) -> Any:
        seen.append((group, planes[:, 3:9], weights.copy()))
        return enter(self, level, group, quality, flags, planes, *others)

    monkeypatch.setattr(Reader, "side", asked)
    monkeypatch.setattr(ExactContext, "enter", enters)
    decoded = here.decode(payload, quality, known)
    looks = references(list(channels), np.zeros(12, bool))
    grid = grid_of(*shape)
    sizes = [grid.level(n) for n in range(grid.depth)]
    weighty = set()
    for group, planes, weight in seen:
        h, w = planes.shape[2:]
        for c, found in zip(group, planes, strict=True):
            cross = np.zeros((3, h, w), np.float32)
            for r, share in zip(looks[c], weight[c].tolist(), strict=False):
                if told[r] > sizes.index((h, w)) and share:
                    cross = cross + bands_of(decoded[r], h, w) * (here.relation[c, r] * share / 16)
                    weighty.add((c, r))
            expected = decoded_planes(cross / here.step[quality, c])
            np.testing.assert_allclose(found, expected, atol=1)
    # Channels that other frames foretell by one that they do and one that they do not; and another by one.
    assert weighty >= {(5, 3), (4, 11), (2, 3)}


@pytest.mark.parametrize("trust", [0, 5, TRUST_MOST])
def test_every_trust_is_followed(family: WaveletFamily, trust: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, latents = pair(family, 80)
    alone, linked = Known((2, 5, 11), (48, 64)), Known((2, 5, 11), (48, 64), before)
    usual = [family.encode(latents, 80, known).payload for known in (alone, linked)]
    assert unpacked(usual[1], 80, linked, disks=True, trusts=True, tiles=True).bits & LINKED

    def trusts(self: Writer, index: Int, before: Int, *others: Any) -> Int:
        return self.side("trusts", index, trust - before)

    monkeypatch.setattr(Writer, "trusts", trusts)
    monkeypatch.setattr(Draft, "worth", lambda *frame: None)
    for known, other in zip((alone, linked), usual, strict=True):
        written = family.encode(latents, 80, known)
        # A frame that builds on none has no trusts.
        assert (written.payload == other) == (known is alone)
        np.testing.assert_array_equal(family.decode(written.payload, 80, known), written.decoded)


@pytest.mark.parametrize("timed", [(2, 3), (2,), (3,)])
def test_what_is_new_in_a_channel_tells_what_is_new_in_others(
    family: WaveletFamily, timed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, shape, quality = (2, 3), (48, 64), 80
    first, change = film(1, 1, *shape)[0], (film(1, 1, *shape, seed=3)[0] - 300) / 4
    both = np.array([[[1.0]], [[2.0]]])
    before = images_of(family, first * both, channels, quality).main
    latents = images_of(family, (first + change) * both, channels, quality)
    known = Known(channels, shape, family.reference(before, timed, shape))
    seen = []

    def trusts(
        self: Writer, index: Int, before: Int, mean: Float, others: Float, scale: Int, values: Float
    ) -> Int:
        # Of channel 2, which looks at 3.
        if len(index) == 1 and index[0] // 4 == 2:
            seen.append(float(np.square(others - values, dtype=np.float64).sum()))
        return self.side("trusts", index, TRUST_MOST - 2 - before)

    monkeypatch.setattr(Writer, "trusts", trusts)
    monkeypatch.setattr(Draft, "worth", lambda *frame: None)
    written = family.encode(latents, quality, known)
    assert written.payload[0] & (LINKED | NEWS) == LINKED | NEWS
    np.testing.assert_array_equal(family.decode(written.payload, quality, known), written.decoded)
    with_news, _ = list(seen), seen.clear()
    # The same payload without the bit tells something else: where both are timed, and only there.
    plain = bytes([written.payload[0] & ~NEWS]) + written.payload[1:]
    if timed == (2, 3):
        with suppress(DamagedError):
            assert (family.decode(plain, quality, known) != written.decoded).any()
    else:
        np.testing.assert_array_equal(family.decode(plain, quality, known), written.decoded)
    monkeypatch.setattr(wavelet, "NEWS", 0)
    family.encode(latents, quality, known)
    assert len(seen) == len(with_news) > 0
    if timed == (2, 3):
        assert sum(with_news) < 0.8 * sum(seen)
    else:
        assert with_news == seen


def test_one_channel_has_no_news(family: WaveletFamily) -> None:
    before, latents = pair(family, 80)
    known = Known((5,), (48, 64), before)
    assert family.encode(latents, 80, known).payload[0] & (LINKED | NEWS) == LINKED


def test_news_of_none_and_to_models_without_trusts_are_damage(
    family: WaveletFamily, wavelet_model: Model
) -> None:
    with pytest.raises(DamagedError, match="first byte is none that an encoder writes"):
        family.decode(bytes([NEWS]) + payload_of(family)[1:], 50, Known((2, 5, 11), (32, 32)))
    mistrusting = WaveletFamily(pack(wavelet_model.config, without_trusts(wavelet_model)))
    before, latents = pair(mistrusting, 80)
    known = Known((2, 5, 11), (48, 64), before)
    payload = mistrusting.encode(latents, 80, known).payload
    assert payload[0] & (LINKED | NEWS) == LINKED
    with pytest.raises(DamagedError, match="trusts others more than its model does"):
        mistrusting.decode(bytes([payload[0] | NEWS]) + payload[1:], 80, known)


@pytest.mark.parametrize(("share", "tries"), [(0.0, 0), (0.01, 2), (0.19, 2), (0.2, 1), (1.0, 1)])
def test_frames_that_are_unlike_are_tried_by_themselves(
    family: WaveletFamily, share: float, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, latents = pair(family, 80)
    known, costs = Known((2, 5, 11), (48, 64), before), []
    usual = family.encode(latents, 80, known)
    monkeypatch.setattr(WaveletFamily, "_alike", staticmethod(lambda *pyramids: share))

    def dearest(found: Sequence[float]) -> int:
        costs.append(found)
        return int(np.argmax(found))

    monkeypatch.setattr(WaveletFamily, "_best", staticmethod(dearest))
    written = family.encode(latents, 80, known)
    assert [len(found) for found in costs] == [2] * (tries == 2)
    # An encoder that takes what costs more.
    linked = tries == 1 or (tries == 2 and costs[0][0] > costs[0][1])
    assert bool(written.payload[0] & LINKED) == linked
    assert (written.payload == usual.payload) == linked
    np.testing.assert_array_equal(family.decode(written.payload, 80, known), written.decoded)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("change", [-1, TRUST_MOST + 1, TRUST_MOST // 2 + 1])  # the last at two levels
def test_trusts_that_none_can_have_are_damage(
    family: WaveletFamily, half: int, change: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, latents = pair(family, 80)

    def trusts(self: Writer, index: Int, *others: Any) -> Int:
        told = self.side("trusts", index, change * (index // 2 % 2 == half).astype(np.int32))
        return np.maximum(told, 0)

    known = Known((2, 5, 11), (48, 64), before)
    with monkeypatch.context() as patch:
        # An encoder that knows no bounds, and leaves out no level.
        patch.setattr(Writer, "trusts", trusts)
        patch.setattr(Draft, "worth", lambda *frame: None)
        patch.setattr(walk, "TRUST_MOST", 1000)
        payload = family.encode(latents, 80, known).payload
    with pytest.raises(DamagedError, match="others are trusted more than can be"):
        family.decode(payload, 80, known)


def test_models_with_trusts_have_them_of_each_channel_half_and_kind(wavelet_model: Model) -> None:
    arrays = without_trusts(wavelet_model)
    for count in (12, 47, 48, 49):
        tables = Tables.from_probabilities([[1.0] * 21] * count, [-TRUST_MOST] * count, [1e-4] * count)
        found = {f"trusts_tables.{k}": np.array(v) for k, v in tables.to_arrays().items()}
        model = pack(wavelet_model.config, arrays | found)
        if count == 48:
            WaveletFamily(model)
            continue
        with pytest.raises(DamagedError, match="do not fit its network"):
            WaveletFamily(model)


@pytest.mark.parametrize("quality", [50, 60, 70])
def test_a_frame_in_the_middle_is_not_made_worse_than_it_is_foretold(
    family: WaveletFamily, quality: int
) -> None:
    channels, shape = (2, 3, 5, 8), (64, 64)
    noise = np.random.default_rng(0).normal(0, 8, (3, 4, *shape))
    pyramids = [images_of(family, frame, channels, quality) for frame in film(1, 4, *shape)[0] + noise]
    left: list[Reference] = []
    for depth, pyramid in enumerate((pyramids[0], pyramids[2], pyramids[1])):
        own = family.own_quality(quality, depth, ALIKE)
        known = Known(channels, shape, *left)
        written = family.encode(pyramid, quality, known, own)
        assert written.decoded is not None
        left.append(family.reference(written.decoded, channels, shape))
    time = foretold_of(family, written.payload, quality, known)
    assert time is not None
    errors = [
        np.square((p - pyramids[1].main) / family.step[own][:, None, None], dtype=np.float64).sum()
        for p in (written.decoded, time[0])
    ]
    assert errors[0] < 1.05 * errors[1]


# --- blocks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def series() -> Float:
    """Six frames, one of them empty, with channels that come and go."""
    x = film(6, 4, 32, 48)
    x[2] = np.nan
    x[1, 1:3] = np.nan
    x[3, :2] = np.nan
    x[4, 3, :2, :9] = np.nan
    return x


@pytest.fixture(scope="module")
def block(codec: Codec, series: Float) -> bytes:
    (found,) = codec.encode(series, FOUR, frames_per_block=6)
    return found


@pytest.mark.parametrize("length", [1, 4, 6])
@pytest.mark.parametrize("scale", Scale)
def test_what_the_encoder_leaves_is_what_is_decoded(
    codec: Codec, series: Float, scale: Scale, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = series.copy()
    x[5, 1] = 1e9 * np.random.default_rng(0).standard_normal((32, 48))  # so loud that it is stored as pixels
    with monkeypatch.context() as patch:
        patch.setattr(WaveletFamily, "decode", None)  # nothing is decoded for it
        blocks, left = codec.encode_measured(
            x, FOUR, scale, frames_per_block=length, measure=lambda _, decoded: decoded
        )
    assert blocks == codec.encode(x, FOUR, scale, frames_per_block=length)
    assert np.isnan(left[2]).all()
    np.testing.assert_array_equal(left, codec.decode(blocks, FOUR, (32, 48), scale)[:6])


def test_frames_build_on_those_around_them(
    codec: Codec, series: Float, block: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = Block.unpack(block).payloads
    assert payloads[2] == b""
    told = [Told.by(payload) for payload in payloads if payload]
    steps = {step.place: step for step in order(5, False, ALIKE)}
    assert any(step.ahead for step in steps.values())
    for number, here in enumerate(told):
        step = steps[number]
        assert (here.back, here.ahead) == (step.back, step.ahead)
        own = codec.family.own_quality(85, step.depth, ALIKE)
        assert here.own == (None if own == 85 else own)
    together = codec.decode([block], FOUR, (32, 48))
    assert (np.isnan(together) == np.isnan(series)).all()
    # Each frame is what it is alone in a block of its own; so is the first of all where it leans on none.
    apart = [codec.encode(series[t : t + 1], FOUR)[0] for t in range(6)]
    assert codec.encode(series[::-1], FOUR) == apart[::-1]
    first = codec.at(85 if told[0].own is None else told[0].own).encode(series[:1], FOUR)
    assert Block.unpack(first[0]).payloads[0] != alone(payloads[0])
    monkeypatch.setattr(WaveletFamily, "leans", lambda *args: False)
    (stiff,) = codec.encode(series, FOUR, frames_per_block=6)
    assert Block.unpack(first[0]).payloads[0] == alone(Block.unpack(stiff).payloads[0])
    stiffly = codec.decode([stiff], FOUR, (32, 48))
    assert np.array_equal(codec.decode(first, FOUR, (32, 48))[0], stiffly[0], equal_nan=True)


@pytest.mark.parametrize("frames", [[0], [5], [3, 1], [4, 4, 0, 2], [5, 4, 3, 2, 1, 0], [2], []])
def test_some_frames_are_those_of_all(codec: Codec, block: bytes, frames: list[int]) -> None:
    together = codec.decode([block], FOUR, (32, 48))
    some = codec.decode([block], FOUR, (32, 48), frames=frames)
    assert np.array_equal(some, together[frames], equal_nan=True)
    latents = codec.latents([block], (32, 48), frames=frames)
    assert np.array_equal(latents, codec.latents([block], (32, 48))[frames], equal_nan=True)
    tensor = codec.decode_tensor([block], FOUR, (32, 48), frames=frames)
    assert np.array_equal(tensor.numpy(), some, equal_nan=True)


@pytest.fixture(scope="module")
def long() -> Float:
    """Fourteen frames, of which some are empty and one lacks a channel."""
    x = film(14, 2, 24, 32)
    x[[0, 4, 9, 10]] = np.nan
    x[6, 1] = np.nan
    return x


def test_one_frame_of_many_is_what_it_is_among_all(
    codec: Codec, family: WaveletFamily, long: Float, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, shape = ("171A", "304A"), (24, 32)
    (block,) = codec.encode(long, two, frames_per_block=14)
    together = codec.decode([block], two, shape)
    assert (np.isnan(together) == np.isnan(long)).all()
    coarse = codec.latents([block], shape)
    stabilise = codec.family.stabiliser.subset([2, 5]).forward
    rows = [t for t in range(14) if not np.isnan(long[t]).all()]
    steps_of = {step.place: step for step in order(len(rows), False, ALIKE)}
    for place, t in enumerate(rows):
        own = codec.family.own_quality(codec.quality, steps_of[place].depth, ALIKE)
        apart = (stabilise(together[t]) - stabilise(long[t])) / family.step[own, [2, 5], None, None]
        assert np.sqrt(np.nanmean(apart**2)) < 1
    assert {step.depth for step in steps_of.values()} >= {0, 1, 2, 3}
    decoded = []
    decode = WaveletFamily.decode

    def counting(self: WaveletFamily, payload: bytes, quality: int, known: Known) -> Float:
        decoded.append(payload)
        return decode(self, payload, quality, known)

    monkeypatch.setattr(WaveletFamily, "decode", counting)
    payloads = Block.unpack(block).payloads
    for t in range(14):
        decoded.clear()
        monkeypatch.setattr("sunzip.codec.decoding._lately", Recent(0))
        assert np.array_equal(codec.decode([block], two, shape, frames=[t])[0], together[t], equal_nan=True)
        # Nothing is decoded for it but what it builds on, and that once.
        wanted, found = [rows.index(t)] if t in rows else [], set()
        while wanted:
            place = wanted.pop()
            found.add(place)
            wanted += [other for other in steps_of[place].builds_on if other is not None]
        assert sorted(decoded) == sorted(payloads[rows[place]] for place in found)
        assert np.array_equal(codec.latents([block], shape, frames=[t])[0], coarse[t], equal_nan=True)
        tensor = codec.decode_tensor([block], two, shape, frames=[t])[0].numpy()
        assert np.array_equal(tensor, together[t], equal_nan=True)


@pytest.mark.parametrize("read", ["decode", "latents"])
def test_threads_decode_what_their_frames_build_on_once(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    shape, frames = (16, 16), (1, 2, 3)  # in the middle of others, all
    (block,) = codec.encode(film(9, 1, *shape), ["171A"], frames_per_block=9)
    asked = {"decode": (["171A"], shape), "latents": (shape,)}[read]
    together = getattr(codec, read)([block], *asked)
    decoded, decode, begun = [], WaveletFamily.decode, threading.Barrier(len(frames))

    def slow(self: WaveletFamily, payload: bytes, quality: int, known: Known) -> Float:
        decoded.append(payload)
        time.sleep(0.05)
        return decode(self, payload, quality, known)

    monkeypatch.setattr(WaveletFamily, "decode", slow)

    def one(t: int) -> Float:
        begun.wait()
        with lanes.here():
            return getattr(codec, read)([block], *asked, frames=[t])[0]

    with ThreadPoolExecutor(len(frames)) as pool:
        found = list(pool.map(one, frames))
    np.testing.assert_array_equal(found, together[list(frames)])
    payloads = Block.unpack(block).payloads
    for place in (0, 8, 4):
        assert decoded.count(payloads[place]) == 1


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_frames_of_any_block_are_those_of_all(codec: Codec, data: st.DataObject) -> None:
    shown = data.draw(st.lists(st.booleans(), min_size=1, max_size=20))
    x = film(len(shown), 1, 16, 16)
    x[~np.array(shown)] = np.nan
    (block,) = codec.encode(x, ["171A"], frames_per_block=len(shown))
    together = codec.decode([block], ["171A"], (16, 16))
    coarse = codec.latents([block], (16, 16))
    assert (np.isnan(together) == np.isnan(x)).all()
    frames = data.draw(st.lists(st.integers(0, len(shown) - 1), max_size=4))
    some = codec.decode([block], ["171A"], (16, 16), frames=frames)
    assert np.array_equal(some, together[frames], equal_nan=True)
    some = codec.latents([block], (16, 16), frames=frames)
    assert np.array_equal(some, coarse[frames], equal_nan=True)


def test_some_frames_of_several_blocks(codec: Codec, series: Float) -> None:
    blocks = codec.encode(series, FOUR, frames_per_block=2)
    assert len(blocks) == 3
    together = codec.decode(blocks, FOUR, (32, 48))
    frames = [5, 0, 3, 4, 1, 0]
    for found in (
        codec.decode(blocks, FOUR, (32, 48), frames=frames),
        codec.decode_tensor(blocks, FOUR, (32, 48), frames=frames).numpy(),
    ):
        assert np.array_equal(found, together[frames], equal_nan=True)


@pytest.mark.parametrize("exact", [True, False], ids=["on a CPU", "as on an accelerator"])
def test_pixels_are_the_same_to_the_bit_as_tensors(
    codec: Codec, block: bytes, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stabilised = codec.decode_tensor([block], THREE, (32, 48), normalised=True).numpy()
    monkeypatch.setattr(WaveletFamily, "exact", exact)
    for scale in Scale:
        expected = codec.decode([block], THREE, (32, 48), scale)
        found = codec.decode_tensor([block], THREE, (32, 48), scale).numpy()
        assert np.array_equal(found, expected, equal_nan=True)
        found = codec.decode_tensor([block], THREE, (32, 48), scale, normalised=True).numpy()
        assert np.array_equal(found, stabilised, equal_nan=True)


def test_a_gap_carries_the_frame_before_over(family: WaveletFamily, codec: Codec, series: Float) -> None:
    with_gap = codec.encode(series[[0, 2, 4]], FOUR, frames_per_block=3)
    without = codec.encode(series[[0, 4]], FOUR, frames_per_block=2)
    assert Block.unpack(with_gap[0]).payloads[2] == Block.unpack(without[0]).payloads[1]


def test_an_alike_frame_costs_little_and_another_nothing_more(codec: Codec) -> None:
    x = film(3, 3, 32, 32)
    x[1] = x[0]
    x[2] = film(1, 3, 32, 32, seed=9)[0]
    payloads = Block.unpack(codec.encode(x, THREE, frames_per_block=3)[0]).payloads
    # Of the two around it, it builds on the one that is like it.
    told = Told.by(payloads[1])
    assert (told.back, told.ahead, told.minutes) == (1, 0, [0])
    (last,) = (step for step in order(3, False, ALIKE) if step.place == 2)
    assert last.back
    own = codec.family.own_quality(85, last.depth, ALIKE)
    expected = Block.unpack(codec.at(own).encode(x[2:], THREE)[0]).payloads[0]
    assert alone(payloads[2]) == expected


def test_the_number_of_lanes_does_not_matter(
    codec: Codec, series: Float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> list[bytes]:
        blocks = codec.encode(series[:4], FOUR, frames_per_block=2)
        return [*blocks, codec.decode(blocks, FOUR, (32, 48)).tobytes()]

    expected = made()
    for count in (1, 2):
        monkeypatch.setattr(lanes, "_pool", None)
        monkeypatch.setattr(lanes, "_cores", lambda count=count: count)
        assert made() == expected
        assert lanes.count() == count
    with lanes.here():
        assert made() == expected


# --- damage ----------------------------------------------------------------------------------------------


def test_every_truncation_is_damage(family: WaveletFamily) -> None:
    for payload, known in ((payload_of(family, 20), Known((2, 5, 11), (32, 32))), linked_payload(family)):
        for length in [1, 2, 3, 4, *range(0, len(payload), max(1, len(payload) // 20))]:
            with pytest.raises(DamagedError):
                family.decode(payload[:length], 20, known)


@cache
def linked_payload(family: WaveletFamily) -> tuple[bytes, Known]:
    """Return a payload that builds on a frame before and one after, and has a quality of its own."""
    channels = (2, 5, 11)
    then, now, later = (images_of(family, frame, channels, 60) for frame in film(3, 3, 32, 32))
    before, after = (family.reference(other.main, channels, (32, 32)) for other in (then, later))
    known = Known(channels, (32, 32), before, after, 1, 2)
    payload = family.encode(now, 60, known, 20).payload
    assert payload[:2] == bytes([payload[0] | LINKED | OWN, 1 | 2 << 4])
    return payload, known


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_flipped_bits_decode_or_are_damage(family: WaveletFamily, data: st.DataObject) -> None:
    zeros = family.reference(np.zeros((12, 32, 32), np.float32), ALL, (32, 32))
    if data.draw(st.booleans()):
        start, known = linked_payload(family)
    else:
        before, after = (data.draw(st.sampled_from([None, zeros])) for _ in range(2))
        start, known = payload_of(family, 20), Known((2, 5, 11), (32, 32), before, after)
    payload = bytearray(start)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = family.decode(bytes(payload), 20, known)
    except DamagedError:
        return
    assert found.shape == (12, 32, 32)
    assert np.isfinite(found).all()


@settings(max_examples=25, deadline=None)
@given(
    st.binary(max_size=200),
    st.integers(0, 63),
    st.integers(0, 255),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 100),
    st.integers(1, 4095),
    st.integers(0, MAX_MINUTES),
)
def test_payloads_of_strangers_decode_or_are_damage(
    family: WaveletFamily,
    junk: bytes,
    head: int,
    links: int,
    given: tuple[bool, bool],
    quality: int,
    mask: int,
    minutes: int,
) -> None:
    channels = tuple(i for i in ALL if mask >> i & 1)
    other = family.reference(np.full((12, 16, 24), 1e20, np.float32), channels[:2], (16, 24))
    before, after = (other if is_there else None for is_there in given)
    start = bytes([head])
    if head & LINKED:
        start += bytes([links, minutes % 253, quality])
    with np.errstate(all="raise", under="ignore"):
        try:
            found = family.decode(start + junk + b"\x01", quality, Known(channels, (16, 24), before, after))
        except DamagedError:
            return
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: b"", "first byte"),
        (lambda p: b"\x40" + p[1:], "first byte"),
        (lambda p: b"\x80" + p[1:], "too small for tiles"),
        (lambda p: b"\x82" + p[1:], "too small for tiles"),
        (lambda p: b"\x12\x01\x00" + p[1:], "frame that is not there"),
        (lambda p: b"\x10\x00" + p[1:], "builds on no frame"),
        (lambda p: b"\x10", "builds on no frame"),
        (lambda p: b"\x10\x01\x00" + p[1:], "frame that is not there"),
        (lambda p: b"\x10\x10\x00" + p[1:], "frame that is not there"),
        (lambda p: b"\x10\x01", "frame that is not there"),
        (lambda p: b"\x20\x65" + p[1:], "of quality 101"),
        (lambda p: b"\x20\xff" + p[1:], "of quality 127"),
        (lambda p: b"\x20\xe5" + p[1:], "of quality 101"),
        (lambda p: b"\x08\x00\x00" + p[1:], "channels that are not there"),
        (lambda p: b"\x08\x80\x00" + p[1:], "channels that are not there"),
        (lambda p: b"\x0c\x04\x00\x04\x00" + p[1:], "disks that no encoder"),
        (lambda p: b"\x04\x00\x00" + p[1:], "channels that are not there"),
        (lambda p: b"\x04\x01\x00" + p[1:], "channels that are not there"),
        (lambda p: b"\x04\x04\x10" + p[1:], "channels that are not there"),
        (lambda p: b"\x04", "channels that are not there"),
        (lambda p: b"\xff" + p[1:], "too small for tiles"),
        (lambda p: p[:1], ENDED),
        (lambda p: bytes([p[0] & ~LEVELLED]) + p[1:], ENDED),
        (lambda p: p + b"\x00", "zero byte"),
        (lambda p: p + b"\x01", ENDED),
    ],
)
def test_heads_of_strangers_are_damage(
    family: WaveletFamily, change: Callable[[bytes], bytes], message: str
) -> None:
    payload = payload_of(family)
    with pytest.raises(DamagedError, match=message):
        family.decode(change(payload), 50, Known((2, 5, 11), (32, 32)))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x82", "first byte"),
        (b"\x12\x01\x00", "first byte"),
        (b"\xff", "first byte"),
        (b"\x02\x00\x00", "frame that is not there"),
    ],
)
def test_heads_of_strangers_are_damage_to_models_without_trusts(
    plain: WaveletFamily, start: bytes, message: str
) -> None:
    with pytest.raises(DamagedError, match=message):
        plain.decode(start + payload_of(plain)[1:], 50, Known((2, 5, 11), (32, 32)))


def test_rotations_that_are_none_are_damage(family: WaveletFamily, plain: WaveletFamily) -> None:
    other = family.reference(np.zeros((12, 32, 32), np.float32), (2, 5, 11), (32, 32))
    rest = payload_of(family)[1:]
    before, after, both = (
        Known((2, 5, 11), (32, 32), *others) for others in ((other,), (None, other), (other, other))
    )
    start = bytes([TIMED]) + (MAX_MINUTES + 1).to_bytes(2, "little")
    with pytest.raises(DamagedError, match="turned by 8641 minutes"):
        plain.decode(start + rest, 50, before)
    for length in (1, 2):
        with pytest.raises(DamagedError, match=ENDED):
            plain.decode(start[:length], 50, before)
    # The last byte that tells a rotation, and the first that tells none.
    assert MAX_MINUTES == 720 + 60 * (252 - 120)
    for known, links in ((before, [1]), (after, [0x10]), (both, [0x11, 0]), (both, [0xFF, 252])):
        with pytest.raises(DamagedError, match="turned by 8700 minutes"):
            family.decode(bytes([LINKED, *links, 253]) + rest, 50, known)
        head = unpacked(bytes([LINKED, *links, 252]) + rest, 50, known, disks=False, trusts=False, tiles=True)
        assert not head.bits & ~LINKED


def test_its_own_quality_is_told_from_0_to_100(family: WaveletFamily) -> None:
    known = Known((2, 5, 11), (32, 32))
    for own in (0, 100):
        payload = payload_of(family, own)
        expected = family.decode(payload, own, known)
        moved = bytes([payload[0] | OWN, own]) + payload[1:]
        for of_block in (0, 50, 100):
            assert (family.decode(moved, of_block, known) == expected).all()
    with pytest.raises(DamagedError, match="of quality 101"):
        family.decode(bytes([payload[0] | OWN, 101]) + payload[1:], 100, known)


@pytest.mark.parametrize(
    ("names", "departing"),
    [
        (NAMES, True),
        (("171A", "193A", "304A"), True),
        (("131A", "193A", "211A", "Bz"), True),
        (("193A",), False),
        (("193A", "211A"), False),
        (("193A", "211A", "1600A", "Bz"), False),  # of the corona two alone
        (("131A", "193A", "335A"), False),  # 193 Å tells little of these
        (("131A", "171A", "211A", "304A"), False),
        (("Bx", "By", "Bz"), False),
    ],
)
def test_channels_depart_where_enough_of_them_tell_of_each_other(
    names: Sequence[str], departing: bool
) -> None:
    channels = [NAMES.index(name) for name in names]
    assert departs(channels, (256, 300)) == departing
    assert not departs(channels, (512, 255))  # in small images they tell too little


@pytest.mark.parametrize("own", [None, 20])
@pytest.mark.parametrize("quality", [0, 50, 97])
def test_channels_are_as_fine_as_they_are_of_use_to_others(
    family: WaveletFamily, quality: int, own: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, shape = (1, 2, 3, 4, 5, 7), (48, 64)
    first, now = film(2, len(channels), *shape)
    before = family.reference(images_of(family, first, channels, quality).main, channels, shape)
    latents = images_of(family, now, channels, quality)
    alike = family.encode(latents, quality, Known(channels, shape), own)
    assert not Told.by(alike.payload).departing
    monkeypatch.setattr(wavelet, "departs", lambda channels, shape: True)
    for known in (Known(channels, shape), Known(channels, shape, before)):
        written = family.encode(latents, quality, known, own)
        told = Told.by(written.payload)
        assert (told.departing, told.own) == (True, quality if own is None else own)
        np.testing.assert_array_equal(family.decode(written.payload, quality, known), written.decoded)
        hold_near(family, written, latents, quality, known)
    assert qualities(97, True).max() == 100  # none is finer than the finest


@pytest.mark.parametrize("own", [None, 20])
def test_channels_that_are_finer_err_less(own: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEPARTURES[3] > 0
    shipped, channels, shape = WaveletFamily(weights.load()), (1, 2, 3, 4, 5, 7), (48, 64)
    latents = images_of(shipped, film(1, len(channels), *shape)[0], channels, 50)
    errors = []
    for departing in (True, False):
        monkeypatch.setattr(wavelet, "departs", lambda channels, shape, departing=departing: departing)
        decoded = shipped.encode(latents, 50, Known(channels, shape), own).decoded
        assert decoded is not None
        errors.append(np.square(decoded - latents.main).sum((1, 2)))
    assert errors[0][3] < 0.9 * errors[1][3]


def edited(block: bytes, changes: dict[int, bytes]) -> bytes:
    """Return a block in which some frames have other payloads."""
    found = Block.unpack(block)
    entries = list(found.entries)
    for place, payload in changes.items():
        entries[place] = entries[place]._replace(payload=payload)
    return found.with_entries(entries).pack()


def linked(payload: bytes, back: int, ahead: int) -> bytes:
    """Return a payload that builds on other frames than it did."""
    told = Told.by(payload)
    turns = b"\x00" * (bool(back) + bool(ahead))
    own = b"" if told.own is None else bytes([told.own])
    return bytes([told.bits | LINKED, back | ahead << 4]) + turns + own + told.rest


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({4: (5, 0)}, "not there"),  # before the first
        ({4: (15, 0)}, "not there"),
        ({4: (0, 1)}, "not there"),  # behind the last
        ({1: (1, 15)}, "not there"),
        ({0: (1, 0)}, "not there"),
        ({4: (0, 0)}, "builds on no frame"),
        ({0: (0, 1)}, "circle"),
        ({0: (0, 4), 4: (1, 0), 3: (3, 0)}, "circle"),
        ({1: (0, 1), 2: (1, 0)}, "circle"),
        ({0: (0, 4), 4: (4, 0)}, "circle"),
    ],
)
def test_links_to_what_is_not_there_or_in_a_circle_are_damage(
    codec: Codec, block: bytes, links: dict[int, tuple[int, int]], message: str
) -> None:
    rows = [0, 1, 3, 4, 5]  # the frames that are not empty, which links count
    payloads = Block.unpack(block).payloads
    damaged = edited(block, {rows[n]: linked(payloads[rows[n]], *both) for n, both in links.items()})
    with pytest.raises(DamagedError, match=message):
        codec.decode([damaged], FOUR, (32, 48))
    for n in links:
        for read in (codec.decode, codec.decode_tensor):
            with pytest.raises(DamagedError, match=message):
                read([damaged], FOUR, (32, 48), frames=[rows[n]])
        with pytest.raises(DamagedError, match=message):
            codec.latents([damaged], (32, 48), frames=[rows[n]])
    alone = bytes([payloads[5][0] & ~LINKED | NEWS]) + payloads[5][1:]
    with pytest.raises(DamagedError, match="first byte"):
        codec.decode([edited(block, {5: alone})], FOUR, (32, 48))


def test_links_to_a_frame_that_is_empty_are_damage(codec: Codec, block: bytes) -> None:
    found = Block.unpack(block)
    together = codec.decode([block], FOUR, (32, 48))
    steps = list(order(5, False, ALIKE))
    assert (steps[1].place, steps[1].back) == (4, 4)  # which builds on the first, and all others on it
    for erased in (0, 5):
        entries = list(found.entries)
        entries[erased] = EMPTY
        damaged = found.with_entries(entries).pack()
        for t in {0, 1, 3, 4, 5} - {erased}:
            if t == 0:
                assert np.array_equal(
                    codec.decode([damaged], FOUR, (32, 48), frames=[0])[0], together[0], equal_nan=True
                )
                continue
            with pytest.raises(DamagedError, match="frame that is not there"):
                codec.decode([damaged], FOUR, (32, 48), frames=[t])
            with pytest.raises(DamagedError, match="frame that is not there"):
                codec.latents([damaged], (32, 48), frames=[t])


def test_links_to_frames_that_are_stored_as_pixels_are_damage(codec: Codec) -> None:
    x = film(3, 3, 32, 48)
    x[0] = 1e9 * np.random.default_rng(0).standard_normal((3, 32, 48))
    (block,) = codec.encode(x, THREE, frames_per_block=3)
    payloads = Block.unpack(block).payloads
    assert is_raw(payloads[0])
    told = [Told.by(payload) for payload in payloads[1:]]
    # Neither builds on it; of those that follow, the first to be coded stands alone.
    assert [(t.back, t.ahead) for t in told] == [(0, 1), (0, 0)]
    together = codec.decode([block], THREE, (32, 48))
    for t in range(3):
        assert np.array_equal(codec.decode([block], THREE, (32, 48), frames=[t])[0], together[t])
    damaged = edited(block, {2: linked(payloads[2], 2, 0)})
    with pytest.raises(DamagedError, match="frame that is not there"):
        codec.decode([damaged], THREE, (32, 48))
    damaged = edited(block, {1: linked(payloads[1], 1, 1)})
    with pytest.raises(DamagedError, match="frame that is not there"):
        codec.latents([damaged], (32, 48), frames=[1])
    assert np.array_equal(codec.decode([damaged], THREE, (32, 48), frames=[2])[0], together[2])


# --- older payloads and models ---------------------------------------------------------------------------


def at_first(
    family: WaveletFamily, latents: Latents, known: Known, minutes: int, quality: int
) -> tuple[bytes, Float]:
    """Write a frame as it was when frames built on the one before only; return what is decoded, too."""
    none = np.zeros(12, bool)
    grid, encoder = grid_of(*known.shape), Encoder()
    time = family._turned(known, grid, Turns(minutes), none)
    writer = family._writer(encoder)
    ways = Ways(none, none)
    plan = Plan(known.channels, ways, grid, family._quality(quality, False), TIMED, time)
    decoded = Walk(family, plan, writer, latents.main).through(grid.depth)
    return bytes([TIMED]) + minutes.to_bytes(2, "little") + encoder.finish(), decoded


@pytest.fixture(scope="module")
def older(wavelet_model: Model) -> WaveletFamily:
    """A model as they were before symbols counted from means: ten variants of tables, and no trusts."""
    arrays = without_trusts(wavelet_model)
    kept = SCALES * 10
    length = arrays["bands_tables.length"]
    assert len(length) == SCALES * VARIANTS > kept
    arrays["bands_tables.frequencies"] = arrays["bands_tables.frequencies"][: length[:kept].sum()]
    for name in ("lowest", "length"):
        arrays[f"bands_tables.{name}"] = arrays[f"bands_tables.{name}"][:kept]
    return WaveletFamily(pack(wavelet_model.config, arrays))


def pair(family: WaveletFamily, quality: int) -> tuple[Reference, Latents]:
    """Return what is decoded of a frame, and the latents of one that follows."""
    frames, channels, shape = film(2, 3, 48, 64), (2, 5, 11), (48, 64)
    latents = [images_of(family, frame, channels, quality) for frame in frames]
    first = family.encode(latents[0], quality, Known(channels, shape)).decoded
    assert first is not None
    return family.reference(first, channels, shape), latents[1]


@pytest.mark.parametrize("number", [10, VARIANTS])
def test_frames_that_built_on_the_one_before_are_decoded_for_ever(
    plain: WaveletFamily, older: WaveletFamily, number: int
) -> None:
    here = older if number == 10 else plain
    before, latents = pair(here, 50)
    known = Known((2, 5, 11), (48, 64), before)
    for minutes in (60, 7):
        payload, decoded = at_first(here, latents, known, minutes, 50)
        assert here.links(payload) == (1, 0)
        assert (here.decode(payload, 50, known) == decoded).all()
        assert (np.abs(decoded - latents.main) / here.step[50][:, None, None]).max() < FURTHEST
        own = bytes([TIMED | OWN]) + payload[1:3] + b"\x32" + payload[3:]
        assert (here.decode(own, 20, known) == decoded).all()


def test_they_are_found_in_blocks(plain: WaveletFamily) -> None:
    codec, family = Codec(plain.model), plain
    x = film(4, 3, 48, 64)
    x[1] = np.nan
    (block,) = codec.at(50).encode(x, THREE, frames_per_block=4)
    channels, chained = (2, 5, 11), {}
    before = None
    for t in (0, 2, 3):
        latents = images_of(family, x[t], channels, 50)
        if before is None:
            written = family.encode(latents, 50, Known(channels, (48, 64)))
            chained[t], decoded = written.payload, written.decoded
            assert decoded is not None
        else:
            chained[t], decoded = at_first(family, latents, Known(channels, (48, 64), before), 60, 50)
        before = family.reference(decoded, channels, (48, 64))
    chain = edited(block, chained)
    together = codec.decode([chain], THREE, (48, 64))
    last = family.show(decoded, channels, channels, (48, 64))
    np.testing.assert_array_equal(together[3], family.stabiliser.subset(channels).inverse(last))
    for t in range(4):
        one = codec.decode([chain], THREE, (48, 64), frames=[t])[0]
        assert np.array_equal(one, together[t], equal_nan=True)
    with pytest.raises(DamagedError, match="frame that is not there"):
        codec.decode([edited(block, {0: chained[2]})], THREE, (48, 64), frames=[0])


@pytest.mark.parametrize("number", [10, VARIANTS])
def test_symbols_of_linked_frames_have_tables_of_their_own(
    plain: WaveletFamily, older: WaveletFamily, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = older if number == 10 else plain
    before, latents = pair(here, 80)
    seen: set[int] = set()
    settled = []
    asked, settle = Reader.symbols, type(here.context).settle

    def symbols(self: Reader, these: Coefficients) -> Int:
        seen.update(np.unique(these.tables // SCALES).tolist())
        return asked(self, these)

    def settles(self: ExactContext, level: int, *others: Any) -> Float:
        settled.append(level)
        return settle(self, level, *others)

    monkeypatch.setattr(Reader, "symbols", symbols)
    monkeypatch.setattr(ExactContext, "settle", settles)
    # An encoder that leaves out no level.
    monkeypatch.setattr(Draft, "worth", lambda *frame: None)
    for after in (None, before):
        known = Known((2, 5, 11), (48, 64), before, after)
        written = here.encode(latents, 80, known)
        assert written.payload[0] & LINKED
        seen.clear()
        settled.clear()
        assert (here.decode(written.payload, 80, known) == written.decoded).all()
        assert seen == ({10, 11} if here is plain else {0, 5})
        assert bool(settled) == (here is plain)
    # Others, and those that followed the one before at first, have the older ones.
    alone, following = Known((2, 5, 11), (48, 64)), Known((2, 5, 11), (48, 64), before)
    payloads = here.encode(latents, 80, alone).payload, at_first(here, latents, following, 60, 80)[0]
    for payload, known in zip(payloads, (alone, following), strict=True):
        seen.clear()
        settled.clear()
        here.decode(payload, 80, known)
        assert seen <= set(range(10))
        assert len(seen) > 2
        assert settled


def test_tables_of_another_number_of_variants_are_damage(wavelet_model: Model) -> None:
    arrays = load(wavelet_model.files[TENSORS])
    kept = SCALES * 11
    length = arrays["bands_tables.length"]
    arrays["bands_tables.frequencies"] = arrays["bands_tables.frequencies"][: length[:kept].sum()]
    for name in ("lowest", "length"):
        arrays[f"bands_tables.{name}"] = arrays[f"bands_tables.{name}"][:kept]
    with pytest.raises(DamagedError, match="do not fit its network"):
        WaveletFamily(pack(wavelet_model.config, arrays))


# --- operations ------------------------------------------------------------------------------------------


class Counted:
    """In place of the network: foretells nothing, and counts what the network would have multiplied."""

    def __init__(self) -> None:
        self.macs = 0.0

    def _add(self, level: int, positions: float, *names: str) -> int:
        n = max(level - (LEVELS - len(WIDTHS)) - 1, 0)
        parts = parts_of(WIDTHS[n], WIDTHS[max(n - 1, 0)])
        self.macs += sum(np.prod(parts[k][0]) * positions / (4 if k == "carry" else 1) for k in names)
        return WIDTHS[n]

    def enter(
        self,
        level: int,
        channels: Sequence[int],
        quality: int,
        flags: Float,
        planes: Float,
        time: Float | None,
        carry: Float | None,
        here: Places,
    ) -> tuple[Float, Float]:
        given = [k for k, v in (("time", time), ("carry", carry)) if v is not None]
        count, _, h, w = planes.shape
        width = self._add(level, count * h * w, "now", "deep", *given)
        self._add(level, count * here.shape[-1], "first", "first_out")
        return np.zeros((count, width, h, w), np.float32), np.zeros((count, 12, here.shape[-1]), np.float32)

    def beside(
        self,
        level: int,
        channels: Sequence[int],
        quality: int,
        features: Float,
        known: Float,
        here: Places,
    ) -> Float:
        self._add(level, known[:, 0].size, "beside")
        self._add(level, len(known) * here.shape[-1], "second", "second_out")
        return np.zeros((len(known), 12, here.shape[-1]), np.float32)

    def settle(
        self,
        level: int,
        channels: Sequence[int],
        quality: int,
        features: Float,
        known: Float,
        here: Places | None,
    ) -> Float:
        places = known[0, 0].size if here is None else here.shape[-1]
        self._add(level, known[:, 0].size, "after")
        self._add(level, len(known) * places, "settle", "settle_out")
        return np.zeros((len(known), 9, places), np.float32)


def test_operations_for_a_pixel_stay_few(family: WaveletFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (512, 512)
    pyramid = np.zeros((12, *shape), np.float32)
    pyramid[:, ::8, ::8] = 1e6  # so that no level is left out, and no tile
    latents = Latents(pyramid, np.zeros(0, np.float32))
    counted = Counted()
    monkeypatch.setattr(family, "context", counted)

    known = Known(ALL, shape)
    alone = family.encode(latents, 50, known)
    assert alone.decoded is not None
    assert counted.macs / 512**2 < 40_000
    after = Known(ALL, shape, family.reference(alone.decoded, ALL, shape))
    built = family.encode(latents._replace(main=pyramid * np.float32(0.9)), 50, after)
    assert built.payload[0] & LINKED
    counted.macs = 0
    family.decode(built.payload, 50, after)
    assert 30_000 < counted.macs / 512**2 < 60_000


def test_scales_are_shifted_where_the_network_is_wrong(wavelet_model: Model) -> None:
    family = WaveletFamily(wavelet_model)
    frame = film(1, 3, 64, 64)[0]
    latents = images_of(family, frame, (2, 5, 11), 60)
    known = Known((2, 5, 11), (64, 64))
    written = family.encode(latents, 60, known)
    # One that may not shift scales.
    family.shifted = np.repeat(family.bits.reshape(1, -1), 2 * SHIFT_MOST + 1, 0)
    without = family.encode(latents, 60, known)
    assert len(written.payload) < len(without.payload)
    for each in (written, without):
        assert (family.decode(each.payload, 60, known) == each.decoded).all()


# Frame by frame


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Payloads that a family decodes, as they come."""
    found: list[bytes] = []
    decode = WaveletFamily.decode

    def heard(self: WaveletFamily, payload: bytes, *rest: Any) -> Float:
        found.append(payload)
        return decode(self, payload, *rest)

    monkeypatch.setattr(WaveletFamily, "decode", heard)
    return found


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("rows", [range(12), range(11, -1, -1), (7, 3, 3, 11, 0, 8)])
def test_who_goes_through_a_film_frame_by_frame_decodes_each_about_once(
    codec: Codec, decoded: list[bytes], rows: Sequence[int], tensors: bool
) -> None:
    frames = film(12, 2, 32, 32)
    [block] = codec.encode(frames, ("171A", "193A"), frames_per_block=12)
    whole = codec.decode([block], ("171A", "193A"), (32, 32))
    decoded.clear()
    for t in rows:
        read: Any = codec.decode_tensor if tensors else codec.decode
        one = read([block], ("193A",), (32, 32), frames=[t], frames_per_block=12)
        np.testing.assert_array_equal(one[0], whole[t, 1:])
    # Kept is what was decoded for others. Who asks for a frame before those that build on it, in a group that
    # is not whole, or again for one on which none builds, has it decoded again.
    assert len(decoded) <= 12 + 2


def test_frames_of_one_channel_take_the_memory_of_one(
    codec: Codec, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = codec.encode(film(12, 1, 32, 32), ("193A",), frames_per_block=12)
    # The images of five frames, and as much again of what makes small pictures.
    monkeypatch.setattr("sunzip.codec.decoding._lately", Recent(5 * 2 * 4 * 32 * 32))
    decoded.clear()
    for t in range(12):
        codec.decode([block], ("193A",), (32, 32), frames=[t], frames_per_block=12)
    assert len(decoded) <= 12 + 2


def test_frames_of_others_are_not_taken_for_those_of_a_block(codec: Codec, decoded: list[bytes]) -> None:
    names = ("171A", "193A")
    blocks = [codec.encode(film(9, 2, 32, 32, seed=n), names, frames_per_block=9)[0] for n in range(2)]
    wholes = [codec.decode([block], names, (32, 32)) for block in blocks]
    for t in range(9):
        for block, whole in zip(blocks, wholes, strict=True):
            one = codec.decode([block], names, (32, 32), frames=[t], frames_per_block=9)
            np.testing.assert_array_equal(one[0], whole[t])
    # A network that was changed in memory decodes for itself.
    decoded.clear()
    other = Codec(codec.model)
    other.decode([blocks[0]], names, (32, 32), frames=[1], frames_per_block=9)
    assert len(decoded) == 5


def test_latents_and_tensors_are_the_same_after_frames_were_shown(codec: Codec, decoded: list[bytes]) -> None:
    names = ("171A", "193A")
    [block] = codec.encode(film(9, 2, 32, 32), names, frames_per_block=9)
    latents, pixels = codec.latents([block], (32, 32)), codec.decode([block], names, (32, 32))
    for _ in range(2):
        for t in (1, 4, 8):
            one = {"frames": [t], "frames_per_block": 9}
            np.testing.assert_array_equal(codec.decode([block], names, (32, 32), **one)[0], pixels[t])
            np.testing.assert_array_equal(codec.latents([block], (32, 32), **one)[0], latents[t])
            tensor = codec.decode_tensor([block], names, (32, 32), **one)
            np.testing.assert_allclose(tensor[0].numpy(), pixels[t], rtol=1e-4, atol=1e-3)


def test_what_is_read_as_a_whole_is_not_kept(
    codec: Codec, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = codec.encode(film(9, 2, 32, 32), ("171A", "193A"), frames_per_block=9)
    monkeypatch.setattr(Recent, "put", lambda *given: pytest.fail("kept"))
    codec.decode([block], ("171A", "193A"), (32, 32))
