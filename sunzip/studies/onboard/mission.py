"""A mission as an instrument engineer writes it down: what is imaged, how often, and how it gets home."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES, channel
from sunzip.cube import MAX_SIDE
from sunzip.errors import InputError, needing
from sunzip.files import read_within
from sunzip.times import parse_duration

Floats = npt.NDArray[np.float64]

#: What a mission sends today.
PRESENT = ("raw", "ccsds121", "jpeg2000")

_MAX_BYTES = 1 << 16

# Beyond these numbers are slips, and sums of them no numbers any more: of bytes, bits per second and watts;
# of seconds between frames, weeks of which are simulated, and between passes; of passes that come about.
_LEAST, _MOST = 1e-6, 1e18
_MAX_CADENCE = 7 * 86400.0
_MIN_EVERY, _MAX_EVERY = 60.0, 366 * 86400.0
_MIN_USABLE = 0.01

#: Parts of a turn of the rarest pass, in each of which passes may overlap.
_PARTS = 1 << 16

_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BITS = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_WATT = {"mW": 1e-3, "W": 1.0}

_TOP = {"name", "summary", "channels", "size", "bits", "binning", "cadence", "storage", "downlink", "present",
        "active", "latency", "compute", "sources", "assumptions"}  # fmt: skip
_NEEDED = ("name", "channels", "size", "bits", "cadence", "storage", "downlink")


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a frame.

    Attributes
    ----------
    name
        What the mission calls the channel.
    like
        The channel of SDO that stands in for it, and as which the model codes it.
    """

    name: str
    like: str


@dataclass(frozen=True, slots=True)
class Pass:
    """A contact with the ground that comes again and again; times in seconds."""

    every: float
    lasts: float
    begins: float

    def shares(self, edges: Floats) -> Floats:
        """Return the share of contact in each of the spans between (N + 1,) times: (N,)."""
        turns, into = np.divmod(edges - self.begins, self.every)
        spent = turns * self.lasts + np.minimum(into, self.lasts)
        found: Floats = np.clip(np.diff(spent) / np.diff(edges), 0, 1)
        return found


@dataclass(frozen=True, slots=True)
class Mission:
    """What the study is told of a mission.

    Attributes
    ----------
    name, summary
        For the report.
    images
        The channels of a frame, in the canonical order of those that stand in.
    side
        Pixels along a side of an image.
    bits
        Of a pixel as the camera gives it.
    binning
        Detector pixels along a side of one image pixel, averaged; the noise falls by as much.
    cadence
        Seconds from frame to frame.
    storage
        Bytes of the recorder that are the instrument's.
    rate
        Bits per second of the downlink that are the instrument's, during a pass.
    passes
        When there is contact.
    usable
        Share of passes that come about.
    present
        How frames are coded today, one of `PRESENT`.
    active
        Share of the mission that the Sun is active.
    latency
        Seconds from exposure to ground that are asked for; None if nothing is.
    power, memory
        Watts and bytes that coding may take; None if not limited.
    sources, assumptions
        Where the numbers come from, and what was assumed for want of any.
    """

    name: str
    summary: str
    images: tuple[Image, ...]
    side: int
    bits: int
    binning: int
    cadence: float
    storage: float
    rate: float
    passes: tuple[Pass, ...]
    usable: float
    present: str
    active: float
    latency: float | None
    power: float | None
    memory: float | None
    sources: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that stand in, in canonical order."""
        return tuple(image.like for image in self.images)

    @property
    def pixels(self) -> int:
        """Pixels of a frame, all channels together."""
        return len(self.images) * self.side**2

    @property
    def contact(self) -> float:
        """Share of the time in which there is contact, passes that fail left out; overlaps count once."""
        edges = np.linspace(0, max(p.every for p in self.passes), _PARTS + 1)
        alone, none = np.zeros(_PARTS), np.ones(_PARTS)
        for p in self.passes:
            share = self.usable * p.shares(edges)
            alone += share
            none *= 1 - share
        once = float((1 - none).sum() / alone.sum()) if alone.any() else 1.0
        return once * self.usable * sum(p.lasts / p.every for p in self.passes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def presets() -> tuple[str, ...]:
    """Return the names of the missions that come with sunzip."""
    folder = files("sunzip.studies.onboard") / "presets"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def preset(name: str) -> Mission:
    """Return a mission that comes with sunzip.

    Raises
    ------
    InputError
        If there is none of that name, or PyYAML is not installed.
    """
    if name not in presets():
        raise InputError(f"no mission {name!r} comes with sunzip; there are {', '.join(presets())}")
    text = (files("sunzip.studies.onboard") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse(text, f"preset {name}")


def read(path: str | os.PathLike[str]) -> Mission:
    """Read a mission file.

    Raises
    ------
    InputError
        If it cannot be read or does not describe a mission; the message names the entry and what it should
        be.
    """
    where = os.fspath(path)
    data = read_within(where, _MAX_BYTES, "a mission file is a page of YAML")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: is no text; a mission file is a page of YAML") from None
    return parse(text, where)


def parse(text: str, where: str) -> Mission:
    """Make a mission of YAML text.

    Parameters
    ----------
    text
        The YAML.
    where
        Its name, for messages.

    Raises
    ------
    InputError
        See `read`; also if PyYAML is not installed.
    """
    with needing("onboard", "mission files need"):
        import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses what YAML forbids and PyYAML takes: an entry twice, of which the last would count."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in names:
                    problem = f"{_shown(key.value).strip(_QUOTES)} is there twice"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                names.add(key.value)
            return node

    try:
        found = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        # All but the first are what PyYAML makes of an empty !!int, of !!bool no such thing, of deep nesting,
        # of 1:1:…:1.0, which is a number to the base of 60.
        mark = getattr(error, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or f"an entry is not what its form says ({error})"
        raise InputError(f"{where}: is no YAML{at}: {' '.join(why.split())}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: is no mission file; it should hold {', '.join(_NEEDED)}")
    return _Reader(where).mission(found)


# Short whatever it is given: of lists within lists a few lines of YAML make more than memory holds.
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60
_QUOTES = "'\""
_ENDLESS = "a number without end"
#: Halves of characters, which no file can have.
_SURROGATE = re.compile("[\ud800-\udfff]")


def _shown(value: object) -> str:
    """Return a value of the file as a message can have it: some characters on one line."""
    try:
        text = _REPR.repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = _ENDLESS
    if isinstance(value, int) and text.startswith("<"):  # how Python 3.14 shows it
        text = _ENDLESS
    return " ".join(text.split())[:60]


class _Reader:
    """Takes entries out of parsed YAML, each checked; knows the file for messages."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, entry: str, wanted: str, value: object) -> InputError:
        return InputError(f"{self.where}: {entry}: {_shown(value)} should be {wanted}")

    def known(self, given: Mapping[Any, Any], names: set[str], prefix: str = "") -> None:
        for key in given:
            if key not in names:
                raise InputError(
                    f"{self.where}: {prefix}{_shown(key).strip(_QUOTES)}: no such entry; known are "
                    f"{', '.join(sorted(names))}"
                )

    def mapping(self, value: object, entry: str, names: set[str]) -> Mapping[Any, Any]:
        if not isinstance(value, dict):
            raise self.fail(entry, f"entries {', '.join(sorted(names))}", value)
        self.known(value, names, f"{entry}.")
        return value

    def whole(self, value: object, entry: str, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self.fail(entry, f"a whole number from {low} to {high}", value)
        return value

    def share(self, value: object, entry: str, low: float = 0) -> float:
        if type(value) not in (int, float) or not low <= value <= 1:  # type: ignore[operator]
            raise self.fail(entry, f"a number from {low:g} to 1", value)
        return float(value)  # type: ignore[arg-type]

    def seconds(self, value: object, entry: str, *, or_zero: bool = False) -> float:
        if or_zero and value in (0, "0", "0s", "0h", "0min"):
            return 0.0
        try:
            if not isinstance(value, str):
                raise InputError("")
            return float(parse_duration(value).astype("int64")) / 1000
        except InputError:
            raise self.fail(entry, "a number and a unit, as 12s, 15min, 8h or 1d", value) from None

    def quantity(
        self, value: object, entry: str, units: Mapping[str, float], *, or_zero: bool = False
    ) -> float:
        match = (
            re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) *([A-Za-z/]+)", value) if isinstance(value, str) else None
        )
        number = float(match[1]) * units.get(match[2], math.nan) if match else math.nan
        if or_zero and value == 0:
            number = 0.0
        if not (_LEAST <= number <= _MOST or (or_zero and number == 0)):
            raise self.fail(entry, f"a number and a unit of {', '.join(units)}, up to {_MOST:.0e}", value)
        return number

    def text(self, value: object, entry: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= 1000 or _SURROGATE.search(value):
            raise self.fail(entry, "a line of text", value)
        return " ".join(value.split())

    def texts(self, value: object, entry: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self.fail(entry, "a list of lines of text", value)
        return tuple(self.text(v, f"{entry}[{i}]") for i, v in enumerate(value))

    def images(self, value: object) -> tuple[Image, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= len(NAMES):
            raise self.fail("channels", f"a list of 1 to {len(NAMES)} channels", value)
        found = []
        for i, entry in enumerate(value):
            at = f"channels[{i}]"
            if type(entry) in (str, int):  # YAML takes 171 for a number
                entry = {"name": str(entry), "like": str(entry)}
            entry = self.mapping(entry, at, {"name", "like"})
            try:
                like = channel(self.text(entry.get("like"), f"{at}.like")).name
            except InputError as error:
                raise InputError(f"{self.where}: {at}.like: {error}") from None
            found.append(Image(self.text(entry.get("name", like), f"{at}.name"), like))
        likes = [image.like for image in found]
        for like in likes:
            if likes.count(like) > 1:
                raise InputError(
                    f"{self.where}: channels: two of them are like {like}; each needs one of its own"
                )
        return tuple(sorted(found, key=lambda image: NAMES.index(image.like)))

    def passes(self, value: object) -> tuple[Pass, ...]:
        entry = "downlink.passes"
        if not isinstance(value, list) or not 1 <= len(value) <= 1000:
            raise self.fail(entry, "a list of passes, as {every: 1d, lasts: 8h, begins: 3h}", value)
        found = []
        for i, row in enumerate(value):
            at = f"{entry}[{i}]"
            row = self.mapping(row, at, {"every", "lasts", "begins"})
            one = Pass(
                self.seconds(row.get("every"), f"{at}.every"),
                self.seconds(row.get("lasts"), f"{at}.lasts"),
                self.seconds(row.get("begins", 0), f"{at}.begins", or_zero=True),
            )
            if one.every < _MIN_EVERY:
                raise self.fail(f"{at}.every", "a minute or more", row["every"])
            if one.every > _MAX_EVERY:
                raise self.fail(f"{at}.every", "366d or less", row["every"])
            if one.begins + one.lasts > one.every:
                raise self.fail(at, "over before the next one is due (begins + lasts up to every)", dict(row))
            found.append(one)
        return tuple(found)

    def mission(self, given: Mapping[Any, Any]) -> Mission:
        self.known(given, _TOP)
        for key in _NEEDED:
            if key not in given:
                raise InputError(f"{self.where}: {key} is missing; a mission has {', '.join(_NEEDED)}")
        downlink = self.mapping(given["downlink"], "downlink", {"rate", "passes", "usable"})
        compute = self.mapping(given.get("compute", {}), "compute", {"power", "memory"})
        present = given.get("present", "ccsds121")
        if present not in PRESENT:
            raise self.fail("present", f"one of {', '.join(PRESENT)}", present)
        cadence = self.seconds(given["cadence"], "cadence")
        if cadence > _MAX_CADENCE:
            raise self.fail("cadence", "7d or less", given["cadence"])
        side = self.whole(given["size"], "size", 16, MAX_SIDE)
        if side % 16:
            raise self.fail("size", "a multiple of 16", side)
        return Mission(
            name=self.text(given["name"], "name"),
            summary=self.text(given.get("summary", given["name"]), "summary"),
            images=self.images(given["channels"]),
            side=side,
            bits=self.whole(given["bits"], "bits", 8, 16),
            binning=self.whole(given.get("binning", 1), "binning", 1, 64),
            cadence=cadence,
            storage=self.quantity(given["storage"], "storage", _BYTES, or_zero=True),
            rate=self.quantity(downlink.get("rate"), "downlink.rate", _BITS),
            passes=self.passes(downlink.get("passes")),
            usable=self.share(downlink.get("usable", 1), "downlink.usable", _MIN_USABLE),
            present=present,
            active=self.share(given.get("active", 0.5), "active"),
            latency=None if "latency" not in given else self.seconds(given["latency"], "latency"),
            power=None if "power" not in compute else self.quantity(compute["power"], "compute.power", _WATT),
            memory=None
            if "memory" not in compute
            else self.quantity(compute["memory"], "compute.memory", _BYTES),
            sources=self.texts(given.get("sources", []), "sources"),
            assumptions=self.texts(given.get("assumptions", []), "assumptions"),
        )
