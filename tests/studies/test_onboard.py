"""Mission studies: files refused in one line, physics by hand, books that balance, pages that stand alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sunzip import weights
from sunzip.api import Alignment, open_series
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.errors import InputError
from sunzip.sinks import open_sink
from sunzip.studies.onboard import compute, measure, recorder, ways
from sunzip.studies.onboard.camera import Camera
from sunzip.studies.onboard.mission import Image, Mission, Pass, parse, preset, presets
from sunzip.studies.onboard.report import page
from sunzip.studies.onboard.study import _assumptions, study
from sunzip.weights import Model

GOOD = """
name: A
channels: [171A, {name: field, like: bz}]
size: 64
bits: 12
cadence: 1min
storage: 1 MB
downlink: {rate: 8 kbit/s, passes: [{every: 1d, lasts: 8h, begins: 2h}], usable: 0.9}
"""


def mission(**changes: Any) -> Mission:
    return replace(parse(GOOD, "good"), **changes)


class TestMission:
    def test_is_read(self) -> None:
        found = parse(GOOD, "good")
        assert found.channels == ("171A", "Bz")
        assert [i.name for i in found.images] == ["171A", "field"]
        assert (found.side, found.bits, found.binning, found.cadence) == (64, 12, 1, 60)
        assert (found.storage, found.rate) == (1e6, 8000)
        assert found.passes == (Pass(86400, 28800, 7200),)
        assert found.pixels == 2 * 64 * 64
        assert found.contact == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("before", "after", "says"),
        [
            ("name: A", "title: A", "title: no such entry"),
            ("name: A\n", "", "name is missing"),
            ("171A,", "172A,", "channels\\[0\\].like: unknown channel"),
            ("171A,", "171A, 171,", "two of them are like 171A"),
            ("size: 64", "size: 60", "multiple of 16"),
            ("size: 64", "size: 1000000", "from 16 to"),
            ("bits: 12", "bits: true", "bits: True should be"),
            ("1min", "60", "cadence: 60 should be"),
            ("1min", "-1s", "cadence"),
            ("1 MB", "1 MiB", "storage: '1 MiB' should be a number and a unit of B, kB"),
            ("8 kbit/s", "0 kbit/s", "downlink.rate"),
            ("8 kbit/s", "8 kB/s", "downlink.rate"),
            ("lasts: 8h", "lasts: 23h", "over before the next one is due"),
            ("lasts: 8h", "last: 8h", "last: no such entry"),
            ("usable: 0.9", "usable: 1.1", "from 0.01 to 1"),
            ("usable: 0.9", "usable: 0", "from 0.01 to 1"),
            ("usable: 0.9", "usable: .nan", "from 0.01 to 1"),
            ("1min", "8d", "cadence: '8d' should be 7d or less"),
            ("1 MB", "1e290 TB", "up to 1e\\+18"),
            ("8 kbit/s", "0.0000001 bit/s", "downlink.rate"),
            (
                "every: 1d, lasts: 8h, begins: 2h",
                "every: 1s, lasts: 1s",
                "every: '1s' should be a minute or more",
            ),
            ("every: 1d", "every: 367d", "every: '367d' should be 366d or less"),
            ("name: A", '"a\\nb": 1\nname: A', "no such entry"),
            ("size: 64", 'size: !!int ""', "no YAML"),
            ("size: 64", "size: !!bool x", "no YAML"),
            ("size: 64", "size: !!timestamp x", "no YAML"),
            ("size: 64", f"size: 0x{'f' * 9000}", "size: a number without end should be"),
            ("size: 64", f"size: {'1:' * 200}1.0", "no YAML"),
            ("downlink: {", "downlink: [", "no YAML in line 8"),
            ("size: 64", "size: 64\nsize: 32", "no YAML in line .: size is there twice"),
            ("usable: 0.9", "usable: 0.9, usable: 0.5", "no YAML in line .: usable is there twice"),
            ("name: A", r'name: "\ud800"', "name: .* should be a line of text"),
            ("name: A", "name: !!python/object/apply:os.system [ls]", "no YAML"),
            ("name: A", "present: zip\nname: A", "one of raw"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, before: str, after: str, says: str) -> None:
        assert before in GOOD
        with pytest.raises(InputError, match=says) as error:
            parse(GOOD.replace(before, after), "there.yaml")
        assert str(error.value).startswith("there.yaml: ")
        assert "\n" not in str(error.value)

    def test_lists_within_lists_fit_into_a_message(self) -> None:
        lists = ["&a0 [x]", *(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15))]
        with pytest.raises(InputError, match=r"^there\.yaml: name: \[.{,60} should be a line of text$"):
            parse(GOOD.replace("name: A", f"name: [{', '.join(lists)}]"), "there.yaml")

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=40), st.integers(0, len(GOOD)))
    def test_whatever_is_written_is_read_or_refused(self, text: str, at: int) -> None:
        try:
            parse(GOOD[:at] + text + GOOD[at:], "x")
        except InputError as error:
            told = str(error)
        else:
            told = ""
        assert "\n" not in told

    def test_presets_name_their_sources(self) -> None:
        assert presets() == ("cubesat", "l5-monitor", "sdo", "solar-orbiter")
        for name in presets():
            found = preset(name)
            assert found.sources
            assert found.assumptions
            assert found.contact > 0
        with pytest.raises(InputError, match="there are cubesat"):
            preset("mars")

    def test_sdo_sends_what_sdo_sends(self) -> None:
        sdo = preset("sdo")
        # 57,600 images a day of 4096² pixels; raw they are too much for the link, with Rice's code not.
        assert len(sdo.images) * 86400 / sdo.cadence == 57600
        assert sdo.pixels * 14 / sdo.cadence > sdo.rate > sdo.pixels * 5.9 / sdo.cadence

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 50)).map(
                lambda t: Pass(max(t[0], t[1] + t[2]), t[1], t[2])
            ),
            max_size=3,
        ),
        st.integers(0, 500),
        st.integers(1, 200),
    )
    def test_contact_is_counted_once(self, passes: list[Pass], begin: int, length: int) -> None:
        seconds = np.arange(begin, begin + length) + 0.5
        for p in passes:
            there = (seconds % p.every >= p.begins) & (seconds % p.every < p.begins + p.lasts)
            edges = np.arange(begin, begin + length + 1.0)
            np.testing.assert_allclose(p.shares(edges), there, atol=1e-9)
            assert p.shares(edges[[0, -1]])[0] == pytest.approx(there.mean())

    @pytest.mark.parametrize(
        ("usable", "begins", "share"), [(1.0, 0, 1 / 3), (0.5, 0, 0.25), (1.0, 4, 0.5), (0.5, 8, 1 / 3)]
    )
    def test_passes_that_overlap_are_one(self, usable: float, begins: int, share: float) -> None:
        passes = Pass(86400, 28800, 0), Pass(86400, 28800, begins * 3600)
        assert mission(passes=passes, usable=usable).contact == pytest.approx(share, abs=1e-4)


class TestCamera:
    def test_reads_what_it_saw(self) -> None:
        camera = Camera(("171A", "Bz"), 14, 1)
        ramp = np.linspace(-500, 500, 64).reshape(8, 8)
        frame = np.stack([np.full((8, 8), 300.0), ramp]).astype(np.float32)
        back = camera.physical(camera.counts(frame))
        # A count is half a DN/s in 2 s of exposure, and a gauss.
        assert np.abs(back - frame)[0].max() <= 0.25
        assert np.abs(back - frame)[1].max() <= 0.5

    def test_saturates(self) -> None:
        camera = Camera(("171A", "Bz"), 8, 1)
        raw = camera.counts(np.full((2, 4, 4), 1e9, np.float32))
        assert (raw == 255).all()
        assert (camera.counts(np.full((2, 4, 4), -1e9, np.float32)) == 0).all()

    @pytest.mark.parametrize("binning", [1, 2])
    def test_noise_is_that_of_its_pixels(self, binning: int) -> None:
        camera = Camera(("193A",), 16, binning)
        quiet = np.full((1, 256, 256), 1000, np.float32)
        read = camera.physical(camera.expose(quiet, np.random.default_rng(0)))
        # 2 s, 1.024 DN a photon, read noise 1.2 DN.
        expected = np.sqrt((2000 * 1.024 + 1.2**2) / binning**2 * (1 - (binning * 256 / 4096) ** 2)) / 2
        assert read.std() == pytest.approx(expected, rel=0.02)
        assert camera.noise(quiet).mean() == pytest.approx(expected, rel=0.01)

    def test_gaps_are_dark(self) -> None:
        raw = Camera(("193A",), 12, 64).expose(
            np.full((1, 8, 8), np.nan, np.float32), np.random.default_rng(0)
        )
        assert (raw == 100).all()


class TestStatistics:
    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60))
    def test_are_in_order(self, values: list[float]) -> None:
        s = measure.statistics(np.array(values))
        assert s["p95"] <= s["p999"] * (1 + 1e-9)
        assert s["worst"] <= s["p999"] * (1 + 1e-9)
        assert np.isfinite(s["p999"])

    def test_within_the_sample_nothing_is_fitted(self) -> None:
        values = np.arange(10_000.0)
        assert measure.quantile(values, 0.999) == (pytest.approx(np.quantile(values, 0.999)), False)

    def test_a_tail_is_continued(self) -> None:
        # Of an exponential distribution the 99.9th percentile is 6.9 means.
        found = [
            measure.quantile(np.random.default_rng(n).exponential(size=200), 0.999)[0] for n in range(200)
        ]
        assert np.median(found) == pytest.approx(6.9, rel=0.2)


class TestRecorder:
    def one(self, m: Mission, size: float) -> recorder.Recorder:
        return recorder.simulate(m, {"it": {"all": np.array([size])}}, {"all": 1.0})["it"]

    def test_keeps_its_books(self) -> None:
        m = mission(passes=(Pass(86400, 86400, 0),), usable=1.0, rate=8000.0, storage=1e6)
        # 1,000 B/s go down, 2,000 B/s come in: half is lost, but for the megabyte that stays.
        size = 120_000 / (recorder.PACKET / (recorder.PACKET - recorder.HEADER))
        found = self.one(m, size)
        assert found.bytes_per_day == pytest.approx(2000 * 86400)
        assert found.capacity_per_day == pytest.approx(1000 * 86400)
        seconds = recorder.STEPS * 60
        assert found.lost == pytest.approx(0.5 - (1e6 + 240_000) / (2000 * seconds), rel=1e-3)
        assert found.overflow == 1
        # A full recorder of 1.24 MB drains at 1,000 B/s.
        assert found.latency is not None
        assert found.latency["worst"] == pytest.approx(1240, abs=121)

    def test_waits_for_its_pass(self) -> None:
        m = mission(passes=(Pass(86400, 3600, 0),), usable=1.0, rate=1e9, storage=1e9)
        found = self.one(m, 1000.0)
        assert found.lost == 0
        assert found.latency is not None
        # What comes right after a pass waits 23 h.
        assert found.latency["worst"] == pytest.approx(23 * 3600, abs=61)
        # Mean over the day: 23 h of mean wait 11.5 h, and an hour of none.
        assert found.latency["mean"] == pytest.approx(23 * 11.5 * 3600 / 24, rel=0.01)
        assert max(found.fill["worst"]) == pytest.approx(23 * 60 * 1000 * 1776 / 1738, rel=0.01)

    @pytest.mark.parametrize(("cadence", "days"), [(1.0, 1), (12.0, 7), (60.0, 30)])
    def test_sees_rare_passes_at_any_cadence(self, cadence: float, days: int) -> None:
        day = 86400.0
        passes = (Pass(days * day, 3600, days * day - 3600),)
        found = self.one(mission(cadence=cadence, passes=passes, usable=1.0, rate=1e9, storage=1e12), 1000.0)
        assert found.latency is not None
        assert found.latency["worst"] == pytest.approx(days * day - 3600, rel=0.01)

    def test_without_passes_nothing_comes_down(self) -> None:
        found = self.one(mission(usable=0.0, storage=1e6), 100.0)
        assert found.latency is None
        assert found.years == pytest.approx(1e6 / found.bytes_per_day / 365.25)

    def test_missed_passes_delay(self) -> None:
        sure, rare = (
            self.one(mission(passes=(Pass(86400, 3600, 0),), usable=u, rate=1e9, storage=1e9), 1000.0)
            for u in (1.0, 0.5)
        )
        assert sure.latency is not None
        assert rare.latency is not None
        assert rare.latency["worst"] > sure.latency["worst"]

    @pytest.mark.parametrize("active", [0.25, 0.5, 0.75])
    def test_runs_have_the_periods_in_proportion(self, active: float) -> None:
        sizes = {"quiet": np.array([1000.0]), "active": np.array([3000.0])}
        shares = {"quiet": 1 - active, "active": active}
        found = recorder.simulate(mission(cadence=60.0), {"it": sizes}, shares)["it"]
        mean = (1000 + 2000 * active) * 1440 * recorder.PACKET / (recorder.PACKET - recorder.HEADER)
        assert found.bytes_per_day == pytest.approx(mean)

    def test_periods_have_their_share(self) -> None:
        sizes = {"a": np.array([1000.0]), "b": np.array([3000.0])}
        found = recorder.simulate(mission(), {"it": sizes}, {"a": 1.0, "b": 0.0})["it"]
        assert found.bytes_per_day == pytest.approx(1440 * 1000 * 1776 / 1738)


class TestCompute:
    def test_counts_what_the_documentation_says(self) -> None:
        pytest.importorskip("torch")
        codec = Codec(weights.load("hyperprior-12"))
        cost = compute.count(codec, ("171A",), 64)
        # docs/explanation/codec.md: analysis, hyper-analysis and hyper-synthesis per pixel.
        assert cost.macs / 64**2 == pytest.approx(33280 + 676 + 434, rel=1e-3)
        assert cost.symbols == 128 * 4 * 4 + 32
        assert cost.samples == 64**2
        # Nothing takes less memory than its largest layer: 96 channels at a quarter of the size.
        assert cost.activations >= 2 * 96 * 16 * 16 * 4
        assert cost.traffic > cost.activations

    def test_counts_of_the_default_what_the_documentation_says(self) -> None:
        codec = Codec(weights.load())
        cost = compute.count(codec, ("171A",), 512)
        by_hand = 256**2 * 5408 + 128**2 * 10272 + (64**2 + 32**2 + 16**2 + 8**2 + 4**2 + 2**2) * 16512
        # The coarsest level is handed no features.
        assert cost.macs == by_hand - 32**2
        # docs/explanation/onboard.md, one case by hand.
        assert cost.macs == 612_869_632
        together = compute.count(codec, preset("sdo").channels, 512)
        assert together.macs * 64 == pytest.approx(351.0e9, rel=1e-3)
        assert together.traffic * 64 == pytest.approx(45.9e9, rel=0.02)
        assert cost.symbols == cost.samples == 512**2

    def test_scales_as_one_would_by_hand(self) -> None:
        cost = compute.Cost(macs=10**9, traffic=0, activations=4000, weights=1000, symbols=0, samples=0)
        one = replace(compute.PROCESSORS[0], macs=1e9, efficiency=0.5, watts=3.0, width=1)
        found = compute.effort(one, cost, 4.0, mission(cadence=7.0, power=2.0, memory=2000.0))
        assert found.seconds == pytest.approx(8)
        assert found.joules == pytest.approx(24)
        assert not found.keeps_cadence
        assert found.watts is None
        assert found.within_power is False
        assert found.within_memory is True
        slow = replace(cost, traffic=10**9)
        wide = replace(one, bandwidth=2e7, width=4)
        assert compute.effort(wide, slow, 1.0, mission()).seconds == pytest.approx(100)

    def test_processors_name_source_and_assumption(self) -> None:
        for p in compute.PROCESSORS:
            assert p.source
            assert p.assumed


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a day and not four weeks."""
    monkeypatch.setattr(recorder, "STEPS", 1440)


@pytest.fixture(scope="module")
def found(tiny_model: Model) -> dict[str, Any]:
    return study(mission(), model=tiny_model, frames=2, size=32)


class TestStudy:
    def test_says_everything(self, found: dict[str, Any]) -> None:
        json.dumps(found, allow_nan=False)
        assert set(found["ways"]) == {"model", "raw", "ccsds121", "jpeg2000"}
        raw = found["ways"]["raw"]
        assert raw["frame"]["mean"] == pytest.approx(2 * 64 * 64 * 12 / 8)
        assert raw["bits_per_sample"] == pytest.approx(12)
        assert found["ways"]["ccsds121"]["frame"]["mean"] < raw["frame"]["mean"]
        assert set(found["ways"]["model"]["periods"]) == {"quiet Sun", "active Sun"}
        assert found["measured"]["tiles"] == 4
        assert any(line.startswith("Percentiles beyond what 2 frames") for line in found["assumptions"])
        assert any("begins empty" in line for line in found["assumptions"])
        assert "CCSDS 122" in found["absent"]
        assert len(found["compute"]["processors"]) == 3

    @pytest.mark.parametrize(
        ("channels", "detector", "range_of"),
        [
            (["171A"], True, None),
            (["Bz"], False, "−128 to 127 G"),
            (["171A", "Bz"], True, "−2,048 to 2,047 G"),
        ],
    )
    def test_says_what_its_camera_makes_of_fields(
        self, channels: list[str], detector: bool, range_of: str | None
    ) -> None:
        images = tuple(Image(name, name) for name in channels)
        bits = 8 if range_of and "128" in range_of else 12
        told = " ".join(_assumptions(mission(images=images, bits=bits), 32, 4, 2))
        assert ("noise of AIA's detector" in told) == detector
        assert ("Magnetograms" in told) == (range_of is not None)
        assert (range_of or "") in told

    def test_bytes_are_those_of_the_codec(self, found: dict[str, Any], tiny_model: Model) -> None:
        from sunzip.sources.synthetic import render

        m = mission()
        camera = Camera(m.channels, m.bits, m.binning)
        frame = render(measure.SYNTHETIC[0][1], size=32)[[NAMES.index(c) for c in m.channels]]
        raw = camera.expose(frame, np.random.default_rng(0))
        (block,) = Codec(tiny_model).encode(camera.physical(raw)[None], m.channels)
        worst = found["ways"]["model"]["periods"]["quiet Sun"]["worst"]
        mean = found["ways"]["model"]["periods"]["quiet Sun"]["mean"]
        assert 4 * len(block) in (worst, pytest.approx(2 * mean - worst))

    def test_a_page_stands_alone(self, found: dict[str, Any]) -> None:
        text = page(found)
        assert text.startswith("<!doctype html>")
        assert not re.search(r"<(script|link|img|iframe)|src=|url\(|@import", text)
        # Errors are not measured on all frames, as bytes are.
        assert "of the first frame of each period" in text
        assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
        for line in found["assumptions"]:
            assert line in unescape(text)
        assert text.count("<svg") == 4
        # The recorder's name stands over its curves, not under them.
        (filling,) = (svg for svg in text.split("<svg")[1:] if "the fullest of all runs" in svg)
        assert filling.index(">recorder<") > filling.rindex("<polyline")
        # Every cell of a table can be read without its head, which narrow screens do not show.
        assert text.count("<td ") == text.count('data-k="')

    @pytest.mark.parametrize(
        ("limits", "shown"),
        [
            ({}, "–"),
            ({"power": 0.5}, "0.5 W"),
            ({"memory": 2e9}, "2 GB"),
            ({"power": 3.0, "memory": 5.12e8}, "3 W, 512 MB"),
        ],
    )
    def test_limits_that_there_are_none_of_have_no_unit(
        self, found: dict[str, Any], limits: dict[str, float], shown: str
    ) -> None:
        text = page(found | {"mission": found["mission"] | {"power": None, "memory": None} | limits})
        assert f"for coding|{shown}|active" in re.sub(r"(<[^>]*>)+", "|", text)

    def test_strange_names_do_not_become_markup(self, tiny_model: Model, short: None) -> None:
        m = mission(name="<script>alert(1)</script>", summary="a & b")
        text = page(study(m, model=tiny_model, frames=2, size=32))
        assert "<script" not in text
        assert "a &amp; b" in text

    def test_absent_libraries_are_said(
        self, tiny_model: Model, short: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ways, "_imagecodecs", lambda name: None)
        found = study(mission(), model=tiny_model, frames=2, size=32)
        assert set(found["ways"]) == {"model", "raw"}
        assert "not installed" in found["absent"]["CCSDS 121 (Rice)"]
        assert all(e["read_jpeg2000"] is None for e in found["measured"]["errors"].values())
        assert "not installed" in page(found)

    def test_families_without_a_network_are_studied_too(self, wavelet_model: Model, short: None) -> None:
        found = study(mission(), model=wavelet_model, frames=2, size=32)
        assert found["model"]["family"] == "wavelet"
        assert found["compute"]["counted"]["macs"] > 0
        assert "tiny-wavelet" in page(found)

    def test_a_model_without_qualities_has_none(self, sigma_model: Model, short: None) -> None:
        from sunzip.cli.study import _studied

        found = study(mission(side=128), model=sigma_model, frames=2)
        assert found["model"]["quality"] is None
        assert found["ways"]["model"]["title"] == "sunzip, tiny-sigma-vae"
        assert [point["quality"] for point in found["measured"]["curve"]] == [None]
        assert "quality" not in page(found).partition("<p class=note>sunzip")[2]
        assert next(_studied("a.html", found)).endswith("with tiny-sigma-vae")

    def test_frames_come_from_anywhere(self, tiny_model: Model, short: None) -> None:
        source = "synthetic:frames=3,size=64,start=2012-01-01"
        found = study(mission(), model=tiny_model, sources=[source], frames=2, size=32)
        (period,) = found["measured"]["periods"]
        assert (period["name"], period["frames"]) == (source, 2)
        with pytest.raises(InputError, match="cannot be averaged"):
            study(mission(), model=tiny_model, sources=[source], frames=2, size=48)
        with pytest.raises(InputError, match="one is named twice"):
            study(mission(), model=tiny_model, sources=[source] * 2, frames=2, size=32)

    @pytest.mark.parametrize(
        ("active", "known"), [(0.0, ["quiet Sun"]), (0.5, ["quiet Sun", "active Sun"]), (1.0, ["active Sun"])]
    )
    def test_a_sun_that_the_mission_never_sees_is_not_measured(self, active: float, known: list[str]) -> None:
        found = measure.periods(mission(active=active), [], 2, 32, hmi=None, anon=False)
        assert [p.name for p in found] == known
        assert sum(p.share for p in found) == 1

    def test_frames_that_lack_an_image_are_left_out(self, tmp_path: Path) -> None:
        cube = open_series("synthetic:frames=3,size=32", align=Alignment(channels=("171A", "Bz"))).read(0, 3)
        cube.data[1, 0], cube.valid[1, 0] = np.nan, False
        cube.headers[1][0], cube.t_obs[1, 0] = {}, np.datetime64("NaT", "ms")
        with open_sink(tmp_path / "sun.h5", "hdf5", channels=cube.channels, shape=(32, 32)) as sink:
            sink.write(cube)
        (period,) = measure.periods(mission(), [str(tmp_path / "sun.h5")], 3, 32, hmi=None, anon=False)
        assert (period.count, period.source) == (2, "2 of 2 frames")
        # A missing image would be black, and its bytes far too few.
        assert all(np.isfinite(period.frame(n)).all() for n in range(2))

    def test_frames_without_measurements_are_left_out(self, tmp_path: Path) -> None:
        cube = open_series("synthetic:frames=6,size=32", align=Alignment(channels=("171A", "Bz"))).read(0, 6)
        bad = np.arange(6) % 2 == 0
        cube.data[bad, 0] = np.nan  # which the file calls images all the same
        path = str(tmp_path / "sun.h5")
        with open_sink(path, "hdf5", channels=cube.channels, shape=(32, 32)) as sink:
            sink.write(cube)
        (period,) = measure.periods(mission(), [path], 6, 32, hmi=None, anon=False)
        assert (period.count, period.source) == (3, "3 of 6 frames")
        for n, t in enumerate(np.flatnonzero(~bad)):
            assert np.array_equal(period.frame(n), cube.data[t])
        cube.data[-1, 0] = np.nan
        with open_sink(tmp_path / "none.h5", "hdf5", channels=cube.channels, shape=(32, 32)) as sink:
            sink.write(cube)
        with pytest.raises(InputError, match=r"each of the 2 frames .* without any measurement"):
            measure.periods(mission(), [str(tmp_path / "none.h5")], 2, 32, hmi=None, anon=False)


@pytest.fixture
def run(sunzip: Any) -> Any:
    return partial(sunzip, "study")


class TestCommand:
    def test_writes_page_and_json(self, run: Any, tiny_model: Model, short: None, tmp_path: Path) -> None:
        from sunzip.weights import write

        write(tiny_model, tmp_path / "tiny")
        (tmp_path / "m.yaml").write_text(GOOD)
        args = ("onboard", tmp_path / "m.yaml", "--model", tmp_path / "tiny", "--frames", 2, "--size", 32)
        shown = run(*args, "--out", tmp_path / "a.html").output
        assert "CCSDS 121" in shown
        kept = json.loads((tmp_path / "a.json").read_text())
        assert kept["model"]["name"] == "tiny"
        assert (tmp_path / "a.html").read_text().endswith("</html>\n")
        assert "exists" in run(*args, "--out", tmp_path / "a.html", code=1).stderr
        run(*args, "--out", tmp_path / "a.html", "--force")

    def test_refuses_what_cannot_be(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "m.yaml").write_text(GOOD.replace("1min", "often"))
        assert "cadence" in run("onboard", tmp_path / "m.yaml", "--out", tmp_path / "a.html", code=1).stderr
        run("onboard", "--out", tmp_path / "a.html", code=2)
        both = run("onboard", tmp_path / "m.yaml", "--preset", "sdo", "--out", tmp_path / "a.html", code=2)
        assert "either a mission file or a --preset" in both.stderr
        assert "*.html" in run("onboard", "--preset", "sdo", "--out", tmp_path / "a.pdf", code=1).stderr
        for name, text, says in (
            ("a.html", "mine", "a.html: is no report"),
            ("a.html", "<!doctype html><title>mine</title>", "a.html: is no report"),
            ("b.json", '{"mine": 1}', "b.json: is no JSON of a report"),
        ):
            (tmp_path / name).write_text(text)
            out = (tmp_path / name).with_suffix(".html")
            assert says in run("onboard", "--preset", "sdo", "--out", out, "--force", code=1).stderr
            assert (tmp_path / name).read_text() == text
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.json", "m.yaml"]
