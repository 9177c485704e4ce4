"""The physics of the synthetic Sun: one magnetic state, a function of time, which all 12 channels show.

`field` is the state: active regions, flux transport, the large-scale potential field. `sphere` is the
geometry of an image. `corona` is what glows in each channel, `radio` what radio telescopes get.
`instrument` is what AIA and HMI make of it.

All lengths are in solar radii, times in days since 2000-01-01 (UTC), fields in gauss.
Sky coordinates: x west, y north, z towards the observer, centre of the Sun at 0.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from sunzip.sources._sun import field, instrument
from sunzip.sources._sun.corona import Scene
from sunzip.sources._sun.sphere import Floats, grid_of

_V = TypeVar("_V")

_MIN_INTERNAL = 256


class Sun:
    """A Sun: call it with a time and a size to see it in 12 channels, free of noise.

    Parameters
    ----------
    seed
        Which Sun.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed) & 0x7FFF_FFFF_FFFF_FFFF
        self._windows: OrderedDict[int, field.Window] = OrderedDict()
        self._days: OrderedDict[int, field.LargeScale] = OrderedDict()
        self._lock = threading.RLock()

    def _keep(self, kept: OrderedDict[int, _V], index: int, most: int, make: Callable[[], _V]) -> _V:
        with self._lock:
            found = kept.get(index)
            if found is None:
                found = kept[index] = make()
            kept.move_to_end(index)
            while len(kept) > most:
                kept.popitem(last=False)
            return found

    def windows(self, t: float, days: float) -> list[field.Window]:
        """Return all windows whose regions may be younger than `days` at `t`."""
        return [
            self._keep(self._windows, i, 32, lambda i=i: field.make_window(self.seed, i))  # type: ignore[misc]
            for i in range(math.floor((t - days) / field.WINDOW_DAYS), math.floor(t / field.WINDOW_DAYS) + 1)
        ]

    def day(self, index: int) -> field.LargeScale:
        """Return the large-scale field at the begin of day `index`."""
        return self._keep(
            self._days,
            index,
            8,
            lambda: field.large_scale(self.windows(index, field.MAX_TRANSPORT_DAYS), float(index)),
        )

    def __call__(self, t: float, size: int) -> Floats:
        """Render one frame without noise.

        Parameters
        ----------
        t
            Days since 2000-01-01 UTC.
        size
            Pixels per side.

        Returns
        -------
        (12, size, size) float32 in DN/s and G, in canonical channel order.
        """
        # Small images are block means of larger ones: a loop narrower than a pixel stays what it is.
        factor = 1
        while size * factor < _MIN_INTERNAL:
            factor *= 2
        grid = grid_of(size * factor)
        image = Scene(self, t, grid).channels()
        instrument.blur(image[:9], grid)
        if factor > 1:
            image = image.reshape(12, size, factor, size, factor).mean((2, 4), dtype=np.float32)
            image[9:] *= grid_of(size).disk
        return image
