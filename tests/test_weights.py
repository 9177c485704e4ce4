"""Models: found by name, hash or folder, and refused in one line when their files are not what they claim."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from sunzip import weights
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, SunzipError, UnsupportedError
from sunzip.weights import CONFIG, TENSORS, Model, write

pytestmark = pytest.mark.usefixtures("nothing_registered")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Model, other_model: Model) -> Path:
    """A folder of installed models: ``tiny`` and ``other``."""
    folder = tmp_path / "models"
    for model in (tiny_model, other_model):
        write(model, folder / model.name)
    monkeypatch.setattr(weights, "_ROOTS", (tmp_path / "absent", folder))
    return folder


def files(config: object = None, tensors: bytes | None = None) -> dict[str, bytes]:
    if config is None:
        config = {"name": "m", "version": 1, "family": "hyperprior"}
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    return {CONFIG: raw, TENSORS: save({"a.x": np.zeros(2)}) if tensors is None else tensors}


# --- identity and looking up -----------------------------------------------------------------------------


def test_identity_is_the_sha256_of_both_files(tiny_model: Model) -> None:
    both = tiny_model.files[CONFIG] + tiny_model.files[TENSORS]
    assert tiny_model.sha256 == hashlib.sha256(both).hexdigest()
    assert tiny_model.nbytes == len(both)
    other = Model.from_files({**tiny_model.files, CONFIG: tiny_model.files[CONFIG] + b" "}, "x")
    assert other.sha256 != tiny_model.sha256
    assert "safetensors" not in repr(tiny_model)  # megabytes in a traceback help nobody


def test_models_are_found_by_name_hash_and_folder(root: Path, tiny_model: Model) -> None:
    assert [p.name for p in weights.installed()] == ["other", "tiny"]
    for wanted in ("tiny", tiny_model.sha256, root / "tiny", str(root / "tiny") + "/"):
        found = weights.load(wanted)
        assert found.sha256 == tiny_model.sha256
        assert found.files == tiny_model.files
    assert weights.load("tiny") is weights.load(tiny_model.sha256)  # read once


def test_registered_models_are_found_by_hash_alone(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_ROOTS", ())
    with pytest.raises(ModelNotFoundError):
        weights.load(tiny_model.sha256)
    weights.register(tiny_model)
    assert weights.load(tiny_model.sha256) is tiny_model
    with pytest.raises(ModelNotFoundError):
        weights.load("tiny")


@pytest.mark.parametrize(
    "wanted", ["", "nope", "a" * 64, "A" * 64, "x" * 5000, "a\0b", "../../absent", "tiny/../nope"]
)
def test_absent_models_are_not_found_and_the_others_named(root: Path, wanted: str) -> None:
    with pytest.raises(ModelNotFoundError, match="installed: other, tiny") as error:
        weights.load(wanted)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_not_found(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json is missing"):
        weights.load(tmp_path)
    (root / "tiny" / TENSORS).unlink()
    with pytest.raises(ModelNotFoundError, match=r"tiny: .*model\.safetensors is missing"):
        weights.load("tiny")


def test_a_broken_model_does_not_hide_another(root: Path, tiny_model: Model) -> None:
    (root / "other" / CONFIG).write_bytes(b"{")
    (root / "a").mkdir()
    (root / "a" / CONFIG).write_bytes(b"{}")
    assert weights.load(tiny_model.sha256).name == "tiny"
    with pytest.raises(ModelNotFoundError):
        weights.load("0" * 64)
    with pytest.raises(DamagedError, match="other: config"):
        weights.load("other")


def test_a_model_that_changes_on_disk_is_read_again(
    root: Path, tiny_model: Model, other_model: Model
) -> None:
    assert weights.load("tiny").sha256 == tiny_model.sha256
    write(other_model, root / "tiny")
    assert weights.load("tiny").sha256 == other_model.sha256


def test_folders_are_relative_to_where_one_is(
    root: Path, tiny_model: Model, other_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "tiny")
    assert weights.load(".").sha256 == tiny_model.sha256
    monkeypatch.chdir(root / "other")
    assert weights.load(".").sha256 == other_model.sha256


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_said_to_be_so(root: Path) -> None:
    (root / "tiny" / TENSORS).chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        weights.load("tiny")


def test_files_larger_than_any_model_are_not_read(root: Path) -> None:
    with (root / "tiny" / CONFIG).open("r+b") as f:
        f.truncate(1 << 30)  # sparse
    with pytest.raises(DamagedError, match="more than a model has"):
        weights.load("tiny")


def test_writing_a_model_leaves_its_two_files(tiny_model: Model, tmp_path: Path) -> None:
    write(tiny_model, tmp_path / "a" / "b")
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [CONFIG, TENSORS]
    assert weights.read_folder(tmp_path / "a" / "b").sha256 == tiny_model.sha256
    shutil.rmtree(tmp_path / "a")


# --- configurations of strangers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"name"',
        b"[" * 100_000,
        b"1" * 100_000,
        {"name": "m", "family": "hyperprior"},
        {"name": "m", "version": 1},
        {"version": 1, "family": "hyperprior"},
        {"name": 3, "version": 1, "family": "hyperprior"},
        {"name": "", "version": 1, "family": "hyperprior"},
        {"name": "two\nlines", "version": 1, "family": "hyperprior"},
        {"name": "\x1b[31mred", "version": 1, "family": "hyperprior"},
        {"name": "n" * 101, "version": 1, "family": "hyperprior"},
        {"name": "m", "version": 1, "family": ["hyperprior"]},
        {"name": "m", "version": "1", "family": "hyperprior"},
        {"name": "m", "version": True, "family": "hyperprior"},
        {"name": "m", "version": 0, "family": "hyperprior"},
        {"name": "m", "version": 10**300, "family": "hyperprior"},
        {"name": "m", "version": [1], "family": "hyperprior"},
    ],
)
def test_configurations_that_are_none_are_damage(config: object) -> None:
    with pytest.raises(DamagedError, match=r"^here: config\.json is not a sunzip model's") as error:
        Model.from_files(files(config), "here")
    assert "\n" not in str(error.value)


def test_newer_configurations_ask_for_an_update() -> None:
    with pytest.raises(UnsupportedError, match=r"^here: .*version 2.*update sunzip"):
        Model.from_files(files({"name": "m", "version": 2, "family": "hyperprior"}), "here")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_both_files_are_needed(name: str) -> None:
    given = files()
    del given[name]
    with pytest.raises(DamagedError, match=f"model file '{name}' is missing"):
        Model.from_files(given, "here")


# --- tensors of strangers --------------------------------------------------------------------------------


def tensors(header: object, body: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"a.x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"1234567",
        save({"a.x": np.zeros(9)})[:-1],
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 4) + b"abcd",
        tensors([1]),
        tensors(entry(shape=(-2, -3))),
        tensors(entry(shape=(1 << 40, 1 << 40))),
        tensors(entry(shape=(2, 4))),
        tensors(entry(offsets=(0, 1 << 50))),
        tensors(entry(offsets=(24, 0))),
        tensors(entry(dtype="F31")),
        tensors(entry(dtype="BF16", shape=(12,))),
        tensors(entry() | {"a\ny": entry()["a.x"]}),
    ],
)
def test_tensor_files_that_are_none_are_damage(raw: bytes) -> None:
    model = Model.from_files(files(tensors=raw), "here")
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged") as error:
        model.arrays("a")
    assert "\n" not in str(error.value)


def test_names_alone_are_not_read_without_end() -> None:
    nothing = np.zeros(0, np.uint8)
    raw = save({f"a.{n}": nothing for n in range(20_000)})
    with pytest.raises(DamagedError, match=r"its header says to be longer than 1048576 bytes"):
        Model.from_files(files(tensors=raw), "here").arrays("a")
    few = Model.from_files(files(tensors=save({f"a.{n}": nothing for n in range(10_000)})), "here")
    assert len(few.arrays("a")) == 10_000


def test_arrays_are_those_below_a_prefix() -> None:
    raw = save({"a.x": np.arange(3), "a.b.c": np.ones(2), "ab": np.zeros(1), "b.x": np.zeros(1)})
    found = Model.from_files(files(tensors=raw), "here").arrays("a")
    assert sorted(found) == ["b.c", "x"]
    np.testing.assert_array_equal(found["x"], np.arange(3))


def test_every_truncation_of_a_model_is_an_error_of_ours(tiny_model: Model) -> None:
    raw = tiny_model.files[TENSORS]
    for size in np.linspace(0, len(raw) - 1, 40).astype(int):
        with pytest.raises(SunzipError):
            Codec(Model.from_files({CONFIG: tiny_model.files[CONFIG], TENSORS: raw[:size]}, "here"))


def test_changed_bytes_of_a_model_are_another_model(tiny_model: Model) -> None:
    """No change goes unnoticed, for the hash is another; none may break more than the loading."""
    raw = tiny_model.files[TENSORS]
    rng = np.random.default_rng(0)
    messages = []
    for at in (*range(8), *rng.integers(8, 4000, 12), *rng.integers(4000, len(raw), 6)):
        broken = bytearray(raw)
        broken[at] ^= 0xFF
        model = Model.from_files({CONFIG: tiny_model.files[CONFIG], TENSORS: bytes(broken)}, "here")
        assert model.sha256 != tiny_model.sha256
        try:
            Codec(model).family.network  # type: ignore[attr-defined]
        except SunzipError as error:
            messages.append(str(error))
    assert messages
    assert not [m for m in messages if "\n" in m]
