"""What an archive holds and under which names: the specification, the Zarr metadata, the bytes of chunks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.archive._json import MAX_BYTES, MAX_VALUES, count_values, dump
from sunzip.archive._zip import MANIFEST
from sunzip.bounds import bounds_in
from sunzip.channels import NAMES, canonical, channel
from sunzip.cube import MAX_SIDE, PIXEL_OF_512, Header
from sunzip.errors import DamagedError, InputError, UnsupportedError
from sunzip.frame import MAX_FRAMES
from sunzip.packed import pack, unpack
from sunzip.weights import FILES

FORMAT = 1
MISSING_TIME = np.int64(-(1 << 63))
STATS = ("err_rmse", "err_max", "err_ppe10", "err_r")

#: Per (time, channel): name of the array, dtype, fill value, attributes.
TABLES: dict[str, tuple[str, Any, dict[str, str]]] = {
    "t_obs": (
        "<i8",
        int(MISSING_TIME),
        {
            "long_name": "time of observation, UTC; the least integer where there is no image",
            "units": "milliseconds since 1970-01-01",
            "calendar": "standard",
        },
    ),
    "exptime": ("<f4", "NaN", {"long_name": "exposure time, keyword EXPTIME", "units": "s"}),
    "deg_cor": ("<f4", "NaN", {"long_name": "degradation factor divided out, keyword DEG_COR", "units": "1"}),
    "quality": (
        "<i8",
        int(MISSING_TIME),
        {"long_name": "bits of keyword QUALITY; the least integer where it is absent"},
    ),
    "valid": ("|b1", False, {"long_name": "whether there is an image"}),
    "err_rmse": (
        "<f4",
        "NaN",
        {"long_name": "root mean square error of the decoded image, in unit(channel)"},
    ),
    "err_max": ("<f4", "NaN", {"long_name": "largest absolute error of the decoded image, in unit(channel)"}),
    "err_ppe10": ("<f4", "NaN", {"long_name": "share of pixels decoded to within 10 %", "units": "1"}),
    "err_r": (
        "<f4",
        "NaN",
        {"long_name": "Pearson correlation of decoded and original pixels", "units": "1"},
    ),
}

_ZARR_TYPES = {
    "<i8": "int64",
    "<f4": "float32",
    "<f8": "float64",
    "<u4": "uint32",
    "|b1": "bool",
    "str": "string",
}
_ZSTD = {"name": "zstd", "configuration": {"level": 19, "checksum": True}}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}

_MAX_FRAMES = 1 << 31
_MAX_FRAMES_PER_SHARD = 1 << 16
MAX_TEXT = 1 << 28
_NO_BLOCK = (1 << 64) - 1


@dataclass(frozen=True)
class ArchiveSpec:
    """All that is known of an archive before its first block.

    Attributes
    ----------
    channels
        The C names in canonical order.
    shape
        (Y, X) in pixels.
    time
        (T,) datetime64[ms], UTC, strictly increasing: the nominal time of each frame.
    scale
        ``"mean"`` or ``"sum"``: how AIA pixels were binned.
    frames_per_block, frames_per_shard
        Frames coded together, and stored in one object; the second is a multiple of the first.
    codec
        JSON configuration of the Zarr codec ``sunzip`` that decodes a block.
    model
        ``{"name": str, "sha256": str, "bytes": int}``.
    source, coding
        JSON: where the frames came from, and how they were coded.
    fingerprint
        Text that differs wherever the archive's content would: only a run with the same one may resume.

    Raises
    ------
    InputError
        If sources are so many that no reader would take their names.
    """

    channels: tuple[str, ...]
    shape: tuple[int, int]
    time: npt.NDArray[np.datetime64] = field(repr=False)
    scale: str
    frames_per_block: int
    frames_per_shard: int
    codec: Mapping[str, Any]
    model: Mapping[str, Any]
    source: Mapping[str, Any]
    coding: Mapping[str, Any]
    fingerprint: str

    def __post_init__(self) -> None:
        time = self.time
        if time.ndim != 1 or not len(time) or np.isnat(time).any() or not increases(time):
            raise ValueError("time must be a non-empty, strictly increasing series")
        object.__setattr__(self, "time", time.astype("datetime64[ms]"))
        attributes, where = self.attributes(), "the specification of an archive"
        Grid.read(attributes, where, ValueError)
        # Half of what a reader takes, as the summary comes to it.
        if len(data := dump(attributes)) > MAX_BYTES // 2 or count_values(data) > MAX_VALUES // 2:
            raise InputError(
                f"{where}: its {len(data)} bytes, mostly names of sources, are too many; name folders in "
                "place of their files"
            )

    def attributes(self) -> dict[str, Any]:
        """Return the attribute ``sunzip`` of the root group, as far as it is known before coding."""
        grid = Grid(self.channels, self.shape, len(self.time), self.frames_per_block, self.frames_per_shard)
        return {
            "format": FORMAT,
            "channels": list(self.channels),
            "shape": list(self.shape),
            "scale": str(self.scale),
            "frames": grid.frames,
            "frames_per_block": grid.frames_per_block,
            "blocks": grid.blocks,
            "frames_per_shard": grid.frames_per_shard,
            "shards": grid.shards,
            "codec": dict(self.codec),
            "model": dict(self.model),
            "source": dict(self.source),
            "coding": dict(self.coding),
            "fingerprint": self.fingerprint,
        }


@dataclass(slots=True)
class ShardTable:
    """What is known of each image in a stretch of n frames besides its pixels.

    Attributes
    ----------
    t_obs
        (n, C) datetime64[ms], UTC; NaT where there is no image.
    valid
        (n, C) bool.
    headers
        [n][C] FITS keywords as the source had them; empty where there is no image.
    stats
        For each name of `STATS`, (n, C) float32: the errors measured at encoding; NaN where unknown.
    """

    t_obs: npt.NDArray[np.datetime64]
    valid: npt.NDArray[np.bool_]
    headers: list[list[Header]]
    stats: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Grid:
    """How frames are divided into blocks and blocks into shards."""

    channels: tuple[str, ...]
    shape: tuple[int, int]
    frames: int
    frames_per_block: int
    frames_per_shard: int

    @property
    def blocks(self) -> int:
        """Number of blocks; the last may hold padding frames."""
        return -(-self.frames // self.frames_per_block)

    @property
    def shards(self) -> int:
        """Number of shards; the last may hold fewer blocks."""
        return -(-self.frames // self.frames_per_shard)

    @property
    def blocks_per_shard(self) -> int:
        """Number of blocks in a full shard, and of entries in every shard's index."""
        return self.frames_per_shard // self.frames_per_block

    @property
    def count(self) -> int:
        """Number of objects of an archive except manifest and model."""
        return len(OF_ALL) + self.shards * len(OF_SHARDS)

    @property
    def index_size(self) -> int:
        """Bytes of the index at the end of a shard."""
        return 16 * self.blocks_per_shard + 4

    def frames_of(self, shard: int) -> slice:
        """Return the frames that a shard holds.

        Raises
        ------
        IndexError
            If there is no such shard.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} of {self.shards}")
        start = shard * self.frames_per_shard
        return slice(start, min(start + self.frames_per_shard, self.frames))

    def blocks_of(self, shard: int) -> range:
        """Return the blocks that a shard holds."""
        frames = self.frames_of(shard)
        return range(frames.start // self.frames_per_block, -(-frames.stop // self.frames_per_block))

    def cube_of(self, shard: int) -> str:
        """Return the key of the object that holds the blocks of a shard."""
        return f"cube/c/{shard}/0/0/0"

    def shard_objects(self, shard: int) -> list[str]:
        """Return the keys of the objects that one shard consists of, in the order of writing."""
        return [f"{n}/c/{shard}/0" for n in TABLES] + [
            f"bytes/c/{shard}",
            f"keywords/c/{shard}",
            self.cube_of(shard),  # last: its presence says that the shard is complete
        ]

    def most_of(self, key: str) -> int:
        """Return the most bytes that an object of a shard can have."""
        name = key.partition("/")[0]
        match name:
            case "cube":  # of each block the size is told in 32 bits
                return (self.blocks_per_shard << 32) + self.index_size
            case "keywords":
                return most_packed(None)
            case "bytes":
                return most_packed(4 * self.blocks_per_shard)
        return most_packed(table_size(name, (self.frames_per_shard, len(self.channels))))

    def digests(self, sha256_of: Mapping[str, str]) -> tuple[list[str], str]:
        """Return what the manifest holds: one sha256 per shard, and one for all other objects."""
        shards = []
        rest = {key: value for key, value in sha256_of.items() if key != MANIFEST}
        for shard in range(self.shards):
            keys = self.shard_objects(shard)
            shards.append(digest({key: rest.pop(key) for key in keys if key in rest}))
        return shards, digest(rest)

    def objects(self) -> set[str]:
        """Return the keys of all objects of an archive except manifest and model."""
        keys = set(OF_ALL)
        for shard in range(self.shards):
            keys.update(self.shard_objects(shard))
        return keys

    @classmethod
    def read(cls, attributes: Mapping[str, Any], where: str, error: type[Exception] = DamagedError) -> Grid:
        """Take the grid from the root's attribute ``sunzip``, every number within bounds.

        Raises
        ------
        UnsupportedError
            If the format is newer than this program.
        DamagedError
            Or what `error` names, if a value is absent or impossible; the message starts with `where`.
        """

        def wrong(reason: str) -> Exception:
            return error(f"{where}: {reason}")

        def number(value: object, name: str, most: int) -> int:
            if type(value) is not int or not 1 <= value <= most:
                raise wrong(f"{name} is {value!r:.40}, not a number from 1 to {most}")
            return value

        version = number(attributes.get("format"), "format", 1 << 31)
        if version > FORMAT:
            raise UnsupportedError(newer(where, version))
        names = attributes.get("channels")
        if not isinstance(names, list) or not names or names != [n for n in NAMES if n in names]:
            raise wrong(f"channels are {names!r:.80}")
        shape = attributes.get("shape")
        if not isinstance(shape, list) or len(shape) != 2:
            raise wrong(f"shape is {shape!r:.80}")
        grid = cls(
            canonical(names),
            (
                number(shape[0], "shape", MAX_SIDE),
                number(shape[1], "shape", MAX_SIDE),
            ),
            number(attributes.get("frames"), "frames", _MAX_FRAMES),
            number(attributes.get("frames_per_block"), "frames_per_block", MAX_FRAMES),
            number(attributes.get("frames_per_shard"), "frames_per_shard", _MAX_FRAMES_PER_SHARD),
        )
        if grid.frames_per_shard % grid.frames_per_block:
            raise wrong("frames_per_shard is no multiple of frames_per_block")
        if (attributes.get("blocks"), attributes.get("shards")) != (grid.blocks, grid.shards):
            raise wrong("the numbers of frames, blocks and shards disagree")
        if attributes.get("scale") not in ("mean", "sum"):
            raise wrong(f"scale is {attributes.get('scale')!r:.40}")
        for name in ("codec", "model", "source", "coding"):
            if not isinstance(attributes.get(name), dict):
                raise wrong(f"{name} is absent")
        model = attributes["model"]
        if not isinstance(model.get("name"), str) or not re.fullmatch(
            "[0-9a-f]{64}", str(model.get("sha256"))
        ):
            raise wrong("model has no name or no sha256 in hexadecimal")
        number(model.get("bytes"), "bytes of the model", 1 << 62)
        # Zarr decodes by what the codec says, which takes scale for mean where it is left out.
        codec = {"scale": "mean"} | attributes["codec"]
        for name, own in (
            ("channels", names),
            ("scale", attributes["scale"]),
            ("model", model["sha256"]),
        ):
            if codec.get(name) != own:
                raise wrong(f"{name} of the codec is {codec.get(name)!r:.80}, not the archive's")
        quality = codec.get("quality", 0)
        if type(quality) is not int or not 0 <= quality <= 100:
            raise wrong(f"quality of the codec is {quality!r:.40}, not a number from 0 to 100")
        try:
            bounds_in(codec, names)
        except InputError as reason:
            raise wrong(f"codec: {reason}") from None
        if not isinstance(attributes.get("fingerprint"), str):
            raise wrong("fingerprint is absent")
        return grid


def newer(where: str, version: object) -> str:
    """Say that a format is too new."""
    return f"{where}: format {version} is newer than this sunzip, which reads up to {FORMAT}; update sunzip"


COORDINATES = ("time", "channel", "wavelength", "unit", "x", "y")
#: Arrays of which each shard has a chunk.
OF_SHARDS = (*TABLES, "bytes", "keywords", "cube")
ARRAYS = (*COORDINATES, *OF_SHARDS)

#: Objects of every archive that are of no shard.
OF_ALL = frozenset(
    {
        "zarr.json",
        *(f"{name}/zarr.json" for name in ARRAYS),
        *(f"{name}/c/0" for name in COORDINATES),
    }
)

#: Those of an embedded model, and the most bytes that each may have.
OF_MODEL = {f"model/{name}": most for name, most in FILES.items()}


def _array(
    dtype: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dimensions: Sequence[str],
    fill: Any,
    attributes: Mapping[str, Any],
    codecs: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    if codecs is None:
        special: dict[str, Mapping[str, Any]] = {
            "|b1": {"name": "bytes"},
            "str": {"name": "vlen-utf8", "configuration": {}},
        }
        codecs = [special.get(dtype, _LITTLE), _ZSTD]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": _ZARR_TYPES[dtype],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": list(codecs),
        "dimension_names": list(dimensions),
        "attributes": dict(attributes),
    }


def array_metadata(grid: Grid, attributes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the ``zarr.json`` of every array, all of which follow from the root's attributes."""
    frames, (y, x), c = grid.frames, grid.shape, len(grid.channels)
    arrays = {
        "cube": _array(
            "<f4",
            (frames, c, y, x),
            (grid.frames_per_shard, c, y, x),
            ("time", "channel", "y", "x"),
            "NaN",
            {
                "long_name": "images of the Sun; NaN where there is no measurement",
                "units_of": "unit",
                "cell_methods": f"x: y: {attributes['scale']}",
                "coordinates": " ".join(("wavelength", "unit", *TABLES)),
            },
            [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [grid.frames_per_block, c, y, x],
                        "codecs": [{"name": "sunzip", "configuration": dict(attributes["codec"])}],
                        "index_codecs": [_LITTLE, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
        ),
        "time": _array(
            "<i8",
            (frames,),
            (frames,),
            ("time",),
            0,
            {"standard_name": "time", "units": "milliseconds since 1970-01-01", "calendar": "standard"},
        ),
        "channel": _array("str", (c,), (c,), ("channel",), "", {"long_name": "channel"}),
        "wavelength": _array(
            "<f8",
            (c,),
            (c,),
            ("channel",),
            0.0,
            {"standard_name": "radiation_wavelength", "units": "angstrom"},
        ),
        "unit": _array("str", (c,), (c,), ("channel",), "", {"long_name": "unit of the pixels of a channel"}),
        "bytes": _array(
            "<u4",
            (grid.blocks,),
            (grid.blocks_per_shard,),
            ("block",),
            0,
            {"long_name": f"size of each coded block of {grid.frames_per_block} frames", "units": "byte"},
        ),
        "keywords": _array(
            "str",
            (grid.shards,),
            (1,),
            ("shard",),
            "",
            {"long_name": f"FITS keywords of each {grid.frames_per_shard} frames, columns as JSON"},
        ),
    }
    for name, size, to in (("x", x, "west"), ("y", y, "north")):
        note = {
            "standard_name": f"projection_{name}_angular_coordinate",
            "long_name": f"towards solar {to}, disk centre 0, disk radius 976",
            "units": "arcsec",
        }
        arrays[name] = _array("<f8", (size,), (size,), (name,), 0.0, note)
    for name, (dtype, fill, note) in TABLES.items():
        shape, chunks = (frames, c), (grid.frames_per_shard, c)
        arrays[name] = _array(dtype, shape, chunks, ("time", "channel"), fill, note)
    return arrays


def root_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``zarr.json`` of the root group."""
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"Conventions": "CF-1.11", "sunzip": dict(attributes)},
    }


def coordinates(grid: Grid, time: npt.NDArray[np.datetime64]) -> dict[str, bytes]:
    """Return the single chunk of each coordinate array, not yet compressed.

    x and y are in arcsec for SDOML geometry: 4.8″ at 512 pixels, the centre of the disk between the
    middle pixels.
    """
    known = [channel(n) for n in grid.channels]
    axes = {
        name: (np.arange(n) - (n - 1) / 2) * (PIXEL_OF_512 * 512 / n)
        for name, n in zip("yx", grid.shape, strict=True)
    }
    return {
        "time": time.astype("datetime64[ms]").astype("<i8").tobytes(),
        "channel": texts([c.name for c in known]),
        "wavelength": np.array([c.wavelength for c in known], "<f8").tobytes(),
        "unit": texts([c.unit for c in known]),
        "x": axes["x"].astype("<f8").tobytes(),
        "y": axes["y"].astype("<f8").tobytes(),
    }


def table_values(name: str, table: ShardTable, n: int) -> npt.NDArray[Any]:
    """Return one of `TABLES` for the frames of a shard: (n, C) of its dtype, the last n − len padding."""
    dtype, fill, _ = TABLES[name]
    rows, c = table.valid.shape
    out = np.full((n, c), np.nan if fill == "NaN" else fill, dtype)
    if name == "t_obs":
        out[:rows] = table.t_obs.astype("datetime64[ms]").view(np.int64)
    elif name == "valid":
        out[:rows] = table.valid
    elif name in STATS:
        out[:rows] = table.stats[name]
    else:
        read = _bits if name == "quality" else _real
        for i, row in enumerate(table.headers):
            for j, header in enumerate(row):
                value = read(header.get(name.upper()))
                if value is not None:
                    out[i, j] = value
    return out


def table_size(name: str, shape: tuple[int, int]) -> int:
    """Return the bytes of a chunk of one of `TABLES`."""
    return shape[0] * shape[1] * np.dtype(TABLES[name][0]).itemsize


def read_table(name: str, raw: bytes, shape: tuple[int, int], where: str) -> npt.NDArray[Any]:
    """Read a chunk of one of `TABLES`, decompressed.

    Raises
    ------
    DamagedError
        If truth values are neither 0 nor 1.
    """
    if name == "valid" and raw.strip(b"\0\1"):
        raise DamagedError(f"{where}: truth values other than 0 and 1")
    return np.frombuffer(raw, TABLES[name][0]).reshape(shape)


def increases(time: npt.NDArray[np.datetime64]) -> bool:
    """Whether each time is later than the one before; differences of far ones would overflow."""
    return bool((time[1:] > time[:-1]).all())


def read_time(raw: bytes, where: str) -> npt.NDArray[np.datetime64]:
    """Read the chunk of the array ``time``, decompressed.

    Raises
    ------
    DamagedError
        If times do not increase.
    """
    time = np.frombuffer(raw, "<i8").astype(np.int64).view("datetime64[ms]")
    if np.isnat(time).any() or not increases(time):
        raise DamagedError(f"{where}: times do not increase")
    return time


def _real(value: object) -> float | None:
    # The exact value stays in the keywords; what a float32 cannot hold becomes infinite quietly.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with np.errstate(over="ignore"):
        return float(np.float32(value)) if abs(value) < 1e300 else math.nan


def _bits(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,15}|[0-9]{1,18}", value.strip(), re.A):
        # HMI headers hold it as text, in hexadecimal.
        return int(value, 16 if "x" in value.lower() else 10)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    return None


def texts(values: Sequence[str]) -> bytes:
    """Write the chunk of a string array: Zarr's codec ``vlen-utf8``."""
    coded = [v.encode() for v in values]
    lengths = [len(c).to_bytes(4, "little") for c in coded]
    return len(coded).to_bytes(4, "little") + b"".join(a + b for a, b in zip(lengths, coded, strict=True))


def one_text(chunk: bytes, where: str) -> bytes:
    """Read the only string of such a chunk, still as UTF-8.

    Raises
    ------
    DamagedError
        If it is not such a chunk; the message starts with `where`.
    """
    if len(chunk) < 8 or chunk[:4] != b"\1\0\0\0" or int.from_bytes(chunk[4:8], "little") != len(chunk) - 8:
        raise DamagedError(f"{where}: not a chunk of one string")
    return chunk[8:]


def zstd(data: bytes) -> bytes:
    """Compress; the frame states its content's size and checksum."""
    return pack(data, 19, checksum=True)


def most_packed(size: int | None) -> int:
    """Return the most bytes that so many take as one zstd frame, or that a text does: it never adds more."""
    size = MAX_TEXT if size is None else size
    return size + (size >> 7) + 1024


def unzstd(data: bytes, where: str, size: int | None = None) -> bytes:
    """Decompress one zstd frame (RFC 8878) whose content must have `size` bytes, or at most 256 MiB.

    Raises
    ------
    DamagedError
        If the frame is broken or states another size; nothing was allocated then.
    """
    try:
        return unpack(data, size, most=MAX_TEXT)
    except DamagedError as error:
        raise DamagedError(f"{where}: {error}") from error


def model_sha256(files: Mapping[str, bytes]) -> str | None:
    """Return the identity of an embedded model: sha256 of its configuration and its weights.

    Parameters
    ----------
    files
        By key, those of `OF_MODEL` among them, or else None is returned.
    """
    if not files.keys() >= OF_MODEL.keys():
        return None
    digest = sha256()
    for key in OF_MODEL:
        digest.update(files[key])
    return digest.hexdigest()


def block_sizes(sizes: Sequence[int], entries: int) -> bytes:
    """Return the chunk of the array ``bytes`` of a shard whose blocks have these sizes."""
    padded = np.zeros(entries, "<u4")
    padded[: len(sizes)] = sizes
    return zstd(padded.tobytes())


def shard_index(sizes: Sequence[int], entries: int) -> bytes:
    """Return the index of a shard whose blocks of these sizes lie one after the other from offset 0."""
    index = np.full((entries, 2), _NO_BLOCK, "<u8")
    ends = np.cumsum(np.array(sizes, "<u8"))
    index[: len(sizes), 0] = ends - np.array(sizes, "<u8")
    index[: len(sizes), 1] = sizes
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(4, "little")


def read_shard_index(raw: bytes, blocks: int, size: int, where: str) -> npt.NDArray[np.int64]:
    """Read the index of a shard of `size` bytes with this many blocks.

    Returns
    -------
    ranges
        (blocks, 2) int64: offset and size of each block.

    Raises
    ------
    DamagedError
        If the checksum or any range is wrong; blocks must lie one after the other and fill the shard.
    """
    if crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise DamagedError(f"{where}: the checksum of the shard's index is wrong")
    index = np.frombuffer(raw[:-4], "<u8").reshape(-1, 2)
    ends = np.cumsum(index[:blocks, 1], dtype=object)
    starts = [0, *ends[:-1]]
    if (
        list(index[:blocks, 0]) != starts
        or ends[-1] != size - len(raw)
        or not (index[blocks:] == _NO_BLOCK).all()
        or not index[:blocks, 1].all()
    ):
        raise DamagedError(f"{where}: the shard's index does not fit the shard")
    return index[:blocks].astype(np.int64)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as Zarr's codec ``crc32c`` has it."""
    import google_crc32c

    return int(google_crc32c.value(data))


def digest(sha256_of: Mapping[str, str]) -> str:
    """Return one sha256 for several objects: that of the lines ``<sha256>  <key>``, sorted by key."""
    lines = (f"{sha256_of[key]}  {key}\n" for key in sorted(sha256_of))
    return sha256("".join(lines).encode()).hexdigest()


def parts(sizes: Mapping[str, int], blocks: int) -> dict[str, int]:
    """Add up the sizes of objects, given by key, into what they are.

    Parameters
    ----------
    sizes
        Of all objects but the manifest.
    blocks
        Bytes of the blocks; what else is in shards are their indexes.
    """
    out = {"blocks": blocks, "keywords": 0, "tables": -blocks, "model": 0}
    for key, size in sizes.items():
        name = key.partition("/")[0]
        if not key.endswith("zarr.json"):
            out[name if name in ("keywords", "model") else "tables"] += size
    return out


def first_and_last(time: npt.NDArray[np.datetime64]) -> list[str]:
    """Return the first and the last of the times, as the summary tells them."""
    return [f"{time[0]}Z", f"{time[-1]}Z"]


def to_bytes(tree: Mapping[str, Any]) -> bytes:
    """Write a ``zarr.json``."""
    return dump(tree)
