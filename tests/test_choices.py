"""What compress chooses by itself: how many frames a block has, and the quality that makes a size."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import sunzip
from sunzip import api
from sunzip.api._sample import _chosen, _kinds
from sunzip.archive import Archive
from sunzip.codec import Codec, lanes
from sunzip.codec.wavelet import WaveletFamily
from sunzip.errors import InputError
from sunzip.frame import Block
from sunzip.sources import open_source
from sunzip.sources.base import Imaged
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model

CHANNELS = ("171A", "Bz")
#: Frames of a block; and a shard of two blocks and one of two frames, a block of which is filled up.
BLOCK = api._compress._TOGETHER
SHARD = 2 * BLOCK
FRAMES = SHARD + 2


class Film(Synthetic):
    """Waves that drift, with the times and keywords of the synthetic Sun, which takes long to render."""

    broken_row: int | None = None

    def read(self, channel: str, row: int) -> np.ndarray:
        if row == self.broken_row:
            raise InputError(f"sun.zarr/{channel}: chunk {row} cannot be read")
        up, right = np.mgrid[: self.shape[0], : self.shape[0]] / self.shape[0] * 6
        waves = np.sin(up + row / 50) * np.cos(right + ord(channel[1]))
        noise = np.random.default_rng([row, ord(channel[1])]).normal(0, 2, waves.shape)
        return (100 + 80 * waves + noise).astype(np.float32)


def source_of(frames: int = FRAMES, size: int = 16, cadence: str = "12min") -> Film:
    return Film(frames=frames, size=size, start="2012-03-01", cadence=cadence, channels=CHANNELS)


def series_of(frames: int = FRAMES, size: int = 16, cadence: str = "12min") -> Series:
    return join([source_of(frames, size, cadence)])


@pytest.fixture(scope="module")
def film() -> Series:
    return series_of()


@pytest.fixture(scope="module")
def shards() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api._compress, "FRAMES_PER_SHARD", SHARD)
        yield


@pytest.fixture(scope="module")
def lat(film: Series, shards: None, wavelet_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of blocks as chosen."""
    path = tmp_path_factory.mktemp("choices") / "film.lat"
    api.compress(film, path, model=wavelet_model)
    return path


# --- blocks ----------------------------------------------------------------------------------------------


def test_frames_that_follow_each_other_are_coded_together(lat: Path) -> None:
    with sunzip.open(lat) as sun:
        archive = sun.archive
        assert (archive.frames_per_block, archive.blocks, archive.shards) == (BLOCK, 3, 2)
        assert archive.coding["frames_per_block"] == BLOCK
        masks = [Block.unpack(block).masks for block in archive.read_blocks(range(3))]
        assert [sum(map(bool, m)) for m in masks] == [BLOCK, BLOCK, 2]  # no block crosses a shard


@pytest.mark.parametrize(
    ("frames", "cadence", "model", "block"),
    [
        (FRAMES, "1d", "wavelet", BLOCK),
        (5, "12min", "wavelet", 5),
        (1, "12min", "wavelet", 1),
        (FRAMES, "25h", "wavelet", 1),
        (FRAMES, "12min", "tiny", 1),
    ],
)
def test_blocks_are_chosen_by_model_and_times(
    request: pytest.FixtureRequest, frames: int, cadence: str, model: str, block: int
) -> None:
    codec = Codec(request.getfixturevalue(f"{model}_model"))
    times = series_of(frames, cadence=cadence).time
    assert api._compress._frames_per_block("auto", codec, times, 1 << 18) == block
    assert api._compress._frames_per_block(3, codec, times, 1 << 30) == 3


def test_a_gap_does_not_make_a_film_scattered(wavelet_model: Model) -> None:
    codec = Codec(wavelet_model)
    times = np.arange(2 * BLOCK) * np.timedelta64(1, "h") + np.datetime64("2014-01-01", "ms")
    times[BLOCK:] += np.timedelta64(900, "D")
    assert api._compress._frames_per_block("auto", codec, times, 1 << 18) == BLOCK
    assert api._compress._frames_per_block("auto", codec, times[::BLOCK], 1 << 18) == 1


@pytest.mark.parametrize(
    ("channels", "side", "block"), [(12, 1024, 24), (12, 2048, 6), (1, 4096, 18), (12, 4096, 1)]
)
def test_large_frames_are_coded_with_few_others(
    wavelet_model: Model, channels: int, side: int, block: int
) -> None:
    times = np.arange(120) * np.timedelta64(12, "m") + np.datetime64("2014-01-01", "ms")
    pixels = channels * side * side
    assert api._compress._frames_per_block("auto", Codec(wavelet_model), times, pixels) == block


def test_frames_hang_together_wherever_the_reading_begins(lat: Path, film: Series) -> None:
    with sunzip.open(lat) as sun:
        everything = sun[:]
        for frames in ([BLOCK - 1], [BLOCK, 3], [FRAMES - 1, BLOCK + 1, BLOCK + 2]):
            np.testing.assert_array_equal(sun.take(frames), everything[frames])
        blocks = [range(5, BLOCK), range(BLOCK, SHARD), range(SHARD, FRAMES)]
        assert list(sun.stretches(range(5, FRAMES), 0)) == blocks
        assert list(sun.stretches(range(5, FRAMES), BLOCK)) == blocks
        assert list(sun.stretches(range(5, FRAMES), SHARD - 5)) == [range(5, SHARD), range(SHARD, FRAMES)]
        assert list(sun.stretches(range(5, FRAMES), FRAMES)) == [range(5, FRAMES)]
        assert list(sun.stretches(range(7, 7), 1)) == []
        some = [0, BLOCK - 1, BLOCK, SHARD]
        assert list(sun.stretches(some, 3)) == [some[:3], some[3:]]
        assert list(sun.stretches(some, 1)) == [some[:2], some[2:3], some[3:]]


@pytest.mark.parametrize("what", ["frames", "latents", "items"])
def test_who_goes_through_all_frames_decodes_no_block_twice(
    lat: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sunzip.torch import LatDataset

    with sunzip.open(lat) as sun:
        expected = sun.latents[:] if what == "latents" else sun[:]
        read: list[int] = []
        blocks = Archive.read_blocks
        monkeypatch.setattr(
            Archive, "read_blocks", lambda self, numbers: read.extend(numbers) or blocks(self, numbers)
        )
        through: Any = {"frames": sun, "latents": sun.latents, "items": LatDataset(lat, start=3)}[what]
        begin = 3 if what == "items" else 0
        found = list(through)
    assert read == sorted(set(read))
    np.testing.assert_allclose(np.stack([np.asarray(frame) for frame in found]), expected[begin:], rtol=1e-5)
    assert not any(np.shares_memory(found[-1], other) for other in found[:-1])


def test_jobs_over_blocks_agree_with_the_archive(lat: Path, film: Series, tmp_path: Path) -> None:
    seen: list[api.Progress] = []
    part = {"start": "2012-03-01T01:00", "stop": "2012-03-01T04:36"}
    api.decompress(lat, tmp_path / "a.h5", progress=seen.append, **part)
    assert [p.done for p in seen][-1] == 18
    with sunzip.open(lat) as sun:
        back = join([open_source(str(tmp_path / "a.h5"))])
        np.testing.assert_array_equal(back.read(0, 18).data, sun[5:23])
        report = api.evaluate(film, lat)
        assert (report.frames, report.images, report.absent) == (FRAMES, 2 * FRAMES, 0)
        stored = sun.archive.stats["err_rmse"].astype(np.float64).mean(0)
        found = [report.metrics["paper"][name]["rmse"] for name in CHANNELS]
        np.testing.assert_allclose(found, stored, rtol=1e-5)


def test_a_break_does_not_change_the_bytes(
    lat: Path, wavelet_model: Model, tmp_path: Path, shards: None
) -> None:
    source = source_of()
    source.broken_row = SHARD
    with pytest.raises(InputError, match=f"chunk {SHARD}"):
        api.compress(join([source]), tmp_path / "a.lat", model=wavelet_model)
    source.broken_row = None
    again = join([source])
    api.compress(again, tmp_path / "a.lat", model=wavelet_model, resume=True)
    assert (tmp_path / "a.lat").read_bytes() == lat.read_bytes()


# --- a size instead of a quality -------------------------------------------------------------------------


def test_the_finest_quality_within_a_size_is_found(tiny_model: Model, tmp_path: Path) -> None:
    film = series_of(8, size=64)
    sizes = {}
    for quality in (0, 40, 100):
        report = api.compress(film, tmp_path / "a.lat", model=tiny_model, quality=quality, force=True)
        sizes[quality] = report.archive_bytes
        assert report.target_bytes is None
    assert sizes[0] < sizes[40] < sizes[100]
    wanted = (sizes[0] + sizes[100]) // 2
    estimate = api.compress(film, tmp_path / "b.lat", model=tiny_model, target_bytes=wanted, dry_run=True)
    report = api.compress(film, tmp_path / "b.lat", model=tiny_model, target_bytes=wanted)
    assert report.quality == estimate.quality
    assert report.target_bytes == wanted
    assert report.archive_bytes == pytest.approx(wanted, rel=0.1)
    # The same as a ratio, and as the quality that was found.
    ratio = report.raw_bytes / wanted
    for settings in ({"target_ratio": ratio}, {"quality": report.quality}):
        api.compress(film, tmp_path / "c.lat", model=tiny_model, force=True, **settings)
        assert (tmp_path / "c.lat").read_bytes() == (tmp_path / "b.lat").read_bytes()
    finer = api.compress(film, tmp_path / "d.lat", model=tiny_model, quality=report.quality + 3, dry_run=True)
    assert finer.archive_bytes > wanted
    # Whatever is enough for the finest is enough.
    assert api.compress(film, "x", model=tiny_model, target_ratio=0.1, dry_run=True).quality == 100
    embedded = api.compress(
        film, "x", model=tiny_model, target_bytes=wanted + tiny_model.nbytes, embed_model=True, dry_run=True
    )
    assert embedded.quality == report.quality


def test_a_film_is_sampled_by_the_beginnings_of_its_blocks(
    film: Series, lat: Path, wavelet_model: Model, shards: None, tmp_path: Path
) -> None:
    estimate = api.compress(film, tmp_path / "a.lat", model=wavelet_model, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    with sunzip.open(lat) as sun:
        # The last block, of two frames, tells nothing of the others; but its first costs as much as theirs.
        coded = sun.archive.block_bytes
        assert estimate.coded_bytes == pytest.approx(int(coded.sum()), rel=0.1)
        overhead = sun.archive.size - int(coded.sum())
        assert estimate.archive_bytes - estimate.coded_bytes == pytest.approx(overhead, rel=0.1)
        assert (estimate.frames, estimate.images, estimate.block) == (FRAMES, 2 * FRAMES, BLOCK)


def test_frames_of_a_sample_that_stand_alone_keep_all_lanes_busy(
    wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_pool", None)
    monkeypatch.setattr(lanes, "_cores", lambda: 2)
    source = Film(frames=4, size=16, start="2012-03-01", cadence="2d", channels=CHANNELS)
    _, sample = api.sampled(join([source], cadence="2d", tolerance="1h"), Codec(wavelet_model))
    both = Barrier(2, timeout=30)

    def work(n: int) -> int:
        both.wait()  # for another one
        return n

    assert sample.each(work) == [0, 1, 2, 3]


class Patchy(Film):
    """A film of which all but a few frames lack a channel."""

    full: tuple[int, ...] = ()

    def times(self, channel: str) -> np.ndarray:
        times = super().times(channel).copy()
        if channel == CHANNELS[0]:
            times[np.setdiff1d(np.arange(len(times)), self.full)] = np.datetime64("NaT", "ms")
        return times


def patchy(frames: int, full: tuple[int, ...], cadence: str = "12min") -> Series:
    source = Patchy(frames=frames, size=64, start="2012-03-01", cadence=cadence, channels=CHANNELS)
    source.full = full
    return join([source])


@pytest.mark.parametrize(
    ("frames", "full", "cadence"),
    [
        (30, (29,), "12min"),  # in a block of which nothing else is in the sample
        (50, (20, 21), "12min"),  # in one that is begun, further on
        (60, (3, 17, 31), "25h"),  # each frame a block
    ],
)
def test_frames_of_other_channels_are_in_the_sample(
    wavelet_model: Model, frames: int, full: tuple[int, ...], cadence: str, tmp_path: Path
) -> None:
    series = patchy(frames, full, cadence)
    settings = {"model": wavelet_model, "quality": 60}
    estimate = api.compress(series, tmp_path / "a.lat", dry_run=True, **settings)
    report = api.compress(series, tmp_path / "a.lat", **settings)
    assert estimate.images == report.images == frames + len(full)
    assert estimate.raw_bytes == report.raw_bytes
    assert estimate.coded_bytes == pytest.approx(report.coded_bytes, rel=0.15)
    assert estimate.archive_bytes == pytest.approx(report.archive_bytes, rel=0.1)
    assert estimate.errors[CHANNELS[0]]["rmse"] is not None


class Slow(Film):
    """A film of years of 48 frames: an image takes a second, the keywords of a year take a hundred."""

    now = 0.0
    prepared: tuple[int, ...] = ()

    def prepare(self, channel: str, row: int) -> None:
        if row // 48 not in self.prepared:
            self.prepared += (row // 48,)
            self.now += 100

    def image(self, channel: str, row: int) -> Imaged:
        self.prepare(channel, row)
        self.now += 1
        return super().image(channel, row)


def test_what_is_read_once_a_year_is_not_foretold_of_each_frame(
    wavelet_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Slow(frames=300, size=64, start="2012-03-01", cadence="12min", channels=CHANNELS[:1])
    monkeypatch.setattr("sunzip.api._sample.clock", SimpleNamespace(monotonic=lambda: source.now))
    source.prepare(CHANNELS[0], 0)  # that it was opened
    estimate = api.compress(join([source]), tmp_path / "a.lat", model=wavelet_model, dry_run=True)
    years = len(source.prepared) - 1
    assert years
    assert estimate.seconds == pytest.approx(300 + 100 * years, abs=50)


class Dim(Film):
    """A film of which some images hold no measurement."""

    dark: tuple[int, ...] = ()

    def read(self, channel: str, row: int) -> np.ndarray:
        image = super().read(channel, row)
        return np.full_like(image, np.nan) if row in self.dark else image


def dim(frames: int, dark: tuple[int, ...]) -> Series:
    source = Dim(frames=frames, size=64, start="2012-03-01", channels=CHANNELS)
    source.dark = dark
    return join([source])


def test_a_ratio_is_to_the_images_that_hold_measurements(tiny_model: Model, tmp_path: Path) -> None:
    series = dim(12, tuple(range(6, 12)))
    known = api.compress(series, tmp_path / "a.lat", model=tiny_model, quality=40)
    ratio = known.raw_bytes / known.archive_bytes
    report = api.compress(series, tmp_path / "b.lat", model=tiny_model, target_ratio=ratio)
    assert report.images == 12
    assert report.target_bytes == pytest.approx(known.archive_bytes, abs=1)
    assert report.raw_bytes / report.archive_bytes == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("wish", [{"target_bytes": 50_000}, {"target_ratio": 5}, {"dry_run": True}])
def test_nothing_is_foretold_without_a_measurement(
    tiny_model: Model, tmp_path: Path, wish: dict[str, object]
) -> None:
    series = dim(12, (0, 2, 4, 6, 8, 11))
    with pytest.raises(
        InputError, match=r"^synthetic:.*: none of the images that were looked at holds a mea"
    ):
        api.compress(series, tmp_path / "a.lat", model=tiny_model, **wish)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", [1, 6, 24])
@pytest.mark.parametrize("room", [0, 1, 2, 5, 9, 100])
def test_a_sample_has_a_bound(block: int, room: int) -> None:
    held = np.random.default_rng(5).random((200, 5)) < 0.6
    for shown in (held, np.ones_like(held)):
        chosen = _chosen(shown, _kinds(shown), block, room)
        numbers = [n for begun in chosen for n in begun]
        assert len(numbers) <= max(room, min(block, 2))
        assert len(set(numbers)) == len(numbers)
        for first, *others in chosen:
            assert first % block == 0
            assert all(first < n < first + block for n in others)
        assert block == 1 or any(len(begun) > 1 for begun in chosen)


def test_a_size_out_of_reach_names_what_is(tiny_model: Model, tmp_path: Path) -> None:
    film = series_of(2, size=32)
    with pytest.raises(
        InputError, match=r"a\.lat: cannot be held to 100 bytes: .* at quality 0 .*quality 100"
    ):
        api.compress(film, tmp_path / "a.lat", model=tiny_model, target_bytes=100)
    with pytest.raises(
        InputError, match=r"held to 0 bytes \(1e\+30 times smaller than float32\): .*quality 100"
    ):
        api.compress(film, tmp_path / "a.lat", model=tiny_model, target_ratio=1e30)
    with pytest.raises(InputError, match=r"--target-ratio\) is too small: 1e-320"):
        api.compress(film, tmp_path / "a.lat", model=tiny_model, target_ratio=1e-320)
    with pytest.raises(InputError, match="must be a number above 0, not -3"):
        api.compress(film, tmp_path / "a.lat", model=tiny_model, target_ratio=-3)
    with pytest.raises(InputError, match="exclude each other"):
        api.compress(film, tmp_path / "a.lat", model=tiny_model, target_ratio=3, quality=5)
    assert list(tmp_path.iterdir()) == []


def test_an_embedded_model_is_part_of_a_size_out_of_reach(tiny_model: Model, tmp_path: Path) -> None:
    film = series_of(2, size=32)
    settings = {"model": tiny_model, "embed_model": True, "target_ratio": 4}
    with pytest.raises(InputError) as refused:
        api.compress(film, tmp_path / "a.lat", **settings)
    text = str(refused.value)
    assert "cannot be held to 4,096 bytes (4 times smaller than float32): " in text
    assert text.endswith(f"; {tiny_model.nbytes:,} bytes of that are the embedded model")
    least = int(re.search(r"about ([\d,]+) bytes", text)[1].replace(",", ""))
    found = api.compress(
        film, tmp_path / "a.lat", model=tiny_model, embed_model=True, quality=0, dry_run=True
    )
    assert least == pytest.approx(found.archive_bytes, rel=0.01)
    assert least > tiny_model.nbytes


def test_xarray_decodes_no_frame_of_a_block_twice(lat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sunzip.xarray._PIXELS", 1)
    decoded, decode = [], WaveletFamily.decode
    monkeypatch.setattr(
        WaveletFamily, "decode", lambda self, *frame: decoded.append(1) or decode(self, *frame)
    )
    with xr.open_dataset(lat) as ds, sunzip.open(lat) as sun:
        found = ds.cube[:BLOCK].values
        assert len(decoded) == BLOCK
        np.testing.assert_array_equal(found, sun[:BLOCK])
