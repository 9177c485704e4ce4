"""The frames that all codecs are measured on: none that training of the default model saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.real_inputs import main as wrap_real
from sunzip.api import Alignment, open_series
from sunzip.cube import Scale

Float = npt.NDArray[np.float32]

#: By what share of a channel's spread its mean and its spread may differ in the same frames.
_NEAR = 1e-3

_SYNTHETIC = "synthetic:frames={frames},size={size},start=2024-03-01,cadence={cadence}"


@dataclass(frozen=True)
class Case:
    """Frames of the same channels.

    Attributes
    ----------
    key, title
        For files and for tables.
    channels
        The C channels, in canonical order.
    data
        (T, C, Y, X) float32 in DN/s and G, without gaps.
    series
        Whether frames follow each other as a film, and are coded so; if not, one by one.
    real
        Whether they are observations.
    times
        The first and the last.
    """

    key: str
    title: str
    channels: tuple[str, ...]
    data: Float
    series: bool
    real: bool
    times: tuple[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the pixels, and what these are by channel on average."""
        return {
            "title": self.title,
            "channels": list(self.channels),
            "shape": list(self.data.shape),
            "series": self.series,
            "real": self.real,
            "times": list(self.times),
            "mean": _short(self.data.mean((0, 2, 3), np.float64)),
            "spread": _short(self.data.std((0, 2, 3), dtype=np.float64)),
        }


def alike(case: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two that `Case.as_dict` gave are of the same frames.

    Not to the bit: the synthetic Sun's last digits depend on the processor, by less than its noise.
    """
    numbers = ("mean", "spread")
    rest, others = ({k: v for k, v in one.items() if k not in numbers} for one in (case, other))
    if rest != others:
        return False
    apart = [np.abs(np.subtract(case[key], other[key])) for key in numbers]
    return bool(np.all(np.stack(apart) <= _NEAR * np.asarray(case["spread"])))


def _short(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _case(
    key: str,
    title: str,
    url: str,
    align: Alignment,
    *,
    rows: slice = slice(None),
    channels: Sequence[str] = (),
    series: bool = False,
) -> Case:
    found = open_series(url, align=align)
    picks = range(len(found))[rows]
    cubes = [found.read(i, i + 1).to_scale(Scale.MEAN) for i in picks]
    names = tuple(c for c in cubes[0].channels if not channels or c in channels)
    places = [cubes[0].channels.index(c) for c in names]
    data = np.concatenate([cube.data[:, places] for cube in cubes])
    times = (str(found.time[picks[0]])[:16], str(found.time[picks[-1]])[:16])
    real = not url.startswith("synthetic:")
    return Case(key, title, names, np.ascontiguousarray(data, np.float32), series, real, times)


def cases(real: Path, work: Path, *, quick: bool, only: Collection[str] = ()) -> list[Case]:
    """Read the frames of all cases; with `quick`, a few.

    Parameters
    ----------
    real
        The folder with the real data.
    work
        A folder for files made of them.
    only
        Keys of those cases that are wanted; none for all.
    """
    wrap_real(real, work)
    v2, hourly = str(real / "sdomlv2_real.zarr"), str(work / "aia171_hourly.h5")
    january = Alignment(start="2017-01-16", stop="2018-01-01")
    october = Alignment(start="2024-01-01")
    august = Alignment(start="2017-08-12", cadence="1h")
    found: list[Case] = []

    def add(key: str, *args: Any, **kwargs: Any) -> None:
        if not only or key in only:
            found.append(_case(key, *args, **kwargs))

    if quick:
        add("real-193", "193 Å, January 2017", v2, january, rows=slice(0, 1))
        add("real-2024", "3 channels, October 2024", v2, october, channels=("131A", "171A", "211A"))
        add("series-171", "171 Å hourly", hourly, august, rows=slice(0, 8), series=True)
        return found
    add("real-193", "193 Å, January 2017", v2, january, rows=slice(0, None, 3))
    add("real-2024", "8 channels, October 2024", v2, october)
    add("real-bz", "Bz, January 2013", str(real / "sdoml_v1"), Alignment())
    add(
        "synthetic",
        "synthetic Sun, 12 channels",
        _SYNTHETIC.format(frames=2, size=512, cadence="100D"),
        Alignment(cadence="1D"),
    )
    # The only size that the paper's networks can code.
    add(
        "synthetic-128",
        "synthetic Sun at the paper's size",
        _SYNTHETIC.format(frames=4, size=128, cadence="50D"),
        Alignment(cadence="1D"),
    )
    add("series-171", "171 Å hourly, August 2017", hourly, august, series=True)
    # Whole disks, as SDOML has them: a cut-out would turn otherwise. Finer ones have more noise.
    for key, name, cadence, size in (
        ("series-12min", "12 minutes", "12min", 256),
        ("series-1h", "1 hour", "1h", 256),
        ("series-1D", "1 day", "1D", 256),
        ("series-12min-512", "12 minutes, native", "12min", 512),
    ):
        url = _SYNTHETIC.format(frames=8, size=size, cadence=cadence)
        add(key, f"synthetic Sun, every {name}", url, Alignment(cadence=cadence), series=True)
    return found
