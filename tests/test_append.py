"""Frames added to archives: those that are there keep their bits, and nothing that goes wrong costs them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import sunzip
from sunzip import api
from sunzip.archive import ArchiveSpec, _place, open_archive, verify
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, OutputError
from sunzip.sinks import open_sink
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model

SIZE = 32
CHANNELS = ("171A", "304A", "Bz")
START = np.datetime64("2014-01-01T00:00", "ms")
MODELS = pytest.mark.parametrize("kind", ["tiny_model", "wavelet_model"])


class Waves(Synthetic):
    """The times and keywords of the synthetic Sun with images that cost nothing, and holes in frame 3."""

    broken_row: int | None = None
    lost: Collection[tuple[str, int]] = ()

    def read(self, channel: str, row: int) -> np.ndarray:
        if row == self.broken_row:
            raise InputError(f"sun.zarr/{channel}: chunk {row} cannot be read")
        if row == 3 or (row == 6 and channel == "304A") or (channel, row) in self.lost:
            return np.full((SIZE, SIZE), np.nan, np.float32)
        rng = np.random.default_rng([row, len(channel), ord(channel[1])])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + 0.1 * row) * np.cos(right + len(channel))
        return (100 + 80 * waves + rng.normal(0, 5, (SIZE, SIZE))).astype(np.float32)


def source(frames: int, channels: tuple[str, ...] = CHANNELS, **options: object) -> Waves:
    return Waves(
        **{"frames": frames, "size": SIZE, "start": START, "channels": channels, "seed": 7} | options
    )


def series(frames: int, **options: object) -> Series:
    return join([source(frames, **options)])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of six frames, read and written a few at a time."""
    monkeypatch.setattr(api._compress, "FRAMES_PER_SHARD", 6)
    monkeypatch.setattr(api._shards, "_STRETCH_PIXELS", 2 * len(CHANNELS) * SIZE * SIZE)
    monkeypatch.setattr(api._shards, "count", lambda: 1)


@pytest.fixture
def model(kind: str, request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(kind)
    return found


@MODELS
@pytest.mark.parametrize("block", [1, 2, 3, 6])
@pytest.mark.parametrize("ends", [(2, 17), (4, 5, 6, 17), (6, 13, 14, 17)])
def test_what_is_there_keeps_its_bits_and_what_is_added_is_coded_alike(
    model: Model, block: int, ends: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(ends[0]), path, model=model, block=block)
    for before, end in pairwise(ends):
        with sunzip.open(path) as sun:
            pixels, headers = sun.read(0, before), [sun.archive.headers(t) for t in range(before)]
            table = sun.archive.table(0, before)
        report = api.append(series(end), path)
        assert (report.frames_before, report.frames, report.frames_coded) == (before, end, end - before)
        assert verify(path).ok
        with sunzip.open(path) as sun:
            np.testing.assert_array_equal(sun.read(0, before), pixels)
            assert [sun.archive.headers(t) for t in range(before)] == headers
            again = sun.archive.table(0, before)
            np.testing.assert_array_equal(again.t_obs, table.t_obs)
            for name, values in table.stats.items():
                np.testing.assert_array_equal(again.stats[name], values)
    whole = series(ends[-1]).read(0, ends[-1])
    with sunzip.open(path) as sun:
        cube = sun.cube(0, ends[-1])
        errors = sun.archive.stats["err_max"]
    np.testing.assert_array_equal(cube.time, whole.time)
    np.testing.assert_array_equal(cube.t_obs, whole.t_obs)
    np.testing.assert_array_equal(cube.valid, whole.valid)
    np.testing.assert_array_equal(np.isnan(cube.data), np.isnan(whole.data))
    # What the archive tells of its errors is true of frames of either kind.
    found = np.abs(cube.data - whole.data).max(axis=(2, 3))
    np.testing.assert_allclose(errors[whole.valid], found[whole.valid], rtol=1e-6)


@pytest.mark.parametrize("kind", ["wavelet_model"])
def test_added_frames_build_on_those_that_are_there(model: Model, tmp_path: Path) -> None:
    """A film that is continued costs no more than one that was coded at once, by far."""
    for name, first in (("grown", 5), ("whole", 6)):
        api.compress(series(first), tmp_path / name, model=model, block=6)
    api.append(series(6), tmp_path / "grown")
    with open_archive(tmp_path / "grown") as grown, open_archive(tmp_path / "whole") as whole:
        assert grown.blocks == whole.blocks == 1
        assert grown.block_bytes.sum() < 1.2 * whole.block_bytes.sum()


@MODELS
def test_frames_that_stand_alone_have_the_bytes_of_one_run(model: Model, tmp_path: Path) -> None:
    api.compress(series(4), tmp_path / "grown", model=model, block=1)
    api.append(series(9), tmp_path / "grown")
    api.compress(series(9), tmp_path / "whole", model=model, block=1)
    with open_archive(tmp_path / "grown") as grown, open_archive(tmp_path / "whole") as whole:
        assert grown.read_blocks(range(9)) == whole.read_blocks(range(9))


@pytest.mark.parametrize("kind", ["wavelet_model"])
def test_bounds_hold_for_what_is_added(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(4), path, model=model, block=6, max_error="2DN/s,20G")
    assert api.append(series(11), path).max_error == "171A=2DN/s,304A=2DN/s,Bz=20G"
    assert not any(api.evaluate(series(11), path).outside.values())
    with sunzip.open(path) as sun:
        lost = np.abs(sun.read(0, 11, "171A") - series(11).read(0, 11).data[:, :1])
    assert np.nanmax(lost) <= 2


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_a_run_that_was_broken_off_is_resumed_to_the_same_bytes(model: Model, tmp_path: Path) -> None:
    path, other = tmp_path / "sun.lat", tmp_path / "other.lat"
    for each in (path, other):
        api.compress(series(8), each, model=model, block=2)
    before = path.read_bytes()
    broken = source(20)
    broken.broken_row = 15
    with pytest.raises(InputError, match="chunk 15"):
        api.append(join([broken]), path)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="--resume"):
        api.append(series(20), path)
    with pytest.raises(OutputError, match="other input"):
        api.append(series(19), path, resume=True)
    report = api.append(series(20), path, resume=True)
    assert 0 < report.frames_coded < 12
    api.append(series(20), other)
    assert path.read_bytes() == other.read_bytes()
    assert not (tmp_path / "sun.lat.partial").exists()


@pytest.mark.skipif(os.name != "posix", reason="links are POSIX's")
@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_a_link_leads_to_grows_and_the_link_stays(model: Model, tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "sun.lat"
    disk.mkdir()
    real = disk / "2014.lat"
    link.symlink_to("again.lat")
    (tmp_path / "again.lat").symlink_to("disk/2014.lat")
    api.compress(series(8), real, model=model, block=2)
    real.chmod(0o640)
    broken = source(20)
    broken.broken_row = 15
    with pytest.raises(InputError, match="chunk 15"):
        api.append(join([broken]), link)
    assert (disk / "2014.lat.partial").is_dir()
    with pytest.raises(OutputError, match=r"disk/2014\.lat\.partial: an unfinished archive"):
        api.append(series(20), link)
    assert api.append(series(20), link, resume=True).frames == 20
    with open_archive(real) as archive:
        assert archive.frames == 20
    api.compress(series(3), link, model=model, block=2, force=True)
    with open_archive(real) as archive:
        assert archive.frames == 3
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert os.listdir(disk) == ["2014.lat"]


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_a_run_that_was_killed_when_the_new_archive_was_complete_is_resumed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    path, partial = tmp_path / "sun.lat", tmp_path / "sun.lat.partial"
    api.compress(series(8), path, model=model, block=2)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuses)
        with pytest.raises(OutputError, match="is complete"):
            api.append(series(20), path)
    whole = path.read_bytes()
    report = api.append(series(20), path, resume=True)
    assert (report.frames, report.frames_coded) == (20, 0)
    assert path.read_bytes() == whole
    assert not partial.exists()
    broken = source(40)
    broken.broken_row = 35
    with pytest.raises(InputError, match="chunk 35"):
        api.append(join([broken]), path)
    with pytest.raises(OutputError, match="of other content"):
        api.append(series(20), path, resume=True)
    assert partial.exists()
    # Else the next run that has something new would find it.
    report = api.append(series(20), path, force=True)
    assert (report.frames, report.frames_coded) == (20, 0)
    assert path.read_bytes() == whole
    assert not partial.exists()
    partial.mkdir()
    (partial / "zarr.json").write_text("{}")
    with pytest.raises(OutputError, match="not one that can be continued"):
        api.append(series(20), path, force=True)


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_a_broken_run_left_is_dropped_on_demand(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(6), path, model=model, block=1)
    broken = source(14)
    broken.broken_row = 13
    with pytest.raises(InputError, match="chunk 13"):
        api.append(join([broken]), path)
    assert api.append(series(9), path, force=True).frames == 9
    assert verify(path).ok


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_a_source_that_fails_at_once_leaves_nothing(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(8), path, model=model, block=2)
    before, broken = path.read_bytes(), source(10)
    broken.broken_row = 9
    with pytest.raises(InputError, match="chunk 9"):
        api.append(join([broken]), path)
    assert [p.name for p in tmp_path.iterdir()] == ["sun.lat"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_an_archive_that_another_run_replaced_is_not_lost(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(4), path, model=model)
    finish = api._run.ArchiveWriter.finish

    def late(writer: object, embed: object) -> int:
        monkeypatch.setattr(api._run.ArchiveWriter, "finish", finish)
        api.compress(series(5), path.with_name("new.lat"), model=model)
        path.with_name("new.lat").replace(path)
        return finish(writer, embed)  # type: ignore[arg-type]

    monkeypatch.setattr(api._run.ArchiveWriter, "finish", late)
    with pytest.raises(OutputError, match="another run has replaced it"):
        api.append(series(9), path)
    with open_archive(path) as found:
        assert found.frames == 5


@pytest.mark.parametrize("kind", ["tiny_model"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_finished_run_could_not_remove_is_in_nobodys_way(
    model: Model, resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(4), path, model=model)

    def power_cut(place: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_place._LocalPlace, "clear", power_cut)
        with pytest.raises(KeyboardInterrupt):
            api.append(series(8), path)
    assert (tmp_path / "sun.lat.partial").exists()
    assert api.append(series(8), path, resume=resume).frames_coded == 0
    report = api.append(series(11), path, resume=resume)
    assert (report.frames, report.frames_before) == (11, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["sun.lat"]
    assert verify(path).ok


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_nothing_new_leaves_the_archive_alone(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(7), path, model=model)
    before = path.stat()
    report = api.append(series(5), path)
    assert (report.frames, report.frames_before, report.frames_coded) == (7, 7, 0)
    assert path.stat() == before


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_frames_can_only_be_added_after_the_last(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(4, start=START + np.timedelta64(1, "D")), path, model=model)
    # Whether others come after it or not, so that daily jobs go well: what is not added is told of.
    both = [source(3), source(2, start=START + np.timedelta64(2, "D"))]
    for later, frames in ((series(3), 4), (join(both), 6)):
        report = api.append(later, path)
        assert report.frames == frames
        assert report.alignment["odd"]["frame before the archive's last (see --late)"] == 3


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_images_that_came_late_are_told_of(model: Model, tmp_path: Path) -> None:
    """Of a channel that lags behind none is to be lost in silence."""
    path = tmp_path / "sun.lat"
    api.compress(join([source(3, channels=("171A", "304A")), source(1, channels=("Bz",))]), path, model=model)
    for end in (3, 6, 6):
        report = api.append(series(end), path)
        # From frame 3 on, which is empty, all three images of that are lacking.
        empty = len(CHANNELS) * (report.frames_before == 6)
        lacking = {k: n for k, n in report.alignment["odd"].items() if "lack: late, lost" in k}
        assert list(lacking.values()) == [2 + empty]


@MODELS
@pytest.mark.parametrize("block", [1, 3])
def test_late_images_and_frames_are_coded_with_their_shard_and_those_after_it(
    model: Model, block: int, tmp_path: Path
) -> None:
    path, whole, full = tmp_path / "sun.lat", tmp_path / "whole.lat", series(20)
    # Bz ends with frame 7, and frames 13 and 14 are not there yet.
    parts = [source(13, channels=("171A", "304A")), source(8, channels=("Bz",))]
    later = source(3, start=START + 15 * np.timedelta64(12, "m"))
    api.compress(join([*parts, later]), path, model=model, block=block)
    with sunzip.open(path) as sun:
        kept = [sun.archive.block(n) for n in range(6 // block)]
    report = api.append(full, path, late=True)
    assert (report.frames, report.frames_before, report.frames_anew) == (20, 16, 10)
    assert report.frames_coded == 14
    assert not any("late" in what for what in report.alignment["odd"])
    api.compress(full, whole, model=model, block=block)
    with sunzip.open(path) as sun, sunzip.open(whole) as other:
        assert [sun.archive.block(n) for n in range(6 // block)] == kept
        np.testing.assert_array_equal(sun.archive.time, other.archive.time)
        np.testing.assert_array_equal(sun.archive.valid, other.archive.valid)
        np.testing.assert_array_equal(sun[:], other[:])
    assert verify(path).ok
    # What holds no measurement stays away, and is no reason to code anything anew.
    before = path.stat()
    report = api.append(full, path, late=True)
    assert (report.frames_coded, report.frames_anew) == (0, 0)
    assert not any("late" in what for what in report.alignment["odd"])
    assert path.stat() == before


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_came_late_may_change_the_first_shard(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(join([source(7)], start=str(START + np.timedelta64(24, "m"))), path, model=model)
    api.append(series(9), path, late=True)
    with sunzip.open(path) as sun:
        assert (len(sun), sun.time[0]) == (9, START)


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_is_coded_anew_loses_nothing(model: Model, tmp_path: Path) -> None:
    """A source that has late images but no longer all others is refused."""
    path = tmp_path / "sun.lat"
    both = join([source(8, channels=("171A", "304A")), source(2, channels=("Bz",))])
    api.compress(both, path, model=model)
    before = path.read_bytes()
    for lost, src in (
        ("171A of 2014-01-01T00:00", series(8, channels=("Bz",))),
        (
            "304A of 2014-01-01T01:24",
            join([source(8, channels=("171A", "Bz")), source(7, channels=("304A",))]),
        ),
    ):
        with pytest.raises(InputError, match=rf"lacks {lost}.*would lose; name sources that have all since"):
            api.append(src, path, late=True)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["sun.lat"]


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_images_that_hold_no_measurement_any_more_are_not_lost(model: Model, tmp_path: Path) -> None:
    """A source lists them still, so that only reading tells."""
    path = tmp_path / "sun.lat"
    api.compress(
        join([source(14, channels=("171A", "304A")), source(8, channels=("Bz",))]), path, model=model
    )
    before = path.read_bytes()
    late = source(14)
    late.lost = {("304A", 9)}
    for options in ({}, {"resume": True}):
        with pytest.raises(
            InputError, match=r"no measurement in 304A of 2014-01-01T01:48.*has and would lose"
        ):
            api.append(join([late]), path, late=True, **options)  # type: ignore[arg-type]
        assert path.read_bytes() == before
    assert api.append(series(14), path, late=True).frames_anew == 8


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_coding_anew_goes_on_where_it_was_broken_off(model: Model, tmp_path: Path) -> None:
    path, whole = tmp_path / "sun.lat", tmp_path / "whole.lat"
    api.compress(join([source(20, channels=("171A",)), source(8, channels=("Bz",))]), path, model=model)

    def broken_off(p: api.Progress) -> None:
        if p.done >= 12:
            raise KeyboardInterrupt

    src = join([source(20, channels=("171A", "Bz"))])
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        api.append(src, path, late=True, progress=broken_off)
    # Without `late` nothing is new, and neither of the two is what should be removed.
    with pytest.raises(OutputError, match="the options that it was begun with"):
        api.append(src, path, resume=True)
    assert path.read_bytes() == before
    report = api.append(src, path, late=True, resume=True)
    assert report.frames_coded < report.frames_anew == 14
    assert os.listdir(tmp_path) == ["sun.lat"]
    api.compress(src, whole, model=model)
    with sunzip.open(path) as sun, sunzip.open(whole) as other:
        np.testing.assert_array_equal(sun[:], other[:])


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_of_what_may_be_late_no_more_is_read_than_that(model: Model, tmp_path: Path) -> None:
    """Images that never held a measurement are read by every run: the rest of their frames need not be."""
    path, read = tmp_path / "sun.lat", []

    class Seen(Waves):
        def read(self, channel: str, row: int) -> np.ndarray:
            read.append((channel, row))
            return super().read(channel, row)

    api.compress(series(8), path, model=model)
    seen = join([Seen(frames=8, size=SIZE, start=START, channels=CHANNELS, seed=7)])
    assert api.append(seen, path, late=True).frames_coded == 0
    assert sorted(read) == [("171A", 3), ("304A", 3), ("304A", 6), ("Bz", 3)]


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_without_a_grid_a_late_image_may_come_first_in_its_frame(model: Model, tmp_path: Path) -> None:
    """The frame then has another time, but all its images: they are not lost."""
    path, whole = tmp_path / "sun.lat", tmp_path / "whole.lat"
    early, late = START - np.timedelta64(2, "m"), ("304A", "Bz")
    # 171A is two minutes before the others.
    parts = [source(9, channels=late), source(9, channels=("171A",), start=early)]
    some = join([source(9, channels=late), source(4, channels=("171A",), start=early)], cadence=None)
    api.compress(some, path, model=model, block=1)
    report = api.append(join(parts, cadence=None), path, late=True)
    assert (report.frames, report.frames_before, report.frames_anew) == (9, 9, 9)
    api.compress(join(parts, cadence=None), whole, model=model, block=1)
    with open_archive(path) as grown, open_archive(whole) as other:
        np.testing.assert_array_equal(grown.time, other.time)
        np.testing.assert_array_equal(grown.valid, other.valid)
    gone = join([source(8, channels=late), parts[1]], cadence=None)
    api.compress(some, path, model=model, block=1, force=True)
    with pytest.raises(InputError, match="lacks 304A of 2014-01-01T01:35"):
        api.append(gone, path, late=True)


class Moments(Waves):
    """Waves of 171A and 304A at such seconds as are given."""

    def __init__(self, **seconds: list[int]) -> None:
        super().__init__(frames=6, size=SIZE, start=START, channels=("171A", "304A"), seed=7)
        self.seconds = {f"{name[1:]}A": each for name, each in seconds.items()}

    def times(self, channel: str) -> np.ndarray:
        return START + 1000 * np.array(self.seconds[channel], "m8[ms]")

    def read(self, channel: str, row: int) -> np.ndarray:
        return super().read(channel, row + 10)  # the others are whole


@pytest.mark.parametrize("kind", ["tiny_model"])
@pytest.mark.parametrize(("late", "missing"), [(False, "mask"), (True, "mask"), (False, "drop")])
def test_without_a_grid_no_image_is_added_twice(
    model: Model, late: bool, missing: Any, tmp_path: Path
) -> None:
    """What follows may part the archive's last frame, whose last image then begins the next."""
    path = tmp_path / "sun.lat"
    some = join([Moments(_171=[0, 24], _304=[4, 16])], cadence=None, missing=missing)
    more = join([Moments(_171=[0, 24, 36], _304=[4, 16, 28, 40])], cadence=None, missing=missing)
    whole = missing == "drop"
    api.compress(some, path, model=model)
    for _ in range(2):
        report = api.append(more, path, late=late)
        assert report.frames == (3 if whole else 4)
        assert whole or not any("late" in what for what in report.alignment["odd"])
    with open_archive(path) as archive:
        seconds = (archive.t_obs - START).astype(float) / 1000
        valid = archive.valid
    found = [sorted(seconds[valid[:, c], c]) for c in range(2)]
    assert found == [[0, 24, 36], [4, 16, 40] if whole else [4, 16, 28, 40]]
    a = report.alignment
    counted = ("images_used", "images_dropped", "duplicates", "out_of_tolerance", "unusable_times")
    assert sum(a["images_found"].values()) == sum(a[k] for k in (*counted, "not_selected"))


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_without_a_grid_a_frame_that_was_parted_hides_no_late_image(model: Model, tmp_path: Path) -> None:
    """The archive's frame has an image of that channel, but one that now stands in another frame."""
    path = tmp_path / "sun.lat"
    some = join([Moments(_171=[0, 48], _304=[12, 60])], cadence=None)
    more = join([Moments(_171=[0, 48], _304=[3, 12, 60])], cadence=None)
    api.compress(some, path, model=model)
    report = api.append(more, path)
    assert any("late" in what for what in report.alignment["odd"])
    assert api.append(more, path, late=True).images == 5
    assert api.append(more, path, late=True).frames_coded == 0


@pytest.mark.parametrize("kind", ["tiny_model"])
@pytest.mark.parametrize("options", [{"missing": "drop"}, {"every": "24s"}])
def test_an_image_that_the_source_has_is_not_said_to_be_absent(
    model: Model, options: dict[str, Any], tmp_path: Path
) -> None:
    """Late images part frames without a grid, of which one may then be left out."""
    path, store = tmp_path / "sun.lat", tmp_path / "sun.zarr"

    def stored(moments: Moments) -> str:
        shutil.rmtree(store, ignore_errors=True)
        found = join([moments], cadence=None)
        cube = found.read(0, len(found))
        # The keywords are those of the synthetic Sun, at its own times.
        cube = replace(cube, headers=[[{} for _ in row] for row in cube.headers])
        with open_sink(store, "sdoml-v2", channels=found.channels, shape=found.shape) as sink:
            sink.write(cube)
        return str(store)

    align = api.Alignment(cadence=None, **options)
    before = Moments(_171=[12, 48, 108], _304=[84, 93])
    api.compress(stored(before), path, model=model, align=align)
    seconds = [12, 48, 90, 108]
    after = stored(Moments(_171=seconds, _304=[39, 84, 93]))
    with pytest.raises(InputError, match=r"zarr: has 304A of \S+T00:01:(24|33)\S+, .* is now left out;"):
        api.append(after, path, late=True)
    # What a --stop leaves out, or an image that is gone, is another matter.
    with pytest.raises(InputError, match=r"zarr: lacks .*without a --stop before its end"):
        api.append(after, path, late=True, stop="2014-01-01T00:00:52")
    with pytest.raises(InputError, match="zarr: lacks 304A"):
        api.append(stored(Moments(_171=seconds, _304=[39, 84])), path, late=True)


def written(path: Path, first: int, last: int, channels: tuple[str, ...] = ("171A", "304A")) -> Path:
    """Write some of twelve frames as a source."""
    align = api.Alignment(channels=channels)
    path.unlink(missing_ok=True)
    with open_sink(path, "hdf5", channels=channels, shape=(SIZE, SIZE)) as sink:
        sink.write(api.open_series(urls(12), align=align).read(first, last))
    return path


@pytest.mark.parametrize("kind", ["tiny_model"])
@pytest.mark.parametrize(("every", "first"), [(None, 0), ("36min", 1)])
def test_frames_before_the_first_are_late_ones_too(
    model: Model, every: str | None, first: int, tmp_path: Path
) -> None:
    path, src = tmp_path / "sun.lat", tmp_path / "sun.h5"
    align = api.Alignment(every=every)
    api.compress(written(src, 4, 9), path, model=model, align=align)
    report = api.append(written(src, 0, 11), path)
    assert report.alignment["odd"]["frame before the archive's last (see --late)"] == (1 if every else 4)
    api.append(src, path, late=True)
    with open_archive(path) as archive:
        step = np.timedelta64(36 if every else 12, "m")
        begin = np.datetime64("2012-03-01T00:00", "ms") + first * np.timedelta64(12, "m")
        np.testing.assert_array_equal(archive.time, begin + np.arange(4 if every else 11) * step)
        assert archive.coding["align"]["start"] is None


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_is_coded_anew_is_counted_once(model: Model, tmp_path: Path) -> None:
    """Bytes of sources would else grow with each run, and with them the ratio."""
    path, one, two = tmp_path / "sun.lat", tmp_path / "one.h5", tmp_path / "two.h5"
    written(one, 0, 8, ("171A",))
    api.compress([one, written(two, 0, 7, ("304A",))], path, model=model)
    report = api.append([one, written(two, 0, 8, ("304A",))], path, late=True)
    assert report.frames_anew == 2
    stored = api.open_series([one, two]).stored_bytes
    assert stored is not None
    assert report.source_bytes == pytest.approx(stored, rel=0.1)


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_channels_that_a_source_lacks_are_missing_in_what_is_added(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(3), path, model=model, block=2)
    report = api.append(series(5, channels=("304A",)), path)
    others = " ".join(name for name in CHANNELS if name != "304A")
    told = {k: n for k, n in report.alignment["odd"].items() if "added without" in k}
    assert [(k.startswith(f"frame added without {others},"), n) for k, n in told.items()] == [(True, 2)]
    again = api.append(series(5, channels=("304A",)), path)
    assert not any("added without" in k for k in again.alignment["odd"])
    with sunzip.open(path) as sun:
        assert sun.channels == CHANNELS
        assert sun.archive.valid[3:].tolist() == [[False, False, False], [False, True, False]]
        assert np.isnan(sun[4, "171A"]).all()


@pytest.mark.parametrize("kind", ["wavelet_model"])
def test_sums_become_means_where_the_archive_has_them(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(3), path, model=model, quality=90)
    sums = source(6)
    sums.scale = Scale.SUM
    api.append(join([sums]), path)
    with sunzip.open(path) as sun:
        assert sun.scale is Scale.MEAN
        assert np.nanmean(sun[4, "171A"]) == pytest.approx(np.nanmean(sums.read("171A", 4)) / 4, rel=0.1)


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_other_images_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(3), path, model=model)
    with pytest.raises(InputError, match=r"64×64 pixels.*has 171A 304A Bz at 32×32"):
        api.append(join([Synthetic(frames=5, size=64, start=START, channels=CHANNELS)]), path)
    with pytest.raises(InputError, match="has 94A at"):
        api.append(series(5, channels=("94A",)), path)
    with pytest.raises(InputError, match="series in memory"):
        api.append(f"synthetic:frames=5,size={SIZE}", path)
    with pytest.raises(InputError, match="nothing is there to add to"):
        api.append(series(3), tmp_path / "none.lat")


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_damage_is_not_passed_on(model: Model, tmp_path: Path) -> None:
    """The new archive would vouch for what it copied."""
    path = tmp_path / "sun.lat"
    api.compress(series(14), path, model=model, block=2)
    with open_archive(path) as archive:
        places = [archive.extent(number)[0] + 30 for number in (1, 6)]
    data = path.read_bytes()
    for place, frames in zip(places, ("0 to 5", "12 to 13"), strict=True):
        hit = bytearray(data)
        hit[place] ^= 1
        path.write_bytes(hit)
        with pytest.raises(DamagedError, match=f"somewhere in frames {frames}, .*repair it"):
            api.append(series(17), path)
        assert path.read_bytes() == hit
        api.compress(series(14), path, model=model, block=2, force=True)


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_what_repair_could_not_save_is_not_taken_for_a_run_that_is_complete(
    model: Model, tmp_path: Path
) -> None:
    path, saved = tmp_path / "sun.lat", tmp_path / "saved.lat"
    api.compress(series(3), path, model=model, block=1)
    data = bytearray(path.read_bytes())
    with open_archive(path) as archive:
        start, _ = archive.extent(1)
    data[start + 20 : start + 40] = bytes(20)
    path.write_bytes(data)
    assert sunzip.repair(path, saved).images == 3
    saved.replace(path)
    with pytest.raises(OutputError, match="exists; remove it or use --force"):
        api.compress(series(3), path, model=model, block=1, resume=True)
    assert api.append(series(3), path, late=True).images == 9


@pytest.mark.parametrize("kind", ["tiny_model"])
@pytest.mark.parametrize("late", [False, True])
def test_what_no_longer_tells_its_origins_takes_no_frames(model: Model, late: bool, tmp_path: Path) -> None:
    """Its grid is unknown, so that by another one anything may seem to lack."""
    path, saved = tmp_path / "sun.lat", tmp_path / "saved.lat"
    align = api.Alignment(cadence="6min", channels=("171A", "304A"))
    api.compress("synthetic:frames=6,size=32,cadence=6min", path, model=model, align=align)
    data = bytearray(path.read_bytes())
    root = data.index(b'"summary"')
    data[root : root + 40] = bytes(40)
    path.write_bytes(data)
    assert [lost.object for lost in sunzip.repair(path, saved).lost] == ["zarr.json"]
    with pytest.raises(DamagedError, match=r"saved\.lat: does not say.*if the root was lost; nothing can be"):
        api.append("synthetic:frames=9,size=32,cadence=6min", saved, late=late)


@pytest.mark.parametrize("kind", ["other_model"])
def test_the_embedded_model_codes_and_stays(model: Model, nothing_registered: None, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(series(3), path, model=model, embed_model=True)
    api.append(series(5), path)
    with open_archive(path) as archive:
        assert archive.embedded_model() == dict(model.files)
    api.compress(series(3), path, model=model, force=True)
    from sunzip import weights

    weights._REGISTERED.clear()
    with pytest.raises(ModelNotFoundError, match="was coded with model other"):
        api.append(series(5), path)
    assert api.append(series(5), path, model=model).frames == 5


@pytest.mark.parametrize("kind", ["wavelet_model"])
def test_an_archive_need_not_tell_its_quality(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = api._compress._specification

    def untold(*args: Any, **settings: Any) -> ArchiveSpec:
        spec = specification(*args, **settings)
        return replace(spec, codec={k: v for k, v in spec.codec.items() if k != "quality"})

    monkeypatch.setattr(api._compress, "_specification", untold)
    path = tmp_path / "sun.lat"
    quality = api.compress(series(4), path, model=model, block=3).quality
    report = api.append(series(8), path)
    assert (report.frames, report.quality) == (8, quality)


def urls(frames: int) -> str:
    return f"synthetic:frames={frames},size={SIZE},seed=2,cadence=12min"


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_the_archives_own_alignment_goes_on(model: Model, tmp_path: Path) -> None:
    path, whole = tmp_path / "grown.lat", tmp_path / "whole.lat"
    align = api.Alignment(every="36min", channels=("304A", "94A"))
    api.compress(urls(5), path, model=model, align=replace(align, stop="2012-03-01T00:40"))
    api.append(urls(11), path, stop="2012-03-01T01:20")
    report = api.append(urls(11), path)
    assert report.frames_before == 3
    api.compress(urls(11), whole, model=model, align=align)
    with open_archive(path) as grown, open_archive(whole) as other:
        np.testing.assert_array_equal(grown.time, other.time)
        assert grown.coding == other.coding
        # Of each source there is one name, the last.
        assert grown.source["urls"] == [urls(5), urls(11)]
        assert grown.read_blocks(range(4)) == other.read_blocks(range(4))
    assert api.evaluate(urls(11), path).frames == 4


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_frames_stay_whole_where_only_such_were_wanted(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"

    def dropping(frames: int) -> Series:
        return join([source(frames)], missing="drop")

    api.compress(dropping(6), path, model=model)
    # Frame 3, left out for want of measurements, is no frame that the archive lacks.
    assert api.append(dropping(6), path).frames == 5
    report = api.append(dropping(9), path)
    # Nor is frame 6, of which one image is empty.
    assert (report.frames, report.frames_before) == (7, 5)
    odd = report.alignment["odd"]
    assert odd == {"image without a measurement": len(CHANNELS) + 1}
    with open_archive(path) as archive:
        assert archive.valid.all()


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_a_source_that_lacks_channels_adds_no_whole_frames(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    align = api.Alignment(channels=("171A", "304A"), missing="drop")
    api.compress(urls(3), path, model=model, align=align)
    with open_sink(tmp_path / "one.h5", "hdf5", channels=("171A",), shape=(SIZE, SIZE)) as sink:
        sink.write(api.open_series(urls(5), align=replace(align, channels="171A")).read(0, 5))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"one.h5: holds no 304A, and .*sun.lat was made of whole frames"):
        api.append(tmp_path / "one.h5", path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_the_command_says_what_was_added(model: Model, sunzip: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "sun.lat"
    api.compress(urls(3), path, model=model)
    out = sunzip("append", urls(5), path).stdout
    assert "holds 5 frames" in out
    assert "added   2 frames" in out
    assert "outside --start" not in out
    assert "added   nothing" in sunzip("append", urls(5), path).stdout
    error = sunzip("append", urls(5), tmp_path / "none.lat", code=1).stderr
    assert "none.lat: nothing is there" in error


@pytest.mark.parametrize("kind", ["tiny_model"])
def test_no_fewer_frames_than_none_are_added(
    model: Model, sunzip: Callable[..., Result], tmp_path: Path
) -> None:
    """A frame that holds nothing, and is in no source any more, is gone where it is coded anew."""
    path, one, two = tmp_path / "sun.lat", tmp_path / "one.h5", tmp_path / "two.h5"
    first, last = written(one, 0, 3, ("171A",)), written(tmp_path / "rest.h5", 4, 6, ("171A",))
    empty = np.datetime64("2012-03-01T00:36", "ms")
    with open_sink(tmp_path / "none.h5", "hdf5", channels=("171A",), shape=(SIZE, SIZE)) as sink:
        cube = api.open_series(urls(12), align=api.Alignment(channels=("171A",))).read(3, 4)
        assert cube.time[0] == empty
        cube.data[:] = 0
        sink.write(cube)
    align = api.Alignment(channels=("171A", "304A"))
    written(two, 0, 1, ("304A",))
    api.compress([first, tmp_path / "none.h5", last, two], path, model=model, align=align)
    stdout = sunzip("append", first, last, written(two, 0, 3, ("304A",)), path, "--late").stdout
    assert "added       0 frames" in stdout
    assert "holds 5 frames" in stdout
