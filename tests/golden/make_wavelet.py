"""Make gaps-v1.*: an archive of a wavelet model that must decode for ever to the bit.

Run as ``python -m tests.golden.make_wavelet`` from the root of the repository, and only for a new format
version: a golden file that is made again proves nothing. It holds 5 frames of 3 channels at 150×166 pixels,
which have to be padded, in blocks of 3, so that frames build on those before and after them; an image is
missing, and pixels are whose maps are told in every way; most is smooth, and some places are not, so that
fine levels are coded in some tiles or in all; the channels depart from the frame's quality; each is held to a
bound of another measure. Its model, whose network has small random integers, is that of halved-v1.*, which is
that of trust-v1.* but for what tells the network of small pictures.

levelled-v1.* was made by this file as it was when missing pixels were told one by one; bounded-v1.* when
images had no levels; halved-v1.* and its model when no errors were bounded; departing-v1.* when no model had
that; tiles-v1.* when all channels had the frame's quality; news-v1.* when there were no tiles; trust-v1.* and
its model when what is new in a channel did not tell what is new in others; film-v1.* when no model told how
far others are to be trusted; wavelet-v1.* when each frame built on the one before it, by a model of ten
variants of tables.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from sunzip import api, weights
from sunzip.codec import wavelet
from sunzip.codec.family import Float
from sunzip.codec.symbols import Draft, Int, Writer
from sunzip.codec.wavelet import WaveletFamily
from sunzip.nn.planes import TRUST_MOST
from sunzip.rotation import turned
from sunzip.sources.series import join
from sunzip.weights import TENSORS, Model
from tests.golden.make import START, Golden

HERE = Path(__file__).parent
NAME, MODEL, CHANNELS = "gaps-v1", "halved-v1", ("171A", "193A", "304A")
FRAMES, SHAPE, BLOCK, QUALITY, BOUND = 5, (150, 166), 3, 30, "171A=9sigma,193A=40%,304A=60DN/s"


class Film(Golden):
    """Waves that turn with the Sun, places that change, in all channels or in one, and holes."""

    channels, shape = CHANNELS, SHAPE

    def times(self, channel: str) -> npt.NDArray[np.datetime64]:
        """Hourly."""
        return START + np.arange(FRAMES) * np.timedelta64(60, "m") + np.timedelta64(7, "ms")

    def read(self, channel: str, row: int) -> npt.NDArray[np.float32]:
        """Make one image."""
        c = CHANNELS.index(channel)
        y, x = (np.arange(n) - (n - 1) / 2 for n in SHAPE)
        waves = 300 + 250 * np.sin(y[:, None] / 20) * np.cos(x / 25)
        still = turned(waves.astype(np.float32)[None], 60 * row)[0] * (1 + 0.3 * c)
        image = still + np.random.default_rng([row, c]).normal(0, 1, SHAPE)
        rough = np.random.default_rng(row).normal(0, 400, SHAPE)
        # At the edges, where tiles are smaller, and within; nearly everywhere at last.
        everywhere = 150 * (row == 4 and c == 0)
        for begin, side in (((130, 146), 20), ((60, 24 * row), 12), ((0, 60 * c), 9), ((0, 0), everywhere)):
            place = tuple(slice(b, b + side) for b in begin)
            image[place] += rough[place] * (1 if side > 100 else 4)
        if (row, c) == (1, 1):
            image[:] = np.nan
        if row == 0:
            image[::37, ::41] = np.nan
        if row == 1 and c == 2:
            image[rough > 0] = np.nan
        if (row, c) == (2, 0):
            image[3:5, 7:20] = np.nan
        if row > 2 and c:
            image[:, ::3] = np.nan
        return np.abs(image).astype(np.float32)


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


def _any_levels(light: Float, *others: object) -> Int:
    """Choose levels of both signs, some of which the table has no symbol for."""
    return (np.rint(light) % 301 - 150).astype(np.int32)


def main() -> None:
    """Write all files."""
    # Its network is random: it does not tell whether other frames are a help, or how much, or which levels.
    # In images so small all channels would have the frame's quality.
    wavelet.departs = lambda channels, shape: len(channels) == 3
    wavelet.levels = _any_levels
    Writer.trusts = _any_trusts  # type: ignore[method-assign]
    Draft.worth = lambda *given: None  # type: ignore[method-assign]
    WaveletFamily._alike = staticmethod(lambda *pyramids: 1.0)  # type: ignore[method-assign]
    path = HERE / f"{NAME}.lat"
    settings = {"block": BLOCK, "quality": QUALITY, "max_error": BOUND, "force": True}
    api.compress(join([Film()]), path, model=read_model(), **settings)
    (HERE / f"{NAME}.json").write_text(json.dumps(facts(path), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
