"""Measure what one frame out of 10,000 costs, from disk and from S3, in an archive and in Blosc stores.

Run as ``python -m benchmarks.random_access``. The stores are of full size, but only some frames are distinct:
these are coded once and repeated, in the archive as blocks, in the Blosc stores as links to their chunks.
The S3 server is moto's on the loopback interface, so that requests and bytes are those of any store, while
their latency has to be added. Into it goes the whole archive, and of the Blosc stores what is read.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import command, keep
from sunzip import weights
from sunzip.api._compress import FRAMES_PER_SHARD
from sunzip.archive import STATS, ArchiveSpec, ArchiveWriter, ShardTable, summary
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import Cube
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.sun import Sun
from tests import s3_server

FRAMES = 10_000
SIDE = 128
#: As in the public SDOML v2 store.
FRAMES_PER_CHUNK = 15
_OPENINGS = 5

Read = Callable[[int], npt.NDArray[np.float32]]


def write_archive(path: Path, cube: Cube, codec: Codec) -> None:
    """Write the archive, the coded blocks of `cube` over and over."""
    distinct = codec.encode(cube.data, cube.channels, cube.scale, frames_per_block=1)
    spec = ArchiveSpec(
        channels=cube.channels,
        shape=(SIDE, SIDE),
        time=np.datetime64("2014-01-01", "ms") + np.arange(FRAMES) * np.timedelta64(12, "m"),
        scale=str(cube.scale),
        frames_per_block=1,
        frames_per_shard=FRAMES_PER_SHARD,
        codec={
            "version": 1,
            "model": codec.model.sha256,
            "channels": list(cube.channels),
            "scale": str(cube.scale),
            "quality": codec.quality,
        },
        model={"name": codec.model.name, "sha256": codec.model.sha256, "bytes": codec.model.nbytes},
        source={},
        coding={"quality": codec.quality},
        fingerprint="benchmark",
    )
    writer = ArchiveWriter.create(path, spec)
    unknown = np.full((FRAMES_PER_SHARD, len(cube.channels)), np.nan, np.float32)
    for shard in range(writer.shards):
        frames = writer.frames_of(shard)
        n = frames.stop - frames.start
        rows = [i % len(cube) for i in range(frames.start, frames.stop)]
        table = ShardTable(
            spec.time[frames, None] + (cube.t_obs - cube.time[:, None])[rows],
            np.ones((n, len(cube.channels)), bool),
            [cube.headers[i] for i in rows],
            dict.fromkeys(STATS, unknown[:n]),
        )
        writer.write_shard(shard, [distinct[i] for i in rows], table)
    writer.finish()


def write_v2(path: Path, cube: Cube) -> None:
    """Write a Zarr format 2 store chunked and compressed as SDOML v2 is, an array a channel."""
    import zarr
    from numcodecs import Blosc

    group = zarr.open_group(path, mode="w", zarr_format=2)
    for i, name in enumerate(cube.channels):
        array = group.create_array(
            name,
            shape=(FRAMES, SIDE, SIDE),
            chunks=(FRAMES_PER_CHUNK, SIDE, SIDE),
            dtype="<f4",
            compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
        )
        array[: len(cube)] = cube.data[:, i]
        distinct = len(cube) // FRAMES_PER_CHUNK
        for chunk in range(distinct, -(-FRAMES // FRAMES_PER_CHUNK)):
            os.link(path / name / f"{chunk % distinct}.0.0", path / name / f"{chunk}.0.0")


def write_v3(path: Path, cube: Cube) -> None:
    """Write a Zarr format 3 array with a chunk a frame, all channels in it, in shards of 15 frames."""
    import zarr
    from zarr.codecs import BloscCodec

    shape = (len(cube.channels), SIDE, SIDE)
    array = zarr.create_array(
        path,
        shape=(FRAMES, *shape),
        chunks=(1, *shape),
        shards=(FRAMES_PER_CHUNK, *shape),
        dtype="float32",
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
    )
    array[: len(cube)] = cube.data
    distinct = len(cube) // FRAMES_PER_CHUNK
    for shard in range(distinct, -(-FRAMES // FRAMES_PER_CHUNK)):
        folder = path / "c" / str(shard) / "0" / "0"
        folder.mkdir(parents=True)
        os.link(path / "c" / str(shard % distinct) / "0" / "0" / "0", folder / "0")


@contextmanager
def open_lat(where: str) -> Iterator[Read]:
    """Open the archive."""
    with Sun(where) as sun:
        yield lambda frame: sun.read(frame, frame + 1)[0]


@contextmanager
def open_v2(where: str) -> Iterator[Read]:
    """Open the store of format 2."""
    import zarr

    group: Any = zarr.open_group(where, mode="r", zarr_format=2)
    arrays = [group[name] for name in NAMES]
    yield lambda frame: np.stack([array[frame] for array in arrays])


@contextmanager
def open_v3(where: str) -> Iterator[Read]:
    """Open the array of format 3."""
    import zarr

    array: Any = zarr.open_array(where, mode="r", zarr_format=3)
    yield lambda frame: array[frame]


def decoding(path: Path, kind: str, codec: Codec, frame: int) -> float:
    """Return the seconds that decoding one frame takes once its bytes are there."""
    from numcodecs import Blosc

    chunk, within = divmod(frame, FRAMES_PER_CHUNK)
    if kind == "lat":
        with Sun(path) as sun:
            blocks = [sun.archive.block(frame)]
        begin = time.perf_counter()
        codec.decode(blocks, NAMES, (SIDE, SIDE), "mean", frames=[0])
        return time.perf_counter() - begin
    if kind == "v2":
        chunks = [(path / name / f"{chunk}.0.0").read_bytes() for name in NAMES]
    else:
        shard = (path / "c" / str(chunk) / "0" / "0" / "0").read_bytes()
        index = np.frombuffer(shard[-16 * FRAMES_PER_CHUNK - 4 : -4], "<u8").reshape(-1, 2)
        start, size = map(int, index[within])
        chunks = [shard[start : start + size]]
    begin = time.perf_counter()
    for data in chunks:
        Blosc().decode(data)
    return time.perf_counter() - begin


def measure(
    opening: Callable[[str], Any],
    where: str,
    frames: list[int],
    decode: Callable[[int], float],
    server: s3_server.Server | None,
) -> dict[str, Any]:
    """Open a store a few times with a first frame, then read frames in an open one.

    What decoding takes is measured after each frame, so that a machine that is busy is so for both.
    """
    cold, cold_seen = [], []
    for frame in frames[:_OPENINGS]:
        begin = time.perf_counter()
        with _counted(server) as seen, opening(where) as read:
            read(frame)
        cold.append(time.perf_counter() - begin)
        cold_seen.append(seen)
    warm, warm_seen, decoded = [], [], []
    with opening(where) as read:
        read(frames[0])
        for frame in frames[1:]:
            begin = time.perf_counter()
            with _counted(server) as seen:
                read(frame)
            warm.append(time.perf_counter() - begin)
            warm_seen.append(seen)
            decoded.append(decode(frame))
    found: dict[str, Any] = {
        "cold_seconds": float(np.median(cold)),
        "warm_seconds": float(np.median(warm)),
        "warm_seconds_p95": float(np.percentile(warm, 95)),
        "decode_seconds": float(np.median(decoded)),
    }
    if server is not None:
        for name, all_seen in (("cold", cold_seen), ("warm", warm_seen)):
            found[f"{name}_requests"] = float(np.mean([len(seen) for seen in all_seen]))
            found[f"{name}_bytes"] = float(np.mean([sum(r.sent for r in seen) for seen in all_seen]))
            busy = [sum(r.seconds for r in seen) for seen in all_seen]
            found[f"{name}_server_seconds"] = float(np.median(busy))
    return found


@contextmanager
def _counted(server: s3_server.Server | None) -> Iterator[list[s3_server.Request]]:
    if server is None:
        yield []
        return
    with server.counted() as seen:
        yield seen


def upload(client: Any, folder: Path, frames: list[int]) -> None:
    """Put the archive into the bucket, and of the other stores the metadata and what the frames need."""
    client.upload_file(str(folder / "cube.lat"), "bucket", "cube.lat")
    chunks = {str(frame // FRAMES_PER_CHUNK) for frame in frames}
    for file in [*(folder / "v2.zarr").rglob("*"), *(folder / "v3.zarr").rglob("*")]:
        key = file.relative_to(folder).as_posix()
        number = file.name.partition(".")[0] if key.startswith("v2") else [*key.split("/"), ""][2]
        if file.is_file() and (not number.isdecimal() or number in chunks):
            client.upload_file(str(file), "bucket", key)


@click.command()
@click.option("--distinct", default=60, show_default=True, help="Frames coded; a multiple of 15 up to 120.")
@click.option("--disk", default=100, show_default=True, type=click.IntRange(2), help="Frames read from disk.")
@click.option(
    "--remote",
    default=30,
    show_default=True,
    type=click.IntRange(2),
    help="Of them, read through the server.",
)
def main(distinct: int, disk: int, remote: int) -> None:
    """Measure all stores."""
    import boto3

    if distinct % FRAMES_PER_CHUNK or not 0 < distinct <= FRAMES_PER_SHARD:
        raise click.UsageError(f"--distinct {distinct}: is no multiple of 15 up to 120")
    model = weights.load()
    codec = Codec(model)
    series = join([Synthetic(frames=distinct, size=SIDE, start="2014-01-01", seed=777002)])
    cube = series.read(0, distinct)
    frames = np.random.default_rng(0).integers(0, FRAMES, disk).tolist()
    stores = (
        ("sunzip archive", "lat", "cube.lat", open_lat),
        ("Blosc, a chunk of 15 frames a channel, as SDOML v2", "v2", "v2.zarr", open_v2),
        ("Blosc, a chunk a frame, sharded", "v3", "v3.zarr", open_v3),
    )
    rows = []
    with tempfile.TemporaryDirectory() as name, s3_server.serve() as server:
        folder = Path(name)
        write_archive(folder / "cube.lat", cube, codec)
        write_v2(folder / "v2.zarr", cube)
        write_v3(folder / "v3.zarr", cube)
        os.environ |= s3_server.ENVIRONMENT | {"AWS_ENDPOINT_URL": server.url}
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        upload(client, folder, frames[:remote])
        with open_lat(str(folder / "cube.lat")) as read:
            read(0)  # the network is loaded before anything is timed
        for title, kind, file, opening in stores:
            path = folder / file
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
            with opening(f"s3://bucket/{file}") as read:
                read(frames[0])  # and so is the client
            decode = functools.partial(decoding, path, kind, codec)
            rows.append(
                {
                    "name": title,
                    "bytes": sum(f.stat().st_size for f in files),
                    "objects": len(files),
                    "disk": measure(opening, str(path), frames, decode, None),
                    "s3": measure(opening, f"s3://bucket/{file}", frames[:remote], decode, server),
                }
            )
            click.echo(f"{title}: {rows[-1]['s3']}")
        parts = summary(folder / "cube.lat")["parts"]
    content = {
        "command": command("random_access"),
        "model": {"name": model.name, "sha256": model.sha256, "bytes": model.nbytes},
        "quality": codec.quality,
        "frames": FRAMES,
        "shape": [len(NAMES), SIDE, SIDE],
        "distinct": distinct,
        "read_from_disk": disk,
        "read_from_s3": remote,
        "parts": parts,
        "rows": rows,
    }
    click.echo(keep("random_access", content))


if __name__ == "__main__":
    main()
