"""Turn trained networks into models: integer networks and tables for decoding, safetensors, config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load
from torch import Tensor

from sunzip.codec import trellis
from sunzip.codec.family import Float
from sunzip.codec.hyperprior import TRAINING_ONLY, HyperpriorFamily
from sunzip.entropy.tables import PRECISION, Tables
from sunzip.errors import DamagedError, DivergedError, InputError
from sunzip.nn.hyperprior import Hyperprior, scale_table
from sunzip.nn.sigma_vae import SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.weights import CONFIG_VERSION, TENSORS, Model, pack

#: Latents are on the trellis if they vary by so many steps: rounding those that vary less to 0 costs less.
_TRELLIS_SPREAD = 0.5

#: Hyper-latents are tabulated this far from 0; what lies outside is escaped.
_SIDE_LIMIT = 128


def export_hyperprior(
    network: Hyperprior, stabiliser: Stabiliser, name: str, *, default_quality: int, notes: Mapping[str, Any]
) -> Model:
    """Make a model of a trained hyperprior network.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    stabiliser
        What its inputs went through.
    name, default_quality
        Of the model.
    notes
        JSON kept in the configuration under ``training``.

    Returns
    -------
    Model
        With transforms in half precision: their outputs are estimates anyway, and the file is half as large.

    Raises
    ------
    DivergedError
        If weights are too large for half precision, or for integers.
    """
    weights = {key: halved(key, value) for key, value in network.state_dict().items()}
    try:
        integers = network.export_hyper_synthesis()
    except (InputError, DamagedError) as error:
        raise _diverged(str(error)) from None
    probabilities = network.prior_probabilities(_SIDE_LIMIT).detach().numpy().astype(np.float64)
    side = Tables.from_probabilities(
        list(probabilities),
        lowest=[-_SIDE_LIMIT] * len(probabilities),
        escape=[2.0**-16] * len(probabilities),
    )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for key, value in weights.items():
        if not key.startswith(TRAINING_ONLY):
            arrays[f"network.{key}"] = np.ascontiguousarray(value.numpy())
    arrays |= {f"quality.{k}": v.numpy() for k, v in network.export_gains().items()}
    arrays["quality.band"] = np.zeros(101, np.int32)
    for prefix, part in (
        ("hyper_synthesis", integers.to_arrays()),
        ("side_tables", side.to_arrays()),
        ("main_tables", Tables.gaussian(scale_table(), reach=2).to_arrays()),
    ):
        arrays |= {f"{prefix}.{k}": np.ascontiguousarray(v) for k, v in part.items()}
    config = {
        "version": CONFIG_VERSION,
        "name": name,
        "family": "hyperprior",
        "network": network.shape,
        "default_quality": default_quality,
        "stabiliser": stabiliser_numbers(stabiliser),
        "parameters": sum(p.numel() for p in network.parameters()),
        "training": dict(notes),
    }
    return pack(config, arrays)


def halved(name: str, weight: Tensor) -> Tensor:
    """Return a trained weight in half precision, as models hold it.

    Raises
    ------
    DivergedError
        If it is too large for that, as after a last step that was.
    """
    half = weight.half()
    if not half.isfinite().all():
        raise _diverged(f"weights of {name} are too large for half precision")
    return half


def _diverged(why: str) -> DivergedError:
    return DivergedError(f"training diverged: {why}; begin anew with --force and a lower --rate")


def fit_tables(
    model: Model, batches: Iterable[tuple[Float, Float]], qualities: Sequence[int], *, bands: int
) -> Model:
    """Replace a hyperprior model's entropy tables by those that its symbols on training frames ask for.

    The Gaussians that training assumes are a little off: real latents have heavier tails, and by how much
    depends on the quality, whose range is cut into bands with tables of their own. A table's counts are
    smoothed towards what it was, so that one that is rarely used stays as it is.

    Parameters
    ----------
    model
        What `export_hyperprior` returned.
    batches
        Stabilised images (N, 12, Y, X) and presence (N, 12), float32.
    qualities
        Each batch is coded at all of them; there should be some in each band.
    bands
        How many sets of tables there will be.

    Returns
    -------
    Model
        With the same networks.

    Raises
    ------
    ValueError
        If the model's tables were fitted before.
    """
    if model.arrays("quality")["band"].any():
        raise ValueError("the model's tables have been fitted already")
    arrays = dict(load(model.files[TENSORS]))
    arrays["quality.band"] = (np.arange(101) * bands // 101).astype(np.int32)
    for prefix in ("side_tables", "main_tables"):
        for part in ("frequencies", "lowest", "length"):
            arrays[f"{prefix}.{part}"] = np.tile(arrays[f"{prefix}.{part}"], bands)
    family = HyperpriorFamily(pack(model.config, arrays))
    fitted = (Histogram(family.side_tables), Histogram(family.main_tables))
    for images, present in batches:
        for quality in qualities:
            for latents in family.analyse(images, present, quality):
                for histogram, coded in zip(fitted, family.quantise(latents, quality), strict=True):
                    histogram.add(coded.symbols.ravel(), coded.tables.ravel())
    for prefix, histogram in zip(("side_tables", "main_tables"), fitted, strict=True):
        arrays |= {
            f"{prefix}.{k}": np.ascontiguousarray(v) for k, v in histogram.tables().to_arrays().items()
        }
    return pack(model.config, arrays)


class Histogram:
    """Counts the entries of tables, escapes included."""

    #: What the old table weighs, in symbols.
    _PRIOR = 300.0

    def __init__(self, tables: Tables) -> None:
        self._old = tables
        self._counts = np.zeros(tables.frequencies.size, np.int64)

    def add(self, found: npt.NDArray[np.int32], index: npt.NDArray[np.integer[Any]]) -> None:
        """Count symbols (N,) of the tables `index` (N,)."""
        entries, _ = self._old.entries(found, index)
        self._counts += np.bincount(self._old.offsets[index] + entries, minlength=self._counts.size)

    def tables(self) -> Tables:
        """Return tables fitted to what was counted."""
        rows = []
        for begin, length in zip(self._old.offsets, self._old.length, strict=True):
            cut = slice(begin, begin + length)
            old = self._old.frequencies[cut] / 2.0**PRECISION
            rows.append(self._counts[cut] + self._PRIOR * old)
        return Tables.from_probabilities([r[:-1] for r in rows], self._old.lowest, [r[-1] for r in rows])


def varied(means: Float, steps: Float) -> npt.NDArray[np.bool_]:
    """Return which latents (B,) of means (N, B) and steps (B,) are on the trellis."""
    return np.asarray(means.std(0) >= _TRELLIS_SPREAD * steps)


def export_sigma_vae(
    network: SigmaVAE,
    stabiliser: Stabiliser,
    means: Float,
    steps: Float,
    name: str,
    *,
    notes: Mapping[str, Any],
) -> Model:
    """Make a model of a trained σ-VAE: each latent's table is the histogram of its symbols.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    stabiliser
        What its inputs went through.
    means
        (N, B) float32: of the posteriors of the training frames.
    steps
        (B,) float32 quantisation steps.
    name
        Of the model.
    notes
        JSON kept in the configuration under ``training``.

    Returns
    -------
    Model
        With matrices and filters in half precision; what batchnorm keeps stays in float32.
    """
    on_trellis = varied(means, steps)
    coded = trellis.quantise(means / steps, on_trellis)
    # A latent may lie anywhere in 32 bits: of what lies between the symbols that it has nothing is kept.
    symbols, counts = zip(*(np.unique(column, return_counts=True) for column in coded.T), strict=True)
    tables = Tables.from_counts(counts, symbols)
    # `ascontiguousarray` would make one dimension of none, and a scalar σ unreadable.
    arrays: dict[str, npt.NDArray[Any]] = {
        f"network.{k}": v.numpy().astype(np.float16 if v.ndim > 1 else v.numpy().dtype, order="C")
        for k, v in network.state_dict().items()
    }
    arrays["steps.step"] = steps
    arrays["steps.trellis"] = on_trellis.astype(np.uint8)
    arrays |= {f"tables.{k}": np.ascontiguousarray(v) for k, v in tables.to_arrays().items()}
    config = {
        "version": CONFIG_VERSION,
        "name": name,
        "family": "sigma-vae",
        "bottleneck": len(steps),
        "stabiliser": stabiliser_numbers(stabiliser),
        "parameters": sum(p.numel() for p in network.parameters()),
        "training": dict(notes),
    }
    return pack(config, arrays)


def stabiliser_numbers(stabiliser: Stabiliser) -> dict[str, Sequence[float]]:
    """Return a stabiliser as a model's configuration has it."""
    return {key: [float(v) for v in getattr(stabiliser, key)] for key in ("a", "b", "spread")}
