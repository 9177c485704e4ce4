"""What a wavelet payload says before its symbols: what it builds on, its quality, how channels are coded."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.codec.family import Float, Known
from sunzip.errors import DamagedError
from sunzip.nn.exact import QUALITIES
from sunzip.rotation import MAX_MINUTES

Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int32]

#: Bits of the first byte: the network knows where the disk is; the frame builds on the one before, as frames
#: did at first; some channels' wavelet is the lazy one; some are told by how they differ from a mean disk;
#: the frame builds on one or two others; its quality is not the block's; what is new in a channel tells what
#: is new in others; fine levels are in tiles.
PLACED, TIMED, LAZY, ROUND, LINKED, OWN, NEWS, TILED = 1, 2, 4, 8, 16, 32, 64, 128

#: With a model of trusts, none of which ever built on frames as at first, it says that images have levels.
LEVELLED = TIMED

#: Set in the byte of a frame's own quality: channels depart from it.
_DEPARTING = 128

#: By how much they then do: what tells of many others is worth more.
DEPARTURES = (0, 0, 0, 6, 2, 0, 0, 0, 0, 0, 0, 0)

#: They do where 193 Å, 171 or 211 Å and a third channel of the extreme ultraviolet are coded together, in
#: images of such a side: in small ones channels tell less of each other.
_MOST_TELLING = NAMES.index("193A")
_TELLING = {NAMES.index("171A"), NAMES.index("211A")}
_CORONA, _ENOUGH, _LARGE = set(range(NAMES.index("1600A"))), 3, 256

#: A byte tells minutes of rotation: by six up to half a day, then by the hour.
_HALF_DAY, _FINE_TURN, _COARSE_TURN = 720, 6, 60


class Ways(NamedTuple):
    """How channels are coded: (12,) each.

    Attributes
    ----------
    lazy
        Those whose wavelet is the lazy one.
    round
        Those told by how they differ from a mean disk.
    """

    lazy: Bool
    round: Bool


class Quality(NamedTuple):
    """How finely a frame is coded.

    Attributes
    ----------
    frame
        0 to 100.
    departing
        Whether channels depart from it.
    of
        (12,) that of each channel.
    step, inverse
        (12,) what their coefficients are divided by, and one over it.
    """

    frame: int
    departing: bool
    of: Int
    step: Float
    inverse: Float


class Turns(NamedTuple):
    """Minutes by which the frames that another builds on are turned; None for one that there is not."""

    before: int | None = None
    after: int | None = None

    def __bool__(self) -> bool:
        return self != (None, None)


class Head(NamedTuple):
    """What a payload says before its symbols.

    Attributes
    ----------
    bits
        The first byte.
    turns
        Of the frames that it builds on.
    quality
        The frame's own.
    departing
        Whether channels depart from it.
    ways
        How channels are coded.
    levelled
        Whether images have levels.
    size
        Bytes that all this takes.
    """

    bits: int
    turns: Turns
    quality: int
    departing: bool
    ways: Ways
    levelled: bool
    size: int


def departs(channels: Sequence[int], shape: tuple[int, ...]) -> bool:
    """Tell whether channels of images (Y, X) are best coded by qualities of their own."""
    there = set(channels)
    telling = _MOST_TELLING in there and bool(there & _TELLING) and len(there & _CORONA) >= _ENOUGH
    return telling and min(shape) >= _LARGE


def qualities(quality: int, departing: bool) -> Int:
    """Return the quality (12,) of each channel of a frame."""
    departures = np.array(DEPARTURES, np.int32) if departing else np.zeros(len(NAMES), np.int32)
    return np.minimum(quality + departures, QUALITIES - 1)


def packed(bits: int, turns: Turns, known: Known, of_block: int, quality: Quality, ways: Ways) -> bytes:
    """Return the bytes of a head.

    Parameters
    ----------
    bits
        `PLACED`, `LEVELLED`, `NEWS` and `TILED`; what else the first byte says is in the other arguments.
    turns
        Of the frames that are built on.
    known
        Tells where these are.
    of_block
        The block's quality.
    quality
        The frame's.
    ways
        How channels are coded.
    """
    bits, rest = bits & (PLACED | LEVELLED | NEWS | TILED), b""
    if turns:
        bits |= LINKED
        back, ahead = (0 if m is None else n for m, n in zip(turns, (known.back, known.ahead), strict=True))
        rest += bytes([back | ahead << 4, *(as_told(m) for m in turns if m is not None)])
    if quality.departing or quality.frame != of_block:
        bits |= OWN
        rest += bytes([quality.frame | _DEPARTING * quality.departing])
    for bit, way in zip((LAZY, ROUND), ways, strict=True):
        if way.any():
            bits |= bit
            rest += sum(1 << int(c) for c in np.flatnonzero(way)).to_bytes(2, "little")
    return bytes([bits]) + rest


def links(payload: bytes, *, trusts: bool) -> tuple[int, int]:
    """Return how many frames before and after it those are that a frame builds on; 0 for none.

    `trusts` tells whether the model knows of these.
    """
    bits = payload[0] if payload else 0
    if bits & LINKED and len(payload) > 1:
        return payload[1] & 15, payload[1] >> 4
    return (1 if bits & TIMED and not trusts else 0), 0


def unpacked(payload: bytes, quality: int, known: Known, *, disks: bool, trusts: bool, tiles: bool) -> Head:
    """Read the head of a payload.

    Parameters
    ----------
    payload
        All of it.
    quality
        Of the block.
    known
        What is known of the frame.
    disks, trusts
        Whether the model knows of mean disks, and of trusts.
    tiles
        Whether the frame is large enough for tiles.

    Raises
    ------
    DamagedError
        If no encoder writes such a head.
    """
    bits = payload[0] if payload else NEWS
    timed, levelled = bool(bits & TIMED) and not trusts, bool(bits & LEVELLED) and trusts
    if (timed and bits & (LINKED | TILED)) or (bits & NEWS and not bits & LINKED):
        raise DamagedError("entropy-coded payload: its first byte is none that an encoder writes")
    if bits & NEWS and not trusts:
        raise DamagedError("entropy-coded payload: it trusts others more than its model does")
    if bits & TILED and not tiles:
        raise DamagedError("entropy-coded payload: its frame is too small for tiles")
    rest = BytesIO(payload)
    rest.seek(1)

    def number(count: int = 1) -> int:
        return int.from_bytes(rest.read(count), "little")

    turns = Turns()
    if timed:
        turns = Turns(number(2))
    elif bits & LINKED:
        number()
        turns = Turns(*(_minutes(number()) if n else None for n in links(payload, trusts=trusts)))
    if (timed or bits & LINKED) and not turns:
        raise DamagedError("entropy-coded payload: it builds on no frame")
    for turn, other in zip(turns, (known.before, known.after), strict=True):
        if turn is not None and other is None:
            raise DamagedError("entropy-coded payload: it builds on a frame that is not there")
        if turn is not None and turn > MAX_MINUTES:
            raise DamagedError(f"entropy-coded payload: the Sun turned by {turn} minutes")
    departing = False
    if bits & OWN:
        told = number()
        quality, departing = told & ~_DEPARTING, bool(told & _DEPARTING)
        if quality >= QUALITIES:
            raise DamagedError(f"entropy-coded payload: it is of quality {quality}")
    ways = Ways(np.zeros(len(NAMES), bool), np.zeros(len(NAMES), bool))
    for bit, way in zip((LAZY, ROUND), ways, strict=True):
        if bits & bit:
            mask = number(2)
            way[[c for c in known.channels if mask >> c & 1]] = True
            if way.sum() != mask.bit_count() or not mask:
                raise DamagedError("entropy-coded payload: it tells of channels that are not there")
    if (ways.lazy & ways.round).any() or (ways.round.any() and not disks):
        raise DamagedError("entropy-coded payload: it tells of disks that no encoder tells of")
    return Head(bits, turns, quality, departing, ways, levelled, rest.tell())


def as_told(minutes: int) -> int:
    """Return the byte that tells minutes of rotation."""
    half = _HALF_DAY // _FINE_TURN
    return minutes // _FINE_TURN if minutes <= _HALF_DAY else half + (minutes - _HALF_DAY) // _COARSE_TURN


def _minutes(told: int) -> int:
    """Return the minutes that a byte tells."""
    half = _HALF_DAY // _FINE_TURN
    return told * _FINE_TURN if told <= half else _HALF_DAY + (told - half) * _COARSE_TURN
