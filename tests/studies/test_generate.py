"""Generated frames: the same for a seed, marked as no observations, and held against real ones fairly."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip import api, codec
from sunzip.channels import NAMES
from sunzip.errors import InputError, OutputError
from sunzip.normalize import Stabiliser
from sunzip.sinks import open_sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.studies.density import MIN_FRAMES, Mixture
from sunzip.studies.extractors import decoded
from sunzip.studies.generate import generate
from sunzip.studies.realism import Looks, distance
from sunzip.sun import Sun
from sunzip.sun import open as open_sun
from sunzip.weights import Model

HOURLY = api.Alignment(cadence="1h", tolerance="10min")


@pytest.fixture(scope="module")
def archive(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of 32², hourly from 2012-03-01."""
    path = tmp_path_factory.mktemp("archive") / "train.lat"
    api.compress("synthetic:frames=20,size=32,cadence=1h", path, align=HOURLY, model=tiny_model)
    return path


@pytest.fixture(scope="module")
def held_out(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of the same Sun, two years later."""
    path = tmp_path_factory.mktemp("archive") / "held.lat"
    url = "synthetic:frames=6,size=32,cadence=1h,start=2014-03-01"
    api.compress(url, path, align=HOURLY, model=tiny_model)
    return path


@pytest.fixture(scope="module")
def with_pixels(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `archive`, but for its third frame, which is white and stored as pixels."""
    folder = tmp_path_factory.mktemp("archive")
    series = join([Synthetic(frames=20, size=32, start="2012-03-01", cadence="1h")])
    cube = series.read(0, 20)
    cube.data[2] = 9e8
    with open_sink(folder / "s.zarr", "sdoml-v2", channels=NAMES, shape=(32, 32), scale=series.scale) as sink:
        sink.write(cube)
    api.compress(folder / "s.zarr", folder / "pixels.lat", align=HOURLY, model=tiny_model)
    with open_sun(folder / "pixels.lat") as sun:
        assert np.flatnonzero(np.isnan(sun.latents[:]).any((1, 2, 3))).tolist() == [2]
    return folder / "pixels.lat"


@pytest.fixture
def run(sunzip: Any) -> Any:
    return partial(sunzip, "generate")


def pixels(path: Path) -> np.ndarray:
    series = api.open_series(path)
    cube = series.read(0, len(series))
    assert cube.valid.all()
    return cube.data


class TestPrior:
    def test_frames_of_a_seed_do_not_depend_on_their_number(self, sigma_model: Model, tmp_path: Path) -> None:
        report = generate(tmp_path / "two.zarr", model=sigma_model, count=2, seed=7)
        generate(tmp_path / "one.zarr", model=sigma_model, seed=7)
        two, one = pixels(tmp_path / "two.zarr"), pixels(tmp_path / "one.zarr")
        assert two.shape == (2, 12, 128, 128)
        assert report.shape == (128, 128)
        assert report.channels == NAMES
        assert np.isfinite(two).all()
        np.testing.assert_array_equal(two[:1], one)
        assert (two[0] != two[1]).any()
        generate(tmp_path / "other.zarr", model=sigma_model, seed=8)
        assert (pixels(tmp_path / "other.zarr") != one).any()

    def test_a_hyperprior_has_none(self, tiny_model: Model, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^model tiny has no prior[^\n]+posterior[^\n]+$"):
            generate(tmp_path / "a.zarr", model=tiny_model)
        assert not os.listdir(tmp_path)


def test_without_pytorch_one_line_says_so(
    sigma_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec._codec.cache_clear()  # one whose network another test loaded
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "sunzip.nn.sigma_vae")
    with pytest.raises(InputError, match=r"need torch, which is not installed; .*\.\[torch\]"):
        generate(tmp_path / "a.zarr", model=sigma_model)


class TestPosterior:
    def test_a_package_that_is_missing_is_told_before_frames_are_read(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
        monkeypatch.setattr(
            "sunzip.studies.generate._Space.known", lambda *_: pytest.fail("frames were read")
        )
        with pytest.raises(InputError, match="a density needs scikit-learn, which is not installed"):
            generate(tmp_path / "a.zarr", density="posterior", latents=archive)

    def test_samples_are_reproducible_new_and_like_the_archive(self, archive: Path, tmp_path: Path) -> None:
        kept = []
        for name in ("a.zarr", "b.zarr"):
            report = generate(tmp_path / name, density="posterior", latents=archive, count=4, seed=1)
            kept.append(pixels(tmp_path / name))
        assert report.density is not None
        assert report.density["frames"] == 20
        assert report.density["kept"] >= 0.99
        np.testing.assert_array_equal(*kept)
        with open_sun(archive) as sun:
            real = sun[:]
        assert (kept[0][0] != kept[0][1]).any()
        assert not any((sample == frame).all() for sample in kept[0] for frame in real)
        # Brightness follows the channel: 1700 Å is hundreds of times brighter than 94 Å.
        np.testing.assert_allclose(kept[0].mean((0, 2, 3))[:9], real.mean((0, 2, 3))[:9], rtol=0.3, atol=1)

    def test_too_few_frames_are_refused(self, held_out: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=f"6 frames hold all of its channels.*at least {MIN_FRAMES}"):
            generate(tmp_path / "a.zarr", density="posterior", latents=held_out)

    def test_frames_that_are_stored_as_pixels_are_left_out(
        self, with_pixels: Path, archive: Path, tmp_path: Path
    ) -> None:
        report = generate(
            tmp_path / "a.zarr", density="posterior", latents=with_pixels, count=2, compare=with_pixels
        )
        assert report.density is not None
        assert report.density["frames"] == 19
        assert report.realism is not None
        assert report.realism["held_out_frames"] == 19
        json.dumps(report.as_dict(), allow_nan=False)

    def test_it_needs_an_archive(self, sigma_model: Model, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="needs the latents of an archive"):
            generate(tmp_path / "a.zarr", density="posterior", model=sigma_model)


class TestWavelets:
    """A wavelet model's latents are a small picture; frames are made of whole pictures all the same."""

    @pytest.fixture
    def archive(self, wavelet_model: Model, tmp_path: Path) -> Path:
        url = f"synthetic:frames={MIN_FRAMES},size=32,cadence=1h"
        api.compress(url, tmp_path / "w.lat", align=HOURLY, model=wavelet_model)
        return tmp_path / "w.lat"

    def test_samples_are_new_and_ends_are_the_archives(self, archive: Path, tmp_path: Path) -> None:
        report = generate(tmp_path / "a.zarr", density="posterior", latents=archive, count=3, compare=archive)
        assert report.shape == (32, 32)
        assert report.realism is not None
        # Held-out frames that are those of the archive have a distance of none.
        assert report.realism["nearest_held_out"] == 0
        assert report.realism["nearest"] > 0
        dates = ("2012-03-01T02:00", "2012-03-01T08:00")
        generate(tmp_path / "b.zarr", latents=archive, between=dates, count=3)
        with open_sun(archive) as sun:
            real = sun[:]
        found = pixels(tmp_path / "b.zarr")
        np.testing.assert_allclose(found[[0, 2]], real[[2, 8]], rtol=1e-3, atol=1e-2)
        comment = zarr.open_group(tmp_path / "b.zarr", mode="r")["2012/171A"].attrs["COMMENT"][1]
        assert "as of 2012-03-01 05:00:00 UTC" in comment
        drawn = pixels(tmp_path / "a.zarr")
        np.testing.assert_allclose(drawn.mean((0, 2, 3))[:9], real.mean((0, 2, 3))[:9], rtol=0.3, atol=1)
        assert (drawn[0] != drawn[1]).any()

    def test_between_two_dates_only_these_are_decoded_unless_more_is_compared(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []

        def noted(sun: Any, numbers: Any, channels: Any) -> Any:
            read.extend(numbers)
            return decoded(sun, numbers, channels)

        monkeypatch.setattr("sunzip.studies.generate.decoded", noted)
        dates = ("2012-03-01T02:00", "2012-03-01T08:00")
        generate(tmp_path / "a.zarr", latents=archive, between=dates, count=3)
        assert read == [2, 8]
        report = generate(tmp_path / "b.zarr", latents=archive, between=dates, count=3, compare=archive)
        assert report.realism is not None
        assert report.realism["nearest"] >= 0
        assert set(read) == set(range(MIN_FRAMES))


class TestMixture:
    def test_a_gaussian_keeps_its_moments(self) -> None:
        rng = np.random.default_rng(0)
        shape = rng.normal(size=(5, 5))
        points = rng.normal(size=(4000, 5)) @ shape + np.arange(5)
        mixture = Mixture.fit(points.astype(np.float32))
        drawn = np.array([mixture.sample(np.random.default_rng([0, i])) for i in range(4000)])
        size = np.abs(shape.T @ shape).max()
        np.testing.assert_allclose(drawn.mean(0), np.arange(5), atol=0.05 * size)
        np.testing.assert_allclose(np.cov(drawn.T), shape.T @ shape, atol=0.1 * size)

    def test_nothing_is_drawn_between_two_clusters(self) -> None:
        rng = np.random.default_rng(1)
        points = rng.normal(size=(200, 3)) + np.where(rng.random(200) < 0.5, -50, 50)[:, None]
        mixture = Mixture.fit(points.astype(np.float32))
        drawn = np.array([mixture.sample(np.random.default_rng([0, i])) for i in range(200)])
        assert (np.abs(np.abs(drawn) - 50) < 8).all()
        assert 60 < (drawn[:, 0] > 0).sum() < 140

    def test_latents_that_never_change_are_refused(self) -> None:
        with pytest.raises(InputError, match="nothing to fit"):
            Mixture.fit(np.ones((MIN_FRAMES, 4), np.float32))


class TestBetween:
    def test_ends_are_the_archives_frames(self, archive: Path, tmp_path: Path) -> None:
        dates = ("2012-03-01T02:00", "2012-03-01T08:00")
        report = generate(tmp_path / "a.zarr", latents=archive, between=dates, count=4)
        assert (report.kind, report.seed) == ("between", None)
        series = api.open_series(tmp_path / "a.zarr")
        assert [str(t)[11:16] for t in series.time] == ["02:00", "04:00", "06:00", "08:00"]
        with open_sun(archive) as sun:
            real = np.stack([sun[2], sun[8]])
        found = series.read(0, 4).data
        np.testing.assert_allclose(found[[0, 3]], real, rtol=1e-4, atol=1e-4)
        assert (found[1] != found[0]).any()
        generate(tmp_path / "b.zarr", latents=archive, between=dates[::-1], count=4)
        np.testing.assert_allclose(pixels(tmp_path / "b.zarr"), found, rtol=1e-4, atol=1e-4)

    def test_pixels_are_no_end(self, with_pixels: Path, tmp_path: Path) -> None:
        dates = ("2012-03-01T02:00", "2012-03-01T08:00")
        with pytest.raises(InputError, match="stored as pixels and has no latents; name another date"):
            generate(tmp_path / "a.zarr", latents=with_pixels, between=dates, count=4)
        assert not os.listdir(tmp_path)

    def test_a_frame_that_lacks_an_image_is_no_end(self, tiny_model: Model, tmp_path: Path) -> None:
        series = join([Synthetic(frames=3, size=32, start="2012-03-01", cadence="1h")])
        cube = series.read(0, 3)
        cube.valid[2, NAMES.index("171A")] = False
        store = tmp_path / "s.zarr"
        with open_sink(store, "sdoml-v2", channels=NAMES, shape=(32, 32), scale=series.scale) as sink:
            sink.write(cube)
        api.compress(store, tmp_path / "s.lat", align=HOURLY, model=tiny_model)
        with pytest.raises(InputError, match=r"2012-03-01T02:00:00.000 has no image of 171A to interpolate"):
            generate(
                tmp_path / "a.zarr",
                latents=tmp_path / "s.lat",
                between=("2012-03-01T02:00", "2012-03-01"),
                count=3,
            )

    def test_frames_of_a_block_are_decoded_together(
        self, wavelet_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = "synthetic:frames=6,size=32,cadence=1h"
        api.compress(url, tmp_path / "f.lat", align=HOURLY, model=wavelet_model)
        with open_sun(tmp_path / "f.lat") as sun:
            assert sun.archive.frames_per_block == 6
        asked: list[Any] = []
        take = Sun.take

        def counted(sun: Sun, frames: Any, channels: Any = None) -> Any:
            asked.append(list(frames))
            return take(sun, frames, channels)

        monkeypatch.setattr(Sun, "take", counted)
        generate(
            tmp_path / "a.zarr",
            latents=tmp_path / "f.lat",
            between=("2012-03-01", "2012-03-01T05:00"),
            count=2,
            compare=tmp_path / "f.lat",
        )
        assert asked == [[0, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]

    def test_one_frame_is_no_way(self, archive: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nearest to the same frame"):
            generate(
                tmp_path / "a.zarr",
                latents=archive,
                between=("2012-03-01T02:00", "2012-03-01T02:10"),
                count=3,
            )
        with pytest.raises(InputError, match="at least 2"):
            generate(tmp_path / "a.zarr", latents=archive, between=("2012-03-01", "2012-03-02"), count=1)


class TestMarks:
    def test_a_store_says_that_nothing_was_observed(self, archive: Path, tmp_path: Path) -> None:
        generate(tmp_path / "a.zarr", density="posterior", latents=archive, count=2, seed=5)
        root = zarr.open_group(tmp_path / "a.zarr", mode="r")
        assert root.attrs["generated"] is True
        assert root.attrs["model"] == "tiny"
        assert (root.attrs["kind"], root.attrs["seed"]) == ("posterior", 5)
        # No image can be taken for one of SDO's, by its instrument or by its date.
        assert list(root.group_keys()) == ["2000"]
        keywords = root["2000/171A"].attrs
        assert all("generated" in t for t in keywords["TELESCOP"])
        assert ["1 of 2" in c and "not an observation" in c for c in keywords["COMMENT"]] == [True, False]

    def test_a_picture_says_so_too(self, run: Any, archive: Path, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image")
        pytest.importorskip("sunpy")
        sizes = []
        for count in (1, 2):
            out = tmp_path / f"{count}.png"
            run(out, "--from", "posterior", "--latents", archive, "--count", count)
            with image.open(out) as picture:
                sizes.append(picture.size)
                assert picture.text["Description"].startswith("not an observation: generated by tiny")
        assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])
        assert sorted(os.listdir(tmp_path)) == ["1.png", "2.png"]


def white(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def looks(*frames: np.ndarray) -> Looks:
    """Take frames given in units of noise, of the first channels."""
    names = NAMES[: frames[0].shape[0]]
    found = Looks(names, frames[0].shape[1:])
    for frame in frames:
        found.add(Stabiliser.for_channels(names).inverse(frame.astype(np.float32)))
    return found


class TestLooks:
    @settings(max_examples=20, deadline=None)
    @given(st.floats(-20, 20), st.integers(0, 1000))
    def test_values_are_apart_by_what_they_are_shifted(self, shift: float, seed: int) -> None:
        frame = white((2, 16, 16), seed) + 30
        values, correlation = distance(looks(frame), looks(frame + shift))
        np.testing.assert_allclose(values, abs(shift), rtol=1e-3, atol=1e-3)
        assert correlation == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize("slope", [0, -2, -3])
    def test_slope_of_a_known_spectrum(self, slope: int) -> None:
        side = 128
        f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
        f[0, 0] = 1
        frames = [
            np.fft.irfft2(np.fft.rfft2(white((1, side, side), seed)) * f ** (slope / 2)) for seed in range(8)
        ]
        (found,) = looks(*frames).slopes()
        assert found == pytest.approx(slope, abs=0.25)

    def test_channels_that_go_together_are_told_from_those_that_do_not(self) -> None:
        one = white((1, 32, 32), 0)
        together, apart = np.concatenate([one, one]), np.concatenate([one, white((1, 32, 32), 1)])
        values, correlation = distance(looks(together), looks(apart))
        assert correlation == pytest.approx(1, abs=0.1)
        assert max(values) < 0.2

    def test_a_constant_channel_has_no_correlation(self) -> None:
        frame = np.concatenate([white((1, 32, 32), 0), np.zeros((1, 32, 32))])
        assert distance(looks(frame), looks(frame)) == ([0, 0], None)


class TestCompare:
    def test_archive_and_source_give_the_same_kind_of_answer(
        self, archive: Path, held_out: Path, tmp_path: Path
    ) -> None:
        found = {}
        for name, against in (
            ("archive", held_out),
            ("source", "synthetic:frames=6,size=64,cadence=1h,start=2014-03-01"),
        ):
            report = generate(
                tmp_path / f"{name}.zarr", density="posterior", latents=archive, count=3, compare=against
            )
            found[name] = report.realism
            json.dumps(report.as_dict(), allow_nan=False)
        for real in found.values():
            assert real["frames"] == 3
            assert real["held_out_frames"] == 6
            assert list(real["channels"]) == list(NAMES)
            assert 0 <= real["correlation_held_out"] < 0.5
        # The source is a larger image, averaged down to what is generated, and not decoded.
        a, b = (found[k]["channels"]["171A"]["values_held_out"] for k in ("archive", "source"))
        assert a != b

    def test_copies_of_known_frames_show(self, archive: Path, held_out: Path, tmp_path: Path) -> None:
        real = generate(
            tmp_path / "a.zarr",
            latents=archive,
            between=("2012-03-01T02:00", "2012-03-01T08:00"),
            count=2,
            compare=held_out,
        ).realism
        assert real is not None
        assert real["nearest"] == 0
        assert real["nearest_held_out"] > 0

    def test_frames_of_another_size_are_refused(
        self, archive: Path, tmp_path: Path, tiny_model: Model
    ) -> None:
        other = tmp_path / "other.lat"
        api.compress("synthetic:frames=2,size=48", other, model=tiny_model)
        with pytest.raises(InputError, match="48×48 pixels, those that are generated have 32×32"):
            generate(tmp_path / "a.zarr", density="posterior", latents=archive, compare=other)
        assert os.listdir(tmp_path) == ["other.lat"]


@pytest.mark.parametrize("anon", [False, True])
def test_archives_are_read_without_credentials_where_asked(
    sigma_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anon: bool
) -> None:
    seen = []

    def opened(path: Any, *, model: Any = None, anon: bool = False) -> Any:
        seen.append((path, anon))
        raise InputError("seen")

    monkeypatch.setattr("sunzip.studies.generate.open_sun", opened)
    for where in ({"latents": "s3://b/a.lat"}, {"model": sigma_model, "compare": "s3://b/a.lat"}):
        with pytest.raises(InputError, match="seen"):
            generate(tmp_path / "a.zarr", anon=anon, **where)
    assert seen == [("s3://b/a.lat", anon)] * 2


class TestCommand:
    def test_json_is_the_report(self, run: Any, archive: Path, held_out: Path, tmp_path: Path) -> None:
        args = ("--from", "posterior", "--latents", archive, "--compare", held_out, "--count", 2)
        found = json.loads(run(tmp_path / "a.zarr", *args, "--json").stdout)
        assert found["kind"] == "posterior"
        assert found["realism"]["held_out"] == str(held_out)
        text = run(tmp_path / "b.zarr", *args).stdout
        assert "2 generated frames of 32×32" in text
        assert "held against held.lat: 2 frames, 6 held-out frames" in text

    def test_replaces_only_when_forced(self, run: Any, archive: Path, tmp_path: Path) -> None:
        args = ("--from", "posterior", "--latents", archive)
        run(tmp_path / "a.zarr", *args)
        assert "exists" in run(tmp_path / "a.zarr", *args, code=1).stderr
        run(tmp_path / "a.zarr", *args, "--count", 2, "--force")
        assert len(pixels(tmp_path / "a.zarr")) == 2
        assert os.listdir(tmp_path) == ["a.zarr"]

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            ((), "name a σ-VAE"),
            (("--from", "posterior", "--model", "x"), "needs --latents"),
            (("--between", "2012-03-01", "2012-03-02", "--model", "x"), "needs --latents"),
            (("--between", "2012-03-01", "2012-03-02", "--from", "prior", "--latents", "x"), "exclude"),
            (("--between", "2012-03-01", "2012-03-02", "--latents", "x"), "--count 2"),
            (("--hmi", "b.zarr", "--model", "x"), "--compare"),
        ],
    )
    def test_words_that_do_not_go_together(
        self, run: Any, args: tuple[str, ...], says: str, tmp_path: Path
    ) -> None:
        assert says in run(tmp_path / "a.zarr", *args, code=2).stderr

    def test_a_picture_holds_no_hundred_frames(self, run: Any, archive: Path, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="name it"):
            generate(tmp_path / "a.jpg", density="posterior", latents=archive)
        args = ("--from", "posterior", "--latents", archive, "--count", 100)
        assert "too many for a picture" in run(tmp_path / "a.png", *args, code=1).stderr
        assert not os.listdir(tmp_path)
