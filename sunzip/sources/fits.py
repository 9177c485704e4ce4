"""FITS files as a source: AIA and HMI images brought to SDOML's geometry and units, and sunzip's own files.

The recipe is SDOML v2's (Galvez et al. 2019, section 3.1, and github.com/SDOML/SDOMLv2): an image of 1024²,
or averaged down to it, is scaled about the Sun's centre by bilinear interpolation so that the disk has 976″
radius at 2.4″ a pixel, with pixels that are zero or negative (AIA) or missing (HMI) left out of the weights;
then 2×2 means, and for AIA division by EXPTIME and by the degradation of the instrument.

An image that is in that geometry already is given exactly as it is: one with sunzip's SZ_CHAN, or, of sides
that are no multiple of 1024, with R_SUN = 203.33·NAXIS1/512 and the unit DN/s or gauss; unless its header
says that it is turned, or shifted, or was cut since sunzip wrote it.

Headers come with COMMENT and HISTORY joined by line breaks and without the keywords that only describe how
the pixels were stored (SIMPLE, BITPIX, BSCALE, ZIMAGE …).
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import Channel, canonical, channel, unit_spelled
from sunzip.cube import DISK_RADIUS_512, MAX_SIDE, RSUN_M, Header, Scale, disk_radius
from sunzip.errors import InputError, UnreadableError
from sunzip.sources.base import Source, tell_progress
from sunzip.sources.layouts import Layouts, layout_of
from sunzip.sources.patience import reading_pool
from sunzip.sources.storage import Storage, reason
from sunzip.times import time_of

#: SDOML guards its division by the interpolated mask so; kept, as it reproduces its pixels.
_EPSILON = 1e-8
#: SDOML's lower limit of an exposure, in seconds.
_MIN_EXPOSURE = 1e-2
#: How many rows of an image averaged down are made at a time.
_ROWS = 32
#: The bit of QUALITY that tells images of near real time (Q_NRT of JSOC's quallev1.h).
_NRT = 2**30
#: The most bytes of a header: 200,000 cards, where images of SDO have 200.
_MAX_HEADER = 2**24
#: FITS reads and writes by blocks of so many bytes, and headers by cards.
_BLOCK, _CARD = 2880, 80
#: The most axes and columns of tables that FITS knows. Astropy looks for each one that a header counts.
_MAX_COUNT = 999
#: The most that a gzipped file may unpack to: four images of 4096² in float64.
_MAX_UNPACKED = 2**29

#: What deflate makes of a byte at most, and the most bytes that a gzipped tile may unpack to unseen: astropy
#: refuses it if they are too many, and to unpack all rows of an image twice takes a third of reading it.
_DEFLATED, _UNSEEN = 1032, 2**26

#: How a remote file is fetched: the header by itself, then the pixels.
_AHEAD = {"block_size": 2**16, "cache_type": "readahead"}

#: Keywords of a matrix from pixels to coordinates, without CDELT and with it, and what they are by default.
_CD = {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}
_PC = {"PC1_1": 1.0, "PC1_2": 0.0, "PC2_1": 0.0, "PC2_2": 1.0}

#: Arcsec of the units of CUNIT, as programs spell them.
_ARCSEC = {
    **dict.fromkeys(("arcsec", "arcsecs", "arcsecond", "arcseconds"), 1.0),
    **dict.fromkeys(("arcmin", "arcmins", "arcminute", "arcminutes"), 60.0),
    **dict.fromkeys(("deg", "degs", "degree", "degrees"), 3600.0),
    "mas": 1e-3,
    "rad": math.degrees(3600.0),
}

#: Arcsec of a whole circle, by which a CRVAL1 may be too large.
_CIRCLE = 360.0 * 3600

#: Arcsec that a Sun's radius may have; seen from SDO it has 943 to 977.
_RADII = (800.0, 1100.0)

#: Pixels by which an image may be off SDOML's geometry and counts as not moved.
_STILL = 0.5

#: Pixels of 1024² by which SDOML's field of view may go beyond an image and be filled with the nearest ones:
#: level 1 is as much off centre. Further out there is no measurement.
_BORDER = 8.0

#: How instruments are named: AIA_3 and SDO/AIA, but not GAIA.
_MAKER = {name: re.compile(rf"(?<![A-Z]){name}(?![A-Z])") for name in ("AIA", "HMI")}

#: Keywords that describe the stored form of the pixels.
_STORAGE = re.compile(
    r"SIMPLE|BITPIX|NAXIS|EXTEND|XTENSION|PCOUNT|GCOUNT|GROUPS|EXTNAME|EXTVER|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|"
    r"HEADSUM|LONGSTRN|CONTINUE|TFIELDS|T(FORM|TYPE)\d+|THEAP|ZHECKSUM|ZDATASUM|ZIMAGE|ZSIMPLE|ZTENSION|ZEXTEND|"
    r"ZBITPIX|ZNAXIS\d*|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|ZMASKCMP|ZQUANTIZ|ZDITHER0|ZBLANK|ZPCOUNT|ZGCOUNT|"
    r"ZBLOCKED|ZSCALE|ZZERO"
)

#: How columns of tables are stored, by TFORM: how many of what, and of what are those that lie in the heap.
_FORM = re.compile(r"(\d{0,9})([LXBIJKAEDCMPQ])([A-Z]?)")
_WIDTHS = dict(zip("LBIJKAEDCMPQ", (1, 1, 2, 4, 8, 1, 4, 8, 8, 16, 8, 16), strict=True))

#: How many files of a store are looked through at a time; and how many images are read: each takes memory,
#: and more threads of Python wait for each other.
_ASKING, _READERS = 16, 4

#: The bits of HCOMPRESS and the noise of quantised pixels are global variables of CFITSIO's code in astropy.
_ASTROPY = threading.Lock()


class _Quiet:
    """No warnings while anyone is in it: `warnings.catch_warnings` alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


class _Unusable(Exception):
    """Why one file gives no image: a short name to count by, and what to tell about a single file."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind


class _Damaged(_Unusable):
    """What bytes are wrong of a file that was read."""

    def __init__(self, what: str) -> None:
        super().__init__("cannot be read", f"cannot be read, truncated or damaged: {what}")


@dataclass(frozen=True, slots=True)
class _Image:
    """What the index keeps of one file."""

    path: str
    channel: str
    time: np.datetime64
    shape: tuple[int, int]
    early: bool


@dataclass(slots=True)
class _Seen:
    """What looking through one file shows: an image or why there is none; images behind the first one."""

    image: _Image | None = None
    unusable: _Unusable | None = None
    size: int = 0
    further: int = 0
    uncorrected: bool = False


class Fits(Source):
    """AIA and HMI images in one FITS file, or in a folder of them with all below it.

    Parameters
    ----------
    url
        File or folder, a local path or an fsspec URL.
    degradation
        Folder with ``degrad_171.csv`` and so on, lines of date and factor: what AIA images are divided by
        that have no DEG_COR of their own. Without it they are not corrected, and counted.
    anon
        Ask S3 or Google Cloud Storage without credentials.

    Raises
    ------
    InputError
        If nothing there is a usable image, files of another layout lie there, too, or a store does not give
        one of them. In a folder, FITS files that are no image are skipped and counted, as are the images
        behind the first one of a file.
    """

    layout = "fits"
    dated = "T_OBS or DATE-OBS, as 2014-01-31T06:00:00"
    scale = Scale.MEAN

    def __init__(self, url: str, *, degradation: str | Path | None = None, anon: bool = False) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
        self._storage = Storage(url, anon)
        self.at_once = _READERS if self._storage.local else min(_READERS, self._storage.at_once)
        self._degradation = {} if degradation is None else _read_degradation(Path(degradation))
        images = self._index()
        # Images of another size than most cannot be joined with them.
        self.shape = Counter(i.shape for i in images).most_common(1)[0][0]
        self._images: dict[str, list[_Image]] = {}
        for image in images:
            if image.shape == self.shape:
                self._images.setdefault(image.channel, []).append(image)
            else:
                self.skip("other image size")
        self.channels = canonical(self._images)

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """(N,) datetime64[ms], UTC, from T_OBS, else DATE-OBS, by TIMESYS; NaT where neither is a time."""
        return np.array([i.time for i in self._images[channel]], "datetime64[ms]")

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Read one image and bring it to SDOML's geometry: (Y, X) float32; thread-safe."""
        return self.image(channel, row)[0]

    def header(self, channel: str, row: int) -> Header:
        """Return the keywords of one image, those of geometry and units as they are after preparation."""
        image = self._images[channel][row]
        with self._planned(image) as (opened, plan):
            return self._prepared(image.path, _plain(opened.hdu.header), plan)

    def image(self, channel: str, row: int) -> tuple[npt.NDArray[np.float32], Callable[[], Header]]:
        """Read one image, and what gives its keywords, by one opening of the file."""
        image = self._images[channel][row]
        with self._planned(image) as (opened, plan):
            plain = _plain(opened.hdu.header)
            pixels = opened.pixels()
        prepared = np.ascontiguousarray(pixels, np.float32) if plan.ready else _prepare(pixels, plan)
        return prepared, partial(self._prepared, image.path, plain, plan)

    @contextmanager
    def _planned(self, image: _Image) -> Iterator[tuple[_Opened, _Plan]]:
        """Give the first image of a file that was looked through, and what is to be done with it."""
        try:
            with self._opened(image.path) as opened:
                header = opened.hdu.header
                plan = _plan(header, self._factor(header))
                same = (plan.channel.name, plan.shape) == (image.channel, image.shape)
                if not same or str(_time(header)) != str(image.time):  # NaT is as NaT
                    raise _Unusable(
                        "replaced", "holds another image than as the source was opened; start again"
                    )
                yield opened, plan
        except _Unusable as error:
            # One file of a folder; without the only one there is nothing to go on with.
            one_of_many = image.path != self._storage.root
            kind = UnreadableError if isinstance(error, _Damaged) and one_of_many else InputError
            raise kind(f"{self._name(image.path)}: {error}") from error

    def _prepared(self, path: str, plain: Header, plan: _Plan) -> Header:
        """Return an image's keywords as they are after preparation."""
        original = plain.get("SZ_HDR")
        if "SZ_CHAN" in plain and isinstance(original, str):
            try:
                found = json.loads(original)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict) or any(isinstance(v, list | dict) for v in found.values()):
                raise InputError(f"{self._name(path)}: its original header (SZ_HDR) is damaged")
            plain = found
        if plan.ready:
            return plain
        plain = {key: value for key, value in plain.items() if key not in _CD | _PC | {"CROTA1": 0}}
        n = self.shape[0]
        plate_scale = plan.rsun / DISK_RADIUS_512
        plain |= {"NAXIS1": n, "NAXIS2": n, "CDELT1": plate_scale, "CDELT2": plate_scale}
        plain |= {"CRPIX1": (n + 1) / 2, "CRPIX2": (n + 1) / 2, "CRVAL1": 0.0, "CRVAL2": 0.0, "CROTA2": 0.0}
        plain |= {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN", "CUNIT1": "arcsec", "CUNIT2": "arcsec"}
        plain |= {"R_SUN": DISK_RADIUS_512, "RSUN_OBS": plan.rsun}
        if plan.channel.instrument == "AIA":
            plain["PIXLUNIT"] = "DN/s"
            if not plan.per_second:
                plain["DEG_COR"] = plan.degradation
        else:
            plain["PIXLUNIT"] = "Gauss"
        return plain

    def stored_bytes(self) -> int | None:
        """Bytes of the files."""
        return self._stored

    def _index(self) -> list[_Image]:
        root = self._storage.root
        single = not self._storage.isdir()
        paths = [root] if single else self._found()
        images: list[_Image] = []
        self._stored = 0
        # Each asks a store twice or more, and a disk of a cluster has it wait; near disks are no slower so.
        threads = self.at_once if self._storage.local else min(_ASKING, self._storage.at_once)
        with reading_pool(threads) as pool:
            for done, seen in enumerate(pool.map(self._look, paths), 1):
                tell_progress(f"looking through {self.url}", done, len(paths))
                if seen.further:
                    self.skip("further image of a FITS file", seen.further)
                if seen.unusable is not None:
                    if single:
                        raise InputError(f"{self.url}: {seen.unusable}") from seen.unusable
                    self.skip(seen.unusable.kind)
                    continue
                assert seen.image is not None
                images.append(seen.image)
                self._stored += seen.size
                if seen.uncorrected:
                    self.counts["no degradation correction"] += 1
        if not images:
            reasons = ", ".join(f"{n} {kind}" for kind, n in self.counts.most_common(3))
            raise InputError(
                f"{self.url}: no usable FITS image among {len(paths)} files ({reasons or 'none there'})"
            )
        # Of images of one time the first is taken.
        return sorted(images, key=lambda i: i.early)

    def _look(self, path: str) -> _Seen:
        """Look through a file, as far as an index needs it."""
        seen = _Seen()
        try:
            with self._opened(path) as opened:
                if _end(opened.hdu) < opened.size:
                    with suppress(Exception):  # what is behind the image may be damaged
                        seen.further = sum(_is_image(hdu) for hdu, _ in opened.behind)
                header = opened.hdu.header
                plan = _plan(header, self._factor(header))
                seen.image = _Image(path, plan.channel.name, _time(header), plan.shape, _early(header))
                seen.uncorrected = (
                    not plan.ready and plan.channel.instrument == "AIA" and plan.degradation_unknown
                )
                seen.size = opened.stored
        except _Unusable as error:
            seen.unusable = error
        return seen

    def _found(self) -> list[str]:
        """Return the paths of all FITS files below the root."""
        storage, layouts = self._storage, Layouts(self._storage)
        if storage.local:
            paths = [
                storage.at(f"{folder}/{name}".lstrip("/"))
                for folder, names in storage.tree()
                for name, (is_dir, _) in names.items()
                if not is_dir
            ]
        else:
            # One request for very many names, where folder by folder takes one for each.
            paths = storage.fs.find(storage.root)
        found = []
        for path in sorted(paths):
            folder, _, name = path.removeprefix(storage.root).lstrip("/").rpartition("/")
            layouts.look(folder, [name])
            if layout_of(name) == "fits":
                found.append(path)
        return found

    def _factor(self, header: Any) -> float | None:
        """Return the degradation that the table has for an image; None without a table."""
        table = self._degradation.get(_integer(header.get("WAVELNTH")))
        if table is None:
            return None
        dates, factors = table
        time = _time(header)
        if np.isnat(time):
            return None
        return float(factors[max(int(np.searchsorted(dates, time.astype("M8[D]"), side="right")) - 1, 0)])

    def _name(self, path: str) -> str:
        return (
            self.url
            if path == self._storage.root
            else str(self._storage.fs.unstrip_protocol(path)).removeprefix("file://")
        )

    @contextmanager
    def _opened(self, path: str) -> Iterator[_Opened]:
        """Open a file at its first image. Whatever astropy stumbles over becomes `_Unusable`."""
        from astropy.io import fits

        with _QUIET:
            raw: _Raw | None = None
            try:
                with self._storage.turn, self._storage.fs.open(path, "rb", **_AHEAD) as opened:
                    size = stored = self._storage.size_of(opened, path)
                    raw = _Raw(opened)
                    file: Any = raw
                    if raw.read(2) == b"\x1f\x8b":
                        raw.seek(0)
                        unpacked = _unpack(io.BytesIO(raw.read(min(size, _MAX_UNPACKED))))
                        file, size = io.BytesIO(unpacked), len(unpacked)
                    file.seek(0)
                    # Astropy would unpack zip and others into a temporary file, of whatever size.
                    if file.read(9) != b"SIMPLE  =":
                        raise _Unusable("not a FITS file", "is not a FITS file")
                    first = _cards(file, 0)
                    file.seek(0)
                    with fits.open(file, mode="readonly", memmap=False) as hdus:
                        behind = _hdus(file, hdus, first)
                        found = next(((hdu, cards) for hdu, cards in behind if _is_image(hdu)), None)
                        if found is None:
                            raise _Unusable("no image", "holds no two-dimensional image")
                        hdu, cards = found
                        # Less than a block may be padding, which some writers leave out.
                        if _end(hdu) - size >= _BLOCK:
                            raise _Unusable("truncated", "is truncated; fetch it again")
                        yield _Opened(file, size, stored, hdu, cards, behind)
            except (_Unusable, InputError, MemoryError):
                raise
            except Exception as error:  # astropy raises nearly every kind for damaged bytes
                if self._storage.local and isinstance(error, FileNotFoundError):
                    if os.path.islink(path):
                        raise _Unusable("link to nothing", "is a link to nothing") from error
                    # Of a disk that is not mounted any more all further files are.
                    raise InputError(
                        f"{self._name(path)}: is gone; look whether it was moved, or is on a disk that is "
                        "not mounted any more, and start again"
                    ) from error
                if raw is None or raw.failed:
                    # What a store or a disk does not give now is no damaged file, to be passed over.
                    raise InputError(f"{self._name(path)}: cannot be read: {reason(error)}") from error
                text = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise _Damaged(text) from error


class _Raw:
    """A file that remembers whether reading it has failed: what astropy raises does not tell."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.failed = False

    def read(self, size: int = -1) -> Any:
        try:
            return self._file.read(size)
        except Exception:
            self.failed = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What an image needs to come to SDOML's geometry and units."""

    channel: Channel
    shape: tuple[int, int]
    ready: bool
    #: Apparent solar radius in arcsec.
    rsun: float = math.nan
    #: Factor on lengths, after averaging down by `bins`.
    zoom: float = math.nan
    bins: int = 1
    #: Sun's centre as (row, column) counted from 0, after averaging down.
    centre: tuple[float, float] = (math.nan, math.nan)
    #: From the Sun's axes, north and west, to the image's, rows and columns: turned, or mirrored, or neither.
    turn: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)
    #: Whether AIA's pixels are in DN/s already, corrected by whoever made them so.
    per_second: bool = False
    exposure: float = 1.0
    degradation: float = 1.0
    degradation_unknown: bool = False


def _unpack(raw: Any) -> bytes:
    """Unpack a gzipped file whole, since astropy goes to and fro in it; bounded, as a bomb is small."""
    parts: list[bytes] = []
    size = 0
    with gzip.GzipFile(fileobj=raw) as file:
        while part := file.read(2**20):
            parts.append(part)
            size += len(part)
            if size > _MAX_UNPACKED:
                raise _Unusable("too large", f"unpacks to more than {_MAX_UNPACKED >> 20} MiB")
    return b"".join(parts)


def _cards(file: Any, at: int) -> dict[str, str]:
    """Read the header at an offset, each keyword's first value as it is written, before astropy does.

    Raises
    ------
    _Unusable
        If it is longer than any, or counts more than FITS has: astropy would go on for hours.
    """
    file.seek(at)
    cards: dict[str, str] = {}
    length = 0
    while block := file.read(_BLOCK):
        length += len(block)
        if length > _MAX_HEADER:
            raise _Unusable("too large", f"has a header of more than {_MAX_HEADER} bytes; no image has")
        for begin in range(0, len(block), _CARD):
            card = block[begin : begin + _CARD].decode("latin-1")
            key = card[:8].strip().upper()
            if key == "END":
                break
            cards.setdefault(key, card[8:].partition("/")[0].strip("= '"))
        else:
            continue
        break
    for key in ("NAXIS", "TFIELDS"):
        if _whole(cards, key, 0) > _MAX_COUNT:
            raise _Damaged(f"its {key} is {cards[key]:.40}")
    return cards


def _whole(cards: dict[str, str], key: str, default: int) -> int:
    """Return a whole number that a header has. Any other value is as none: astropy minds it."""
    text = cards.get(key, "").replace(" ", "")
    return int(text) if re.fullmatch(r"[+-]?\d+", text, re.A) else default


def _hdus(file: Any, hdus: Any, cards: dict[str, str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Yield the HDUs of a file with their cards; those of the first, which astropy has read, are given."""
    at = number = 0
    while True:
        try:
            hdu = hdus[number]
        except IndexError:
            return
        yield hdu, cards
        if (end := _end(hdu)) <= at:
            # Astropy would read what is there again and again.
            raise _Damaged("an HDU ends before it begins")
        at, number = end, number + 1
        cards = _cards(file, at)


def _end(hdu: Any) -> int:
    """Return the offset at which the next HDU begins, if there is one."""
    lies = hdu.fileinfo()
    return int(lies["datLoc"] + lies["datSpan"])


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open file, at its first image."""

    file: Any
    #: Its bytes; and those that lie in the store, which are fewer if it is gzipped.
    size: int
    stored: int
    hdu: Any
    #: What the header says as it is stored, that of a table where the image is compressed.
    cards: dict[str, str]
    #: The HDUs that follow.
    behind: Iterator[tuple[Any, dict[str, str]]]

    def pixels(self) -> npt.NDArray[Any]:
        """Return the image as astropy reads it."""
        from astropy.io import fits

        if isinstance(self.hdu, fits.CompImageHDU):
            self._check_tiles()
            # No pixel of so few bits is that, as after a change of BITPIX alone: astropy would not set it.
            bits, blank = self.hdu.header["BITPIX"], self.hdu.header.get("BLANK")
            least = 0 if bits == 8 else -(2 ** max(bits - 1, 0))
            if isinstance(blank, int) and bits > 0 and not least <= blank < least + 2**bits:
                del self.hdu.header["BLANK"]
        with nullcontext() if _shares_nothing(self.hdu) else _ASTROPY:
            pixels: npt.NDArray[Any] = self.hdu.data
        return pixels

    def _check_tiles(self) -> None:
        """See that tiles are such as astropy's code, much of it in C, takes them to be.

        Raises
        ------
        _Unusable
            If not: it would read and write beyond its memory, or take gigabytes for a tile of kilobytes.
        """
        cards = self.cards
        sides = []
        for axis, n in enumerate(reversed(self.hdu.shape), 1):
            side = _whole(cards, f"ZTILE{axis}", n if axis == 1 else 1)
            if side < 1:
                raise _Damaged(f"its tiles have {side} pixels a side")
            sides.append(min(side, n))
        height, width = self.hdu.shape
        tiles = -(-width // sides[0]) * -(-height // sides[1])
        if (rows := _whole(cards, "NAXIS2", 0)) < tiles:
            raise _Damaged(f"it has {rows} of {tiles} tiles")
        if not 0 <= (seed := _whole(cards, "ZDITHER0", 0)) <= 10000:
            raise _Damaged(f"its ZDITHER0 is {seed}, not a number from 1 to 10000")
        kind = cards.get("ZCMPTYPE", "").strip()
        named = {cards[f"ZNAME{i}"].strip(): f"ZVAL{i}" for i in range(1, 10) if f"ZNAME{i}" in cards}
        if kind.startswith("RICE") and (size := _whole(cards, named.get("BYTEPIX", ""), 4)) not in (1, 2, 4):
            raise _Damaged(f"its BYTEPIX is {size}; read are 1, 2 and 4")
        packed = {"GZIP_COMPRESSED_DATA"} | ({"COMPRESSED_DATA"} if kind.startswith("GZIP") else set())
        most = 8 * sides[0] * sides[1]
        for data in self._stored(packed, tiles):
            if len(data) * _DEFLATED <= max(most, _UNSEEN):
                continue
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                if len(file.read(most + 1)) > most:
                    raise _Damaged(f"a tile unpacks to more than {most} bytes")

    def _stored(self, columns: set[str], rows: int) -> Iterator[bytes]:
        """Yield what is stored in some columns of the table of tiles, where there is something."""
        cards, start = self.cards, int(self.hdu.fileinfo()["datLoc"])
        width = _whole(cards, "NAXIS1", 0)
        heap = start + _whole(cards, "THEAP", width * _whole(cards, "NAXIS2", 0))
        at = 0
        for i in range(1, _whole(cards, "TFIELDS", 0) + 1):
            form = _FORM.match(cards.get(f"TFORM{i}", ""))
            if form is None:
                return
            count, letter, of = int(form[1] or 1), form[2], form[3]
            if letter in "PQ" and cards.get(f"TTYPE{i}", "").strip().upper() in columns:
                table = np.frombuffer(self._read(start, width * rows), np.uint8).reshape(rows, width)
                kind = ">i4" if letter == "P" else ">i8"
                found = np.ascontiguousarray(table[:, at : at + 2 * np.dtype(kind).itemsize]).view(kind)
                for length, place in found.tolist():
                    if length:
                        yield self._read(heap + place, length * _WIDTHS.get(of, 1))
            at += -(-count // 8) if letter == "X" else count * _WIDTHS[letter]

    def _read(self, at: int, length: int) -> bytes:
        if not 0 <= at <= at + length <= self.size:
            raise _Damaged("its tiles lie beyond its end")
        self.file.seek(at)
        found: bytes = self.file.read(length)
        return found


def _is_image(hdu: Any) -> bool:
    from astropy.io import fits

    return isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) and len(hdu.shape) == 2


def _shares_nothing(hdu: Any) -> bool:
    """Tell whether pixels are read by code that has no state but the file's."""
    from astropy.io import fits

    if not isinstance(hdu, fits.CompImageHDU):
        return True
    return hdu.compression_type in ("RICE_1", "GZIP_1", "GZIP_2") and hdu.header["BITPIX"] > 0


def _integer(value: object) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else -1


def _number(header: Any, key: str) -> float:
    value = header.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _text(header: Any, key: str) -> str:
    """Return a keyword's text; "" where it is not there, or blank, or has no value."""
    value = header.get(key)
    return "" if value is None else str(value).strip()


def _early(header: Any) -> bool:
    """Tell whether an image is the edition of near real time, which a definitive one follows."""
    from astropy.io.fits.verify import VerifyError

    try:
        quality = _integer(header.get("QUALITY"))
    except VerifyError:  # no image is left out for a card that says nothing of its pixels
        return False
    return quality > 0 and bool(quality & _NRT)


def _time(header: Any) -> np.datetime64:
    return time_of(header, "T_OBS", "DATE-OBS", "DATE_OBS")


def _channel(header: Any) -> Channel:
    """Tell the channel from TELESCOP or INSTRUME and WAVELNTH or CONTENT, or from sunzip's SZ_CHAN."""
    try:
        if "SZ_CHAN" in header:
            return channel(str(header["SZ_CHAN"]))
        maker = f"{header.get('TELESCOP', '')} {header.get('INSTRUME', '')}".upper()
        if _MAKER["AIA"].search(maker):
            length = _number(header, "WAVELNTH")
            if not length.is_integer():
                told = repr(header.get("WAVELNTH"))[:40]
                raise _Unusable("unknown channel", f"has WAVELNTH {told}, which is no whole number")
            return channel(f"{int(length)}A")
        if _MAKER["HMI"].search(maker):
            if str(header.get("CONTENT", "")).strip().upper() != "MAGNETOGRAM":
                raise _Unusable("unknown channel", "is an HMI image, but no line-of-sight magnetogram")
            return channel("Bz")
    except InputError as error:
        raise _Unusable("unknown channel", str(error)) from error
    raise _Unusable("unknown instrument", f"is neither of AIA nor of HMI, but of {maker.strip()!r}")


def _plan(header: Any, factor: float | None) -> _Plan:
    """Read from an image's header what is to be done with it.

    Parameters
    ----------
    header
        The header of the image HDU.
    factor
        Degradation from a table, used where the header has no DEG_COR.
    """
    known = _channel(header)
    if _text(header, "IMG_TYPE").upper() == "DARK":
        raise _Unusable("dark image", "is no image of the Sun but a dark one, by IMG_TYPE")
    n, rows = _integer(header.get("NAXIS1")), _integer(header.get("NAXIS2"))
    if not (0 < n <= MAX_SIDE and 0 < rows <= MAX_SIDE):
        raise _Unusable("wrong size", f"has an image of {n}×{rows} pixels, which is implausible")
    unit = _text(header, "BUNIT") or _text(header, "PIXLUNIT")
    meant = unit_spelled(unit) if unit else None
    read = ("DN/s", "DN") if known.instrument == "AIA" else ("G",)
    if unit and meant not in read:
        # To take them for DN or gauss would be wrong by any factor.
        raise _Unusable(
            "other unit",
            f"has pixels of {known.name} in {unit!r:.40}, by BUNIT or PIXLUNIT; "
            f"convert them to {' or '.join(read)} and say so there",
        )
    per_second, physical = meant == "DN/s", meant == known.unit
    # Images as AIA takes them have that radius by chance, around the 1st of January, and are all made 512².
    at_size = n % 1024 != 0 and math.isclose(_number(header, "R_SUN"), disk_radius(n), rel_tol=1e-3)
    if ("SZ_CHAN" in header or (physical and at_size)) and not _moved(header, n, rows):
        return _Plan(known, (rows, n), ready=True)

    if n != rows or (n != 512 and n % 1024):
        raise _Unusable(
            "wrong size", f"has an image of {n}×{rows} pixels; it must be 512 or a multiple of 1024 squared"
        )
    bins = max(n // 1024, 1)
    for key, letters in (("CTYPE1", "HPLN SOLAR_X SOLAR-X"), ("CTYPE2", "HPLT SOLAR_Y SOLAR-Y")):
        kind = _text(header, key)
        if kind and not kind.upper().startswith(tuple(letters.split())):
            raise _Unusable("other coordinates", f"is not helioprojective: {key} is {kind!r:.40}")
    lie = _lie(header)
    scale = lie.scale * bins
    if not 0.1 < scale < 20:
        raise _Unusable(
            "no geometry", "has no plausible size of a pixel, by CDELT1, CUNIT1, and CROTA2, PCi_j or CDi_j"
        )
    a, b, c, d = lie.turn
    if not np.allclose((a * a + c * c, b * b + d * d, a * b + c * d), (1, 1, 0), rtol=0, atol=2e-3):
        raise _Unusable(
            "no geometry", "has no square pixels: CDELT2 is not as CDELT1, or PCi_j or CDi_j are no rotation"
        )
    rsun = _radius(header, lie.scale)
    if math.isnan(rsun):
        raise _Unusable("no geometry", "lacks RSUN_OBS, DSUN_OBS and R_SUN, or they are implausible")
    # Averaging keeps pixel edges where they are.
    centre = tuple((v - 0.5) / bins - 0.5 for v in lie.centre)
    if not all(math.isfinite(v) for v in centre):
        raise _Unusable("no geometry", "lacks CRPIX1 or CRPIX2, or CRVAL1 or CRVAL2 is no number")
    if not all(0 <= v < n / bins for v in centre):
        raise _Unusable("no geometry", "has the disk's centre, by CRPIX and CRVAL, outside of the image")
    reach = rsun / scale - _BORDER * min(n, 1024) / 1024
    if not all(reach < v < n / bins - 1 - reach for v in centre):
        raise _Unusable("part of the Sun", "does not show the whole disk")

    exposure, degradation, unknown = 1.0, 1.0, False
    if known.instrument == "AIA" and not per_second:
        exposure = _number(header, "EXPTIME")
        if not exposure > 0:
            raise _Unusable("no exposure time", "has no EXPTIME that is a number above zero")
        degradation = _number(header, "DEG_COR")
        if not degradation > 0:
            unknown, degradation = factor is None, 1.0 if factor is None else factor
    return _Plan(
        known,
        (512, 512),
        ready=False,
        rsun=rsun,
        zoom=disk_radius(min(n, 1024)) * scale / rsun,
        bins=bins,
        centre=(centre[0], centre[1]),
        turn=lie.turn,
        per_second=per_second,
        exposure=max(exposure, _MIN_EXPOSURE),
        degradation=degradation,
        degradation_unknown=unknown,
    )


@dataclass(frozen=True, slots=True)
class _Lie:
    """How the Sun lies in an image, as its header says; NaN where it does not."""

    #: Arcsec a pixel along a row.
    scale: float
    #: Sun's centre as (row, column), counted as CRPIX is: from 1 at a pixel's middle.
    centre: tuple[float, float]
    #: As `_Plan.turn`, where pixels are square.
    turn: tuple[float, float, float, float]


def _lie(header: Any) -> _Lie:
    """Read the linear part of FITS WCS (Greisen & Calabretta 2002); over the Sun no projection is felt."""
    west, north = (
        _ARCSEC.get((_text(header, key) or "arcsec").lower(), math.nan) for key in ("CUNIT1", "CUNIT2")
    )

    def given(**keys: float) -> list[float]:
        return [_number(header, key) if key in header else value for key, value in keys.items()]

    matrix = any(key in header for key in _PC)
    (along,) = given(CDELT1=1.0 if matrix else math.nan)
    (across,) = given(CDELT2=along)
    if matrix:
        a, b, c, d = given(**_PC)
        a, b, c, d = along * a, along * b, across * c, across * d
    elif any(key in header for key in _CD):
        a, b, c, d = given(**_CD)
    else:
        # Where there is a matrix, CROTA2 has no meaning.
        turn = math.radians(given(CROTA2=0.0)[0])
        cos, sin = (math.cos(turn), math.sin(turn)) if math.isfinite(turn) else (math.nan, math.nan)
        a, b, c, d = along * cos, -across * sin, along * sin, across * cos
    a, b, c, d = west * a, west * b, north * c, north * d
    scale = math.hypot(a, c) or math.nan
    a, b, c, d = a / scale, b / scale, c / scale, d / scale
    size = a * d - b * c or math.nan
    back = (a / size, -c / size, -b / size, d / size)
    # CRPIX is the place of CRVAL, which need not be the Sun's centre.
    x, y = (math.nan if math.isinf(v) else v for v in given(CRVAL1=0.0, CRVAL2=0.0))
    x, y = math.remainder(west * x, _CIRCLE), north * y
    row = _number(header, "CRPIX2") - (back[0] * y + back[1] * x) / scale
    column = _number(header, "CRPIX1") - (back[2] * y + back[3] * x) / scale
    return _Lie(scale, (row, column), back)


def _radius(header: Any, scale: float) -> float:
    """Return the Sun's apparent radius in arcsec, NaN if nothing tells it, given the arcsec of a pixel."""
    for key in ("RSUN_OBS", "SOLAR_R", "RADIUS"):
        if _RADII[0] < (radius := _number(header, key)) < _RADII[1]:
            return radius
    distance = _number(header, "DSUN_OBS")
    reference = _number(header, "RSUN_REF") if "RSUN_REF" in header else RSUN_M
    sine = reference / distance if distance > 0 else math.nan
    for radius in (
        math.degrees(math.asin(sine)) * 3600 if abs(sine) < 1 else math.nan,
        _number(header, "R_SUN") * scale,
    ):
        if _RADII[0] < radius < _RADII[1]:
            return radius
    return math.nan


def _moved(header: Any, n: int, rows: int) -> bool:
    """Tell whether an image is turned or shifted, or was cut since sunzip wrote it."""
    lie = _lie(header)
    # Of others R_SUN tells the size; their CDELT may be SDOML's nominal one.
    ours = "SZ_HDR" in header
    size = _number(header, "RSUN_OBS") / lie.scale / disk_radius(n) if ours else math.nan
    off = (
        lie.centre[0] - (rows + 1) / 2,
        lie.centre[1] - (n + 1) / 2,
        max(abs(v - w) for v, w in zip(lie.turn, (1, 0, 0, 1), strict=True)) * n / 2,
        (size - 1) * n / 2,
    )
    # What is not said, NaN, is as it was.
    return any(abs(pixels) > _STILL for pixels in off)


def _prepare(pixels: npt.NDArray[Any], plan: _Plan) -> npt.NDArray[np.float32]:
    """Bring one image to SDOML's geometry and units; see the top of this file.

    Parameters
    ----------
    pixels
        (N, N), as FITS has them; NaN where there is no measurement.
    plan
        From the image's header.

    Returns
    -------
    numpy.ndarray
        (512, 512) float32. AIA pixels that a missing one contributes to are NaN. HMI's are 0 off the disk,
        as SDOML has them, and NaN where the measurement is missing on it.
    """
    from scipy.ndimage import affine_transform

    hmi = plan.channel.instrument == "HMI"
    n = len(pixels) // plan.bins
    image, weight = np.empty((n, n)), np.empty((n, n))
    for begin in range(0, n, _ROWS):
        # A whole image of 4096² has 128 MiB as float64.
        rows = slice(begin, begin + _ROWS)
        part = np.asarray(pixels[begin * plan.bins : (begin + _ROWS) * plan.bins], np.float64)
        if hmi:
            measured = np.isfinite(part)
            weight[rows] = _block_mean(measured.astype(np.float64), plan.bins)
            part = np.where(measured, part, 0.0)
        image[rows] = _block_mean(part, plan.bins)
    if not hmi:
        weight = (image > 0).astype(np.float64)
        image[image <= 0] = 0.0

    matrix = np.array(plan.turn).reshape(2, 2) / plan.zoom
    offset = np.array(plan.centre) - matrix @ np.full(2, (n - 1) / 2)

    def warp(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        out: npt.NDArray[np.float64] = affine_transform(image, matrix, offset, order=1, mode="nearest")
        return out

    weight = warp(weight)
    image = warp(image) / (weight + _EPSILON)
    grid = np.ogrid[:n, :n]
    places = (matrix[i, 0] * grid[0] + (matrix[i, 1] * grid[1] + offset[i]) for i in (0, 1))
    beyond = np.maximum(*(abs(v - (n - 1) / 2) for v in places)) > (n - 1) / 2 + _BORDER * n / 1024
    image[beyond], weight[beyond] = 0.0 if hmi else np.nan, 0.0
    if n == 1024:
        image = _block_mean(image, 2)
        if hmi:
            # AIA's dark pixels are zeros in the mean, as SDOML has them; HMI's missing ones are no values.
            weight = _block_mean((weight > 0).astype(np.float64), 2)
            image = np.divide(image, weight, out=np.zeros_like(image), where=weight > 0)
    if hmi:
        y, x = np.ogrid[-255.5:256, -255.5:256]
        # Up to the last few pixels before the limb, where HMI's own mask ends.
        image[(weight == 0) & (np.hypot(y, x) < 0.97 * DISK_RADIUS_512)] = np.nan
    return (image / (plan.exposure * plan.degradation)).astype(np.float32)


def _block_mean(image: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.float64]:
    if bins == 1:
        return image
    rows, columns = (side // bins for side in image.shape)
    mean: npt.NDArray[np.float64] = image.reshape(rows, bins, columns, bins).mean(axis=(1, 3))
    return mean


def _plain(header: Any) -> dict[str, str | int | float | bool | None]:
    """Return a FITS header as plain values; a card that cannot be understood is left out."""
    from astropy.io.fits.verify import VerifyError

    plain: dict[str, str | int | float | bool | None] = {}
    lines: dict[str, list[str]] = {}
    for card in header.cards:
        try:
            key, value = card.keyword, card.value
        except (VerifyError, ValueError):
            continue
        if key in ("COMMENT", "HISTORY"):
            lines.setdefault(key, []).append(str(value))
            plain[key] = None  # its place
        elif key and not _STORAGE.fullmatch(key) and isinstance(value, str | int | float | bool):
            plain.setdefault(key, value)
    return plain | {key: "\n".join(parts) for key, parts in lines.items()}


def _read_degradation(folder: Path) -> dict[int, tuple[npt.NDArray[np.datetime64], npt.NDArray[np.float64]]]:
    """Read tables of AIA's degradation: wavelength → days, ascending, and the factors from each on."""
    tables = {}
    for file in sorted(folder.glob("degrad_*.csv")):
        match = re.fullmatch(r"degrad_(\d{2,4})\.csv", file.name)
        if match is None:
            continue
        try:
            rows = [line.replace('"', "").split(",") for line in file.read_text().split()]
            # NumPy would take 20100501 for a year, and no date at all and "today" for dates.
            table = sorted((np.datetime64(date.fromisoformat(day[:10]), "D"), float(f)) for day, f in rows)
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: is no table of dates and factors: {error!s:.100}") from error
        if not table or not all(0 < factor < 100 for _, factor in table):
            raise InputError(f"{file}: is empty, or has factors that are not above zero")
        for (day, one), (following, other) in pairwise(table):
            if day == following and one != other:
                raise InputError(f"{file}: has two factors of {day}, {one} and {other}; keep the right one")
        tables[int(match[1])] = (np.array([d for d, _ in table]), np.array([f for _, f in table]))
    if not tables:
        raise InputError(f"{folder}: holds no degradation tables (degrad_171.csv and so on)")
    return tables
