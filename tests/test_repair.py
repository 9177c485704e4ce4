"""Repair: whatever was done to an archive, what is saved of it is right, and what is lost is said to be."""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_archive import EMBED, MODEL, member, objects_of, pack, spec_of, write

from sunzip.archive import RepairReport, _place, _salvage, open_archive, repair, verify
from sunzip.archive._flip import flipped_bit
from sunzip.errors import DamagedError, InputError, OutputError, UnsupportedError
from sunzip.weights import Model

GOLDEN = Path(__file__).parent / "golden"


class Files:
    """An archive, and what is made of it."""

    def __init__(self, folder: Path, embed: dict | None = EMBED) -> None:
        self.whole, self.bad, self.copy = folder / "whole.lat", folder / "bad.lat", folder / "copy.lat"
        self.out = folder / "out.lat"
        write(self.whole, embed=embed)
        self.data = self.whole.read_bytes()

    def harm(self, start: int, data: bytes, path: Path | None = None) -> None:
        """Write a copy with other bytes from an offset on."""
        changed = bytearray(self.data)
        changed[start : start + len(data)] = data[: len(changed) - start]
        (path or self.bad).write_bytes(changed)

    def spoil(self, *names: str, at: int = 0, size: int = 12) -> None:
        """Spoil objects beyond what one flipped bit does."""
        data = bytearray(self.data)
        for name in names:
            start, end = member(self.whole, name)
            for i in range(start + at, min(start + at + size, end)):
                data[i] ^= 0x5A
        self.bad.write_bytes(data)

    def repair(self, copies: tuple[Path, ...] = ()) -> RepairReport:
        return repair(self.bad, self.out, copies=copies, force=True)

    def check(self, report: RepairReport) -> bool:
        """Hold the result against the original; return whether it is the same."""
        assert verify(self.out).problems == []
        gone = {p.object.partition("/")[0] for p in report.lost}
        with open_archive(self.whole) as a, open_archive(self.out) as b:
            b._check_metadata()
            b.summary()
            np.testing.assert_array_equal(a.time, b.time)
            lost = a.valid & ~b.valid
            assert not (b.valid & ~a.valid).any()
            assert report.images in (-1, lost.sum())
            assert lost.any() == ("cube" in gone)
            for i, c in np.argwhere(b.valid).tolist():
                n = i // a.frames_per_block
                assert b.block(n) == a.block(n)
                assert gone & {"keywords", "t_obs"} or b.headers(i)[c] == a.headers(i)[c]
            for name in ("t_obs", "exptime", "deg_cor", "quality", *a.stats):
                before, after = a.rows(name, 0, a.frames), b.rows(name, 0, b.frames)
                if name not in gone:
                    np.testing.assert_array_equal(after[b.valid], before[b.valid])
                none = after[~b.valid]
                assert (np.isnat if name == "t_obs" else lambda v: v != v)(none).all() or name == "quality"
            assert not any(
                h for i in range(b.frames) for h, v in zip(b.headers(i), b.valid[i], strict=True) if not v
            )
        same = self.out.read_bytes() == self.data
        assert same or not report.same
        assert report.ok or not same
        return same


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("repair"))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_crc_tells_which_bit_was_flipped(data: bytes, draw: st.DataObject) -> None:
    at, bit = draw.draw(st.integers(0, len(data) - 1)), draw.draw(st.integers(0, 7))
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    assert flipped_bit(zlib.crc32(data) ^ zlib.crc32(changed), len(data)) == (at, 1 << bit)


def test_no_bit_is_told_where_several_were_flipped() -> None:
    assert flipped_bit(0, 1 << 20) is None
    start = time.monotonic()
    assert flipped_bit(zlib.crc32(b"a") ^ zlib.crc32(b"b"), 1 << 24) is None
    assert time.monotonic() - start < 5


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_one_flipped_bit_anywhere_costs_nothing(files: Files, draw: st.DataObject) -> None:
    at, bit = draw.draw(st.integers(0, len(files.data) - 1)), draw.draw(st.integers(0, 7))
    files.harm(at, bytes([files.data[at] ^ 1 << bit]))
    report = files.repair()
    assert report.ok
    assert files.check(report)


def test_one_flipped_bit_anywhere_in_the_directory_costs_nothing(files: Files) -> None:
    start = files.data.index(b"PK\1\2")
    for at in range(start, len(files.data), 41):
        files.harm(at, bytes([files.data[at] ^ 1 << at % 8]))
        assert files.check(files.repair()), at


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_what_is_saved_of_any_damage_is_right(files: Files, draw: st.DataObject) -> None:
    noise = draw.draw(st.binary(min_size=2, max_size=600))
    files.harm(draw.draw(st.integers(0, len(files.data) - 2)), noise)
    with suppress(DamagedError):  # the root or the times
        files.check(files.repair())


def test_of_every_cut_the_rest_is_saved_with_a_copy(files: Files) -> None:
    start, _ = member(files.whole, "cube/c/0/0/0/0")
    files.harm(start + 30, bytes(8), files.copy)
    for length in range(start, len(files.data), 173):
        files.bad.write_bytes(files.data[:length])
        for copies in ((), (files.copy,)):
            try:
                report = files.repair(copies)
            except DamagedError:
                assert not copies
            else:
                assert files.check(report) or (length < start + 60 and copies)


def test_without_its_end_an_archive_is_whole_again(files: Files) -> None:
    _, end = member(files.whole, "zarr.json")
    for length in (end, len(files.data) - 1):
        files.bad.write_bytes(files.data[:length])
        report = files.repair()
        assert report.problems[0].object == "directory"
        assert report.ok
        assert files.check(report)


def test_neither_its_beginning_nor_its_end_need_be_there(files: Files, tmp_path: Path) -> None:
    """Downloads in pieces lack any of them."""
    data = bytearray(files.data)
    data[:100] = bytes(100)
    data[-200:] = bytes(200)
    files.bad.write_bytes(data)
    with pytest.raises(InputError, match="not a sunzip archive"):
        verify(files.bad)
    report = files.repair()
    assert report.ok
    assert files.check(report)
    files.bad.write_bytes(bytes(5000))
    for none in (files.bad, tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=r"not a sunzip archive|directory|no such file"):
            repair(none, files.out, force=True)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_two_copies_damaged_apart_make_the_original(files: Files, draw: st.DataObject) -> None:
    """Bytes near each other may be of one block or table, of which neither copy then has a whole one."""
    apart = 2000
    first = draw.draw(st.integers(0, len(files.data) - 1))
    second = (first + draw.draw(st.integers(apart, len(files.data) - apart))) % len(files.data)
    files.harm(first, draw.draw(st.binary(min_size=1, max_size=40)))
    files.harm(second, draw.draw(st.binary(min_size=1, max_size=40)), files.copy)
    report = files.repair((files.copy,))
    assert report.ok
    assert files.check(report)


def test_blocks_of_one_shard_come_from_several_copies(files: Files) -> None:
    start, _ = member(files.whole, "cube/c/0/0/0/0")
    with open_archive(files.whole) as a:
        size = len(a.block(0))
    files.harm(start + 25, b"\xff\xff\xff\xff")
    files.harm(start + size + 25, b"\xff\xff\xff\xff", files.copy)
    report = files.repair((files.copy,))
    assert files.check(report)
    assert report.same
    assert [t.blocks for t in report.taken] == [1, 1]


def test_frames_of_a_lost_block_are_missing(files: Files) -> None:
    files.spoil("cube/c/0/0/0/0", at=20, size=9)
    report = files.repair()
    assert not files.check(report)
    assert [str(p) for p in report.lost] == [
        "cube: images are lost, and marked as missing "
        "(frames 0 to 1, 2014-01-01T00:00:00.000Z to 2014-01-01T00:12:00.000Z)"
    ]
    assert (report.ok, report.images) == (False, 4)
    with open_archive(files.out) as b:
        assert b.valid.any(axis=1).tolist() == [False] * 2 + [True] * 5
        assert b.summary()["images"] == dict(zip(b.channels, b.valid.sum(axis=0).tolist(), strict=True))
        assert b.embedded_model() == EMBED


@pytest.mark.parametrize(
    "name", ["bytes/c/0", "valid/c/1/0", "exptime/c/0/0", "quality/c/1/0", "x/c/0", "cube/zarr.json"]
)
def test_what_follows_from_other_objects_is_made_anew(files: Files, name: str) -> None:
    files.spoil(name)
    report = files.repair()
    assert report.made == [name]
    assert report.ok
    assert files.check(report)


def test_a_shard_without_an_index_is_read_block_by_block(files: Files) -> None:
    start, end = member(files.whole, "cube/c/0/0/0/0")
    for also in ((), ("bytes/c/0",)):
        files.spoil("cube/c/0/0/0/0", at=end - start - 30)
        data = files.bad.read_bytes()
        files.spoil(*also)
        harmed = bytearray(files.bad.read_bytes())
        harmed[start:end] = data[start:end]
        files.bad.write_bytes(harmed)
        assert files.check(files.repair())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("keywords/c/0", "FITS keywords"),
        ("t_obs/c/0/0", "times of observation"),
        ("err_r/c/1/0", "error statistics"),
    ],
)
def test_a_lost_table_costs_no_image(files: Files, name: str, what: str) -> None:
    files.spoil(name, at=8)
    report = files.repair()
    assert not files.check(report)
    assert [p.object for p in report.lost] == [name]
    assert report.lost[0].what == f"the {what} are lost"
    assert report.images == 0
    with open_archive(files.out) as b:
        assert b.exptime[0, 0] == 2
        if name == "t_obs/c/0/0":
            assert b.headers(0)[0] == {"EXPTIME": 2.0, "DEG_COR": 0.5, "QUALITY": 1 << 30}


def test_a_lost_root_is_told_by_the_images_if_their_model_is_known(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.spoil("zarr.json", at=20)
    with pytest.raises(DamagedError, match=r"its root is lost, and the model that it names, .*; name a copy"):
        files.repair()

    class Known:
        name, sha256, nbytes = "fake", MODEL, 60

    monkeypatch.setattr(_salvage, "load_model", lambda _: Known)
    report = files.repair()
    assert [p.object for p in report.lost] == ["zarr.json"]
    assert not files.check(report)
    with open_archive(files.out) as b:
        assert (b.model["name"], b.source) == ("fake", {})
    files.spoil("zarr.json", "cube/zarr.json", at=20)
    with pytest.raises(DamagedError, match="its root is lost, which tells"):
        files.repair()


def test_what_all_hangs_on_is_asked_of_a_copy(files: Files) -> None:
    files.spoil("time/c/0")
    files.out.unlink(missing_ok=True)
    with pytest.raises(DamagedError, match=r"bad\.lat: cannot be repaired, as the times .* name a copy"):
        files.repair()
    assert not files.out.exists()
    assert not os.path.lexists(f"{files.out}.partial")
    files.copy.write_bytes(files.data[:-700])
    assert files.check(files.repair((files.copy,)))


def test_a_lost_model_is_taken_from_this_machine(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.spoil("model/model.safetensors")
    report = files.repair()
    assert [p.object for p in report.lost] == ["model/"]
    with open_archive(files.out) as b:
        assert b.embedded_model() is None

    class Known:
        files = EMBED

    monkeypatch.setattr(_salvage, "load_model", lambda _: Known)
    assert files.check(files.repair())


def test_a_whole_archive_is_left_alone(files: Files, tmp_path: Path) -> None:
    report = repair(files.whole, tmp_path / "out.lat")
    assert (report.out, report.ok, report.problems) == (None, True, [])
    assert list(tmp_path.iterdir()) == []


def test_only_copies_of_the_same_archive_are_taken_from(files: Files, tmp_path: Path) -> None:
    files.spoil("cube/c/0/0/0/0", at=20)
    write(tmp_path / "a.lat", spec_of(9))
    for data in ((tmp_path / "a.lat").read_bytes(), (tmp_path / "a.lat").read_bytes()[:9000]):
        (tmp_path / "a.lat").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.lat: is not a copy of .*bad\.lat"):
            files.repair((tmp_path / "a.lat",))


def test_what_was_appended_is_not_lost_to_an_older_archive(files: Files, tmp_path: Path) -> None:
    """Of that one all objects of shards are the same, and what tells of more frames may be damaged."""
    write(tmp_path / "older.lat", spec_of(4))
    longer = Files(tmp_path)
    longer.spoil("bytes/zarr.json", size=20)
    end, _ = member(longer.whole, "cube/zarr.json")
    longer.bad.write_bytes(longer.bad.read_bytes()[: end - 100])
    with pytest.raises(InputError, match=r"older\.lat: is not a copy of .*bad\.lat"):
        longer.repair((tmp_path / "older.lat",))
    longer.harm(end, bytes(12), longer.copy)
    assert longer.check(longer.repair((longer.copy,)))


def test_nothing_else_is_written_to(files: Files, tmp_path: Path) -> None:
    files.spoil("cube/c/0/0/0/0", at=20)
    before = files.bad.read_bytes()
    (tmp_path / "link.lat").symlink_to(files.bad)
    for out in (files.bad, tmp_path / "link.lat"):
        with pytest.raises(OutputError, match="is the damaged archive itself"):
            repair(files.bad, out, force=True)
    out = tmp_path / "out.lat"
    out.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        repair(files.bad, out)
    assert out.read_bytes() == b"precious"
    out.unlink()
    (tmp_path / "out.lat.partial" / "cube").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"out\.lat\.partial: is in the way"):
        repair(files.bad, out)
    assert (tmp_path / "out.lat.partial" / "cube").exists()
    assert files.bad.read_bytes() == before


def test_archives_behind_urls_are_repaired(files: Files) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/damaged/bad.lat", files.data[:-900])
    report = repair("memory://damaged/bad.lat", "memory://damaged/out.lat")
    assert report.same
    assert fs.cat("/damaged/out.lat") == files.data
    assert fs.glob("/damaged/*.partial") == []
    fs.rm("/damaged", recursive=True)


# --- archives of strangers -------------------------------------------------------------------------------


def test_keywords_that_would_fill_the_memory_are_given_up(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_salvage, "_MOST_KEYWORDS", 5)
    files.spoil("cube/c/0/0/0/0", at=20, size=9)
    report = files.repair()
    files.check(report)
    assert {p.object for p in report.lost} == {"cube", "keywords/c/0"}


def test_objects_that_were_exchanged_are_not_passed_off_as_whole(files: Files, tmp_path: Path) -> None:
    write(tmp_path / "other.lat", spec_of(time=spec_of().time + np.timedelta64(1, "ms")), EMBED)
    objects, other = objects_of(files.whole), objects_of(tmp_path / "other.lat")
    manifest = json.loads(objects["manifest.json"])
    pack(files.bad, objects | {"t_obs/c/1/0": other["t_obs/c/1/0"]}, manifest)
    report = files.repair()
    assert verify(files.out).ok
    assert not report.ok
    with open_archive(files.out) as b:
        assert b.valid.any(axis=1).tolist() == [True] * 4 + [False] * 3


def test_newer_formats_are_refused(files: Files) -> None:
    pack(files.bad, objects_of(files.whole), {"format": 2})
    with pytest.raises(UnsupportedError, match="format 2 is newer"):
        files.repair()


def test_files_full_of_headers_are_searched_once(tmp_path: Path) -> None:
    (tmp_path / "a.lat").write_bytes(b"PK\3\4" * (1 << 16))
    start = time.monotonic()
    with pytest.raises(DamagedError, match="cannot be repaired"):
        repair(tmp_path / "a.lat", tmp_path / "b.lat")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.glob("*.lat")))
def test_old_archives_come_back_byte_for_byte(tmp_path: Path, name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    (tmp_path / "a.lat").write_bytes(data[:-200])
    assert repair(tmp_path / "a.lat", tmp_path / "b.lat").ok
    assert (tmp_path / "b.lat").read_bytes() == data


@pytest.mark.parametrize("beside", ["", "02"])
def test_a_table_that_a_flipped_bit_calls_by_the_name_of_another_is_not_taken_for_it(
    beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a directory and a manifest its whole bytes alone would speak for it."""
    monkeypatch.setattr(_salvage, "load_model", lambda _: Model("fake", {}, MODEL, EMBED))
    many = Files(tmp_path)
    write(many.whole, spec_of(16), force=True)
    data = bytearray(many.whole.read_bytes())
    many.data = bytes(data)
    for shard in beside:
        data[data.index(f"t_obs/c/{shard}/0".encode()) - 30] ^= 0x20
    # The fourth is lost, and the second is called so.
    for name in ("t_obs/c/3/0", "valid/c/3/0"):
        data[data.index(name.encode()) - 30] ^= 0x20
        at = data.index(name.replace("3", "1").encode())
        data[at + name.index("3")] ^= 2
    start, _ = member(many.whole, "zarr.json")
    many.bad.write_bytes(data[: start - 50])
    report = many.repair()
    many.check(report)
    assert {p.object for p in report.lost} == {"zarr.json", *(f"t_obs/c/{n}/0" for n in "13" + beside)}
    with open_archive(many.whole) as a, open_archive(many.out) as b:
        np.testing.assert_array_equal(a.valid, b.valid)
        for first in (4, 12):
            assert np.isnat(b.rows("t_obs", first, first + 4)).all()


def test_arrays_of_later_programs_are_kept(files: Files) -> None:
    pack(files.bad, objects_of(files.whole) | {"zz/c/0": b"later", "aa/c/0": b"sooner"})
    data = files.bad.read_bytes()
    files.bad.write_bytes(data[:-1] + b"0")
    files.repair()
    found = objects_of(files.out)
    assert (found["zz/c/0"], found["aa/c/0"]) == (b"later", b"sooner")
    with open_archive(files.out) as b:
        b.summary()


def test_a_model_of_which_not_even_a_name_is_left_is_missed(files: Files) -> None:
    data = bytearray(files.data[:-100])
    for name in EMBED:
        start, end = member(files.whole, f"model/{name}")
        data[start - 30 : end] = bytes(end - start + 30)
    files.bad.write_bytes(data)
    report = files.repair()
    assert verify(files.out).ok
    assert [p.object for p in report.lost] == ["model/"]


@pytest.mark.parametrize("some", [True, False])
def test_what_a_disk_cannot_read_any_more_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: bool
) -> None:
    """Whether the disk gives what lies before that, or nothing of what was asked for."""
    files = Files(tmp_path)
    files.bad.write_bytes(files.data)
    start, _ = member(files.whole, "cube/c/0/0/0/0")
    at, read = start + 30, _place._read_at

    def fail(fd: int, wanted: int, begin: int) -> bytes:
        if os.path.samestat(os.fstat(fd), files.bad.stat()) and begin < at + 9 and at < begin + wanted:
            wanted = at // 64 * 64 - begin
            if not some or wanted <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, wanted, begin)

    with monkeypatch.context() as patch:
        patch.setattr(_place, "_PAGE", 64)
        patch.setattr(_place, "_read_at", fail)
        told = {p.object: p for p in verify(files.bad).problems}
        assert told.keys() == {"file", "cube/c/0/0/0/0"}
        assert told["file"].what == "the disk does not give 1 of its pages"
        assert told["cube/c/0/0/0/0"].frames is not None
        with pytest.raises(InputError, match="Input/output error"), open_archive(files.bad) as archive:
            archive.block(0)
        files.copy.write_bytes(files.data)
        assert files.repair((files.copy,)).same
        report = files.repair()
    files.check(report)
    assert report.images > 0
    assert {p.object for p in report.problems} == told.keys()
