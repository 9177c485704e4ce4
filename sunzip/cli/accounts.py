"""What an archive costs, with the model counted and not counted, as the paper's Table 1 does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sunzip.display import number, size, table


@dataclass(frozen=True, slots=True)
class Accounts:
    """Bytes of one archive.

    Attributes
    ----------
    frames
        Its frames.
    samples
        Its pixels, summed over the images that there are.
    stored
        Bytes of the same images in the source; None if unknown.
    archive
        The file, without the model even if that is embedded.
    model
        The model's files, encoder and decoder.
    coded
        The coded blocks alone.
    latents
        The same latents as float32, as the paper stores them; None if unknown.
    """

    frames: int
    samples: int
    stored: int | None
    archive: int
    model: int
    coded: int
    latents: int | None

    def _costs(self, n: int) -> dict[str, float | None]:
        return {
            "bytes": n,
            "bytes_per_frame": n / self.frames if self.frames else None,
            "bits_per_sample": 8 * n / self.samples if self.samples else None,
            "ratio_float32": 4 * self.samples / n if n else None,
            "ratio_source": self.stored / n if n and self.stored is not None else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "raw_bytes": 4 * self.samples,
            "source_bytes": self.stored,
            "without_model": self._costs(self.archive),
            "with_model": self._costs(self.archive + self.model),
            "coded_bytes": self.coded,
            "latent_bytes": self.latents,
            "latent_ratio": self.latents / self.coded if self.latents and self.coded else None,
        }

    def lines(self) -> Iterator[str]:
        """Yield the accounts as lines of text."""
        alone, whole = self._costs(self.archive), self._costs(self.archive + self.model)
        names = {
            "bytes_per_frame": "bytes per frame",
            "bits_per_sample": "bits per sample",
            "ratio_float32": f"ratio to float32 ({size(4 * self.samples)})",
        }
        if self.stored is not None:
            names["ratio_source"] = f"ratio to the source as stored ({size(self.stored)})"
        yield from table(
            ["", "without model", "with model"],
            [
                ["size", size(self.archive), size(self.archive + self.model)],
                *([what, number(alone[key]), number(whole[key])] for key, what in names.items()),
            ],
        )
        if self.latents is not None and self.coded:
            yield (
                f"  latents: {size(self.latents)} as float32, {size(self.coded)} as coded "
                f"(1/{number(self.latents / self.coded)})"
            )
