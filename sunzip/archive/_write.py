"""Writing an archive: a folder while it grows, so that nothing done is lost, then one file, packed once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sunzip.archive import _layout as layout
from sunzip.archive._json import MAX_BYTES, dump, load
from sunzip.archive._keywords import encode
from sunzip.archive._layout import ArchiveSpec, Grid, ShardTable
from sunzip.archive._place import gone, partial_of, place_of
from sunzip.archive._read import Archive, open_archive
from sunzip.archive._shard import ShardChecker
from sunzip.archive._zip import COMMENT, MANIFEST, Packer, is_name
from sunzip.errors import DamagedError, OutputError, UnsupportedError


class ArchiveWriter:
    """An archive that is being written into the folder ``<path>.partial``, on disk or in an object store.

    Each shard is written once, by any thread, process or machine that the writer is pickled to: shards share
    no object. Left without `finish` or `abort`, by an error or by losing power, the folder stays, and
    `create` with ``resume=True`` continues it.

    Attributes
    ----------
    path
        Where the finished archive will be.
    spec
        What it will hold.
    shards
        Number of shards, with those that are taken over.
    before, kept
        The archive whose first frames come first and are taken over as they are, and how many these are: all
        or whole shards; None and 0 if there is none.
    """

    def __init__(self, path: str, spec: ArchiveSpec) -> None:
        self.path = path
        self.spec = spec
        self._grid = Grid.read(spec.attributes(), path)
        self._place = place_of(path)
        self._partial = partial_of(path)
        self._force = False
        self._root = b""
        self.before: Archive | None = None
        self.kept = 0

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: ArchiveSpec,
        *,
        force: bool = False,
        resume: bool = False,
        before: Archive | None = None,
        kept: int = 0,
    ) -> ArchiveWriter:
        """Begin an archive, or continue one.

        Parameters
        ----------
        path
            Where the finished archive will be, a path or an fsspec URL; nothing is written there before
            `finish`.
        spec
            What it will hold.
        force
            Replace a file at `path`, and begin again if there is an unfinished archive.
        resume
            Continue an unfinished archive if there is one. It keeps the specification it was begun with.
            All that was written is read: a shard that is damaged counts as not written.
        before, kept
            The archive at `path`, which is to be replaced by one that begins with so many of its frames, as
            its `longer` specifies: whole shards of these are taken over, and it is closed at the end.

        Raises
        ------
        OutputError
            If the target exists, cannot be written, is being written by another run, or is unfinished and of
            other content.
        InputError, DamagedError
            If with `before` that is gone.
        """
        path = os.fspath(path)
        writer = cls(path, spec)
        writer._force, writer.before, writer.kept = force, before, kept
        place = writer._place
        with os_errors(path):
            place.check()
            writer._refuse_existing()
            if place.begin():
                place.hold()
            elif writer._continue(resume, force):
                place.sweep()
                # What the specification says of them need not be trusted, as it can be written anew.
                writer._begin()
                writer._discard_damaged()
                return writer
            else:
                place.empty()
            writer._begin()
        return writer

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the folder as it is: finished, or to be continued, by another run if it wants."""
        self._place.release()

    @property
    def shards(self) -> int:
        """Number of shards, with those that are taken over."""
        return self._grid.shards

    @property
    def _taken(self) -> int:
        """Number of shards that are taken over whole."""
        return self.kept // self._grid.frames_per_shard

    def frames_of(self, shard: int) -> slice:
        """Return the frames that a shard holds."""
        return self._grid.frames_of(shard)

    def done(self, shard: int) -> bool:
        """Whether a shard was written completely."""
        self._grid.frames_of(shard)
        return shard < self._taken or not self._left([shard])

    def left(self) -> list[int]:
        """Return the shards that are not written completely, in order."""
        return self._left(range(self._taken, self.shards))

    def sees_its_own(self) -> bool:
        """Whether the folder is as this writer began it: another process may look at another disk."""
        with os_errors(self.path):
            return self._place.get("zarr.json", MAX_BYTES) == self._root

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
            If the target cannot be written, or another run has begun another archive there.
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
        chunks["bytes"] = layout.block_sizes(sizes, grid.blocks_per_shard)
        text = encode(grid.channels, table.headers, values["t_obs"][: expected[0]])
        chunks["keywords"] = layout.zstd(layout.texts([text.decode()]))
        chunks["cube"] = b"".join(blocks) + layout.shard_index(sizes, grid.blocks_per_shard)
        *others, last = grid.shard_objects(shard)
        self._refuse_other()
        with os_errors(self.path):
            self._place.put({key: chunks[key.partition("/")[0]] for key in others})
            self._place.put({last: chunks["cube"]})

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
            If shards are missing, the target has come to exist meanwhile, another run has begun another
            archive there, or it cannot be written; also if the folder cannot be removed, and then the
            message says that the archive is complete.
        DamagedError
            If a shard that is taken over is not what its archive's manifest says.
        """
        self._refuse_other()
        left = self.left()
        if left:
            raise OutputError(
                f"{self.path}: {len(left)} of {self.shards} shards are not written; use --resume"
            )
        model = {f"model/{name}": data for name, data in sorted((embed or {}).items())}
        if not all(is_name(key) for key in model):
            raise ValueError(f"names of model files are {sorted(embed or {})}")
        if model and layout.model_sha256(model) != self.spec.model["sha256"]:
            raise ValueError("the embedded model is not the one that the specification names")
        self._refuse_existing()
        with os_errors(self.path):
            taken = {key for shard in range(self._taken) for key in self._grid.shard_objects(shard)}
            keys = self._grid.objects() - taken
            sizes = self._place.sizes(keys)
            if len(sizes) < len(keys):
                raise OutputError(gone(self.path, f"{len(keys) - len(sizes)} objects"))
            old = self.before.sizes(taken) if self.before else {}
            total = sum(sizes.values()) + sum(old.values()) + sum(map(len, model.values()))
            with self._place.packing(total) as file:
                objects = self._objects(sizes, old, model)
                packed = pack(file, objects, self._grid, self.spec.attributes(), self.path)
                if self.before is not None:
                    for shard in range(self._taken):
                        self.before.check_digest(shard, packed.shards[shard])
                    self.before.close()  # Windows replaces no file that is open
        try:
            self._place.clear()
        except KeyboardInterrupt as error:
            error.add_note(f"{self.path} is complete; remove {self._partial}")
            raise
        except (OSError, OutputError, MemoryError, RuntimeError) as error:
            # Memory, or threads, may be at their end, too.
            why = getattr(error, "strerror", None) or str(error) or "out of memory"
            raise OutputError(
                f"{self.path}: is complete, but {self._partial} cannot be removed ({why}); remove it"
            ) from error
        return packed.size

    def abort(self) -> None:
        """Give the archive up: remove the folder."""
        with os_errors(self.path):
            self._place.clear()

    def _refuse_existing(self) -> None:
        if self.before is not None:
            with open_archive(self.path) as found:
                if found.identity != self.before.identity:
                    raise OutputError(f"{self.path}: another run has replaced it meanwhile; append again")
        elif not self._force and self._place.exists():
            raise OutputError(f"{self.path}: exists; remove it or use --force")

    def _refuse_other(self) -> None:
        """Keep out of a folder that another run has made its own, which only a lock could prevent."""
        if not self.sees_its_own():
            raise OutputError(
                f"{self._partial}: another run has begun it anew or removed it; wait for that run, or "
                "name another target"
            )

    def _begin(self) -> None:
        """Write all that the specification determines."""
        attributes = self.spec.attributes()
        metadata = layout.array_metadata(self._grid, attributes).items()
        chunks = layout.coordinates(self._grid, self.spec.time).items()
        self._place.put({f"{name}/zarr.json": layout.to_bytes(tree) for name, tree in metadata})
        self._place.put({f"{name}/c/0": layout.zstd(chunk) for name, chunk in chunks})
        # Last: its presence says that the folder can be continued.
        self._root = layout.to_bytes(layout.root_metadata(attributes))
        self._place.put({"zarr.json": self._root})

    def _discard_damaged(self) -> None:
        """Look at every shard that seems to be written: a disk that lost its power may hold anything."""
        complete = self._complete(range(self._taken, self.shards))
        contents = self._place.contents({key: n for sizes in complete.values() for key, n in sizes.items()})
        for shard, sizes in complete.items():
            found = _Found(self.path, dict(zip(sizes, contents, strict=False)))
            found.shard(self._grid, self.spec.model["sha256"], shard)
            if found.damaged:
                self._place.put({self._grid.cube_of(shard): b""})

    def _continue(self, resume: bool, force: bool) -> bool:
        """Whether the folder that exists is to be continued; False if it is to be replaced."""
        names = self._place.names()
        self._place.hold()
        if "zarr.json" not in names:
            # Nothing of worth is in a folder that was never begun, but it may not be ours.
            if not names <= set(layout.ARRAYS):
                raise OutputError(f"{self._partial}: is in the way and not of sunzip; remove it")
            return False
        root = f"{self._partial}/zarr.json"
        try:
            data = self._place.get("zarr.json", MAX_BYTES) or b""
            attributes: Any = load(data, root)["attributes"]["sunzip"]
            grid = Grid.read(attributes, root)
        except (DamagedError, UnsupportedError, KeyError, TypeError) as e:
            raise OutputError(
                f"{self._partial}: is in the way and not one that can be continued; remove it"
            ) from e
        if self.before is not None and attributes.get("fingerprint") == self.before.fingerprint:
            return False  # the run that made the archive that is there ended before it could remove it
        if not resume:
            if force:
                return False
            raise OutputError(
                f"{self._partial}: an unfinished archive; continue it with --resume or begin again with "
                "--force"
            )
        mine = self.spec.attributes()
        same = ("fingerprint", "codec", "model", "scale")
        if grid != self._grid or any(attributes[k] != mine[k] for k in same) or not self._same_time():
            grown, remedy = "", ""
            if grid.frames != self._grid.frames:
                grown = f" of {grid.frames} frames in place of {self._grid.frames}"
                remedy = ", and with --stop if the input grows"
            raise OutputError(
                f"{self._partial}: was begun from other input{grown} or with other settings; begin again "
                f"with --force in place of --resume{remedy}"
            )
        self.spec = replace(self.spec, source=attributes["source"], coding=attributes["coding"])
        return True

    def _same_time(self) -> bool:
        """Whether the times in the folder are these; of damaged ones the fingerprint has told."""
        time = layout.coordinates(self._grid, self.spec.time)["time"]
        data = self._place.get("time/c/0", layout.most_packed(len(time))) or b""
        try:
            return layout.unzstd(data, "time/c/0", len(time)) == time
        except DamagedError:
            return True

    def _left(self, shards: Sequence[int]) -> list[int]:
        """Return those of some shards of which objects are missing or cut short."""
        complete = self._complete(shards)
        return [shard for shard in shards if shard not in complete]

    def _complete(self, shards: Sequence[int]) -> dict[int, dict[str, int]]:
        """Return the sizes of the objects, by key, of those of some shards that are written, as it seems.

        Of one in which an object is larger than it can be, nothing is read.
        """
        objects = {shard: self._grid.shard_objects(shard) for shard in shards}
        least = self._grid.index_size
        with os_errors(self.path):
            # What is written last is looked for first: of a shard that is not done it mostly is not there.
            sizes = self._place.sizes(keys[-1] for keys in objects.values())
            some = [shard for shard, keys in objects.items() if sizes.get(keys[-1], 0) >= least]
            sizes |= self._place.sizes(key for shard in some for key in objects[shard][:-1])
            there = {
                shard: objects[shard][-1]
                for shard in some
                if all(k in sizes and sizes[k] <= self._grid.most_of(k) for k in objects[shard])
            }
            tails = self._place.tails({key: sizes[key] for key in there.values()}, least)
        done: dict[int, dict[str, int]] = {}
        for (shard, key), tail in zip(there.items(), tails, strict=True):
            with contextlib.suppress(DamagedError):
                layout.read_shard_index(tail, len(self._grid.blocks_of(shard)), sizes[key], key)
                done[shard] = {k: sizes[k] for k in objects[shard]}
        return done

    def _objects(
        self, sizes: Mapping[str, int], old: Mapping[str, int], model: Mapping[str, bytes]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield what is to be packed, sorted by key, but the root; of `old` what is taken over."""
        own = {key: sizes[key] for key in sorted(sizes) if key != "zarr.json"}
        contents = self._place.contents(own)
        others = self.before.contents(sorted(old)) if self.before else iter(())
        for key in sorted([*own, *old, *model]):
            yield key, model[key] if key in model else next(others if key in old else contents)


class Packed(NamedTuple):
    """A zip that was written: its bytes, the sha256 of its manifest, and those of its shards."""

    size: int
    identity: str
    shards: list[str]


def pack(
    file: BinaryIO,
    objects: Iterable[tuple[str, bytes]],
    grid: Grid,
    attributes: Mapping[str, Any],
    path: str,
) -> Packed:
    """Write the zip in one pass; the root, which needs something of every shard, sorts last.

    Parameters
    ----------
    file
        Where to.
    objects
        By key, in order: all but the root and the manifest.
    grid, attributes
        What the root tells, as far as it does not follow from the objects.
    path
        The archive, for messages.
    """
    packer = Packer(file)
    images = np.zeros(len(grid.channels), np.int64)
    block_bytes = 0
    time: list[str] = []
    late: dict[str, bytes] = {}
    for key, data in objects:
        if key > "zarr.json":  # of arrays that a later sunzip has added
            late[key] = data
            continue
        packer.add(key, data)
        where = f"{path}: {key}"
        match key.split("/"):
            case ["cube", "c", shard, *_]:
                blocks = len(grid.blocks_of(int(shard)))
                tail = data[len(data) - grid.index_size :]
                block_bytes += int(layout.read_shard_index(tail, blocks, len(data), where)[:, 1].sum())
            case ["valid", "c", *_]:
                valid = layout.unzstd(data, where, grid.frames_per_shard * len(images))
                images += np.frombuffer(valid, bool).reshape(-1, len(images)).sum(axis=0)
            case ["time", "c", _]:
                time = layout.first_and_last(
                    layout.read_time(layout.unzstd(data, where, 8 * grid.frames), where)
                )
    summary = {
        "time": time,
        "images": dict(zip(grid.channels, images.tolist(), strict=True)),
        "bytes": layout.parts(
            {m.name: m.size for m in packer.members} | {key: len(data) for key, data in late.items()},
            block_bytes,
        ),
    }
    packer.add("zarr.json", layout.to_bytes(layout.root_metadata({**attributes, "summary": summary})))
    for key, data in late.items():
        packer.add(key, data)
    shards, rest = grid.digests(packer.sha256)
    manifest = dump(
        {
            "format": layout.FORMAT,
            "frames": grid.frames,
            "blocks": grid.blocks,
            "objects": len(packer.members),
            "shards": shards,
            "rest": rest,
        }
    )
    packer.add(MANIFEST, manifest)
    identity = packer.sha256[MANIFEST]
    return Packed(packer.close(COMMENT + identity), identity, shards)


class _Found(ShardChecker):
    """Looks at the objects of one shard, as they were found in the folder."""

    def __init__(self, where: str, objects: Mapping[str, bytes]) -> None:
        super().__init__(where)
        self._objects = objects

    def size(self, key: str) -> int | None:
        return len(self._objects[key]) if key in self._objects else None

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self._objects[key][start : None if size is None else start + size]


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Name the archive where the disk of its target is at fault.

    Raises
    ------
    OutputError
        In place of an `OSError` that is raised inside.
    """
    try:
        yield
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror or e}") from e
