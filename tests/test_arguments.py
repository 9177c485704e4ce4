"""Arguments of the wrong kind: one line that names the argument, before anything is written."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sunzip
from sunzip import api
from sunzip.arguments import positive, whole
from sunzip.codec import Codec
from sunzip.errors import DamagedError, InputError
from sunzip.sources.series import Series
from sunzip.weights import Model

NAN = float("nan")
NOT_WHOLE = ["7", b"7", True, np.True_, 7.0, 7.5, np.float32(7), NAN, 2j, [7], np.array([7, 8]), "", "100kB"]
NOT_POSITIVE = ["7", b"7", True, NAN, np.float32(NAN), 0, -1.5, float("inf"), 10**400, 2j, [7], "x"]
WHOLE = [7, np.int64(7), np.uint8(7), np.int16(7)]


def told(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 200
    return message


@pytest.fixture(scope="module")
def series() -> Series:
    return api.open_series("synthetic:frames=3,size=32")


@pytest.fixture(scope="module")
def lat(series: Series, tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arguments") / "sun.lat"
    sunzip.compress(series, path, model=tiny_model, quality=7)
    return path


@pytest.mark.parametrize("value", WHOLE)
def test_whole_numbers_of_any_kind_are_ints(value: Any) -> None:
    assert type(whole(value, "n", 7, 7)) is int
    assert positive(value, "n") == 7.0


@pytest.mark.parametrize("value", [*NOT_WHOLE, None, 6, -1, 10**30, np.int64(8)])
def test_what_is_no_whole_number_is_told(value: Any) -> None:
    with pytest.raises(InputError, match=r"^n must be a whole number from 7 to 7, not ") as error:
        whole(value, "n", 7, 7)
    told(error)


@pytest.mark.parametrize("value", [*NOT_POSITIVE, None])
def test_what_is_no_number_above_0_is_told(value: Any) -> None:
    with pytest.raises(InputError, match=r"^n must be a number above 0, not ") as error:
        positive(value, "n")
    told(error)


@pytest.mark.parametrize("value", WHOLE)
def test_any_integer_compresses_to_the_same_bytes(
    series: Series, tiny_model: Model, tmp_path: Path, value: Any
) -> None:
    for name, seven in (("a", 7), ("b", value)):
        sunzip.compress(series, tmp_path / name, model=tiny_model, quality=seven, block=seven)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    big = np.int64(10**9)
    report = sunzip.compress(series, tmp_path / "c", model=tiny_model, target_bytes=big, dry_run=True)
    json.dumps(report.as_dict())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("quality", [*NOT_WHOLE, -1, 101], "quality must be a whole number from 0 to 100, not "),
        (
            "target_bytes",
            [*NOT_WHOLE, -1, 0],
            r"target_bytes \(--target-bytes\) must be a whole number from 1",
        ),
        ("target_ratio", NOT_POSITIVE, r"target_ratio \(--target-ratio\) must be a number above 0, not "),
        (
            "block",
            [*NOT_WHOLE, None, 0, 121],
            r"block \(--block\), if not 'auto', must be a whole number from 1",
        ),
        ("workers", [*NOT_WHOLE, 0, -1], r"workers \(--workers\) must be a whole number from 1 up, not "),
        ("client", [5, [1]], "client must be a distributed.Client or its address, not a "),
    ],
)
def test_compress_refuses_wrong_kinds_before_anything_is_written(
    series: Series, tiny_model: Model, tmp_path: Path, name: str, values: list[Any], words: str
) -> None:
    for value in values:
        with pytest.raises(InputError, match=words) as error:
            sunzip.compress(series, tmp_path / "a.lat", model=tiny_model, **{name: value})
        told(error)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("src", [None, 5, NAN, True, b"x", [], [None], ["synthetic:", 5]])
def test_sources_that_are_none_are_refused(src: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no source named; it is a path, a URL"):
        sunzip.compress(src, tmp_path / "a.lat")


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_an_alignment_is_checked_when_it_is_made(tmp_path: Path) -> None:
    for value in [*NOT_WHOLE, 0]:
        with pytest.raises(InputError, match=r"size \(--size\) must be a whole number from 1 up"):
            sunzip.Alignment(size=value)
    for name in ("start", "stop"):
        for value in (7, 7.5, NAN, True, [1], b"2014", np.int64(7), np.datetime64("NaT", "ms")):
            with pytest.raises(InputError, match=f"{name} .* is not a date"):
                sunzip.Alignment(**{name: value})
    for name in ("cadence", "tolerance", "every"):
        for value in (7, 7.5, NAN, True, [1], b"7s", np.datetime64("2014"), np.timedelta64("NaT", "ms")):
            with pytest.raises(InputError, match=f"{name} .* is not a duration"):
                sunzip.Alignment(**{name: value})
    with pytest.raises(InputError, match="align must be an Alignment, not dict"):
        sunzip.compress("synthetic:frames=2,size=32", tmp_path / "a.lat", align={"size": 32})  # type: ignore[arg-type]


def test_dates_and_spans_of_any_kind_align(tiny_model: Model, tmp_path: Path) -> None:
    archives = []
    for n, (start, every, size) in enumerate(
        [
            ("2012-03-01T00:24:00.000", "1440.000s", 32),
            (np.datetime64("2012-03-01T00:24"), np.timedelta64(24, "m"), np.int64(32)),
            (datetime(2012, 3, 1, 0, 24), timedelta(minutes=24), np.uint8(32)),
        ]
    ):
        align = sunzip.Alignment(start=start, every=every, size=size)
        path = tmp_path / f"{n}.lat"
        sunzip.compress("synthetic:frames=6,size=64", path, model=tiny_model, align=align)
        sunzip.evaluate("synthetic:frames=6,size=64", path, model=tiny_model)
        archives.append(path.read_bytes())
    assert archives[0] == archives[1] == archives[2]


def test_an_archive_s_alignment_of_a_wrong_kind_is_damage(lat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sunzip.open(lat) as sun:
        monkeypatch.setitem(sun.archive.coding, "align", {"size": "x"})
        with pytest.raises(DamagedError, match="its alignment settings are not known"):
            api.source_of(sun, "synthetic:frames=3,size=32")


@pytest.mark.parametrize("value", [*NOT_WHOLE, -1, 101])
def test_codecs_refuse_a_quality_of_a_wrong_kind(tiny_model: Model, value: Any) -> None:
    codec = Codec(tiny_model)
    for make in (lambda: Codec(tiny_model, value), lambda: codec.at(value)):
        with pytest.raises(InputError, match=r"^quality must be a whole number from 0 to 100, not "):
            make()
    for module, name in (("sunzip.zarr", "SunzipCodec"), ("sunzip.numcodecs", "Sunzip")):
        kind = getattr(pytest.importorskip(module), name)
        with pytest.raises(InputError, match=r"^codec sunzip: quality must be a whole number from 0 to 100"):
            kind(tiny_model.sha256, quality=value)


@pytest.mark.parametrize("value", WHOLE)
def test_codecs_take_a_quality_of_any_integer(tiny_model: Model, value: Any) -> None:
    assert type(Codec(tiny_model, value).quality) is int
    for module, name in (("sunzip.zarr", "SunzipCodec"), ("sunzip.numcodecs", "Sunzip")):
        codec = getattr(pytest.importorskip(module), name)(tiny_model.sha256, quality=value)
        assert json.loads(json.dumps(codec.configuration()))["quality"] == 7


def test_blocks_of_a_codec_are_whole(tiny_model: Model) -> None:
    x = np.full((2, 1, 32, 32), 100, np.float32)
    codec = Codec(tiny_model)
    assert codec.encode(x, "171A", frames_per_block=np.int64(2)) == codec.encode(
        x, "171A", frames_per_block=2
    )
    for value in [*NOT_WHOLE, None, 0]:
        with pytest.raises(InputError, match="frames_per_block must be a whole number"):
            codec.encode(x, "171A", frames_per_block=value)


def test_features_refuse_wrong_kinds_before_anything_is_written(lat: Path, tmp_path: Path) -> None:
    for name in ("pool", "pca"):
        for value in [*NOT_WHOLE, 0, -1]:
            with pytest.raises(InputError, match=rf"{name} \(--{name}\) must be a whole number from 1 up"):
                sunzip.export_features(lat, tmp_path / "a.h5", **{name: value})
    for value in (7, NAN, [1], b"2014"):
        with pytest.raises(InputError, match=r"fit_until .* is not a date"):
            sunzip.export_features(lat, tmp_path / "a.h5", pca=1, fit_until=value)  # type: ignore[arg-type]
    for name in ("start", "stop"):
        for value in (7.5, NAN, [1], b"2014"):
            for job in (sunzip.export_features, sunzip.decompress):
                with pytest.raises(InputError, match="is not a date"):
                    job(lat, tmp_path / "a.h5", **{name: value})
    assert list(tmp_path.iterdir()) == []
    report = sunzip.export_features(lat, tmp_path / "a.h5", pool=np.int64(1))
    json.dumps(report.as_dict())


def test_datasets_refuse_wrong_kinds(lat: Path) -> None:
    torch = pytest.importorskip("sunzip.torch")
    for value in ("7", None, [1], 2j):
        with pytest.raises(InputError, match="fill must be a number"):
            torch.LatDataset(lat, fill=value)
    for value in (None, 7.5, [1]):
        with pytest.raises(InputError, match=r"device .* cannot be used"):
            torch.LatDataset(lat, device=value)
