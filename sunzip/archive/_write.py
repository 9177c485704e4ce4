"""Writing an archive: a folder while it grows, so that nothing done is lost, then one file, packed once."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from sunzip.archive import _layout as layout
from sunzip.archive._json import dump, load
from sunzip.archive._keywords import encode
from sunzip.archive._layout import ArchiveSpec, Grid, ShardTable
from sunzip.archive._zip import COMMENT, MANIFEST, Packer, is_name
from sunzip.errors import DamagedError, OutputError, UnsupportedError

_PACK = ".pack"


class ArchiveWriter:
    """An archive that is being written into the folder ``<path>.partial``.

    Each shard is written once, by any thread or process: shards share no object. Left without `finish` or
    `abort`, by an error or by losing power, the folder stays, and `create` with ``resume=True`` continues it.

    Attributes
    ----------
    path
        Where the finished archive will be.
    spec
        What it will hold.
    shards
        Number of shards to write.
    """

    def __init__(self, path: str, spec: ArchiveSpec) -> None:
        # Called by `create`, and again where a worker process unpickles the writer.
        self.path = path
        self.spec = spec
        self._grid = Grid.read(spec.attributes(), path)
        self._partial = f"{path}.partial"
        self._force = False

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], spec: ArchiveSpec, *, force: bool = False, resume: bool = False
    ) -> ArchiveWriter:
        """Begin an archive, or continue one.

        Parameters
        ----------
        path
            Where the finished archive will be; nothing is written there before `finish`.
        spec
            What it will hold.
        force
            Replace a file at `path`, and begin again if there is an unfinished archive.
        resume
            Continue an unfinished archive if there is one. It keeps the specification it was begun with.

        Raises
        ------
        OutputError
            If the target exists, cannot be written, or is unfinished and of other content.
        """
        path = os.fspath(path)
        writer = cls(path, spec)
        writer._force = force
        partial = writer._partial
        if os.path.isdir(path):
            raise OutputError(f"{path}: is a directory; name a file")
        writer._refuse_existing()
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            raise OutputError(f"{path}: the folder {parent} does not exist; create it first")
        with _os_errors(path):
            try:
                os.mkdir(partial)
            except FileExistsError:
                if writer._continue(resume, force):
                    return writer
                shutil.rmtree(partial)
                os.mkdir(partial)
            for name, tree in layout.array_metadata(writer._grid, spec.attributes()).items():
                writer._put(f"{name}/zarr.json", layout.to_bytes(tree))
            for name, chunk in layout.coordinates(writer._grid, spec.time).items():
                writer._put(f"{name}/c/0", layout.zstd(chunk))
            # Last: its presence says that the folder can be continued.
            writer._put("zarr.json", layout.to_bytes(layout.root_metadata(spec.attributes())))
        return writer

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the folder as it is: finished, or to be continued."""

    @property
    def shards(self) -> int:
        """Number of shards to write."""
        return self._grid.shards

    def frames_of(self, shard: int) -> slice:
        """Return the frames that a shard holds."""
        return self._grid.frames_of(shard)

    def done(self, shard: int) -> bool:
        """Whether a shard was written completely."""
        self._grid.frames_of(shard)
        try:
            self._index(shard)
        except (DamagedError, OSError):
            return False
        return all(os.path.exists(self._file(key)) for key in self._grid.shard_objects(shard))

    def write_shard(self, shard: int, blocks: Sequence[bytes], table: ShardTable) -> None:
        """Store the blocks of one shard and what is known of their images.

        Parameters
        ----------
        shard
            Its number; others may be written at the same time.
        blocks
            The coded blocks in order, none empty. In the archive's last block the frames after the end
            are coded as frames without images.
        table
            For the frames of this shard.

        Raises
        ------
        OutputError
            If the target cannot be written.
        InputError
            If a keyword cannot be stored.
        """
        grid = self._grid
        frames = grid.frames_of(shard)
        expected = (frames.stop - frames.start, len(grid.channels))
        arrays = (table.t_obs, table.valid, *table.stats.values())
        if any(a.shape != expected for a in arrays) or tuple(sorted(table.stats)) != tuple(
            sorted(layout.STATS)
        ):
            raise ValueError(f"a table of shard {shard} must hold {layout.STATS} for {expected} images")
        if len(table.headers) != expected[0] or any(len(row) != expected[1] for row in table.headers):
            raise ValueError(f"shard {shard} needs {expected} headers")
        if len(blocks) != len(grid.blocks_of(shard)) or not all(blocks):
            raise ValueError(f"shard {shard} has {len(grid.blocks_of(shard))} blocks, none of them empty")
        values = {n: layout.table_values(n, table, grid.frames_per_shard) for n in layout.TABLES}
        chunks = {n: layout.zstd(v.tobytes()) for n, v in values.items()}
        sizes = [len(b) for b in blocks]
        padded = np.zeros(grid.blocks_per_shard, "<u4")
        padded[: len(sizes)] = sizes
        chunks["bytes"] = layout.zstd(padded.tobytes())
        text = encode(grid.channels, table.headers, values["t_obs"][: expected[0]])
        chunks["keywords"] = layout.zstd(layout.texts([text.decode()]))
        chunks["cube"] = b"".join(blocks) + layout.shard_index(sizes, grid.blocks_per_shard)
        with _os_errors(self.path):
            for key in grid.shard_objects(shard):
                self._put(key, chunks[key.partition("/")[0]])

    def finish(self, embed: Mapping[str, bytes] | None = None) -> int:
        """Pack the archive, put it in place and remove the folder.

        Parameters
        ----------
        embed
            Files of the model to store in the archive, by name; ``config.json`` and ``model.safetensors``
            must be those that the specification's sha256 names.

        Returns
        -------
        size
            Bytes of the archive.

        Raises
        ------
        OutputError
            If shards are missing, the target has come to exist meanwhile, or it cannot be written.
        """
        left = [s for s in range(self.shards) if not self.done(s)]
        if left:
            raise OutputError(
                f"{self.path}: {len(left)} of {self.shards} shards are not written; use --resume"
            )
        model = {f"model/{name}": data for name, data in sorted((embed or {}).items())}
        if not all(is_name(key) for key in model):
            raise ValueError(f"names of model files are {sorted(embed or {})}")
        if model and model_sha256(model) != self.spec.model["sha256"]:
            raise ValueError("the embedded model is not the one that the specification names")
        self._refuse_existing()
        pack = os.path.join(self._partial, _PACK)
        with _os_errors(self.path):
            try:
                with open(pack, "wb") as f:
                    size = self._pack(f, model)
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(pack, self.path)
            except BaseException:
                # On a full disk it would be in the way of what the user does next.
                with contextlib.suppress(OSError):
                    os.unlink(pack)
                raise
            _sync_folder(os.path.dirname(os.path.abspath(self.path)))
            shutil.rmtree(self._partial)
        return size

    def abort(self) -> None:
        """Give the archive up: remove the folder."""
        with _os_errors(self.path):
            shutil.rmtree(self._partial)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.path) and not self._force:
            raise OutputError(f"{self.path}: exists; remove it or use --force")

    def _continue(self, resume: bool, force: bool) -> bool:
        """Whether the folder that exists is to be continued; False if it is to be replaced."""
        where = self._partial
        if not os.path.isdir(where) or os.path.islink(where):
            raise OutputError(f"{where}: is in the way; remove it")
        root = os.path.join(where, "zarr.json")
        if not os.path.exists(root):
            # Nothing of worth is in a folder that was never begun, but it may not be ours.
            if not set(os.listdir(where)) <= set(layout.ARRAYS):
                raise OutputError(f"{where}: is in the way and not of sunzip; remove it")
            return False
        try:
            with open(root, "rb") as f:
                attributes: Any = load(f.read(), root)["attributes"]["sunzip"]
            grid = Grid.read(attributes, root)
        except (DamagedError, UnsupportedError, KeyError, TypeError) as e:
            raise OutputError(f"{where}: is in the way and not one that can be continued; remove it") from e
        if not resume:
            if force:
                return False
            raise OutputError(
                f"{where}: an unfinished archive; continue it with --resume or begin again with --force"
            )
        mine = self.spec.attributes()
        same = ("fingerprint", "codec", "model", "scale")
        if grid != self._grid or any(attributes[k] != mine[k] for k in same) or not self._same_time():
            raise OutputError(
                f"{where}: was begun from other input or with other settings; begin again with --force"
            )
        self.spec = replace(self.spec, source=attributes["source"], coding=attributes["coding"])
        return True

    def _same_time(self) -> bool:
        try:
            with open(self._file("time/c/0"), "rb") as f:
                return f.read() == layout.zstd(layout.coordinates(self._grid, self.spec.time)["time"])
        except FileNotFoundError:
            return False

    def _file(self, key: str) -> str:
        return os.path.join(self._partial, *key.split("/"))

    def _put(self, key: str, data: bytes) -> None:
        """Write an object so that at any moment it is there whole or not at all."""
        file = self._file(key)
        folder = os.path.dirname(file)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _index(self, shard: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        key = self._grid.shard_objects(shard)[-1]
        with open(self._file(key), "rb") as f:
            size = f.seek(0, os.SEEK_END)
            if size < self._grid.index_size:
                raise DamagedError(f"{self.path}: {key} is too short")
            f.seek(size - self._grid.index_size)
            return layout.read_shard_index(
                f.read(), len(self._grid.blocks_of(shard)), size, f"{self.path}: {key}"
            )

    def _pack(self, file: BinaryIO, model: Mapping[str, bytes]) -> int:
        sizes = {key: os.stat(self._file(key)).st_size for key in self._grid.objects()}
        sizes |= {key: len(data) for key, data in model.items()}
        root = layout.to_bytes(layout.root_metadata(self._attributes(sizes)))
        packer = Packer(file)
        for key in sorted(sizes):
            if key == "zarr.json" or key in model:
                data = root if key == "zarr.json" else model[key]
                packer.add(key, BytesIO(data), len(data))
            else:
                with open(self._file(key), "rb") as f:
                    packer.add(key, f, sizes[key])
        shards, rest = self._grid.digests(packer.sha256)
        manifest = dump(
            {
                "format": layout.FORMAT,
                "frames": self._grid.frames,
                "blocks": self._grid.blocks,
                "objects": len(packer.members),
                "shards": shards,
                "rest": rest,
            }
        )
        packer.add(MANIFEST, BytesIO(manifest), len(manifest))
        return packer.close(COMMENT + packer.sha256[MANIFEST])

    def _attributes(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return the root's attributes with the summary, which needs every shard."""
        grid, c = self._grid, len(self.spec.channels)
        images = np.zeros(c, np.int64)
        block_bytes = 0
        for shard in range(grid.shards):
            block_bytes += int(self._index(shard)[:, 1].sum())
            key = f"valid/c/{shard}/0"
            with open(self._file(key), "rb") as f:
                valid = layout.unzstd(f.read(), f"{self.path}: {key}", grid.frames_per_shard * c)
            images += np.frombuffer(valid, bool).reshape(-1, c).sum(axis=0)
        cubes = sum(size for key, size in sizes.items() if key.startswith("cube/c/"))
        parts = layout.parts(sizes)
        parts["tables"] += cubes - block_bytes
        time = self.spec.time
        return self.spec.attributes() | {
            "summary": {
                "time": [f"{time[0]}Z", f"{time[-1]}Z"],
                "images": dict(zip(grid.channels, images.tolist(), strict=True)),
                "bytes": {"blocks": block_bytes, **parts},
            }
        }


def model_sha256(files: Mapping[str, bytes]) -> str | None:
    """Return the identity of an embedded model: sha256 of its configuration and its weights.

    Parameters
    ----------
    files
        By key, ``model/config.json`` and ``model/model.safetensors`` among them, or else None is returned.
    """
    keys = [f"model/{name}" for name in layout.MODEL_FILES]
    if not all(k in files for k in keys):
        return None
    digest = sha256()
    for k in keys:
        digest.update(files[k])
    return digest.hexdigest()


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror or e}") from e


def _sync_folder(folder: str) -> None:
    # A rename survives losing power only once the folder itself is on the disk.
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
