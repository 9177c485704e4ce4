"""Models by name, by sha256 or by folder: found, checked and read without executing anything in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError

#: Version of config.json that this code reads.
CONFIG_VERSION = 1

#: The model that is used when none is named.
DEFAULT = "wavelet-12"

CONFIG, TENSORS = "config.json", "model.safetensors"

# Beyond these the stabilising transform would leave float32.
_TINY, _HUGE = 1e-12, 1e12

#: Characters of a name, at most.
LONGEST_NAME = 100

#: A model's files, and the most bytes that each may have.
FILES = {CONFIG: 1 << 20, TENSORS: 1 << 31}

# In a wheel the models lie inside the package; in a checkout beside it.
_ROOTS = (Path(__file__).parent / "models", Path(__file__).parents[1] / "models")

#: Models met inside archives, by sha256, so that codecs in Zarr pipelines find them too.
_REGISTERED: dict[str, Model] = {}


def is_name(text: object) -> bool:
    """Whether something can be a model's name."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST_NAME and text.isprintable()


@dataclass(frozen=True, slots=True)
class Model:
    """One model's two files.

    Attributes
    ----------
    name
        What people call it.
    config
        The parsed config.json.
    sha256
        Of the bytes of config.json followed by those of model.safetensors: the model's identity.
    files
        Both files' bytes by name, as an archive embeds them.
    """

    name: str
    config: Mapping[str, Any]
    sha256: str
    files: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], origin: str) -> Model:
        """Read a model from the bytes of its two files.

        Parameters
        ----------
        files
            ``{"config.json": …, "model.safetensors": …}``.
        origin
            Where they come from, for messages.

        Raises
        ------
        DamagedError
            If a file is missing or is not what its name says.
        UnsupportedError
            If the configuration is of a newer version.
        """
        try:
            config_bytes, tensor_bytes = files[CONFIG], files[TENSORS]
        except KeyError as error:
            raise DamagedError(f"{origin}: model file {error} is missing; fetch the model again") from None
        try:
            config = json.loads(config_bytes)
            name, version, family = config["name"], config["version"], config["family"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DamagedError(f"{origin}: {CONFIG} is not a sunzip model's; fetch the model again") from None
        # Both are printed in messages.
        if not (is_name(name) and is_name(family)) or type(version) is not int or not 1 <= version < 1 << 31:
            raise DamagedError(f"{origin}: {CONFIG} is not a sunzip model's; fetch the model again")
        if version != CONFIG_VERSION:
            raise UnsupportedError(
                f"{origin}: the model has configuration version {version}, this sunzip reads "
                f"{CONFIG_VERSION}; update sunzip"
            )
        digest = hashlib.sha256(config_bytes)
        digest.update(tensor_bytes)
        return cls(name, config, digest.hexdigest(), {CONFIG: config_bytes, TENSORS: tensor_bytes})

    @property
    def nbytes(self) -> int:
        """Bytes of both files."""
        return sum(map(len, self.files.values()))

    @property
    def family(self) -> str:
        """Which code runs the model: ``"wavelet"``, ``"hyperprior"`` or ``"sigma-vae"``."""
        return str(self.config["family"])

    def arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return the stored arrays whose name begins with ``prefix.``, without the prefix.

        Raises
        ------
        DamagedError
            If the file is not valid safetensors.
        """
        prefix += "."
        return {k.removeprefix(prefix): v for k, v in _tensors(self).items() if k.startswith(prefix)}

    def numbers(self, key: str, count: int) -> npt.NDArray[np.float32]:
        """Return positive finite numbers from the configuration's ``stabiliser`` section, (count,) float32.

        Raises
        ------
        DamagedError
            If it is not there or holds something else.
        """
        try:
            found = self.config["stabiliser"][key]
            ok = len(found) == count and all(type(v) in (int, float) and _TINY <= v <= _HUGE for v in found)
        except (KeyError, TypeError):
            ok = False
        if not ok:
            raise DamagedError(f"model {self.name}: {CONFIG} has no usable stabiliser.{key}")
        return np.array(found, np.float32)


@lru_cache(maxsize=4)
def _parse(sha256: str, tensor_bytes: bytes) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(tensor_bytes)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"model {sha256[:12]}: {TENSORS} is damaged ({reason}); fetch the model again"
        ) from None


def _tensors(model: Model) -> dict[str, npt.NDArray[Any]]:
    return _parse(model.sha256, model.files[TENSORS])


def read_folder(folder: Path) -> Model:
    """Read the model in a folder.

    Raises
    ------
    ModelNotFoundError
        If the folder holds no model.
    DamagedError, UnsupportedError
        As `Model.from_files`.
    InputError
        If a file cannot be read.
    """
    files = {}
    for name, limit in FILES.items():
        path = folder / name
        if not os.path.isfile(path):
            raise ModelNotFoundError(f"{folder}: no model there ({name} is missing)")
        try:
            if path.stat().st_size > limit:
                raise DamagedError(f"{path}: {path.stat().st_size} bytes are more than a model has")
            files[name] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return Model.from_files(files, str(folder))


def installed() -> list[Path]:
    """Return the folders of the models that came with the package, in order of name."""
    found = {p.parent.name: p.parent for root in _ROOTS for p in sorted(root.glob(f"*/{CONFIG}"))}
    return [found[name] for name in sorted(found)]


@lru_cache(maxsize=8)
def _read_cached(folder: Path, _changed: tuple[tuple[int, int], ...]) -> Model:
    return read_folder(folder)


def _read(folder: Path) -> Model:
    stats = [(folder / name).stat() for name in (CONFIG, TENSORS) if os.path.isfile(folder / name)]
    return _read_cached(folder, tuple((s.st_mtime_ns, s.st_size) for s in stats))


def _has_sha256(folder: Path, wanted: str) -> bool:
    """Whether a folder holds the model; one that cannot be read at all is not the one."""
    try:
        return _read(folder).sha256 == wanted
    except (SunzipError, OSError):
        return False


def register(model: Model) -> None:
    """Make a model known to this process by its sha256; `sunzip.open` does so with embedded models."""
    _REGISTERED[model.sha256] = model


def load(wanted: str | Path = DEFAULT) -> Model:
    """Find a model.

    Parameters
    ----------
    wanted
        A name (``"wavelet-12"``), a sha256 of 64 hexadecimal digits, or a folder with config.json and
        model.safetensors.

    Raises
    ------
    ModelNotFoundError
        If there is none such on this machine; the message lists those that are.
    DamagedError, UnsupportedError, InputError
        If it is there but cannot be used.
    """
    text = str(wanted)
    if text in _REGISTERED:
        return _REGISTERED[text]
    by_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    for folder in installed():
        if folder.name == text:
            return _read(folder)
        if by_hash and _has_sha256(folder, text):
            return _read(folder)
    if not by_hash and os.path.isdir(text):
        return _read(Path(text).resolve())
    names = ", ".join(p.name for p in installed()) or "none"
    what = f"with sha256 {text[:12]}…" if by_hash else repr(text)
    raise ModelNotFoundError(
        f"no model {what} on this machine; installed: {names}; "
        f"or name a folder that holds {CONFIG} and {TENSORS}"
    )
