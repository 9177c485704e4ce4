"""The hyperprior family: latents on a grid, coded with Gaussians that an exact network predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.codec.family import (
    Float,
    Known,
    Latents,
    NetworkFamily,
    Written,
    load_network,
    part,
    placed,
    quality_arrays,
    symbols,
)
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError
from sunzip.nn import HYPER_STRIDE, SCALES, STRIDE
from sunzip.nn.integer import ACTIVATION_BITS, IntegerNet
from sunzip.normalize import Stabiliser
from sunzip.weights import Model

if TYPE_CHECKING:
    from torch import Tensor

    from sunzip.nn.hyperprior import Hyperprior

#: What of the network only training uses and no model has: integers and tables take its place.
TRAINING_ONLY = ("hyper_synthesis.", "prior_", "log_")

_MAX_WIDTH = 1024
_WIDTHS = ("channels", "wide", "deep", "latents", "hyper", "hyper_wide")


class Coded(NamedTuple):
    """Symbols, int32, and of each the number of its table; arrays of one shape."""

    symbols: npt.NDArray[np.int32]
    tables: npt.NDArray[np.int64]


class HyperpriorFamily(NetworkFamily["Hyperprior"]):
    """See the module.

    Raises
    ------
    DamagedError
        If the model's parts are missing or do not fit each other.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        count = len(NAMES)
        self.stabiliser = Stabiliser(*(model.numbers(key, count) for key in ("a", "b", "spread")))
        widths = model.config.get("network")
        self.default_quality = model.config.get("default_quality", 0)
        if (
            not isinstance(widths, dict)
            or set(widths) != set(_WIDTHS)
            or not all(type(w) is int and 1 <= w <= _MAX_WIDTH for w in widths.values())
            or widths["channels"] != count
            or widths["hyper_wide"] % 3
            or type(self.default_quality) is not int
            or not 0 <= self.default_quality <= 100
        ):
            raise DamagedError(f"model {model.name}: config.json does not describe a hyperprior network")
        self.widths: dict[str, int] = widths
        self.latent_channels, self.hyper = widths["latents"], widths["hyper"]
        self.hyper_synthesis = part(IntegerNet.from_arrays, model, "hyper_synthesis")
        self.side_tables = part(Tables.from_arrays, model, "side_tables")
        self.main_tables = part(Tables.from_arrays, model, "main_tables")
        each = (101, self.latent_channels)
        tables = quality_arrays(
            model,
            (
                ("gain", each, np.float32),
                ("inverse", each, np.float32),
                ("index_offset", each, np.int32),
                ("band", (101,), np.int32),
            ),
            2.0**30,
        )
        self._gain: Float = tables["gain"][:, :, None, None]
        self._inverse: Float = tables["inverse"][:, :, None, None]
        self._index_offset = tables["index_offset"].astype(np.int64)[:, :, None, None]
        self._band: list[int] = tables["band"].tolist()
        bands = max(self._band) + 1
        grows = math.prod(layer.shuffle for layer in self.hyper_synthesis.layers)
        if (
            min(self._band) < 0
            or self.hyper_synthesis.channels_in != self.hyper
            or self.hyper_synthesis.channels_out != 2 * self.latent_channels
            or grows != HYPER_STRIDE
            or len(self.side_tables) != bands * self.hyper
            or len(self.main_tables) != bands * SCALES
        ):
            raise DamagedError(f"model {model.name}: its entropy model does not fit its network")

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // STRIDE), -(-width // STRIDE)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(M, Y/16, X/16)."""
        return (self.latent_channels, *self._grid(height, width))

    def _loaded(self) -> Hyperprior:
        """See `NetworkFamily._loaded`."""
        from sunzip.nn.hyperprior import Hyperprior

        return load_network(lambda: Hyperprior(**self.widths), self.model, TRAINING_ONLY)

    def analyse(self, images: Float, present: Float, quality: int) -> Sequence[Latents]:
        """See `Family.analyse`; main is (M, h, w), side the hyper-latents (hyper, ⌈h/4⌉, ⌈w/4⌉)."""
        height, width = images.shape[-2:]
        pad = ((0, 0), (0, 0), (0, -height % STRIDE), (0, -width % STRIDE))
        if any(after for _, after in pad):
            images = np.pad(images, pad, mode="edge")
        with self._running() as network:
            import torch

            x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            y = network.analyse(x, torch.from_numpy(present))
            y = (y * torch.from_numpy(self._gain[quality])).contiguous()
            z = network.hyper_analyse(y).contiguous()
        return [Latents(*pair) for pair in zip(y.numpy(), z.numpy(), strict=True)]

    def _predict(
        self, side: npt.NDArray[np.int32], h: int, w: int, quality: int
    ) -> tuple[Float, npt.NDArray[np.int64]]:
        """Return the latents' means (M, h, w), exact in float32, and their tables' numbers."""
        out = self.hyper_synthesis(side)[:, :h, :w]
        mean = out[: self.latent_channels].astype(np.float32) * np.float32(2.0**-ACTIVATION_BITS)
        out[self.latent_channels :] += self._index_offset[quality]
        index = (out[self.latent_channels :] + (1 << (ACTIVATION_BITS - 1))) >> ACTIVATION_BITS
        return mean, np.clip(index, 0, SCALES - 1) + SCALES * self._band[quality]

    def _side_index(self, h: int, w: int, quality: int) -> npt.NDArray[np.int64]:
        shape = (self.hyper, -(-h // HYPER_STRIDE), -(-w // HYPER_STRIDE))
        first = self.hyper * self._band[quality]
        return np.broadcast_to(np.arange(first, first + self.hyper)[:, None, None], shape)

    def quantise(self, latents: Latents, quality: int) -> tuple[Coded, Coded]:
        """Round one frame's latents: the hyper-latents, then the latents' distances from their means."""
        h, w = latents.main.shape[1:]
        side = symbols(latents.side)
        mean, index = self._predict(side, h, w, quality)
        return Coded(side, self._side_index(h, w, quality)), Coded(symbols(latents.main - mean), index)

    def encode(self, latents: Latents, quality: int, known: Known, own: int | None = None) -> Written:
        """See `Family.encode`."""
        side, main = self.quantise(latents, quality)
        encoder = Encoder()
        encoder.push(side.symbols, side.tables, self.side_tables)
        encoder.push(main.symbols, main.tables, self.main_tables)
        return Written(encoder.finish())

    def decode(self, payload: bytes, quality: int, known: Known) -> Float:
        """See `Family.decode`."""
        h, w = self._grid(*known.shape)
        decoder = Decoder(payload)
        side_index = self._side_index(h, w, quality)
        side = decoder.pop(side_index, self.side_tables).reshape(side_index.shape)
        mean, index = self._predict(side, h, w, quality)
        deviation = decoder.pop(index, self.main_tables).reshape(index.shape)
        decoder.finish()
        latents: Float = (deviation.astype(np.float32) + mean) * self._inverse[quality]
        return latents

    def unquantised(self, latents: Latents, quality: int) -> Float:
        """See `Family.unquantised`."""
        found: Float = latents.main * self._inverse[quality]
        return found

    def synthesise_tensor(self, latents: Tensor, present: Tensor, height: int, width: int) -> Tensor:
        """See `Family.synthesise_tensor`."""
        with self._running() as network:
            import torch

            y = latents.contiguous(memory_format=torch.channels_last)
            x: Tensor = placed(network, latents.device).synthesise(y, present)
        return x[..., :height, :width]
