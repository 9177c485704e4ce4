"""Make archive-v1.lat and archive-v1.json, which every later sunzip must decode to the same latents.

Run as ``python tests/golden/make.py`` from the root of the repository, and only for a new format version: a
golden file that is made again proves nothing. It holds 3 frames of 3 channels at 32×32 pixels in blocks of 2,
with a missing image, missing pixels and a filled-up last block, and a model with random weights, embedded.
"""

from __future__ import annotations

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sunzip import api
from sunzip.channels import NAMES
from sunzip.cube import Header, Scale
from sunzip.nn.hyperprior import Hyperprior
from sunzip.normalize import Stabiliser
from sunzip.sources.base import Source
from sunzip.sources.series import join
from sunzip.train.export import export_hyperprior
from sunzip.weights import Model

HERE = Path(__file__).parent
CHANNELS = ("171A", "304A", "Bz")
FRAMES, SIZE, BLOCK = 3, 32, 2
START = np.datetime64("2014-01-01T00:00", "ms")


class Golden(Source):
    """Waves and noise, with holes."""

    url, layout, scale = "golden", "hdf5", Scale.MEAN
    channels, shape = CHANNELS, (SIZE, SIZE)

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """A few seconds after the nominal times."""
        offset = np.timedelta64(1000 * CHANNELS.index(channel) + 7, "ms")
        times: npt.NDArray[np.datetime64] = START + np.arange(FRAMES) * np.timedelta64(12, "m") + offset
        return times

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Make one image."""
        c = CHANNELS.index(channel)
        rng = np.random.default_rng([row, c])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
        image = ([150, 30, 0][c] + [120, 20, 200][c] * waves + rng.normal(0, 3, up.shape)).astype(np.float32)
        if (row, c) == (1, 1):
            image[:] = np.nan
        if (row, c) == (2, 0):
            image[3:5, 7:20] = np.nan
        return image

    def header(self, channel: str, row: int) -> Header:
        """Keywords of several types."""
        return {
            "T_OBS": f"{self.times(channel)[row]}Z",
            "EXPTIME": 2.000191,
            "QUALITY": row << 30,
            "WAVELNTH": 171,
            "COMMENT": "golden Å",
        }

    def stored_bytes(self) -> int | None:
        """Nothing is stored."""
        return None


def model() -> Model:
    """Return a network of the smallest widths whose latents and pixels are of sensible sizes."""
    torch.manual_seed(0)
    network = Hyperprior(wide=4, deep=4, latents=4, hyper=2, hyper_wide=6).eval()
    with torch.no_grad():
        network.analysis[-1].weight *= 30
        network.linear_analysis.weight *= 10
        network.hyper_analysis[-1].weight *= 30
        network.hyper_synthesis[-1].weight *= 10
        network.hyper_synthesis[-1].bias[4:] += 30
        network.linear_synthesis.weight *= 0.5
    units = Stabiliser.for_channels(NAMES)
    stabiliser = Stabiliser(units.a, units.b, np.full(12, 20, np.float32))
    return export_hyperprior(network, stabiliser, "golden", default_quality=60, notes={})


def facts(path: Path) -> dict[str, object]:
    """Return what is to be found in the archive, for ever."""
    with api.open(path) as sun:
        latents, pixels = sun.latents[:], sun[:]
        cube = sun.cube(0, FRAMES)
        return {
            "model": sun.archive.model["sha256"],
            "latents_shape": list(latents.shape),
            "latents_sha256": sha256(latents.astype("<f4").tobytes()).hexdigest(),
            "latents": latents.ravel().tolist(),
            "missing_sha256": sha256(np.packbits(np.isnan(pixels)).tobytes()).hexdigest(),
            "valid": cube.valid.tolist(),
            "time": cube.time.astype(str).tolist(),
            "t_obs": cube.t_obs.astype(str).tolist(),
            "headers": [[dict(h) for h in row] for row in cube.headers],
            # Every fourth pixel of every fourth row; null where there is none.
            "pixels": [
                None if np.isnan(v) else float(f"{v:.7g}") for v in pixels[..., ::4, ::4].ravel().tolist()
            ],
        }


def main() -> None:
    """Write both files."""
    path = HERE / "archive-v1.lat"
    api.compress(join([Golden()]), path, model=model(), block=BLOCK, embed_model=True, force=True)
    (HERE / "archive-v1.json").write_text(json.dumps(facts(path)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
