"""Archives made once, which must decode for ever: the same latents to the bit, pixels nearly or to the bit.

Made by tests/golden/make.py and make_wavelet.py. If a test here fails, the change that made it fail breaks
users' archives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd

import sunzip
from sunzip import weights
from sunzip.codec.symbols import Int, Reader
from sunzip.frame import Block, unpack_residuals
from sunzip.sun import Sun

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def sun(nothing_registered: None) -> Iterator[Sun]:
    with sunzip.open(GOLDEN / "archive-v1.lat") as sun:
        yield sun


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "archive-v1.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_it_is_whole() -> None:
    report = sunzip.verify(GOLDEN / "archive-v1.lat")
    assert report.problems == []
    assert report.model_embedded
    assert sunzip.info(GOLDEN / "archive-v1.lat")["format"] == 1


def test_latents_are_the_same_to_the_bit(sun: Sun, facts: dict[str, Any]) -> None:
    latents = sun.latents[:]
    assert list(latents.shape) == facts["latents_shape"]
    np.testing.assert_array_equal(latents.ravel(), np.array(facts["latents"], np.float32))
    assert sha256(latents.astype("<f4").tobytes()).hexdigest() == facts["latents_sha256"]
    assert len(np.unique(latents)) > 20  # they are not all zero
    assert sun.archive.model["sha256"] == facts["model"]


def test_pixels_are_the_same_but_for_rounding(sun: Sun, facts: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    pixels = sun[:]
    assert sha256(np.packbits(np.isnan(pixels)).tobytes()).hexdigest() == facts["missing_sha256"]
    expected = np.array([np.nan if v is None else v for v in facts["pixels"]])
    np.testing.assert_allclose(pixels[..., ::4, ::4].ravel(), expected, rtol=1e-3, atol=0.1)
    assert np.nanstd(expected) > 10


def test_times_and_keywords_are_the_same(sun: Sun, facts: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    cube = sun.cube(0, 3)
    assert cube.time.astype(str).tolist() == facts["time"]
    assert cube.t_obs.astype(str).tolist() == facts["t_obs"]
    assert cube.valid.tolist() == facts["valid"]
    assert [[dict(h) for h in row] for row in cube.headers] == facts["headers"]
    assert sun.archive.frames_per_block == 2


def test_it_stays_small() -> None:
    assert sum((GOLDEN / f"archive-v1.{kind}").stat().st_size for kind in ("lat", "json")) < 300_000


def golden(name: str, model: str | None = None) -> Iterator[Sun]:
    """Open an archive of a wavelet model that is kept beside it, or beside another."""
    model = model or name
    files = {
        part: bytes(Zstd().decode((GOLDEN / f"{model}.{part}.zst").read_bytes()))
        for part in (weights.CONFIG, weights.TENSORS)
    }
    weights.register(weights.Model.from_files(files, model))
    with sunzip.open(GOLDEN / f"{name}.lat") as sun:
        yield sun


@pytest.fixture
def chain(nothing_registered: None) -> Iterator[Sun]:
    """Frames of which each builds on the one before."""
    yield from golden("wavelet-v1")


@pytest.fixture
def film(nothing_registered: None) -> Iterator[Sun]:
    """Frames that build on those before and after them."""
    yield from golden("film-v1")


@pytest.fixture
def trust(nothing_registered: None) -> Iterator[Sun]:
    """The same where a payload tells how far others are to be trusted."""
    yield from golden("trust-v1")


@pytest.fixture
def news(nothing_registered: None) -> Iterator[Sun]:
    """The same where what is new in a channel tells what is new in others."""
    yield from golden("news-v1", "trust-v1")


@pytest.fixture
def tiles(nothing_registered: None) -> Iterator[Sun]:
    """Larger frames, whose fine levels are in tiles."""
    yield from golden("tiles-v1", "trust-v1")


@pytest.fixture
def departing(nothing_registered: None) -> Iterator[Sun]:
    """The same frames where channels depart from a frame's quality."""
    yield from golden("departing-v1", "trust-v1")


@pytest.fixture
def halved(nothing_registered: None) -> Iterator[Sun]:
    """The same frames, of which the network is told how small they are."""
    yield from golden("halved-v1")


@pytest.fixture
def bounded(nothing_registered: None) -> Iterator[Sun]:
    """Such frames, each channel of which is held to a bound."""
    yield from golden("bounded-v1", "halved-v1")


@pytest.fixture
def levelled(nothing_registered: None) -> Iterator[Sun]:
    """The same, whose images have levels."""
    yield from golden("levelled-v1", "halved-v1")


@pytest.fixture
def gaps(nothing_registered: None) -> Iterator[Sun]:
    """The same with maps of missing pixels of every kind."""
    yield from golden("gaps-v1", "halved-v1")


def as_it_was(sun: Sun, name: str) -> None:
    facts = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert sun.archive.model["sha256"] == facts["model"]
    pixels, latents = sun[:], sun.latents[:]
    assert sha256(latents.astype("<f4").tobytes()).hexdigest() == facts["latents_sha256"]
    assert sha256(np.packbits(np.isnan(pixels)).tobytes()).hexdigest() == facts["missing_sha256"]
    assert sha256(np.nan_to_num(pixels).astype("<f4").tobytes()).hexdigest() == facts["pixels_sha256"]
    assert np.nanstd(pixels) == pytest.approx(facts["deviation"])
    assert np.array_equal(sun[3], pixels[3], equal_nan=True)


def test_pixels_of_a_chain_are_the_same_to_the_bit(chain: Sun) -> None:
    as_it_was(chain, "wavelet-v1")


def test_pixels_of_a_film_are_the_same_to_the_bit(film: Sun) -> None:
    as_it_was(film, "film-v1")


def test_pixels_of_a_film_with_trusts_are_the_same_to_the_bit(trust: Sun) -> None:
    as_it_was(trust, "trust-v1")


def test_pixels_of_a_film_with_news_are_the_same_to_the_bit(news: Sun) -> None:
    as_it_was(news, "news-v1")


def test_pixels_of_tiles_are_the_same_to_the_bit(tiles: Sun) -> None:
    as_it_was(tiles, "tiles-v1")


def test_pixels_of_departing_channels_are_the_same_to_the_bit(departing: Sun) -> None:
    as_it_was(departing, "departing-v1")


def test_pixels_that_are_held_to_a_bound_are_the_same_to_the_bit(bounded: Sun) -> None:
    as_it_was(bounded, "bounded-v1")
    kinds = set()
    for k in range(bounded.archive.blocks):
        for entry in Block.unpack(bounded.archive.block(k)).entries:
            if entry.residual:
                kinds |= {
                    data[0] for data in unpack_residuals(entry.residual, entry.mask.bit_count()) if data
                }
    assert kinds == {1, 2, 3}


def test_pixels_of_levelled_images_are_the_same_to_the_bit(
    levelled: Sun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(head[0] & 2 for head in heads(levelled, 2))
    found: set[int] = set()
    side = Reader.side

    def seen(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        told = side(self, kind, index, values)
        if kind == "levels":
            found.update(told.tolist())
        return told

    monkeypatch.setattr(Reader, "side", seen)
    as_it_was(levelled, "levelled-v1")
    assert min(found) < -127 < 0 < 127 < max(found)


def test_maps_of_missing_pixels_are_the_same(gaps: Sun) -> None:
    as_it_was(gaps, "gaps-v1")
    data = [gaps.archive.block(k) for k in range(gaps.archive.blocks)]
    maps = [Block.unpack(block).gaps for block in data]
    assert {gap[0] for of_block in maps for gap in of_block if gap} == {
        1,
        2,
        3,
        0x78,
    }  # runs, and bits
    assert maps[1][0] == maps[1][1]
    assert data[1].count(maps[1][0]) == 1  # told once for both frames


def test_pixels_of_small_pictures_are_the_same_to_the_bit(halved: Sun) -> None:
    as_it_was(halved, "halved-v1")
    assert {head[0] & 1 for head in heads(halved, 2)} == {0, 1}  # placed, and not


def heads(sun: Sun, blocks: int) -> list[bytes]:
    return [
        payload
        for block in range(blocks)
        for payload in Block.unpack(sun.archive.block(block)).payloads
        if payload
    ]


def test_the_golden_chain_has_every_kind_of_frame(chain: Sun) -> None:
    found = heads(chain, 2)
    assert len(found) == 5
    assert {head[0] & 3 for head in found} == {0, 2, 3}  # turned, and placed, and neither


def test_the_golden_film_has_every_kind_of_frame(film: Sun) -> None:
    found = heads(film, 2)
    assert len(found) == 11
    bits = [head[0] for head in found]
    assert all(any(b & bit for b in bits) for bit in (4, 8, 16, 32))  # points, disks, links, own quality
    assert not any(b & 2 for b in bits)
    links = [(head[1] & 15, head[1] >> 4) for head in found if head[0] & 16]
    assert any(back and ahead for back, ahead in links)
    assert any(back and not ahead for back, ahead in links)


@pytest.mark.parametrize("which", ["trust", "news"])
def test_the_golden_film_with_trusts_has_every_kind(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sun: Sun = request.getfixturevalue(which)
    bits = [head[0] for head in heads(sun, 2)]
    assert all(any(b & bit for b in bits) for bit in (4, 8, 16, 32))
    # News are told wherever a frame builds on others, or nowhere.
    assert {b & 64 for b in bits if b & 16} == ({64} if which == "news" else {0})
    found: dict[str, set[int]] = {"trusts": set(), "weights": set(), "silent": set()}
    tables: set[int] = set()
    side = Reader.side

    def seen(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        told = side(self, kind, index, values)
        if kind in found:
            found[kind] |= set(told.tolist())
        if kind == "trusts":
            tables.update((index[told != 0] % 4).tolist())
        return told

    monkeypatch.setattr(Reader, "side", seen)
    sun[:]
    assert all(len(of) > 3 for of in found.values())
    assert tables == {1, 3}  # of both halves


def test_all_channels_of_the_golden_archive_depart_where_its_frames_tell(departing: Sun) -> None:
    own = []
    for head in heads(departing, 2):
        assert head[0] & 32
        links = (bool(head[1] & 15) + bool(head[1] >> 4) + 1) if head[0] & 16 else 0
        own.append(head[1 + links])
    # All but the frame that lacks 193 Å.
    assert sorted(byte >= 128 for byte in own) == [False, True, True, True, True]
    assert len({byte % 128 for byte in own}) > 1


def test_the_golden_tiles_are_of_every_kind(tiles: Sun, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = [head[0] for head in heads(tiles, 2)]
    assert {b & 16 for b in bits} == {0, 16}
    assert all(b & 128 for b in bits)
    whole: set[int] = set()
    shares: list[float] = []
    tables: set[int] = set()
    side = Reader.side

    def seen(self: Reader, kind: str, index: Int, values: Int | None) -> Int:
        told = side(self, kind, index, values)
        if kind == "tiles" and index.tolist() == [64]:
            whole.update(told.tolist())
        elif kind == "tiles" and index.size:
            shares.append(float(told.mean()))
            tables.update((index[told != 0]).tolist())
        return told

    monkeypatch.setattr(Reader, "side", seen)
    tiles[:]
    assert whole == {0, 1}
    assert 0 < min(shares) < max(shares) < 1
    # With others seen and without, alone and building on others.
    assert {(t // 32, t % 4 > 0) for t in tables} == {(0, False), (0, True), (1, False), (1, True)}
    assert len({t // 4 % 8 for t in tables}) > 3
