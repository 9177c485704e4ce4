"""Faults between camera and ground: packets lost, bits flipped, weights struck; what is left."""

from __future__ import annotations

import sys
import time as clock
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import __version__, weights
from sunzip.api import Alignment, OnStep, open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.lanes import here
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, UnsupportedError
from sunzip.frame import Block, Entry
from sunzip.sources.synthetic import render
from sunzip.studies.encoder import encoder_of
from sunzip.studies.noise import noise_error
from sunzip.studies.packets import (
    OVERHEAD,
    Key,
    collect,
    cut,
    library,
    parse,
    twice,
    unwrap,
    with_parity,
    wrap,
)
from sunzip.weights import Model

Float = npt.NDArray[np.float32]

#: Frames that are coded, and how often they are sent in one go.
_FRAMES, _ROUNDS = 6, 8

#: Pixels along a side of a tile, and of the frames that weights are struck with.
_TILE, _SMALL = 128, 64

#: Packets between a packet and its copy; packets that share a parity; groups that are interleaved.
DELAY, GROUP, DEPTH = 64, 8, 16

#: By how much the quality of a base lies below that of the frame.
_BASE = 40

#: Fewer losses, or longer bursts of them, would take for ever to make as many faults as are wanted.
_MIN_LOSS, _MAX_BURST = 1e-4, 1000.0

#: Most bits that one fault flips in a packet or a unit.
_MOST_BITS = 32

#: Share of packets, and of units, that a pass of bit flips hits.
_HIT, _HIT_UNITS = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to send coded frames, at the price of bytes.

    Attributes
    ----------
    key, title
        Its names.
    tiles
        Whether frames are coded as tiles that decode alone.
    base
        Whether a base of lower quality is sent twice beside the frame.
    send
        ``"once"``, ``"twice"`` or ``"parity"``.
    """

    key: str
    title: str
    tiles: bool = False
    base: bool = False
    send: str = "once"


SCHEMES = (
    Scheme("plain", "one block a frame"),
    Scheme("tiles", "tiles, each in packets of its own", tiles=True),
    Scheme("twice", f"every packet twice, {DELAY} apart", send="twice"),
    Scheme("parity", f"a parity packet for {GROUP}, interleaved {DEPTH} deep", send="parity"),
    Scheme("tiles-parity", "tiles and parity", tiles=True, send="parity"),
    Scheme("base", "a base twice, then the frame", base=True),
)


@dataclass(slots=True)
class _Stream:
    """What one scheme sends."""

    scheme: Scheme
    units: dict[Key, bytes]
    keys: list[Key]
    packets: list[bytes]
    tiles: int
    #: Bytes that go down, and those of the plain way, for the same frames.
    size: int


@dataclass(slots=True)
class Tally:
    """What became of the frames under one kind of fault.

    Attributes
    ----------
    faults
        That were injected: packets lost or struck, units struck.
    frames
        That were sent.
    whole, damaged, based, lost
        That came through whole; with tiles missing; as their base only; not at all.
    area
        Mean share of a damaged frame that is missing.
    refused
        Units that arrived altered and were refused.
    silent
        Units, or frames, that were decoded although they are not what was sent.
    """

    faults: int = 0
    frames: int = 0
    whole: int = 0
    damaged: int = 0
    based: int = 0
    lost: int = 0
    area: float = 0.0
    refused: int = 0
    silent: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        counts = {name: getattr(self, name) for name in self.__slots__ if name != "area"}
        return {**counts, "area": self.area / self.damaged if self.damaged else 0.0}


def bernoulli(n: int, p: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which of n packets are lost, each by itself with probability p."""
    return rng.random(n) < p


def gilbert_elliott(n: int, p: float, burst: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which of n packets are lost in bursts of `burst` packets on average, p of all (Gilbert 1960).

    In the bad state all packets are lost, in the good one none. The lengths of both are geometric, and the
    stretch begins in a state drawn with its long-term probability.
    """
    leave = 1 / burst
    enter = leave * p / (1 - p)
    lost = np.zeros(n, bool)
    at, bad = 0, bool(rng.random() < p)
    while at < n:
        length = int(rng.geometric(leave if bad else min(enter, 1.0))) if enter > 0 or bad else n
        lost[at : at + length] = bad
        at, bad = at + length, not bad
    return lost


def faults(
    *,
    model: str | Path | Model | None = None,
    quality: int | None = None,
    source: str | None = None,
    hmi: str | None = None,
    anon: bool = False,
    size: int = 512,
    count: int = 10_000,
    weight_count: int = 200,
    loss: float = 0.01,
    burst: float = 8.0,
    packet: int = 1776,
    seed: int = 0,
    progress: OnStep | None = None,
) -> dict[str, Any]:
    """Send coded frames through channels that lose packets and flip bits, and strike the encoder's weights.

    Parameters
    ----------
    model, quality
        What codes; default the default model at its own quality.
    source, hmi, anon
        Where frames come from; default an active synthetic Sun.
    size
        Pixels along a side of a frame.
    count
        Faults of each kind, for each scheme.
    weight_count
        Bits flipped in the weights, one at a time, each followed by coding a frame of 64² pixels.
    loss
        Share of packets that are lost.
    burst
        Mean length of a burst of lost packets.
    packet
        Most bytes of a packet.
    seed
        Of all draws.
    progress
        Called with what is done, how much of it and of how much.

    Returns
    -------
    Plain values, fit for JSON. ``silent`` counts what was decoded although it is not what was sent, of all
    that was struck between the block's checksum and the ground; it should be 0.

    Raises
    ------
    InputError
        If an argument cannot be used or spacepackets is not installed.
    """
    if not _MIN_LOSS <= loss < 0.5 or not 1 <= burst <= _MAX_BURST:
        raise InputError(
            f"a loss of {loss:g} in bursts of {burst:g}; losses go from {_MIN_LOSS:g} to 0.5, bursts from 1 "
            f"to {_MAX_BURST:g}"
        )
    library()
    begin = clock.monotonic()
    advance = progress or (lambda what, done, total: None)
    found = model if isinstance(model, Model) else weights.load(model or weights.DEFAULT)
    weights.register(found)
    codec = Codec(found, quality)
    codec.family.check_size(size, size)
    frames, channels, told = _frames(source, size, hmi, anon)
    advance("coding frames", 0, 1)
    streams = {
        s.key: _stream(s, codec, frames, channels, packet) for s in SCHEMES if _possible(s, codec, size)
    }
    plain = streams["plain"].size
    decodes = partial(_decodes, codec, channels)
    kinds: dict[str, Callable[[_Stream, np.random.Generator], _Sent]] = {
        "loss": lambda s, rng: _lose(s, bernoulli(len(s.packets), loss, rng)),
        "bursts": lambda s, rng: _lose(s, gilbert_elliott(len(s.packets), loss, burst, rng)),
        "flips_after": _flip_packets,
        "flips_before": lambda s, rng: _flip_units(s, packet, rng),
    }
    rows: list[dict[str, Any]] = []
    silent = 0
    for done, (key, stream) in enumerate(streams.items()):
        advance("sending", done, len(streams))
        tallies = {}
        for n, (kind, strike) in enumerate(kinds.items()):
            rng = np.random.default_rng([seed, done, n])
            tally = _sweep(stream, strike, count, decodes, rng)
            silent += tally.silent
            tallies[kind] = tally.as_dict()
        rows.append(
            {
                "scheme": key,
                "title": stream.scheme.title,
                "bytes_per_frame": stream.size / len(frames),
                "overhead": stream.size / plain - 1,
                "packets_per_frame": len(stream.packets) / len(frames) / _ROUNDS,
                "kinds": tallies,
            }
        )
    advance("striking payloads", 0, 1)
    payloads = _strike_payloads(codec, frames, channels, count, np.random.default_rng([seed, 100]))
    struck = strike_weights(
        codec, frames, channels, weight_count, np.random.default_rng([seed, 101]), advance
    )
    return {
        "sunzip": __version__,
        "model": {
            "name": found.name,
            "family": found.family,
            "sha256": found.sha256,
            "quality": codec.shown_quality,
        },
        "frames": {
            "source": told,
            "coded": len(frames),
            "images": int(np.count_nonzero(~np.isnan(frames).all(axis=(2, 3)))),
            "side": size,
            "channels": list(channels),
        },
        "channel": {"loss": loss, "burst": burst, "packet": packet, "overhead": OVERHEAD, "seed": seed},
        "concealed": _concealed(codec, frames, channels),
        "schemes": rows,
        "payloads": payloads,
        "weights": struck,
        "silent": silent,
        "seconds": clock.monotonic() - begin,
    }


def _frames(
    source: str | None, size: int, hmi: str | None, anon: bool
) -> tuple[list[Float], tuple[str, ...], str]:
    if source is None:
        start, step = np.datetime64("2014-02-01", "ms"), np.timedelta64(12, "m")
        return (
            [render(start + n * step, size=size) for n in range(_FRAMES)],
            NAMES,
            "synthetic Sun of 2014-02-01",
        )
    series = open_series(source, hmi=hmi, anon=anon, align=Alignment(size=size))
    read = (series.read(n, n + 1).to_scale(Scale.MEAN).data[0] for n in range(len(series)))
    # A series never is without any image.
    frames = list(islice((frame for frame in read if not np.isnan(frame).all()), _FRAMES))
    # The first frames of a store of many years may have few of its channels; the others do not fly.
    seen = np.flatnonzero(~np.isnan(frames).all(axis=(0, 2, 3)))
    channels = tuple(series.channels[n] for n in seen)
    return [frame[seen] for frame in frames], channels, f"the first {len(frames)} frames of {source}"


def _possible(scheme: Scheme, codec: Codec, size: int) -> bool:
    """Tell whether a model can do what a scheme asks for: code tiles, or code at a lower quality."""
    if scheme.base and codec.model.family == "sigma-vae":
        return False
    if not scheme.tiles:
        return True
    try:
        codec.family.check_size(_TILE, _TILE)
    except InputError:
        return False
    return size >= 2 * _TILE and size % _TILE == 0


def _tiles(frame: Float) -> Iterator[Float]:
    for y in range(0, frame.shape[1], _TILE):
        for x in range(0, frame.shape[2], _TILE):
            yield frame[:, y : y + _TILE, x : x + _TILE]


def _stream(
    scheme: Scheme, codec: Codec, frames: Sequence[Float], channels: tuple[str, ...], packet: int
) -> _Stream:
    coded: list[list[bytes]] = []
    for frame in frames:
        parts = list(_tiles(frame)) if scheme.tiles else [frame]
        coded.append(codec.encode(np.ascontiguousarray(np.stack(parts)), channels))
    low = codec.at(max(0, codec.quality - _BASE))
    bases = [low.encode(f[None], channels)[0] for f in frames] if scheme.base else []
    units: dict[Key, bytes] = {}
    keys = []
    order: list[bytes] = []
    for number in range(len(frames) * _ROUNDS):
        if scheme.base:
            key = Key(number, 0, 1)
            units[key] = bases[number % len(frames)]
            order += [wrap(key, units[key])] * 2
        for tile, block in enumerate(coded[number % len(frames)]):
            key = Key(number, tile, 0)
            units[key] = block
            order.append(wrap(key, block))
            keys.append(key)
    packets = _sent(scheme, cut(order, packet))
    tiles = len(coded[0])
    return _Stream(scheme, units, keys, packets, tiles, sum(map(len, packets)) // _ROUNDS)


def _sent(scheme: Scheme, packets: list[bytes]) -> list[bytes]:
    if scheme.send == "twice":
        return twice(packets, DELAY)
    return with_parity(packets, GROUP, DEPTH) if scheme.send == "parity" else packets


#: Packets that arrive, and how many faults there were.
_Sent = tuple[list[bytes], int]


def _lose(stream: _Stream, lost: npt.NDArray[np.bool_]) -> _Sent:
    kept = [p for p, gone in zip(stream.packets, lost.tolist(), strict=True) if not gone]
    return kept, int(lost.sum())


def _flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip 1 to `_MOST_BITS` bits: single ones half of the time, else anywhere."""
    bits = 1 if rng.random() < 0.5 else int(rng.integers(2, _MOST_BITS + 1))
    out = bytearray(data)
    for place in rng.choice(8 * len(data), min(bits, 8 * len(data)), replace=False).tolist():
        out[place >> 3] ^= 1 << (place & 7)
    return bytes(out)


def _flip_packets(stream: _Stream, rng: np.random.Generator) -> _Sent:
    """Strike packets on their way: after the packet's checksum was made."""
    hit = np.flatnonzero(rng.random(len(stream.packets)) < _HIT)
    packets = list(stream.packets)
    for n in hit.tolist():
        packets[n] = _flipped(packets[n], rng)
    return packets, len(hit)


def _flip_units(stream: _Stream, packet: int, rng: np.random.Generator) -> _Sent:
    """Strike units in the recorder, before packets are made, whose checksums then cover what is wrong."""
    units = []
    hits = 0
    for key, block in stream.units.items():
        for _ in range(2 if key.layer else 1):
            unit = wrap(key, block)
            if rng.random() < _HIT_UNITS:
                unit, hits = _flipped(unit, rng), hits + 1
            units.append(unit)
    return _sent(stream.scheme, cut(units, packet)), hits


def _decodes(codec: Codec, channels: tuple[str, ...], block: bytes) -> bool:
    """Tell whether a block that is none of those sent decodes nevertheless."""
    try:
        codec.decode([block], channels, Block.unpack(block).shape)
    except (DamagedError, UnsupportedError):
        return False
    return True


def _sweep(
    stream: _Stream,
    strike: Callable[[_Stream, np.random.Generator], _Sent],
    wanted: int,
    decodes: Callable[[bytes], bool],
    rng: np.random.Generator,
) -> Tally:
    tally = Tally()
    depth = DEPTH if stream.scheme.send == "parity" else 0
    numbers = sorted({key.frame for key in stream.units})
    # Of what is sent again and again; packets that were struck come once.
    parsed = {packet: found for packet in stream.packets if (found := parse(packet))}
    while tally.faults < wanted:
        received, struck = strike(stream, rng)
        tally.faults += struck
        arrived: set[Key] = set()
        for unit in collect(received, depth, parsed=parsed):
            try:
                key, block = unwrap(unit)
            except DamagedError:
                tally.refused += 1
                continue
            if stream.units.get(key) == block:
                arrived.add(key)
            elif decodes(block):
                tally.silent += 1
            else:
                tally.refused += 1
        for number in numbers:
            here = sum(Key(number, tile, 0) in arrived for tile in range(stream.tiles))
            tally.frames += 1
            if here == stream.tiles:
                tally.whole += 1
            elif Key(number, 0, 1) in arrived:
                tally.based += 1
            elif here:
                tally.damaged += 1
                tally.area += 1 - here / stream.tiles
            else:
                tally.lost += 1
    return tally


def _concealed(codec: Codec, frames: Sequence[Float], channels: tuple[str, ...]) -> dict[str, float | None]:
    """Return the error of what is shown: the frame; its base; and the frame before, where one is lost."""
    shape = (frames[0].shape[1], frames[0].shape[2])
    decoded = codec.decode(codec.encode(np.stack(frames), channels), channels, shape)
    low = codec.at(max(0, codec.quality - _BASE))
    bases = low.decode(low.encode(np.stack(frames), channels), channels, shape)

    def error(shown: Iterable[Float], meant: Iterable[Float]) -> float | None:
        found = np.array([noise_error(a, b, channels) for a, b in zip(shown, meant, strict=True)])
        # A frame has no error that shares no channel with the one that is shown for it.
        known = found[np.isfinite(found)]
        return float(known.mean()) if known.size else None

    return {
        "decoded": error(decoded, frames),
        "base": error(bases, frames),
        "before": error(decoded[:-1], frames[1:]),
    }


def _small(codec: Codec, frames: Sequence[Float]) -> Float:
    """Return a frame that codes fast: a corner of the disk, or a whole frame where only one size will do."""
    side = _SMALL
    try:
        codec.family.check_size(side, side)
    except InputError:
        side = frames[0].shape[1]
    middle = frames[0].shape[1] // 4
    y = min(middle, frames[0].shape[1] - side)
    return np.ascontiguousarray(frames[0][:, y : y + side, y : y + side])


def _strike_payloads(
    codec: Codec, frames: Sequence[Float], channels: tuple[str, ...], wanted: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Strike entropy-coded payloads before any checksum is made: only the entropy coder itself can tell.

    It must end in the state in which the encoder began; what escapes its tables is stored as it is, and flips
    there pass.
    """
    frame = _small(codec, frames)
    shape = (frame.shape[1], frame.shape[2])
    (coded,) = codec.encode(frame[None], channels)
    block, right = Block.unpack(coded), codec.decode([coded], channels, shape)
    refused = same = passed = 0
    for _ in range(wanted):
        payload = _flipped(block.payloads[0], rng)
        struck = block.with_entries([Entry(block.masks[0], payload, block.gaps[0])]).pack()
        try:
            # To the pixels: latents of a wavelet model are read from the payload's beginning alone.
            decoded = codec.decode([struck], channels, shape)
        except DamagedError:
            refused += 1
            continue
        if np.array_equal(decoded, right, equal_nan=True):
            same += 1
        else:
            passed += 1
    return {"faults": wanted, "refused": refused, "same": same, "passed": passed}


@dataclass(slots=True)
class _Memory:
    """An array of the encoder that is held in memory, as bytes that can be struck."""

    name: str
    raw: npt.NDArray[np.uint8]
    digest: int = field(init=False)

    def __post_init__(self) -> None:
        self.digest = self.now()

    def now(self) -> int:
        """Return the digest of what the array holds now."""
        return zlib.crc32(self.raw.data)


def memory_of(codec: Codec) -> list[_Memory]:
    """Return the arrays with which a family encodes: weights of its networks, and other arrays in its memory.

    Of families that `sunzip.studies.encoder` knows, what stays on the ground is left out. Entropy tables are
    not among them: the entropy coder keeps its own copies.
    """
    # Without PyTorch no array is one of its.
    torch = sys.modules.get("torch")
    found: dict[int, _Memory] = {}
    try:
        skipped = tuple(f"network.{part}" for part in encoder_of(codec).on_ground)
    except UnsupportedError:
        skipped = ()

    def look(name: str, thing: object, depth: int) -> None:
        if torch and isinstance(thing, torch.nn.Module):
            for key, tensor in thing.state_dict().items():
                if not f"{name}.{key}.".startswith(tuple(f"{part}." for part in skipped)):
                    look(f"{name}.{key}", tensor, depth)
        elif torch and isinstance(thing, torch.Tensor):
            if thing.device.type == "cpu" and thing.numel() and thing.untyped_storage().nbytes():
                # Convolution weights lie channels last: all bytes of the storage, in whatever order.
                whole = torch.empty(0, dtype=torch.uint8).set_(thing.untyped_storage())
                found.setdefault(whole.data_ptr(), _Memory(name, whole.numpy()))
        elif isinstance(thing, np.ndarray):
            if thing.size and thing.flags.writeable and thing.flags.c_contiguous and thing.dtype != object:
                found.setdefault(thing.ctypes.data, _Memory(name, thing.reshape(-1).view(np.uint8)))
        elif depth and isinstance(thing, list | tuple):
            for n, each in enumerate(thing):
                look(f"{name}.{n}", each, depth - 1)
        elif depth and isinstance(thing, dict):
            for key, each in thing.items():
                look(f"{name}.{key}", each, depth - 1)
        elif depth and type(thing).__module__.startswith("sunzip.") and not isinstance(thing, Model):
            slots = getattr(type(thing), "__slots__", ())
            names = [*getattr(thing, "__dict__", {}), *([slots] if isinstance(slots, str) else slots)]
            for each in names:
                look(f"{name}.{each}".lstrip("."), getattr(thing, each, None), depth - 1)

    look("", codec.family, 5)
    return list(found.values())


def strike_weights(
    codec: Codec,
    frames: Sequence[Float],
    channels: tuple[str, ...],
    wanted: int,
    rng: np.random.Generator,
    advance: OnStep,
) -> dict[str, Any]:
    """Flip single bits in the encoder's memory and code a frame with each.

    Returns
    -------
    What the ground sees, which decodes with sound weights: blocks that are the same; that decode to an error
    at most 1 % larger, to a larger one, to one twice as large or more; that are refused; and nothing, as the
    encoder broke off. Of all faults, how many a digest of the weights finds; and the seconds that taking it
    takes.
    """
    frame = _small(codec, frames)[None]
    shape = (frame.shape[2], frame.shape[3])
    ground = Codec(codec.model, codec.quality)
    flying = Codec(codec.model, codec.quality)
    with here():
        (right,) = flying.encode(frame, channels)
    sound = noise_error(ground.decode([right], channels, shape)[0], frame[0], channels)
    parts = memory_of(flying)
    sizes = np.array([part.raw.size for part in parts])
    counts = dict.fromkeys(("same", "harmless", "worse", "useless", "refused", "broken_off"), 0)
    noticed = 0
    largest = 0.0
    for n in range(wanted):
        if n % 50 == 0:
            advance("striking weights", n, wanted)
        part = parts[int(rng.choice(len(parts), p=sizes / sizes.sum()))]
        place, bit = int(rng.integers(part.raw.size)), int(rng.integers(8))
        part.raw[place] ^= np.uint8(1 << bit)
        try:
            # Here, as only this process has the memory that was struck.
            with np.errstate(all="ignore"), here():
                blocks = flying.encode(frame, channels)
        except Exception:  # whatever an encoder does whose memory is not what it was when that was checked
            blocks = None
        finally:
            noticed += part.now() != part.digest
            part.raw[place] ^= np.uint8(1 << bit)
        if blocks is None:
            counts["broken_off"] += 1
            continue
        if blocks[0] == right:
            counts["same"] += 1
            continue
        try:
            error = noise_error(ground.decode(blocks, channels, shape)[0], frame[0], channels)
        except (DamagedError, UnsupportedError):
            counts["refused"] += 1
            continue
        ratio = error / sound
        largest = max(largest, ratio)
        counts["harmless" if ratio <= 1.01 else "worse" if ratio < 2 else "useless"] += 1
    begin = clock.perf_counter()
    intact = all(part.now() == part.digest for part in parts)
    seconds = clock.perf_counter() - begin
    assert intact, "a struck bit was not put back"
    return {
        "faults": wanted,
        "bytes": int(sizes.sum()),
        **counts,
        "largest_error": largest,
        "noticed": noticed,
        "unnoticed": wanted - noticed,
        "digest_seconds": seconds,
    }
