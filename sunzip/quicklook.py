"""Draw frames as one picture of labelled panels, so that a person sees at a glance what is in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import Channel, canonical, channel, listed
from sunzip.cube import disk_radius
from sunzip.drawing import as_designed
from sunzip.errors import InputError, OutputError, needing
from sunzip.files import printable
from sunzip.imports import without_home

_Image = npt.NDArray[np.float64]

# All lengths are pixels of the picture.
_DPI = 100
_MARGIN = 24
_TITLE = 62
_HEADER = 24
_GAP = 6
_BAR = 10
_TICKS = 42
_ROW_GAP = 22
_WIDTH = 1600

_BACKGROUND = "#0e0f13"
_PANEL = "#17191f"
_TEXT = "#f2f2f0"
_DIM = "#9a9ca5"
# Dark in the middle, so that on the dark page only what differs stands out.
_DIVERGING = ("#9be1ff", "#2f86d6", "#14161b", "#d9512c", "#ffd9a0")

# The field strengths that the colours of hmimag stand for: grey below 24 G, hues up to 1500 G.
_HMI_LIMIT = 1500.0
_HMI_GREY = 24.0
# Below the noise of a measurement, which is some 5 G, and above that of decoded zeros.
_HMI_NOISE = 1.0
# The photosphere is nearly flat; the corona spans four decades, and its faint loops matter.
_PHOTOSPHERE = (1600, 1700)
_ASINH_WIDTH = 0.03


def render(
    rows: Mapping[str, npt.NDArray[np.floating[Any]]],
    channels: Sequence[str],
    title: str,
    target: str | Path | IO[bytes],
    *,
    times: npt.NDArray[np.datetime64] | None = None,
) -> None:
    """Write a PNG with a panel per channel, or with original, decoded and difference of each.

    Every channel has its customary colour map and stretch, with limits from the original alone, so
    that what the codec changed is not hidden by other limits.

    Parameters
    ----------
    rows
        One set of images, or two: the original first, then the decoded, whose difference is then
        drawn too. By label, each (C, Y, X) in DN/s and G; an image that is NaN throughout is missing.
    channels
        The C channel names, in canonical order.
    title
        Stands above the picture, without what cannot be printed.
    target
        Path, or file open for writing; written as it goes, overwriting.
    times
        (C,) datetime64, when each image was taken; NaT where unknown.

    Raises
    ------
    InputError
        If matplotlib or sunpy is not installed, or shapes do not agree.
    OutputError
        If the target cannot be written.
    """
    channels = listed(channels)
    described = [channel(name) for name in channels]
    _check(rows, channels, times)
    with needing("plot", "pictures need"), without_home():
        from matplotlib.figure import Figure
        from sunpy.visualization.colormaps import cmlist

    with as_designed():
        layout = _Layout(len(described), compared=len(rows) == 2)
        figure = Figure(figsize=(layout.width / _DPI, layout.height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        page = _Page(figure, layout.width, layout.height, cmlist)
        label = next(iter(rows)) if len(rows) == 1 else ""
        page.title(title, label)
        for i, what in enumerate(described):
            left, top = layout.group(i)
            time = "" if times is None or np.isnat(times[i]) else _time(times[i])
            page.group(
                left, top, layout.side, what, time, {label: images[i] for label, images in rows.items()}
            )
        try:
            figure.savefig(target, format="png", facecolor=_BACKGROUND)
        except OSError as error:
            raise OutputError(f"cannot write the picture {target}: {error.strerror or error}") from None


def _check(
    rows: Mapping[str, npt.NDArray[Any]], channels: tuple[str, ...], times: npt.NDArray[Any] | None
) -> None:
    if channels != canonical(channels):
        raise InputError(f"channels must be in canonical order, not {' '.join(channels)}")
    if len(rows) not in (1, 2):
        raise InputError(f"a picture shows one set of images or two, not {len(rows)}")
    shapes = {images.shape for images in rows.values()}
    shape = shapes.pop()
    if shapes or len(shape) != 3 or shape[0] != len(channels) or 0 in shape:
        raise InputError(f"every set of images must have the same shape ({len(channels)}, Y, X)")
    if times is not None and times.shape != (len(channels),):
        raise InputError(f"times must have shape ({len(channels)},), not {times.shape}")


def _time(time: np.datetime64) -> str:
    return str(time.astype("datetime64[s]")).replace("T", " ")


class _Layout:
    """Where the panels go: a grid of groups, each one panel, or three when images are compared."""

    def __init__(self, count: int, *, compared: bool) -> None:
        bar = _GAP + _BAR + _TICKS
        if compared:
            columns = 1 if count <= 3 else 2
            self.side = 460 if columns == 1 else 300
            group = 3 * self.side + _GAP + 2 * bar
        else:
            # As square as can be without holes: 12 → 4×3, 9 → 3×3, 8 → 4×2.
            square = math.isqrt(count - 1) + 1
            columns = min((square, square + 1), key=lambda n: (-count % n, -n))
            self.side = min(720, (_WIDTH - 2 * _MARGIN) // columns - bar)
            group = self.side + bar
        self._columns = min(columns, count)
        self._pitch = (group, _HEADER + self.side + _ROW_GAP)
        rows = -(-count // self._columns)
        self.width = 2 * _MARGIN + self._columns * self._pitch[0]
        self.height = _TITLE + rows * self._pitch[1] + 4

    def group(self, i: int) -> tuple[int, int]:
        """Left and top of a group."""
        row, column = divmod(i, self._columns)
        return _MARGIN + column * self._pitch[0], _TITLE + row * self._pitch[1]


class _Page:
    """The figure, drawn on in pixels from its upper left corner."""

    def __init__(self, figure: Any, width: int, height: int, maps: Mapping[str, Any]) -> None:
        self._figure = figure
        self._width = width
        self._height = height
        self._maps = maps

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        color: str,
        weight: str = "normal",
        align: str = "left",
    ) -> None:
        self._figure.text(
            x / self._width,
            1 - y / self._height,
            text,
            size=size,
            color=color,
            weight=weight,
            ha=align,
            va="baseline",
            # A title is a file name as often as not: `$` in it is no formula.
            parse_math=False,
        )

    def title(self, title: str, label: str) -> None:
        title = printable(title)
        # A bold character is about as wide in pixels as the font is high in points.
        free = self._width - 2 * _MARGIN - 10 * len(label)
        self.text(_MARGIN, 36, title, size=min(15.0, free / max(1, len(title))), color=_TEXT, weight="bold")
        self.text(self._width - _MARGIN, 36, label, size=11, color=_DIM, align="right")

    def group(
        self,
        left: float,
        top: float,
        side: int,
        what: Channel,
        time: str,
        images: Mapping[str, npt.NDArray[np.floating[Any]]],
    ) -> None:
        """Draw one channel."""
        from matplotlib.colors import AsinhNorm, LinearSegmentedColormap

        shown = [np.where(np.isfinite(image), image, np.nan).astype(np.float64) for image in images.values()]
        colours = self._maps[what.cmap]
        norm = _norm(what, shown)
        name = f"{what.instrument} {what.wavelength} Å" if what.instrument == "AIA" else f"HMI {what.name}"
        self.text(left, top + 16, name, size=10.5, color=_TEXT, weight="bold")
        if len(shown) == 1:
            self.text(left + side, top + 16, time, size=8.5, color=_DIM, align="right")
        else:
            self.text(left + 104, top + 16, time, size=8.5, color=_DIM)
        # Of two images the original says where the disk is: off it the codec leaves ripples.
        known = next((image for image in shown if not np.isnan(image).all()), shown[0])
        off_disk = what.instrument == "HMI" and _off_disk(known)
        for n, (label, image) in enumerate(zip(images, shown, strict=True)):
            x = left + n * (side + _GAP)
            if len(shown) > 1:
                self.text(x + side, top + 16, label, size=8.5, color=_DIM, align="right")
            self._panel(x, top, side, np.where(off_disk, np.nan, image), colours, norm)
        x = left + len(shown) * side + (len(shown) - 1) * _GAP
        if not all(np.isnan(image).all() for image in shown):
            # Evenly spaced, the bar would hide the colours of weak fields, which fill the image.
            spread = AsinhNorm(_HMI_GREY, -_HMI_LIMIT, _HMI_LIMIT) if what.instrument == "HMI" else norm
            self._bar(x + _GAP, top, side, colours, norm, what.unit, spread)
        if len(shown) == 2:
            x += _GAP + _BAR + _TICKS
            difference = shown[1] - shown[0]
            diverging = LinearSegmentedColormap.from_list("difference", _DIVERGING)
            norm = _symmetric(difference)
            self.text(
                x + side, top + 16, " − ".join(reversed(list(images))), size=8.5, color=_DIM, align="right"
            )
            self._panel(x, top, side, difference, diverging, norm)
            if not np.isnan(difference).all():
                self._bar(x + side + _GAP, top, side, diverging, norm, what.unit, norm)

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        box = (x / self._width, 1 - (y + height) / self._height, width / self._width, height / self._height)
        axes = self._figure.add_axes(box, facecolor=_PANEL)
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        return axes

    def _panel(self, x: float, top: float, side: int, image: _Image, colours: Any, norm: Any) -> None:
        axes = self._axes(x, top + _HEADER, side, side)
        if np.isnan(image).all():
            axes.text(
                0.5, 0.5, "no image", color=_DIM, size=11, ha="center", va="center", transform=axes.transAxes
            )
            return
        axes.imshow(np.ma.masked_invalid(image), cmap=colours, norm=norm, origin="lower")

    def _bar(self, x: float, top: float, side: int, colours: Any, norm: Any, unit: str, spread: Any) -> None:
        """Draw the colours of `norm` along a bar whose positions are those of `spread`."""
        axes = self._axes(x, top + _HEADER, _BAR, side)
        values = np.asarray(spread.inverse(np.linspace(0, 1, 512)))[:, None]
        axes.imshow(values, cmap=colours, norm=norm, origin="lower", extent=(0, 1, 0, 1), aspect="auto")
        ticks = _ticks(spread)
        axes.yaxis.tick_right()
        axes.set_yticks([float(spread(v)) for v in ticks], [f"{v:.6g}".replace("-", "−") for v in ticks])
        axes.tick_params(labelright=True, labelsize=7.5, labelcolor=_DIM, length=0, pad=3)
        self.text(x, top + 16, unit, size=8.5, color=_DIM)


def _off_disk(image: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return where a magnetogram has no measurement, so that the page shows through: off the disk it is 0.

    Nearly 0 where it was decoded, so that there all goes that would be grey; and what is 0 on the disk was
    measured so, or is a field too weak to code. A part of the Sun, which has noise in its corners, is left.
    """
    height, width = image.shape
    y, x = np.ogrid[:height, :width]
    r = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    beyond = r > disk_radius(min(height, width))
    outside = np.abs(image[beyond])
    if 2 * np.count_nonzero(outside < _HMI_NOISE) < np.count_nonzero(~np.isnan(outside)):
        return np.zeros_like(beyond)
    return np.asarray(beyond & (np.abs(image) < _HMI_GREY))


def _norm(what: Channel, images: Sequence[_Image]) -> Any:
    """Return the stretch of a channel, with limits from the first image that is there."""
    from matplotlib.colors import AsinhNorm, Normalize

    if what.instrument == "HMI":
        return Normalize(-_HMI_LIMIT, _HMI_LIMIT, clip=True)
    top = 0.0
    for image in images:
        finite = image[~np.isnan(image)]
        if finite.size:
            top = float(np.percentile(finite, 99.9))
            break
    if top <= 0:
        top = 1.0
    if what.wavelength in _PHOTOSPHERE:
        return Normalize(0, top, clip=True)
    return AsinhNorm(_ASINH_WIDTH * top, 0, top, clip=True)


def _symmetric(difference: _Image) -> Any:
    from matplotlib.colors import Normalize

    finite = np.abs(difference[~np.isnan(difference)])
    top = float(np.percentile(finite, 99.5)) if finite.size else 0.0
    # One outlier in an otherwise perfect image must still show.
    top = top or float(finite.max(initial=0)) or 1.0
    return Normalize(-top, top, clip=True)


def _ticks(spread: Any) -> list[float]:
    """Return about five values, evenly spread over the bar, cut to two digits so that they stay on it."""
    values = {0.0}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        # What is 1500 but for rounding must not be cut to 1400.
        value = float(f"{spread.inverse(share):.6g}")
        if abs(value) > 1e-6 * spread.vmax:
            unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
            values.add(float(f"{math.trunc(value / unit) * unit:.2g}"))
    return sorted(values)
