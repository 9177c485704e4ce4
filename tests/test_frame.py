"""Block: what is written comes back, damage is named, and old bytes decode for ever."""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip.entropy.coder import Decoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError, InputError, UnsupportedError
from sunzip.frame import Block, is_raw, pack_residuals, unpack_residuals
from sunzip.gaps import pack_gaps, unpack_gaps

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reference" / "format-v1.md"


@st.composite
def blocks(draw):
    masks = draw(
        st.lists(st.integers(0, 0xFFF), min_size=1, max_size=6)
        | st.builds(lambda mask, n: [mask] * n, st.integers(0, 0xFFF), st.integers(1, 6))
    )
    some = st.binary(max_size=40)
    gap = st.sampled_from([b"", b"map", bytes([1, 5]), bytes([3])]) | some.filter(lambda of: of != b"\0")
    payloads = tuple(draw(some) if mask else b"" for mask in masks)
    bare = [not mask or is_raw(payload) for mask, payload in zip(masks, payloads, strict=True)]
    return Block(
        draw(st.binary(min_size=4, max_size=4)),
        (draw(st.integers(1, 16384)), draw(st.integers(1, 16384))),
        draw(st.integers(0, 255)),
        tuple(masks),
        payloads,
        tuple(b"" if none else draw(gap) for none in bare),
        tuple(b"" if none else draw(some | st.just(b"")) for none in bare),
    )


def small(**changes):
    fields = {
        "model": b"\xc0\xff\xee\x42",
        "shape": (16, 32),
        "quality": 3,
        "masks": (0xFFF, 0, 4),
        "payloads": (b"one", b"", b"three"),
        "gaps": (b"", b"", b"map"),
    }
    return Block(**(fields | changes))


#: Of a raw frame, with a byte before it that would be its residual.
RAW_AND_RESIDUAL = small(masks=(1,), payloads=(b"\x01r\0",), gaps=(b"",))

ONE_MAP_FOR_TWO = small(masks=(1, 1, 2), payloads=(b"one", b"two", b"three"), gaps=(b"map", b"map", b""))


def alike(payload=b"12345"):
    return small(masks=(1,) * 3, payloads=(payload,) * 3, gaps=(b"",) * 3)


def sealed(data):
    """The same bytes with a length and a checksum that agree with them."""
    data = bytearray(data)
    data[2:6] = struct.pack("<I", len(data))
    data[6:10] = struct.pack("<I", zlib.crc32(data[:6] + data[10:]))
    return bytes(data)


@given(blocks())
def test_what_is_packed_comes_back(block):
    data = block.pack()
    assert Block.unpack(data) == Block.unpack(memoryview(data)) == block
    assert Block.peek_length(data[:6]) == len(data)


@given(blocks())
def test_overhead_is_23_bytes_and_few_per_further_frame(block):
    block = small(
        shape=block.shape, masks=block.masks, payloads=block.payloads, gaps=(b"",) * len(block.masks)
    )
    each = 1 if block.masks[0] and len(set(block.masks)) == 1 else 4
    assert len(block.pack()) - sum(map(len, block.payloads)) == 23 + each * (len(block.masks) - 1)


def test_overhead_holds_up_to_the_largest_block_and_long_payloads():
    block = small(masks=(1,) * 4096, payloads=(b"x",) * 4096, gaps=(b"",) * 4096, shape=(16384, 16384))
    assert len(block.pack()) == 4096 + 23 + 4095
    assert Block.unpack(block.pack()) == block
    block = small(masks=(1, 2) * 2048, payloads=(b"x",) * 4096, gaps=(b"",) * 4096, shape=(16384, 16384))
    assert len(block.pack()) == 4096 + 23 + 4 * 4095
    assert Block.unpack(block.pack()) == block
    for size, further, second in (
        (15 * 65536 - 1, 4, 2),
        (15 * 65536, 6, 2),
        (127, 1, 1),
        (128, 2, 1),
        (15 * 65536, 3, 1),
    ):
        block = small(masks=(1, second), payloads=(bytes(size), bytes(size)), gaps=(b"", b""))
        assert len(block.pack()) == 2 * size + 23 + further
        assert Block.unpack(block.pack()) == block


def test_every_truncation_and_every_flipped_bit_is_refused():
    data = small().pack()
    for end in range(len(data)):
        with pytest.raises(DamagedError):
            Block.unpack(data[:end])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedError, UnsupportedError)):
            Block.unpack(bytes(flipped))
    with pytest.raises(DamagedError, match="header says"):
        Block.unpack(data + b"\0")


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 60)
)
def test_altered_bytes_with_a_true_checksum_give_a_block_or_a_clear_error(changes, cut):
    data = bytearray(small().pack())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        block = Block.unpack(sealed(data[: max(23, len(data) - cut)]))
    except (DamagedError, UnsupportedError):
        return
    assert Block.unpack(block.pack()) == block


@given(st.binary(max_size=100))
def test_garbage_is_refused(data):
    with pytest.raises((DamagedError, UnsupportedError)):
        Block.unpack(data)


def changed(at, value, block=None, size=1):
    data = bytearray((block or small()).pack())
    data[at : at + size] = value.to_bytes(size, "little")
    return sealed(data)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", DamagedError, "0 bytes are too few"),
        (changed(0, 0x50), DamagedError, "0x50 instead of 0x53"),
        (changed(1, 0), DamagedError, "version 0"),
        (changed(1, 2), UnsupportedError, "format version 2"),
        (small().pack()[:2] + bytes(30), DamagedError, "length of 0 bytes"),
        (small().pack()[:-1], DamagedError, "header says"),
        (small().pack()[:-1] + b"!", DamagedError, "checksum"),
        (changed(16, 0x20), DamagedError, "raw frames"),
        (changed(16, 0xC0, alike(b"\0one")), DamagedError, "rightly whether it has residuals"),
        (changed(16, 0xC0, alike(b"\x7f")), DamagedError, "a residual claims"),
        (changed(16, 0xA0, RAW_AND_RESIDUAL), DamagedError, "a raw frame has a residual"),
        (changed(20, 0x20), UnsupportedError, "feature"),
        (changed(20, 0x10), DamagedError, "by runs"),
        (changed(20, 0, small(gaps=(b"", b"", b"\1map"))), DamagedError, "by runs"),
        (changed(25, 2, ONE_MAP_FOR_TWO), DamagedError, "of other channels"),
        (changed(15, 0xFFF, size=2), DamagedError, "inside its table"),
        (changed(21, 0xFFFF, small(payloads=(b"", b"", b"")), 2), DamagedError, "form for"),
        (changed(23, 0xFFFF, size=2), DamagedError, "more bytes than it has"),
        (changed(29, 0x1004, size=2), DamagedError, "length of its own"),
        (changed(21, 0, size=2), DamagedError, "without channels"),
        (changed(31, 0x7F), DamagedError, "more bytes than its frame"),
        (
            changed(31, 0xFFFFFFFF, small(payloads=(b"only",) * 3, masks=(1, 2, 1)), 4),
            DamagedError,
            "gap map",
        ),
        (changed(21, 0, alike(), 2), DamagedError, "no channel"),
        (changed(21, 0x1001, alike(), 2), DamagedError, "length of its own"),
        (changed(23, 0x7F, alike()), DamagedError, "more bytes than it has"),
        (changed(23, 0xFFFFFFFFFF, alike(), 5), DamagedError, "not end"),
        (sealed(alike(b"").pack()[:-1]), DamagedError, "not end"),
        (
            sealed(small(payloads=(b"", b"", b""), gaps=(b"map", b"", b"")).pack()[:-1]),
            DamagedError,
            "not end",
        ),
    ],
)
def test_what_is_wrong_is_named(data, error, says):
    with pytest.raises(error, match=says):
        Block.unpack(data)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shape": (0, 5)}, InputError),
        ({"shape": (16385, 5)}, InputError),
        ({"masks": (), "payloads": (), "gaps": ()}, InputError),
        ({"masks": (1,) * 4097, "payloads": (b"",) * 4097, "gaps": (b"",) * 4097}, InputError),
        ({"masks": (1, 2)}, ValueError),
        ({"residuals": (b"", b"")}, ValueError),
        ({"residuals": (b"", b"some", b"")}, ValueError),
        ({"masks": (0x1000, 0, 4)}, ValueError),
        ({"masks": (0, 0, 4)}, ValueError),
        ({"model": b"abc"}, ValueError),
        ({"gaps": (b"map", b"", b"\0")}, ValueError),
        ({"quality": 256}, ValueError),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, error):
    with pytest.raises(error):
        small(**changes)


def test_a_gap_map_is_told_once_for_frames_that_share_it():
    gap = pack_gaps(np.eye(16, 32, dtype=bool)[None])
    block = small(
        masks=(1, 1, 0, 1, 2, 1),
        payloads=(b"one", b"two", b"", b"three", b"four", b"five"),
        gaps=(gap, gap, b"", b"", gap, gap),
    )
    data = block.pack()
    assert data.count(gap) == 3  # of other channels it is another map, and then again one
    assert Block.unpack(data) == block
    few, many = (
        small(masks=(1,) * n, payloads=(b"one",) * n, gaps=(gap,) * n, shape=(16, 32)).pack() for n in (2, 9)
    )
    assert len(many) - len(few) == 7 * (len(b"one") + 3)
    old = small(masks=(1, 1), payloads=(b"one", b"two"), gaps=(b"", b"bits")).pack()
    assert old[20] >> 4 == 0  # readers that know no other maps need not be new


def test_the_example_on_the_format_page_is_true():
    page = PAGE.read_text("utf-8")
    data, payload = (
        bytes.fromhex(re.search(rf"<!-- example: {name} -->\n```hex\n(.*?)```", page, re.DOTALL).group(1))
        for name in ("block", "payload")
    )
    block = Block.unpack(data)
    assert (block.model.hex(), block.shape, block.quality) == ("c0ffee42", (2, 4), 7)
    assert block.masks == (0x004, 0, 0xE00)
    assert block.payloads == (payload, b"", b"\x2a")
    missing = unpack_gaps(block.gaps[2], 3, 2, 4)
    assert np.flatnonzero(missing).tolist() == [0, 1, *range(8, 16)]
    assert block.pack() == data


def test_a_block_written_by_version_1_decodes_for_ever():
    told = json.loads((HERE / "golden" / "block-v1.json").read_text("utf-8"))
    block = Block.unpack((HERE / "golden" / "block-v1.bin").read_bytes())
    tables = Tables(
        np.array(told["tables"]["frequencies"], np.uint32),
        np.array(told["tables"]["lowest"], np.int32),
        np.array(told["tables"]["length"], np.int32),
    )
    assert block.model.hex() == told["model"]
    assert block.shape == tuple(told["shape"])
    assert block.quality == told["quality"]
    assert len(block.masks) == len(told["frames"]) == 4
    for mask, payload, gap, want in zip(block.masks, block.payloads, block.gaps, told["frames"], strict=True):
        assert mask == want["mask"]
        missing = unpack_gaps(gap, mask.bit_count(), *block.shape)
        assert np.flatnonzero(missing).tolist() == want["missing"]
        if mask:
            decoder = Decoder(payload)
            for push in want["pushes"]:
                assert decoder.pop(np.array(push["index"]), tables).tolist() == push["symbols"]
            decoder.finish()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=12))
def test_residuals_of_channels_come_back(images):
    data = pack_residuals(images)
    assert unpack_residuals(data, len(images)) == images
    assert bool(data) is any(images)
    if data:
        for wrong in (data[:-1], data + b"!"):
            with pytest.raises(DamagedError, match=r"residual|does not end"):
                unpack_residuals(wrong, len(images))
        with pytest.raises(DamagedError, match="does not end"):
            unpack_residuals(data, len(images) + 1)


def test_residuals_that_hold_nothing_are_none():
    with pytest.raises(DamagedError, match="those of 2 channels"):
        unpack_residuals(b"\0\0", 2)
