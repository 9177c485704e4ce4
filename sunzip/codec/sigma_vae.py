"""The paper's family: a 128² frame as B numbers, each with its own quantisation step and table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sunzip.channels import NAMES
from sunzip.codec import trellis
from sunzip.codec.family import Float, Known, Latents, NetworkFamily, Written, load_network, part, placed
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError, InputError
from sunzip.normalize import Stabiliser
from sunzip.weights import Model

if TYPE_CHECKING:
    from torch import Tensor

    from sunzip.nn.sigma_vae import Sigma, SigmaVAE

_SIZE = 128
_MAX_LATENTS = 1 << 16


class SigmaVaeFamily(NetworkFamily["SigmaVAE"]):
    """See the module. There is no quality knob: the steps were fixed when the model was fitted.

    Raises
    ------
    DamagedError
        If the model's parts are missing or do not fit each other.
    """

    default_quality = 0
    has_qualities = False

    def __init__(self, model: Model) -> None:
        self.model = model
        self.stabiliser = Stabiliser(*(model.numbers(key, len(NAMES)) for key in ("a", "b", "spread")))
        bottleneck = model.config.get("bottleneck")
        quantiser = model.arrays("steps")
        steps = quantiser.get("step")
        # Models from before there was a trellis have none of their latents on it.
        on = quantiser.get("trellis", np.zeros(0 if steps is None else steps.shape, np.uint8))
        self.tables = part(Tables.from_arrays, model, "tables")
        if (
            type(bottleneck) is not int
            or not 1 <= bottleneck <= _MAX_LATENTS
            or steps is None
            or steps.dtype != np.float32
            or steps.shape != (bottleneck,)
            or not (np.isfinite(steps) & (steps > 0)).all()
            or on.dtype != np.uint8
            or on.shape != steps.shape
            or on.max() > 1
            or len(self.tables) != bottleneck
        ):
            raise DamagedError(f"model {model.name}: bottleneck, steps and tables do not fit each other")
        self.bottleneck = bottleneck
        self.steps: Float = steps
        self.on_trellis = on.astype(bool)
        self._index = np.arange(bottleneck)

    def check_size(self, height: int, width: int) -> None:
        """Only 128×128."""
        if (height, width) != (_SIZE, _SIZE):
            raise InputError(
                f"the σ-VAE takes images of 128×128 pixels, not {height}×{width}; average larger "
                "ones with --size 128, or use the default model"
            )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(B,)."""
        return (self.bottleneck,)

    def _loaded(self) -> SigmaVAE:
        """See `NetworkFamily._loaded`."""
        from sunzip.nn.sigma_vae import SigmaVAE

        log_sigma = self.model.arrays("network").get("log_sigma")
        sigma: Sigma = "per-channel" if log_sigma is not None and log_sigma.ndim else "scalar"
        return load_network(lambda: SigmaVAE(self.bottleneck, sigma), self.model)

    def analyse(self, images: Float, present: Float, quality: int) -> Sequence[Latents]:
        """See `Family.analyse`; main is the encoder's mean over the steps. Missing channels enter as 0."""
        with self._running() as network:
            import torch

            mean, _ = network.encode(torch.from_numpy(images).contiguous(memory_format=torch.channels_last))
        empty = np.zeros(0, np.float32)
        return [Latents(row / self.steps, empty) for row in mean.numpy()]

    def encode(self, latents: Latents, quality: int, known: Known, own: int | None = None) -> Written:
        """See `Family.encode`."""
        encoder = Encoder()
        encoder.push(trellis.quantise(latents.main[None], self.on_trellis)[0], self._index, self.tables)
        return Written(encoder.finish())

    def decode(self, payload: bytes, quality: int, known: Known) -> Float:
        """See `Family.decode`."""
        decoder = Decoder(payload)
        found = decoder.pop(self._index, self.tables)
        decoder.finish()
        latents: Float = trellis.dequantise(found[None], self.on_trellis)[0] * self.steps
        return latents

    def unquantised(self, latents: Latents, quality: int) -> Float:
        """See `Family.unquantised`."""
        return latents.main * self.steps

    def synthesise_tensor(self, latents: Tensor, present: Tensor, height: int, width: int) -> Tensor:
        """See `Family.synthesise_tensor`."""
        with self._running() as network:
            images: Tensor = placed(network, latents.device).decode(latents)
        return images
