"""Forecasts: what latents know is found, what nobody can know is not, and attempts to leak fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from sunzip import api
from sunzip.codec import lanes
from sunzip.codec.lanes import side_by_side
from sunzip.errors import InputError
from sunzip.studies import extractors, figures
from sunzip.studies.extractors import Days
from sunzip.studies.flux import Flux
from sunzip.studies.forecast import ForecastReport, _Table, alignment, blocks, forecast
from sunzip.studies.forecasters import Space, grow, linear
from sunzip.studies.splits import Months
from sunzip.sun import open as open_sun
from sunzip.weights import Model

FIRST, COUNT = np.datetime64("2011-01-01"), 395
#: Quick, and enough to tell knowledge from none.
QUICK: dict[str, Any] = {"horizons": (1, 3), "grid": (20, 40)}


def walk() -> np.ndarray:
    """A flux of some days' memory: (COUNT + 20,)."""
    noise = np.random.default_rng(5).normal(size=COUNT + 80)
    kernel = np.exp(-((np.arange(-20, 21) / 4.0) ** 2) / 2)
    smooth = np.convolve(noise, kernel, "same")[30 : COUNT + 50]
    return 100 + 12 * smooth / smooth.std()


def written(path: Path, dates: np.ndarray, values: np.ndarray) -> Path:
    lines = [f"{d.year} {d.month} {d.day},{v:.3f},0" for d, v in zip(dates.tolist(), values, strict=True)]
    path.write_text(
        "\n".join(["time (yyyy MM dd),adjusted_f30 (solar flux unit (SFU)),synthetic", *lines, ""])
    )
    return path


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dates = FIRST + np.arange(COUNT + 20)
    return written(tmp_path_factory.mktemp("flux") / "flux.csv", dates, walk())


@pytest.fixture(scope="module")
def archive(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame a day: one channel shines as the flux does, one as it will in three days, less plainly."""
    folder, side = tmp_path_factory.mktemp("archive"), 16
    rng, now = np.random.default_rng(1), walk() / 100
    later = now[3:] + rng.normal(0, 0.02, len(now) - 3)
    shape = rng.uniform(0.5, 1.5, (2, side, side))
    with h5py.File(folder / "f.h5", "w") as file:
        images = [[900 * a**3 * shape[0], 300 * b**3 * shape[1]] for a, b in zip(now, later, strict=False)]
        file["cube"] = np.array(images[:COUNT], np.float32)
        file["channel"] = ["171A", "211A"]
        file["time"] = (FIRST + np.arange(COUNT)).astype("M8[ms]").astype("i8")
    api.compress(folder / "f.h5", folder / "f.lat", align=api.Alignment(cadence="1d"), model=tiny_model)
    return folder / "f.lat"


@pytest.fixture(scope="module")
def report(archive: Path, flux: Path) -> ForecastReport:
    return forecast(archive, flux, decode=True, folds=True, **QUICK)


class TestForecast:
    def test_latents_that_know_what_comes_beat_persistence(self, report: ForecastReport) -> None:
        for methods in (report.methods, report.folds):
            assert methods is not None
            one, three = methods["persistence + latents"]
            assert (one.horizon, three.horizon) == (1, 3)
            assert three.ratio_high < 0.95
            assert three.low < three.rmse < three.high
            assert methods["persistence + latents, linear"][1].ratio_high < 0.95

    def test_shuffled_latents_do_not(self, report: ForecastReport) -> None:
        for name in (
            "shuffled latents",
            "persistence + shuffled latents",
            "persistence + shuffled latents, linear",
        ):
            assert all(s.ratio_high > 1 for s in report.methods[name])
        for ours, shuffled in zip(report.methods["latents"], report.methods["shuffled latents"], strict=True):
            assert shuffled.rmse > 1.2 * ours.rmse

    def test_all_are_judged_on_the_same_rows(self, report: ForecastReport) -> None:
        # The first days of January 2011 have no frame before them.
        assert report.rows["1"]["test"] == 61
        assert report.rows["3"]["test"] == 59
        for i, rows in enumerate((61, 59)):
            assert {scores[i].rows for scores in report.methods.values()} == {rows}
        assert report.methods["persistence"][0].ratio == 1
        assert list(report.methods)[:3] == ["persistence", "latents", "persistence + latents"]
        assert {"channel means", "components of pixels"} <= set(report.methods)
        assert report.folds is not None
        assert report.folds["latents"][0].rows == COUNT

    def test_it_says_what_it_did(self, report: ForecastReport) -> None:
        assert report.synthetic
        assert report.days == COUNT
        assert (report.latent_shape, report.pool, report.pca, report.features) == ((8, 1, 1), 1, None, 8)
        assert report.lag is not None
        assert report.lag_share is not None
        assert report.lag_share > 0.8
        assert abs(report.lag) <= 2
        assert report.methods["latents"][0].trees in (20, 40)
        assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["column"] == "adjusted_f30"

    def test_it_is_reproducible(self, archive: Path, flux: Path, report: ForecastReport) -> None:
        again = forecast(archive, flux, decode=True, **QUICK)
        assert again.methods == report.methods

    def test_nothing_is_decoded_for_latents(
        self, archive: Path, flux: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("an image was decoded")

        monkeypatch.setattr("sunzip.sun.Sun.take", never)
        monkeypatch.setattr("sunzip.codec.Codec.decode", never)
        forecast(archive, flux, horizons=(1,), grid=(2,))


class TestLeaks:
    def test_days_that_are_stored_as_pixels_are_left_out(
        self, archive: Path, flux: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = extractors.latent_features

        def some(*args: Any) -> np.ndarray:
            latents = found(*args)
            latents[[0, 45, 200]] = np.nan
            return latents

        whole = forecast(archive, flux, horizons=(1,), grid=(2,))
        monkeypatch.setattr(extractors, "latent_features", some)
        report = forecast(archive, flux, horizons=(1,), grid=(2,))
        assert report.days == whole.days - 3
        assert report.rows["1"]["test"] == whole.rows["1"]["test"] - 1
        assert np.isfinite([s.rmse for scores in report.methods.values() for s in scores]).all()

    def test_numbers_of_trees_need_something_to_choose_by(self, archive: Path, flux: Path) -> None:
        with pytest.raises(InputError, match="no month to choose one by"):
            forecast(archive, flux, validation=(), **QUICK)
        report = forecast(archive, flux, validation=(), horizons=(1,), grid=(2,))
        assert report.methods["latents"][0].trees == 2
        with pytest.raises(InputError, match="at least 0"):
            forecast(archive, flux, pca=-1, **QUICK)

    def test_frames_of_later_days_are_detected(self, archive: Path, tmp_path: Path) -> None:
        # The flux's dates are five days late: each frame shows what is to come.
        path = written(tmp_path / "f.csv", FIRST + np.arange(5, COUNT + 25), walk())
        with pytest.raises(
            InputError, match=r"tell the flux of [456] days later better than that of their own"
        ):
            forecast(archive, path, **QUICK)

    def test_frames_that_build_on_later_ones_are_refused(self, flux: Path, tmp_path: Path) -> None:
        for block, hours in ((24, 24), (1, 24), (24, 1)):
            align = api.Alignment(cadence=f"{hours}h")
            api.compress(
                f"synthetic:frames=50,size=16,start=2011-01-01,cadence={hours}h",
                tmp_path / "s.lat",
                align=align,
                block=block,
                force=True,
            )
            with open_sun(tmp_path / "s.lat") as sun:
                days = Days.of(sun)
                assert sun.together == block
            # Of a block of hours, too, a day's first frame is coded given others of that day alone.
            late = days.known >= days.date + np.timedelta64(1, "D")
            assert late.any() == ((block, hours) == (24, 24))
            if late.any():
                assert days.known[:2].tolist() == [sun.archive.t_obs[23].max().item()] * 2
                with pytest.raises(InputError, match=r"2011-01-01T00.* given others as late as 2011-01-24"):
                    forecast(tmp_path / "s.lat", flux, **QUICK)

    def test_too_few_days_are_told_with_the_months_that_want_them(self) -> None:
        series = Flux("f.csv", "f30", FIRST + np.arange(400), np.ones(400), True)
        for begin, count, why in (
            # Of all days but one the next one is a day to test.
            (0, 31, "has 1 day to learn from, in months other than 1 and 3, with .* 1 day later, a flux"),
            (31, 20, "has 0 days to test, in month 1, with images of all its channels and"),
            (20, 30, "has 0 days to choose by, in month 3, with"),
        ):
            times = (FIRST + np.arange(begin, begin + count)).astype("M8[ms]")
            table = _Table(Days(np.arange(count), times, times), series, (1,), "a.lat")
            with pytest.raises(InputError, match=f"^a\\.lat: {why}.*; a forecast needs 8$"):
                table.parts(1, Months())

    def test_frames_after_their_target_are_refused(self) -> None:
        dates = FIRST + np.arange(200)
        series = Flux("f.csv", "f30", dates, np.ones(200), True)
        for late, fails in ((23, False), (24, True), (90, True)):
            times = dates.astype("M8[ms]") + np.timedelta64(late, "h")
            days = Days(np.arange(200), times, times)
            # A frame is of the day of its time; one that claims another is refused.
            claimed = type("Claimed", (), {"date": dates, "time": times, "known": times})()
            table = _Table(claimed, series, (1,), "a.lat")
            if fails:
                with pytest.raises(
                    InputError, match=r"^a\.lat: the frame of 2011-[^ ]* is not before its target$"
                ):
                    table.parts(1, Months())
            else:
                assert len(table.parts(1, Months()).test) == 30
            assert (days.date == times.astype("M8[D]")).all()

    def test_flux_that_is_held_out_changes_no_forecast(
        self, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dates, values = FIRST + np.arange(COUNT + 20), walk()
        held = dates.astype("M8[M]").astype(int) % 12 == 0
        found, straight = [], []
        for other in (values, np.where(held, 400 - values, values)):
            calls: list[Any] = []

            def kept(*args: Any, calls: list[Any] = calls, **options: Any) -> Any:
                calls.append((args, grow(*args, **options)))
                return calls[-1][1]

            lines: list[Any] = []

            def drawn(*args: Any, lines: list[Any] = lines) -> Any:
                lines.append((args, linear(*args)))
                return lines[-1][1]

            monkeypatch.setattr("sunzip.studies.forecast.grow", kept)
            monkeypatch.setattr("sunzip.studies.forecast.linear", drawn)
            path = written(tmp_path / f"{len(found)}.csv", dates, other)
            forecast(archive, path, horizons=(2,), grid=(5, 10))
            found.append(calls)
            straight.append(lines)
        # The first to grow is that of latents alone.
        (args, one), (changed, two) = found[0][0], found[1][0]
        for a, b in zip((*args[0], *args[1], args[2]), (*changed[0], *changed[1], changed[2]), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.test, two.test)
        assert one.count == two.count
        (args, drawn_one), (changed, drawn_two) = straight[0][0], straight[1][0]
        for a, b in zip((*args[0], args[1]), (*changed[0], changed[1]), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(drawn_one, drawn_two)

    def test_frames_that_are_held_out_change_no_scale(self) -> None:
        rng = np.random.default_rng(0)
        dates = FIRST + np.arange(COUNT)
        features = rng.normal(size=(COUNT, 6)).astype(np.float32)
        seen = Months().seen(dates)
        for components in (None, 3):
            space = Space.fit(features[seen], components)
            wild = np.where(seen[:, None], features, 1e6).astype(np.float32)
            again = Space.fit(wild[seen], components)
            np.testing.assert_array_equal(space(features), again(features))
            values = space(features)[seen]
            np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
            np.testing.assert_allclose(values.std(0), 1, rtol=1e-2)
            assert values.shape[1] == (components or 6)

    def test_alignment_looks_at_no_day_held_out(self) -> None:
        rng = np.random.default_rng(0)
        dates = FIRST + np.arange(COUNT)
        features = rng.normal(size=(COUNT, 4)).astype(np.float32)
        values = 100 + features[:, 0].astype(np.float64)
        told = alignment(features, dates, Flux("", "", dates, values, True), Months())
        assert told is not None
        assert told[0] == 0
        assert told[1] > 0.95
        wild = np.where(Months().seen(dates), values, rng.normal(size=COUNT))
        assert alignment(features, dates, Flux("", "", dates, wild, True), Months()) == told
        shuffled = alignment(
            features[rng.permutation(COUNT)], dates, Flux("", "", dates, values, True), Months()
        )
        assert shuffled is not None
        assert shuffled[1] < 0.1

    def test_alignment_of_few_days_says_nothing(self) -> None:
        dates = np.arange("2013-01-01", "2013-04-01", dtype="M8[D]")  # 28 are neither January's nor March's
        features = np.random.default_rng(0).normal(size=(len(dates), 2)).astype(np.float32)
        values = 100 + features[:, 0].astype(np.float64)
        assert alignment(features, dates, Flux("", "", dates, values, True), Months()) is None


class TestDays:
    def test_of_each_day_the_first_whole_frame(self, tiny_model: Model, tmp_path: Path) -> None:
        times = np.array(
            ["2013-01-01T18", "2013-01-02T03", "2013-01-02T06", "2013-01-02T09", "2013-01-04T00"], "M8[ms]"
        )
        cube = np.ones((5, 2, 16, 16), np.float32)
        cube[1, 1] = np.nan
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file["cube"], file["channel"], file["time"] = cube, ["171A", "211A"], times.astype("i8")
        align = api.Alignment(cadence="native")
        api.compress(tmp_path / "f.h5", tmp_path / "f.lat", align=align, model=tiny_model)
        with open_sun(tmp_path / "f.lat") as sun:
            days = Days.of(sun)
            np.testing.assert_array_equal(days.time, times[[0, 2, 4]])
            assert np.isfinite(sun.latents[2]).all()
            latents = extractors.latent_features(sun, days, None, lambda _: None)
            np.testing.assert_array_equal(latents[1], sun.latents[2].ravel())
            with pytest.raises(InputError, match="cannot be pooled"):
                extractors.latent_features(sun, days, 2, lambda _: None)

    @pytest.mark.parametrize(("cadence", "seconds"), [("native", (-30, 8)), ("4d", (3600, 30 * 3600))])
    def test_frames_are_of_the_day_of_their_last_image(
        self, cadence: str, seconds: tuple[int, int], tiny_model: Model, tmp_path: Path
    ) -> None:
        # Magnetograms of before midnight give native frames a time of the day before; coarse grids may, too.
        nominal = np.array(["2013-01-03", "2013-01-07"], "M8[ms]")
        t_obs = nominal[:, None] + np.array(seconds) * np.timedelta64(1000, "ms")
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file["cube"] = np.ones((2, 2, 16, 16), np.float32)
            file["channel"] = ["171A", "Bz"]
            file["time"], file["t_obs"] = nominal.astype("i8"), t_obs.astype("i8")
        align = api.Alignment(cadence=cadence)
        api.compress(tmp_path / "f.h5", tmp_path / "f.lat", align=align, model=tiny_model)
        with open_sun(tmp_path / "f.lat") as sun:
            days = Days.of(sun)
            assert (sun.time.astype("M8[D]") < t_obs.max(1).astype("M8[D]")).all()
            np.testing.assert_array_equal(days.time, t_obs.max(1))
            np.testing.assert_array_equal(days.known, t_obs.max(1))


def data(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    return x, 3 * x[:, 0].astype(np.float64) + rng.normal(size=n)


class TestGrow:
    def test_lines_are_found_in_noise(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(3, 50, (400, 30)).astype(np.float32)
        y = 7 + 0.2 * x[:, 4] - 0.1 * x[:, 9]
        found = linear((x[:300], y[:300] + rng.normal(0, 1, 300)), x[300:])
        assert np.corrcoef(found, y[300:])[0, 1] > 0.99

    def test_lines_end_where_nothing_was_learnt(self) -> None:
        # One day of 300 had a hair's breadth of it: the day to forecast has ten thousand times as much.
        rng = np.random.default_rng(0)
        x = np.zeros((301, 1), np.float32)
        x[100], x[300] = -4e-7, -4e-3
        y = rng.normal(0, 5, 300)
        y[100] = 20
        assert abs(linear((x[:300], y), x[300:])[0]) < 50

    def test_of_what_tells_nothing_lines_take_the_mean(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(400, 100)).astype(np.float32), rng.normal(5, 1, 400)
        found = linear((x[:300], y[:300]), x[300:])
        assert np.abs(found - y[:300].mean()).max() < 1
        assert np.mean((found - y[300:]) ** 2) < 1.15 * y[300:].var()

    def test_trees_are_those_of_scikit_learn(self) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        train, validation, (test, _) = data(120), data(40), data(30)
        whole = {n: ExtraTreesRegressor(n, random_state=7).fit(*train) for n in (3, 8, 20)}
        best = min(
            whole, key=lambda n: float(np.mean((whole[n].predict(validation[0]) - validation[1]) ** 2))
        )
        steps: list[int] = []
        found = grow(train, validation, test, grid=(20, 3, 8), seed=7, grown=steps.append)
        assert found.count == best
        np.testing.assert_allclose(found.test, whole[best].predict(test), rtol=1e-12)
        assert steps == [3, 5, 12]

    def test_the_only_number_needs_no_validation(self) -> None:
        train, (test, _) = data(50), data(10)
        nothing = np.zeros((0, 5), np.float32), np.zeros(0)
        assert grow(train, nothing, test, grid=(4,)).count == 4


class TestBlocks:
    def test_they_stay_within_runs_of_days(self) -> None:
        dates = np.concatenate(
            [FIRST + np.arange(31), FIRST + np.arange(365, 370), FIRST + np.arange(500, 520)]
        )
        draws = blocks(dates, np.random.default_rng(0), days=7, draws=300)
        assert draws.shape == (300, 56)
        run = np.repeat([0, 1, 2], [31, 5, 20])
        begin, length = np.array([0, 31, 36]), np.array([31, 5, 20])
        for block in draws.reshape(-1, 7):
            (which,) = set(run[block])
            steps = np.diff((block - begin[which]) % length[which])
            assert set(steps) <= {1, 1 - length[which]}
        shares = np.bincount(draws.ravel(), minlength=56) / draws.size * 56
        assert shares.min() > 0.75
        assert shares.max() < 1.25

    def test_gaps_shorter_than_a_block_break_no_run(self) -> None:
        dates = FIRST + 3 * np.arange(40)
        draws = blocks(dates, np.random.default_rng(0), days=14, draws=50)
        # Blocks of five rows, three days apart.
        assert set(np.diff(draws.reshape(-1, 5)).ravel() % 40) == {1}

    def test_blocks_widen_intervals_of_errors_alike(self) -> None:
        dates, rng = FIRST + np.arange(560), np.random.default_rng(0)
        alike = np.repeat(rng.normal(size=40), 14)
        spread = [
            alike[blocks(dates, np.random.default_rng(1), days=days)].mean(axis=1).std() for days in (1, 14)
        ]
        assert spread[1] > 2.5 * spread[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from sunzip.nn.resnet import ResNet18

    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = ResNet18().state_dict()
    path = tmp_path_factory.mktemp("resnet") / "r.safetensors"
    save_file(state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return path


class TestResNet:
    def test_its_features_are_of_the_image(self, archive: Path, weights: Path) -> None:
        network = extractors.load_resnet(weights)
        # He et al.'s 18 layers without the last one, as torchvision has them.
        assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000
        with open_sun(archive) as sun:
            whole = Days.of(sun)
            days = whole.take(np.arange(6))
            found = extractors.picture_features(sun, days, network, lambda _: None)
            assert found.resnet is not None
            assert found.resnet.shape == (6, 512)
            assert (found.resnet >= 0).all()
            assert (found.resnet.std(axis=0) > 0).any()
            np.testing.assert_allclose(found.means, sun[:6].mean((2, 3)), rtol=1e-5)
            assert found.fields.shape == (6, 2 * 16**2)

    def test_it_sums_on_one_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")

        monkeypatch.setattr(lanes, "_pool", None)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            see = extractors._seen_by(lambda _: torch.tensor([[torch.get_num_threads()]]))  # type: ignore
            assert list(side_by_side(see, [np.zeros((16, 16), np.float32)])) == [1]
        finally:
            torch.set_num_threads(before)

    def test_without_pytorch_one_line_says_so(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("torch", "safetensors.torch"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=r"ResNet-18 needs .* not installed; .*\.\[torch\]"):
            extractors.load_resnet(weights)

    def test_it_is_a_rival(
        self, archive: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Small pictures make it quick.
        monkeypatch.setattr(extractors, "_SIDE", 32)
        flux = written(tmp_path / "f.csv", FIRST + np.arange(100), walk()[:100])
        found = forecast(archive, flux, resnet=weights, horizons=(1,), grid=(3,))
        assert found.methods["ResNet, 211A"][0].rows == found.rows["1"]["test"]

    def test_its_channel_is_looked_for_first(
        self, tiny_model: Model, flux: Path, weights: Path, tmp_path: Path
    ) -> None:
        align = api.Alignment(channels=("171A",))
        api.compress("synthetic:frames=2,size=16", tmp_path / "a.lat", align=align, model=tiny_model)
        with pytest.raises(InputError, match="has no 211A; it holds 171A"):
            forecast(tmp_path / "a.lat", flux, resnet=weights)

    def test_other_weights_are_refused(self, weights: Path, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from safetensors.torch import load_file, save_file

        state = load_file(weights)
        for change, what in (
            ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight"),
            ({"more": torch.zeros(1)}, "more"),
        ):
            save_file(state | change, tmp_path / "w.safetensors")
            with pytest.raises(InputError, match=f"no weights of a ResNet-18: {what} is"):
                extractors.load_resnet(tmp_path / "w.safetensors")
        (tmp_path / "pickle.pth").write_bytes(b"\x80\x02}q\x00.")
        for name, why in (("pickle.pth", "is no safetensors file"), ("none", "cannot be read: No such file")):
            with pytest.raises(InputError, match=f"{name}: {why}"):
                extractors.load_resnet(tmp_path / name)

    def test_no_more_is_read_than_weights_have(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("torch")
        monkeypatch.setattr(extractors, "_MAX_WEIGHTS", 100)
        (tmp_path / "w.safetensors").write_bytes(bytes(101))
        with pytest.raises(
            InputError, match="has more than 100 bytes; the weights of a ResNet-18 have 45 MB"
        ):
            extractors.load_resnet(tmp_path / "w.safetensors")

    def test_it_is_torchvisions(self, weights: Path) -> None:
        models = pytest.importorskip("torchvision.models", exc_type=Exception)
        import torch
        from safetensors.torch import load_file

        theirs = models.resnet18().eval()
        theirs.load_state_dict(load_file(weights))
        theirs.fc = torch.nn.Identity()
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(extractors.load_resnet(weights)(x), theirs(x))


@pytest.fixture
def run(sunzip: Any) -> Any:
    return partial(sunzip, "forecast")


class TestCommand:
    def test_a_table_a_plot_and_json(self, run: Any, archive: Path, flux: Path, tmp_path: Path) -> None:
        args = [archive, "--flux", flux, "--days", 2, "--trees", "2,4", "--plot", tmp_path / "p.png"]
        shown = run(*args).stdout
        assert f"forecasts the SYNTHETIC flux adjusted_f30 of {flux}" in shown
        assert "persistence + latents" in shown
        assert "61 days of January" in shown
        assert Image.open(tmp_path / "p.png").size[0] > 1000
        assert "exists" in run(*args, code=1).stderr
        found = json.loads(run(*args, "--force", "--json", "-q").stdout)
        assert [s["horizon"] for s in found["methods"]["latents"]] == [1, 2]
        assert found["folds"] is None

    def test_folds_are_drawn_and_shown(self, report: ForecastReport, tmp_path: Path) -> None:
        from sunzip.cli.forecast import _forecast

        assert any(
            "every month tested in turn, 14 days around it left out" in line for line in _forecast(report)
        )
        figures.forecast_figure(report, tmp_path / "f.png")
        assert Image.open(tmp_path / "f.png").size[1] > 1000

    def test_names_are_no_formulas(self, report: ForecastReport, tmp_path: Path) -> None:
        named = replace(report, flux=r"f$\frac$.csv", column=r"$\frac$", synthetic=False)
        figures.forecast_figure(named, tmp_path / "f.png")
        assert (tmp_path / "f.png").stat().st_size

    def test_what_a_user_has_set_for_other_figures_changes_nothing(
        self, report: ForecastReport, tmp_path: Path
    ) -> None:
        import matplotlib as mpl

        with mpl.rc_context({"text.usetex": True, "savefig.bbox": "tight", "savefig.dpi": 30}):
            figures.forecast_figure(report, tmp_path / "theirs.png")
        figures.forecast_figure(report, tmp_path / "plain.png")
        assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "plain.png").read_bytes()

    def test_days_ahead_are_whole(self, report: ForecastReport, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.figure import Figure

        drawn: list[Figure] = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
        methods = {name: scores[:2] for name, scores in report.methods.items()}
        figures.forecast_figure(replace(report, methods=methods, folds=None), "none.png")
        for panel in drawn[0].axes:
            assert all(float(tick).is_integer() for tick in panel.get_xticks())

    def test_nothing_hides_what_is_drawn(
        self, report: ForecastReport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn: list[Figure] = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
        latents = [replace(s, rmse=9 * s.rmse, ratio=9 * s.ratio) for s in report.methods["latents"]]
        # As many as there can be, with --decode and --resnet.
        rivals = dict.fromkeys(("channel means", "components of pixels", "ResNet, 211A"), latents)
        methods = {**report.methods, "latents": latents, **rivals}
        flux = "/some/where/" + 9 * "a_long_name_" + "f30.csv"
        figures.forecast_figure(
            replace(report, methods=methods, folds=None, flux=flux, synthetic=False), "none.png"
        )
        (figure,) = drawn
        FigureCanvasAgg(figure).draw()
        left, right = figure.axes
        (legend,) = figure.legends
        assert left.get_legend() is None
        assert len(legend.get_texts()) == len(methods)
        boxes = [thing.get_window_extent() for thing in (legend, left, right)]
        assert boxes[0].y1 < min(box.y0 for box in boxes[1:])
        # No curve but that of shuffled latents leaves its panel, and no two look the same.
        for panel in (left, right):
            for bars in panel.containers:
                if "shuffled" not in bars.get_label():
                    assert max(bars[0].get_ydata()) <= panel.get_ylim()[1]
        looks = {(bars[0].get_color(), bars[0].get_linestyle()) for bars in left.containers}
        assert len(looks) == len(methods)
        title = figure.get_suptitle()
        assert title.startswith("a_long_name_")
        box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1

    @pytest.mark.parametrize(
        ("more", "what"),
        [
            (["--column", "f107"], "has no column 'f107'; it has adjusted_f30"),
            (["--test", "1,3"], "name some from 1 to 12, each once"),
            (["--test", "13"], "name some from 1 to 12, each once"),
            (["--test", "6"], None),
            (["--pca", 500], "no more than of either: take fewer, or none (--pca)"),
            (["--pool", 3], "cannot be pooled to 3×3 fields"),
            (["--plot", "p.jpg"], "name it *.png"),
            (["--resnet", "none.safetensors"], "none.safetensors: cannot be read: No such file"),
            (["--embargo", 400, "--folds"], "folds need an archive of all months of some years"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, run: Any, archive: Path, flux: Path, more: list[Any], what: str | None
    ) -> None:
        result = run(archive, "--flux", flux, "--days", 1, "--trees", "1", *more, code=1 if what else 0)
        assert what is None or what in result.stderr

    def test_a_flux_that_never_changes(self, run: Any, archive: Path, tmp_path: Path) -> None:
        path = written(tmp_path / "f.csv", FIRST + np.arange(COUNT), np.full(COUNT, 70.0))
        error = run(archive, "--flux", path, "--days", 1, "--trees", "1", code=1).stderr
        assert "the flux never changes within 1 days" in error

    def test_months_that_the_archive_lacks(self, run: Any, archive: Path, tmp_path: Path) -> None:
        dates = FIRST + np.arange(31, 331)
        path = written(tmp_path / "f.csv", dates, walk()[31:331])
        error = run(archive, "--flux", path, "--days", 1, "--trees", "1", code=1).stderr
        assert (
            "has 0 days to test, in month 1, with images of all its channels and, 1 day later, a flux"
            in error
        )

    def test_words_are_no_months(self, run: Any, archive: Path, flux: Path) -> None:
        for option, value in (("--test", "January"), ("--trees", "many"), ("--trees", "0")):
            assert "numbers" in run(archive, "--flux", flux, option, value, code=2).stderr

    @pytest.mark.parametrize(("package", "extra"), [("sklearn", "features"), ("matplotlib", "plot")])
    def test_packages_that_are_missing_are_named(
        self,
        run: Any,
        package: str,
        extra: str,
        archive: Path,
        flux: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        error = run(archive, "--flux", flux, "--plot", tmp_path / "p.png", code=1).stderr
        assert f"pip install '.[{extra}]'" in error
