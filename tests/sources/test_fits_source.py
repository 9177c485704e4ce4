"""FITS images come out in SDOML's geometry and units, and whatever is no image is told in one line."""

import errno
import gzip
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from fsspec.implementations.local import LocalFileOpener

import sunzip.sources.fits as fits_module
from sunzip.cube import Scale
from sunzip.errors import InputError
from sunzip.sources import open_source
from sunzip.sources.base import watching
from sunzip.sources.fits import Fits, _plain
from sunzip.sources.series import join

REAL = Path(__file__).parents[3] / "shared/data/real"
RADIUS = 976 / 4.8

AIA = {
    "TELESCOP": "SDO/AIA",
    "INSTRUME": "AIA_3",
    "WAVELNTH": 171,
    "T_OBS": "2024-10-04T16:17:58.354",
    "EXPTIME": 2.0,
    "RSUN_OBS": 959.65,
    "CDELT1": 2.4,
    "CDELT2": 2.4,
    "CRPIX1": 512.5,
    "CRPIX2": 512.5,
    "CROTA2": 0.0,
    "QUALITY": 1073741824,
}
HMI = AIA | {
    "TELESCOP": "SDO/HMI",
    "INSTRUME": "HMI_SIDE1",
    "CONTENT": "MAGNETOGRAM",
    "WAVELNTH": 6173,
    "T_OBS": "2010.05.01_00:12:04_TAI",
    "BUNIT": "Gauss",
}
del HMI["EXPTIME"]
#: Of 64² in SDOML's geometry.
SMALL = {"CRPIX1": 32.5, "CRPIX2": 32.5, "CDELT1": 959.65 / RADIUS * 8, "CDELT2": 959.65 / RADIUS * 8}


def save(path, data, cards, *, compress=False, comments=()):
    header = fits.Header()
    for key, value in cards.items():
        header[key] = value
    for key, text in comments:
        header.add_comment(text) if key == "COMMENT" else header.add_history(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if compress:
            hdu = fits.CompImageHDU(data.astype(np.int32), header, compression_type="RICE_1")
            fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        else:
            fits.PrimaryHDU(data, header).writeto(path)
    return str(path)


def disk(n, radius, centre=None, rows=lambda y, x: np.full_like(y + x, 100.0)):
    """An n×n disk about (row, column), with soft pixels at its edge; 0 off it."""
    cy, cx = centre or ((n - 1) / 2, (n - 1) / 2)
    y, x = np.mgrid[:n, :n].astype(float) - np.array([cy, cx]).reshape(2, 1, 1)
    return rows(y / radius, x / radius) * np.clip(radius - np.hypot(y, x) + 0.5, 0, 1)


def measured_disk(image):
    """Centre (row, column) and radius of a uniform disk, from its moments."""
    weight = image / image.max()
    area = weight.sum()
    y, x = np.mgrid[: len(image), : len(image)]
    return (y * weight).sum() / area, (x * weight).sum() / area, np.sqrt(area / np.pi)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the real data are not beside the repository")
def test_real_files_give_the_pixels_of_the_store_made_from_them():
    zarr = pytest.importorskip("zarr")
    source = Fits(str(REAL / "fits"), degradation=REAL / "degradation")
    assert len(source.channels) == 8
    assert source.shape == (512, 512)
    assert not source.counts
    assert source.stored_bytes() == sum(p.stat().st_size for p in (REAL / "fits").iterdir())
    for name in source.channels:
        wanted = zarr.open_array(REAL / "sdomlv2_real.zarr/2024" / name, mode="r")[0]
        keywords = json.loads((REAL / "sdomlv2_real.zarr/2024" / name / ".zattrs").read_text())
        # Rounding in float32, no more: 3.2e-7 of the pixel where it is above a thousandth of the largest.
        np.testing.assert_allclose(source.read(name, 0), wanted, rtol=4e-7, atol=1e-7 * wanted.max())
        header = source.header(name, 0)
        for key in ("EXPTIME", "DEG_COR", "WAVELNTH", "CRPIX1", "CRPIX2", "R_SUN", "NAXIS1", "PIXLUNIT"):
            assert header[key] == keywords[key][0], key
        # The store's RSUN_OBS, and so its CDELT, is one nominal value for all eight files.
        assert header["CDELT1"] == pytest.approx(keywords["CDELT1"][0], rel=2e-5)
        assert str(source.times(name)[0]) == keywords["T_OBS"][0].removesuffix("Z")


@pytest.mark.parametrize(
    ("n", "cdelt", "rsun", "crpix"),
    [
        (1024, 2.4, 945.0, 512.5),
        (1024, 2.4, 975.0, 506.0),
        (2048, 1.2, 960.0, 1030.0),
        (512, 4.8, 950.0, 256.5),
    ],
)
@pytest.mark.parametrize("kind", ["AIA", "HMI"])
def test_the_disk_comes_to_the_middle_and_to_976_arcsec(tmp_path, n, cdelt, rsun, crpix, kind):
    cards = (AIA if kind == "AIA" else HMI) | {"CDELT1": cdelt, "CDELT2": cdelt, "RSUN_OBS": rsun}
    cards |= {"CRPIX1": crpix, "CRPIX2": crpix + 3}
    image = disk(n, rsun / cdelt, (crpix + 2, crpix - 1))
    if kind == "HMI":
        image[image < 100] = np.nan
    source = Fits(save(tmp_path / "a.fits", image.astype(np.float32), cards))
    out = source.read(source.channels[0], 0)
    assert out.shape == (512, 512)
    assert out.dtype == np.float32
    y, x, radius = measured_disk(out)
    assert y == pytest.approx(255.5, abs=0.05)
    assert x == pytest.approx(255.5, abs=0.05)
    # What is left out of the weights at the limb spreads the disk by up to a pixel of the file.
    assert radius == pytest.approx(RADIUS, abs=0.8)
    assert out[256, 256] == pytest.approx(50 if kind == "AIA" else 100, rel=1e-6)
    assert out[0, 0] == 0


COS, SIN = 2.4 * np.cos(0.5), 2.4 * np.sin(0.5)
DEGREES = {"CUNIT1": "deg", "CUNIT2": "deg"}


@pytest.mark.parametrize(
    "cards",
    [
        {"CDELT1": -2.4},
        {"CDELT1": -2.4, "CDELT2": -2.4, "CROTA2": 30.0},
        {"CDELT2": -2.4, "PC1_1": -1.0},
        {"CDELT1": 0.04, "CDELT2": 0.04, "CUNIT1": "arcmin", "CUNIT2": "arcmin", "CRVAL1": 1.5},
        DEGREES | {"CDELT1": 2.4 / 3600, "CDELT2": 2.4 / 3600, "CRVAL1": 359.99, "CRVAL2": -0.02},
        {"CD1_1": COS, "CD1_2": -SIN, "CD2_1": SIN, "CD2_2": COS, "CDELT1": None, "CDELT2": None},
        {"CD1_1": COS, "CD1_2": -SIN, "CD2_1": SIN, "CD2_2": COS},
        DEGREES | {"CD1_1": -2.4 / 3600, "CD2_2": 2.4 / 3600, "CDELT1": None, "CDELT2": None},
        {"PC1_1": COS, "PC1_2": -SIN, "PC2_1": SIN, "PC2_2": COS, "CDELT1": None, "CDELT2": None},
        {"RSUN_OBS": None, "DSUN_OBS": 696e6 / np.sin(np.radians(959.65 / 3600))},
        {"RSUN_OBS": None, "DSUN_OBS": 695.7e6 / np.sin(np.radians(959.65 / 3600)), "RSUN_REF": 695.7e6},
        {"RSUN_OBS": None, "R_SUN": 959.65 / 2.4},
    ],
)
def test_every_way_to_write_coordinates(tmp_path, cards):
    """As FITS WCS has them and astropy reads them: what is at some arcsec comes out there."""

    def sun(x, y):
        spots = np.exp(-np.hypot(x - 300, y - 450) / 80) + np.exp(-np.hypot(x + 500, y + 100) / 120)
        return (200 + x / 12 + y / 20 + 300 * spots) * (np.hypot(x, y) < 959.65)

    wcs = {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN", "CUNIT1": "arcsec", "CUNIT2": "arcsec"}
    header = {k: v for k, v in (HMI | wcs | {"CROTA2": None} | cards).items() if v is not None}
    column, row = np.meshgrid(np.arange(1024), np.arange(1024))
    x, y = (
        np.remainder(v * 3600 + 648_000, 1_296_000) - 648_000
        for v in WCS(fits.Header(header)).wcs_pix2world(column, row, 0)
    )
    source = Fits(save(tmp_path / "a.fits", sun(x, y).astype(np.float32), header))
    assert not source.counts
    scale = 959.65 / RADIUS
    x, y = np.meshgrid(*[(np.arange(512) - 255.5) * scale] * 2)
    inside = np.hypot(x, y) < 930
    image = source.read("Bz", 0)
    # A quarter of a pixel off makes 20.
    np.testing.assert_allclose(image[inside], sun(x, y)[inside], atol=8)
    assert np.abs(image - sun(x, y))[inside].mean() < 0.05
    now = {k: v for k, v in source.header("Bz", 0).items() if k[:5] in ("CUNIT", "CDELT", "CRVAL")}
    assert now.pop("CDELT1") == now.pop("CDELT2") == pytest.approx(scale)
    assert now == {"CUNIT1": "arcsec", "CUNIT2": "arcsec", "CRVAL1": 0, "CRVAL2": 0}


def test_what_has_no_kind_or_unit_of_coordinates_is_in_arcsec(tmp_path):
    cards = {"CTYPE1": "", "CTYPE2": fits.card.UNDEFINED, "CUNIT1": "", "CUNIT2": fits.card.UNDEFINED}
    image = disk(1024, 959.65 / 2.4).astype(np.float32)
    source = Fits(save(tmp_path / "a.fits", image, HMI | cards))
    assert measured_disk(source.read("Bz", 0)) == pytest.approx((255.5, 255.5, RADIUS), abs=0.5)


def test_beyond_an_image_there_is_no_measurement(tmp_path):
    image = np.full((1024, 1024), 8.0, np.float32)
    image[:, -1] = 100
    out = Fits(save(tmp_path / "a.fits", image, AIA | {"CRPIX1": 600.0})).read("171A", 0)
    assert np.isnan(out[:, 475:]).all()
    assert np.isfinite(out[:, :465]).all()
    cutout = {"CDELT1": 0.6, "CDELT2": 0.6}
    one_line(save(tmp_path / "cutout.fits", image, AIA | cutout), "does not show the whole disk")
    one_line(save(tmp_path / "away.fits", image, AIA | {"CRPIX2": 700.0}), "does not show the whole disk")
    assert Fits(str(tmp_path)).counts["part of the Sun"] == 2


@pytest.mark.parametrize("turn", [0.0, 180.0, 179.93, 30.0])
def test_an_image_is_turned_to_north_up(tmp_path, turn):
    """CROTA2 by FITS WCS: solar x = cos·dx − sin·dy. A gradient to the north stays one."""
    n, angle = 1024, np.radians(turn)

    def north(y, x):
        return 1000 * (np.sin(angle) * x + np.cos(angle) * y)

    image = disk(n, 960 / 2.4, rows=north).astype(np.float32)
    out = Fits(save(tmp_path / "a.fits", image, HMI | {"CROTA2": turn, "RSUN_OBS": 960.0})).read("Bz", 0)
    y, x = np.mgrid[:512, :512] - 255.5
    inside = np.hypot(y, x) < 0.95 * RADIUS
    np.testing.assert_allclose(out[inside], (1000 * y / RADIUS)[inside], atol=0.1)


def test_hmi_off_the_disk_is_zero_and_holes_on_it_are_nan(tmp_path):
    n = 1024
    image = disk(n, 960 / 2.4)
    image[image < 100] = np.nan
    image[500:520, 600:620] = np.nan
    source = Fits(save(tmp_path / "a.fits", image.astype(np.float32), HMI | {"RSUN_OBS": 960.0}))
    out = source.read("Bz", 0)
    assert source.header("Bz", 0)["PIXLUNIT"] == "Gauss"
    y, x = np.mgrid[:512, :512] - 255.5
    assert (out[np.hypot(y, x) > RADIUS + 3] == 0).all()
    assert 40 < np.isnan(out).sum() < 130
    assert np.isnan(out[255, 304])
    np.testing.assert_allclose(out[(out != 0) & np.isfinite(out)], 100, rtol=1e-5)


def test_aia_leaves_out_what_is_not_above_zero_and_keeps_what_is_missing(tmp_path):
    image = np.full((1024, 1024), 8.0, np.float32)
    image[300:400, 300] = -5  # one column of the detector's noise
    image[600:604, 600:604] = np.nan
    image[:100, :100] = -1
    out = Fits(save(tmp_path / "a.fits", image, AIA)).read("171A", 0)
    assert (out[:45, :45] == 0).all()
    assert np.nanmax(out) == pytest.approx(4.0)
    assert 1 <= np.isnan(out).sum() <= 16
    assert np.isnan(out[301, 301])
    np.testing.assert_allclose(out[150:195, 135:160].max(axis=1), 4.0, rtol=1e-6)


def test_degradation_from_the_header_or_else_a_table(tmp_path):
    image = disk(1024, 400).astype(np.float32)
    table = tmp_path / "tables"
    table.mkdir()
    (table / "degrad_171.csv").write_text(
        '"2010-05-01T12:00:00.000",0.9\n"2024-10-03T12:00:00.000",0.5\n"2024-10-06T12:00:00.000",0.2\n'
    )
    own = Fits(save(tmp_path / "own.fits", image, AIA | {"DEG_COR": 0.8}), degradation=table)
    assert own.read("171A", 0)[256, 256] == pytest.approx(100 / 2 / 0.8)
    assert own.header("171A", 0)["DEG_COR"] == 0.8
    bare = save(tmp_path / "bare.fits", image, AIA)
    tabled = Fits(bare, degradation=table)
    assert tabled.read("171A", 0)[256, 256] == pytest.approx(100 / 2 / 0.5)
    assert tabled.header("171A", 0)["DEG_COR"] == 0.5
    assert not tabled.counts
    neither = Fits(bare)
    assert neither.read("171A", 0)[256, 256] == pytest.approx(100 / 2)
    assert neither.counts == {"no degradation correction": 1}
    other = Fits(save(tmp_path / "b.fits", image, AIA | {"WAVELNTH": 193}), degradation=table)
    assert other.counts == {"no degradation correction": 1}
    (table / "degrad_171.csv").write_text("20100501,0.9\n20241003,0.6\n")
    assert Fits(bare, degradation=table).header("171A", 0)["DEG_COR"] == 0.6


def test_a_day_of_a_degradation_table_has_one_factor(tmp_path):
    file = save(tmp_path / "a.fits", disk(1024, 400), AIA)
    rows = "2010-05-01,0.9\n2010-05-02,0.8\n2010-05-01,0.9\n"
    (tmp_path / "degrad_171.csv").write_text(rows)
    Fits(file, degradation=tmp_path)
    (tmp_path / "degrad_171.csv").write_text(rows + "2010-05-02T12:00,0.7\n")
    with pytest.raises(InputError, match=r"degrad_171\.csv: has two factors of 2010-05-02, 0\.7 and 0\.8"):
        Fits(file, degradation=tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n", '"2010-05-01",-1\n', "2010-05-01\n", ",0.5\n", "today,0.5\n", "2010-05-01," + "9x" * 9999],
)
def test_a_table_that_is_none(tmp_path, text):
    (tmp_path / "degrad_171.csv").write_text(text)
    file = save(tmp_path / "a.fits", disk(1024, 400), AIA)
    with pytest.raises(InputError, match=r"degrad_171\.csv") as found:
        Fits(file, degradation=tmp_path)
    assert len(str(found.value)) < len(str(tmp_path)) + 200
    with pytest.raises(InputError, match="no degradation tables"):
        Fits(file, degradation=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("cards", "name", "value"),
    [
        ({"BUNIT": "DN/s", "R_SUN": RADIUS / 8}, "171A", 1),
        ({"PIXLUNIT": "DN/s", "R_SUN": RADIUS / 8}, "171A", 1),
        ({"PIXLUNIT": "DN/s", "R_SUN": RADIUS / 8, "CDELT1": 38.4, "CDELT2": 38.4}, "171A", 1),
        ({"SZ_CHAN": "By", "TELESCOP": "SDO/HMI"}, "By", 1),
    ],
)
def test_an_image_in_the_geometry_is_given_as_it_is(tmp_path, cards, name, value):
    image = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    image[3] = np.nan
    source = Fits(save(tmp_path / "a.fits", image, AIA | SMALL | cards))
    assert source.channels == (name,)
    assert source.shape == (64, 64)
    assert source.scale is Scale.MEAN
    assert source.read(name, 0).tobytes() == image.tobytes()
    assert source.header(name, 0)["EXPTIME"] == 2.0 * value


@pytest.mark.parametrize(
    ("cards", "size"),
    [
        ({"CROTA2": 30.0}, 512),
        ({"PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8}, 512),
        ({"CRVAL1": 240.0}, 512),
        ({"CRPIX1": 216.5}, 512),
        ({"CRPIX1": 56.5, "CRPIX2": 56.5}, 312),
        ({"CRPIX1": 156.5, "CRPIX2": 156.5}, 312),
    ],
)
def test_a_file_of_ours_that_was_moved_since_is_not_taken_as_it_is(tmp_path, cards, size):
    """As sunpy's rotate, shift_reference_coord and submap leave them."""
    image = disk(512, RADIUS).astype(np.float32)
    plain = AIA | {"BUNIT": "DN/s", "CRPIX1": 256.5, "CRPIX2": 256.5, "CDELT1": 959.65 / RADIUS}
    ours = plain | {"CDELT2": 959.65 / RADIUS, "SZ_CHAN": "171A", "SZ_HDR": '{"FSN": 7, "DEG_COR": 0.8}'}
    assert Fits(save(tmp_path / "a.fits", image, ours)).read("171A", 0).tobytes() == image.tobytes()
    file = save(tmp_path / "b.fits", image[-size:, -size:], ours | cards)
    if size != 512:
        one_line(file, "312×312 pixels")
        return
    source = Fits(file)
    assert (source.read("171A", 0) != image).any()
    assert source.header("171A", 0)["FSN"] == 7
    assert source.header("171A", 0)["DEG_COR"] == 0.8  # by which the pixels are divided already
    assert source.header("171A", 0)["CROTA2"] == 0


@pytest.mark.parametrize("n", [512, 1024])
@pytest.mark.parametrize(("turned", "shifted"), [(180.0, 0.0), (0.0, 12.0)])
def test_an_image_that_has_the_size_by_chance_is_not_taken_as_it_is(tmp_path, n, turned, shifted):
    """As AIA's have around the 1st of January, when the Sun has 976 arcsec."""
    scale, middle = 2.4 * 1024 / n, (n + 1) / 2
    cards = {"BUNIT": "DN / s", "RSUN_OBS": 975.5, "R_SUN": 975.5 / scale, "CROTA2": turned}
    cards |= {"CDELT1": scale, "CDELT2": scale, "CRPIX1": middle + shifted, "CRPIX2": middle}
    up = -1 if turned else 1
    spot = disk(n, n / 80, (middle - 1 + up * n / 5, middle - 1 + shifted))
    source = Fits(save(tmp_path / "a.fits", spot, AIA | cards))
    assert source.shape == (512, 512)
    row, column, _ = measured_disk(np.nan_to_num(source.read("171A", 0)))
    assert (row, column) == pytest.approx((255.5 + 512 / 5, 255.5), abs=0.3)
    assert source.header("171A", 0)["CROTA2"] == 0


def test_the_suns_centre_is_where_crval_says(tmp_path):
    """CRPIX is the place of CRVAL, which is not the Sun's centre in Maps that were cut or reprojected."""
    turn = np.radians(30)
    # From the Sun's centre to CRVAL in arcsec, and so many pixels along the turned axes of the image.
    east, north = 120.0, -60.0
    x = (np.cos(turn) * east + np.sin(turn) * north) / 2.4
    y = (np.cos(turn) * north - np.sin(turn) * east) / 2.4
    cards = {"CRVAL1": east, "CRVAL2": north, "CROTA2": 30.0, "CRPIX1": 512.5 + x, "CRPIX2": 512.5 + y}
    image = Fits(save(tmp_path / "a.fits", disk(1024, 959.65 / 2.4), AIA | cards)).read("171A", 0)
    assert measured_disk(np.nan_to_num(image))[:2] == pytest.approx((255.5, 255.5), abs=0.02)


def test_a_matrix_of_which_one_half_is_not_written(tmp_path):
    """PC1_1 is 1 where it is missing; and where there is a matrix CROTA2 has no meaning."""
    spot = disk(1024, 12, (711.5, 511.5))
    for name, cards in (
        ("quarter", {"PC1_1": 0.0, "PC1_2": -1.0, "PC2_1": 1.0, "PC2_2": 0.0}),
        ("half", {"PC1_1": -1.0, "PC2_2": -1.0}),
    ):
        source = Fits(save(tmp_path / f"{name}.fits", spot, AIA | cards))
        image, header = source.read("171A", 0), source.header("171A", 0)
        row, column = (255.5, 153.5) if name == "quarter" else (153.5, 255.5)
        assert measured_disk(image)[:2] == pytest.approx((row, column), abs=2)
        assert not [key for key in header if key.startswith("PC")]


@pytest.mark.parametrize(
    "unit",
    ["DN / s", "DN s-1", "s-1 DN", "DN s**-1", "ct / s", "1 / s", "count/sec", "DN/pixel/s", "DN / (pix s)"],
)
def test_per_second_in_another_geometry_is_only_scaled(tmp_path, unit):
    file = save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), AIA | {"BUNIT": unit})
    source = Fits(file)
    assert source.read("171A", 0)[256, 256] == pytest.approx(100, rel=1e-6)
    assert not source.counts


@pytest.mark.parametrize("unit", ["", "DN", "counts / pixel"])
def test_counts_are_divided_by_their_exposure(tmp_path, unit):
    file = save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), AIA | {"BUNIT": unit})
    assert Fits(file).read("171A", 0)[256, 256] == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize("unit", ["", "G", "Gauss", "Mx/cm^2"])
def test_magnetograms_in_gauss(tmp_path, unit):
    file = save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), HMI | {"BUNIT": unit})
    assert Fits(file).read("Bz", 0)[256, 256] == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize(
    ("cards", "unit"),
    [
        *((AIA, unit) for unit in ("photon / s", "DN/ms", "log10(DN/s)", "erg", "Gauss")),
        *((HMI, unit) for unit in ("mG", "kG", "T", "deg", "DN/s", "counts")),
    ],
)
def test_pixels_in_another_unit_are_refused_in_a_line_that_names_it(tmp_path, cards, unit):
    file = save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), cards | {"BUNIT": unit})
    one_line(file, repr(unit))


def test_header_as_plain_values(tmp_path):
    texts = [("COMMENT", "one"), ("HISTORY", "first"), ("COMMENT", "two")]
    cards = AIA | {"LONG": "x" * 200, "FLAG": True, "GONE": fits.card.Undefined()}
    for compress in (False, True):
        file = save(tmp_path / f"{compress}.fits", disk(1024, 400), cards, compress=compress, comments=texts)
        header = Fits(file).header("171A", 0)
        assert header["COMMENT"] == "one\ntwo"
        assert header["HISTORY"] == "first"
        assert header["LONG"] == "x" * 200
        assert header["FLAG"] is True
        assert "GONE" not in header
        assert not {"SIMPLE", "BITPIX", "NAXIS", "ZIMAGE", "ZCMPTYPE", "BSCALE", "XTENSION"} & set(header)
        assert (header["NAXIS1"], header["CRPIX1"], header["R_SUN"]) == (512, 256.5, RADIUS)
        assert header["CDELT1"] == pytest.approx(959.65 / RADIUS)
        assert header["EXPTIME"] == 2.0
        json.dumps(header)


@pytest.mark.parametrize("name", ["a.fits", "a.FTS", "a.fit.gz", "a.fz.gz"])
def test_a_folder_is_one_of_fits_whatever_its_files_are_called(tmp_path, name):
    save(tmp_path / "whole.fits", disk(1024, 400).astype(np.float32), AIA)
    content = (tmp_path / "whole.fits").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    assert open_source(str(folder)).channels == ("171A",)


@pytest.mark.parametrize(
    ("cards", "time"),
    [
        ({"T_OBS": "2014-01-01T00:00:35.500"}, "2014-01-01T00:00:00.500"),
        ({"T_OBS": "2014-01-01T00:00:35.500", "TIMESYS": "UTC"}, "2014-01-01T00:00:35.500"),
        ({"T_OBS": "2014-01-01T00:01:42.684", "TIMESYS": "TT"}, "2014-01-01T00:00:35.500"),
        ({"T_OBS": "2014-01-01T00:01:42.684", "TIMESYS": "TT(TAI)"}, "2014-01-01T00:00:35.500"),
        ({"T_OBS": "2014-01-01T00:00:35.500Z", "TIMESYS": "TT"}, "2014-01-01T00:00:35.500"),
        ({"T_OBS": "2014-01-01T00:00:51.500", "TIMESYS": "gps"}, "2014-01-01T00:00:35.500"),
        # What names its scale is in that one.
        ({"T_OBS": "2014-01-01T00:00:35.500Z"}, "2014-01-01T00:00:35.500"),
        ({"T_OBS": "2014.01.01_00:00:35_TAI"}, "2014-01-01T00:00:00.000"),
        ({"T_OBS": "never", "DATE-OBS": "2014-01-01T00:00:35"}, "2014-01-01T00:00:00.000"),
    ],
)
def test_a_time_is_in_the_scale_that_the_header_names(tmp_path, cards, time):
    file = save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), AIA | {"TIMESYS": "TAI"} | cards)
    assert str(Fits(file).times("171A")[0]) == time


def test_a_folder_takes_what_is_usable_and_counts_the_rest(tmp_path):
    image = disk(1024, 400).astype(np.float32)
    save(tmp_path / "a.fits", image, AIA)
    save(tmp_path / "deep/er/b.fts", image, AIA | {"WAVELNTH": 1600, "T_OBS": "2024-10-04T16:17:51.576Z"})
    save(tmp_path / "c.fits", image, HMI)
    save(tmp_path / "z.fits", image, AIA | {"T_OBS": "yesterday"})
    save(tmp_path / "euvi.fits", image, AIA | {"TELESCOP": "STEREO", "INSTRUME": "SECCHI"})
    save(tmp_path / "aia4500.fits", image, AIA | {"WAVELNTH": 4500})
    save(tmp_path / "continuum.fits", image, HMI | {"CONTENT": "CONTINUUM INTENSITY"})
    save(tmp_path / "odd.fits", np.zeros((700, 700), np.float32), AIA)
    save(tmp_path / "cube.fits", np.zeros((2, 64, 64), np.float32), AIA)
    small = AIA | SMALL | {"BUNIT": "DN/s", "R_SUN": RADIUS / 8}
    save(tmp_path / "small.fits", np.zeros((64, 64), np.float32), small)
    (tmp_path / "text.fits").write_text("not at all")
    (tmp_path / "empty.fits").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no matter")
    (tmp_path / "half.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:1_000_000])
    with gzip.open(tmp_path / "g.fits.gz", "wb") as file:
        file.write((tmp_path / "a.fits").read_bytes())
    source = Fits(str(tmp_path))
    assert source.channels == ("171A", "1600A", "Bz")
    assert source.counts == {
        "no degradation correction": 4,
        "unknown instrument": 1,
        "unknown channel": 2,
        "wrong size": 1,
        "no image": 1,
        "other image size": 1,
        "not a FITS file": 2,
        "truncated": 1,
    }
    assert source.times("171A").astype(str).tolist() == [
        "2024-10-04T16:17:58.354",
        "2024-10-04T16:17:58.354",
        "NaT",
    ]
    assert str(source.times("Bz")[0]) == "2010-05-01T00:11:30.000"
    np.testing.assert_array_equal(source.read("171A", 0), source.read("171A", 1))


def test_a_definitive_image_goes_before_its_first_edition(tmp_path):
    """Whatever the files are called: what came in near real time has bit 30 of QUALITY."""
    for name, quality in (("a", 2**30), ("b", 0), ("c", 2**30 + 8)):
        save(tmp_path / f"{name}.fits", disk(1024, 959.65 / 2.4), AIA | {"QUALITY": quality})
    series = join([Fits(str(tmp_path))])
    assert series.report.duplicates == 2
    assert series.read(0, 1).headers[0][0]["QUALITY"] == 0
    odd = tmp_path / "a.fits"
    odd.write_bytes(odd.read_bytes().replace(b"1073741824", b"10737 41 4"))
    assert len(Fits(str(odd)).times("171A")) == 1


def test_images_behind_the_first_of_a_file_are_counted(tmp_path):
    save(tmp_path / "a.fits", disk(1024, 400).astype(np.float32), AIA)
    for file, images in (("b.fits", 3), ("c.fits", 2)):
        with fits.open(tmp_path / "a.fits") as hdus:
            first = hdus[0]
            hdus.append(fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]))
            for _ in range(images - 1):
                hdus.append(fits.CompImageHDU(first.data, first.header))
            hdus.writeto(tmp_path / file)
    source = Fits(str(tmp_path))
    assert source.counts["further image of a FITS file"] == 2 + 1
    assert len(source.times("171A")) == 3


def one_line(url, part):
    with pytest.raises(InputError) as found:
        Fits(str(url))
    message = str(found.value)
    assert message.startswith(f"{url}: ")
    assert "\n" not in message
    assert part in message


@pytest.mark.parametrize(
    ("cards", "shape", "part"),
    [
        ({"TELESCOP": "HINODE", "INSTRUME": "XRT"}, (1024, 1024), "neither of AIA nor of HMI"),
        ({"TELESCOP": "GAIA", "INSTRUME": "RVS"}, (1024, 1024), "neither of AIA nor of HMI, but of 'GAIA"),
        ({"WAVELNTH": 4500}, (1024, 1024), "unknown channel"),
        ({"IMG_TYPE": "DARK"}, (1024, 1024), "is no image of the Sun but a dark one, by IMG_TYPE"),
        ({"WAVELNTH": "171"}, (1024, 1024), "has WAVELNTH '171', which is no whole number"),
        ({"WAVELNTH": 171.6}, (1024, 1024), "has WAVELNTH 171.6, which is no whole number"),
        ({}, (1024, 512), "512×1024 pixels"),
        ({}, (100, 100), "100×100 pixels"),
        ({}, (4, 32, 32), "no two-dimensional image"),
        ({"EXPTIME": 0.0}, (1024, 1024), "EXPTIME"),
        ({"EXPTIME": "2.0"}, (1024, 1024), "no EXPTIME that is a number"),
        ({"CRPIX1": 1e9}, (1024, 1024), "centre, by CRPIX and CRVAL, outside of the image"),
        ({"CDELT2": 2.5}, (1024, 1024), "no square pixels"),
        ({"PC2_1": 0.3, "PC1_2": 0.3}, (1024, 1024), "no rotation"),
        ({"PC2_2": -0.9}, (1024, 1024), "no rotation"),
        ({"CROTA2": "north"}, (1024, 1024), "CROTA2"),
        ({"CTYPE1": "CRLN-CEA"}, (1024, 1024), "is not helioprojective: CTYPE1 is 'CRLN-CEA'"),
        ({"CUNIT1": "pixel"}, (1024, 1024), "CUNIT1"),
        ({"RSUN_OBS": 0.0}, (1024, 1024), "RSUN_OBS"),
        ({"CDELT1": "two"}, (1024, 1024), "CDELT1"),
        ({"CRPIX1": "?"}, (1024, 1024), "CRPIX1"),
        ({"SZ_CHAN": "Bw"}, (64, 64), "unknown channel 'Bw'"),
    ],
)
def test_a_single_file_that_is_no_image_is_one_line(tmp_path, cards, shape, part):
    one_line(save(tmp_path / "a.fits", np.zeros(shape, np.float32), AIA | cards), part)


def test_broken_files_are_one_line(tmp_path):
    good = Path(save(tmp_path / "good.fits", disk(1024, 400), AIA, compress=True)).read_bytes()
    for name, data, part in (
        ("text", b"a table\nof numbers", "not a FITS file"),
        ("empty", b"", "not a FITS file"),
        ("zip", b"PK\x03\x04" + good, "not a FITS file"),
        ("cut_header", good[:1000], "cannot be read"),
        ("cut_data", good[: len(good) // 2], "truncated"),
        ("cut_gzip", gzip.compress(good)[:-500], "cannot be read"),
        ("no_gzip", b"\x1f\x8b" + good, "cannot be read"),
        (
            "huge",
            good.replace(b"ZNAXIS1 =                 1024", b"ZNAXIS1 =            999999999"),
            "implausible",
        ),
    ):
        (tmp_path / f"{name}.fits").write_bytes(data)
        one_line(tmp_path / f"{name}.fits", part)
    one_line(tmp_path / "nothing.fits", "nothing is there")
    (tmp_path / "folder").mkdir()
    one_line(tmp_path / "folder", "no usable FITS image among 0 files")


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("sunzip.sources.fits._MAX_UNPACKED", 2**22)
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(b"SIMPLE  =" + bytes(2**24)))
    one_line(tmp_path / "a.fits.gz", "unpacks to more than 4 MiB")


def with_cards(raw, begin=2880, **cards):
    """Write other numbers into the first header of a file from an offset on."""
    raw = bytearray(raw)
    for key, value in cards.items():
        at = raw.index(f"{key:8}= ".encode(), begin)
        raw[at : at + 80] = f"{key:8}= {value:>20}".ljust(80).encode()
    return raw


def test_a_tile_unpacks_to_no_more_than_its_pixels(tmp_path, monkeypatch):
    """A file of 1 MB took 2 GB, and as long again for each tile."""
    monkeypatch.setattr("sunzip.sources.fits._UNSEEN", 1 << 20)
    hdu = fits.CompImageHDU(
        np.zeros((2048, 2048), np.int32),
        fits.Header(AIA),
        compression_type="GZIP_1",
        tile_shape=(2048, 2048),
    )
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    raw = with_cards((tmp_path / "a.fits").read_bytes(), ZNAXIS1=1024, ZNAXIS2=1024)
    (tmp_path / "a.fits").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.fits: .* a tile unpacks to more than 8388608 bytes"):
        Fits(str(tmp_path / "a.fits")).read("171A", 0)


@pytest.mark.parametrize("kind", ["GZIP_1", "GZIP_2"])
def test_tiles_that_are_no_bombs_are_unpacked_once(tmp_path, monkeypatch, kind):
    image = np.random.default_rng(0).integers(100, 200, (1024, 1024)).astype(np.int16)
    hdu = fits.CompImageHDU(image, fits.Header(AIA), compression_type=kind)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    source = Fits(str(tmp_path / "a.fits"))
    monkeypatch.setattr("sunzip.sources.fits.gzip", None)
    assert np.isfinite(source.read("171A", 0)[256, 256])


@pytest.mark.parametrize(
    ("cards", "part"),
    [
        # With these two astropy's code in C ended the process.
        ({"ZDITHER0": -9999}, "its ZDITHER0 is -9999"),
        ({"ZTILE1": -1}, "its tiles have -1 pixels a side"),
        ({"ZVAL2": 8}, "its BYTEPIX is 8"),
        ({"NAXIS2": 0}, "it has 0 of 1024 tiles"),
    ],
)
def test_tiles_that_cannot_be(tmp_path, cards, part):
    image = disk(1024, 400, rows=lambda y, x: 1000.0 + y % 7 + x % 5).astype(np.float32)
    hdu = fits.CompImageHDU(image, fits.Header(AIA), quantize_method=1, dither_seed=7)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    (tmp_path / "a.fits").write_bytes(with_cards((tmp_path / "a.fits").read_bytes(), **cards))
    with pytest.raises(InputError, match=rf"a\.fits: cannot be read, truncated or damaged: {part}"):
        Fits(str(tmp_path / "a.fits")).read("171A", 0)


@pytest.mark.parametrize(
    ("begin", "cards"), [(0, {"NAXIS": 10**18}), (2880, {"TFIELDS": 10**30}), (2880, {"NAXIS": 10**18})]
)
def test_headers_that_count_without_end_are_not_counted_along(tmp_path, begin, cards):
    good = Path(save(tmp_path / "good.fits", disk(1024, 400), AIA, compress=True)).read_bytes()
    (tmp_path / "a.fits").write_bytes(with_cards(good, begin, **cards))
    one_line(tmp_path / "a.fits", f"its {next(iter(cards))} is 1000000")


def test_a_table_that_ends_before_it_begins_is_not_read_again_and_again(tmp_path):
    hdus = [fits.PrimaryHDU(disk(1024, 400), fits.Header(AIA))]
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(9))]))
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    good = (tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(with_cards(good, good.index(b"XTENSION"), PCOUNT=-9999))
    source = Fits(str(tmp_path / "a.fits"))
    assert source.read("171A", 0).max() > 0
    assert not source.counts["further image of a FITS file"]


def test_lines_of_history_are_joined_at_once():
    """One after the other, 100,000 took 8 s, and as the square of their number."""
    header = fits.Header.fromstring(f"{'HISTORY line':80}" * 100_000)
    start = time.process_time()
    assert _plain(header) == {"HISTORY": "\n".join(["line"] * 100_000)}
    assert time.process_time() - start < 3


def test_very_many_cards_are_not_parsed(tmp_path):
    cards = [f"{key:8}= {value!r:>20}" for key, value in AIA.items()] + ["HISTORY a"] * 210_000 + ["END"]
    image = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    2",
    ]
    image += ["NAXIS1  =                 1024", "NAXIS2  =                 1024"]
    header = "".join(f"{card:80}" for card in image + cards).encode()
    (tmp_path / "a.fits").write_bytes(header + b" " * (-len(header) % 2880) + bytes(1024**2 + 2880))
    one_line(tmp_path / "a.fits", "has a header of more than 16777216 bytes")


def test_a_blank_that_no_pixel_can_be_is_none(tmp_path):
    """As of an image of 32 bits that was written in 16, by sunpy for instance."""
    image = disk(1024, 400, rows=lambda y, x: y + x).astype(np.int16)
    plain = save(tmp_path / "plain.fits", image, AIA)
    hdu = fits.CompImageHDU(image, fits.Header(AIA | {"BLANK": -(2**31)}))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    assert fits.getheader(tmp_path / "a.fits", 1)["BLANK"] == -(2**31)
    np.testing.assert_array_equal(Fits(str(tmp_path / "a.fits")).read("171A", 0), Fits(plain).read("171A", 0))


def test_damaged_pixels_are_told_when_they_are_read(tmp_path):
    data = disk(1024, 400, rows=lambda y, x: 1000 * y + 777 * x).astype(np.int32)
    hdu = fits.CompImageHDU(data, fits.Header(AIA), compression_type="GZIP_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    raw = bytearray((tmp_path / "a.fits").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 3000] = bytes(3000)
    (tmp_path / "a.fits").write_bytes(raw)
    source = Fits(str(tmp_path / "a.fits"))
    with pytest.raises(InputError, match=r"a\.fits: cannot be read, truncated or damaged") as found:
        source.read("171A", 0)
    assert "\n" not in str(found.value)


def test_damaged_pixels_among_other_files_are_left_out(tmp_path):
    for hour in "01":
        file = tmp_path / f"{hour}.fits"
        hdu = fits.CompImageHDU(
            disk(1024, 400, rows=lambda y, x: 1000 * y + 777 * x).astype(np.int32),
            fits.Header(AIA | {"T_OBS": f"2014-01-01T0{hour}:00:00Z"}),
            compression_type="GZIP_1",
        )
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(file)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 3000] = bytes(3000)
    file.write_bytes(raw)
    series = join([Fits(str(tmp_path))])
    assert series.read(0, 2).valid.ravel().tolist() == [True, False]
    assert series.report.odd == {
        "image that is damaged (the first: 171A of 2014-01-01 01:00:00)": 1,
        "no degradation correction": 2,
    }


@pytest.mark.parametrize("cards", [{"WAVELNTH": 193}, {"T_OBS": "2014-01-01T01:00:00Z"}])
def test_a_file_that_another_has_replaced_is_no_image_of_its_place(tmp_path, cards):
    """An archive said 171A of an image of 193 Å, and its time of that of another."""
    image = disk(1024, 400)
    source = Fits(save(tmp_path / "a.fits", image, AIA))
    assert source.header("171A", 0)
    Path(save(tmp_path / "b.fits", image, AIA | cards)).replace(tmp_path / "a.fits")
    for read in (source.read, source.header):
        with pytest.raises(InputError, match=r"a\.fits: holds another image than as the source was opened"):
            read("171A", 0)


def test_a_file_that_is_gone_is_not_called_damaged(tmp_path):
    source = Fits(save(tmp_path / "a.fits", disk(1024, 400), AIA))
    (tmp_path / "a.fits").unlink()
    with pytest.raises(InputError, match=r"a\.fits: is gone; look whether it was moved, or is on a disk"):
        source.read("171A", 0)


def test_files_that_vanish_while_they_are_looked_through_are_told(tmp_path, monkeypatch):
    """When a disk was unmounted meanwhile an archive of what came before it was made, with a count."""
    for name in "ab":
        save(tmp_path / f"{name}.fits", disk(1024, 400), AIA)
    (tmp_path / "c.fits").symlink_to("nowhere.fits")
    assert Fits(str(tmp_path)).counts["link to nothing"] == 1
    found = Fits._found

    def unmounted(source):
        paths = found(source)
        (tmp_path / "b.fits").unlink()
        return paths

    monkeypatch.setattr(Fits, "_found", unmounted)
    with pytest.raises(InputError, match=r"b\.fits: is gone; look whether it was moved, or is on a disk"):
        Fits(str(tmp_path))


def test_a_damaged_original_header_is_told(tmp_path):
    cards = {
        "SZ_CHAN": "171A",
        "SZ_HDR": '{"a":',
        "CRPIX1": 32.5,
        "CRPIX2": 32.5,
        "CDELT1": 8 * 959.65 / RADIUS,
        "CDELT2": 8 * 959.65 / RADIUS,
    }
    file = save(tmp_path / "a.fits", np.zeros((64, 64), np.float32), AIA | cards)
    source = Fits(file)
    with pytest.raises(InputError, match="SZ_HDR"):
        source.header("171A", 0)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_2", "HCOMPRESS_1", "quantised"])
def test_threads_read_alike(tmp_path, kind):
    for i in range(4):
        image, header = disk(1024, 300 + 20 * i, rows=lambda y, x: 100 + 20 * x), fits.Header(AIA)
        if kind == "quantised":
            packed = fits.CompImageHDU(image.astype(np.float32), header, quantize_method=1, dither_seed=7)
        else:
            packed = fits.CompImageHDU(image.astype(np.int32), header, compression_type=kind)
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / f"{i}.fits")
    source = Fits(str(tmp_path))
    alone = [source.read("171A", i).tobytes() for i in range(4)]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source.read("171A", i % 4).tobytes(), range(8))) == alone * 2
    assert warnings.filters == filters


def test_files_are_unpacked_side_by_side(tmp_path, monkeypatch):
    for i in range(2):
        save(
            tmp_path / f"{i}.fits", disk(1024, 400), AIA | {"T_OBS": f"2024-10-04T1{i}:00:00Z"}, compress=True
        )
    series = join([Fits(str(tmp_path))])
    both = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(fits_module, "_shares_nothing", lambda _: both.wait() < 2)
    assert series.read(0, 2).valid.all()


def test_files_in_a_tar_which_have_one_place_to_read_from_are_not_mixed(tmp_path):
    times = [str(np.datetime64("2024-10-04T00:00:00") + np.timedelta64(12 * i, "m")) for i in range(40)]
    for i, time_ in enumerate(times):
        cards = {"SZ_CHAN": "171A", "T_OBS": time_}
        save(tmp_path / "in" / f"{i:02}.fits", np.full((128, 128), i + 1, np.float32), cards)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in", "in")
    source = Fits(f"tar://in::{tmp_path}/a.tar")
    assert not source.counts
    np.testing.assert_array_equal(join([source]).read(0, 40).data[:, 0, 0, 0], np.arange(40) + 1)
    with ThreadPoolExecutor(4) as pool:
        assert [i[0, 0] for i in pool.map(lambda i: source.read("171A", i), range(40))] == [*range(1, 41)]


def test_warnings_are_kept_back_until_the_last_thread_is_done():
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = ExitStack(), ExitStack()
        first.enter_context(fits_module._QUIET)
        second.enter_context(fits_module._QUIET)
        first.close()
        warnings.warn("kept back", stacklevel=1)
        second.close()
        warnings.warn("told", stacklevel=1)
    assert [str(w.message) for w in told] == ["told"]
    assert warnings.filters == filters


def test_an_image_and_its_keywords_come_of_one_opening(tmp_path, monkeypatch):
    save(tmp_path / "a.fits", disk(1024, 400), AIA, compress=True)
    source = Fits(str(tmp_path))
    series, alone = join([source]), source.header("171A", 0)
    opened, kind = [], type(source._storage.fs)
    real = kind.open
    monkeypatch.setattr(kind, "open", lambda *a, **k: (opened.append(a[1]), real(*a, **k))[1])
    assert series.read(0, 1).headers[0][0] == alone
    assert len(opened) == 1


def test_how_far_a_folder_is_looked_through_is_told(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.fits", disk(1024, 400).astype(np.float32), AIA)
    (tmp_path / "d.fits").write_text("not at all")
    told = []
    with watching(lambda *step: told.append(step)):
        Fits(str(tmp_path))
    assert told == [(f"looking through {tmp_path}", n, 4) for n in (1, 2, 3, 4)]
    Fits(str(tmp_path))
    assert len(told) == 4


def test_files_of_a_store_are_asked_for_side_by_side(tmp_path, monkeypatch):
    import fsspec

    file = save(tmp_path / "a.fits", disk(1024, 400), AIA, compress=True)
    memory = fsspec.filesystem("memory")
    for name in "ab":
        memory.pipe(f"/sun/{name}.fits", Path(file).read_bytes())
    both, real = threading.Barrier(2, timeout=20), type(memory).open
    monkeypatch.setattr(type(memory), "async_impl", True)  # as clients that are made for several requests
    monkeypatch.setattr(type(memory), "open", lambda *a, **k: (both.wait(), real(*a, **k))[1])
    try:
        assert len(Fits("memory://sun").times("171A")) == 2
    finally:
        memory.rm("/sun", recursive=True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_store_that_told_a_files_size_is_not_asked_again(tmp_path, monkeypatch, packed):
    import fsspec

    whole = Path(save(tmp_path / "a.fits", disk(1024, 400), AIA)).read_bytes()
    stored = gzip.compress(whole, 1) if packed else whole
    memory = fsspec.filesystem("memory")
    memory.pipe("/sun/a.fits", stored)
    monkeypatch.setattr(type(memory), "size", lambda *_: pytest.fail("asked again"))
    try:
        source = Fits("memory://sun")
        assert source.stored_bytes() == len(stored)
        assert source.read("171A", 0).shape == (512, 512)
    finally:
        memory.rm("/sun", recursive=True)


def test_files_of_a_disk_that_may_be_far_are_looked_through_side_by_side(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    file = save(tmp_path / "a.fits", disk(1024, 400), AIA, compress=True)
    (tmp_path / "b.fits").write_bytes(Path(file).read_bytes())
    both, real = threading.Barrier(2, timeout=20), LocalFileSystem.open
    monkeypatch.setattr(LocalFileSystem, "open", lambda *a, **k: (both.wait(), real(*a, **k))[1])
    assert len(Fits(str(tmp_path)).times("171A")) == 2


def test_astropys_warnings_stay_inside(tmp_path):
    """A card that breaks the standard, a bad date and a missing last block make astropy warn."""
    file = Path(save(tmp_path / "a.fits", disk(1024, 400), AIA | {"DATE-OBS": "31/12/99"}, compress=True))
    data = file.read_bytes().replace(b"QUALITY =           1073741824", b"QUALITY =           10737 41 4")
    file.write_bytes(data[:-100])
    script = (
        f"from sunzip.sources.fits import Fits\ns = Fits({str(file)!r})"
        "\ns.header('171A', 0)\ns.read('171A', 0)\nprint('read')"
    )
    # numcodecs 0.15 warns of itself when a program ends.
    shown = ("-W", "always", "-W", "ignore:Call to deprecated function:DeprecationWarning")
    done = subprocess.run([sys.executable, *shown, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("read\n", "")


def test_importing_loads_neither_astropy_nor_torch():
    script = (
        "import sys, sunzip.sources.fits, sunzip.sources.hdf5"
        "\nimport sunzip.sinks, sunzip.sinks.fits, sunzip.sinks.hdf5, sunzip.sinks.sdoml_v2"
        "\nprint([m for m in ('astropy', 'torch', 'h5py', 'zarr', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_behind_fsspec(tmp_path):
    import fsspec

    file = save(tmp_path / "a.fits", disk(1024, 400), AIA, compress=True)
    memory = fsspec.filesystem("memory")
    memory.pipe("/sun/x/a.fits", Path(file).read_bytes())
    try:
        source = Fits("memory://sun")
        np.testing.assert_array_equal(source.read("171A", 0), Fits(file).read("171A", 0))
    finally:
        memory.rm("/sun", recursive=True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_which_a_store_gives_but_the_beginning_is_not_passed_over(tmp_path, monkeypatch, packed):
    def refuse(file, size=-1):
        if file.path == "/sun/b.fits" and file.tell() + (size if size >= 0 else file.size) > 9:
            raise OSError(16, "Please reduce your request rate")
        return read(file, size)

    import fsspec
    from fsspec.implementations.memory import MemoryFile

    memory, read = fsspec.filesystem("memory"), MemoryFile.read
    try:
        for name in "ab":
            whole = Path(save(tmp_path / f"{name}.fits", disk(1024, 399.9), AIA)).read_bytes()
            memory.pipe(f"/sun/{name}.fits", gzip.compress(whole, 1) if packed else whole)
        monkeypatch.setattr(MemoryFile, "read", refuse)
        with pytest.raises(InputError, match=r"b\.fits: cannot be read: .* reduce your request rate"):
            Fits("memory://sun")
    finally:
        memory.rm("/sun", recursive=True)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_a_disk_does_not_give_now_is_not_passed_over(tmp_path, monkeypatch, number, packed):
    for name in "ab":
        whole = Path(save(tmp_path / f"{name}.fits", disk(1024, 399.9), AIA)).read_bytes()
        (tmp_path / f"{name}.fits").write_bytes(gzip.compress(whole, 1) if packed else whole)
    (tmp_path / "c.fits").symlink_to(tmp_path / "not-fetched")

    def refuse(file, size=-1):
        if number == errno.EACCES or (file.name.endswith("b.fits") and size != 2):
            raise OSError(number, os.strerror(number), file.name)
        return file.f.read(size)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileOpener, "read", refuse, raising=False)
        with pytest.raises(InputError, match=r"[ab]\.fits: cannot be read: "):
            Fits(str(tmp_path))
    assert Fits(str(tmp_path)).counts["link to nothing"] == 1


def test_want_of_memory_is_not_told_of_the_file(tmp_path, monkeypatch):
    def short(*_, **__):
        raise MemoryError

    save(tmp_path / "a.fits", disk(1024, 399.9), AIA)
    monkeypatch.setattr(fits, "open", short)
    with pytest.raises(MemoryError):
        Fits(str(tmp_path))
