"""Object stores: archives and sources against a real S3 server that counts requests and bytes."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("moto")
pytest.importorskip("s3fs")

import s3_server
from http_server import serving
from s3_server import Request, Server
from test_archive import EMBED, shard_of, spec_of, write

import sunzip
from sunzip.archive import ArchiveSpec, ArchiveWriter, _place, open_archive, summary, verify
from sunzip.cli import program
from sunzip.cube import Cube, Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, OutputError, SunzipError
from sunzip.frame import Block
from sunzip.sinks import open_sink
from sunzip.sources import open_source
from sunzip.sources.series import join
from sunzip.times import format_tai
from sunzip.weights import Model

URL = "s3://bucket/sun.lat"
CHANNELS = ("171A", "193A", "Bz")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server; all clients of this module ask it."""
    import fsspec

    with s3_server.serve() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in (s3_server.ENVIRONMENT | {"AWS_ENDPOINT_URL": running.url}).items():
            patch.setenv(name, value)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        kind = fsspec.get_filesystem_class("s3")
        kind.clear_instance_cache()
        yield running
        kind.clear_instance_cache()


@pytest.fixture
def s3(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and a client that did not take part in what is tested."""
    import boto3

    # As small for these archives as the true one is for large ones.
    monkeypatch.setattr(_place, "_TAIL", 1 << 15)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    client.delete_bucket_policy(Bucket="bucket")
    for key in keys(client):
        client.delete_object(Bucket="bucket", Key=key)
    client.delete_bucket(Bucket="bucket")


@contextmanager
def elsewhere(**environment: str | None) -> Iterator[None]:
    """Have new clients find another environment."""
    import fsspec

    kind = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value) if value else patch.delenv(name)
        kind.clear_instance_cache()
        try:
            yield
        finally:
            kind.clear_instance_cache()


def keys(client: Any) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
    return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def content(client: Any, key: str = "sun.lat") -> bytes:
    found: bytes = client.get_object(Bucket="bucket", Key=key)["Body"].read()
    return found


def sent(seen: list[Request]) -> int:
    return sum(r.sent for r in seen)


def large(frames: int = 90, seed: int = 0) -> tuple[ArchiveSpec, list[bytes]]:
    """A specification, and blocks that no compressor makes smaller, so that they do not fit into the tail."""
    spec = spec_of(frames, per_block=1, per_shard=30)
    rng = np.random.default_rng(seed)
    blocks = []
    for frame in range(frames):
        block = Block.unpack(shard_of(spec, slice(frame, frame + 1))[0][0])
        noise = rng.bytes(3000 + int(rng.integers(1000)))
        payloads = tuple(noise if mask else b"" for mask in block.masks)
        model = bytes.fromhex(spec.model["sha256"])[:4]
        blocks.append(Block(model, spec.shape, 3, block.masks, payloads, (b"",)).pack())
    return spec, blocks


def write_large(target: str | Path, seed: int = 0, **options: bool) -> list[bytes]:
    spec, blocks = large(seed=seed)
    writer = ArchiveWriter.create(target, spec, **options)
    for shard in range(writer.shards):
        part = writer.frames_of(shard)
        writer.write_shard(shard, blocks[part], shard_of(spec, part)[1])
    writer.finish()
    return blocks


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A large archive on disk, and its blocks."""
    path = tmp_path_factory.mktemp("local") / "large.lat"
    return path, write_large(path)


@pytest.fixture
def uploaded(s3: Any, local: tuple[Path, list[bytes]]) -> list[bytes]:
    """The same at `URL`; returns its blocks."""
    s3.upload_file(str(local[0]), "bucket", "sun.lat")
    return local[1]


# --- reading -----------------------------------------------------------------------------------------------


def test_a_frame_costs_its_block_and_the_index_of_its_shard(server: Server, uploaded: list[bytes]) -> None:
    with server.counted() as seen:
        archive = open_archive(URL)
        assert len(archive.time) == 90
    assert [r.method for r in seen] == ["HEAD", "GET"]
    assert sent(seen) == _place._TAIL
    with server.counted() as seen:
        assert archive.block(7) == uploaded[7]
    assert len(seen) == 2
    assert sent(seen) == len(uploaded[7]) + 16 * 30 + 4
    with server.counted() as seen:
        assert archive.block(8) == uploaded[8]
    assert [r.sent for r in seen] == [len(uploaded[8])]


def test_neighbours_share_a_request(server: Server, uploaded: list[bytes]) -> None:
    archive = open_archive(URL)
    archive.block(0)
    with server.counted() as seen:
        assert archive.read_blocks(range(3, 23)) == uploaded[3:23]
    assert [r.sent for r in seen] == [sum(map(len, uploaded[3:23]))]
    with server.counted() as seen:
        assert archive.read_blocks([65, 5, 35, 5]) == [uploaded[i] for i in (65, 5, 35, 5)]
    assert len(seen) == 4, "three blocks and an index: that of the last shard lies in the tail"
    with server.counted() as seen:
        assert archive.read_blocks(range(90)) == uploaded
    assert len(seen) == 1


def test_tables_take_a_request_each_at_most(
    server: Server, uploaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_place, "_TAIL", 1 << 13)
    archive = open_archive(URL)
    for read in (lambda: archive.t_obs, lambda: archive.valid, lambda: archive.block_bytes):
        with server.counted() as seen:
            read()
        assert len(seen) <= 1, "the chunks of a table are neighbours"
    assert archive.block_bytes.tolist() == [len(block) for block in uploaded]


def test_a_directory_longer_than_the_tail_takes_one_more_request(
    server: Server, uploaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_place, "_TAIL", 1000)
    with server.counted() as seen:
        archive = open_archive(URL)
    assert len(seen) == 3
    assert archive.block(89) == uploaded[89]


def test_looking_at_an_archive_takes_two_requests(server: Server, uploaded: list[bytes]) -> None:
    with server.counted() as seen:
        told = summary(URL)
    assert len(seen) == 2
    assert told["bytes"] == sum(told["parts"].values())


def test_verify_reads_everything_in_large_pieces(
    server: Server, s3: Any, uploaded: list[bytes], local: tuple[Path, list[bytes]]
) -> None:
    with server.counted() as seen:
        report = verify(URL)
    assert (report.problems, report.blocks) == ([], 90)
    size = local[0].stat().st_size
    assert len(seen) < 12
    assert size <= sent(seen) - _place._TAIL <= 2 * size
    data = bytearray(content(s3))
    data[data.index(uploaded[50]) + 50] ^= 1
    s3.put_object(Bucket="bucket", Key="sun.lat", Body=bytes(data))
    assert [str(p) for p in verify(URL).problems] == [
        "cube/c/1/0/0/0: block 50: its checksum does not match its bytes (frame 50, 2014-01-01T10:00:00.000Z)"
    ]


def test_an_open_archive_is_shared_by_threads_forked_and_pickled(uploaded: list[bytes]) -> None:
    archive = open_archive(URL)
    numbers = list(range(0, 90, 7))
    expected = [uploaded[n] for n in numbers]
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(30)
                same = [archive.block(n) for n in numbers] == expected
            finally:
                os._exit(0 if same else 1)
        children.append(pid)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(archive.block, numbers)) == expected
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert [archive.block(n) for n in numbers] == expected, "the children closed nothing of their parent's"
    assert pickle.loads(pickle.dumps(archive)).block(3) == uploaded[3]


def test_zarr_sees_the_same_as_on_disk(uploaded: list[bytes], local: tuple[Path, list[bytes]]) -> None:
    zarr = pytest.importorskip("zarr")
    from zarr.abc.store import SuffixByteRequest
    from zarr.core.buffer import default_buffer_prototype

    with open_archive(URL) as there, open_archive(local[0]) as here:
        group = zarr.open_group(there.store(), mode="r")
        np.testing.assert_array_equal(group["valid"][:], here.valid)
        assert there.store() != here.store()
        ask = ("cube/c/2/0/0/0", default_buffer_prototype(), SuffixByteRequest(100))
        found = [asyncio.run(archive.store().get(*ask)).to_bytes() for archive in (there, here)]
        assert found[0] == found[1]


def test_an_archive_replaced_while_it_is_open_is_not_mixed_up(s3: Any, uploaded: list[bytes]) -> None:
    archive = open_archive(URL)
    assert archive.block(0) == uploaded[0]
    write_large(URL, seed=1, force=True)
    for number in range(1, 70, 2):  # the last blocks lie in the tail, which was read when it was opened
        with pytest.raises(DamagedError):
            Block.unpack(archive.block(number))
    s3.put_object(Bucket="bucket", Key="sun.lat", Body=b"short")
    with pytest.raises(DamagedError, match=r"sun\.lat: was replaced since it was opened; open it again"):
        archive.block(10)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/none.lat", "s3://bucket/none.lat: nothing is there; check the path"),
        ("s3://no-bucket/a.lat", "s3://no-bucket/a.lat: the bucket does not exist; check its name"),
        ("s3://bucket", "s3://bucket: is a folder, not a finished archive"),
        ("s3://bucket/text.lat", "s3://bucket/text.lat: not a sunzip archive"),
        ("foo://bucket/a.lat", "foo://bucket/a.lat: cannot be opened: Protocol not known: foo"),
        ("memory://none.lat", "memory://none.lat: nothing is there"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(s3: Any, url: str, words: str) -> None:
    s3.put_object(Bucket="bucket", Key="text.lat", Body=b"I am a text about the Sun.\n" * 100)
    for call in (open_archive, summary, verify):
        with pytest.raises(InputError) as e:
            call(url)
        assert str(e.value).startswith(words)
        assert "\n" not in str(e.value)


def test_a_server_that_knows_no_ranges_is_called_so(
    local: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local[0].parent)
    words = "does not give parts of files; fetch the file first"
    with serving(SimpleHTTPRequestHandler) as url, pytest.raises(InputError, match=words):
        open_archive(f"{url}/large.lat")


def test_of_an_answer_that_is_longer_than_what_was_asked_for_the_rest_is_not_read() -> None:
    """It was read to its end into memory, which this one has not."""
    sent: list[int] = []

    class Endless(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", "30000")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-29999/30000")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(OSError):
                while sum(sent) < 2**28:
                    self.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
                    sent.append(2**20)
            self.close_connection = True

    words = "does not give parts of files; fetch the file first"
    with serving(Endless) as url, pytest.raises(InputError, match=words):
        open_archive(f"{url}/a.lat")
    assert sum(sent) < 2**26


@pytest.mark.parametrize("cache", ["simplecache", "filecache"])
def test_what_lies_behind_a_cache_is_asked_for_its_size(
    local: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    class Closed(SimpleHTTPRequestHandler):
        def list_directory(self, path: Any) -> None:
            self.send_error(403)

    monkeypatch.chdir(local[0].parent)
    with serving(Closed) as url, open_archive(f"{cache}::{url}/large.lat") as archive:
        assert archive.read_blocks([3, 80]) == [local[1][3], local[1][80]]


def test_what_is_denied_is_called_so(s3: Any, uploaded: list[bytes]) -> None:
    archive = open_archive(URL)
    s3.put_bucket_policy(
        Bucket="bucket",
        Policy='{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", '
        '"Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"}]}',
    )
    with pytest.raises(InputError, match=r"sun\.lat: cannot be read: access is denied .*--anon"):
        archive.block(0)


def test_what_is_out_of_reach_is_called_so(s3: Any) -> None:
    with elsewhere(AWS_ENDPOINT_URL="http://127.0.0.1:9"):
        words = "Could not connect.*check the network"
        with pytest.raises(InputError, match=rf"sun\.lat: cannot be read: {words}"):
            open_archive(URL)
        with pytest.raises(OutputError, match=rf"sun\.lat: cannot be written: {words}"):
            write(URL)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("301 Moved", "PermanentRedirect", "the bucket is in another region (Moved"),
        (
            "400 Bad Request",
            "ExpiredToken",
            "the store refuses (Bad Request); check that the credentials have",
        ),
        ("501 Not Implemented", "NotImplemented", "the server cannot do it now (Not Implemented); try again"),
    ],
)
def test_what_a_store_answers_is_told(
    server: Server, s3: Any, monkeypatch: pytest.MonkeyPatch, status: str, code: str, words: str
) -> None:
    def refuse(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/xml"), ("x-amz-bucket-region", "eu-west-1")])
        body = f"<Error><Code>{code}</Code></Error>".encode()
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    with monkeypatch.context() as m:
        m.setattr(server, "_app", refuse)
        with pytest.raises(InputError) as e:
            open_archive(URL)
    assert str(e.value).startswith(f"{URL}: cannot be read: {words}")


def test_without_credentials_public_data_are_read(s3: Any, uploaded: list[bytes]) -> None:
    with elsewhere(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_SESSION_TOKEN=None):
        with pytest.raises(InputError, match=r"Unable to locate credentials; .*--anon"):
            open_archive(URL)
        with pytest.raises(OutputError, match="Unable to locate credentials") as refused:
            write(URL)
        assert "anon" not in str(refused.value)
        with pytest.raises(InputError, match="access is denied"):
            open_archive(URL, anon=True)
        s3.put_object_acl(Bucket="bucket", Key="sun.lat", ACL="public-read")
        with open_archive(URL, anon=True) as archive:
            assert pickle.loads(pickle.dumps(archive)).block(0) == uploaded[0]


# --- writing -----------------------------------------------------------------------------------------------


def test_what_is_written_is_what_a_disk_gets(
    s3: Any, tmp_path: Path, local: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = write(tmp_path / "sun.lat", embed=EMBED)
    assert write(URL, embed=EMBED) == size
    assert content(s3) == (tmp_path / "sun.lat").read_bytes()
    # Several batches and several parts of an upload, which have 5 MiB at least.
    monkeypatch.setattr(_place, "_BATCH_BYTES", 100_000)
    write_large(URL, force=True)
    assert content(s3) == local[0].read_bytes()
    assert keys(s3) == ["sun.lat"]


def test_an_upload_of_several_parts_is_whole(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_place, "_PART", 5 << 20)
    weights = np.random.default_rng(0).bytes(12 << 20)
    from hashlib import sha256

    model = {"name": "fake", "sha256": sha256(b"{}" + weights).hexdigest(), "bytes": len(weights)}
    write(URL, spec_of(model=model), {"config.json": b"{}", "model.safetensors": weights})
    with open_archive(URL) as archive:
        assert archive.embedded_model() == {"config.json": b"{}", "model.safetensors": weights}


def test_a_killed_run_is_continued_by_others(s3: Any, local: tuple[Path, list[bytes]]) -> None:
    spec, blocks = large()
    writer = ArchiveWriter.create(URL, spec)

    def shard(writer: ArchiveWriter, number: int) -> None:
        part = writer.frames_of(number)
        writer.write_shard(number, blocks[part], shard_of(spec, part)[1])

    shard(writer, 1)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            # Dies in the middle of a shard: all is there but for what is written last.
            mine = pickle.loads(pickle.dumps(writer))
            put = mine._place.put
            mine._place.put = lambda objects: put(objects) if len(objects) > 1 else os.kill(os.getpid(), 9)
            shard(mine, 2)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    with pytest.raises(InputError, match=r"sun\.lat: nothing is there.*unfinished, continue with --resume"):
        open_archive(URL)
    with pytest.raises(OutputError, match="continue it with --resume or begin again with --force"):
        ArchiveWriter.create(URL, spec)
    again = ArchiveWriter.create(URL, spec, resume=True)
    assert again.left() == [0, 2]
    assert [again.done(s) for s in range(3)] == [False, True, False]
    with pytest.raises(OutputError, match="2 of 3 shards are not written; use --resume"):
        again.finish()
    for number in again.left():
        shard(again, number)
    again.finish()
    assert content(s3) == local[0].read_bytes()
    assert keys(s3) == ["sun.lat"]


def test_nothing_is_overwritten_unasked(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="sun.lat", Body=b"precious")
    with pytest.raises(OutputError, match=r"sun\.lat: exists; remove it or use --force"):
        write(URL)
    s3.put_object(Bucket="bucket", Key="a.lat.partial/thesis.tex", Body=b"precious")
    for options in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(OutputError, match="not of sunzip"):
            write("s3://bucket/a.lat", **options)
    writer = ArchiveWriter.create(URL, spec_of(), force=True)
    assert content(s3) == b"precious"
    writer.abort()
    assert keys(s3) == ["a.lat.partial/thesis.tex", "sun.lat"]
    write(URL, force=True)
    assert verify(URL).ok


def test_two_runs_do_not_mix_their_shards(s3: Any) -> None:
    specs = spec_of(), spec_of(fingerprint="other")
    first = ArchiveWriter.create(URL, specs[0])
    first.write_shard(0, *shard_of(specs[0], first.frames_of(0)))
    second = ArchiveWriter.create(URL, specs[1], force=True)
    for late in (first, pickle.loads(pickle.dumps(first))):
        with pytest.raises(OutputError, match=r"sun\.lat\.partial: another run has begun it anew"):
            late.write_shard(1, *shard_of(specs[0], first.frames_of(1)))
    assert second.left() == [0, 1]
    for number in second.left():
        second.write_shard(number, *shard_of(specs[1], second.frames_of(number)))
    with pytest.raises(OutputError, match="another run has begun it anew"):
        first.finish()
    second.finish()
    with open_archive(URL) as archive:
        assert archive.fingerprint == "other"


def test_a_folder_that_another_run_removes_meanwhile_is_called_so(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one content may both come to pack it, and the faster one removes what the other reads."""
    spec = spec_of()
    first = ArchiveWriter.create(URL, spec)
    for number in range(first.shards):
        first.write_shard(number, *shard_of(spec, first.frames_of(number)))
    second = ArchiveWriter.create(URL, spec, resume=True)
    packing = second._place.packing

    @contextmanager
    def slowly(size: int) -> Iterator[Any]:
        with packing(size) as file:
            first.finish()
            yield file

    monkeypatch.setattr(second._place, "packing", slowly)
    with pytest.raises(OutputError, match=r"sun\.lat\.partial: objects are gone, as if another run"):
        second.finish()
    assert keys(s3) == ["sun.lat"]
    assert verify(URL).ok


def test_an_upload_that_fails_leaves_neither_file_nor_parts(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    writer = ArchiveWriter.create(URL, spec)
    for number in range(writer.shards):
        writer.write_shard(number, *shard_of(spec, writer.frames_of(number)))
    with monkeypatch.context() as m:
        m.setattr("sunzip.archive._zip.Packer.close", lambda *_: 1 / 0)
        with pytest.raises(OutputError, match=r"sun\.lat: cannot be written"):
            writer.finish()
    assert "sun.lat" not in keys(s3)
    assert s3.list_multipart_uploads(Bucket="bucket").get("Uploads", []) == []
    writer.finish()
    assert verify(URL).ok


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-bucket/a.lat", "the bucket does not exist"),
        ("s3://bucket/", "is a folder; name an object in it"),
        ("zip://a.lat::s3://bucket/a.zip", "cannot be written into other files"),
        ("https://127.0.0.1:9/a.lat", "cannot be written over HTTP; write to disk or to an object store"),
        ("foo://bucket/a.lat", "Protocol not known"),
    ],
)
def test_where_nothing_can_be_written_is_said_in_one_line(s3: Any, url: str, words: str) -> None:
    with pytest.raises(OutputError) as e:
        write(url)
    assert str(e.value).startswith(f"{url}: ")
    assert words in str(e.value)
    assert "\n" not in str(e.value)


# --- sources and whole jobs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, frames_of: Callable[..., np.ndarray]) -> Path:
    """Frames in every layout: 20 in two chunks of SDOML v2, three of them in the others."""
    folder = tmp_path_factory.mktemp("stores")
    time = np.datetime64("2014-01-01T00:00", "ms") + np.arange(20) * np.timedelta64(12, "m")
    heads = [
        [{"T_OBS": f"{t}Z", "WAVELNTH": w, "EXPTIME": 2.0} for w in (171, 193)]
        + [{"T_OBS": format_tai(np.array([t]))[0], "WAVELNTH": 6173}]
        for t in time
    ]
    data = frames_of(20, 3, 64, 64)
    t_obs = np.repeat(time[:, None], 3, axis=1)
    for name, layout in (("v2.zarr", "sdoml-v2"), ("v1", "sdoml-v1"), ("fits", "fits"), ("cube.h5", "hdf5")):
        n = 20 if layout == "sdoml-v2" else 3
        scale = Scale.SUM if layout == "sdoml-v1" else Scale.MEAN
        cube = Cube(data[:n], CHANNELS, time[:n], t_obs[:n], np.ones((n, 3), bool), heads[:n], scale)
        with open_sink(folder / name, layout, channels=CHANNELS, shape=(64, 64), scale=scale) as sink:
            sink.write(cube)
    return folder


def upload(client: Any, path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "bucket", file.relative_to(path.parent).as_posix())


@pytest.mark.parametrize("name", ["v2.zarr", "v1", "fits", "cube.h5"])
def test_sources_are_read_from_s3(s3: Any, stores: Path, name: str) -> None:
    upload(s3, stores / name)
    there, here = (join([open_source(f"{root}/{name}")]).read(1, 3) for root in ("s3://bucket", stores))
    np.testing.assert_array_equal(there.data, here.data)
    assert there.headers == here.headers


def test_an_empty_object_is_called_so(s3: Any, stores: Path) -> None:
    upload(s3, stores / "v2.zarr")
    source = open_source("s3://bucket/v2.zarr")
    s3.put_object(Bucket="bucket", Key="v2.zarr/2014/171A/0.0.0", Body=b"")
    with pytest.raises(InputError, match=r"171A/0\.0\.0: chunk cannot be decoded \(it is empty\)"):
        source.read("171A", 0)


def test_a_file_that_the_store_does_not_give_is_not_passed_over(
    server: Server, s3: Any, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, stores / "fits")
    app = server._app

    def refuse(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "HEAD" or "T001200" not in environ["PATH_INFO"]:
            return app(environ, start_response)
        start_response("501 Not Implemented", [("Content-Type", "application/xml")])
        return [b"<Error><Code>NotImplemented</Code></Error>"]

    with monkeypatch.context() as m:
        m.setattr(server, "_app", refuse)
        with pytest.raises(InputError, match=r"T001200\.fits: cannot be read: the server cannot do it now"):
            open_source("s3://bucket/fits")


@pytest.mark.parametrize("name", ["v2.zarr", "v1", "fits", "cube.h5", "fits/aia_0171_20140101T000000.fits"])
def test_sources_are_read_from_a_zip_in_s3(s3: Any, stores: Path, tmp_path: Path, name: str) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", stores)
    s3.upload_file(packed, "bucket", "packed.zip")
    roots = f"zip://{name}::s3://bucket/packed.zip", f"{stores}/{name}"
    there, here = (join([open_source(root)]).read(0, 1) for root in roots)
    np.testing.assert_array_equal(there.data, here.data)
    assert there.headers == here.headers


def test_a_source_is_read_by_a_signed_url(s3: Any, stores: Path) -> None:
    s3.upload_file(str(stores / "cube.h5"), "bucket", "cube.h5")
    url = s3.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "cube.h5"})
    assert "cube.h5?" in url
    series = join([open_source(url)])
    np.testing.assert_array_equal(
        series.read(0, 1).data, join([open_source(str(stores / "cube.h5"))]).read(0, 1).data
    )
    assert "…" in series.urls[0], "a signature opens the file to whoever reads the archive made from it"


def test_an_open_source_may_be_forked(s3: Any, stores: Path) -> None:
    upload(s3, stores / "v2.zarr")
    source = open_source("s3://bucket/v2.zarr")
    expected = open_source(str(stores / "v2.zarr")).read("171A", 3)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            same = np.array_equal(source.read("171A", 3), expected)
        finally:
            os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(source.read("171A", 3), expected)


def test_a_frame_of_a_source_costs_its_chunks(server: Server, s3: Any, stores: Path) -> None:
    upload(s3, stores / "v2.zarr")
    series = join([open_source("s3://bucket/v2.zarr")])
    with server.counted() as seen:
        series.read(16, 17)
    fetched = sorted(r.path for r in seen if not r.path.endswith(".zattrs"))
    assert fetched == [f"/bucket/v2.zarr/2014/{c}/1.0.0" for c in ("171A", "193A", "Bz")]
    assert len(seen) <= 6, "and the keywords of each channel, once"
    with server.counted() as seen:
        series.read(17, 18)
    assert not seen, "it lies in the same chunks"


def test_the_main_job_from_s3_to_s3(
    s3: Any, stores: Path, tmp_path: Path, tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sunzip.api._compress.FRAMES_PER_SHARD", 5)
    upload(s3, stores / "v2.zarr")
    source, align = "s3://bucket/v2.zarr", sunzip.Alignment(stop="2014-01-01T02:24")

    def broken(progress: sunzip.api.Progress) -> None:
        if progress.done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sunzip.compress(source, URL, model=tiny_model, align=align, progress=broken)
    assert "sun.lat" not in keys(s3)
    report = sunzip.compress(source, URL, model=tiny_model, align=align, embed_model=True, resume=True)
    assert (report.path, report.frames, report.archive_bytes) == (URL, 12, len(content(s3)))
    assert not [key for key in keys(s3) if ".partial" in key]
    sunzip.compress(source, tmp_path / "sun.lat", model=tiny_model, align=align, embed_model=True)
    assert content(s3) == (tmp_path / "sun.lat").read_bytes()
    assert verify(URL).ok
    with sunzip.open(URL) as there, sunzip.open(tmp_path / "sun.lat") as here:
        np.testing.assert_array_equal(there[2:11:3, "171A"], here[2:11:3, "171A"])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).latents[3], here.latents[3])
    there, here = (sunzip.evaluate(source, path) for path in (URL, tmp_path / "sun.lat"))
    assert there.metrics == here.metrics
    assert there.ratio == here.ratio
    done = sunzip.decompress(URL, tmp_path / "back.h5")
    assert done.frames == 12


def test_commands_take_urls(s3: Any, stores: Path, tmp_path: Path, tiny_model: Model) -> None:
    upload(s3, stores / "v2.zarr")
    shutil.copytree(stores / "v2.zarr", tmp_path / "v2.zarr")
    from sunzip.weights import write as write_model

    write_model(tiny_model, tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(program, words)
        assert done.exit_code == code, done.output
        return done.output

    job = ("compress", "s3://bucket/v2.zarr", URL, "--stop", "2014-01-01T00:36", *model)
    assert f"{URL} holds 3 frames" in run(*job)
    assert f"{URL}: exists; remove it, choose another name or use --force" in run(*job, code=1)
    run(*job, "--force")
    assert "is the source itself" in run("compress", URL, URL, *model, code=1)
    s3.put_object(Bucket="bucket", Key="thesis.tex", Body=b"precious")
    precious = ("compress", "s3://bucket/v2.zarr", "s3://bucket/thesis.tex", "--force", *model)
    assert "--force replaces only what is named *.lat" in run(*precious, code=1)
    assert content(s3, "thesis.tex") == b"precious"
    s3.put_object(Bucket="bucket", Key="latitude.lat", Body=b"precious")
    assert "is no archive of sunzip" in run(*precious[:2], "s3://bucket/latitude.lat", *precious[3:], code=1)
    assert content(s3, "latitude.lat") == b"precious"
    s3.put_object_acl(Bucket="bucket", Key="sun.lat", ACL="public-read")
    assert "3 of 64×64" in run("info", URL, "--anon")
    assert "is whole" in run("verify", URL)
    run("show", URL, str(tmp_path / "a.png"), "--source", "s3://bucket/v2.zarr", *model)
    assert "3 frames" in run("decompress", URL, str(tmp_path / "out.zarr"), *model)
    assert "only archives are written to URLs" in run("decompress", URL, "s3://bucket/b.h5", code=1)
    assert "in 3 frames" in run("evaluate", "s3://bucket/v2.zarr", URL, *model)
    s3.put_object(Bucket="bucket", Key="cut.lat", Body=content(s3)[:-10])
    assert "truncated, damaged" in run("verify", "s3://bucket/cut.lat", code=3)


def test_xarray_opens_urls(s3: Any, stores: Path, tmp_path: Path, tiny_model: Model) -> None:
    xr = pytest.importorskip("xarray")
    pytest.importorskip("sunzip.xarray")
    sunzip.compress(
        str(stores / "v2.zarr"),
        tmp_path / "a.lat",
        model=tiny_model,
        align=sunzip.Alignment(stop="2014-01-01T01:00"),
    )
    s3.upload_file(str(tmp_path / "a.lat"), "bucket", "sun.lat")
    with (
        xr.open_dataset(URL, engine="sunzip") as there,
        xr.open_dataset(tmp_path / "a.lat", engine="sunzip") as here,
    ):
        xr.testing.assert_equal(there.isel(time=[1, 3]).load(), here.isel(time=[1, 3]).load())


# --- models ----------------------------------------------------------------------------------------------


def test_models_are_added_from_folders_and_archives(
    s3: Any, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUNZIP_MODELS", str(tmp_path / "models"))
    for name, data in tiny_model.files.items():
        s3.put_object(Bucket="bucket", Key=f"models/tiny/{name}", Body=data)
    assert sunzip.add_model("s3://bucket/models/tiny", sha256=tiny_model.sha256).new
    sunzip.remove_model("tiny")
    sunzip.compress("synthetic:frames=1,size=32", URL, model=tiny_model, embed_model=True)
    assert sunzip.add_model(URL).sha256 == tiny_model.sha256
    s3.delete_object(Bucket="bucket", Key="models/tiny/model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"no model there \(model\.safetensors is missing\)"):
        sunzip.add_model("s3://bucket/models/tiny")
    with pytest.raises(SunzipError, match=r"the bucket does not exist|no model there"):
        sunzip.add_model("s3://nowhere/tiny")
