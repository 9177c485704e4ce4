"""Faults: packets as the standard has them, what is lost and what is mended, nothing wrong that passes."""

from __future__ import annotations

import itertools
import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip.api import open_series
from sunzip.channels import NAMES
from sunzip.cli import target
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError
from sunzip.studies import faults as module
from sunzip.studies import packets
from sunzip.studies.faults import (
    SCHEMES,
    bernoulli,
    faults,
    gilbert_elliott,
    memory_of,
    strike_weights,
)
from sunzip.studies.faults_report import page
from sunzip.studies.packets import Key, collect, cut, parse, twice, unwrap, with_parity, wrap
from sunzip.weights import Model

pytest.importorskip("spacepackets")

UNITS = [wrap(Key(n, 0, 0), bytes([n]) * (50 + 37 * n)) for n in range(12)]


class TestPackets:
    def test_are_as_the_standard_has_them(self) -> None:
        (one,) = cut([b"unit"], 64, first=5)
        # CCSDS 133.0-B-2: version 0, telemetry, no secondary header, APID 0x2A; unsegmented, 5; data − 1.
        assert one[:6] == bytes([0x00, 0x2A, 0b11 << 6, 5, 0, 5])
        assert one[6:10] == b"unit"
        # CRC-16/CCITT-FALSE of "123456789" is 0x29B1; here it must leave no remainder.
        assert packets.crc_hqx(b"123456789", 0xFFFF) == 0x29B1
        assert packets.crc_hqx(one, 0xFFFF) == 0

    def test_segments_are_marked(self) -> None:
        found = [parse(p) for p in cut([bytes(20), bytes(3)], 8 + 8)]
        assert [(p.first, p.last, p.number) for p in found if p] == [
            (True, False, 0), (False, False, 1), (False, True, 2), (True, True, 3),
        ]  # fmt: skip

    @settings(max_examples=80, deadline=None)
    @given(st.integers(9, 200), st.sets(st.integers(0, 400)), st.integers(0, 2**15))
    def test_what_arrives_whole_is_put_together_and_nothing_else(
        self, size: int, lost: set[int], first: int
    ) -> None:
        sent = cut(UNITS, size)
        per_unit = [-(-len(u) // (size - packets.OVERHEAD)) for u in UNITS]
        ends = list(itertools.accumulate(per_unit))
        whole = [
            u for u, n, end in zip(UNITS, per_unit, ends, strict=True) if not lost & set(range(end - n, end))
        ]
        assert collect(p for n, p in enumerate(sent) if n not in lost) == whole

    def test_counts_begin_again(self) -> None:
        sent = cut([bytes([n % 256]) * 40 for n in range(9000)], 24 + 8)
        assert len(sent) > 2 * packets._COUNT - 20_000
        assert len(collect(sent)) == 9000

    def test_copies_come_late_and_change_nothing(self) -> None:
        sent = cut(UNITS, 32)
        doubled = twice(sent, 10)
        assert len(doubled) == 2 * len(sent)
        assert collect(doubled) == UNITS
        # A burst as long as the distance takes one of both.
        for begin in range(0, len(doubled) - 10, 7):
            assert collect(doubled[:begin] + doubled[begin + 10 :]) == UNITS

    @pytest.mark.parametrize("depth", [1, 4, 8])
    def test_parity_mends_every_burst_of_its_depth(self, depth: int) -> None:
        sent = with_parity(cut(UNITS, 32), 4, depth)
        assert len(sent) > len(cut(UNITS, 32))
        # The last stretch may be short, and then bears shorter bursts.
        for begin in range(len(sent) // (5 * depth) * 5 * depth - depth + 1):
            assert collect(sent[:begin] + sent[begin + depth :], depth) == UNITS
        mended = collect(sent[:3] + sent[3 + 3 * depth :], depth)
        assert mended != UNITS

    def test_sizes_that_cannot_be(self) -> None:
        for size in (0, 8, 70000):
            with pytest.raises(InputError, match="packets of"):
                cut(UNITS, size)

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300))
    def test_noise_is_no_packet_and_no_unit(self, data: bytes) -> None:
        assert collect([data], 4) == []
        with pytest.raises(DamagedError):
            unwrap(data)

    def test_what_was_read_is_not_kept(self) -> None:
        tracemalloc.start()
        try:
            for n in range(64):
                assert parse(cut([bytes([n]) * 60_000], 65_536)[0])
            assert tracemalloc.get_traced_memory()[0] < 1 << 20
        finally:
            tracemalloc.stop()

    def test_what_is_parsed_already_is_the_same(self) -> None:
        sent = cut(UNITS, 32)
        known = {p: found for p in sent if (found := parse(p))}
        struck = [bytes([*p[:-1], p[-1] ^ 1]) if n % 7 == 3 else p for n, p in enumerate(sent)]
        assert collect(struck, parsed=known) == collect(struck)
        assert collect(sent, parsed=known) == UNITS

    def test_units_keep_what_they_are(self) -> None:
        unit = wrap(Key(7, 3, 1), b"block")
        assert unwrap(unit) == (Key(7, 3, 1), b"block")
        for place in range(8 * len(unit)):
            struck = bytearray(unit)
            struck[place >> 3] ^= 1 << (place & 7)
            with pytest.raises(DamagedError):
                unwrap(bytes(struck))


class TestChannels:
    def test_lose_their_share(self) -> None:
        rng = np.random.default_rng(0)
        n = 400_000
        single, bursts = bernoulli(n, 0.02, rng), gilbert_elliott(n, 0.02, 6.0, rng)
        assert single.mean() == pytest.approx(0.02, rel=0.05)
        assert bursts.mean() == pytest.approx(0.02, rel=0.1)
        edges = np.diff(np.concatenate([[0], bursts.astype(np.int8), [0]]))
        lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
        assert lengths.mean() == pytest.approx(6, rel=0.1)


@pytest.fixture(scope="module")
def found(tiny_model: Model) -> dict[str, Any]:
    return faults(model=tiny_model, size=256, count=60, weight_count=12, packet=256, loss=0.02)


class TestStudy:
    def test_nothing_is_silently_wrong(self, found: dict[str, Any]) -> None:
        assert found["silent"] == 0
        assert found["payloads"]["faults"] == 60
        assert sum(found["payloads"][k] for k in ("refused", "same", "passed")) == 60
        for row in found["schemes"]:
            for kind in row["kinds"].values():
                assert kind["faults"] >= 60
                assert kind["whole"] + kind["damaged"] + kind["based"] + kind["lost"] == kind["frames"]

    def test_resilience_costs_and_helps(self, found: dict[str, Any]) -> None:
        rows = {row["scheme"]: row for row in found["schemes"]}
        assert set(rows) == {s.key for s in SCHEMES}
        assert rows["plain"]["overhead"] == 0
        assert rows["twice"]["overhead"] == pytest.approx(1)
        whole = {k: r["kinds"]["loss"]["whole"] / r["kinds"]["loss"]["frames"] for k, r in rows.items()}
        assert whole["twice"] > whole["plain"]
        assert whole["parity"] > whole["plain"]
        tiles = rows["tiles"]["kinds"]["loss"]
        assert 0 < tiles["area"] < 1
        assert tiles["lost"] < tiles["damaged"]
        assert rows["plain"]["kinds"]["loss"]["damaged"] == 0
        assert rows["base"]["kinds"]["loss"]["based"] > rows["base"]["kinds"]["loss"]["lost"]

    def test_a_digest_finds_every_struck_weight(self, found: dict[str, Any]) -> None:
        w = found["weights"]
        assert (w["noticed"], w["unnoticed"]) == (12, 0)
        assert sum(w[k] for k in ("same", "harmless", "worse", "useless", "refused", "broken_off")) == 12

    def test_a_page_stands_alone(self, found: dict[str, Any]) -> None:
        json.dumps(found, allow_nan=False)
        text = page(found)
        # By this --force knows what it may replace.
        assert text.encode().startswith(target._PAGE)
        assert json.dumps(found, indent=1).encode().startswith(target._JSON)
        assert not re.search(r"<(script|link|img|iframe)|src=|url\(|@import", text)
        assert "Decoded silently wrong: 0" in text
        assert text.count("<svg") == 1

    def test_what_is_wrong_is_counted(self, tiny_model: Model, frames_of: Callable[..., np.ndarray]) -> None:
        codec = Codec(tiny_model)
        frames = list(frames_of(2, 12, 64, 64))
        stream = module._stream(SCHEMES[0], codec, frames, NAMES, 256)
        (other,) = codec.encode(frames_of(1, 12, 64, 64, seed=9), NAMES)

        def swap(s: module._Stream, rng: np.random.Generator) -> tuple[list[bytes], int]:
            return cut([wrap(key, other) for key in s.units], 256), 1

        tally = module._sweep(
            stream, swap, 1, lambda block: module._decodes(codec, NAMES, block), np.random.default_rng(0)
        )
        assert tally.silent == tally.frames == tally.lost == len(stream.units)

    def test_payloads_are_read_to_their_end(
        self, wavelet_model: Model, frames_of: Callable[..., np.ndarray]
    ) -> None:
        # Latents of a wavelet model are in the payload's beginning; what is struck behind it is wrong, too.
        codec, frame = Codec(wavelet_model, 85), frames_of(1, 12, 64, 64)
        found = module._strike_payloads(codec, list(frame), NAMES, 60, np.random.default_rng(0))
        assert found["refused"] > 50
        assert found["same"] == 0

    def test_arguments_that_cannot_be(self, tiny_model: Model) -> None:
        nan, inf = float("nan"), float("inf")
        for wrong in (
            {"loss": 0.0}, {"loss": 1e-5}, {"loss": 0.7}, {"loss": nan},
            {"burst": 0.5}, {"burst": nan}, {"burst": inf},
        ):  # fmt: skip
            with pytest.raises(InputError, match="a loss of"):
                faults(model=tiny_model, **wrong)
        with pytest.raises(InputError, match="smaller than the model"):
            faults(model=tiny_model, size=8)

    def test_one_frame_has_none_before_it(self, tiny_model: Model) -> None:
        found = faults(
            model=tiny_model, source="synthetic:frames=1,size=64", size=64, count=2, weight_count=1
        )
        assert found["concealed"]["decoded"] > 0
        assert found["concealed"]["before"] is None
        json.dumps(found, allow_nan=False)
        assert "the frame before, where it or a tile of it is lost</span></td>" in page(found)

    def lacking(self, monkeypatch: pytest.MonkeyPatch, take: Callable[[int, Any], None]) -> Any:
        """Have the study read frames of which something was taken; return what reads them as they are."""
        series = open_series("synthetic:frames=8,size=64")
        read = series.read

        def what_is_left(begin: int, end: int) -> Any:
            cube = read(begin, end)
            take(begin, cube.data)
            return cube

        monkeypatch.setattr(series, "read", what_is_left)
        monkeypatch.setattr(module, "open_series", lambda *_, **__: series)
        return read

    def test_frames_without_any_image_are_not_sent(
        self, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def some_frames(begin: int, data: Any) -> None:
            if begin in (0, 3):
                data[:] = np.nan

        read = self.lacking(monkeypatch, some_frames)
        frames, channels, _ = module._frames("there", 64, None, False)
        assert channels == NAMES
        np.testing.assert_array_equal(frames, [read(n, n + 1).data[0] for n in (1, 2, 4, 5, 6, 7)])

    def test_channels_that_no_frame_has_are_not_sent(
        self, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def most_channels(begin: int, data: Any) -> None:
            data[:, [n for n, name in enumerate(NAMES) if name not in ("171A", "Bz")]] = np.nan
            if begin == 2:
                data[:, NAMES.index("Bz")] = np.nan

        self.lacking(monkeypatch, most_channels)
        found = faults(model=tiny_model, source="there", size=64, count=2, weight_count=1)
        assert found["frames"]["channels"] == ["171A", "Bz"]
        assert found["frames"]["images"] == 11
        assert "6 frames of 64×64 pixels, 11 images of 171A Bz (the first 6" in page(found)

    def test_packets_that_parity_cannot_mend(self) -> None:
        sent = cut([wrap(Key(0, 0, 0), bytes(200_000))], 65536)
        with pytest.raises(InputError, match="up to 65520 bytes"):
            with_parity(sent, 8, 16)
        assert max(map(len, with_parity(cut([bytes(200_000)], 65520), 8, 16))) == 65536


class TestWeights:
    def test_are_struck_and_put_back(self, tiny_model: Model, frames_of: Callable[..., np.ndarray]) -> None:
        codec = Codec(tiny_model)
        frames = list(frames_of(1, 12, 64, 64))
        before = codec.encode(np.stack(frames), NAMES)
        found = strike_weights(codec, frames, NAMES, 40, np.random.default_rng(1), lambda *_: None)
        assert found["noticed"] == 40
        # Some bit of a small network does change what is coded, or nothing was struck at all.
        assert found["same"] < 40
        assert codec.encode(np.stack(frames), NAMES) == before

    def test_of_other_families_are_struck_too(
        self, wavelet_model: Model, frames_of: Callable[..., np.ndarray]
    ) -> None:
        codec = Codec(wavelet_model)
        frames = list(frames_of(1, 12, 64, 64))
        found = strike_weights(codec, frames, NAMES, 8, np.random.default_rng(1), lambda *_: None)
        assert found["noticed"] == 8
        assert found["bytes"] > 1000

    def test_are_those_that_fly(self, tiny_model: Model, frames_of: Callable[..., np.ndarray]) -> None:
        codec = Codec(tiny_model)
        codec.encode(frames_of(1, 12, 64, 64), NAMES)
        names = [m.name for m in memory_of(codec)]
        assert any("analysis" in n for n in names)
        assert any("hyper_synthesis" in n for n in names)
        assert not [n for n in names if n.startswith(("network.synthesis", "network.mask_out"))]


def test_weights_are_found_without_pytorch(wavelet_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert memory_of(Codec(wavelet_model))


def test_command(sunzip: Any, tiny_model: Model, tmp_path: Path) -> None:
    from sunzip.weights import write

    write(tiny_model, tmp_path / "tiny")
    args = ["study", "faults", "--model", tmp_path / "tiny", "--size", 64, "--faults", 5, "--weights", 2,
            "--packet", 128, "--out", tmp_path / "f.html"]  # fmt: skip
    assert "by a digest 2" in sunzip(*args).output
    assert json.loads((tmp_path / "f.json").read_text())["silent"] == 0
    # Frames of 64² are too small for tiles; the other ways are there.
    assert [r["scheme"] for r in json.loads((tmp_path / "f.json").read_text())["schemes"]] == [
        "plain", "twice", "parity", "base",
    ]  # fmt: skip


def test_without_spacepackets_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "spacepackets", None)
    with pytest.raises(InputError, match=re.escape("pip install '.[onboard]'")):
        cut(UNITS, 64)
    # Before a frame is read.
    monkeypatch.setattr("sunzip.studies.faults._frames", lambda *_: pytest.fail("frames were read"))
    with pytest.raises(InputError, match="space packets need spacepackets"):
        faults()
