"""Missing pixels: maps of them come back and stay small, and what stands in costs next to nothing."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sunzip import weights
from sunzip.api import open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import disk_radius
from sunzip.errors import DamagedError
from sunzip.gaps import filled, pack_gaps, tells_runs, unpack_gaps

MAPS = hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)


@given(hnp.arrays(np.bool_, MAPS) | hnp.arrays(np.bool_, MAPS, elements=st.booleans(), fill=st.just(False)))
def test_gap_maps_come_back(missing):
    data = pack_gaps(missing)
    assert (data == b"") is not missing.any()
    np.testing.assert_array_equal(unpack_gaps(data, *missing.shape), missing)


def kinds():
    """Maps of each kind, by what is told of them."""
    rng = np.random.default_rng(2)
    points, block, columns = np.zeros((3, 2, 40, 150), bool)
    points[:, ::13, ::17] = True
    block[:, 3:30, 20:120] = True
    columns[:, :, rng.random(150) < 0.3] = True
    return [(points, 1), (columns, 2), (block, 3), (rng.random((2, 40, 150)) < 0.5, 0x78)]


@pytest.mark.parametrize(("missing", "kind"), kinds())
def test_maps_of_every_kind_come_back(missing, kind):
    data = pack_gaps(missing)
    assert data[0] == kind
    assert tells_runs(data) is (kind < 4)
    np.testing.assert_array_equal(unpack_gaps(data, *missing.shape), missing)
    # Other channels with the same gaps cost next to nothing.
    many = missing[[0] * 12]
    assert kind == 0x78 or len(pack_gaps(many)) < len(pack_gaps(many[:1])) + 10


def test_a_disk_without_surroundings_is_told_in_few_bytes():
    offset = np.arange(512) - 255.5
    beyond = np.hypot(offset[:, None], offset) > 200
    assert len(pack_gaps(beyond[None].repeat(12, 0))) < 1000


@pytest.mark.parametrize(("missing", "kind"), kinds())
def test_maps_that_disagree_are_refused(missing, kind):
    data = pack_gaps(missing)
    for shape in ((1, 40, 150), (2, 40, 151), (12, 16384, 16384)):
        with pytest.raises(DamagedError, match="exactly"):
            unpack_gaps(data, *shape)
    for end in range(1, len(data)):
        with pytest.raises(DamagedError):
            unpack_gaps(data[:end], *missing.shape)
    with pytest.raises(DamagedError, match="exactly"):
        unpack_gaps(data + b"!", *missing.shape)


def test_bits_behind_the_last_pixel_are_refused():
    with pytest.raises(DamagedError, match="behind its last pixel"):
        unpack_gaps(zlib.compress(b"\xff" * 3), 1, 1, 20)


@pytest.mark.parametrize(
    "runs",
    [
        b"",
        b"\x80",  # does not end
        bytes([0] * 20),  # one too few
        bytes([0] * 22),  # one too many
        bytes([0x81, 0x80, 0x80, 0x80, 0x80, 0x00]),  # of six bytes
        bytes([0xFF] * 4 + [0x7F]) * 4,  # far behind
    ],
)
def test_runs_that_are_none_of_the_image_are_refused(runs):
    with pytest.raises(DamagedError, match="exactly"):
        unpack_gaps(b"\1" + zlib.compress(runs), 1, 10, 2)


@given(st.sampled_from([b"\1", b"\2", b"\3"]), st.binary(max_size=12))
def test_any_runs_give_a_map_or_a_clear_error(way, runs):
    try:
        missing = unpack_gaps(way + zlib.compress(runs), 3, 4, 8)
    except DamagedError:
        return
    np.testing.assert_array_equal(unpack_gaps(pack_gaps(missing), 3, 4, 8), missing)


@pytest.mark.parametrize("way", [b"", b"\1"])
def test_a_map_cannot_be_a_bomb(way):
    bomb = way + zlib.compress(bytes(1 << 26), 9)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match="exactly"):
            unpack_gaps(bomb, 2, 4, 5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.floats(-9, 9, width=32)
    ),
    st.data(),
)
def test_what_stands_in_lies_between_what_is_measured(image, data):
    missing = data.draw(hnp.arrays(np.bool_, image.shape))
    missing.flat[data.draw(st.integers(0, image.size - 1))] = False
    out = filled(np.where(missing, np.float32(np.nan), image), missing)
    there = image[~missing]
    np.testing.assert_array_equal(out[~missing], there)
    assert there.min() - 1e-5 <= out.min()
    assert out.max() <= there.max() + 1e-5


def test_what_stands_in_is_near_what_was_there():
    y, x = np.mgrid[:96, :128].astype(np.float32)
    image = 50 + 20 * np.sin(y / 15) * np.cos(x / 12)
    missing = np.zeros(image.shape, bool)
    missing[30:38, 60:68] = missing[5, :] = True
    missing[::7, ::11] = True
    assert np.abs(filled(image, missing) - image).max() < 6


@pytest.fixture(scope="module")
def sun():
    """One frame (1, 12, Y, X) of the synthetic Sun."""
    return open_series("synthetic:frames=1,size=256,seed=8,start=2013-03-01,cadence=1h").read(0, 1).data


@pytest.mark.parametrize("block", [False, True])
def test_missing_pixels_cost_little_and_spoil_nothing(sun, block):
    codec = Codec(weights.load(), 40)
    rng = np.random.default_rng(4)
    missing = np.zeros((256, 256), bool)
    if block:
        missing[96:128, 64:192] = True
    else:
        missing[rng.random((256, 256)) < 0.002] = True
    gone = np.where(missing, np.float32(np.nan), sun)
    (whole,), (holed,) = codec.encode(sun, NAMES), codec.encode(gone, NAMES)
    gap = pack_gaps(missing[None].repeat(12, 0))
    assert len(holed) < 1.03 * len(whole) + len(gap) + 3  # some of the field's points are missing

    offset = np.arange(256) - 127.5
    counted = ~missing & (np.hypot(offset[:, None], offset) < 1.1 * disk_radius(256))
    original = sun[0, :9][:, counted]

    def off(data):
        decoded = codec.decode([data], NAMES, (256, 256))[0]
        assert np.isnan(decoded[:, missing]).all() or data is whole
        apart = decoded[:9, counted] - original
        return np.sqrt(np.square(apart / np.sqrt(np.abs(original) + 1)).mean()), apart.sum(1) / original.sum(
            1
        )

    (error, light), (plain, _) = off(holed), off(whole)
    assert error < 1.02 * plain
    assert np.abs(light).max() < 0.002
