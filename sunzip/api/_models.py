"""Adding a model to those of this machine: from a folder, an archive that embeds it, or a URL of either."""

from __future__ import annotations

import os
from pathlib import Path

from sunzip import weights
from sunzip.archive import names_archive, open_archive
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, UnsupportedError
from sunzip.sources.storage import fetch
from sunzip.sun import embedded_in
from sunzip.weights import CONFIG, FILES, TENSORS, AddReport, Model


def add_model(
    src: str | os.PathLike[str],
    *,
    name: str | None = None,
    sha256: str | None = None,
    anon: bool = False,
    force: bool = False,
) -> AddReport:
    """Add a model to those of this machine, to be found by its name, and by archives that it coded.

    It is loaded first, so that nothing is added that cannot be used; nothing in it is executed. It is kept in
    a folder of this user, which the environment variable ``SUNZIP_MODELS`` can name.

    Parameters
    ----------
    src
        A folder with config.json and model.safetensors, as `sunzip train` writes it, or an archive that
        embeds its model; a local path or an fsspec URL.
    name
        What to call it; None is what it calls itself.
    sha256
        The model that it must be, by all or at least the first 12 digits.
    anon
        Ask S3 or Google Cloud Storage without credentials.
    force
        Let the name mean this model even if it means another one that was added. That one stays, and is found
        by its sha256.

    Returns
    -------
    AddReport
        Its name, family, sha256, size and folder; whether it is new.

    Raises
    ------
    ModelNotFoundError
        If there is no model at `src`.
    DamagedError, UnsupportedError
        If it cannot be used.
    InputError
        If `src` cannot be read, is another model than `sha256` says, or the model cannot be called so.
    OutputError
        If the name means another model, or nothing can be written.
    """
    wanted = None if sha256 is None else sha256.lower()
    if wanted is not None and not weights.begins_sha256(wanted):
        raise InputError(
            f"{sha256!r} is no sha256; give its 64 hexadecimal digits, or at least the first 12 "
            "(--sha256, sha256=)"
        )
    path = os.fspath(src).removeprefix("file://")
    model = _read(path, anon)
    if wanted is not None and not model.sha256.startswith(wanted):
        raise InputError(
            f"{path}: is model {model.name} with sha256 {model.sha256}, not {wanted}; ask who told you of it "
            "which of them it should be"
        )
    try:
        Codec(model).family.load()
    except (DamagedError, UnsupportedError) as error:
        # Most parts of a model do not know where it came from.
        raise type(error)(f"{path}: was not added: {error}") from None
    return weights.add(model, name, force=force)


def _read(path: str, anon: bool) -> Model:
    """Read the model that is somewhere."""
    if names_archive(path):
        with open_archive(path, anon=anon) as archive:
            if found := embedded_in(archive):
                return found
            told = archive.model
        raise ModelNotFoundError(
            f"{path}: does not hold its model, {told['name']} ({told['sha256'][:12]}…); add that from its "
            "folder, or from an archive that was written with --embed-model"
        )
    if "://" in path:
        files = {}
        for file, limit in FILES.items():
            # Of links (zip://model::s3://…) the first is where the file is.
            first, *rest = path.split("::")
            data = fetch("::".join([f"{first.rstrip('/')}/{file}", *rest]), limit=limit, anon=anon)
            if data is None:
                raise ModelNotFoundError(f"{path}: no model there ({file} is missing); check the URL")
            files[file] = data
        return Model.from_files(files, path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise InputError(
            f"{path}: is neither an archive nor a folder with {CONFIG} and {TENSORS}; name one of these"
        )
    return weights.read_folder(Path(path))
