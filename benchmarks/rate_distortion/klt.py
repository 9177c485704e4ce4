"""The strongest fair form of still-image codecs for several channels: a Karhunen-Loève transform before them.

Channels of one instant look alike, so that their principal components cost less than they do. The transform
is made of the very frames that are coded, in units of noise, and its matrix counts among the bytes. Bits go
where they do most good: no component spends them where another would win more error by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rate_distortion.measure import Curve, Judge, curve, sweep
from benchmarks.rate_distortion.peers import Peer
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.family import Known
from sunzip.codec.wavelet import WaveletFamily

Float = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

#: How many points along the way from few bytes to many are decoded whole.
_POINTS = 14
#: With fewer, bright channels leak into the components of faint ones; more take bytes at the lowest rates.
_BITS = 10
#: Quality at which sunzip's steps are compared; their ratios are the same at all but the highest.
_USUAL = 50
#: A component that is not coded is its mean, as float16.
_MEAN_BITS = 16


@dataclass(frozen=True)
class Transform:
    """An invertible mixture of channels, as it is stored.

    Attributes
    ----------
    synthesis, analysis
        (C, C) float64: channels from components, and back.
    nbytes
        What storing it takes: entries as numbers of `_BITS` bits, a float16 for each channel.
    """

    synthesis: Array
    analysis: Array
    nbytes: int

    @classmethod
    def fit(cls, stable: Float, finer: Array, *, equal: bool) -> Transform:
        """Fit to (T, C, Y, X) frames in units of noise.

        With `equal`, channels are first divided by their standard deviation, so that faint ones shape the
        components as much as bright ones. They are then multiplied by `finer` (C,): what components lose
        shows by so much less in a channel.
        """
        count = stable.shape[1]
        flat = stable.transpose(1, 0, 2, 3).reshape(count, -1).astype(np.float64)
        spread = np.maximum(flat.std(1), 1e-3) if equal else np.ones(count)
        scale = (spread / finer).astype(np.float16).astype(np.float64)
        _, vectors = np.linalg.eigh(np.cov(flat / scale[:, None]))
        # What is stored is rounded, and undone exactly.
        steps = (1 << (_BITS - 1)) - 1
        rounded = np.rint(steps * vectors[:, ::-1]) / steps
        synthesis = scale[:, None] * rounded
        return cls(synthesis, np.linalg.inv(synthesis), -(-(count**2) * _BITS // 8) + 2 * count)


def _mixed(matrix: Array, images: Float) -> Float:
    return np.asarray(np.einsum("kc,tcyx->tkyx", matrix.astype(np.float32), images, optimize=True))


def _square(error: Float) -> float:
    # Nothing is without error to the last bit; a curve has logarithms.
    return max(float(np.mean(error**2, dtype=np.float64)), 1e-12)


def departures(names: Sequence[str], shape: tuple[int, int], codec: Codec) -> Array:
    """Return by how much finer than others (C,) sunzip codes channels of images (Y, X)."""
    family, each = codec.family, tuple(NAMES.index(name) for name in names)
    assert isinstance(family, WaveletFamily)
    finer = family.step[_USUAL] / family.quality_of(_USUAL, Known(each, shape)).step
    return finer[list(each)].astype(np.float64)


def measure(
    peer: Peer, judges: Sequence[Judge], names: Sequence[str], finer: Array, *, equal: bool
) -> dict[str, Any]:
    """Measure a still-image codec behind the transform, on all channels of a case.

    Parameters
    ----------
    finer, equal
        As of `Transform.fit`.

    Returns
    -------
    ``matrix``, ``extra_bits`` per sample, and ``components`` (bits and error of each setting), from which any
    choice of errors can be priced; ``frame``, whole decodings of some choices: bits per sample over all
    channels, the curve of each, and ``excess``, errors of each over what they were if errors of components
    were uncorrelated.
    """
    stable = np.stack([judge.stable for judge in judges], axis=1)
    frames, count, height, width = stable.shape
    samples = frames * height * width
    transform = Transform.fit(stable, finer, equal=equal)
    mixed = _mixed(transform.analysis, stable)
    coded: list[list[Any]] = []
    bits: list[list[float]] = []
    squares: list[list[float]] = []
    for k in range(count):
        images = np.ascontiguousarray(mixed[:, k])
        mean = images.mean((1, 2), dtype=np.float64).astype(np.float16)
        flat = np.broadcast_to(mean.astype(np.float32)[:, None, None], images.shape)
        coded.append([flat])
        bits.append([_MEAN_BITS * frames / samples])
        squares.append([_square(images - flat)])

        def measured(level: Any, images: Float = images) -> dict[str, Any]:
            pieces = peer.encode(images, level)
            square = _square(images - peer.decode(pieces, images.shape))
            return {"bits": 8 * sum(map(len, pieces)) / samples, "square": square, "pieces": pieces}

        for _, found in sweep(peer.levels(images - flat), measured, peer.between):
            coded[k].append(found["pieces"])
            bits[k].append(found["bits"])
            squares[k].append(found["square"])
    extra = 8 * transform.nbytes / samples / count
    scale = np.linalg.norm(transform.synthesis, axis=1)
    weight = ((transform.synthesis / scale[:, None]) ** 2).sum(0)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    totals: list[float] = []
    excess: dict[str, list[float]] = {name: [] for name in names}
    for picks in _choices(bits, squares, weight):
        whole = np.empty_like(mixed)
        for k, pick in enumerate(picks):
            piece = coded[k][pick]
            whole[:, k] = piece if pick == 0 else peer.decode(piece, (frames, height, width))
        decoded = _mixed(transform.synthesis, whole)
        totals.append(sum(b[p] for b, p in zip(bits, picks, strict=True)) / count + extra)
        told = transform.synthesis**2 @ [s[p] for s, p in zip(squares, picks, strict=True)]
        for c, (name, judge) in enumerate(zip(names, judges, strict=True)):
            physical = judge.physical(np.ascontiguousarray(decoded[:, c]))
            rows[name].append(judge(physical))
            excess[name].append(rows[name][-1]["rmse_sigma"] / float(np.sqrt(told[c])))
    curves: dict[str, Curve] = {name: curve(found) for name, found in rows.items()}
    return {
        "matrix": [[float(f"{v:.6g}") for v in row] for row in transform.synthesis],
        "extra_bits": extra,
        "components": [
            curve([{"bits": b, "error": float(np.sqrt(s))} for b, s in zip(*pair, strict=True)])
            for pair in zip(bits, squares, strict=True)
        ],
        "frame": {
            "bits": [float(f"{t:.5g}") for t in totals],
            "channels": curves,
            "excess": [[round(v, 4) for v in excess[name]] for name in names],
        },
    }


def _choices(bits: list[list[float]], squares: list[list[float]], weight: Array) -> list[list[int]]:
    """Return settings of the components that are best for a sum of weighted squares, for several prices."""
    prices = np.geomspace(1e-6, 1e9, 600)
    found: list[tuple[float, list[int]]] = []
    for price in prices:
        picks = [
            int(np.argmin(price * np.array(b) + w * np.array(s)))
            for b, s, w in zip(bits, squares, weight, strict=True)
        ]
        total = sum(b[p] for b, p in zip(bits, picks, strict=True)) / len(bits)
        if not found or total < found[-1][0]:
            found.append((total, picks))
    found = [f for f in found if f[0] <= 1]
    # Evenly spread in the logarithm of the rate.
    wanted = np.geomspace(found[-1][0], found[0][0], _POINTS)
    nearest = {int(np.abs(np.log([f[0] for f in found]) - np.log(w)).argmin()) for w in wanted}
    return [found[i][1] for i in sorted(nearest, reverse=True)]
