"""The 12 channels of SDO that sunzip knows: one table for their order, names, units and noise."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sunzip.errors import InputError

#: No pixel of any channel is as large, in DN/s or G: AIA's detectors end at 16383 DN, the Sun's fields below
#: 10 kG. What is, such as 1e20 or 3.4e38, stands for no measurement in the files of some programs.
BEYOND = 1e9


@dataclass(frozen=True, slots=True)
class Channel:
    """One image channel.

    Attributes
    ----------
    name
        SDOML v2 array name, the name used everywhere in sunzip: ``"171A"``, ``"Bz"``.
    index
        Position in the canonical order.
    instrument
        ``"AIA"`` or ``"HMI"``.
    wavelength
        In Å; 6173 for HMI.
    unit
        ``"DN/s"`` or ``"G"``.
    v1_id
        SDOML v1 identifier in file names: ``"0171"``, ``"bz"``.
    cmap
        Name of the customary sunpy colour map.
    exposure
        Customary exposure time of AIA in s; None for HMI.
    gain
        DN per photon of AIA, as SolarSoft's ``aia_bp_estimate_error`` has it; None for HMI.
    """

    name: str
    index: int
    instrument: Literal["AIA", "HMI"]
    wavelength: int
    unit: Literal["DN/s", "G"]
    v1_id: str
    cmap: str
    exposure: float | None = None
    gain: float | None = None


#: Wavelength in Å: exposure in s, DN per photon.
_AIA = {
    94: (2.9, 2.128),
    131: (2.9, 1.523),
    171: (2.0, 1.168),
    193: (2.0, 1.024),
    211: (2.9, 0.946),
    304: (2.9, 0.658),
    335: (2.9, 0.596),
    1600: (2.9, 0.125),
    1700: (1.0, 0.118),
}

#: Read-out noise of AIA in DN per detector pixel, and detector pixels along a side of the full image.
READ_NOISE_DN = 1.2
DETECTOR_SIDE = 4096

CHANNELS: tuple[Channel, ...] = (
    *(Channel(f"{w}A", i, "AIA", w, "DN/s", f"{w:04d}", f"sdoaia{w}", *_AIA[w]) for i, w in enumerate(_AIA)),
    *(Channel(f"B{c}", 9 + i, "HMI", 6173, "G", f"b{c}", "hmimag") for i, c in enumerate("xyz")),
)

NAMES: tuple[str, ...] = tuple(c.name for c in CHANNELS)

#: Of each channel, by index, those that tell most of it, the most telling first. Each comes after these.
TELLING: dict[int, tuple[int, ...]] = {
    3: (), 8: (), 11: (),
    4: (3, 8, 11), 2: (3, 8, 11), 7: (8, 3, 11), 9: (11, 8, 3),
    5: (2, 7, 3, 4, 8), 1: (2, 4, 3, 7), 6: (4, 3, 2, 7), 0: (4, 3, 2, 7), 10: (9, 11, 8, 7),
}  # fmt: skip

_BY_KEY = {c.name.lower(): c for c in CHANNELS} | {c.v1_id: c for c in CHANNELS}


def channel(name: str) -> Channel:
    """Look a channel up by any of its customary spellings.

    Parameters
    ----------
    name
        ``"171A"``, ``"171"``, ``"0171"``, ``"AIA171"``, ``"Bz"``, ``"bz"``, ``"HMI Bz"`` …

    Raises
    ------
    InputError
        If no channel is called so, or it is no text.

    Examples
    --------
    >>> channel("0171").name, channel("hmi bz").name
    ('171A', 'Bz')
    """
    found = None
    if isinstance(name, str):
        key = re.sub(r"^(aia|hmi)[ _-]*", "", name.strip().lower())
        found = _BY_KEY.get(key) or _BY_KEY.get(f"{key.lstrip('0')}a")
    if found is None:
        raise InputError(f"unknown channel {name!r:.60}; the channels are {' '.join(NAMES)}")
    return found


#: Units as programs spell them, in capitals and without blanks, dots, brackets, ``^`` and ``*``. Of an image
#: without a unit that was divided by its exposure sunpy leaves ``1 / s``.
_DN, _PIXEL = r"(1|DN|ADU|CTS?|COUNTS?)", r"(/PIX(EL)?|PIX(EL)?-1)"
_UNITS = {
    "DN": re.compile(rf"{_DN}?{_PIXEL}?"),
    "DN/s": re.compile(
        rf"{_DN}?({_PIXEL}?(/S(EC(OND)?S?)?|S-1)|/PIX(EL)?S|/S/?PIX(EL)?|S-1PIX(EL)?-1)|"
        rf"(PIX(EL)?-1)?S-1{_DN}"
    ),
    "G": re.compile(r"G|GAUSS|MX(/CM2|CM-2)"),
}


def unit_spelled(text: str) -> str | None:
    """Return which of ``"DN"``, ``"DN/s"`` and ``"G"`` a unit is, however spelled; None if it is another.

    Examples
    --------
    >>> unit_spelled("ct / (pix s)"), unit_spelled("Mx cm^-2"), unit_spelled("mG")
    ('DN/s', 'G', None)
    """
    bare = re.sub(r"[ .()^*]", "", text).upper()
    return next((unit for unit, spelled in _UNITS.items() if spelled.fullmatch(bare)), None)


def listed(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names of channels as they were given; a text is the name of one, not a list of letters.

    Raises
    ------
    InputError
        If they are neither a text nor several.
    """
    if isinstance(names, str):
        return (names,)
    try:
        return tuple(names)
    except TypeError:
        raise InputError(f"channels {names!r:.60} are no names; the channels are {' '.join(NAMES)}") from None


def canonical(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the named channels once each, in canonical order.

    Raises
    ------
    InputError
        If a name is unknown or none is given.
    """
    found = {channel(n).index for n in listed(names)}
    if not found:
        raise InputError(f"no channel named; the channels are {' '.join(NAMES)}")
    return tuple(NAMES[i] for i in sorted(found))


def any_of_aia(names: Iterable[str]) -> bool:
    """Whether any channel is of AIA: of HMI's pixels there is nothing to say of sums and means."""
    return any(channel(name).instrument == "AIA" for name in names)
