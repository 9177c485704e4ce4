"""Coded frames as CCSDS space packets, and back from those that arrive.

A *unit* is one block with what it is (frame, tile, layer) and a checksum over both, so that a block never
lands in another's place. Units are cut into packets of at most so many bytes: primary header (CCSDS
133.0-B-2), a piece of the unit, CRC-16 (CCITT, from 0xFFFF, as ECSS-E-ST-70-41C has it). A unit always
begins in a packet of its own: what is lost of one leaves the others whole.
"""

from __future__ import annotations

import struct
import zlib
from binascii import crc_hqx
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sunzip.errors import DamagedError, InputError, needing

#: Bytes of the primary header and of the checksum, which every packet has.
OVERHEAD = 6 + 2

_UNIT = struct.Struct(">IHBI")
_UNIT_CRC = struct.Struct(">I")
_PARITY = struct.Struct(">IHH")
_COUNT = 1 << 14
_APID_DATA, _APID_PARITY = 0x2A, 0x2B
_MAX_PACKET = 1 << 16


class Key(NamedTuple):
    """What a block is: frame number, tile in the frame, layer (0 the frame, 1 its base)."""

    frame: int
    tile: int
    layer: int


class Packet(NamedTuple):
    """A packet that arrived whole: its stream and number, whether it begins or ends a unit, its data."""

    apid: int
    number: int
    first: bool
    last: bool
    data: bytes


def library() -> Any:
    """Return what makes and reads space packets, or say that it is missing: also before long work.

    Raises
    ------
    InputError
        If spacepackets is not installed.
    """
    with needing("onboard", "space packets need"):
        from spacepackets import ccsds
    return ccsds


def wrap(key: Key, block: bytes) -> bytes:
    """Make a unit of a block."""
    body = _UNIT.pack(*key, len(block)) + block
    return body + _UNIT_CRC.pack(zlib.crc32(body))


def unwrap(unit: bytes) -> tuple[Key, bytes]:
    """Invert `wrap`.

    Raises
    ------
    DamagedError
        If the unit is not one that `wrap` made.
    """
    if len(unit) < _UNIT.size + _UNIT_CRC.size:
        raise DamagedError(f"unit of {len(unit)} bytes: too short")
    body = unit[: -_UNIT_CRC.size]
    if zlib.crc32(body) != _UNIT_CRC.unpack(unit[-_UNIT_CRC.size :])[0]:
        raise DamagedError("unit: its checksum does not match its bytes")
    *key, length = _UNIT.unpack_from(body)
    if length != len(body) - _UNIT.size:
        raise DamagedError("unit: its length does not match its bytes")
    return Key(*key), body[_UNIT.size :]


def _packet(apid: int, count: int, flags: Any, data: bytes) -> bytes:
    ccsds = library()
    header = ccsds.SpHeader(
        packet_type=ccsds.PacketType.TM,
        apid=apid,
        seq_count=count % _COUNT,
        data_len=len(data) + 1,  # with the checksum, less one, as the standard has it
        seq_flags=flags,
    )
    body = bytes(header.pack()) + data
    return body + struct.pack(">H", crc_hqx(body, 0xFFFF))


def cut(units: Iterable[bytes], size: int, first: int = 0) -> list[bytes]:
    """Cut units into packets.

    Parameters
    ----------
    units
        What `wrap` returned.
    size
        Most bytes of a packet.
    first
        Count of the first packet.

    Raises
    ------
    InputError
        If packets would be too small or too large for the standard.
    """
    if not OVERHEAD < size <= _MAX_PACKET:
        raise InputError(f"packets of {size} bytes; they have more than {OVERHEAD} and up to {_MAX_PACKET}")
    flags = library().SequenceFlags
    room = size - OVERHEAD
    packets: list[bytes] = []
    for unit in units:
        pieces = [unit[at : at + room] for at in range(0, len(unit), room)]
        for n, piece in enumerate(pieces):
            begins, ends = n == 0, n == len(pieces) - 1
            flag = (
                flags.UNSEGMENTED
                if begins and ends
                else flags.FIRST_SEGMENT
                if begins
                else flags.LAST_SEGMENT
                if ends
                else flags.CONTINUATION_SEGMENT
            )
            packets.append(_packet(_APID_DATA, first + len(packets), flag, piece))
    return packets


def parse(packet: bytes) -> Packet | None:
    """Read a packet; None if it is none, or its bytes do not agree with its checksum."""
    if len(packet) <= OVERHEAD or crc_hqx(packet[:-2], 0xFFFF) != int.from_bytes(packet[-2:], "big"):
        return None
    ccsds = library()
    header = ccsds.SpHeader.unpack(packet[:6])
    if header.data_len + 7 != len(packet) or header.apid not in (_APID_DATA, _APID_PARITY):
        return None
    flags = header.seq_flags
    return Packet(
        int(header.apid),
        int(header.seq_count),
        flags in (ccsds.SequenceFlags.FIRST_SEGMENT, ccsds.SequenceFlags.UNSEGMENTED),
        flags in (ccsds.SequenceFlags.LAST_SEGMENT, ccsds.SequenceFlags.UNSEGMENTED),
        packet[6:-2],
    )


def with_parity(packets: Sequence[bytes], group: int, depth: int) -> list[bytes]:
    """Add a packet of parity to every `group` packets, interleaved `depth` deep.

    Of each stretch of group·depth packets, those whose places are equal modulo depth share a parity packet,
    which is sent behind the stretch: a burst of up to `depth` packets takes one of each group at most.

    Parameters
    ----------
    packets
        What `cut` returned, its counts from 0 on.
    group, depth
        Packets that share one parity, and groups that are interleaved.

    Raises
    ------
    InputError
        If the packets are so long that one of parity, which is 16 bytes longer, would be no packet.
    """
    longest = max(map(len, packets), default=0) + OVERHEAD + _PARITY.size
    if longest > _MAX_PACKET:
        raise InputError(
            f"packets of parity of {longest} bytes; they have up to {_MAX_PACKET}: cut packets of up to "
            f"{_MAX_PACKET - OVERHEAD - _PARITY.size} bytes"
        )
    flags = library().SequenceFlags
    out: list[bytes] = []
    sent = 0
    for begin in range(0, len(packets), group * depth):
        stretch = packets[begin : begin + group * depth]
        out += stretch
        for lane in range(min(depth, len(stretch))):
            members = stretch[lane::depth]
            lengths, data = 0, 0
            for packet in members:
                lengths ^= len(packet)
                data ^= int.from_bytes(packet, "little")
            longest = max(map(len, members))
            body = _PARITY.pack(begin + lane, len(members), lengths) + data.to_bytes(longest, "little")
            out.append(_packet(_APID_PARITY, sent, flags.UNSEGMENTED, body))
            sent += 1
    return out


def twice(packets: Sequence[bytes], delay: int) -> list[bytes]:
    """Send every packet again, `delay` packets later, so that no burst takes both."""
    out = []
    for n in range(len(packets) + delay):
        if n < len(packets):
            out.append(packets[n])
        if n >= delay:
            out.append(packets[n - delay])
    return out


def collect(
    received: Iterable[bytes], depth: int = 0, *, parsed: Mapping[bytes, Packet] | None = None
) -> list[bytes]:
    """Put units together from what arrived, in any number of copies, late by less than 8192 packets.

    Parameters
    ----------
    received
        Bytes of packets, some of which may be damaged.
    depth
        That `with_parity` was given; 0 without parity.
    parsed
        What `parse` gives of packets that are likely to be among them, to be had faster.

    Returns
    -------
    Units whose packets are all there. They are not checked yet: see `unwrap`.
    """
    known: dict[int, bytes] = {}
    parities: list[bytes] = []
    reached = 0

    def read(packet: bytes) -> Packet | None:
        return (parsed and parsed.get(packet)) or parse(packet)

    for packet in received:
        found = read(packet)
        if found is None:
            continue
        if found.apid == _APID_PARITY:
            parities.append(found.data)
            continue
        # Counts begin again after 2^14: of all that it may be, the number nearest to the last one is meant.
        number = reached + (found.number - reached + _COUNT // 2) % _COUNT - _COUNT // 2
        reached = max(reached, number)
        known.setdefault(number, packet)
    for parity in parities:
        _mend(known, parity, depth)
    units: list[bytes] = []
    pieces: list[bytes] = []
    after = -1
    for number in sorted(known):
        found = read(known[number])
        assert found is not None
        if found.first:
            pieces = [found.data]
        elif pieces and number == after + 1:
            pieces.append(found.data)
        else:
            pieces = []
        if pieces and found.last:
            units.append(b"".join(pieces))
            pieces = []
        after = number
    return units


def _mend(known: dict[int, bytes], parity: bytes, depth: int) -> None:
    """Restore the packet of a group that is missing, if only one is and its checksum agrees."""
    if len(parity) < _PARITY.size or not depth:
        return
    begin, members, lengths = _PARITY.unpack_from(parity)
    numbers = [begin + depth * n for n in range(members)]
    missing = [n for n in numbers if n not in known]
    if len(missing) != 1:
        return
    data = int.from_bytes(parity[_PARITY.size :], "little")
    for n in numbers:
        if n in known:
            lengths ^= len(known[n])
            data ^= int.from_bytes(known[n], "little")
    if 0 < lengths <= len(parity) and data >> 8 * lengths == 0:
        packet = data.to_bytes(lengths, "little")
        found = parse(packet)
        if found is not None and found.apid == _APID_DATA and found.number == missing[0] % _COUNT:
            known[missing[0]] = packet
