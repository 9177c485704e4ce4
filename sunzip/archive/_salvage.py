"""What damaged archives still give: which objects are whole in which file, and what follows from others."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sunzip.archive import _layout as layout
from sunzip.archive._flip import flipped_bit
from sunzip.archive._json import MAX_BYTES
from sunzip.archive._keywords import Headers, decode, encode, without_times
from sunzip.archive._layout import Grid, ShardTable
from sunzip.archive._read import Manifest, parse_root, refuse_absent
from sunzip.archive._shard import ShardChecker, check_block, mask_bits
from sunzip.archive._verify import Problem, Progress, problem_of
from sunzip.archive._zip import MANIFEST, Member, Salvager
from sunzip.errors import DamagedError, InputError, SunzipError, UnsupportedError
from sunzip.frame import EMPTY, Block
from sunzip.weights import Model
from sunzip.weights import load as load_model

if TYPE_CHECKING:
    from sunzip.archive._repair import RepairReport

_PIECE = 1 << 23  # bytes read at a time

#: The most keywords that are taken apart and put together again.
_MOST_KEYWORDS = 1 << 22

#: What tables that only sunzip's own measurements tell of hold, for a user.
_TOLD_BY = {"t_obs": "times of observation", "keywords": "FITS keywords"} | dict.fromkeys(
    layout.STATS, "error statistics"
)


class Source:
    """A file that has been read once: which of its objects are whole, or would be but for one bit."""

    def __init__(self, path: str, anon: bool, progress: Progress) -> None:
        self.path = path
        self.reader = Salvager(path, anon)
        self.members: dict[str, Member] = {}
        self.sha256: dict[str, str] = {}
        self.flips: dict[str, tuple[int, int]] = {}
        self.whole: set[str] = set()
        self.blocks_taken = 0
        try:
            for member in (*self.reader.members.values(), *self.reader.others):
                if member.name not in self.whole:
                    self._look_at(member)
                progress(member.start + member.size, self.reader.size)
            self.manifest, self.identity = self._manifest()
        except BaseException:
            self.reader.close()
            raise
        #: What its objects are, whatever they are called.
        self.contents = {_told(m) for m in (*self.reader.members.values(), *self.reader.others)}
        doubted = {member.header for member in self.reader.others}
        #: What is called so for certain.
        self.sure = {
            key for key, m in self.members.items() if self.reader.complete and m.header not in doubted
        }

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        """Read an object or a range of it, the bit that was flipped as it should be.

        Raises
        ------
        DamagedError
            If it ends before.
        """
        member = self.members[key]
        size = member.size - start if size is None else size
        end = min(member.size, self.reader.size - member.start)
        if not 0 <= start <= start + size <= end:
            raise DamagedError(f"{self.path}: {key} has {end} bytes, too few")
        data = self.reader.pread(member.start + start, size)
        at, mask = self.flips.get(key, (-1, 0))
        if 0 <= at - start < size:
            mended = bytearray(data)
            mended[at - start] ^= mask
            return bytes(mended)
        return data

    def forget_misnamed(self, places: Mapping[str, int]) -> set[str]:
        """Forget objects of shards that may bear the names of others; return the names.

        Each is borne out by another that lies as far from it as their names say.

        Parameters
        ----------
        places
            Where objects come in the order in which an archive has all of them.
        """
        # Where a directory tells the names, each is there once, and in order.
        found = [] if self.reader.complete else list(self.members.values())
        touch = [one.start + one.size == two.header for one, two in pairwise(found)]
        fit = set[str]()
        for steps in (1, 2):
            for i, (one, two) in enumerate(zip(found, found[steps:], strict=False)):
                apart = places.get(two.name, 0) - places.get(one.name, len(places))
                if all(touch[i : i + steps]) and apart == steps:
                    fit |= {one.name, two.name}
        misnamed = {m.name for m in found if _is_of_shard(m.name)} - fit
        for key in misnamed:
            del self.members[key]
            self.whole.discard(key)
            self.flips.pop(key, None)
            self.sha256.pop(key, None)
        return misnamed

    def _look_at(self, member: Member) -> None:
        key = member.name
        self.members[key] = member
        self.flips.pop(key, None)
        if member.start + member.size > self.reader.size:
            return
        crc, self.sha256[key] = self._sums(key, member)
        if crc == member.crc:
            self.whole.add(key)
        elif flip := flipped_bit(crc ^ member.crc, member.size):
            self.flips[key] = flip
            _, self.sha256[key] = self._sums(key, member)

    def _sums(self, key: str, member: Member) -> tuple[int, str]:
        crc, digest = 0, sha256()
        for start in range(0, member.size, _PIECE):
            data = self.read(key, start, min(_PIECE, member.size - start))
            crc = zlib.crc32(data, crc)
            digest.update(data)
        return crc, digest.hexdigest()

    def _manifest(self) -> tuple[Manifest | None, str]:
        """Return the manifest if it is whole, and the identity that it or the zip's comment tells."""
        told = self.reader.manifest_sha256
        key, member = MANIFEST, self.members.get(MANIFEST)
        # What the comment vouches for is whole, be it by a bit that was flipped back.
        sound = key in self.whole or self.sha256.get(key, "") == told != ""
        if sound and member is not None and member.size <= MAX_BYTES:
            return Manifest.parse(self.read(key), self.path), self.sha256[key]
        return None, told


def refuse_other(first: Source, other: Source) -> None:
    """Refuse a copy of another archive: of the same one all that both have is the same."""
    wrong = InputError(
        f"{other.path}: is not a copy of {first.path}, or so little of both is left that nobody can know; "
        "give copies of the same archive"
    )
    if first.identity and other.identity:
        if first.identity != other.identity:
            raise wrong
        return
    for one, two in ((first, other), (other, first)):
        # Of one series, of which an archive may hold more than the other, much is the same.
        if one.reader.complete and not {_told(two.members[key]) for key in two.whole} <= one.contents:
            raise wrong
    both = [key for key in first.members if key in other.members]
    alike = {key for key in both if _told(first.members[key]) == _told(other.members[key])}
    if not any(key.startswith("cube/c/") for key in alike):
        raise wrong
    if any(key in first.whole and key in other.whole and key not in alike for key in both):
        raise wrong


def _told(member: Member) -> tuple[int, int]:
    return member.size, member.crc


class Merged(ShardChecker):
    """What several copies of an archive make together; later ones are asked for what earlier ones lack."""

    grid: Grid
    attributes: dict[str, Any]
    time: npt.NDArray[np.datetime64]

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(sources[0].path)
        self.sources = sources
        self._model_told = False
        #: Where each object is taken from.
        self.of: dict[str, Source] = {}
        #: What is made anew, at once or when it is asked for.
        self._made: dict[str, bytes | Callable[[], bytes]] = {}
        self.manifest = next((s.manifest for s in sources if s.manifest), None)
        #: What there is; without those of which nobody knows whether they are called so.
        self.names = {
            key
            for source in sources
            for key in source.members
            if key in source.sure or key in layout.OF_ALL or key in layout.OF_MODEL or _is_of_shard(key)
        } - {MANIFEST}
        self._choose(self.names)

    @property
    def taken(self) -> dict[str, Source]:
        """The objects that are taken as they are, and from where."""
        return {key: source for key, source in self.of.items() if key not in self._made}

    @property
    def keys(self) -> list[str]:
        """The objects of the result, in order, but the root and the manifest."""
        return sorted({*self.of, *self._made} - {"zarr.json"})

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield the objects of the result as `pack` wants them; one is in memory at a time."""
        for key in self.keys:
            made = self._made.get(key)
            if made is None:
                yield key, self.read(key)
            else:
                yield key, made if isinstance(made, bytes) else made()

    def _choose(self, keys: Iterable[str]) -> None:
        """Take each object from the first that has it whole."""
        for key in keys:
            self.of.pop(key, None)
            if whole := [source for source in self.sources if key in source.whole]:
                self.of[key] = whole[0]

    def size(self, key: str) -> int | None:
        source = self.of.get(key)
        return None if source is None else source.members[key].size

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        return self.of[key].read(key, start, size)

    def salvage(self, report: RepairReport) -> None:
        """Decide where every object comes from; tell of what is made anew and of what is lost.

        Raises
        ------
        DamagedError
            If what all else hangs on is lost.
        """
        rest = {key for key in self.names if not _is_of_shard(key)}
        m = self.manifest
        if m is not None and not self._prove(rest, m.rest):
            # What is lost, or not even missed, may be at fault.
            outside = m.objects - len(m.shards) * len(layout.OF_SHARDS)
            if rest <= self.of.keys() and len(rest) >= outside:
                raise DamagedError(
                    f"{self.where}: objects outside shards are not those that were packed; fetch it again, "
                    "or compress its source again"
                )
        self._root(report)
        refuse_absent(self.grid, len(self.names) + 1, f"{self.where}: zarr.json")
        places = {key: i for i, key in enumerate(sorted(self.grid.objects()))}
        for source in self.sources:
            self._choose(source.forget_misnamed(places))
        for key in self.of.keys() - places.keys():
            if _is_of_shard(key):
                del self.of[key]
        self._others(report)
        self._model(report)
        lost = np.zeros(self.grid.frames, bool)
        for shard in range(self.grid.shards):
            self._shard(shard, report, lost)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(np.int8)))
        for start, stop in edges.reshape(-1, 2).tolist():
            what = "images are lost, and marked as missing"
            report.lost.append(problem_of("cube", what, slice(start, stop), self.time))
        if any(p.frames is not None for p in report.lost):
            # It is not what the run wrote that made it: that is to be able to write it again.
            self.attributes["fingerprint"] = ""
        unknown = 0 if m is None else m.objects - len(self.keys) - 1
        if unknown > 0 and not any(p.object in ("model/", *self.names) for p in report.lost):
            what = f"counts {unknown} more objects than were found, an embedded model perhaps; they are lost"
            report.lost.append(Problem(MANIFEST, what))
        report.mended = sorted(key for key, source in self.taken.items() if key in source.flips)

    def _prove(self, keys: set[str], stated: str) -> bool:
        """Take objects that the manifest bears out, with bits flipped back perhaps; False if it does not."""
        candidates: list[dict[str, Source]] = [{}]
        for key in keys:
            found = self.of.get(key) or next((s for s in self.sources if key in s.sha256), None)
            if found is None:
                return False
            candidates[0][key] = found
        candidates += [dict.fromkeys(keys, s) for s in self.sources if keys <= s.sha256.keys()]
        for candidate in candidates:
            if layout.digest({key: source.sha256[key] for key, source in candidate.items()}) == stated:
                self.of |= candidate
                return True
        return False

    def _root(self, report: RepairReport) -> None:
        """Read the root and the times, without which nothing can be told of any frame."""
        where = f"{self.where}: zarr.json"
        if "zarr.json" in self.of:
            attributes, self.grid = parse_root(self.whole("zarr.json", MAX_BYTES), where)
            match attributes.pop("summary", None):
                case {"bytes": {"model": int(size)}}:
                    self._model_told = size > 0
            self.attributes = attributes
        else:
            self.attributes = self._root_of_cube()
            self.grid = Grid.read(self.attributes, where)
            what = "is lost; what the archive tells of its source and of how it was coded is gone"
            report.lost.append(Problem("zarr.json", what))
        key = "time/c/0"
        if key not in self.of:
            raise self._hopeless("the times of its frames are lost")
        self.time = layout.read_time(self.chunk(key, 8 * self.grid.frames), f"{self.where}: {key}")

    def _hopeless(self, why: str) -> DamagedError:
        more = "another" if len(self.sources) > 1 else "a"
        return DamagedError(
            f"{self.where}: cannot be repaired, as {why}; name {more} copy of it by --from, or compress its "
            "source again"
        )

    def _root_of_cube(self) -> dict[str, Any]:
        """Return the root's attributes as far as the metadata of the images tells them."""
        gone = self._hopeless("its root is lost, which tells what all else means")
        if "cube/zarr.json" not in self.of:
            raise gone
        meta = self.json("cube/zarr.json")
        try:
            sharding = meta["codecs"][0]["configuration"]
            codec, (per_block, *_) = sharding["codecs"][0]["configuration"], sharding["chunk_shape"]
            (frames, _, y, x), (per_shard, *_) = (
                meta["shape"],
                meta["chunk_grid"]["configuration"]["chunk_shape"],
            )
            attributes = {
                "format": layout.FORMAT,
                "channels": codec["channels"],
                "shape": [y, x],
                "scale": codec.get("scale", "mean"),
                "frames": frames,
                "frames_per_block": per_block,
                "blocks": -(-frames // per_block),
                "frames_per_shard": per_shard,
                "shards": -(-frames // per_shard),
                "codec": codec,
                "model": {"name": "", "sha256": codec["model"], "bytes": 1},
                "source": {},
                "coding": {},
                "fingerprint": "",
            }
            grid = Grid.read(attributes, self.where)
        except (DamagedError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            raise gone from None
        if layout.array_metadata(grid, attributes)["cube"] != meta:
            raise gone
        model = self._model_of(codec["model"])
        return attributes | {"model": {"name": model.name, "sha256": model.sha256, "bytes": model.nbytes}}

    def _model_of(self, wanted: str) -> Model:
        """Return the model of a sha256, be it embedded or on this machine."""
        files = {key: self.whole(key, most) for key, most in layout.OF_MODEL.items() if key in self.of}
        if layout.model_sha256(files) == wanted:
            with contextlib.suppress(DamagedError, UnsupportedError):
                return Model.from_files({k.removeprefix("model/"): v for k, v in files.items()}, self.where)
        try:
            return load_model(wanted)
        except SunzipError:
            why = f"its root is lost, and the model that it names, {wanted:.12}…, is not on this machine"
            raise self._hopeless(why) from None

    def _others(self, report: RepairReport) -> None:
        """Make the metadata of arrays and the coordinates anew where they are not what they must be."""
        trees = layout.array_metadata(self.grid, self.attributes)
        for name, tree in trees.items():
            key = f"{name}/zarr.json"
            if self.attempt(key, partial(self.json, key)) != tree:
                self._make(key, layout.to_bytes(tree), report)
        for name, content in layout.coordinates(self.grid, self.time).items():
            key = f"{name}/c/0"
            if self.attempt(key, partial(self.chunk, key, len(content))) != content:
                self._make(key, layout.zstd(content), report)
        for key in sorted(self.names - self.of.keys() - self._made.keys() - self.grid.objects()):
            if not _is_of_shard(key) and not key.startswith("model/"):
                report.lost.append(Problem(key, "is lost; this sunzip does not know what it was"))

    def _make(self, key: str, data: bytes, report: RepairReport) -> None:
        self._made[key] = data
        report.made.append(key)

    def _model(self, report: RepairReport) -> None:
        """See to it that the model that was embedded is whole, or is none."""
        keys = [key for key in self.names if key.startswith("model/")]
        wanted = self.attributes["model"]["sha256"]
        embedded = bool(keys) or self._model_told
        files = {k: self.whole(k, most) for k, most in layout.OF_MODEL.items() if k in self.of}
        if not embedded or layout.model_sha256(files) == wanted:
            return
        for key in keys:
            self.of.pop(key, None)
        try:
            for name, data in load_model(wanted).files.items():
                self._make(f"model/{name}", data, report)
        except SunzipError:
            what = f"the embedded model is lost; {wanted[:12]}… must be on the machine to decode the archive"
            report.lost.append(Problem("model/", what))

    def _shard(self, shard: int, report: RepairReport, lost: npt.NDArray[np.bool_]) -> None:
        keys = set(self.grid.shard_objects(shard))
        stated = None if self.manifest is None else self.manifest.shards[shard]
        proven = stated is not None and self._prove(keys, stated)
        exchanged = stated is not None and not proven and keys <= self.of.keys()
        if exchanged:
            for key in keys:
                del self.of[key]
        sound = keys <= self.of.keys()
        for key in keys - self.of.keys():
            # Each object of a shard has another checksum of its own, which will be looked at.
            mended = [s for s in self.sources if key in s.flips]
            if mended and not exchanged:
                self.of[key] = mended[0]
        before = len(self.damaged)
        self.shard(self.grid, self.attributes["model"]["sha256"], shard)
        if sound and len(self.damaged) == before:
            return
        salvaged = _Shard(self, shard, gather=not exchanged)
        frames = self.grid.frames_of(shard)
        lost[frames] = salvaged.lost
        report.images = -1 if salvaged.images < 0 or report.images < 0 else report.images + salvaged.images
        for key in sorted(keys):
            name = key.partition("/")[0]
            make = salvaged.made(key)
            if make is None:
                continue
            self._made[key] = make
            if key in salvaged.gone:
                what = f"the {_TOLD_BY.get(name, name)} are lost"
                report.lost.append(problem_of(key, what, frames, self.time))
            elif key not in self.of and not salvaged.lost.any():
                report.made.append(key)


class _Shard:
    """What can be had of a shard that is not whole; its objects are made when they are asked for.

    Attributes
    ----------
    lost
        (n,) bool: frames of which images are lost.
    images
        How many these are; -1 if that is not known.
    gone
        Objects of which nothing is left, and that do not follow from others.
    """

    def __init__(self, merged: Merged, shard: int, *, gather: bool) -> None:
        self._merged = merged
        self._grid = grid = merged.grid
        self._shard = shard
        self._key = grid.cube_of(shard)
        self._t_obs_key, self._keywords_key = f"t_obs/c/{shard}/0", f"keywords/c/{shard}"
        self._frames = grid.frames_of(shard)
        self._n = self._frames.stop - self._frames.start
        self._numbers = grid.blocks_of(shard)
        self._model = merged.attributes["model"]["sha256"]
        for key in grid.shard_objects(shard):
            if key in merged.damaged:
                merged.of.pop(key, None)
                for source in merged.sources:
                    source.flips.pop(key, None)
        self._valid = self._stored("valid")
        # Of each block where it is to be had, and its masks.
        self._blocks: list[tuple[Source, int, int] | None] = [None] * len(self._numbers)
        self._masks = [(0,) * grid.frames_per_block] * len(self._numbers)
        if gather:
            self._gather()
        without = np.repeat([b is None for b in self._blocks], grid.frames_per_block)[: self._n]
        self.lost = without if self._valid is None else without & self._valid[: self._n].any(axis=1)
        self.images = 0
        if self.lost.any():
            self.images = -1 if self._valid is None else int(self._valid[: self._n][self.lost].sum())
        self._changed = bool(self.lost.any())
        self._check_keywords()
        told = set(_TOLD_BY)
        if self._keywords_key not in merged.of:
            told |= {"exptime", "deg_cor", "quality"}
        self.gone = {
            key
            for key in grid.shard_objects(shard)
            if key.partition("/")[0] in told and key not in merged.of and not self.lost.all()
        }

    def made(self, key: str) -> Callable[[], bytes] | None:
        """Return what makes an object anew; None if it stays as it is."""
        name = key.partition("/")[0]
        kept = key in self._merged.of and not self._changed
        if kept and not (name == "keywords" and self._t_obs_key in self.gone):
            return None
        match name:
            case "cube":
                return self._cube
            case "bytes":
                return self._sizes
            case "keywords":
                return self._keywords
        return lambda: layout.zstd(self._table(name).tobytes())

    def _gather(self) -> None:
        """Find each block in any of the copies."""
        per_block, at = self._grid.frames_per_block, 0
        sizes = self._sizes_told()
        for i in range(len(self._numbers)):
            rows = None if self._valid is None else self._valid[i * per_block :]
            size = None if sizes is None else sizes[i]
            for source in self._sources():
                try:
                    told = size or Block.peek_length(source.read(self._key, at, 6))
                    block = check_block(self._grid, self._model, source.read(self._key, at, told), rows)
                except (DamagedError, UnsupportedError):
                    continue
                self._blocks[i], self._masks[i] = (source, at, told), block.masks
                size = told
                break
            if size is None:
                # Where the next one begins nobody knows.
                return
            at += size

    def _sources(self) -> list[Source]:
        """Return those that have something of the blocks, the one that has all of them first."""
        best = self._merged.of.get(self._key)
        have = [s for s in self._merged.sources if self._key in s.members]
        return sorted(have, key=lambda s: s is not best)

    def _sizes_told(self) -> list[int] | None:
        """Return the sizes of the blocks, as an index or the array `bytes` tells them."""
        blocks, tail = len(self._numbers), self._grid.index_size
        lengths = {s: s.members[self._key].size for s in self._sources()}
        for source, length in lengths.items():
            try:
                raw = source.read(self._key, max(length - tail, 0), tail)
                index = layout.read_shard_index(raw, blocks, length, self._key)
            except DamagedError:
                continue
            return [int(size) for size in index[:, 1]]
        key = f"bytes/c/{self._shard}"
        if key in self._merged.of:
            raw = self._merged.chunk(key, 4 * self._grid.blocks_per_shard)
            sizes = [int(size) for size in np.frombuffer(raw, "<u4")[:blocks]]
            if sum(sizes) + tail in lengths.values():
                return sizes
        return None

    def _stored(self, name: str) -> npt.NDArray[Any] | None:
        """Return one of the tables as it was, or None."""
        key = f"{name}/c/{self._shard}/0"
        if key not in self._merged.of:
            return None
        shape = (self._grid.frames_per_shard, len(self._grid.channels))
        return layout.read_table(
            name, self._merged.chunk(key, layout.table_size(name, shape)), shape, key
        ).copy()

    @cached_property
    def _images(self) -> npt.NDArray[np.bool_]:
        """Which images there are now, by the masks of the blocks."""
        bits = mask_bits(self._grid)
        masks = np.array([mask for block in self._masks for mask in block])[:, None] & bits > 0
        out = np.zeros((self._grid.frames_per_shard, len(bits)), bool)
        out[: self._n] = masks[: self._n]
        return out

    def _table(self, name: str) -> npt.NDArray[Any]:
        """Return one of the tables as it is now: without what is lost."""
        if name == "valid":
            return self._images
        out = self._stored(name)
        if out is None:
            n = self._grid.frames_per_shard
            none = np.zeros((self._n, len(self._grid.channels)))
            headers = self._headers() if name in ("exptime", "deg_cor", "quality") else []
            table = ShardTable(
                np.full(none.shape, "NaT", "M8[ms]"),
                none.astype(bool),
                headers,
                dict.fromkeys(layout.STATS, np.full(none.shape, np.nan, np.float32)),
            )
            out = layout.table_values(name, table, n)
        fill = layout.TABLES[name][1]
        out[~self._images] = np.nan if fill == "NaN" else fill
        return out

    def _text(self) -> bytes | None:
        """Return the keywords as they were stored, without those that lost times of observation told."""
        key = self._keywords_key
        if key not in self._merged.of:
            return None
        text = layout.one_text(self._merged.chunk(key, None), key)
        return text if self._t_obs_key in self._merged.of else without_times(text, key)

    def _stored_headers(self) -> Headers | None:
        """Return the keywords as they were, or None."""
        text = self._text()
        if text is None:
            return None
        times = self._stored("t_obs")
        if times is None:
            times = np.full((self._n, len(self._grid.channels)), layout.MISSING_TIME)
        return decode(text, self._grid.channels, times[: self._n], self._key)

    def _headers(self) -> list[list[Mapping[str, Any]]]:
        """Return the keywords of the images that there are now."""
        images = self._images
        nothing: list[list[Mapping[str, Any]]] = [[{} for _ in row] for row in images[: self._n]]
        found = self._stored_headers()
        if found is None:
            return nothing
        return [
            [header if there else {} for header, there in zip(row, images[i], strict=True)]
            for i, row in enumerate(found)
        ]

    def _check_keywords(self) -> None:
        """Give up keywords that cannot be read, or that would fill the memory."""
        with contextlib.suppress(DamagedError):
            found = self._stored_headers()
            if found is None or found.values <= _MOST_KEYWORDS:
                return
        del self._merged.of[self._keywords_key]

    def _keywords(self) -> bytes:
        text = self._text()
        if text is None:
            text = b"{}"
        elif self._changed:
            text = encode(self._grid.channels, self._headers(), self._table("t_obs")[: self._n])
        return layout.zstd(layout.texts([text.decode()]))

    def _one(self, i: int) -> bytes:
        """Return a block; one without images in place of one that is lost."""
        if (where := self._blocks[i]) is not None:
            source, at, size = where
            return source.read(self._key, at, size)
        return self._empty

    @cached_property
    def _empty(self) -> bytes:
        """A block without images."""
        nothing = [EMPTY] * self._grid.frames_per_block
        quality = self._merged.attributes["codec"].get("quality", 0)
        masks, payloads, gaps, _ = zip(*nothing, strict=True)
        return Block(bytes.fromhex(self._model)[:4], self._grid.shape, quality, masks, payloads, gaps).pack()

    def _lengths(self) -> list[int]:
        return [len(self._empty) if where is None else where[2] for where in self._blocks]

    def _sizes(self) -> bytes:
        return layout.block_sizes(self._lengths(), self._grid.blocks_per_shard)

    def _cube(self) -> bytes:
        for block in self._blocks:
            if block is not None:
                block[0].blocks_taken += 1
        blocks = b"".join(map(self._one, range(len(self._blocks))))
        return blocks + layout.shard_index(self._lengths(), self._grid.blocks_per_shard)


def _is_of_shard(key: str) -> bool:
    name, _, rest = key.partition("/c/")
    return bool(rest) and name in layout.OF_SHARDS
