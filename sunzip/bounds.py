"""Bounds: how far a decoded pixel may be from the original, as users say it and as pixels are held to it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel
from sunzip.cube import Scale, summed
from sunzip.errors import InputError
from sunzip.normalize import NOISE

#: Differences below the smallest normal float32 are none: numbers as small have no digits to tell them apart.
_NOTHING = float(np.finfo(np.float32).tiny)

#: Sizes that mean anything: from a few parts of a million million to what no measurement reaches.
_LEAST, _MOST = 1e-12, 1e9

#: Characters of bounds as text, at most: more than 12 channels need.
_LONGEST = 1000

_ITEM = re.compile(
    r"(?:(?P<name>[^=]{1,40})=)?\s*(?P<size>[0-9.]{1,40}(?:[eE][+-]?[0-9]{1,4})?)\s*(?P<unit>\S{1,10})"
)

_HOW = "a bound is 5%, 2sigma, 10DN/s or 20G, for all channels or for one: 2sigma,193A=5%,Bz=20G"


class Measure(StrEnum):
    """What the size of a bound counts: hundredths of a pixel, σ of its noise, or the channel's unit."""

    PERCENT = "percent"
    SIGMA = "sigma"
    UNIT = "unit"


#: How users write it, and the unit of those channels for which it can hold; None for all.
_WRITTEN: dict[str, tuple[Measure, str | None]] = {
    "%": (Measure.PERCENT, None),
    **dict.fromkeys(("sigma", "sigmas", "σ"), (Measure.SIGMA, None)),
    **dict.fromkeys(("dn/s", "dn"), (Measure.UNIT, "DN/s")),
    **dict.fromkeys(("g", "gauss"), (Measure.UNIT, "G")),
}


class Bound(NamedTuple):
    """The farthest that decoded pixels of a channel may be from the original ones.

    Attributes
    ----------
    measure
        What it is counted in: hundredths of each pixel's size, standard deviations of its noise
        (`sunzip.normalize.NOISE`), or DN/s or G.
    size
        How many.
    """

    measure: Measure
    size: float

    def tolerance(self, pixels: npt.NDArray[np.float32], name: str, scale: Scale) -> npt.NDArray[np.float64]:
        """Return how far from original pixels their decoded ones may be, in the unit of these.

        Parameters
        ----------
        pixels
            (…) float32 in DN/s or G, NaN where there is none.
        name
            Of their channel.
        scale
            Of AIA pixels. The noise of a sum is taken for four times that of the mean, as the pixel is.
        """
        size = np.abs(pixels, dtype=np.float64)
        if self.measure is Measure.PERCENT:
            size *= self.size / 100
        elif self.measure is Measure.UNIT:
            size[~np.isnan(size)] = self.size
        else:
            a, b = NOISE[name]
            parts = summed(name, scale)
            size = self.size * parts * np.sqrt(a * (size / parts + b))
        return np.maximum(size, _NOTHING)

    def outside(
        self,
        pixels: npt.NDArray[np.float32],
        decoded: npt.NDArray[np.float32],
        name: str,
        scale: Scale,
    ) -> int:
        """Count decoded pixels that are farther from the original than they may be; NaN in either is none.

        Parameters
        ----------
        pixels, name, scale
            As for `tolerance`.
        decoded
            (…) float32.
        """
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.subtract(decoded, pixels, dtype=np.float64))
        return int(np.count_nonzero(apart > self.tolerance(pixels, name, scale)))


#: The bound of each channel that has one.
Bounds = dict[str, Bound]

#: How users say it: text such as ``"2sigma,Bz=20G"``, or texts by channel.
Wish = str | Mapping[str, str]


def bounds_of(wish: Wish, channels: Iterable[str] = NAMES) -> Bounds:
    """Read which bounds hold for channels.

    Parameters
    ----------
    wish
        Text, or texts by channel. An item that names no channel holds for all, or for those of its unit if
        it has one; of two that hold for a channel, the one that names it counts, or else the one in its unit.
    channels
        Those that there are.

    Returns
    -------
    By name, in canonical order.

    Raises
    ------
    InputError
        If it cannot be read, says a thing twice, names a channel that is not there, or bounds none.

    Examples
    --------
    >>> for name, bound in bounds_of("5%,Bz=20G", ["171A", "Bz"]).items():
    ...     print(name, bound.size, bound.measure)
    171A 5.0 percent
    Bz 20.0 unit
    >>> list(bounds_of("10 DN/s", ["171A", "Bz"]))
    ['171A']
    >>> in_short(bounds_of("2sigma, 20G, Bz=5%", ["171A", "By", "Bz"]))
    '2sigma of 171A, 20G of By, 5% of Bz'
    """
    if isinstance(wish, str):
        items = wish.split(",")
    elif isinstance(wish, Mapping) and all(isinstance(part, str) for pair in wish.items() for part in pair):
        items = [f"{name}={text}" for name, text in wish.items()]
    else:
        raise InputError(f"max_error (--max-error) must be text or texts by channel; {_HOW}")
    there = list(channels)
    for_all: Bounds = {}
    for_unit: Bounds = {}
    for_one: Bounds = {}
    for item in (item.strip() for item in items):
        found = _ITEM.fullmatch(item)
        bound, unit = _read(found["size"], found["unit"]) if found else (None, None)
        if found is None or bound is None:
            raise InputError(f"max_error (--max-error): {item[:60]!r} is no bound; {_HOW}")
        names, into = there, for_all if unit is None else for_unit
        if found["name"] is not None:
            try:
                one = channel(found["name"])
            except InputError as error:
                raise InputError(f"max_error (--max-error): {error}") from None
            names, into = [one.name], for_one
            if one.name not in there:
                raise InputError(f"max_error (--max-error): there is no {one.name} among {' '.join(there)}")
            if unit not in (None, one.unit):
                raise InputError(f"max_error (--max-error): {one.name} is in {one.unit}, not in {unit}")
        held = [name for name in names if unit in (None, channel(name).unit)]
        if into.keys() & set(held):
            raise InputError(f"max_error (--max-error): {item!r} bounds once more what is bounded already")
        into |= dict.fromkeys(held, bound)
    found_for = for_all | for_unit | for_one
    if not found_for:
        raise InputError(f"max_error (--max-error): {wish!r} holds for none of {' '.join(there)}")
    return {name: found_for[name] for name in NAMES if name in found_for}


def bounds_in(configuration: Mapping[str, Any], channels: Iterable[str]) -> Bounds:
    """Read bounds from the configuration of a codec, which may come from strangers; none if it has none.

    Raises
    ------
    InputError
        If they are not as `told` tells them.
    """
    text = configuration.get("max_error")
    if text is None and "max_error" not in configuration:
        return {}
    bounds = bounds_of(text, channels) if isinstance(text, str) and len(text) <= _LONGEST else {}
    if text != told(bounds):
        raise InputError(f"max_error is {text!r:.60}, not what sunzip writes")
    return bounds


def _read(size: str, unit: str) -> tuple[Bound | None, str | None]:
    """Return a bound and the unit of the channels for which it can hold; None for what is none."""
    measure, of = _WRITTEN.get(unit.lower(), (None, None))
    try:
        value = float(size)
    except ValueError:
        value = math.nan
    return (Bound(measure, value), of) if measure and _LEAST <= value <= _MOST else (None, None)


def told(bounds: Bounds) -> str:
    """Return the text that says bounds channel by channel: the same for the same bounds.

    Examples
    --------
    >>> told(bounds_of("2sigma,Bz=20 gauss", ["Bz", "171A", "193A"]))
    '171A=2sigma,193A=2sigma,Bz=20G'
    """
    return ",".join(f"{name}={_written(bound, name)}" for name, bound in bounds.items())


def in_short(bounds: Bounds) -> str:
    """Return bounds for people: channels that have the same one together.

    Examples
    --------
    >>> in_short(bounds_of("2sigma,Bz=20G", ["Bz", "171A", "193A"]))
    '2sigma of 171A 193A, 20G of Bz'
    """
    found: dict[str, list[str]] = {}
    for name, bound in bounds.items():
        found.setdefault(_written(bound, name), []).append(name)
    return ", ".join(f"{text} of {' '.join(names)}" for text, names in found.items())


def _written(bound: Bound, name: str) -> str:
    """Return a bound of a channel as users write it."""
    signs = {Measure.PERCENT: "%", Measure.SIGMA: "sigma"}
    return repr(bound.size).removesuffix(".0") + signs.get(bound.measure, channel(name).unit)
