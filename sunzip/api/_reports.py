"""What the jobs tell: how far they are, and at the end what they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sunzip.display import Report


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come: frames done of all, their bytes as float32, and their coded bytes."""

    done: int
    total: int
    raw_bytes: int
    coded_bytes: int


OnProgress = Callable[[Progress], None]

#: What a job of several parts calls: (what is being done, how much of it is done, of how much).
OnStep = Callable[[str, int, int], object]


@dataclass(frozen=True, slots=True)
class CompressReport(Report):
    """What `compress` did, or with ``dry_run`` would do.

    Attributes
    ----------
    path
        The archive.
    dry_run
        Whether sizes and times are estimates from a sample and nothing was written.
    frames, images, channels, shape, scale, first, last
        What it holds: nominal times of the first and last frame, images summed over channels; whether AIA
        pixels, and with them errors, are 2×2 means or sums.
    frames_before
        How many of these frames it had before others were added; 0 if it is new.
    frames_anew
        How many of those were coded anew, with images that came late; they are its last.
    model, model_sha256, quality
        What coded it; a quality of None is that of a model that has none.
    max_error
        The farthest that pixels are from the original, channel by channel as `sunzip.bounds.told` says it;
        None if that is not bounded.
    block
        Frames coded together.
    target_bytes
        The size that the quality was chosen for; None if it was given.
    seconds, frames_coded
        Wall time, and how many frames were coded in it: not those that a run that is continued had coded.
    raw_bytes
        Its images as float32.
    source_bytes
        Bytes that they occupy in the source; None if unknown.
    archive_bytes
        Size of the file.
    coded_bytes
        The coded blocks alone.
    latent_bytes
        Latents of all frames as float32, the paper's way of storing them; None where others than they are
        coded.
    model_bytes
        The model's files, encoder and decoder: what a receiver needs once.
    errors
        Per channel, means over images of the error statistics measured at encoding, and how many images are
        ``constant``, or decode to one number: they have no r, and that of the others is given.
    alignment
        What became of every image of the sources.
    """

    path: str
    dry_run: bool
    frames: int
    frames_before: int
    frames_anew: int
    images: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    scale: str
    first: str
    last: str
    model: str
    model_sha256: str
    quality: int | None
    max_error: str | None
    block: int
    target_bytes: int | None
    seconds: float
    frames_coded: int
    raw_bytes: int
    source_bytes: int | None
    archive_bytes: int
    coded_bytes: int
    latent_bytes: int | None
    model_bytes: int
    errors: dict[str, dict[str, float | None]]
    alignment: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecompressReport(Report):
    """What `decompress` wrote.

    Attributes
    ----------
    path, layout
        Where, and how.
    frames, images
        How many; images are summed over channels.
    filled
        How many of these images the archive lacks, and were foretold.
    channels, shape
        Of which there are images, and (Y, X) of each image.
    seconds
        Wall time.
    raw_bytes
        Its images as float32.
    """

    path: str
    layout: str
    frames: int
    images: int
    filled: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    seconds: float
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class EvaluateReport(Report):
    """What was lost, measured by holding an archive against its source.

    Attributes
    ----------
    frames, images
        Frames and images that are in both.
    absent
        Images that only one of them has.
    scale
        Of the archive: whether AIA pixels are 2×2 means or sums.
    metrics
        By mode (``paper``, ``strict``) and channel: see `sunzip.metrics.ChannelMetrics`; of AIA pixels as
        2×2 means, whatever the archive has.
    bits_per_sample
        Bits of the archive file, without a model inside, per pixel of an image that is there.
    ratio
        Bytes of these pixels as float32 over bytes of that file.
    max_error
        As the archive promises it: see `CompressReport`.
    outside
        Of each channel whose errors the archive bounds, how many pixels are farther from the original.
    """

    source: str
    archive: str
    frames: int
    images: int
    absent: int
    scale: str
    metrics: dict[str, Any]
    bits_per_sample: float
    ratio: float
    max_error: str | None
    outside: dict[str, int]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two that `diff` held against each other.

    Attributes
    ----------
    path
        Where it is.
    archive
        Whether it is an archive; all from `format` on is None if not.
    frames, images
        How many it has. Images of a source may turn out to hold no measurement when they are read.
    shape, scale
        (Y, X) of its images; whether AIA pixels are 2×2 means or sums.
    format, bytes, model, model_sha256, quality, max_error, block
        What the archive is coded with: see `CompressReport`.
    embedded
        Whether the archive holds the model.
    """

    path: str
    archive: bool
    frames: int
    images: int
    shape: tuple[int, int]
    scale: str
    format: int | None = None
    bytes: int | None = None
    model: str | None = None
    model_sha256: str | None = None
    quality: int | None = None
    max_error: str | None = None
    block: int | None = None
    embedded: bool | None = None


@dataclass(frozen=True, slots=True)
class Lone:
    """Frames that only one of two has: how many, the nominal times of the first few and of the last."""

    frames: int
    times: tuple[str, ...]
    last: str | None


@dataclass(frozen=True, slots=True)
class ChannelDiff:
    """What differs in the images of one channel that two have in common.

    Attributes
    ----------
    unit
        Of `max_error` and `rmse`; AIA pixels are 2×2 means.
    images, identical
        How many there are, and how many of them are the same to the bit.
    pixels, differing
        Of all these images.
    nan_in_one
        How many of those that differ are a number in one and NaN in the other; what follows leaves them out.
    max_error, rmse
        Largest difference, and the mean over images of the root mean squared one.
    max_sigma, rmse_sigma
        The same after the variance-stabilising function, in standard deviations of the noise.
    """

    unit: str
    images: int
    identical: int
    pixels: int
    differing: int
    nan_in_one: int
    max_error: float | None
    rmse: float | None
    max_sigma: float | None
    rmse_sigma: float | None


@dataclass(frozen=True, slots=True)
class DiffReport(Report):
    """What differs between two, A and B; what is a pair says it of A first.

    Attributes
    ----------
    a, b
        What they are.
    differs
        In what they differ, of ``channels``, ``image size``, ``scale``, ``frames``, ``images``, ``nominal
        times``, ``times`` (of observation), ``pixels`` and ``keywords``.
    frames
        How many both have.
    images
        How many both have and were compared, by their pixels, times and keywords; none of another size.
    channels_only, frames_only, images_only
        What only one has; images are those of frames and channels that both have, by channel.
    unseen
        Images of a source that no frame takes in, as they have no usable time, are too far from the grid, or
        are the second of their channel in a frame; and its files and images that `compress` passes over.
    nominal_times, times, seconds_apart
        Frames of two archives that bear another nominal time; images that were taken at another time, and how
        far these are apart at most.
    keywords, keyword_names
        Images with other keywords, and of how many of them each name tells something else.
    channels
        By name.
    """

    a: Side
    b: Side
    differs: tuple[str, ...]
    frames: int
    images: int
    channels_only: tuple[tuple[str, ...], tuple[str, ...]]
    frames_only: tuple[Lone, Lone]
    images_only: tuple[dict[str, int], dict[str, int]]
    unseen: tuple[int, int]
    nominal_times: int
    times: int
    seconds_apart: float
    keywords: int
    keyword_names: dict[str, int]
    channels: dict[str, ChannelDiff]

    @property
    def same(self) -> bool:
        """Whether both hold the same, all images having been seen."""
        return not self.differs and not any(self.unseen)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {"same": self.same, **asdict(self)}
