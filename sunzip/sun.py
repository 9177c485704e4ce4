"""Archives as arrays: frames, channels and latents by number or time, decoded when asked for."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.archive import Archive, open_archive
from sunzip.channels import canonical, channel, listed
from sunzip.codec import Codec, codec_for
from sunzip.cube import Cube, Scale
from sunzip.display import Shown, span
from sunzip.errors import (
    MEND,
    DamagedError,
    InputError,
    ModelNotFoundError,
    SunzipError,
    UnsupportedError,
)
from sunzip.frame import Block
from sunzip.times import When, parse_date, plain
from sunzip.weights import Model

if TYPE_CHECKING:
    import torch
    from ndcube import NDCube
    from sunpy.map import GenericMap, MapSequence

_T = TypeVar("_T")

#: The number of a frame.
Number = int | np.integer[Any]

#: Numbers of frames, such as `numpy.flatnonzero` gives of a mask.
Numbers = Sequence[int] | npt.NDArray[np.integer[Any]]


class Sun(Shown):
    """An open archive as arrays: decodes what is asked for and nothing else. Made by `open`.

    Attributes
    ----------
    archive
        The file: times, keywords, error statistics, raw blocks.

    Examples
    --------
    >>> sun = open("out.lat")  # doctest: +SKIP
    >>> sun["2014-01-01":"2014-02-01", "171A"].shape  # doctest: +SKIP
    (3720, 512, 512)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: str | Path | Model | None = None,
        anon: bool = False,
        identity: str | None = None,
    ) -> None:
        self.archive = open_archive(path, anon=anon, identity=identity)
        self._model = model
        self._codec: Codec | None = None

    def __repr__(self) -> str:
        a, times = self.archive, ""
        with suppress(SunzipError):  # of a file that is closed or damaged
            times = f" {a.time[0]} … {a.time[-1]}"
        return (
            f"<Sun {a.path}: {len(a)} frames{times}, "
            f"{' '.join(a.channels)}, {a.shape[0]}×{a.shape[1]}, model {a.model['name']}>"
        )

    def _told(self) -> Mapping[str, Any]:
        """See `Shown._told`."""
        return self.archive._told()

    def __len__(self) -> int:
        return len(self.archive)

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the file and loads the network for itself.
        return {"archive": self.archive, "_model": self._model, "_codec": None}

    def __enter__(self) -> Sun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.archive.close()

    @property
    def time(self) -> npt.NDArray[np.datetime64]:
        """(T,) datetime64[ms], UTC: the nominal time of each frame."""
        return self.archive.time

    @property
    def channels(self) -> tuple[str, ...]:
        """The C channel names."""
        return self.archive.channels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, C, Y, X) of the whole cube."""
        return (len(self), len(self.channels), *self.archive.shape)

    @property
    def scale(self) -> Scale:
        """Whether AIA pixels are 2×2 means or sums."""
        return Scale(self.archive.scale)

    @property
    def codec(self) -> Codec:
        """The codec that decodes the archive: the model given to `open`, the embedded or an installed one.

        Raises
        ------
        ModelNotFoundError
            If there is none; the message names it.
        InputError
            If the model given is not the one that coded the archive.
        DamagedError
            If the embedded one is not.
        """
        if self._codec is None:
            path, wanted = self.archive.path, str(self.archive.model["sha256"])
            needed = f"{path}: was coded with model {self.archive.model['name']}"
            if self._model is not None:
                model = self._model if isinstance(self._model, Model) else weights.load(self._model)
                if model.sha256 != wanted:
                    raise InputError(
                        f"{needed} ({wanted[:12]}…), not with the model given, {model.name} "
                        f"({model.sha256[:12]}…); give that one (--model, model=), or none if it is in the "
                        "archive or on this machine"
                    )
            elif embedded := embedded_in(self.archive):
                model = embedded
            else:
                try:
                    model = weights.load(wanted)
                except ModelNotFoundError as error:
                    raise ModelNotFoundError(f"{needed}: {error}") from None
            weights.register(model)
            # All archives of one model share its network.
            self._codec = codec_for(wanted)
        return self._codec

    def read(
        self, start: Number, stop: Number, channels: str | Iterable[str] | None = None, *, step: Number = 1
    ) -> npt.NDArray[np.float32]:
        """Decode every `step`-th frame from `start` to `stop`, the latter not included.

        `channels` is one name or several, here and in the other methods; None is all.

        Returns
        -------
        (T, C, Y, X) float32 in DN/s and G, NaN where missing.

        Raises
        ------
        DamagedError
            If a block is damaged; the message names the frames.
        InputError
            If the archive lacks a channel.
        IndexError
            If it lacks a frame, or one of the three is no such number.
        """
        for value in (start, stop):
            if not _is_number(value):
                raise IndexError(
                    f"{value!r} is no frame number; sun.frames(slice(start, stop)) gives those of times"
                )
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"frames {start} to {stop} of {len(self)}")
        return self.take(range(start, stop, _step(step)), channels)

    def take(self, frames: Numbers, channels: str | Iterable[str] | None = None) -> npt.NDArray[np.float32]:
        """Decode frames by their numbers, in any order; blocks between them are not read.

        Returns
        -------
        (T, C, Y, X) float32 in DN/s and G, NaN where missing.

        Raises
        ------
        DamagedError, InputError, IndexError
            As `read`.
        """
        try:
            len(frames)
        except TypeError:
            raise IndexError(f"{frames!r} is no sequence of frame numbers; use it as an index") from None
        names = self.held(channels)
        # The codec first: that its model is not at hand is no matter of certain frames.
        codec, shape, scale = self.codec, self.archive.shape, self.scale
        return self._decode(frames, lambda blocks, where: codec.decode(blocks, names, shape, scale, **where))

    def tensor(
        self,
        frames: Numbers,
        channels: str | Iterable[str] | None = None,
        *,
        device: str | torch.device = "cpu",
        normalised: bool = False,
    ) -> torch.Tensor:
        """Decode frames by their numbers into a torch tensor, together and on a device.

        The pixels are those of `take`, of some models to float rounding alone: see
        `sunzip.codec.Codec.decode_tensor`, which also explains `normalised`.

        Returns
        -------
        (T, C, Y, X) float32 on `device`, NaN where missing.

        Raises
        ------
        DamagedError, InputError, IndexError
            As `read`.
        """
        names = self.held(channels)
        codec, shape, scale = self.codec, self.archive.shape, self.scale
        return self._decode(
            frames,
            lambda blocks, where: codec.decode_tensor(
                blocks, names, shape, scale, device=device, normalised=normalised, **where
            ),
        )

    def held(self, channels: str | Iterable[str] | None) -> tuple[str, ...]:
        """Return channels in canonical order, None being all.

        Raises
        ------
        InputError
            If the archive lacks one of them, or there is none of its name.
        """
        names = self.channels if channels is None else canonical(channels)
        absent = [n for n in names if n not in self.channels]
        if absent:
            raise InputError(f"{self.archive.path}: has no {absent[0]}; it holds {' '.join(self.channels)}")
        return names

    def _decode(self, frames: Numbers, decode: Callable[..., _T]) -> _T:
        """Have some frames decoded from the blocks that hold them."""
        rows = _numbers(frames)
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise IndexError(f"frames {min(rows)} to {max(rows)} of {len(self)}")
        t = self.archive.frames_per_block
        numbers = sorted({i // t for i in rows})
        place = {number: n for n, number in enumerate(numbers)}
        blocks = self.archive.read_blocks(numbers)
        inside = [place[i // t] * t + i % t for i in rows]
        with self.archive.as_opened():
            try:
                return decode(blocks, {"frames": inside, "frames_per_block": t})
            except (DamagedError, UnsupportedError) as error:
                # Of many blocks one is at fault, as a rule: the others' frames can be had without it.
                wrong = next((n for n, data in zip(numbers, blocks, strict=True) if _unreadable(data)), None)
                asked = [i for i in rows if wrong in (None, i // t)]
                which = f"frame {asked[0]}" if len(asked) == 1 else f"frames {min(asked)} to {max(asked)}"
                remedy = f"; {MEND}" if isinstance(error, DamagedError) else ""
                raise type(error)(f"{self.archive.path}: {which}: {error}{remedy}") from None

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        """Decode all frames, one after the other: what frames of a block have in common but once."""
        for stretch in self.stretches(range(len(self)), 1):
            # Copies, since who keeps one frame is not to keep those of its block.
            yield from map(np.copy, self.take(stretch))

    @property
    def together(self) -> int:
        """Frames of a block that may be coded given one another, earlier ones given later ones, too."""
        return self.archive.frames_per_block if self.codec.family.sequential else 1

    def stretches(self, frames: Sequence[int], most: int) -> Iterator[Sequence[int]]:
        """Split frames into stretches that are best decoded at a time.

        Where frames of a block are coded given others, none is split: what they have in common would be
        decoded for each part once more.

        Parameters
        ----------
        frames
            Their numbers, rising.
        most
            Frames of a stretch, but for those whose blocks alone have more.
        """
        block = self.together
        begin = 0
        while begin < len(frames):
            end = min(begin + max(1, most), len(frames))
            if end < len(frames):
                # Back to where a block begins, or on to its end if it is the only one.
                of_block = bisect_left(frames, frames[end] // block * block)
                end = (
                    of_block if of_block > begin else bisect_left(frames, (frames[end] // block + 1) * block)
                )
            yield frames[begin:end]
            begin = end

    def cube(self, start: Number, stop: Number, channels: str | Iterable[str] | None = None) -> Cube:
        """Decode frames `start` to `stop` with their times and keywords.

        Raises
        ------
        DamagedError, InputError, IndexError
            As `read`.
        """
        names = self.held(channels)
        data = self.read(start, stop, names)
        table = self.archive.table(start, stop)
        pick = [self.channels.index(n) for n in names]
        return Cube(
            data,
            names,
            self.time[start:stop].copy(),
            table.t_obs[:, pick],
            table.valid[:, pick],
            [[row[i] for i in pick] for row in table.headers],
            self.scale,
        )

    @overload
    def map(self, when: int | When, which: str) -> GenericMap: ...

    @overload
    def map(self, when: slice, which: str) -> MapSequence: ...

    @overload
    def map(self, when: int | When | slice, which: str) -> GenericMap | MapSequence: ...

    def map(self, when: int | When | slice, which: str) -> GenericMap | MapSequence:
        """Decode an image as a sunpy Map, or a slice of frames as a MapSequence of the images there are.

        The header is that of ``sunzip decompress --layout fits``: pixels are 2×2 means per second or in
        gauss, the pointing is SDOML's, the observer the original's; SZ_ASSUM names what of it is assumed.

        Parameters
        ----------
        when
            As in indexing: a frame number, a time, to which the nearest frame is taken, or a slice of either.
        which
            The channel.

        Raises
        ------
        InputError
            If there is no such image, images are not square, or sunpy is not installed.
        IndexError, DamagedError
            As `read`.
        """
        from sunzip import maps

        frames, about = self.frames(when), self.archive.origin([channel(which).name])
        if isinstance(frames, int):
            return maps.image_map(self._series([frames], which), about=about)
        return maps.sequence(self._series(range(len(self))[frames], which), about)

    def ndcube(self, when: slice, which: str) -> NDCube:
        """Decode a slice of frames of one channel as an NDCube (time, y, x), masked where pixels are missing.

        All its frames share the nominal geometry, that of the archive's x and y; a `map` has the geometry of
        its own image. Pixels are 2×2 means.

        Raises
        ------
        InputError
            If there is no such frame, images are not square, or ndcube is not installed.
        IndexError, DamagedError
            As `read`.
        """
        from sunzip import maps

        frames, about = self.frames(when), self.archive.origin([channel(which).name])
        if isinstance(frames, int):
            frames = slice(frames, frames + 1)
        return maps.ndcube(self._series(range(len(self))[frames], which), about)

    def _series(self, frames: Sequence[int], which: str) -> Cube:
        """Decode frames of one channel with their times and keywords."""
        name = channel(which).name
        data = self.take(frames, [name])
        c, rows = self.channels.index(name), list(frames)
        # Of the tables only the shards between the first and the last frame are read.
        first, last = (min(rows), max(rows) + 1) if rows else (0, 0)
        here = [t - first for t in rows]
        return Cube(
            data,
            (name,),
            self.time[rows],
            self.archive.rows("t_obs", first, last)[here, c : c + 1],
            self.archive.rows("valid", first, last)[here, c : c + 1],
            [[self.archive.headers(t)[c]] for t in rows],
            self.scale,
        )

    @property
    def latents(self) -> _Latents:
        """The dequantised latents, indexed by frame: no images are made of them."""
        return _Latents(self)

    def __getitem__(self, key: Any) -> npt.NDArray[np.float32]:
        """Decode by frame number, time or slice of either, and optionally by channel or list of channels.

        A single time picks the frame nearest to it; a slice of times includes its start, not its stop.

        Raises
        ------
        IndexError
            If a frame number is outside, or the index is none of these.
        InputError
            If a text is neither a time nor a channel of the archive.
        """
        when, which = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if isinstance(which, slice):
            try:
                names: Sequence[str] = self.channels[which]
            except (TypeError, ValueError):
                raise IndexError(f"{which!r}: channels are sliced by their numbers") from None
        elif isinstance(which, str) or all(isinstance(n, str) for n in np.atleast_1d(which)):
            names = [channel(n).name for n in listed(which)]
        else:
            raise IndexError(f"{which!r} is neither a channel, a list of channels nor a slice of them")
        frames = self.frames(when)
        data: npt.NDArray[np.float32]
        if isinstance(frames, int):
            data = self.read(frames, frames + 1, names)[0]
        else:
            data = self.read(frames.start, max(frames.start, frames.stop), names, step=frames.step)
        order = [canonical(names).index(n) for n in names]
        if isinstance(which, str):
            return data[..., order[0], :, :]
        # A copy may be of gigabytes, and is needed only for another order.
        if order != list(range(len(order))):
            data = data[..., order, :, :]
        return data

    def frames_from(self, start: int | When | None, stop: int | When | None) -> slice:
        """Return the numbers of the frames from `start` to `stop`, the latter not included; None is the end.

        Raises
        ------
        InputError
            If there are none, or a text is no time.
        """
        frames: slice = self.frames(slice(start, stop))
        if frames.start >= frames.stop:
            # 0 is a number, too.
            first, last = ("its start" if start is None else start), ("its end" if stop is None else stop)
            raise InputError(f"{self.archive.path}: no frame from {first} to {last}")
        return frames

    @overload
    def frames(self, when: int | When) -> int: ...

    @overload
    def frames(self, when: slice) -> slice: ...

    @overload
    def frames(self, when: int | When | slice) -> int | slice: ...

    def frames(self, when: int | When | slice) -> int | slice:
        """Translate a frame number, a time, or a slice of either into frame numbers.

        Raises
        ------
        IndexError
            If a number is outside, or `when` is none of these.
        InputError
            If a text is no time.
        """
        when = plain(when)
        if isinstance(when, slice):
            step = 1 if when.step is None else _step(when.step)
            ends = []
            for value, default in ((plain(when.start), 0), (plain(when.stop), len(self))):
                if value is None:
                    ends.append(default)
                elif _is_number(value):
                    ends.append(min(max(int(value) + (len(self) if value < 0 else 0), 0), len(self)))
                else:
                    ends.append(int(np.searchsorted(self.time, parse_date(value), side="left")))
            return slice(ends[0], ends[1], step)
        if _is_number(when):
            number = int(when) + (len(self) if when < 0 else 0)
            if not 0 <= number < len(self):
                raise IndexError(f"frame {when} of {len(self)}")
            return number
        if not isinstance(when, str | np.datetime64 | date):
            raise IndexError(
                f"{type(when).__name__} is neither a frame number, a time nor a slice of them; "
                "take(…) gives frames by a list of numbers, [:] gives all"
            )
        return int(np.argmin(np.abs(self.time - parse_date(when))))


class _Latents(Shown):
    """Latents of an open archive by frame; see `Sun.latents`."""

    def __init__(self, sun: Sun) -> None:
        self._sun = sun

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.shape[1:]))
        return f"<latents of {self._sun.archive.path}: {len(self)} frames of {shape}>"

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`."""
        archive = self._sun.archive
        return {
            "file": archive.path,
            "frames": len(self),
            "times": span(*archive.time[[0, -1]]),
            "shape": "×".join(map(str, self.shape[1:])),
            "model": archive.model["name"],
        }

    def __len__(self) -> int:
        return len(self._sun)

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, …) of all latents."""
        return (len(self), *self._sun.codec.family.latent_shape(*self._sun.archive.shape))

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        for stretch in self._sun.stretches(range(len(self._sun)), 1):
            yield from map(np.copy, self.take(stretch))

    def __getitem__(self, when: Any) -> npt.NDArray[np.float32]:
        frames = self._sun.frames(when)
        if isinstance(frames, int):
            return self.take([frames])[0]  # type: ignore[no-any-return]
        return self.take(range(frames.start, max(frames.start, frames.stop), frames.step))

    def take(self, frames: Numbers) -> npt.NDArray[np.float32]:
        """Return the latents of frames by their numbers, in any order: (T, …) float32."""
        codec, shape = self._sun.codec, self._sun.archive.shape
        return self._sun._decode(frames, lambda blocks, where: codec.latents(blocks, shape, **where))


def _is_number(value: object) -> TypeGuard[Number]:
    """Whether it is a frame number: truth values and NumPy's spans of time are integers, too."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)


def _step(value: object) -> int:
    """Return how many frames one is from the next."""
    if not _is_number(value) or value < 1:
        raise IndexError(f"steps from frame to frame must be whole and positive, not {value!r}")
    return int(value)


def _unreadable(block: bytes) -> bool:
    """Say whether a block is damaged, or of another format, as its bytes alone tell."""
    try:
        Block.unpack(block)
    except (DamagedError, UnsupportedError):
        return True
    return False


def _numbers(frames: Numbers) -> list[int]:
    """Return numbers of frames, of whatever integers they are; truth values would be taken for 0 and 1."""
    found = np.asarray(frames)
    if found.size and (found.ndim != 1 or found.dtype.kind not in "iu"):
        raise IndexError(
            f"{found.dtype} of shape {found.shape} are no frame numbers; np.flatnonzero gives those of a mask"
        )
    return found.tolist()  # type: ignore[no-any-return]


def open(path: str | os.PathLike[str], *, model: str | Path | Model | None = None, anon: bool = False) -> Sun:
    """Open an archive as arrays.

    Parameters
    ----------
    path
        A ``.lat`` file, a local path or an fsspec URL such as ``s3://…``.
    model
        What decodes it, if it is neither embedded nor installed.
    anon
        Ask S3 or Google Cloud Storage without credentials.

    Raises
    ------
    InputError, DamagedError, UnsupportedError
        If the file cannot be used. The model is looked for when first needed.
    """
    return Sun(path, model, anon)


def embedded_in(archive: Archive) -> Model | None:
    """Return the model that an archive holds; None if it holds none.

    Raises
    ------
    DamagedError
        If it is not the one that coded the archive, or no model.
    UnsupportedError
        If it is newer than this program.
    """
    files = archive.embedded_model()
    if files is None:
        return None
    model, wanted = Model.from_files(files, archive.path), str(archive.model["sha256"])
    if model.sha256 != wanted:
        raise DamagedError(
            f"{archive.path}: was coded with model {archive.model['name']} ({wanted[:12]}…), but holds "
            f"another ({model.sha256[:12]}…); fetch it again"
        )
    return model
