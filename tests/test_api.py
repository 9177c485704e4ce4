"""The main jobs end to end: exact times and keywords, random access, resuming, errors that cost nothing."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, get_overloads, get_type_hints

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from astropy.io import fits
from astropy.time import Time

import sunzip
from sunzip import api
from sunzip.archive import ArchiveWriter, verify
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.family import Float, Known
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Cube, Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, OutputError, UnsupportedError
from sunzip.metrics import image_metrics
from sunzip.normalize import NOISE
from sunzip.sinks import open_sink
from sunzip.sinks.fits import FitsSink
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.times import When
from sunzip.weights import Model, write

FRAMES, SIZE = 10, 32
CHANNELS = ("171A", "304A", "Bz")
START = np.datetime64("2014-01-01T00:00", "ms")


def image(channel: str, row: int) -> np.ndarray:
    """A made-up image; to render the synthetic Sun would take most of the time of these tests."""
    rng = np.random.default_rng([row, len(channel), ord(channel[1])])
    up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
    waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
    return (100 + 80 * waves + rng.normal(0, 5, (SIZE, SIZE))).astype(np.float32)


class Patchy(Synthetic):
    """Images with the times and keywords of the synthetic Sun, and holes.

    One frame has no image, one image is missing, one has a missing pixel.
    """

    broken_row: int | None = None
    reads = 0
    gain = 1.0

    def read(self, channel: str, row: int) -> np.ndarray:
        self.reads += 1
        if row == self.broken_row:
            raise InputError(f"sun.zarr/{channel}: chunk {row} cannot be read")
        pixels = image(channel, row) * np.float32(self.gain)
        if row == 3 or (row, channel) == (5, "304A"):
            pixels[:] = np.nan
        if (row, channel) == (6, "171A"):
            pixels[4, 9] = np.nan
        return pixels


def patchy(frames: int = FRAMES, **options: object) -> Patchy:
    return Patchy(frames=frames, size=SIZE, start=START, channels=CHANNELS, seed=7, **options)


def series_of(source: Synthetic) -> Series:
    return join([source])


@pytest.fixture(scope="module")
def series() -> Series:
    return series_of(patchy())


@pytest.fixture(scope="module")
def original(series: Series) -> Cube:
    return series.read(0, FRAMES)


@pytest.fixture(scope="module")
def lat(series: Series, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of single frames without its model."""
    path = tmp_path_factory.mktemp("api") / "sun.lat"
    api.compress(series, path, model=tiny_model)
    return path


@pytest.fixture
def sun(lat: Path, tiny_model: Model) -> api.Sun:
    return sunzip.open(lat)


def small_shards(monkeypatch: pytest.MonkeyPatch, frames: int = 4, pixels: int = 2 * 3 * SIZE * SIZE) -> None:
    """Shards of a few frames, read and written two frames at a time."""
    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", frames)
    monkeypatch.setattr(api._shards, "_STRETCH_PIXELS", pixels)
    monkeypatch.setattr(api._shards, "count", lambda: 1)


# --- compressing -----------------------------------------------------------------------------------------


def test_the_report_says_what_the_archive_holds(
    series: Series, original: Cube, tiny_model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "a.lat"
    seen: list[api.Progress] = []
    report = api.compress(series, path, model=tiny_model, quality=70, progress=seen.append)
    with sunzip.open(path) as sun:
        assert report.coded_bytes == sum(len(sun.archive.block(b)) for b in range(FRAMES))
        assert (
            report.latent_bytes == 4 * 8 * 2 * 2 * FRAMES
        )  # also of the one that has no image, as `info` says
        assert sun.archive.coding["latents_per_frame"] == 8 * 2 * 2
    assert report.frames == FRAMES
    assert report.images == 3 * FRAMES - 4 == original.valid.sum()
    assert report.raw_bytes == report.images * SIZE * SIZE * 4
    assert report.archive_bytes == path.stat().st_size
    assert report.model_bytes == tiny_model.nbytes
    assert (report.model, report.model_sha256, report.quality) == ("tiny", tiny_model.sha256, 70)
    assert (report.first, report.last) == ("2014-01-01T00:00:00.000Z", "2014-01-01T01:48:00.000Z")
    assert (report.channels, report.shape, report.dry_run) == (CHANNELS, (SIZE, SIZE), False)
    assert report.alignment["odd"] == {"image without a measurement": 4}
    assert seen[0] == api.Progress(0, FRAMES, 0, 0)
    assert seen[-1] == api.Progress(FRAMES, FRAMES, report.raw_bytes, report.coded_bytes)
    assert verify(path).problems == []
    assert json.loads(json.dumps(report.as_dict()))["images"] == report.images


def test_errors_are_those_of_the_decoded_pixels(lat: Path, sun: api.Sun, original: Cube) -> None:
    m = image_metrics(original.data, sun.read(0, FRAMES))
    stats = sun.archive.stats
    for name, values in (
        ("err_rmse", m.rmse),
        ("err_max", m.max_error),
        ("err_ppe10", m.ppe10),
        ("err_r", m.r),
    ):
        np.testing.assert_allclose(stats[name], values, rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(stats[name]), ~original.valid)


def test_a_machine_that_decodes_otherwise_is_found_out(
    series: Series, wavelet_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors are measured on what the encoder says is decoded; two frames a shard are decoded to prove it."""
    small_shards(monkeypatch)
    path = tmp_path / "a.lat"
    decode, asked = WaveletFamily.decode, []

    def counted(self: WaveletFamily, payload: bytes, quality: int, known: Known) -> Float:
        asked.append(payload)
        return decode(self, payload, quality, known)

    monkeypatch.setattr(WaveletFamily, "decode", counted)
    report = api.compress(series, path, model=wavelet_model, block=2)
    assert (report.frames, len(asked)) == (FRAMES, 2 * 3)  # in three shards
    monkeypatch.setattr(WaveletFamily, "decode", lambda *a: counted(*a) + np.float32(1))
    with pytest.raises(UnsupportedError, match=r"frames from 2014-01-01T00:00:00.000Z on do not decode"):
        api.compress(series, tmp_path / "b.lat", model=wavelet_model)
    assert not (tmp_path / "b.lat").exists()


def test_same_input_gives_same_bytes(series: Series, lat: Path, tiny_model: Model, tmp_path: Path) -> None:
    api.compress(series_of(patchy()), tmp_path / "b.lat", model=tiny_model)
    assert (tmp_path / "b.lat").read_bytes() == lat.read_bytes()


def test_blocks_of_any_length_hold_the_same_pixels(
    series: Series, sun: api.Sun, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch, frames=7)
    for block in (2, 5):
        api.compress(series, tmp_path / f"{block}.lat", model=tiny_model, block=block)
        with sunzip.open(tmp_path / f"{block}.lat") as other:
            assert other.archive.frames_per_block == block
            np.testing.assert_array_equal(other[:], sun[:])
            np.testing.assert_array_equal(other[3:8:2, "Bz"], sun[3:8:2, "Bz"])
            np.testing.assert_array_equal(other.latents[:], sun.latents[:])
            # Steps that skip whole blocks.
            np.testing.assert_array_equal(other[1::7], sun[1::7])
            np.testing.assert_array_equal(other.latents[::9], sun.latents[::9])
            assert other.archive.stats["err_rmse"].tobytes() == sun.archive.stats["err_rmse"].tobytes()
    with pytest.raises(InputError, match=r"block .* must be a whole number from 1 to 7, not 8"):
        api.compress(series, tmp_path / "8.lat", model=tiny_model, block=8)


def test_progress_never_goes_back(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    jobs: list[list[api.Progress]] = [[], [], []]
    api.compress(series, tmp_path / "a.lat", model=tiny_model, progress=jobs[0].append)
    api.decompress(lat, tmp_path / "a.h5", progress=jobs[1].append)
    api.evaluate(series, lat, progress=jobs[2].append)
    for seen in jobs:
        assert len(seen) > 4
        assert seen[0].done == 0
        assert seen[-1].done == FRAMES
        for a, b in itertools.pairwise(seen):
            assert a.done < b.done
            assert a.total == b.total == FRAMES
            assert a.raw_bytes <= b.raw_bytes
            assert a.coded_bytes <= b.coded_bytes
    with sunzip.open(lat) as sun:
        assert jobs[1][-1].coded_bytes == jobs[0][-1].coded_bytes == sun.archive.block_bytes.sum()


@pytest.mark.parametrize("block", [1, 2])
def test_a_broken_run_is_resumed_to_the_same_bytes(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    small_shards(monkeypatch)
    whole, broken = patchy(), patchy()
    settings = {"model": tiny_model, "block": block, "embed_model": True}
    told = api.compress(series_of(whole), tmp_path / "whole.lat", **settings)
    broken.broken_row = 9  # in the last of three shards
    with pytest.raises(InputError, match="chunk 9 cannot be read"):
        api.compress(series_of(broken), tmp_path / "a.lat", **settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lat.partial", "whole.lat"]
    with pytest.raises(OutputError, match="--resume"):
        api.compress(series_of(patchy()), tmp_path / "a.lat", **settings)
    again = patchy()
    seen: list[api.Progress] = []
    report = api.compress(series_of(again), tmp_path / "a.lat", resume=True, progress=seen.append, **settings)
    assert told.alignment["odd"]["image without a measurement"] > 0
    assert report.alignment == told.alignment
    assert (told.frames_coded, report.frames, report.frames_coded) == (10, 10, 2)
    assert again.reads == (1 + 2) * len(CHANNELS)  # the first frame, to know it again, and the last shard
    assert [p.done for p in seen] == [8, 10]
    assert (tmp_path / "a.lat").read_bytes() == (tmp_path / "whole.lat").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lat", "whole.lat"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "out of memory"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_a_folder_that_cannot_be_removed_leaves_an_archive_that_is_said_to_be_complete(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    path = tmp_path / "a.lat"
    with monkeypatch.context() as patch:
        patch.setattr("sunzip.archive._place.ThreadPoolExecutor", fails)
        with pytest.raises(OutputError, match=rf"a\.lat: is complete, but .*\({why}\); remove it"):
            api.compress(series_of(patchy()), path, model=tiny_model)
    assert not sunzip.verify(path).problems


def test_a_run_that_was_killed_when_its_archive_was_complete_is_resumed(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, partial = tmp_path / "a.lat", tmp_path / "a.lat.partial"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuses)
        with pytest.raises(OutputError, match="is complete"):
            api.compress(series_of(patchy()), path, model=tiny_model)
    whole = path.read_bytes()
    (partial / "cube" / "zarr.json").unlink()  # the folder was being removed
    with pytest.raises(OutputError, match="exists"):
        api.compress(series_of(patchy()), path, model=tiny_model)
    for other in ({"quality": 3}, {"embed_model": True}):
        with pytest.raises(OutputError, match="exists"):
            api.compress(series_of(patchy()), path, model=tiny_model, resume=True, **other)
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    with pytest.raises(OutputError, match="exists"):
        api.compress(series_of(patchy()), path, model=tiny_model, resume=True)
    path.write_bytes(whole)
    report = api.compress(series_of(patchy()), path, model=tiny_model, resume=True)
    assert (report.frames, report.frames_coded) == (10, 0)
    assert path.read_bytes() == whole
    assert not partial.exists()


def refuses(path: str) -> None:
    """Do as `shutil.rmtree` of what cannot be removed."""
    raise PermissionError(13, "Permission denied", path)


def fill_the_disk(patch: pytest.MonkeyPatch) -> None:
    """Have no room for the second shard."""
    write_shard = ArchiveWriter.write_shard

    def full(self: ArchiveWriter, shard: int, *rest: object) -> None:
        if shard == 1:
            raise OutputError("a.lat: cannot be written: No space left on device")
        write_shard(self, shard, *rest)  # type: ignore[arg-type]

    patch.setattr(ArchiveWriter, "write_shard", full)


def test_a_crash_while_writing_is_resumed_to_the_same_bytes(
    series: Series, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    api.compress(series, tmp_path / "whole.lat", model=tiny_model)
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(OutputError, match="No space"):
            api.compress(series, tmp_path / "a.lat", model=tiny_model)
    assert not (tmp_path / "a.lat").exists()
    api.compress(series, tmp_path / "a.lat", model=tiny_model, resume=True)
    assert (tmp_path / "a.lat").read_bytes() == (tmp_path / "whole.lat").read_bytes()


def test_drop_leaves_out_frames_with_an_image_of_no_measurement(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    kept = [0, 1, 2, 4, 6, 7, 8, 9]  # frame 3 has no image, and frame 5 lacks one
    wanted = join([patchy()], missing="drop")
    report = api.compress(wanted, tmp_path / "whole.lat", model=tiny_model)
    with sunzip.open(tmp_path / "whole.lat") as sun:
        assert sun.archive.valid.all()
        np.testing.assert_array_equal(sun.time, wanted.time[kept])
        assert np.isfinite(sun.cube(4, 5).data[0, 0]).mean() < 1  # a missing pixel is no missing image
    assert (report.frames, report.images) == (len(kept), 3 * len(kept))
    found = report.alignment
    assert (found["frames_dropped"], found["images_dropped"], found["images_used"]) == (2, 6, 3 * len(kept))
    assert found["odd"] == {"image without a measurement": 4}

    estimate = api.compress(join([patchy()], missing="drop"), tmp_path / "x", model=tiny_model, dry_run=True)
    assert (estimate.frames, estimate.alignment) == (report.frames, found)

    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(OutputError, match="No space"):
            api.compress(join([patchy()], missing="drop"), tmp_path / "a.lat", model=tiny_model)
    api.compress(join([patchy()], missing="drop"), tmp_path / "a.lat", model=tiny_model, resume=True)
    assert (tmp_path / "a.lat").read_bytes() == (tmp_path / "whole.lat").read_bytes()

    evaluated = api.evaluate(join([patchy()], missing="drop"), tmp_path / "a.lat")
    assert (evaluated.frames, evaluated.absent) == (len(kept), 0)


def test_drop_names_what_has_no_whole_frame(tiny_model: Model, tmp_path: Path) -> None:
    only = join([patchy()], missing="drop", start="2014-01-01T00:36", stop="2014-01-01T00:48")
    with pytest.raises(InputError, match="no frame has measurements in all of 171A 304A Bz"):
        api.compress(only, tmp_path / "a.lat", model=tiny_model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", [0, 1])
def test_a_source_that_fails_at_once_leaves_nothing(row: int, tiny_model: Model, tmp_path: Path) -> None:
    source = patchy()
    source.broken_row = row
    with pytest.raises(InputError, match=f"chunk {row} cannot be read"):
        api.compress(series_of(source), tmp_path / "a.lat", model=tiny_model)
    assert list(tmp_path.iterdir()) == []


def test_resuming_with_other_settings_is_refused(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    source = patchy()
    source.broken_row = 9
    with pytest.raises(InputError):
        api.compress(series_of(source), tmp_path / "a.lat", model=tiny_model)
    for other in ({"quality": 3}, {"block": 2}):
        with pytest.raises(OutputError, match="begin again with --force in place of --resume"):
            api.compress(series_of(patchy()), tmp_path / "a.lat", model=tiny_model, resume=True, **other)
    # Nor is a source that looks alike continued with, of other times of the Sun or calibrated anew.
    alike = patchy()
    alike.gain = 1.01
    with pytest.raises(OutputError, match="begun from other input"):
        api.compress(series_of(alike), tmp_path / "a.lat", model=tiny_model, resume=True)
    # One that has grown is told as such.
    grown = patchy(FRAMES + 3)
    with pytest.raises(OutputError, match=f"of {FRAMES} frames in place of {FRAMES + 3} .*, and with --stop"):
        api.compress(series_of(grown), tmp_path / "a.lat", model=tiny_model, resume=True)
    api.compress(series_of(patchy()), tmp_path / "a.lat", model=tiny_model, force=True, quality=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lat"]


def test_an_existing_target_is_touched_by_force_alone(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path
) -> None:
    path = tmp_path / "a.lat"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        api.compress(series, path, model=tiny_model)
    source = patchy()
    source.broken_row = 4
    with pytest.raises(InputError):
        api.compress(series_of(source), path, model=tiny_model, force=True)
    assert path.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.lat"]
    api.compress(series, path, model=tiny_model, force=True)
    assert path.read_bytes() == lat.read_bytes()


def test_a_dry_run_estimates_and_writes_nothing(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path
) -> None:
    estimate = api.compress(series, tmp_path / "a.lat", model=tiny_model, dry_run=True)
    assert estimate.dry_run
    assert list(tmp_path.iterdir()) == []
    with sunzip.open(lat) as sun:
        coded, images = int(sun.archive.block_bytes.sum()), int(sun.archive.valid.sum())
    assert estimate.coded_bytes == pytest.approx(coded, rel=0.25)
    assert estimate.images == pytest.approx(images, rel=0.25)
    assert estimate.frames == FRAMES
    assert estimate.seconds > 0
    with_model = api.compress(series, tmp_path / "a.lat", model=tiny_model, dry_run=True, embed_model=True)
    assert with_model.archive_bytes == estimate.archive_bytes + tiny_model.nbytes


def test_models_are_given_by_folder_or_object(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path
) -> None:
    write(tiny_model, tmp_path / "model")
    api.compress(series, tmp_path / "a.lat", model=tmp_path / "model")
    assert (tmp_path / "a.lat").read_bytes() == lat.read_bytes()
    with pytest.raises(ModelNotFoundError):
        api.compress(series, tmp_path / "b.lat", model="nowhere")
    with pytest.raises(InputError, match="quality"):
        api.compress(series, tmp_path / "b.lat", model=tiny_model, quality=200)


def test_no_source_and_small_images_are_refused(
    tiny_model: Model, sigma_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no source"):
        api.compress([], tmp_path / "a.lat", model=tiny_model)
    with pytest.raises(InputError, match="128×128"):
        api.compress(series_of(patchy()), tmp_path / "a.lat", model=sigma_model)
    assert list(tmp_path.iterdir()) == []


def test_series_are_opened_from_urls(tmp_path: Path) -> None:
    with open_sink(tmp_path / "a.h5", "hdf5", channels=CHANNELS, shape=(SIZE, SIZE)) as sink:
        sink.write(series_of(patchy(6)).read(0, 6))
    align = api.Alignment(every="24min", channels=("171A",), size=16)
    opened = api.open_series([tmp_path / "a.h5"], align=align)
    assert (len(opened), opened.channels, opened.shape) == (3, ("171A",), (16, 16))
    assert len(api.open_series(str(tmp_path / "a.h5"))) == 5  # one frame had no image


# --- reading ---------------------------------------------------------------------------------------------


def test_cubes_are_the_sources_but_for_the_pixels(sun: api.Sun, original: Cube) -> None:
    cube = sun.cube(0, FRAMES)
    np.testing.assert_array_equal(cube.time, original.time)
    np.testing.assert_array_equal(cube.t_obs, original.t_obs)
    np.testing.assert_array_equal(cube.valid, original.valid)
    np.testing.assert_array_equal(np.isnan(cube.data), np.isnan(original.data))
    assert cube.headers == original.headers
    assert cube.headers[0][0]["T_OBS"]
    assert cube.channels == CHANNELS
    assert cube.scale is Scale.MEAN
    part = sun.cube(4, 7, ["Bz", "171A"])
    assert part.channels == ("171A", "Bz")
    np.testing.assert_array_equal(part.data, cube.data[4:7, [0, 2]])
    assert part.headers == [[row[0], row[2]] for row in original.headers[4:7]]


def test_pixels_are_the_codecs(sun: api.Sun, original: Cube, tiny_model: Model) -> None:
    codec = Codec(tiny_model)
    blocks = codec.encode(original.data, CHANNELS)
    np.testing.assert_array_equal(sun[:], codec.decode(blocks, CHANNELS, (SIZE, SIZE)))


INDEXES = [
    (0, 0),
    (-1, 9),
    (np.int64(4), 4),
    (slice(2, 5), slice(2, 5)),
    (date(2014, 1, 1), 0),
    (slice(None, None, 3), slice(None, None, 3)),
    (slice(-3, None), slice(-3, None)),
    (slice(1, -1, 4), slice(1, -1, 4)),
    (slice(8, 2), slice(0, 0)),
    (slice(5, 100), slice(5, 10)),
    (slice(-100, 2), slice(0, 2)),
    ("2014-01-01T00:24", 2),
    ("2014-01-01T00:29", 2),
    ("2014-01-01T00:31", 3),
    ("1999-01-01", 0),
    ("2030-01-01", 9),
    (np.datetime64("2014-01-01T01:00"), 5),
    (datetime(2014, 1, 1, 1, 0), 5),
    (slice("2014-01-01T00:24", "2014-01-01T01:00"), slice(2, 5)),
    (slice("2014-01-01T00:25", "2014-01-01T01:01"), slice(3, 6)),
    (slice("2014-01-01", "2014-01-02", 2), slice(0, 10, 2)),
    (slice(np.datetime64("2014-01-01T01:30"), None), slice(8, 10)),
    (slice("2015-01-01", None), slice(0, 0)),
    (slice(3, "2014-01-01T01:12"), slice(3, 6)),
    (Time("2014-01-01T01:00"), 5),
    (slice(Time("2014-01-01T00:24"), Time("2014-01-01T01:00:35", scale="tai")), slice(2, 5)),
    (np.array("2014-01-01T01:00", "M8[ns]"), 5),
    (np.array(4), 4),
    (slice(np.array(1), np.array(-1)), slice(1, 9)),
]


@pytest.mark.parametrize(("index", "frames"), INDEXES)
def test_frames_are_picked_by_number_and_time(sun: api.Sun, index: object, frames: int | slice) -> None:
    everything = sun.read(0, FRAMES)
    np.testing.assert_array_equal(sun[index], everything[frames])
    np.testing.assert_array_equal(sun[index, "304A"], everything[:, 1][frames])
    np.testing.assert_array_equal(sun.latents[index], sun.latents[:][frames])


def test_latents_are_a_sequence_that_shows_itself(sun: api.Sun, lat: Path) -> None:
    assert len(sun.latents) == FRAMES
    np.testing.assert_array_equal(np.asarray(sun.latents), sun.latents[:])
    assert re.fullmatch(rf"<latents of {re.escape(str(lat))}: {FRAMES} frames of [\d×]+>", repr(sun.latents))


@pytest.mark.parametrize(
    ("which", "rows"),
    [
        ("Bz", 2),
        ("aia171", 0),
        (["Bz", "171A"], [2, 0]),
        (["304"], [1]),
        (slice(1, None), slice(1, None)),
        (slice(None, None, -1), slice(None, None, -1)),
        (["171A", "171A"], [0, 0]),
    ],
)
def test_channels_are_picked_in_the_order_asked_for(sun: api.Sun, which: object, rows: object) -> None:
    everything = sun.read(0, FRAMES)
    np.testing.assert_array_equal(sun[2:4, which], everything[2:4, rows])
    np.testing.assert_array_equal(sun[0, which], everything[0, rows])


STEPS = [slice(0, 5, -1), slice(0, 5, 0), slice(0, 5, "12min"), slice(0, 5, np.timedelta64(1, "h"))]
BY_NAME = [(0, slice("171A", "304A")), (0, slice(None, None, 0))]


@pytest.mark.parametrize(
    "index",
    [
        10,
        -11,
        (0, 1),
        (0, [0]),
        1.5,
        True,
        np.timedelta64(1, "h"),
        None,
        [1, 2],
        (0, "171A", 3),
        *STEPS,
        *BY_NAME,
    ],
)
def test_other_indexes_are_index_errors(sun: api.Sun, index: object) -> None:
    with pytest.raises(IndexError):
        sun[index]


@pytest.mark.parametrize(
    "index", ["noon", slice("noon", None), (0, "172A"), (0, "193A"), (0, ["Bz", "193A"])]
)
def test_unknown_times_and_channels_are_input_errors(sun: api.Sun, index: object) -> None:
    with pytest.raises(InputError) as error:
        sun[index]
    assert "\n" not in str(error.value)


def test_pixels_in_the_order_in_which_they_are_read_are_not_copied(
    sun: api.Sun, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sun.read(2, 4)
    monkeypatch.setattr(sun, "read", lambda *_, **__: data)
    for index in (slice(2, 4), (slice(2, 4), list(CHANNELS)), (2, slice(None))):
        assert np.shares_memory(sun[index], data)
    assert not np.shares_memory(sun[2:4, list(CHANNELS)[::-1]], data)


@pytest.mark.parametrize("frames", [slice(0, 2), 3, None])
def test_frames_to_take_are_a_sequence(sun: api.Sun, frames: object) -> None:
    with pytest.raises(IndexError, match="is no sequence of frame numbers"):
        sun.take(frames)


@pytest.mark.parametrize(
    "frames", [np.arange(10) < 2, [True, False], [0.0, 1.0], np.arange(4).reshape(2, 2), "12"]
)
def test_masks_and_the_like_are_no_frame_numbers(sun: api.Sun, frames: Any) -> None:
    for take in (sun.take, sun.tensor, sun.latents.take):
        with pytest.raises(IndexError, match="are no frame numbers"):
            take(frames)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint64])
def test_frame_numbers_are_integers_of_any_kind(sun: api.Sun, kind: type) -> None:
    # Type checkers take what is taken: `flatnonzero` is what the message about masks recommends.
    assert get_type_hints(sun.take)["frames"] == Sequence[int] | npt.NDArray[np.integer[Any]]
    np.testing.assert_array_equal(sun.take(np.array([3, 0, 3], kind)), sun.take([3, 0, 3]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint64])
def test_ends_are_integers_of_any_kind(sun: api.Sun, kind: type) -> None:
    one, four = kind(1), kind(4)
    found, expected = sun.cube(one, four), sun.cube(1, 4)
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.t_obs, expected.t_obs)
    assert found.headers == expected.headers
    np.testing.assert_array_equal(sun.archive.rows("valid", one, four), sun.archive.valid[1:4])
    for read in (sun.read, sun.cube):
        assert get_type_hints(read)["stop"] == int | np.integer[Any]


def test_checkers_know_what_times_may_be(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(
        "import datetime\nimport numpy as np\nfrom sunzip.times import When\n\n"
        "class Time:\n    ndim = 0\n\n"  # astropy's, xarray's
        "good: list[When] = ['2014', datetime.date(2014, 1, 1), np.datetime64('2014'), np.int64(3), Time()]\n"
        "bad: list[When] = [2014.5]\n"
    )
    own = str(Path(sunzip.__file__).parent / "times.py")
    options = ["--follow-imports=skip", "--cache-dir", str(tmp_path), "--config-file", ""]
    said, wrong, _ = mypy.run([*options, own, str(program)])
    assert re.findall(r"program.py:(\d+): error", said) == ["9"], said + wrong
    assert get_type_hints(sunzip.Sun.frames)["when"] == int | When | slice


def test_checkers_know_what_frames_become() -> None:
    def told(of: Callable[..., object]) -> list[tuple[str, str]]:
        found = [each.__annotations__ for each in get_overloads(of)]
        return [(each["when"], each["return"]) for each in found]

    assert told(sunzip.Sun.frames)[:2] == [("int | When", "int"), ("slice", "slice")]
    assert told(sunzip.Sun.map)[:2] == [("int | When", "GenericMap"), ("slice", "MapSequence")]


def test_steps_read_only_their_own_blocks(sun: api.Sun, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    blocks = sun.archive.read_blocks
    monkeypatch.setattr(sun.archive, "read_blocks", lambda b: read.extend(b) or blocks(b))
    sun[1:9:3]
    assert read == [1, 4, 7]
    read.clear()
    sun.latents[::5]
    assert read == [0, 5]


@pytest.mark.parametrize("index", [[1, 2], ...])
def test_indexes_that_numpy_has_are_told_what_does_it_here(sun: api.Sun, index: Any) -> None:
    for indexed in (sun, sun.latents):
        with pytest.raises(IndexError, match=r"take\(…\) gives frames by a list of numbers, \[:\] gives all"):
            indexed[index]


@pytest.mark.parametrize("name", ["hmi", "degradation"])
def test_what_opens_sources_is_refused_beside_a_series(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path, name: str
) -> None:
    """A second store was passed over in silence: its channels were missing."""
    given: dict[str, Any] = {name: "store"}
    jobs = [lambda: sunzip.append(series, lat, **given), lambda: sunzip.evaluate(series, lat, **given)]
    if name == "hmi":  # an archive keeps where tables are
        jobs.append(lambda: sunzip.compress(series, tmp_path / "a.lat", model=tiny_model, **given))
    for job in jobs:
        with pytest.raises(InputError, match=f"^{name} does nothing for archives, and for series"):
            job()


def test_reading_outside_is_an_index_error(sun: api.Sun) -> None:
    for start, stop in ((-1, 2), (0, 11), (5, 4)):
        with pytest.raises(IndexError):
            sun.read(start, stop)
    assert sun.read(3, 3).shape == (0, 3, SIZE, SIZE)


def test_what_is_no_frame_number_is_called_so(sun: api.Sun) -> None:
    day: Any = "2014-01-01"
    for read in (sun.read, sun.cube):
        for ends in ((day, 3), (0, np.datetime64(day)), (0, None), (0.0, 3), (True, 3)):
            with pytest.raises(IndexError, match=r"is no frame number; sun\.frames\(slice\("):
                read(*ends)
    steps: tuple[Any, ...] = (0, -1, 1.5, "2")
    for step in steps:
        with pytest.raises(IndexError, match=f"must be whole and positive, not {step!r}"):
            sun.read(0, 3, step=step)
        with pytest.raises(IndexError, match=f"must be whole and positive, not {step!r}"):
            sun[0:3:step]


def test_latents_of_empty_frames_are_nan(sun: api.Sun) -> None:
    latents = sun.latents[:]
    assert latents.shape == sun.latents.shape == (FRAMES, 8, 2, 2)
    assert np.isnan(latents).all((1, 2, 3)).tolist() == [t == 3 for t in range(FRAMES)]


def test_an_open_archive_tells_about_itself_and_travels(sun: api.Sun, lat: Path, tiny_model: Model) -> None:
    assert len(sun) == FRAMES
    assert sun.shape == (FRAMES, 3, SIZE, SIZE)
    assert "10 frames" in repr(sun)
    assert "171A 304A Bz" in repr(sun)
    pixels = sun[2]
    assert len(pickle.dumps(sun)) < 1000  # no network comes along
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sun))[2], pixels)
    with sunzip.open(lat, model=tiny_model) as given:
        again = pickle.loads(pickle.dumps(given))
    np.testing.assert_array_equal(again[2], pixels)


def test_importing_and_opening_load_no_torch(lat: Path) -> None:
    code = (
        "import sys, sunzip; assert not [m for m in ('numpy', 'torch') if m in sys.modules];"
        "sun = sunzip.open(sys.argv[1]); sun.cube; sun.archive.stats; repr(sun);"
        "print([m for m in ('torch', 'matplotlib', 'sunpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(lat)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- models ----------------------------------------------------------------------------------------------


def test_an_embedded_model_is_enough(
    series: Series, sun: api.Sun, tiny_model: Model, tmp_path: Path, nothing_registered: None
) -> None:
    path = tmp_path / "a.lat"
    api.compress(series, path, model=tiny_model, embed_model=True)
    assert path.stat().st_size > tiny_model.nbytes
    code = "import sys, sunzip; import numpy as np; np.save(sys.argv[2], sunzip.open(sys.argv[1])[4:6])"
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "out.npy")], check=True)
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(np.isnan(found), np.isnan(series.read(4, 6).data))
    with sunzip.open(path, model=tiny_model) as here:
        # Another process may run with other threads, which may sum in another order.
        np.testing.assert_allclose(found, here[4:6], rtol=1e-3, atol=0.1)


def test_ctrl_c_waits_for_no_more_files_than_those_of_a_frame(lat, tmp_path, monkeypatch):
    """All frames that are decoded are with the thread that writes, and may take it a minute."""
    begun, names = threading.Event(), []

    def named(self, *args, real=FitsSink._file):
        names.append(args)
        if not begun.is_set():
            begun.set()
            told.wait(5)
        return real(self, *args)

    def progress(done):
        if done.done:
            begun.wait(20)
            raise KeyboardInterrupt

    told = threading.Event()
    fed = FitsSink.fed

    @contextmanager
    def telling(self):
        try:
            with fed(self):
                yield
        finally:
            told.set()

    monkeypatch.setattr(FitsSink, "_file", named)
    monkeypatch.setattr(FitsSink, "fed", telling)
    with pytest.raises(KeyboardInterrupt):
        api.decompress(lat, tmp_path / "maps", layout="fits", progress=progress)
    assert 0 < len(names) <= len(NAMES)
    assert not os.listdir(tmp_path)


def test_a_missing_model_is_named(
    lat: Path, tiny_model: Model, tmp_path: Path, nothing_registered: None
) -> None:
    with sunzip.open(lat) as sun:
        assert sun.archive.valid.any()  # all but pixels and latents is there
        for ask in (lambda: sun[0], lambda: sun.latents[0]):
            with pytest.raises(
                ModelNotFoundError, match=rf"sun\.lat: was coded with model tiny: .*{tiny_model.sha256[:12]}"
            ):
                ask()
    with pytest.raises(ModelNotFoundError):
        api.decompress(lat, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []
    write(tiny_model, tmp_path / "model")
    with sunzip.open(lat, model=tmp_path / "model") as sun:
        assert np.isfinite(sun[0]).all()


def test_another_model_is_refused(lat: Path, other_model: Model) -> None:
    with sunzip.open(lat, model=other_model) as sun, pytest.raises(InputError) as caught:
        sun[0]
    assert re.fullmatch(
        r"\S+sun\.lat: was coded with model tiny \(\w{12}…\), not with the model given, other \(\w{12}…\); "
        r"give that one \(--model, model=\), or none if it is in the archive or on this machine",
        str(caught.value),
    )


def test_another_model_inside_is_damage(
    lat: Path, other_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sunzip.archive.Archive.embedded_model", lambda _: other_model.files)
    with sunzip.open(lat) as sun, pytest.raises(DamagedError, match=r"model tiny .* but holds another"):
        sun[0]


def test_archives_of_one_model_share_its_network(lat: Path, tiny_model: Model) -> None:
    with sunzip.open(lat) as one, sunzip.open(lat) as two:
        assert one.codec.family is two.codec.family


def test_damage_names_file_and_frames(series: Series, tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.lat"
    api.compress(series, path, model=tiny_model)
    with sunzip.open(path) as sun:
        at = path.read_bytes().index(sun.archive.block(4))
    with path.open("r+b") as f:
        f.seek(at + 30)
        f.write(b"\xff\xfe")
    with sunzip.open(path) as sun:
        assert np.isfinite(sun[0]).all()
        # Not those that were read with it: they are whole.
        for ask in (lambda: sun[3:6], lambda: sun.latents[3:6]):
            with pytest.raises(
                DamagedError, match=r"a\.lat: frame 4: block: its checksum.*; fetch .*repair it"
            ):
                ask()


def test_an_archive_that_was_written_over_is_not_called_damaged(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path
) -> None:
    path, other = tmp_path / "a.lat", tmp_path / "b.lat"
    path.write_bytes(lat.read_bytes())
    api.compress(series, other, model=tiny_model, block=2)
    with sunzip.open(path) as sun:
        before = sun[0]
        path.write_bytes(other.read_bytes())  # what was opened has other bytes now, as has what is at a URL
        asked = (
            lambda: sun[0],
            lambda: sun.latents[0],
            lambda: sun.archive.t_obs,
            sun.archive.store,
            lambda: sun.archive.check_shard(0),
        )
        for ask in asked:
            with pytest.raises(
                DamagedError, match=r"^\S*a\.lat: was replaced since it was opened; open it again$"
            ):
                ask()
        path.write_bytes(lat.read_bytes())
        np.testing.assert_array_equal(sun[0], before)


# --- decompressing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "name"), [("sdoml-v2", "a.zarr"), ("sdoml-v1", "tree"), ("hdf5", "a.h5"), ("fits", "files")]
)
def test_every_layout_reads_back(sun: api.Sun, lat: Path, tmp_path: Path, layout: str, name: str) -> None:
    out = tmp_path / name
    report = api.decompress(lat, out, layout=layout)
    assert (report.layout, report.frames, report.images) == (layout, FRAMES, 3 * FRAMES - 4)
    assert report.raw_bytes == report.images * SIZE * SIZE * 4
    decoded = sun.cube(0, FRAMES)
    source = open_source(str(out))
    assert source.layout == layout
    there = np.flatnonzero(decoded.valid.any(1))
    back = join([source]).read(0, len(there))
    # SDOML v1 keeps minutes alone, so that its frames stand on the grid.
    np.testing.assert_array_equal(back.time, decoded.time[there])
    np.testing.assert_array_equal(back.valid, decoded.valid[there])
    np.testing.assert_array_equal(back.to_scale(Scale.MEAN).data, decoded.data[there])
    if layout != "sdoml-v1":
        np.testing.assert_array_equal(back.t_obs, decoded.t_obs[there])
        for row, kept in zip(back.headers, (decoded.headers[t] for t in there), strict=True):
            for header, expected in zip(row, kept, strict=True):
                assert {k: header[k] for k in expected if k in header or layout != "fits"} == {
                    k: v for k, v in expected.items() if k in header or layout != "fits"
                }


def test_what_was_decoded_says_that_it_was_lossy(
    original: Cube, wavelet_model: Model, tmp_path: Path
) -> None:
    """Who finds the files in ten years must not take them for measurements to the last bit."""
    import h5py
    import zarr
    from astropy.io import fits

    path = tmp_path / "a.lat"
    api.compress(series_of(patchy(4)), path, model=wavelet_model, quality=61, max_error="9DN/s")
    held = {"171A": "9DN/s", "304A": "9DN/s"}
    expected = {
        "history": "compressed with loss by sunzip, model tiny-wavelet, quality 61",
        "model": "tiny-wavelet",
        "model_sha256": wavelet_model.sha256,
        "quality": 61,
        "max_error": ",".join(f"{name}={bound}" for name, bound in held.items()),
    }
    api.decompress(path, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert expected.items() <= dict(file.attrs).items()
    api.decompress(path, tmp_path / "a.zarr")
    assert expected.items() <= dict(zarr.open_group(tmp_path / "a.zarr", mode="r").attrs).items()
    api.decompress(path, tmp_path / "maps", layout="fits")
    for name in CHANNELS:
        file = next((tmp_path / "maps").glob(f"*_{'bz' if name == 'Bz' else '0' + name[:3]}_*"))
        with sunzip.open(path) as sun:
            made = sun.map(0, name).meta
        for header in (fits.getheader(file), made):
            assert header["SZ_MODEL"] == "tiny-wavelet"
            assert header["SZ_SHA"] == wavelet_model.sha256
            assert header["SZ_QUAL"] == 61
            assert header.get("SZ_BOUND") == held.get(name)
            assert expected["history"] in str(header["HISTORY"]).replace("\n", "")
    # Where the file is a source, its images have the keywords that they had.
    back = join([open_source(str(tmp_path / "maps"))]).read(0, 1)
    assert not any(key.startswith("SZ_") or key == "HISTORY" for row in back.headers[0] for key in row)


def test_scales_may_be_text(original: Cube) -> None:
    means, sums = original.to_scale(Scale.MEAN), original.to_scale(Scale.SUM)
    assert means.to_scale("mean") is means
    np.testing.assert_array_equal(means.to_scale("sum").data, sums.data)
    np.testing.assert_array_equal(sums.to_scale("mean").data, means.data)
    assert replace(sums, scale="sum").to_scale(Scale.SUM).scale is Scale.SUM  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a scale is 'mean' or 'sum', not 'both'"):
        means.to_scale("both")  # type: ignore[arg-type]


def test_sums_stay_sums_from_end_to_end(
    original: Cube, sun: api.Sun, tiny_model: Model, tmp_path: Path
) -> None:
    with open_sink(tmp_path / "v1", "sdoml-v1", channels=CHANNELS, shape=(SIZE, SIZE)) as sink:
        sink.write(original)
    api.compress(str(tmp_path / "v1"), tmp_path / "a.lat", model=tiny_model)
    with sunzip.open(tmp_path / "a.lat") as sums:
        assert sums.scale is Scale.SUM
        there = original.valid.any(1)
        # ×4 and back is exact, so that the blocks are those of the means.
        blocks = [sums.archive.block(b) for b in range(len(sums))]
        assert blocks == [sun.archive.block(int(b)) for b in np.flatnonzero(there)]
        np.testing.assert_array_equal(sums[:], sun.cube(0, FRAMES).to_scale(Scale.SUM).data[there])
    assert api.decompress(tmp_path / "a.lat", tmp_path / "back").layout == "sdoml-v1"
    api.decompress(tmp_path / "a.lat", tmp_path / "back.h5")
    assert open_source(str(tmp_path / "back.h5")).scale is Scale.SUM


def test_sources_without_any_measurement_are_refused(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patchy, "read", lambda *_: np.full((SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(InputError, match=r"^synthetic.*: none of its images holds a measurement$"):
        api.compress(series_of(patchy()), tmp_path / "a.lat", model=tiny_model)
    assert os.listdir(tmp_path) == []


def test_sources_of_nothing_but_damage_are_refused(original: Cube, tiny_model: Model, tmp_path: Path) -> None:
    with open_sink(tmp_path / "v1", "sdoml-v1", channels=CHANNELS, shape=(SIZE, SIZE)) as sink:
        sink.write(original)
    for file in (tmp_path / "v1").rglob("*_00[1-5]?_*.npz"):
        file.write_bytes(b"PK")
    series = join([open_source(str(tmp_path / "v1"))], start="2014-01-01T00:12", stop="2014-01-01T00:59")
    with pytest.raises(
        InputError, match=r"v1: none of its images holds a measurement; \d+ of them are damaged"
    ):
        api.compress(series, tmp_path / "a.lat", model=tiny_model)


def test_channels_without_an_image_are_not_told_to_be_written(lat: Path, tmp_path: Path) -> None:
    def told(start: str, stop: str) -> tuple[int, tuple[str, ...]]:
        report = api.decompress(lat, tmp_path / "a.h5", start=start, stop=stop, force=True)
        return report.images, report.channels

    assert told("2014-01-01T01:00", "2014-01-01T01:12") == (2, ("171A", "Bz"))
    assert told("2014-01-01T00:48", "2014-01-01T01:12") == (5, CHANNELS)
    assert told("2014-01-01T00:36", "2014-01-01T00:48") == (0, ())


@pytest.mark.parametrize("name", ["a.h5", "a.nc"])
def test_parts_are_decompressed(lat: Path, sun: api.Sun, tmp_path: Path, name: str) -> None:
    report = api.decompress(
        lat, tmp_path / name, start="2014-01-01T00:24", stop="2014-01-01T01:24", channels=["Bz", "171A"]
    )
    assert (report.frames, report.channels) == (5, ("171A", "Bz"))
    assert report.layout == "hdf5"
    cube = join([open_source(str(tmp_path / name))]).read(0, 4)
    np.testing.assert_array_equal(cube.data[0], sun[2, ["171A", "Bz"]])
    with pytest.raises(InputError, match="no frame from its start to 0"):
        api.decompress(lat, tmp_path / "b.h5", stop=0)
    with pytest.raises(InputError, match="no frame from 2015-01-01 to its end"):
        api.decompress(lat, tmp_path / "b.h5", start="2015-01-01")
    with pytest.raises(InputError, match="has no 193A"):
        api.decompress(lat, tmp_path / "b.h5", channels=["193A"])
    with pytest.raises(OutputError, match="unknown layout"):
        api.decompress(lat, tmp_path / "b.h5", layout="png")
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_target_is_replaced_by_force_alone_and_only_by_success(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    out = f"{tmp_path / 'a.zarr'}{slash}"
    api.decompress(lat, out, channels=["Bz"])
    with pytest.raises(OutputError, match="exists"):
        api.decompress(lat, out)
    with monkeypatch.context() as patch:
        patch.setattr(api.Sun, "cube", lambda *_: (_ for _ in ()).throw(DamagedError("broken")))
        with pytest.raises(DamagedError):
            api.decompress(lat, out, force=True)
    assert open_source(out).channels == ("Bz",)
    api.decompress(lat, out, force=True)
    assert open_source(out).channels == CHANNELS
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_what_is_replaced_stays_closed_to_others(
    series: Series, lat: Path, tiny_model: Model, tmp_path: Path
) -> None:
    for name in ("a.lat", "a.h5", "a.zarr"):
        path, closed = tmp_path / name, 0o750 if name == "a.zarr" else 0o640

        def write(path: Path = path, force: bool = False) -> None:
            if path.suffix == ".lat":
                api.compress(series, path, model=tiny_model, force=force)
            else:
                api.decompress(lat, path, force=force)

        write()
        path.chmod(closed)
        write(force=True)
        assert stat.S_IMODE(path.stat().st_mode) == closed, name


def test_what_lies_aside_from_an_earlier_run_is_not_destroyed(lat: Path, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"old")
    (tmp_path / "a.h5.new").write_bytes(b"half")
    with pytest.raises(OutputError, match=r"a\.h5\.new: is in the way"):
        api.decompress(lat, tmp_path / "a.h5", force=True)
    assert (tmp_path / "a.h5").read_bytes() == b"old"
    assert (tmp_path / "a.h5.new").read_bytes() == b"half"


@pytest.mark.parametrize("name", ["F/../F", "F/.", "link/../F/", "F/../../in/F"])
def test_a_target_is_replaced_by_whatever_name(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "in"
    here.mkdir()
    monkeypatch.chdir(here)
    api.decompress(lat, "F", layout="fits", channels=["Bz"])
    (here / "link").symlink_to(here / "F")
    api.decompress(lat, name, layout="fits", channels=["171A"], force=True)
    assert sorted(os.listdir(here)) == ["F", "link"]
    assert {p.name[:8] for p in (here / "F").iterdir()} == {"aia_0171"}


def test_the_folder_one_is_in_is_not_replaced(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.decompress(lat, tmp_path / "a.zarr", channels=["Bz"])
    monkeypatch.chdir(tmp_path / "a.zarr" / "2014")
    for name in (".", "..", "../../a.zarr", f"{tmp_path / 'a.zarr'}/"):
        with pytest.raises(OutputError, match="is the folder you are in, or holds it"):
            api.decompress(lat, name, force=True)
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert open_source(str(tmp_path / "a.zarr")).channels == ("Bz",)


def test_what_cannot_be_replaced_stays_and_both_are_named(
    lat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.h5"
    api.decompress(lat, out, channels=["Bz"])
    rename = os.rename

    def one_way(source: str, target: str) -> None:
        if target == str(out) and (stuck or str(source).endswith(".new")):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", one_way)
    stuck = False
    with pytest.raises(OutputError, match=r"Permission denied; the new one is \S*a\.h5\.new$"):
        api.decompress(lat, out, force=True)
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.h5.new"]
    (tmp_path / "a.h5.new").unlink()
    stuck = True
    with pytest.raises(OutputError, match=r"the new one is \S*a\.h5\.new, the old one \S*a\.h5\.old$"):
        api.decompress(lat, out, force=True)
    assert sorted(os.listdir(tmp_path)) == ["a.h5.new", "a.h5.old"]


# --- evaluating ------------------------------------------------------------------------------------------


def test_evaluation_is_that_of_the_pixels_and_of_the_statistics(
    series: Series, lat: Path, sun: api.Sun, original: Cube
) -> None:
    report = api.evaluate(series, lat)
    decoded = sun.read(0, FRAMES)
    stats = sun.archive.stats
    for c, name in enumerate(CHANNELS):
        there = original.valid[:, c]
        x, y = original.data[there, c].astype(float), decoded[there, c].astype(float)
        known = np.isfinite(x)
        error = np.where(known, np.abs(x - y), 0)
        per_image = known.sum((1, 2))
        paper = report.metrics["paper"][name]
        assert paper["images"] == there.sum()
        assert paper["rmse"] == pytest.approx(np.sqrt((error**2).sum((1, 2)) / per_image).mean())
        assert paper["max_error"] == pytest.approx(error.max())
        ppe10 = (known & (error < 0.1 * np.abs(x))).sum((1, 2)) / per_image
        assert paper["ppe10"] == pytest.approx(ppe10.mean())
        r = [np.corrcoef(a[k], b[k])[0, 1] for a, b, k in zip(x, y, known, strict=True)]
        assert paper["r"] == pytest.approx(np.mean(r))
        for key in ("rmse", "ppe10", "r"):
            assert paper[key] == pytest.approx(float(np.nanmean(stats[f"err_{key}"][:, c])), rel=1e-5)
        assert paper["max_error"] == pytest.approx(float(np.nanmax(stats["err_max"][:, c])), rel=1e-6)
        assert paper["rmse_sigma"] > 0
    pixels = original.valid.sum() * SIZE * SIZE
    assert (report.frames, report.images, report.absent) == (FRAMES - 1, original.valid.sum(), 0)
    assert report.bits_per_sample == pytest.approx(8 * lat.stat().st_size / pixels)
    assert report.ratio == pytest.approx(4 * pixels / lat.stat().st_size)


def test_evaluation_counts_what_only_one_side_has(lat: Path, original: Cube) -> None:
    fewer = join([patchy()], stop="2014-01-01T01:00")
    report = api.evaluate(fewer, lat)
    assert report.images == original.valid[:5].sum()
    assert report.absent == original.valid[5:].sum()
    more = api.evaluate(series_of(patchy(14)), lat)
    assert (more.images, more.absent) == (original.valid.sum(), 4 * 3)


@pytest.mark.parametrize("name", ["94A", "Bz"])
def test_the_least_errors_that_pixels_can_have_are_seen_in_units_of_noise(name: str) -> None:
    # √(|x| + b) in float32 is the same for pixels that differ.
    x = np.geomspace(0.5, 1e4, SIZE * SIZE, dtype=np.float32).reshape(1, 1, SIZE, SIZE)
    y = np.nextafter(x, np.float32(np.inf))
    told = api.judging([name], (SIZE, SIZE))
    told.add(x, y)
    a, b = NOISE[name]
    sigmas = (y.astype(float) - x) / np.sqrt(a * (x.astype(float) + b))
    assert told.result()["paper"][name].rmse_sigma == pytest.approx(np.sqrt((sigmas**2).mean()), rel=1e-3)


def test_sources_that_are_not_the_archives_are_refused(lat: Path, tmp_path: Path) -> None:
    for other, reason in (
        (join([Synthetic(frames=3, size=32, start=START)]), "name the archive's own source"),
        (join([Synthetic(frames=3, size=48, start=START, channels=CHANNELS)]), "48×48"),
        (join([Synthetic(frames=3, size=32, start="2001-01-01", channels=CHANNELS)]), "no image in common"),
    ):
        with pytest.raises(InputError, match=reason):
            api.evaluate(other, lat)


def test_the_source_is_aligned_as_it_was(
    original: Cube, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_sink(tmp_path / "a.h5", "hdf5", channels=CHANNELS, shape=(SIZE, SIZE)) as sink:
        sink.write(original)
    align = api.Alignment(every="24min", size=16, channels=("171A", "Bz"), start="2014-01-01T00:12")
    api.compress(tmp_path / "a.h5", tmp_path / "a.lat", model=tiny_model, align=align)
    report = api.evaluate(tmp_path / "a.h5", tmp_path / "a.lat")
    # Frames 1, 3, 5, 7 and 9, of which 3 has no image; an image of 304 Å is not asked for.
    assert (report.images, report.absent) == (8, 0)
    for strange in ({"cadence": 5}, {"more": 1}, 7, {"size": "16"}, {"channels": "all", "missing": ["mask"]}):
        with sunzip.open(tmp_path / "a.lat") as sun:
            monkeypatch.setattr(sun.archive, "coding", {"align": strange})
            with pytest.raises(DamagedError, match="alignment settings"):
                api.source_of(sun, str(tmp_path / "a.h5"))


def test_all_twelve_channels_and_rectangles(
    tiny_model: Model, frames_of: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    data = frames_of(3, 12, 40, 24)
    time = START + np.arange(3) * np.timedelta64(12, "m")
    t_obs = np.repeat(time[:, None], 12, 1)
    cube = Cube(
        data, NAMES, time, t_obs, np.ones((3, 12), bool), [[{"K": i} for i in range(12)]] * 3, Scale.MEAN
    )
    with open_sink(tmp_path / "a.h5", "hdf5", channels=NAMES, shape=(40, 24)) as sink:
        sink.write(cube)
    api.compress(tmp_path / "a.h5", tmp_path / "a.lat", model=tiny_model)
    with sunzip.open(tmp_path / "a.lat") as sun:
        assert sun.shape == (3, 12, 40, 24)
        assert np.isfinite(sun[:]).all()
        assert sun.cube(0, 3).headers == cube.headers
    assert api.evaluate(tmp_path / "a.h5", tmp_path / "a.lat").images == 36


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted")
def test_who_forgets_to_close_archives_does_not_run_out_of_files(lat: Path) -> None:
    with sunzip.open(lat) as sun:
        sent = pickle.dumps(sun)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            sunzip.open(lat).archive.headers(0)
            pickle.loads(sent)
        assert len(os.listdir("/proc/self/fd")) == before


def test_tables_of_degradation_are_for_those_sources_that_are_fits(tiny_model: Model, tmp_path: Path) -> None:
    """Others are joined and held against as they are, also where it is the archive that names the tables."""
    when = np.datetime64("2014-01-01T00:00", "ms")
    tables, fits_file, fields, plain = (tmp_path / n for n in ("tables", "aia.fits", "hmi.h5", "back.h5"))
    tables.mkdir()
    (tables / "degrad_171.csv").write_text("2010-05-01,0.5\n")
    header = {
        "TELESCOP": "SDO/AIA",
        "WAVELNTH": 171,
        "T_OBS": str(when),
        "EXPTIME": 1.0,
        "RSUN_OBS": 976.0,
        "CDELT1": 4.8,
        "CRPIX1": 256.5,
        "CRPIX2": 256.5,
    }
    fits.PrimaryHDU(np.full((512, 512), 60, np.float32), fits.Header(header)).writeto(fits_file)
    with h5py.File(fields, "w") as file:
        file["cube"] = np.zeros((1, 1, 512, 512), np.float32)
        file["time"] = when.astype(np.int64)[None]
        file["channel"] = ["Bz"]
    both, align = [fits_file, fields], api.Alignment(size=SIZE)
    path = tmp_path / "sun.lat"
    sunzip.compress(both, path, degradation=str(tables), align=align, model=tiny_model)
    with sunzip.open(path) as sun:
        assert sun.archive.headers(0)[0]["DEG_COR"] == 0.5
    assert sunzip.evaluate(both, path).images == 2
    assert sunzip.diff(fits_file, fields, degradation=str(tables)).channels_only == (("171A",), ("Bz",))

    sunzip.decompress(path, plain)
    assert sunzip.evaluate(plain, path).images == 2
    assert sunzip.append(plain, path).frames == 1
    for job in (sunzip.evaluate, sunzip.append):
        with pytest.raises(InputError, match=r"back\.h5: is of layout hdf5; only FITS files are corrected"):
            job(plain, path, degradation=str(tables))
    with pytest.raises(InputError, match=r"hmi\.h5: is of layout hdf5; only FITS files are corrected"):
        sunzip.diff(fields, path, degradation=str(tables))
