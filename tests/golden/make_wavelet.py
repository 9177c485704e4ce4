"""Make news-v1.*: an archive of a wavelet model that must decode for ever to the bit.

Run as ``python -m tests.golden.make_wavelet`` from the root of the repository, and only for a new format
version: a golden file that is made again proves nothing. It holds 12 frames of 4 channels at 40×48 pixels,
which have to be padded, in blocks of 11, so that frames build on those before and after them; a frame, an
image and some pixels are missing; two channels change alike, one is made of points, one has a mean disk. The
model is that of trust-v1.*, whose network has small random integers, compressed.

trust-v1.* and its model were made by this file as it was when what is new in a channel did not tell what is
new in others; film-v1.* when no model told how far others are to be trusted; wavelet-v1.* when each frame
built on the one before it, by a model of ten variants of tables.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from sunzip import api, weights
from sunzip.codec.family import Float
from sunzip.codec.symbols import Int, Writer
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import disk_radius
from sunzip.nn.planes import TRUST_MOST
from sunzip.rotation import turned
from sunzip.sources.series import join
from sunzip.weights import TENSORS, Model
from tests.golden.make import START, Golden

HERE = Path(__file__).parent
NAME, MODEL, CHANNELS = "news-v1", "trust-v1", ("171A", "193A", "1700A", "Bz")
FRAMES, SHAPE, BLOCK = 12, (40, 48), 11


class Film(Golden):
    """Waves that turn with the Sun and change, a disk, points, a little noise, and holes."""

    channels, shape = CHANNELS, SHAPE

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """Hourly."""
        return START + np.arange(FRAMES) * np.timedelta64(60, "m") + np.timedelta64(7, "ms")

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Make one image."""
        c = CHANNELS.index(channel)
        alike = c < 2
        rng = np.random.default_rng(0 if alike else c)
        y, x = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
        waves = np.sin(y[:, None] / 8 + rng.uniform(0, 6)) * np.cos(x / 8 + rng.uniform(0, 6))
        height = np.sqrt(np.maximum(1 - (y[:, None] ** 2 + x**2) / disk_radius(min(SHAPE)) ** 2, 0))
        points = np.where(rng.random(SHAPE) < 0.05, rng.normal(0, 900, SHAPE), 0)
        news = row * np.sin(x / 3 + rng.uniform(0, 6)) * np.cos(y[:, None] / 5)
        changing = (300 + 250 * waves + 60 * news) * (1 + 0.3 * c)
        first = [changing, changing, np.where(height > 0, 900 + 900 * height, 0), points][c]
        still = turned(first.astype(np.float32)[None], 60 * row)[0] if alike else first
        noise = np.random.default_rng([row, c]).normal(0, [1, 1, 4, 1][c], SHAPE)
        image: npt.NDArray[np.float32] = (still + noise).astype(np.float32)
        if row == 5 or (row, c) == (1, 1):
            image[:] = np.nan
        if (row, c) == (2, 0):
            image[3:5, 7:20] = np.nan
        return image


def read_model() -> Model:
    """Return the model that was kept, and make it known to this process."""
    files = {name: (HERE / f"{MODEL}.{name}.zst").read_bytes() for name in (weights.CONFIG, TENSORS)}
    found = Model.from_files({k: bytes(Zstd().decode(v)) for k, v in files.items()}, MODEL)
    weights.register(found)
    return found


def facts(path: Path) -> dict[str, object]:
    """Return what is to be found in the archive, for ever."""
    with api.open(path) as sun:
        latents, pixels = sun.latents[:], sun[:]
        return {
            "model": sun.archive.model["sha256"],
            "latents_sha256": sha256(latents.astype("<f4").tobytes()).hexdigest(),
            "missing_sha256": sha256(np.packbits(np.isnan(pixels)).tobytes()).hexdigest(),
            "pixels_sha256": sha256(np.nan_to_num(pixels).astype("<f4").tobytes()).hexdigest(),
            "mean": float(np.nanmean(pixels, dtype=np.float64)),
            "deviation": float(np.nanstd(pixels, dtype=np.float64)),
        }


def _any_trusts(writer: Writer, index: Int, before: Int, mean: Float, *others: object) -> Int:
    """Choose trusts that differ by channel, half and level."""
    return writer.side("trusts", index, (index * 5 + mean.shape[1]) % (TRUST_MOST + 1) - before)


def main() -> None:
    """Write all files."""
    # Its network is random: it does not tell whether other frames are a help, or how much.
    Writer.trusts = _any_trusts  # type: ignore[method-assign]
    WaveletFamily._alike = staticmethod(lambda *pyramids: 1.0)  # type: ignore[method-assign]
    path = HERE / f"{NAME}.lat"
    api.compress(join([Film()]), path, model=read_model(), block=BLOCK, force=True)
    (HERE / f"{NAME}.json").write_text(json.dumps(facts(path), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
