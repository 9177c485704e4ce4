"""SDOML version 1, written: one compressed npz per image, for the tools that were built on that layout.

``YYYY/MM/DD/AIA20131125_0824_0211.npz`` or ``…/HMI20131125_0824_bz.npz``, key ``x``, float32 (Y, X), AIA as
sums of 2×2. The name carries the nominal minute; the layout has no place for seconds or keywords. That sunzip
wrote a file is in the comment of the zip that an npz is, which no reader of npz looks at.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence

import numpy as np

from sunzip.channels import channel
from sunzip.cube import Cube, Scale
from sunzip.errors import OutputError
from sunzip.sinks.base import Sink

#: How an npz that sunzip wrote ends.
COMMENT = b"sunzip"


class SdomlV1Sink(Sink):
    """Writes an SDOML v1 tree."""

    layout = "sdoml-v1"

    def __init__(
        self, path: str | os.PathLike[str], *, channels: Sequence[str], shape: tuple[int, int]
    ) -> None:
        super().__init__(path, channels=channels, shape=shape, scale=Scale.SUM)

    def _begin(self) -> None:
        pass

    def _write(self, cube: Cube) -> None:
        for t in self._frames(cube):
            # "20131125_0824" out of 2013-11-25T08:24
            minute = np.datetime_as_string(cube.time[t], unit="m")
            stamp = minute.replace("-", "").replace(":", "").replace("T", "_")
            folder = self._partial / minute[:10].replace("-", os.sep)
            for c, name in enumerate(self.channels):
                if not cube.valid[t, c]:
                    continue
                known = channel(name)
                file = folder / f"{known.instrument}{stamp}_{known.v1_id}.npz"
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    with file.open("x+b") as stream:
                        np.savez_compressed(stream, x=cube.data[t, c])
                        with zipfile.ZipFile(stream, "a") as made:
                            made.comment = COMMENT
                except FileExistsError:
                    raise OutputError(
                        f"{self.path}: two frames fall into the minute {minute}, and SDOML v1 names a file "
                        "by its minute; choose a cadence of a minute or more, or another layout"
                    ) from None

    def _finish(self) -> None:
        pass
