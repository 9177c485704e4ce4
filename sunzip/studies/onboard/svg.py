"""Plots as SVG text: few kinds, no library, small enough to be read on a telephone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

#: Size of a plot in its own units; text of 12 stays readable when it is drawn 360 pixels wide.
WIDTH, HEIGHT = 420, 260

#: Colours that differ in lightness, too (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 40


def short(value: float) -> str:
    """Return a number in few characters.

    Examples
    --------
    >>> short(1234567.0), short(0.0021), short(12.0)
    ('1.2M', '0.0021', '12')
    """
    if value == 0:
        return "0"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.2g}{unit}" if abs(value) < 100 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _frame(title: str, body: Sequence[str], height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{_text(WIDTH / 2, 15, title, extra=' class=t')}{''.join(body)}</svg>"
    )


class _Axis:
    """Places numbers along one side, linear or logarithmic."""

    def __init__(self, values: Sequence[float], begin: float, end: float, log: bool) -> None:
        low, high = min(values), max(values)
        if log:
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            last = max(last, first + 1)
            self.ticks = [10.0**n for n in range(first, last + 1, max(1, (last - first + 5) // 6))]
            low, high = float(first), float(last)
        else:
            low = min(low, 0.0)
            span = (high - low) or 1.0
            step = 10.0 ** math.floor(math.log10(span))
            step *= next(f for f in (0.2, 0.5, 1, 2) if span / (step * f) <= 6)
            high = low + math.ceil(span / step - 1e-9) * step
            self.ticks = [low + n * step for n in range(round((high - low) / step) + 1)]
        self._low, self._high, self._begin, self._end, self._log = low, high, begin, end, log

    def __call__(self, value: float) -> float:
        at = math.log10(max(value, 10.0**self._low)) if self._log else value
        return self._begin + (at - self._low) / (self._high - self._low) * (self._end - self._begin)


def lines(
    title: str,
    across: str,
    up: str,
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    log_x: bool = False,
    log_y: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    """Draw curves.

    Parameters
    ----------
    title, across, up
        Of the plot and of its axes.
    curves
        Name, x and y of each.
    log_x, log_y
        Whether an axis is logarithmic; all its numbers must be above 0 then.
    level
        Name and height of a horizontal line.
    """
    ys = [y for _, _, values in curves for y in values] + ([level[1]] if level else [])
    x_axis = _Axis([x for _, values, _ in curves for x in values], _LEFT, WIDTH - _RIGHT, log_x)
    y_axis = _Axis(ys, HEIGHT - _BOTTOM, _TOP + 16, log_y)
    body = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        body.append(f'<path class=g d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        body.append(_text(_LEFT - 5, y + 4, short(tick), "end"))
    body += [_text(x_axis(tick), HEIGHT - _BOTTOM + 15, short(tick)) for tick in x_axis.ticks]
    body.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 6, across))
    turned = f"translate(12 {HEIGHT / 2:.0f}) rotate(-90)"
    body.append(f'<text transform="{turned}" text-anchor="middle">{escape(up)}</text>')
    if level:
        y = y_axis(level[1])
        body.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#999" stroke-dasharray="5 4"/>')
    for n, (_, xs, values) in enumerate(curves):
        points = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in zip(xs, values, strict=True))
        body.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[n % 6]}" stroke-width="2"/>')
    if level:
        # Over the curves, which run along what they must not exceed.
        halo = ' stroke="#fff" stroke-width="4" paint-order="stroke"'
        body.append(_text(_LEFT + 4, y_axis(level[1]) + 13, level[0], "start", halo))
    body += _legend([name for name, _, _ in curves])
    return _frame(title, body)


def _legend(names: Sequence[str]) -> list[str]:
    out, x = [], float(_LEFT)
    for n, name in enumerate(names):
        out.append(f'<rect x="{x:.1f}" y="{_TOP}" width="10" height="10" fill="{COLOURS[n % 6]}"/>')
        out.append(_text(x + 14, _TOP + 9, name, "start"))
        x += 26 + 6.4 * len(name)
    return out


def bars(
    title: str,
    across: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    level: tuple[str, float] | None = None,
) -> str:
    """Draw horizontal bars on a logarithmic axis, several for each row.

    Parameters
    ----------
    title, across
        Of the plot and of its axis.
    rows
        Name and numbers above 0 of each row.
    names
        What the numbers of a row are.
    level
        Name and place of a vertical line.
    """
    thick, gap = 12, 24
    height = _TOP + 20 + sum(gap + thick * len(values) for _, values in rows) + _BOTTOM
    every = [v for _, values in rows for v in values] + ([level[1]] if level else [])
    axis = _Axis([min(every) / 2, max(every)], _RIGHT, WIDTH - _RIGHT - 30, True)
    foot = height - _BOTTOM
    body = []
    for n, tick in enumerate(axis.ticks):
        body.append(f'<path class=g d="M{axis(tick):.1f} {_TOP + 16}V{foot}"/>')
        body.append(_text(axis(tick), foot + 15, short(tick), "middle" if n else "start"))
    y = float(_TOP + 20)
    for label, values in rows:
        body.append(_text(_RIGHT, y + 14, label, "start"))
        y += gap - 5
        for n, value in enumerate(values):
            wide = max(1.0, axis(value) - _RIGHT)
            size = f'width="{wide:.1f}" height="{thick - 2}"'
            body.append(f'<rect x="{_RIGHT}" y="{y:.1f}" {size} fill="{COLOURS[n % 6]}"/>')
            body.append(_text(_RIGHT + wide + 4, y + 9, short(value), "start", " class=s"))
            y += thick
        y += 5
    if level:
        body.append(
            f'<path d="M{axis(level[1]):.1f} {_TOP + 16}V{foot}" stroke="#333" stroke-dasharray="5 4"/>'
        )
        body.append(_text(axis(level[1]), _TOP + 12, level[0], "middle", " class=s"))
    body.append(_text(WIDTH / 2, height - 6, across))
    if len(names) > 1:
        body += _legend(names)
    return _frame(title, body, height)
