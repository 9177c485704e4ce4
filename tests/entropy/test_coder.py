"""Encoder and Decoder against a decoder written from the format page alone, and against hostile bytes."""

import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import PRECISION, Tables
from sunzip.errors import DamagedError

TOTAL = 1 << PRECISION
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "format-v1.md"
START = 0x7A73
int32s = st.integers(-(2**31), 2**31 - 1)


# --- docs/reference/format-v1.md, "Entropy coding", word by word, without constriction or numpy ----------


class Stack:
    """The stack of words and the state; `decode` and `encode` are the page's two procedures."""

    def __init__(self, payload=b""):
        padded = payload + bytes(-len(payload) % 4)
        self.words = [int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4)]
        self.state = 0
        self.refill()
        self.refill()

    def refill(self):
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def decode(self, frequencies):
        q, c, entry = self.state % (1 << 24), 0, 0
        while q >= c + frequencies[entry]:
            c += frequencies[entry]
            entry += 1
        self.state = (self.state >> 24) * frequencies[entry] + q - c
        self.refill()
        return entry

    def encode(self, frequencies, entry):
        f, c = frequencies[entry], sum(frequencies[:entry])
        if self.state >> 40 >= f:
            self.words.append(self.state % (1 << 32))
            self.state >>= 32
        self.state = (self.state // f << 24) + c + self.state % f

    def payload(self):
        words = [*self.words, self.state % (1 << 32), self.state >> 32]
        return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


BYTES = [1 << 16] * 256


def reference_decode(payload, pushes):
    """Decode pushes given as (index, rows), rows being (lowest, frequencies) of each table."""
    stack, out = Stack(payload), []
    for index, rows in pushes:
        symbols, escaped = [None] * len(index), []
        for k in sorted(set(index)):
            lowest, frequencies = rows[k]
            for position in (i for i, of in enumerate(index) if of == k):
                entry = stack.decode(frequencies)
                if entry == len(frequencies) - 1:
                    escaped.append(position)
                else:
                    symbols[position] = lowest + entry
        codes, going, shift = dict.fromkeys(escaped, 0), escaped, 0
        while going:
            assert shift < 35
            still = []
            for position in going:
                byte = stack.decode(BYTES)
                codes[position] |= byte % 128 << shift
                if byte >= 128:
                    still.append(position)
            going, shift = still, shift + 7
        for position, code in codes.items():
            lowest, frequencies = rows[index[position]]
            above = lowest + len(frequencies) - 1
            symbols[position] = lowest - 1 - code // 2 if code % 2 else above + code // 2
        out.append(symbols)
    assert stack.state == START
    assert not stack.words
    return out


def reference_entries(pushes):
    """Return what a decoder takes for pushes, one after another, as (frequencies, entry)."""
    taken = []
    for symbols, index, tables in pushes:
        rows, escaped = plain(tables), []
        for k in sorted(set(index.tolist())):
            lowest, frequencies = rows[k]
            for symbol in symbols[index == k].tolist():
                inside = 0 <= symbol - lowest < len(frequencies) - 1
                taken.append((frequencies, symbol - lowest if inside else len(frequencies) - 1))
        for symbol, k in zip(symbols.tolist(), index.tolist(), strict=True):
            below, above = symbol - rows[k][0], symbol - rows[k][0] - len(rows[k][1]) + 1
            if below < 0 or above >= 0:
                escaped.append(2 * above if above >= 0 else -2 * below - 1)
        while escaped:
            taken += [(BYTES, code % 128 + 128 * (code >= 128)) for code in escaped]
            escaped = [code >> 7 for code in escaped if code >= 128]
    return taken


# --- strategies ------------------------------------------------------------------------------------------


@st.composite
def any_tables(draw):
    """Arbitrary valid tables: cuts of [0, 2**24) at any places, first symbols anywhere."""
    cuts = draw(
        st.lists(
            st.lists(st.integers(1, TOTAL - 1), min_size=1, max_size=12, unique=True), min_size=1, max_size=4
        )
    )
    rows = [np.diff([0, *sorted(row), TOTAL]) for row in cuts]
    lowest = [draw(st.integers(-20, 5) | int32s.map(lambda x: min(x, 2**31 - 20))) for _ in rows]
    return Tables(
        np.concatenate(rows).astype(np.uint32),
        np.array(lowest, np.int32),
        np.array([row.size for row in rows], np.int32),
    )


@st.composite
def any_pushes(draw):
    pushes = []
    for _ in range(draw(st.integers(1, 3))):
        tables = draw(any_tables())
        index = draw(st.lists(st.integers(0, len(tables) - 1), max_size=30))
        near = [int(tables.lowest[k]) + int(tables.length[k]) for k in index]
        symbols = [
            draw(st.integers(max(top - 16, -(2**31)), min(top + 3, 2**31 - 1)) | int32s) for top in near
        ]
        pushes.append((np.array(symbols, np.int32), np.array(index, np.int64), tables))
    return pushes


def encode(pushes):
    encoder = Encoder()
    for symbols, index, tables in pushes:
        encoder.push(symbols, index, tables)
    return encoder.finish()


def plain(tables):
    """The tables as lists of Python integers."""
    ends = np.cumsum(tables.length)
    return [
        (int(low), tables.frequencies[end - size : end].tolist())
        for low, size, end in zip(tables.lowest, tables.length, ends, strict=True)
    ]


# --- tests -----------------------------------------------------------------------------------------------


@given(any_pushes())
def test_any_int32_under_any_tables_round_trips_at_its_ideal_cost(pushes):
    payload = encode(pushes)
    assert payload == encode(pushes)
    decoder = Decoder(payload)
    for symbols, index, tables in pushes:
        got = decoder.pop(index, tables)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, symbols)
    decoder.finish()
    ideal = sum(tables.cost_bits(symbols, index) for symbols, index, tables in pushes)
    taken = reference_entries(pushes)
    assert ideal == pytest.approx(sum(PRECISION - math.log2(f[entry]) for f, entry in taken), abs=1e-6)
    # The state that the encoder begins with is its own successor under a table's first entry if that is
    # wider than it: the last symbols of a payload are free as long as they are such.
    while taken and taken[-1][1] == 0 and taken[-1][0][0] > START:
        ideal -= PRECISION - math.log2(taken.pop()[0][0])
    assert abs(8 * len(payload) - ideal) <= 64 + 0.005 * ideal


@given(any_pushes())
def test_a_decoder_written_from_the_format_page_reads_every_payload(pushes):
    got = reference_decode(encode(pushes), [(index.tolist(), plain(tables)) for _, index, tables in pushes])
    assert got == [symbols.tolist() for symbols, _, _ in pushes]


@given(any_tables(), st.data())
def test_an_encoder_written_from_the_format_page_gives_the_same_bytes(tables, data):
    rows = plain(tables)
    entries = data.draw(st.lists(st.integers(0, len(rows[0][1]) - 2), max_size=60))
    stack = Stack(START.to_bytes(2, "little"))
    for entry in reversed(entries):
        stack.encode(rows[0][1], entry)
    symbols = np.array(entries, np.int64) + rows[0][0]
    assert stack.payload() == encode([(symbols, np.zeros(len(entries), np.int64), tables)])


def example(name):
    fence = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return fence.group(1)


def test_the_example_on_the_format_page_is_true():
    told = json.loads(example("symbols"))
    payload = bytes.fromhex(example("payload"))
    tables = Tables(
        np.array(told["frequencies"], np.uint32),
        np.array(told["lowest"], np.int32),
        np.array(told["length"], np.int32),
    )
    pushes = [(np.array(p["symbols"]), np.array(p["index"]), tables) for p in told["pushes"]]
    assert encode(pushes) == payload
    want = [p["symbols"] for p in told["pushes"]]
    assert reference_decode(payload, [(p["index"], plain(tables)) for p in told["pushes"]]) == want
    decoder = Decoder(payload)
    assert [decoder.pop(index, tables).tolist() for _, index, _ in pushes] == want
    decoder.finish()


def frame(seed, n=50_000, k=64):
    """Symbols as a hyperprior's latents have them: most of them in narrow tables."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(0.11, 64, k)
    index = np.minimum(rng.geometric(0.1, n) - 1, k - 1).astype(np.int64)
    return np.rint(rng.normal(0, scales[index])).astype(np.int32), index, Tables.gaussian(scales)


@pytest.mark.parametrize("n", [10, 300, 50_000])
def test_overhead_is_a_few_bytes(n):
    symbols, index, tables = frame(n, n)
    assert 8 * len(encode([(symbols, index, tables)])) < tables.cost_bits(symbols, index) + 40


def test_a_source_of_almost_no_information_costs_almost_nothing():
    tables = Tables.from_counts([[10**7]], [[0]])
    zeros = np.zeros(100_000, np.int32)
    assert len(encode([(zeros, zeros, tables)])) <= 4


def test_shapes_are_flattened_in_c_order_and_come_back():
    symbols, index, tables = frame(1, 24)
    shape = (2, 3, 4)
    payload = encode([(symbols.reshape(shape), index.reshape(shape), tables)])
    assert payload == encode([(symbols, index, tables)])
    flipped = np.asfortranarray(symbols.reshape(shape))
    assert payload == encode([(flipped, np.asfortranarray(index.reshape(shape)).astype(np.uint8), tables)])
    np.testing.assert_array_equal(Decoder(payload).pop(index.reshape(shape), tables), symbols.reshape(shape))


def test_nothing_costs_two_bytes():
    tables = Tables.gaussian([1.0])
    empty = np.zeros((0, 3), np.int32)
    assert encode([]) == encode([(empty, empty, tables)]) == START.to_bytes(2, "little")
    decoder = Decoder(encode([]))
    assert decoder.pop(empty, tables).shape == (0, 3)
    decoder.finish()


def test_equal_tables_give_equal_bytes_whichever_process_made_them():
    symbols, index, tables = frame(2, 500)
    payload = encode([(symbols, index, tables)])
    np.testing.assert_array_equal(Decoder(payload).pop(index, pickle.loads(pickle.dumps(tables))), symbols)


@pytest.mark.parametrize(
    ("symbols", "index", "says"),
    [
        (np.zeros(3, np.int32), np.zeros(2, np.int64), "shape"),
        (np.array([2**31]), np.zeros(1, np.int64), "32-bit"),
        (np.array([-(2**31) - 1]), np.zeros(1, np.int64), "32-bit"),
        (np.zeros(1, np.int32), np.array([1]), "index"),
        (np.zeros(1, np.int32), np.array([-1]), "index"),
    ],
)
def test_symbols_that_cannot_be_coded_are_refused(symbols, index, says):
    with pytest.raises(ValueError, match=says):
        Encoder().push(symbols, index, Tables.gaussian([1.0]))


def decoded_or_damaged(payload, index, tables):
    try:
        decoder = Decoder(payload)
        symbols = decoder.pop(index, tables)
        decoder.finish()
    except DamagedError:
        return None
    return symbols


def test_every_truncation_and_every_flipped_bit_shows():
    symbols, index, tables = frame(3, 300)
    payload = encode([(symbols, index, tables)])
    assert decoded_or_damaged(payload, index, tables) is not None
    for end in range(len(payload)):
        assert decoded_or_damaged(payload[:end], index, tables) is None
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decoded_or_damaged(bytes(flipped), index, tables) is None
    assert decoded_or_damaged(payload + b"\x01", index, tables) is None


def test_an_index_that_differs_from_the_encoders_shows():
    symbols, index, tables = frame(4, 300)
    payload = encode([(symbols, index, tables)])
    other = index.copy()
    other[150] = (other[150] + 1) % len(tables)
    assert decoded_or_damaged(payload, other, tables) is None


def test_damage_within_escape_codes_gives_symbols_or_an_error():
    symbols, index, tables = frame(3, 300)
    symbols[::40] = 10**6
    payload = encode([(symbols, index, tables)])
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        got = decoded_or_damaged(bytes(flipped), index, tables)
        # Escape codes are plain bytes: others are other symbols, and the block's checksum has to tell.
        assert got is None or encode([(got, index, tables)]) == flipped


def test_bytes_left_over_show():
    symbols, index, tables = frame(5, 300)
    decoder = Decoder(encode([(symbols, index, tables)]))
    decoder.pop(index[:200], tables)
    with pytest.raises(DamagedError, match="does not end"):
        decoder.finish()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ([0x80, 0x80, 0x80, 0x80, 0x80, 0x01], "more than 5 bytes"),
        ([0xFF, 0xFF, 0xFF, 0xFF, 0x7F], "outside 32 bits"),
        ([0x81, 0x00], "longer than it needs"),
    ],
)
def test_impossible_escape_codes_are_refused(code, says):
    tables = Tables(np.array([1, TOTAL - 1], np.uint32), np.zeros(1, np.int32), np.array([2], np.int32))
    stack = Stack(START.to_bytes(2, "little"))
    for byte in reversed(code):
        stack.encode(BYTES, byte)
    stack.encode([1, TOTAL - 1], 1)
    with pytest.raises(DamagedError, match=says):
        Decoder(stack.payload()).pop(np.zeros(1, np.int64), tables)


@given(st.binary(max_size=200))
def test_garbage_never_breaks_the_decoder(payload):
    _, index, tables = frame(6, 100, 8)
    symbols = decoded_or_damaged(payload, index, tables)
    assert symbols is None or encode([(symbols, index, tables)]) == payload
