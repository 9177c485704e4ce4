"""Small stores in the manners of the wild, for the tests of the sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
AIA_START = np.datetime64("2014-01-01T00:00:00", "ms")


def image(value: float, size: int = 8) -> np.ndarray:
    """An image that tells which one it is: its mean is `value`, its pixels differ."""
    ramp = np.linspace(-0.5, 0.5, size * size, dtype=np.float32).reshape(size, size)
    return ramp + np.float32(value)


def aia_times(minutes: Iterable[float]) -> list[str]:
    """T_OBS as AIA writes it, minutes after 2014-01-01."""
    return [f"{AIA_START + np.timedelta64(round(m * 60_000), 'ms')}Z" for m in minutes]


def write_v2(
    root: Any,
    arrays: dict[str, tuple[np.ndarray, dict[str, Any]]],
    *,
    chunks: tuple[int, int, int] | None = None,
    dtype: str = "<f4",
    compressor: Any = None,
    **options: Any,
) -> None:
    """Write an SDOML v2 store with zarr itself: ``"2014/171A"`` → (images, attributes)."""
    group = zarr.open_group(root, mode="a", zarr_format=2)
    for path, (data, attributes) in arrays.items():
        array = group.create_array(
            path,
            shape=data.shape,
            chunks=chunks or (15, *data.shape[1:]),
            dtype=dtype,
            fill_value=0.0,
            compressors=compressor or Blosc("zstd", 5, Blosc.BITSHUFFLE),
            **options,
        )
        array[:] = data
        array.attrs.put(attributes)


def write_v1(path: Path, value: float, *, dtype: str = "f4", size: int = 8, compressed: bool = True) -> None:
    """Write one SDOML v1 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, x=image(value, size).astype(dtype))
