"""Models by name, by sha256 or by folder: found, checked and read without executing anything in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import added
from sunzip.added import Entry
from sunzip.display import Report, Shown, size
from sunzip.errors import (
    DamagedError,
    InputError,
    ModelNotFoundError,
    OutputError,
    SunzipError,
    UnsupportedError,
)
from sunzip.files import put

#: Version of config.json that this code reads.
CONFIG_VERSION = 1

#: The model that is used when none is named.
DEFAULT = "wavelet-12"

CONFIG, TENSORS = "config.json", "model.safetensors"

# Beyond these the stabilising transform would leave float32.
_TINY, _HUGE = 1e-12, 1e12

#: Characters of a name, at most.
LONGEST_NAME = 100

#: Of a sha256, so many digits are enough to tell a model by.
_FEWEST = 12

#: A model's files, and the most bytes that each may have.
FILES = {CONFIG: 1 << 20, TENSORS: 1 << 31}

#: Of the header of model.safetensors, which names the arrays, so many bytes at most; models have some 15,000.
_LONGEST_HEADER = 1 << 20

# In a wheel the models lie inside the package; in a checkout beside it.
_ROOTS = (Path(__file__).parent / "models", Path(__file__).parents[1] / "models")

#: Models met inside archives, by sha256, so that codecs in Zarr pipelines find them too.
_REGISTERED: dict[str, Model] = {}


def is_name(text: object) -> bool:
    """Whether something can be a model's name."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST_NAME and text.isprintable()


@dataclass(frozen=True, slots=True)
class Model(Shown):
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
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        return f"<Model {self.name} {self.sha256[:12]}, {self.family}>"

    def _told(self) -> dict[str, Any]:
        """See `Shown._told`."""
        return {
            "name": self.name,
            "family": self.family,
            "sha256": self.sha256,
            "size": size(self.nbytes),
            "parameters": self.config.get("parameters"),
        }

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

    def check(self) -> None:
        """See that the arrays can be read, and keep none of them, as `arrays` does for the next call.

        Raises
        ------
        DamagedError
            If the file is not valid safetensors.
        """
        _parsed(self.sha256, self.files[TENSORS])

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


def _parsed(sha256: str, tensor_bytes: bytes) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        # Of names alone a hundred megabytes would become gigabytes of objects.
        if int.from_bytes(tensor_bytes[:8], "little") > _LONGEST_HEADER:
            raise ValueError(f"its header says to be longer than {_LONGEST_HEADER} bytes")
        return load(tensor_bytes)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(
            f"model {sha256[:12]}: {TENSORS} is damaged ({reason}); fetch the model again"
        ) from None


_kept = lru_cache(maxsize=4)(_parsed)


def _tensors(model: Model) -> dict[str, npt.NDArray[Any]]:
    return _kept(model.sha256, model.files[TENSORS])


def pack(config: Mapping[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Model:
    """Make a model of its configuration and its arrays."""
    from safetensors.numpy import save

    # safetensors writes memory as it lies, which of a trained network has the channels last.
    tensors = save({k: v if v.flags.c_contiguous else np.ascontiguousarray(v) for k, v in arrays.items()})
    files = {CONFIG: json.dumps(config, indent=1).encode() + b"\n", TENSORS: tensors}
    return Model.from_files(files, str(config["name"]))


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


def write(model: Model, folder: Path, card: str | None = None) -> None:
    """Write a model's two files into a folder, which is made if need be, and beside them its card.

    Raises
    ------
    OutputError
        If they cannot be written; what was there stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from None
    # Cards name files, whose names need not be UTF-8.
    files = model.files if card is None else {**model.files, "README.md": card.encode(errors="replace")}
    put({folder / name: data for name, data in files.items()})


def installed() -> list[Path]:
    """Return the folders of the models that came with the package, in order of name."""
    found = {p.parent.name: p.parent for root in _ROOTS for p in sorted(root.glob(f"*/{CONFIG}"))}
    return [found[name] for name in sorted(found)]


def _own_names() -> set[str]:
    """Return the names of these models, which no other may have."""
    return {folder.name for folder in installed()}


@lru_cache(maxsize=8)
def _read_cached(folder: Path, _changed: tuple[tuple[int, int], ...]) -> Model:
    return read_folder(folder)


def _read(folder: Path) -> Model:
    stats = [(folder / name).stat() for name in (CONFIG, TENSORS) if os.path.isfile(folder / name)]
    return _read_cached(folder, tuple((s.st_mtime_ns, s.st_size) for s in stats))


def _sha256_of(folder: Path) -> str | None:
    """Return the identity of the model in a folder; None if it cannot be read at all."""
    try:
        return _read(folder).sha256
    except (SunzipError, OSError):
        return None


def read_added(entry: Entry, *, keep: bool = True) -> Model:
    """Read a model that was added, and see that it still is that one.

    Parameters
    ----------
    entry
        Which.
    keep
        Whether to keep it in memory for the next time. Of all models of a machine that would be too much.

    Raises
    ------
    DamagedError
        If it is not.
    UnsupportedError, InputError
        As `read_folder`.
    """
    try:
        model = (_read if keep else read_folder)(entry.path)
        problem = "its files are others"
    except (DamagedError, ModelNotFoundError) as error:
        model, problem = None, str(error).removeprefix(f"{entry.path}: ")
    if model is None or model.sha256 != entry.sha256:
        raise DamagedError(
            f"{entry.path}: is not the model any more that was added there ({problem}); add it again "
            f"(sunzip models add), or remove it (sunzip models remove {entry.sha256[:_FEWEST]})"
        )
    return model


def register(model: Model) -> None:
    """Make a model known to this process by its sha256; `sunzip.open` does so with embedded models."""
    _REGISTERED[model.sha256] = model


def begins_sha256(text: str) -> bool:
    """Whether a text can be a sha256, or its first digits."""
    return re.fullmatch(f"[0-9a-f]{{{_FEWEST},64}}", text) is not None


def load(wanted: str | Path = DEFAULT) -> Model:
    """Find a model.

    Parameters
    ----------
    wanted
        A name (``"wavelet-12"``), a sha256 or at least its first 12 hexadecimal digits, or a folder with
        config.json and model.safetensors. Names are those of models that came with the package, and then
        those of models that were added (`sunzip.add_model`).

    Raises
    ------
    ModelNotFoundError
        If there is none such on this machine; the message lists those that are.
    DamagedError, UnsupportedError, InputError
        If it is there but cannot be used, or is one of several.
    """
    text = str(wanted)
    if text in _REGISTERED:
        return _REGISTERED[text]
    for folder in installed():
        if folder.name == text:
            return _read(folder)
    if entry := added.names().get(text):
        return read_added(entry)
    by_hash = begins_sha256(text)
    if by_hash and (found := _by_sha256(text)):
        return found if isinstance(found, Model) else read_added(found)
    if not (by_hash and len(text) == 64) and os.path.isdir(text):
        return _read(Path(text).resolve())
    raise _absent(text, f"add it (sunzip models add), or name a folder that holds {CONFIG} and {TENSORS}")


def _by_sha256(text: str) -> Model | Entry | None:
    """Find the one model whose sha256 begins so."""
    found: dict[str, Model | Entry] = {e.sha256: e for e in added.entries() if e.sha256.startswith(text)}
    for folder in installed():
        if (_sha256_of(folder) or "").startswith(text):
            model = _read(folder)
            found[model.sha256] = model
    found |= {sha256: model for sha256, model in _REGISTERED.items() if sha256.startswith(text)}
    if len(found) > 1:
        raise _ambiguous(text)
    return next(iter(found.values()), None)


def _ambiguous(text: str) -> InputError:
    return InputError(f"the sha256 of several models begins with {text}; give more of it")


def _absent(text: str, remedy: str) -> ModelNotFoundError:
    """Return the error that no model is called so, which lists those that there are."""
    what = f"with sha256 {text[:_FEWEST]}…" if begins_sha256(text) else repr(text)
    here = f"installed: {', '.join(p.name for p in installed()) or 'none'}"
    if entries := added.entries():
        names = names_of_added()
        here += f"; added: {', '.join(sorted(names.get(e.sha256, e.sha256[:_FEWEST]) for e in entries))}"
    return ModelNotFoundError(f"no model {what} on this machine; {here}; {remedy}")


@dataclass(frozen=True, slots=True)
class AddReport(Report):
    """What became of a model that was to be added.

    Attributes
    ----------
    name
        By which it is found from now on.
    family, sha256
        Of the model.
    bytes
        Of its two files.
    path
        The folder that it is in.
    new
        Whether it was not on this machine before.
    instead_of
        The sha256 of the model that the name meant before, which is found by that alone now; or None.
    """

    name: str
    family: str
    sha256: str
    bytes: int
    path: str
    new: bool
    instead_of: str | None


def add(model: Model, name: str | None = None, *, force: bool = False) -> AddReport:
    """Keep a model on this machine, for all programs of this user to find by its name and its sha256.

    It is not looked into: `sunzip.add_model` does that first.

    Parameters
    ----------
    model
        The model. If it is there already, only its name may change.
    name
        What to call it; None is what it is called there, or what it calls itself.
    force
        Let the name mean this model even if it means another one that was added. That one stays.

    Raises
    ------
    InputError
        If it cannot be called so.
    OutputError
        If the name means another model, or nothing can be written.
    """
    for folder in installed():
        if _sha256_of(folder) == model.sha256:
            if name not in (None, folder.name):
                raise InputError(f"{folder.name} came with sunzip, and keeps that name")
            return _report(folder.name, model, folder, new=False)
    entry = added.place(model.sha256)
    there = _is_whole(entry)
    name = name if name is not None else entry.name or model.name
    if not _can_be_called(name):
        raise InputError(
            f"a model cannot be added as {name!r}: a name has up to {LONGEST_NAME} printable characters, no "
            "slashes, and is not like a sha256; give it another one (--name, name=)"
        )
    if name in _own_names():
        raise InputError(
            f"{name} is the name of a model that came with sunzip, and of no other; give this one another "
            "(--name, name=)"
        )
    before = _others(name, entry)
    if before and not force:
        raise _taken(name, before[0])
    if not there:
        added.put(entry, model.files)
    if before or entry.name != name:
        added.call(entry, name)
    for other in before:
        added.call(other, None)
    # Two runs at once may both have found the name free.
    if not force and (others := _others(name, entry)):
        added.call(entry, None)
        raise _taken(name, others[0])
    return _report(name, model, entry.path, new=not there, instead_of=before[0].sha256 if before else None)


def _report(name: str, model: Model, path: Path, *, new: bool, instead_of: str | None = None) -> AddReport:
    return AddReport(name, model.family, model.sha256, model.nbytes, str(path), new, instead_of)


def _others(name: str, entry: Entry) -> list[Entry]:
    return [other for other in added.entries() if other.name == name and other.sha256 != entry.sha256]


def _taken(name: str, other: Entry) -> OutputError:
    return OutputError(
        f"{name} is the name of another model that was added ({other.sha256[:_FEWEST]}…); give this one "
        "another (--name, name=), or that one's (--force, force=True)"
    )


def _is_whole(entry: Entry) -> bool:
    # From the disk, whatever was read from there before.
    try:
        return read_folder(entry.path).sha256 == entry.sha256
    except SunzipError:
        return False


def _can_be_called(name: str) -> bool:
    """Whether a name is told from folders and from sha256s."""
    return is_name(name) and name == name.strip(" .") and not set(name) & {*"/\\"} and not begins_sha256(name)


def names_of_added() -> dict[str, str]:
    """Return the names by which added models are found, by their sha256; that alone tells the others."""
    ours = _own_names()
    return {entry.sha256: name for name, entry in added.names().items() if name not in ours}


def remove(wanted: str) -> Path:
    """Remove a model that was added.

    Parameters
    ----------
    wanted
        Its name, or its sha256 or at least the first 12 digits.

    Returns
    -------
    Path
        The folder that was removed.

    Raises
    ------
    ModelNotFoundError
        If there is none.
    InputError
        If it came with the package, if there are several, or if other things are in its folder.
    OutputError
        If it cannot be removed.
    """
    ours = wanted in _own_names()
    found = [entry] if not ours and (entry := added.names().get(wanted)) else []
    if not found and begins_sha256(wanted):
        found = [entry for entry in added.entries() if entry.sha256.startswith(wanted)]
        ours |= any((_sha256_of(folder) or "").startswith(wanted) for folder in installed())
    if not found and ours:
        raise InputError(f"{wanted} came with sunzip, and stays; only models that were added can be removed")
    if not found:
        raise _absent(wanted, "only those that were added can be removed")
    if len(found) > 1:
        raise _ambiguous(wanted)
    added.remove(found[0], FILES)
    return found[0].path
