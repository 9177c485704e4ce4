"""Maps and NDCubes of archives: where the Sun is, when it was seen, in which units, without a warning."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sunzip
from sunzip import api
from sunzip.cube import Cube, Header, Scale
from sunzip.errors import InputError
from sunzip.maps import image_map, ndcube, sequence
from sunzip.sinks import open_sink
from sunzip.sinks.fits import header_of
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.weights import Model

pytest.importorskip("sunpy.map")
u = pytest.importorskip("astropy.units")

CHANNELS = ("94A", "171A", "1600A", "Bx", "Bz")
SIZE = 64
KEYWORDS: Header = {
    "EXPTIME": 2.9,
    "RSUN_OBS": 975.3,
    "DSUN_OBS": 1.4715e11,
    "HGLT_OBS": -3.1,
    "HGLN_OBS": 0.01,
    "QUALITY": 0,
    "ORIGIN": "SDO/JSOC-SDP",
    "COMMENT": "two\nlines",
    "T_OBS": "2014-01-01T00:00:08.07Z",
    "LONG": "it's " * 60,
}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What one package tells another reaches no user: matplotlib 3.9 uses names that pyparsing deprecates.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib|pyparsing")
        yield


def cube_of(name: str, frames: int = 5, *, header: Header | None = None, scale: Scale = Scale.MEAN) -> Cube:
    rng = np.random.default_rng(1)
    time = np.array("2014-01-01T00:00", "M8[ms]") + np.array([0, 12, 24, 90, 102])[:frames] * np.timedelta64(
        1, "m"
    )
    t_obs = (time + np.timedelta64(8070, "ms"))[:, None]
    data = rng.uniform(0, 200, (frames, 1, SIZE, SIZE)).astype(np.float32)
    data[0, 0, 3, 5] = np.nan
    headers = [[header or {}] for _ in range(frames)]
    return Cube(data, (name,), time, t_obs, np.ones((frames, 1), bool), headers, scale)


@pytest.fixture(scope="module")
def lat(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "sun.lat"
    source = Synthetic(frames=4, size=SIZE, start="2014-01-01", channels=("171A", "Bz"))
    real = source.read
    source.read = lambda c, r: real(c, r) * (np.nan if (c, r) == ("171A", 2) else 1)  # type: ignore[method-assign]
    api.compress(join([source]), path, model=tiny_model, embed_model=True)
    return path


@pytest.mark.parametrize("keywords", [KEYWORDS, {}], ids=["keywords", "none"])
@pytest.mark.parametrize("name", CHANNELS)
def test_maps_know_where_and_when(name: str, keywords: Header) -> None:
    cube = cube_of(name, header=keywords)
    found = image_map(cube, 1)
    aia = name.endswith("A")
    assert type(found).__name__ == ("AIAMap" if aia else "HMIMap")
    assert found.unit == (u.DN / u.s if aia else u.G)
    assert found.wavelength == (int(name[:-1]) if aia else 6173) * u.AA
    assert abs((found.date - found.date.__class__("2014-01-01T00:12:08.070")).to_value("s")) < 0.51
    centre = found.pixel_to_world(*[(SIZE - 1) / 2 * u.pix] * 2)
    assert abs(centre.Tx) < 1e-6 * u.arcsec
    assert abs(centre.Ty) < 1e-6 * u.arcsec
    assert found.rsun_obs.to_value("arcsec") == pytest.approx(975.3 if keywords else 975.9, abs=0.1)
    # The limb is where SDOML puts it, 976″ at 4.8″ a pixel of 512.
    limb = found.pixel_to_world((SIZE - 1) / 2 * u.pix + 976 / 38.4 * u.pix, (SIZE - 1) / 2 * u.pix)
    assert limb.Tx.to_value("arcsec") == pytest.approx(found.rsun_obs.to_value("arcsec"), rel=1e-5)
    observer = found.observer_coordinate
    assert observer.lat.to_value("deg") == pytest.approx(-3.1 if keywords else -3.0, abs=0.1)
    assert observer.radius.to_value("m") == pytest.approx(1.4715e11, rel=1e-3)
    assert found.meta["sz_chan"] == name
    assert ("sz_assum" in found.meta) != bool(keywords)
    if aia:
        assert found.exposure_time == 1 * u.s
        assert found.meta.get("sz_expt") == keywords.get("EXPTIME")
    np.testing.assert_array_equal(found.data, cube.data[1, 0])


@pytest.mark.parametrize("name", ["171A", "Bz"])
def test_maps_can_be_worked_with(name: str) -> None:
    import matplotlib as mpl
    from astropy.coordinates import SkyCoord

    mpl.use("Agg")
    from matplotlib import pyplot

    found = image_map(cube_of(name, header=KEYWORDS))
    corner = SkyCoord(-500 * u.arcsec, -500 * u.arcsec, frame=found.coordinate_frame)
    part = found.submap(corner, width=1000 * u.arcsec, height=1000 * u.arcsec)
    assert part.data.shape == (28, 28)  # 1000 / 38.4, and what both edges touch
    drawn = found.plot()
    found.draw_limb()
    found.draw_grid()
    pyplot.gcf().canvas.draw()
    if name == "171A":
        assert drawn.get_cmap().name == "sdoaia171"
    else:
        assert drawn.norm.vmin == -drawn.norm.vmax < 0
    pyplot.close("all")
    pytest.importorskip("reproject")
    turned = found.reproject_to(image_map(cube_of(name, header=KEYWORDS), 4).wcs)
    assert np.isfinite(turned.data[SIZE // 2, SIZE // 2])


def test_sums_become_means() -> None:
    means = image_map(cube_of("171A"))
    sums = image_map(cube_of("171A").to_scale(Scale.SUM))
    np.testing.assert_array_equal(means.data, sums.data)


def test_a_map_is_the_fits_file_of_the_same_image(tmp_path: Path) -> None:
    import sunpy.map
    from astropy.io import fits

    for name in CHANNELS:
        cube = cube_of(name, 1, header=KEYWORDS)
        with open_sink(
            tmp_path / name, "fits", channels=(name,), shape=(SIZE, SIZE), scale=Scale.MEAN
        ) as sink:
            sink.write(cube)
        (path,) = (tmp_path / name).iterdir()
        with fits.open(path) as hdus:
            hdus.verify("exception")
            for card in hdus[0].header.cards:
                card.verify("exception")
                assert all(32 <= ord(c) < 127 for c in str(card))
        from_file, made = sunpy.map.Map(path), image_map(cube)
        np.testing.assert_array_equal(from_file.data, made.data)
        same = set(made.meta) & set(from_file.meta) - {"waveunit"}  # sunpy respells it in files
        assert {k: from_file.meta[k] for k in same} == {k: made.meta[k] for k in same}
        assert {"ctype1", "bunit", "sz_hdr", "date-obs", "dsun_obs"} <= same
        assert from_file.wcs.to_header(relax=True) == made.wcs.to_header(relax=True)


def test_the_header_says_what_is_assumed() -> None:
    from sunzip.channels import channel

    time = np.datetime64("2014-06-01", "ms")
    assert "SZ_ASSUM" not in header_of(channel("171A"), time, SIZE, KEYWORDS)
    partly = header_of(channel("171A"), time, SIZE, {"DSUN_OBS": 1.5e11, "CRLT_OBS": 2.5})
    assert partly["SZ_ASSUM"] == "HGLN_OBS"
    assert (partly["HGLT_OBS"], partly["DSUN_OBS"]) == (2.5, 1.5e11)
    # A disk of 976″ is not seen from the Earth in June: sunpy draws the limb by the distance.
    near = header_of(channel("171A"), time, SIZE, {"RSUN_OBS": 976.0})
    assert math.degrees(near["RSUN_REF"] / near["DSUN_OBS"]) * 3600 == pytest.approx(976)
    # That is the original's word, not the Earth's distance.
    assert near["SZ_ASSUM"] == "HGLN_OBS HGLT_OBS"


def test_the_observer_of_sdo_is_the_one_that_its_headers_tell() -> None:
    """SDO gives Carrington's coordinates of it, which sunpy asks for only where there is no HGLN_OBS."""
    import sunpy.map
    from sunpy.coordinates.sun import L0

    from sunzip.channels import channel

    time = np.datetime64("2014-06-01", "ms")
    told = {"CRLN_OBS": L0("2014-06-01").deg + 0.015, "CRLT_OBS": -0.6}
    header = header_of(channel("171A"), time, SIZE, {"DSUN_OBS": 1.5e11, "RSUN_OBS": 957.0, **told})
    assert "SZ_ASSUM" not in header
    seen = sunpy.map.Map(np.zeros((SIZE, SIZE)), header).observer_coordinate
    assert seen.heliographic_stonyhurst.lon.deg == pytest.approx(0.015, abs=1e-3)
    assert seen.heliographic_stonyhurst.lat.deg == pytest.approx(-0.6)


def test_archives_give_maps(lat: Path) -> None:
    with sunzip.open(lat) as sun:
        found = sun.map("2014-01-01T00:11", "171A")
        assert type(found).__name__ == "AIAMap"
        np.testing.assert_array_equal(found.data, sun[1, "171A"])
        assert str(found.date)[:16] == "2014-01-01T00:12"
        assert type(sun.map(-1, "bz")).__name__ == "HMIMap"
        with pytest.raises(InputError, match="no image of 171A at 2014-01-01T00:24"):
            sun.map(2, "171A")
        with pytest.raises(InputError, match="has no 94A"):
            sun.map(0, "94A")
        with pytest.raises(IndexError):
            sun.map(9, "171A")


def test_slices_give_sequences_of_what_is_there(lat: Path) -> None:
    with sunzip.open(lat) as sun:
        maps = sun.map(slice("2014-01-01T00:12", None), "171A")
        assert type(maps).__name__ == "MapSequence"
        assert [str(m.date)[11:16] for m in maps] == ["00:12", "00:36"]
        assert len(sun.map(slice(None, None, 2), "Bz").maps) == 2
        with pytest.raises(InputError, match="no image of 171A among these 1 frames"):
            sun.map(slice(2, 3), "171A")


def test_cubes_have_time_and_sky(lat: Path) -> None:
    pytest.importorskip("ndcube")
    with sunzip.open(lat) as sun:
        found = sun.ndcube(slice(None), "171A")
        assert found.data.shape == (4, SIZE, SIZE)
        assert found.unit == u.DN / u.s
        assert found.mask[2].all()
        assert not found.mask[[0, 1, 3]].any()
        (times,) = found.axis_world_coords("time")
        assert times.isot.tolist() == [f"2014-01-01T00:{m:02d}:00.000" for m in (0, 12, 24, 36)]
        sky = found[0].axis_world_coords("custom:pos.helioprojective.lon")[0]
        x, y = sun.archive.axis("x"), sun.archive.axis("y")
        np.testing.assert_allclose(sky.Tx.to_value("arcsec"), np.broadcast_to(x, sky.shape), atol=0.05)
        np.testing.assert_allclose(
            sky.Ty.to_value("arcsec"), np.broadcast_to(y[:, None], sky.shape), atol=0.05
        )
        one = sun.ndcube(slice(1, 2), "Bz")
        assert one.data.shape == (1, SIZE, SIZE)
        assert one.unit == u.G
        with pytest.raises(InputError, match="no frames"):
            sun.ndcube(slice("2015", None), "Bz")


def test_cubes_keep_gaps_in_time() -> None:
    pytest.importorskip("ndcube")
    from astropy.time import Time

    cube = cube_of("193A", header=KEYWORDS)
    found = ndcube(cube)
    (times,) = found.axis_world_coords("time")
    assert (times.datetime64.astype("M8[ms]") == cube.time).all()
    part = found.crop((None, Time("2014-01-01T00:24")), (None, Time("2014-01-01T01:30")))
    assert part.data.shape == (2, SIZE, SIZE)
    np.testing.assert_array_equal(part.data, cube.data[2:4, 0])
    assert found.mask.sum() == 1
    centre, when = found.wcs.pixel_to_world((SIZE - 1) / 2, (SIZE - 1) / 2, 3)
    if isinstance(when, type(centre)):
        centre, when = when, centre
    assert abs(centre.Tx.to_value("arcsec")) < 1e-6
    assert when.isot == "2014-01-01T01:30:00.000"
    assert centre.observer.lat.to_value("deg") == pytest.approx(-3.1)
    # Nominal geometry holds together: the disk has the size that the Sun has at that distance.
    radius = np.degrees(np.arcsin(696e6 / centre.observer.radius.to_value("m"))) * 3600
    assert radius == pytest.approx(976)
    assert found.meta["headers"][0]["EXPTIME"] == 2.9
    assert "nominal" in found.meta["geometry"]


def test_only_square_images_have_a_geometry() -> None:
    cube = cube_of("171A", 1)
    oblong = Cube(
        np.ascontiguousarray(cube.data[:, :, :32]),
        *(getattr(cube, n) for n in ("channels", "time", "t_obs", "valid", "headers", "scale")),
    )
    for make in (image_map, sequence, ndcube):
        with pytest.raises(InputError, match="32×64"):
            make(oblong)


@pytest.mark.parametrize(("module", "make"), [("sunpy.map", image_map), ("ndcube", ndcube)])
def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, make: object) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install '\.\[sunpy\]'"):
        make(cube_of("171A"))
