"""The archive's Zarr store, held against the suite by which zarr tests its own stores.

The suite fills a store before it reads from it. `Repacked` lets it: what it sets is packed into a new archive
file, which the store under test then reads. What the suite says of writing is left out, by name and reason.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

pytest.importorskip("zarr")

from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.store import StoreTests

from sunzip.archive import _zip, open_archive
from sunzip.archive._store import ArchiveStore

WRITES = {
    "test_store_read_only": "begins with a store that can be written",
    "test_store_open_read_only": "opens a store for writing; this one has no such mode to choose",
    "test_with_read_only_store": "as above",
    "test_read_only_store_raises": "as above; `test_it_refuses_to_write` has the same assertions",
    "test_serializable_store": "writes into the copy; `test_a_pickled_store_reads_the_same` reads from it",
    "test_set": "writes",
    "test_set_not_open": "writes",
    "test_set_many": "writes",
    "test_set_if_not_exists": "writes",
    "test_clear": "deletes",
}


class Packed:
    """As much of an archive as the store looks at, over a file that can be packed again."""

    def __init__(self, path: Path) -> None:
        self.path = self._absolute = str(path)
        self.objects: dict[str, bytes] = {}
        self.pack()

    def __reduce__(self) -> tuple[Callable[..., Packed], tuple[str, dict[str, bytes]]]:
        return _restored, (self.path, self.objects)

    def pack(self) -> None:
        with open(self.path, "wb") as file:
            packer = _zip.Packer(file)
            for key in sorted(self.objects):
                packer.add(key, self.objects[key])
            packer.add(_zip.MANIFEST, b"{}")
            packer.close(_zip.COMMENT + packer.sha256[_zip.MANIFEST])
        self._reader = _zip.Reader(self.path)
        self.identity = self._reader.manifest_sha256


def _restored(path: str, objects: dict[str, bytes]) -> Packed:
    packed = Packed(Path(path))
    packed.objects = objects
    packed.pack()
    return packed


class Repacked(ArchiveStore):
    """The store under test; only what the suite needs to arrange its data is added."""

    async def set(self, key: str, value: Buffer) -> None:
        packed: Any = self._archive
        packed.objects[key] = value.to_bytes()
        packed.pack()
        self._members = ArchiveStore(packed)._members


def _runs(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test of the suite that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class TestArchiveStore(StoreTests[Repacked, cpu.Buffer]):
    store_cls = Repacked
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"archive": Packed(tmp_path / "a.lat")}

    @pytest.fixture
    def store(self, store_kwargs: dict[str, Any]) -> Repacked:
        return asyncio.run(Repacked.open(**store_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> Repacked:
        return Repacked(**store_kwargs)

    async def set(self, store: Repacked, key: str, value: Buffer) -> None:
        await store.set(key, value)

    async def get(self, store: Repacked, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store._archive.objects[key])

    def test_store_repr(self, store: Repacked) -> None:
        assert str(store) == f"sunzip://{store._archive.path}"

    def test_store_supports_writes(self, store: Repacked) -> None:
        assert not store.supports_writes

    def test_store_supports_listing(self, store: Repacked) -> None:
        assert store.supports_listing

    def test_it_refuses_to_write(self, store_kwargs: dict[str, Any]) -> None:
        store = ArchiveStore(**store_kwargs)
        assert store.read_only
        with pytest.raises(AttributeError):
            store.read_only = False
        words = "store was opened in read-only mode and does not support writing"
        for call in (store.set("foo", self.buffer_cls.from_bytes(b"bar")), store.delete("foo")):
            with pytest.raises(ValueError, match=words):
                asyncio.run(call)

    def test_a_pickled_store_reads_the_same(self, store: Repacked) -> None:
        asyncio.run(store.set("foo", self.buffer_cls.from_bytes(b"\1\2\3\4")))
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        assert again.read_only
        found = asyncio.run(again.get("foo", default_buffer_prototype()))
        assert found is not None
        assert found.to_bytes() == b"\1\2\3\4"


for _name, _test in inspect.getmembers(StoreTests, inspect.isfunction):
    if _name in WRITES:
        setattr(TestArchiveStore, _name, None)
    elif _name.startswith("test_") and inspect.iscoroutinefunction(_test):
        setattr(TestArchiveStore, _name, _runs(_test))


def test_no_test_is_left_out_that_is_not_there() -> None:
    assert WRITES.keys() <= vars(StoreTests).keys()


def test_a_store_of_an_archive_is_not_equal_to_that_of_another(tmp_path: Path) -> None:
    stores = [ArchiveStore(Packed(tmp_path / name)) for name in ("a.lat", "b.lat")]
    assert stores[0] != stores[1]


def test_stores_are_equal_that_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "golden"
    monkeypatch.chdir(tmp_path)
    copyfile(golden / "archive-v1.lat", "a.lat")
    with open_archive("a.lat") as archive:
        assert pickle.loads(pickle.dumps(archive.store())) == archive.store()
        copyfile(golden / "film-v1.lat", "b.lat")
        os.replace("b.lat", "a.lat")
        with open_archive("a.lat") as other:
            assert other.store() != archive.store()


def test_manifest_and_model_are_no_part_of_the_hierarchy() -> None:
    with open_archive(Path(__file__).parent / "golden" / "archive-v1.lat") as archive:
        assert _zip.MANIFEST in archive._reader.members
        assert not asyncio.run(archive.store().exists(_zip.MANIFEST))
        listed = asyncio.run(_listed(archive.store()))
    assert "zarr.json" in listed
    assert not [key for key in listed if key.startswith(("model/", _zip.MANIFEST))]


async def _listed(store: ArchiveStore) -> list[str]:
    return [key async for key in store.list()]
