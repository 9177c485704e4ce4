"""sunzip: learned compression and an archive format for 12-channel images of the Sun."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sunzip import errors as errors
    from sunzip import features as features
    from sunzip import numcodecs as numcodecs
    from sunzip import torch as torch
    from sunzip import xarray as xarray
    from sunzip import zarr as zarr
    from sunzip.api import Alignment, add_model, append, compress, decompress, diff, evaluate
    from sunzip.archive import repair, verify
    from sunzip.archive import summary as info
    from sunzip.features import export_features
    from sunzip.sun import Sun, open
    from sunzip.weights import remove as remove_model

__version__ = "0.1.0"

# Names are looked up when first used, so that `import sunzip` costs nothing and never loads torch.
_HOMES = {
    "Alignment": ("sunzip.api", "Alignment"),
    "Sun": ("sunzip.sun", "Sun"),
    "add_model": ("sunzip.api", "add_model"),
    "append": ("sunzip.api", "append"),
    "compress": ("sunzip.api", "compress"),
    "decompress": ("sunzip.api", "decompress"),
    "diff": ("sunzip.api", "diff"),
    "evaluate": ("sunzip.api", "evaluate"),
    "export_features": ("sunzip.features", "export_features"),
    "remove_model": ("sunzip.weights", "remove"),
    "open": ("sunzip.sun", "open"),
    "info": ("sunzip.archive", "summary"),
    "repair": ("sunzip.archive", "repair"),
    "verify": ("sunzip.archive", "verify"),
}

# What sunzip raises, and is inside other tools: `sunzip.zarr.SunzipCodec` works after `import sunzip` alone.
_INSIDE = ("errors", "features", "numcodecs", "torch", "xarray", "zarr")

__all__ = [
    "Alignment",
    "Sun",
    "__version__",
    "add_model",
    "append",
    "compress",
    "decompress",
    "diff",
    "evaluate",
    "export_features",
    "info",
    "open",
    "remove_model",
    "repair",
    "verify",
]


if not TYPE_CHECKING:  # or every name would pass for one of sunzip's, misspelt ones too

    def __getattr__(name: str) -> object:
        if name in _INSIDE:
            return import_module(f"sunzip.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'sunzip' has no attribute {name!r}")
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
