"""The paper's family: a 128² frame as B numbers, each with its own quantisation step and table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sunzip.channels import NAMES
from sunzip.codec.family import Family, Float, Latents, symbols
from sunzip.entropy.coder import Decoder, Encoder
from sunzip.entropy.tables import Tables
from sunzip.errors import DamagedError, InputError
from sunzip.normalize import Stabiliser
from sunzip.weights import Model

if TYPE_CHECKING:
    from sunzip.nn.sigma_vae import SigmaVAE

_SIZE = 128
_MAX_LATENTS = 1 << 16


class SigmaVaeFamily(Family):
    """See the module. There is no quality knob: the steps were fixed when the model was fitted.

    Raises
    ------
    DamagedError
        If the model's parts are missing or do not fit each other.
    """

    default_quality = 0

    def __init__(self, model: Model) -> None:
        self.model = model
        self.stabiliser = Stabiliser(*(model.numbers(key, len(NAMES)) for key in ("a", "b", "spread")))
        bottleneck = model.config.get("bottleneck")
        steps = model.arrays("steps").get("step")
        self.tables = Tables.from_arrays(model.arrays("tables"))
        if (
            not isinstance(bottleneck, int)
            or not 1 <= bottleneck <= _MAX_LATENTS
            or steps is None
            or steps.dtype != np.float32
            or steps.shape != (bottleneck,)
            or not (np.isfinite(steps) & (steps > 0)).all()
            or len(self.tables) != bottleneck
        ):
            raise DamagedError(f"model {model.name}: bottleneck, steps and tables do not fit each other")
        self.bottleneck = bottleneck
        self.steps: Float = steps
        self._index = np.arange(bottleneck)

    def check_size(self, height: int, width: int) -> None:
        """Only 128×128."""
        if (height, width) != (_SIZE, _SIZE):
            raise InputError(
                f"the σ-VAE takes images of 128×128 pixels, not {height}×{width}; add --size 128 "
                "or use the default model"
            )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """(B,)."""
        return (self.bottleneck,)

    @cached_property
    def network(self) -> SigmaVAE:
        """The float network, in evaluation mode."""
        import torch

        from sunzip.nn.sigma_vae import SigmaVAE

        state = {k: torch.from_numpy(v.copy()) for k, v in self.model.arrays("network").items()}
        sigma = "scalar" if state.get("log_sigma", torch.zeros(())).ndim == 0 else "per-channel"
        network = SigmaVAE(self.bottleneck, sigma=sigma)  # type: ignore[arg-type]
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise DamagedError(f"model {self.model.name}: {str(error).splitlines()[-1].strip()}") from None
        return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload,no-any-return]

    def analyse(self, images: Float, present: Float, quality: int) -> Sequence[Latents]:
        """See `Family.analyse`; main is the encoder's mean over the steps. Missing channels enter as 0."""
        import torch

        with torch.inference_mode():
            mean, _ = self.network.encode(
                torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            )
        empty = np.zeros(0, np.float32)
        return [Latents(row / self.steps, empty) for row in mean.numpy()]

    def encode(self, latents: Latents) -> bytes:
        """See `Family.encode`."""
        encoder = Encoder()
        encoder.push(symbols(latents.main), self._index, self.tables)
        return encoder.finish()

    def decode(self, payload: bytes, height: int, width: int, quality: int) -> Float:
        """See `Family.decode`."""
        decoder = Decoder(payload)
        found = decoder.pop(self._index, self.tables)
        decoder.finish()
        return found.astype(np.float32) * self.steps

    def unquantised(self, latents: Latents, quality: int) -> Float:
        """See `Family.unquantised`."""
        return latents.main * self.steps

    def synthesise(self, latents: Float, present: Float, height: int, width: int) -> Float:
        """See `Family.synthesise`."""
        import torch

        with torch.inference_mode():
            return self.network.decode(torch.from_numpy(latents)).contiguous().numpy()
