"""Make trust-v1.*: an archive of a wavelet model that must decode for ever to the bit, and the model.

Run as ``python -m tests.golden.make_wavelet`` from the root of the repository, and only for a new format
version: a golden file that is made again proves nothing. It holds 12 frames of 4 channels at 40×48 pixels,
which have to be padded, in blocks of 11, so that frames build on those before and after them; a frame, an
image and some pixels are missing; two channels change alike, one is made of points, one has a mean disk. The
model's network has small random integers. It is kept compressed beside the archive.

wavelet-v1.* was made by this file as it was when each frame built on the one before it, by a model of ten
variants of tables; film-v1.* when no model told how far others are to be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from sunzip import api, weights
from sunzip.channels import NAMES
from sunzip.codec.family import Float
from sunzip.codec.symbols import VARIANTS, Int, Writer
from sunzip.codec.wavelet import MAX_DEPTH, WaveletFamily
from sunzip.cube import disk_radius
from sunzip.entropy.tables import Tables
from sunzip.limb import KNOTS
from sunzip.nn.exact import LAYERS, QUALITIES, parts_of
from sunzip.nn.planes import FLAGS, GATES, LEVELS, SCALES, TRUST_MOST, WIDTHS
from sunzip.normalize import Stabiliser
from sunzip.rotation import turned
from sunzip.sources.series import join
from sunzip.train.export import pack
from sunzip.train.wavelet import SPREADS, steps
from sunzip.weights import TENSORS, Model
from tests.golden.make import START, Golden

HERE = Path(__file__).parent
NAME, CHANNELS = "trust-v1", ("171A", "193A", "1700A", "Bz")
FRAMES, SHAPE, BLOCK, QUALITY = 12, (40, 48), 11, 40

#: Powers of two by which sums of layers are divided; shifts of the outputs' layers and their biases.
_SHIFT, _SHIFT_OUT = {"enter": 5, "deep": 6, "first": 5, "second": 6, "settle": 6}, 7
_BIAS_OUT = (0,) * 3 + (14 << _SHIFT_OUT,) * 3 + (4 << _SHIFT_OUT,) * 3 + (24 << _SHIFT_OUT,) * 3


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


def model() -> Model:
    """Return a model whose means, gates and scales are of sensible sizes and differ everywhere."""
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for n, width in enumerate(WIDTHS):
        parts = parts_of(width, WIDTHS[max(n - 1, 0)])
        depths = LEVELS - len(WIDTHS) + 1 if n == 0 else 1
        for name, (shape, _) in parts.items():
            weight = rng.integers(-6, 7, shape)
            if name.endswith("_out"):
                weight[GATES] //= 4  # other frames are mostly believed, so that frames build on them
            arrays[f"context.{n}.{name}"] = weight.astype(np.int16)
        for layer, (names, _) in LAYERS.items():
            outputs = parts[names[0]][0][0]
            out = layer.endswith("_out")
            arrays[f"context.{n}.{layer}.shift"] = np.full(
                outputs, _SHIFT_OUT if out else _SHIFT[layer], np.uint8
            )
            arrays[f"context.{n}.{layer}.bias"] = np.array(
                _BIAS_OUT[:outputs] if out else (0,) * outputs, np.int32
            )
        # By quality once, by channel much.
        tabled = np.zeros((QUALITIES, len(NAMES), depths, 4, width), np.int32)
        tabled += rng.integers(-500, 1500, tabled.shape[1:], dtype=np.int32)
        tabled[QUALITY:] += 200
        arrays[f"context.bias.{n}"] = tabled
        arrays[f"context.flags.{n}"] = rng.integers(-300, 300, (depths, FLAGS, width), dtype=np.int32)
    slow = [0.7 ** abs(n) for n in range(-64, 65)]
    kinds = {
        "bands": Tables.from_probabilities(
            [[((s + 1) / (s + 2)) ** abs(n - 0.1 * (k % 7)) for n in range(-9, 10)] for k, s in _bands()],
            [-9] * SCALES * VARIANTS,
            [1e-3] * SCALES * VARIANTS,
        ),
        "base": Tables.from_probabilities([slow] * SCALES, [-64] * SCALES, [1e-3] * SCALES),
        "silent": Tables.from_probabilities([slow[64:80]] * 12, [0] * 12, [1e-3] * 12),
        "weights": Tables.from_probabilities([slow] * 24, [-64] * 24, [1e-3] * 24),
        "shifts": Tables.from_probabilities([slow[48:81]] * 12, [-16] * 12, [1e-3] * 12),
        "disk": Tables.from_probabilities([slow] * len(KNOTS), [-64] * len(KNOTS), [1e-3] * len(KNOTS)),
        "trusts": Tables.from_probabilities([slow[54:75]] * 48, [-TRUST_MOST] * 48, [1e-3] * 48),
    }
    for kind, tables in kinds.items():
        arrays |= {f"{kind}_tables.{k}": np.ascontiguousarray(v) for k, v in tables.to_arrays().items()}
    arrays |= {
        "quality.step": steps(),
        "quality.base_mean": np.array(SPREADS, np.float32),
        "quality.relation": np.array(SPREADS, np.float32),
        "quality.base_index": rng.integers(0, SCALES, (2, QUALITIES, 12, MAX_DEPTH + 1)).astype(np.int32)[
            :, :1
        ]
        + np.zeros((1, QUALITIES, 1, 1), np.int32),
        "quality.silent_index": np.zeros(QUALITIES, np.int32),
    }
    units = Stabiliser.for_channels(NAMES)
    config = {
        "version": weights.CONFIG_VERSION,
        "name": "golden-trust",
        "family": "wavelet",
        "default_quality": QUALITY,
        "stabiliser": {key: [float(v) for v in getattr(units, key)] for key in ("a", "b", "spread")},
    }
    return pack(config, arrays)


def _bands() -> Iterator[tuple[int, int]]:
    """Yield the number of each table of coefficients, and its scale's."""
    yield from ((k, k % SCALES) for k in range(SCALES * VARIANTS))


def read_model() -> Model:
    """Return the model that was kept, and make it known to this process."""
    files = {name: (HERE / f"{NAME}.{name}.zst").read_bytes() for name in (weights.CONFIG, TENSORS)}
    found = Model.from_files({k: bytes(Zstd().decode(v)) for k, v in files.items()}, "golden-trust")
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
    made = model()
    for name, data in made.files.items():
        (HERE / f"{NAME}.{name}.zst").write_bytes(Zstd(level=19).encode(data))
    # Its network is random: it does not tell whether other frames are a help, or how much.
    Writer.trusts = _any_trusts  # type: ignore[method-assign]
    WaveletFamily._best = staticmethod(lambda costs: int(np.argmin(costs[:2])))  # type: ignore[method-assign]
    path = HERE / f"{NAME}.lat"
    api.compress(join([Film()]), path, model=read_model(), block=BLOCK, force=True)
    (HERE / f"{NAME}.json").write_text(json.dumps(facts(path), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
