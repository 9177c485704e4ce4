"""Tiles: what the network makes of them is what it makes of whole bands; who tells of them, and who harms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sunzip.codec import tiles as codec_tiles
from sunzip.codec import walk
from sunzip.codec.family import Float, Known, Latents
from sunzip.codec.head import LINKED, TILED
from sunzip.codec.symbols import Int, Reader
from sunzip.codec.tiles import (
    EVERYWHERE,
    SIDE,
    TILES,
    Bool,
    Tiles,
    Whole,
    above,
    are_tiled,
    below,
    expected,
    loudness,
    tiles_of,
    worthwhile,
)
from sunzip.codec.wavelet import WaveletFamily
from sunzip.errors import DamagedError
from sunzip.nn.planes import COUNT_NOW, COUNT_TIME, WIDTHS
from sunzip.pyramid import grid_of, places_of
from sunzip.sources.synthetic import render
from sunzip.weights import Model

SHAPES = st.tuples(st.integers(20, 70), st.integers(20, 70))
CHANNELS = (2, 3, 5)


@st.composite
def masks(draw: st.DrawFn) -> tuple[Bool, tuple[int, int]]:
    shape = draw(SHAPES)
    return draw(arrays(np.bool_, tiles_of(shape)).filter(np.any)), shape


@given(masks())
def test_tiles_have_each_of_their_places_once(given: tuple[Bool, tuple[int, int]]) -> None:
    coded, (h, w) = given
    tiles = Tiles(coded, (h, w))
    inside = coded.repeat(SIDE, 0).repeat(SIDE, 1)[:h, :w]
    assert len(tiles) == coded.sum()
    first, second, every = tiles.places
    assert np.array_equal(np.sort(every), np.flatnonzero(inside))
    assert np.array_equal(np.sort(np.concatenate((first, second))), np.sort(every))
    assert not ((first // w + first % w) % 2).any()
    assert ((second // w + second % w) % 2).all()
    # What is asked of windows is what stands at those places.
    planes = np.random.default_rng(0).normal(size=(1, 2, h, w)).astype(np.float32)
    windows = tiles.windows(planes)
    for which, places in enumerate(tiles.places):
        taken = np.take_along_axis(windows.reshape(*windows.shape[:2], -1), tiles.asked[which][:, None], -1)
        assert np.array_equal(tiles.listed(taken, which), planes.reshape(1, 2, -1)[..., places])
    # Beyond the edges it is as at them.
    wide = tiles.windows(planes, 1)
    assert np.array_equal(wide[..., 1:-1, 1:-1], windows)
    everything = Whole((h, w)).windows(planes, 1)
    if coded[0, 0]:
        assert np.array_equal(wide[0], everything[0, :, :22, :22])
    if coded[-1, -1]:
        assert np.array_equal(wide[-1], everything[0, :, -22:, -22:])


@given(masks())
def test_features_go_to_their_places_and_back(given: tuple[Bool, tuple[int, int]]) -> None:
    coded, (h, w) = given
    tiles = Tiles(coded, (h, w))
    planes = np.random.default_rng(0).normal(size=(1, 3, h, w)).astype(np.float32)
    inside = coded.repeat(SIDE, 0).repeat(SIDE, 1)[:h, :w]
    assert np.array_equal(tiles.whole(tiles.windows(planes)), planes * inside)
    finer = Tiles(np.ones(tiles_of((2 * h, 2 * w)), np.bool_), (2 * h, 2 * w))
    doubled = planes.repeat(2, 2).repeat(2, 3)
    assert np.array_equal(finer.coarser(planes).repeat(2, 2).repeat(2, 3), finer.windows(doubled))


@given(masks())
def test_a_tile_lies_in_one_of_the_coarser_level(given: tuple[Bool, tuple[int, int]]) -> None:
    coded, _ = given
    coarser = above(coded)
    shape = coded.shape[0] * SIDE, coded.shape[1] * SIDE
    assert coarser.shape == tiles_of((-(-shape[0] // 2), -(-shape[1] // 2)))
    under = below(coarser, shape)
    assert under.shape == coded.shape
    assert (under | ~coded).all()
    assert np.array_equal(above(under), coarser)


def test_the_network_makes_of_tiles_what_it_makes_of_whole_bands(wavelet_model: Model) -> None:
    context = WaveletFamily(wavelet_model).context
    rng = np.random.default_rng(3)
    h, w, level = 52, 70, 6
    below_it, width = WIDTHS[1], WIDTHS[2]
    planes, time, known = (
        rng.integers(-127, 128, (1, count, h, w)).astype(np.float32)
        for count in (COUNT_NOW, COUNT_TIME, COUNT_TIME)
    )
    carry = rng.integers(0, 256, (1, below_it, h // 2, w // 2)).astype(np.float32)
    flags = np.ones((1, 4), np.float32)
    which = level, [5], 40
    whole = Whole((h, w))
    features, first = context.enter(*which, flags, planes, time, carry, whole.asked[0])
    second = context.beside(*which, features, known, whole.asked[1])
    last = context.settle(*which, features, known, None)
    everywhere = np.empty((2, 12, h * w), np.float32)
    everywhere[0][:, whole.places[0]], everywhere[1][:, whole.places[1]] = first[0], second[0]
    coded = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 1]], np.bool_)
    tiles = Tiles(coded, (h, w))
    given = (tiles.windows(planes), tiles.windows(time), tiles.coarser(carry))
    found, outputs = context.enter(*which, flags, *given, tiles.asked[0])
    near = tiles.windows(known)
    others = context.beside(*which, found, near, tiles.asked[1])
    settled = context.settle(*which, found, near, tiles.asked[2])
    assert np.array_equal(tiles.listed(outputs, 0)[0], everywhere[0][:, tiles.places[0]])
    assert np.array_equal(tiles.listed(others, 1)[0], everywhere[1][:, tiles.places[1]])
    assert np.array_equal(tiles.listed(settled, 2)[0], last[0][:, tiles.places[2]])
    inside = coded.repeat(SIDE, 0).repeat(SIDE, 1)[:h, :w]
    assert found.shape[1] == width
    assert np.array_equal(tiles.whole(found), features * inside)


def test_what_is_expected_depends_on_the_coarser_level_and_other_channels() -> None:
    shape = 40, 48
    coarser = np.zeros((20, 24), np.int32)
    coarser[0, 0], coarser[3, 9], coarser[19, 23] = 1, 6, 225
    table = expected(coarser, [], False, shape)
    assert table.tolist() == [[4, 8, 0], [0, 0, 0], [0, 0, 28]]
    assert expected(None, [], True, shape).tolist() == [[32] * 3] * 3
    seen = [np.eye(3, dtype=np.bool_), np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]], np.bool_)]
    assert (expected(None, seen, False, shape) == [[3, 2, 1], [1, 2, 1], [1, 1, 2]]).all()
    assert EVERYWHERE.tolist() == [len(TILES) - 1] == [64]
    symbols = np.zeros((1, 3, 2, 2), np.int32)
    symbols[0, :, 0, 1], symbols[0, 2, 1, 1] = (-3, 2, 0), 99
    assert loudness(symbols).tolist() == [[[0, 9], [0, 225]]]


def test_tables_are_those_of_the_format_page() -> None:
    free = (1 << 24) - 3
    for chance, begin in zip(codec_tiles._FLAT, TILES.offsets.tolist(), strict=True):
        found = TILES.frequencies[begin : begin + 3].tolist()
        wanted = [(256 - chance) * free // 256 + 1, chance * free // 256 + 1, 1]
        wanted[0 if wanted[0] >= wanted[1] else 1] += (1 << 24) - sum(wanted)
        assert found == wanted


def test_a_tile_must_be_worth_its_bits() -> None:
    apart = np.zeros((3, 40, 40), np.float32)
    apart[1, 3, 3] = 1.3  # 0.6 squared steps more than it costs
    apart[0, 20, 3] = -1.6  # 1.4
    apart[2, 39, 39] = 1.05  # hardly any
    assert not worthwhile(apart, 0, True).any()
    assert worthwhile(apart, 9, True).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]  # of the field, 1.7
    apart[0, 20, 3] = -1.9
    assert worthwhile(apart, 0, True).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    apart[:, 3:6, 3:6] = 1.3  # together they are
    assert worthwhile(apart, 0, True).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    # More is asked where no other frames foretell what is left out.
    assert worthwhile(apart, 0, False).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    apart[:] = np.float32(1e38)
    assert worthwhile(apart, 0, True).all()
    assert worthwhile(apart, 0, False).all()


# --- frames ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames() -> Float:
    return np.stack([render(f"2014-06-01T0{hour}:00", size=160) for hour in range(3)])


@pytest.fixture
def family(wavelet_model: Model) -> WaveletFamily:
    return WaveletFamily(wavelet_model)


def analysed(family: WaveletFamily, frame: Float, quality: int = 60) -> Latents:
    stable = np.zeros((1, 12, *frame.shape[1:]), np.float32)
    names = list(CHANNELS)
    stable[0, names] = family.stabiliser.forward(frame[None])[0, names]
    return family.analyse(stable, np.isin(np.arange(12), names)[None].astype(np.float32), quality)[0]


@pytest.mark.parametrize("quality", [20, 45, 70])
@pytest.mark.parametrize("shape", [(160, 160), (97, 150)])
def test_what_is_decoded_is_what_the_encoder_saw(
    family: WaveletFamily, frames: Float, quality: int, shape: tuple[int, int]
) -> None:
    h, w = shape
    alone = Known(CHANNELS, shape)
    first = family.encode(analysed(family, frames[0, :, :h, :w]), quality, alone)
    assert first.payload[0] & (TILED | LINKED) == TILED
    assert first.decoded is not None
    assert np.array_equal(family.decode(first.payload, quality, alone), first.decoded)
    for channels in (CHANNELS, (3,)):
        known = Known(channels, shape, family.reference(first.decoded, CHANNELS, shape))
        found = family.encode(analysed(family, frames[1, :, :h, :w]), quality, known)
        assert found.payload[0] & TILED
        assert found.decoded is not None
        assert np.array_equal(family.decode(found.payload, quality, known), found.decoded)


def test_frames_larger_than_those_of_training_are_decoded(family: WaveletFamily) -> None:
    # Of two levels the bands have more than 256 pixels a side: both have the last network.
    shape = 1024, 1030
    frame = np.zeros((12, *shape), np.float32)
    rng = np.random.default_rng(0)
    frame[[2, 3]] = rng.normal(500, 30, (2, *shape))
    frame[[2, 3], :300, :200] += rng.normal(0, 300, (2, 300, 200))
    for channels in ((2, 3), (3,)):
        known = Known(channels, shape)
        written = family.encode(analysed(family, frame), 50, known)
        assert written.decoded is not None
        assert np.array_equal(family.decode(written.payload, 50, known), written.decoded)
        finest = places_of(written.decoded, 512, 520)
        assert all(band[list(channels)].any() for band in finest)


def test_small_frames_have_none(family: WaveletFamily, frames: Float) -> None:
    known = Known(CHANNELS, (48, 50))
    payload = family.encode(analysed(family, frames[0, :, :48, :50]), 60, known).payload
    assert not payload[0] & TILED
    assert are_tiled((32, 40))
    assert not are_tiled((31, 40))


def test_what_is_not_coded_is_as_others_tell(family: WaveletFamily, frames: Float) -> None:
    shape = 160, 160
    known = Known(CHANNELS, shape)
    latents = analysed(family, frames[0])
    grid = grid_of(*shape)
    # Of one channel, which another tells of, all is gone from half of the finest level.
    bands = places_of(latents.main[5], *grid.level(grid.depth - 1))
    for band in bands:
        band[:, :48] = 0
    written = family.encode(latents, 50, known)
    assert written.decoded is not None
    cross = np.stack(places_of(written.decoded, *grid.level(grid.depth - 1)))
    left = cross[:, 5, :, :16]
    # What is there is a mixture of what the channels seen have there.
    seen = [r for r in (2, 3) if cross[:, r, :, :16].any()]
    mixed = cross[:, seen, :, :16].transpose(1, 0, 2, 3).reshape(len(seen), -1)
    if seen:
        solved = np.linalg.lstsq(mixed.T.astype(np.float64), left.ravel(), rcond=None)[0]
        assert left.ravel() == pytest.approx(solved @ mixed, abs=1e-3)
    else:
        assert not left.any()


@pytest.mark.parametrize("harm", [2, -2])
@pytest.mark.parametrize("which", ["whole levels", "tiles"])
def test_tiles_of_strangers_are_damage(
    family: WaveletFamily, frames: Float, monkeypatch: pytest.MonkeyPatch, which: str, harm: int
) -> None:
    known = Known(CHANNELS, (160, 160))
    monkeypatch.setattr(walk, "MANY", 1.0)
    payload = family.encode(analysed(family, frames[0]), 30, known).payload
    side = Reader.side

    def harmed(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        told = side(self, kind, index, values)
        wanted = kind == "tiles" and (index.tolist() == [64]) == (which == "whole levels")
        return told + np.int32(harm) if wanted else told

    monkeypatch.setattr(Reader, "side", harmed)
    with pytest.raises(DamagedError, match="neither coded nor left out"):
        family.decode(payload, 30, known)


@pytest.mark.parametrize("seed", range(8))
def test_any_tiles_are_followed(
    family: WaveletFamily, frames: Float, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Also such as no encoder would choose: finer ones all over where the coarser level has none.
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(
        walk, "worthwhile", lambda apart, channel, linked: rng.random(tiles_of(apart.shape[1:])) < 0.3
    )
    monkeypatch.setattr(walk, "MANY", rng.random())
    known = Known(CHANNELS, (150, 130))
    first = family.encode(analysed(family, frames[0, :, :150, :130]), 50, known)
    assert first.decoded is not None
    assert np.array_equal(family.decode(first.payload, 50, known), first.decoded)
    known = known._replace(before=family.reference(first.decoded, CHANNELS, known.shape))
    found = family.encode(analysed(family, frames[2, :, :150, :130]), 50, known)
    assert np.array_equal(family.decode(found.payload, 50, known), found.decoded)
