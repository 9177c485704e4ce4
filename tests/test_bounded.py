"""Bounded errors, from codec to command line: what was promised holds for every pixel that is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import sunzip
from sunzip import api
from sunzip.archive._layout import Grid
from sunzip.bounds import Bounds, bounds_of, told
from sunzip.codec import BOUNDED_QUALITY, Codec, lanes
from sunzip.codec.family import Float
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Scale
from sunzip.errors import BoundNotMetError, DamagedError, InputError, UnsupportedError
from sunzip.frame import Block, is_raw
from sunzip.numcodecs import Sunzip
from sunzip.sources import open_source
from sunzip.sources.series import Series, join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model
from sunzip.zarr import SunzipCodec

Frames = Callable[..., np.ndarray]
THREE = ("171A", "304A", "Bz")
BOUNDS = bounds_of("3sigma,304A=5%,Bz=8G", THREE)


def outside(data: Float, decoded: Float, bounds: Bounds, scale: Scale = Scale.MEAN) -> int:
    return sum(
        bounds[name].outside(data[:, c], decoded[:, c], name, scale)
        for c, name in enumerate(THREE)
        if name in bounds
    )


@pytest.fixture(scope="module")
def codec(wavelet_model: Model) -> Codec:
    return Codec(wavelet_model, 40, BOUNDS)


@pytest.fixture(scope="module")
def film(frames_of: Frames) -> Float:
    frames = frames_of(5, 3, 48, 40) + np.random.default_rng(0).normal(0, 2, (5, 3, 48, 40))
    frames = frames.astype(np.float32)
    frames[1, 0] = np.nan
    frames[2, 1, 5:9, 7:30] = np.nan
    frames[3] = np.nan
    return frames


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("scale", Scale)
def test_every_pixel_is_within_its_bound(codec: Codec, film: Float, together: int, scale: Scale) -> None:
    blocks, seen = codec.encode_measured(
        film, THREE, scale, frames_per_block=together, measure=lambda _, decoded: decoded.copy()
    )
    decoded = codec.decode(blocks, THREE, (48, 40), scale)
    assert outside(film, decoded, BOUNDS, scale) == 0
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(film))
    np.testing.assert_array_equal(np.stack(seen), decoded)
    # Whoever asks for the other scale has the same pixels.
    other = codec.decode(blocks, THREE, (48, 40), Scale.SUM if scale is Scale.MEAN else Scale.MEAN)
    np.testing.assert_array_equal(other[:, 2], decoded[:, 2])
    np.testing.assert_array_equal(other[:, 0], decoded[:, 0] * (4 if scale is Scale.MEAN else 0.25))


def test_without_bounds_it_was_worse(codec: Codec, film: Float) -> None:
    free = codec.within(None)
    assert free.bounds == {}
    assert outside(film, free.decode(free.encode(film, THREE), THREE, (48, 40)), BOUNDS) > 1000


def test_what_is_not_bounded_is_as_without_bounds(codec: Codec, film: Float) -> None:
    some = codec.within(bounds_of("Bz=8G", THREE), 40)
    free = codec.within({}, 40)
    one, two = (c.decode(c.encode(film, THREE), THREE, (48, 40)) for c in (some, free))
    np.testing.assert_array_equal(one[:, :2], two[:, :2])
    assert (np.nan_to_num(one[:, 2]) != np.nan_to_num(two[:, 2])).any()
    # Where nothing is to be mended nothing is written.
    loose = codec.within(bounds_of("1e8DN/s,1e8G", THREE), 40)
    assert loose.encode(film, THREE) == free.encode(film, THREE)


def test_channels_frames_and_tensors_are_the_same_pixels(codec: Codec, film: Float) -> None:
    blocks = codec.encode(film, THREE, frames_per_block=5)
    decoded = codec.decode(blocks, THREE, (48, 40))
    for names in (("304A",), ("171A", "Bz")):
        those = [THREE.index(name) for name in names]
        np.testing.assert_array_equal(codec.decode(blocks, names, (48, 40)), decoded[:, those])
    np.testing.assert_array_equal(codec.decode(blocks, THREE, (48, 40), frames=[4, 1]), decoded[[4, 1]])
    tensor = codec.decode_tensor(blocks, THREE, (48, 40))
    np.testing.assert_array_equal(tensor.numpy(), decoded)
    normalised = codec.decode_tensor(blocks, THREE, (48, 40), normalised=True)
    forward = codec.family.stabiliser.subset([2, 5, 11]).forward(decoded)
    np.testing.assert_array_equal(normalised.numpy(), forward)
    free = codec.within({}, 40).encode(film, THREE, frames_per_block=5)
    np.testing.assert_array_equal(codec.latents(blocks, (48, 40)), codec.latents(free, (48, 40)))


def test_lanes_and_other_processes_make_the_same_bytes(codec: Codec, film: Float) -> None:
    blocks = codec.encode(film, THREE, frames_per_block=5)
    with lanes.here():
        assert codec.encode(film, THREE, frames_per_block=5) == blocks
    again = pickle.loads(pickle.dumps(codec))
    assert (again.bounds, again.quality) == (codec.bounds, codec.quality)
    assert again.encode(film, THREE, frames_per_block=5) == blocks


def test_frames_that_follow_a_block_build_on_what_the_model_made(codec: Codec, film: Float) -> None:
    [first] = codec.encode(film[:2], THREE, frames_per_block=2)
    [more] = codec.encode(film[2:], THREE, frames_per_block=3, after=Block.unpack(first))
    joined = Block.unpack(first).with_entries(Block.unpack(first).entries + Block.unpack(more).entries)
    assert outside(film, codec.decode([joined.pack()], THREE, (48, 40)), BOUNDS) == 0


def test_noise_costs_no_more_than_its_pixels(codec: Codec) -> None:
    noise = (np.random.default_rng(0).normal(0, 1, (1, 3, 32, 32)) ** 9 * 1e5).astype(np.float32)
    fine = codec.within(bounds_of("0.0001%", THREE))
    [block] = fine.encode(noise, THREE)
    assert is_raw(Block.unpack(block).payloads[0])
    np.testing.assert_array_equal(fine.decode([block], THREE, (32, 32)), noise)


def test_a_model_whose_pixels_differ_elsewhere_promises_nothing(tiny_model: Model) -> None:
    with pytest.raises(InputError, match=r"model tiny: its pixels differ.*take a model of the wavelet"):
        Codec(tiny_model, 40, BOUNDS)
    assert Codec(tiny_model, 40, {}).bounds == {}


def test_a_broken_promise_is_told(codec: Codec, film: Float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sunzip.codec.correct", lambda pixels, base, *rest: (b"", base))
    with pytest.raises(BoundNotMetError, match="171A cannot be held"):
        codec.encode(film[:1], THREE)


def test_a_residual_of_a_stranger_is_damage(codec: Codec, film: Float) -> None:
    [block] = codec.encode(film[:1], THREE)
    found = Block.unpack(block)
    for wrong in (b"\x01\x09\0\0", b"\0\0\0", b"nonsense", found.residuals[0][:-1]):
        entry = found.entries[0]._replace(residual=wrong)
        with pytest.raises(DamagedError):
            codec.decode([found.with_entries([entry]).pack()], THREE, (48, 40))


# Archives


class Sun(Synthetic):
    """Waves and noise in two channels, with the times and keywords of the synthetic Sun."""

    def read(self, channel: str, row: int) -> np.ndarray:
        up, right = np.mgrid[: self.shape[0], : self.shape[0]] / self.shape[0] * 6
        waves = np.sin(up + row / 50) * np.cos(right + ord(channel[1]))
        noise = np.random.default_rng([row, ord(channel[1])]).normal(0, 2, waves.shape)
        return (100 + 80 * waves + noise).astype(np.float32)


def sun_of(frames: int = 4, size: int = 32) -> Series:
    channels = ("171A", "Bz")
    return join([Sun(frames=frames, size=size, start="2012-03-01", cadence="12min", channels=channels)])


@pytest.fixture
def archive(tmp_path: Path, wavelet_model: Model) -> Path:
    api.compress(sun_of(), tmp_path / "a.lat", model=wavelet_model, max_error="2sigma,Bz=5G", block=2)
    return tmp_path / "a.lat"


def test_an_archive_says_what_it_promises_and_keeps_it(archive: Path, wavelet_model: Model) -> None:
    report = api.compress(
        sun_of(), archive, model=wavelet_model, max_error={"Bz": "5G", "171A": "2sigma"}, block=2, force=True
    )
    assert report.max_error == "171A=2sigma,Bz=5G"
    found = sunzip.info(archive)
    assert found["coding"]["max_error"] == found["codec"]["max_error"] == report.max_error
    assert sunzip.verify(archive).problems == []
    with sunzip.open(archive) as sun:
        assert told(sun.archive.bounds) == report.max_error
        decoded = sun[:]
    data = sun_of().read(0, 4).data
    for c, name in enumerate(("171A", "Bz")):
        bound = bounds_of(report.max_error)[name]
        assert bound.outside(data[:, c], decoded[:, c], name, Scale.MEAN) == 0
    told_by = api.evaluate(sun_of(), archive)
    assert told_by.outside == {"171A": 0, "Bz": 0}
    assert told_by.max_error == report.max_error
    largest = told_by.metrics["paper"]["Bz"]["max_error"]
    assert largest == pytest.approx(np.abs(data[:, 1] - decoded[:, 1]).max(), rel=1e-5)
    assert 3 < largest <= 5
    assert report.errors["Bz"]["max"] == pytest.approx(largest, rel=1e-5)


def test_an_archive_without_bounds_says_nothing_of_them(tmp_path: Path, wavelet_model: Model) -> None:
    report = api.compress(sun_of(2), tmp_path / "a.lat", model=wavelet_model, quality=5)
    found = sunzip.info(tmp_path / "a.lat")
    assert report.max_error is None
    assert not {"max_error"} & {*found["coding"], *found["codec"]}
    told_by = api.evaluate(sun_of(2), tmp_path / "a.lat")
    assert (told_by.max_error, told_by.outside) == (None, {})


def test_the_quality_is_what_takes_the_fewest_bytes(tmp_path: Path, wavelet_model: Model) -> None:
    sizes = {}
    for quality in (None, 10, 40, 60, 80, 100):
        report = api.compress(
            sun_of(),
            tmp_path / "a.lat",
            model=wavelet_model,
            max_error="1sigma",
            quality=quality,
            force=True,
        )
        assert quality in (None, report.quality)
        sizes[quality] = report.coded_bytes
    # Of a network that tells nothing they rise and fall.
    assert sizes[None] <= 1.1 * min(sizes.values())
    estimated = api.compress(sun_of(), "x", model=wavelet_model, max_error="1sigma", dry_run=True)
    assert estimated.coded_bytes == pytest.approx(sizes[None], rel=0.1)
    assert estimated.max_error == "171A=1sigma,Bz=1sigma"


def test_a_bound_of_one_channel_costs_no_other(tmp_path: Path, wavelet_model: Model) -> None:
    default = Codec(wavelet_model).quality
    for wish in ("Bz=50G", "50G"):
        report = api.compress(sun_of(), tmp_path / "a.lat", model=wavelet_model, max_error=wish, dry_run=True)
        assert report.quality >= default
    loose = api.compress(
        sun_of(), tmp_path / "a.lat", model=wavelet_model, max_error="1e6G,1e6DN/s", dry_run=True
    )
    assert loose.quality < default


def test_a_run_broken_off_continues_under_the_same_promise(
    tmp_path: Path, wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sunzip.api._compress.FRAMES_PER_SHARD", 2)
    settings: dict[str, Any] = {"model": wavelet_model, "max_error": "2sigma", "quality": 50, "block": 2}
    api.compress(sun_of(), tmp_path / "whole.lat", **settings)

    class Stop(Exception):
        pass

    def stop(progress: api.Progress) -> None:
        if progress.done == 2:
            raise Stop

    with pytest.raises(Stop):
        api.compress(sun_of(), tmp_path / "a.lat", **settings, progress=stop)
    with pytest.raises(sunzip.errors.OutputError):
        api.compress(sun_of(), tmp_path / "a.lat", **(settings | {"max_error": "3sigma"}), resume=True)
    api.compress(sun_of(), tmp_path / "a.lat", **settings, resume=True)
    assert (tmp_path / "a.lat").read_bytes() == (tmp_path / "whole.lat").read_bytes()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_error": "5 apples"}, "is no bound; a bound is"),
        ({"max_error": "94A=5%"}, "no 94A among 171A Bz"),
        ({"max_error": "5%", "target_ratio": 10}, "give no target"),
        ({"max_error": "5%", "target_bytes": 10}, "give no target"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    tmp_path: Path, wavelet_model: Model, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        api.compress(sun_of(), tmp_path / "a.lat", model=wavelet_model, **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_a_stranger_promises_in_words_that_are_known(archive: Path) -> None:
    with sunzip.open(archive) as sun:
        attributes = sun.archive._attributes
    Grid.read(attributes, "zarr.json")
    for wrong in ("2sigma", None, 5, "94A=1%"):
        changed = {**attributes, "codec": {**attributes["codec"], "max_error": wrong}}
        with pytest.raises(DamagedError, match=r"zarr.json: codec: .*max_error"):
            Grid.read(changed, "zarr.json")


# The command line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--max-error", "2sigma"], "opening sun.zarr, coding some frames to choose the quality"),
        (["--target-ratio", 10], "opening sun.zarr, coding some frames to choose the quality"),
        (["--max-error", "2sigma", "--quality", 5], "opening sun.zarr"),
        (["--dry-run"], "opening sun.zarr, coding some frames"),
    ],
)
def test_a_wait_before_the_first_frame_is_told(
    sunzip: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, settings: list[Any], says: str
) -> None:
    def frames_bar(quiet: bool, opening: str, closing: str) -> None:
        raise InputError(opening)

    monkeypatch.setattr("sunzip.cli.jobs.frames_bar", frames_bar)
    assert sunzip("compress", "sun.zarr", "a.lat", *settings, code=1).stderr == f"sunzip: error: {says}\n"


def test_commands_promise_tell_and_check(
    sunzip: Callable[..., Any], tmp_path: Path, wavelet_model: Model
) -> None:
    model, store, out = tmp_path / "model", tmp_path / "sun.zarr", tmp_path / "a.lat"
    model.mkdir()
    for name, data in wavelet_model.files.items():
        (model / name).write_bytes(data)
    sunzip("synth", store, "--frames", 2, "--size", 32, "-q")
    sunzip("compress", store, out, "--model", model, "--max-error", "2sigma,Bz=5G", "-q", "--embed-model")
    told = sunzip("info", out).stdout
    assert "max error  2sigma of 94A 131A 171A 193A 211A 304A 335A 1600A 1700A Bx By, 5G of Bz\n" in told
    promise = "max error 2sigma of 94A 131A 171A 193A 211A 304A 335A 1600A 1700A Bx By, 5G of Bz"
    assert f"  {promise}: kept by every pixel\n" in sunzip("evaluate", store, out, "-q").stdout
    result = json.loads(sunzip("evaluate", store, out, "-q", "--json").stdout)
    assert set(result["outside"].values()) == {0}
    # Another Sun at the same times is not what was promised.
    other = tmp_path / "other.zarr"
    sunzip("synth", other, "--frames", 2, "--size", 32, "--seed", 1, "-q")
    failed = sunzip("evaluate", other, out, "-q", code=5)
    assert "a.lat: farther from SRC than it promises: " in failed.stderr
    assert "pixels of 171A" in failed.stderr
    assert "; is SRC, as it is now, what it was made of?" in failed.stderr
    assert f"  {promise}: not kept\n" in failed.stdout


@pytest.mark.parametrize("wish", [("--target-ratio", 9), ("--target-bytes", "5MB")])
def test_a_promise_has_no_target(sunzip: Callable[..., Any], tmp_path: Path, wish: Sequence[object]) -> None:
    args = "synthetic:frames=1,size=32", tmp_path / "a.lat", "--max-error", "5%", *wish
    assert f"{wish[0]} and --max-error exclude each other" in sunzip("compress", *args, code=2).stderr


# Arrays


@pytest.fixture(scope="module")
def chunks(wavelet_model: Model, zarr_codec: str) -> SunzipCodec:
    return SunzipCodec(wavelet_model.sha256, THREE, max_error="3sigma,304A=5%,Bz=8G")


def array_of(codec: SunzipCodec, film: Float, together: int) -> zarr.Array[Any]:
    return zarr.create_array(
        {},
        shape=film.shape,
        chunks=(together, *film.shape[1:]),
        dtype="f4",
        serializer=codec,
        compressors=None,
        fill_value=np.nan,
    )


def test_arrays_keep_what_their_codec_promises(chunks: SunzipCodec, film: Float) -> None:
    array = array_of(chunks, film, 2)
    array[:2] = film[:2]
    array[2:] = film[2:]
    assert outside(film, np.asarray(array[:]), BOUNDS) == 0
    np.testing.assert_array_equal(array[3:5, 1:], array[:][3:5, 1:])
    [serializer] = [c for c in array.metadata.to_dict()["codecs"] if c["name"] == "sunzip"]
    assert serializer["configuration"]["max_error"] == told(BOUNDS)
    # What another version takes where nothing is named is no matter of this array.
    assert serializer["configuration"]["quality"] == BOUNDED_QUALITY
    assert SunzipCodec.from_dict(serializer) == chunks


def test_a_frame_added_to_a_chunk_leaves_residuals_of_others(chunks: SunzipCodec, film: Float) -> None:
    array = array_of(chunks, film, 5)
    array[:2] = film[:2]
    before = np.asarray(array[:2])
    array[2] = film[2]
    np.testing.assert_array_equal(array[:2], before)
    assert outside(film[:3], np.asarray(array[:3]), BOUNDS) == 0


@pytest.mark.parametrize("kind", [SunzipCodec, Sunzip])
def test_arrays_are_not_made_with_a_model_that_promises_nothing(kind: type, zarr_codec: str) -> None:
    with pytest.raises(InputError, match="model hyperprior-12: its pixels differ"):
        kind("hyperprior-12", THREE, max_error="5%")


def test_numcodecs_promises_as_well(wavelet_model: Model, film: Float) -> None:
    codec = Sunzip(wavelet_model.sha256, THREE, quality=40, max_error=told(BOUNDS))
    assert Sunzip.from_config({k: v for k, v in codec.get_config().items() if k != "id"}) == codec
    assert outside(film, np.asarray(codec.decode(codec.encode(film))), BOUNDS) == 0


@pytest.mark.parametrize("wrong", [None, 5, "2sigma", "94A=5%", "171A=5 apples"])
def test_configurations_say_bounds_as_sunzip_does(chunks: SunzipCodec, wrong: object) -> None:
    metadata = chunks.to_dict()
    metadata["configuration"] = {**metadata["configuration"], "max_error": wrong}  # type: ignore[dict-item]
    with pytest.raises((InputError, UnsupportedError)):
        SunzipCodec.from_dict(metadata)


def test_an_archive_with_bounds_is_an_array_for_others(archive: Path) -> None:
    with sunzip.open(archive) as sun, zarr.storage.ZipStore(archive, read_only=True) as store:
        np.testing.assert_array_equal(zarr.open_group(store, mode="r")["cube"][:], sun[:])  # type: ignore[index]


def test_a_dataset_says_what_its_channels_promise(archive: Path, film: Float) -> None:
    xr = pytest.importorskip("xarray")
    with xr.open_dataset(archive) as ds:
        assert ds.attrs["max_error"] == "171A=2sigma,Bz=5G"
    with xr.open_dataset(archive, channels="Bz") as ds:
        names = tuple(ds.channel.values)
        codec = SunzipCodec(ds.attrs["model_sha256"], names, max_error=ds.attrs["max_error"])
        assert codec.max_error == "Bz=5G"


def test_the_default_model_keeps_its_promise_on_a_sun() -> None:
    names = ("171A", "193A", "211A", "Bz")
    source = open_source("synthetic:frames=1,size=128,start=2013-05-01")
    data = np.stack([source.read(name, 0) for name in names])[None]
    for text in ("2sigma", "5%"):
        bounds = bounds_of(text, names)
        codec = Codec(sunzip.weights.load(), None, bounds)
        assert isinstance(codec.family, WaveletFamily)
        blocks = codec.encode(data, names)
        decoded = codec.decode(blocks, names, (128, 128))
        for c, name in enumerate(names):
            assert bounds[name].outside(data[0, c], decoded[0, c], name, Scale.MEAN) == 0
        assert len(blocks[0]) < data.nbytes / 4
