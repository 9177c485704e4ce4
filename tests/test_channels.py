"""One rule for channels wherever they are named: a text is the name of one, never a list of letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import sunzip
from sunzip import api
from sunzip.channels import canonical, channel, listed
from sunzip.codec import Codec
from sunzip.errors import InputError
from sunzip.metrics import Accumulator
from sunzip.normalize import Stabiliser
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model


@pytest.fixture(scope="module")
def lat(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("channels") / "sun.lat"
    source = Synthetic(frames=2, size=32, channels=("171A", "304A", "Bz"))
    api.compress(join([source]), path, model=tiny_model, block=1)
    return path


def test_names_are_one_or_several() -> None:
    assert listed("171A") == ("171A",)
    assert listed(iter(["Bz", "0171"])) == ("Bz", "0171")
    assert canonical("hmi bz") == ("Bz",)
    assert canonical(["Bz", "0171"]) == ("171A", "Bz")


@pytest.mark.parametrize("names", [5, 1.5, True, [171], [None], [b"171A"], "172A", "", [], ["171A", ""]])
def test_what_is_no_name_is_said_to_be_none(names: object) -> None:
    with pytest.raises(InputError, match="the channels are 94A 131A 171A"):
        canonical(names)
    if not isinstance(names, list):
        with pytest.raises(InputError):
            channel(names)


def test_one_name_reads_one_channel(lat: Path, tmp_path: Path) -> None:
    with sunzip.open(lat) as sun:
        expected = sun[:, ["304A"]]
        np.testing.assert_array_equal(sun.read(0, 2, "304A"), expected)
        np.testing.assert_array_equal(sun.take([0, 1], "304A"), expected)
        np.testing.assert_array_equal(sun.tensor([0, 1], "304A").shape, expected.shape)
        cube = sun.cube(0, 2, "304A")
        np.testing.assert_array_equal(cube.data, expected)
        assert cube.channels == ("304A",)
    report = sunzip.decompress(lat, tmp_path / "sun.h5", channels="304A")
    assert report.channels == ("304A",)


def test_one_name_compresses_one_channel(tiny_model: Model, tmp_path: Path) -> None:
    archives = []
    for name, channels in (("a", "171A"), ("b", ["171A"]), ("c", ("171A",))):
        align = sunzip.Alignment(channels=channels)
        sunzip.compress("synthetic:frames=2,size=32", tmp_path / name, model=tiny_model, align=align)
        archives.append((tmp_path / name).read_bytes())
        with sunzip.open(tmp_path / name) as sun:
            assert sun.channels == ("171A",)
    assert archives[0] == archives[1] == archives[2]


def test_one_name_is_one_channel_inside_other_tools(lat: Path, tiny_model: Model) -> None:
    torch = pytest.importorskip("sunzip.torch")
    frames = torch.LatDataset(lat, "Bz")
    assert frames.channels == ("Bz",)
    assert frames[0].shape == (1, 32, 32)
    for module, name in (("sunzip.zarr", "SunzipCodec"), ("sunzip.numcodecs", "Sunzip")):
        codec = getattr(pytest.importorskip(module), name)
        assert codec(tiny_model.sha256, "171A").channels == ("171A",)
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(lat, engine="sunzip", channels="Bz") as ds:
        assert ds.channel.values.tolist() == ["Bz"]


def test_one_name_is_one_channel_below(tiny_model: Model, frames_of: Callable[..., np.ndarray]) -> None:
    x = frames_of(1, 1, 32, 32)
    codec = Codec(tiny_model)
    blocks = codec.encode(x, "171A")
    assert blocks == codec.encode(x, ["171A"])
    assert codec.decode(blocks, "171A", (32, 32)).shape == x.shape
    assert Accumulator("171A").channels == ("171A",)
    assert Stabiliser.for_channels("171A").forward(x).shape == x.shape
    assert join([Synthetic(frames=1, size=32, channels="171A")], channels="171A").channels == ("171A",)


def test_a_channel_that_the_archive_lacks_is_told_before_anything_is_written(
    lat: Path, tmp_path: Path
) -> None:
    for fill in (False, True):
        with pytest.raises(InputError, match=r"sun\.lat: has no 94A; it holds 171A 304A Bz"):
            sunzip.decompress(lat, tmp_path / "a.h5", channels="94A", fill_missing=fill)
    assert list(tmp_path.iterdir()) == []
