"""Bring the two real series that come as bare .npz files into the HDF5 layout, which every command reads.

Run as ``python benchmarks/real_inputs.py REAL OUT``: REAL is the folder with the real data, OUT gets
``aia171_hourly.h5`` (AIA 171 Å, 128², hourly, DN/s) and ``hmi_los.h5`` (HMI line of sight as Bz, 512², G).
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np


def wrap(target: Path, images: np.ndarray, dates: np.ndarray, channel: str) -> None:
    """Write (T, Y, X) images of one channel at ISO dates as a minimal HDF5 cube."""
    with h5py.File(target, "w") as file:
        cube = file.create_dataset("cube", data=images.astype(np.float32), chunks=(1, *images.shape[1:]))
        cube.attrs["channel"] = channel
        file["time"] = dates.astype("datetime64[ms]").astype(np.int64)
        file["time"].attrs["units"] = "milliseconds since 1970-01-01"


def main(real: Path, out: Path) -> None:
    """Wrap both series."""
    out.mkdir(parents=True, exist_ok=True)
    with np.load(real / "aia171_hourly_8bit_128px.npz") as file:
        wrap(out / "aia171_hourly.h5", file["images"], file["dates"], "171A")
    with np.load(real / "hmi_los_8bit_512px.npz") as file:
        wrap(out / "hmi_los.h5", file["blos_u8"] / np.float32(255) * 500 - 250, file["dates"], "Bz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
