r"""One FITS file per image, written: what astronomers' tools open, as AIA and HMI maps in sunpy.

``aia_0171_20241004T161758.fits``, named by the time the image was taken; the primary HDU holds the pixels as
uncompressed float32, NaN where there is no measurement. The cards describe the image as it is now: DN/s (so
EXPTIME is 1 and the original stands under SZ_EXPT) or gauss, the SDOML geometry, times in UTC. T_OBS is when
the image was taken; so is DATE-OBS where the source has none. Original keywords that FITS can hold and that
do not contradict these stand beside them. SZ_ASSUM names what the original did not tell of the observer.

The original header as a whole is in the card SZ_HDR, so that every name, long string and float comes back
exactly: one JSON object, in ASCII with ``'`` and ``&`` escaped (``\u0027``, ``\u0026``), as a long string
over CONTINUE cards. SZ_CHAN names the channel and marks the file as one that needs no further
preparation.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sunzip.channels import Channel, channel
from sunzip.cube import RSUN_M, Cube, Header, Scale, disk_radius
from sunzip.errors import OutputError
from sunzip.sinks.base import Sink, taken_at
from sunzip.times import parse_t_obs, time_of

#: Astronomical unit in metres, as SDO's own headers have it (DSUN_REF).
_AU_M = 149_597_870_691.0

#: Keywords that speak of how pixels are stored, where they lie or what they are like on the whole (unit,
#: least, greatest, mean, how many are missing), which is not as it was in the original.
_OURS = re.compile(
    r"SIMPLE|BITPIX|NAXIS\d*|EXTEND|XTENSION|PCOUNT|GCOUNT|GROUPS|EXTNAME|EXTVER|EXTLEVEL|INHERIT|END|BLOCKED|"
    r"BSCALE|BZERO|BLANK|BUNIT|CHECKSUM|DATASUM|HEADSUM|LONGSTRN|CONTINUE|COMMENT|HISTORY|HIERARCH|"
    r"WCS.*|(CD|PC|PV|PS|CP|CQ|DP|DQ|A|B|AP|BP|D)_?\d.*|C(TYPE|UNIT|DELT|RPIX|RVAL|ROTA|RDER|SYER|NAME)\d.*|"
    r"LONPOLE|LATPOLE|RADESYS|EQUINOX|EPOCH|MJD.*|DATE.*|TIME.*|T_OBS|T(FIELDS|FORM|TYPE|HEAP)\d*|Z.*|SZ_.*|"
    r"IMSCL_MP|X0_MP|Y0_MP|HA[EX][XYZ]?_OBS|CONTENT|PIXLUNIT|"
    r"DATA(MIN|MAX|MEDN|MEAN|RMS|SKEW|KURT|VALS|CENT\w*|P\d+)|(TOT|MISS|SAT)VALS|PERCENTD"
)


class FitsSink(Sink):
    """Writes a folder of FITS files."""

    layout = "fits"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channels: Sequence[str],
        shape: tuple[int, int],
        about: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(path, channels=channels, shape=shape, scale=Scale.MEAN, about=about)
        if shape[0] != shape[1]:
            self.abort()
            raise OutputError(
                f"{path}: images of {shape[1]}×{shape[0]} pixels cannot be FITS files, as only of square "
                "ones the coordinates are known; write hdf5 or sdoml-v2 (--layout)"
            )

    def _begin(self) -> None:
        pass

    def _write(self, cube: Cube) -> None:
        from astropy.io import fits

        for t in self._frames(cube):
            for c, name in enumerate(self.channels):
                if not cube.valid[t, c]:
                    continue
                time = taken_at(cube, t, c)
                header = header_of(channel(name), time, self.shape[0], cube.headers[t][c], self._about)
                hdu = fits.PrimaryHDU(cube.data[t, c], header)
                # Written at once, as astropy tells of a full disk in words of its own.
                buffer = io.BytesIO()
                hdu.writeto(buffer)
                self._file(channel(name), time).write_bytes(buffer.getbuffer())

    def _finish(self) -> None:
        pass

    def _file(self, known: Channel, time: np.datetime64) -> Path:
        second = str(np.datetime_as_string(time, unit="s")).replace("-", "").replace(":", "")
        stem = f"{known.instrument.lower()}_{known.v1_id}_{second}"
        file = self._partial / f"{stem}.fits"
        number = 2
        while file.exists():
            file = self._partial / f"{stem}_{number}.fits"
            number += 1
        return file


def header_of(
    known: Channel, time: np.datetime64, n: int, original: Header, about: Mapping[str, Any] | None = None
) -> Any:
    """Make the header of one image of n×n pixels, means of SDOML's, from what its source knew of it.

    Parameters
    ----------
    known
        The channel.
    time
        When it was taken, UTC.
    n
        Pixels along a side.
    original
        Keywords of the source; of what they lack the header is made as seen from the Earth, and says so.
    about
        What is to be said of the pixels, as `sunzip.archive.Archive.origin` has it.

    Returns
    -------
    header
        `astropy.io.fits.Header`.
    """
    from astropy.io import fits

    utc = str(np.datetime_as_string(time, unit="ms"))
    observer, assumed = _observer(time, original)
    aia = known.instrument == "AIA"
    instrument = original.get("INSTRUME")
    if not isinstance(instrument, str) or not re.fullmatch(rf"{known.instrument}[\w /-]{{0,20}}", instrument):
        instrument = known.instrument
    plate_scale = observer["RSUN_OBS"] / disk_radius(n)
    ours: list[tuple[str, Any, str]] = [
        ("TELESCOP", f"SDO/{known.instrument}", ""),
        ("INSTRUME", instrument, ""),
        ("WAVELNTH", known.wavelength, "wavelength"),
        ("WAVEUNIT", "Angstrom", ""),
        ("BUNIT", "DN/s" if aia else "Gauss", "unit of the pixels"),
        ("DATE-OBS", _begun(original) or utc, "the source's, else T_OBS; UTC"),
        ("T_OBS", utc, "when the image was taken, UTC"),
        ("TIMESYS", "UTC", ""),
        ("CTYPE1", "HPLN-TAN", ""),
        ("CTYPE2", "HPLT-TAN", ""),
        ("CUNIT1", "arcsec", ""),
        ("CUNIT2", "arcsec", ""),
        ("CDELT1", plate_scale, "[arcsec/pixel]"),
        ("CDELT2", plate_scale, "[arcsec/pixel]"),
        ("CRPIX1", (n + 1) / 2, "[pixel] Sun's centre"),
        ("CRPIX2", (n + 1) / 2, "[pixel] Sun's centre"),
        ("CRVAL1", 0.0, ""),
        ("CRVAL2", 0.0, ""),
        ("CROTA2", 0.0, ""),
        ("R_SUN", disk_radius(n), "[pixel] radius of the disk"),
        ("RSUN_REF", RSUN_M, "[m]"),
        *((key, value, "") for key, value in observer.items()),
        ("SZ_CHAN", known.name, "SDOML channel"),
    ]
    if aia:
        ours.append(("EXPTIME", 1.0, "pixels are per second; see SZ_EXPT"))
        if _is_number(original.get("EXPTIME")):
            ours.append(("SZ_EXPT", original["EXPTIME"], "[s] original EXPTIME"))
    else:
        ours.append(("CONTENT", "MAGNETOGRAM", "component as in SZ_CHAN"))
    if _is_number(original.get("SZ_FILL")):
        ours.append(("SZ_FILL", original["SZ_FILL"], "foretold, not taken: share that is right"))
    if assumed:
        ours.append(("SZ_ASSUM", " ".join(assumed), "as seen from the Earth"))

    header = fits.Header(fits.Card(*card) for card in ours)
    for key, value in original.items():
        if key not in header and not _OURS.fullmatch(key) and (card := _card(key, value)) is not None:
            header.append(card)
    text = json.dumps(dict(original)).replace("'", "\\u0027").replace("&", "\\u0026")
    header.append(fits.Card("SZ_HDR", text))
    if about:
        # As `sunzip.bounds.told` has them.
        held = dict(part.partition("=")[::2] for part in str(about.get("max_error", "")).split(","))
        for key, value, comment in (
            ("SZ_MODEL", about["model"], "coded the pixels, with loss"),
            ("SZ_SHA", about["model_sha256"], ""),
            ("SZ_QUAL", about.get("quality"), "at which it did, 0 to 100"),
            ("SZ_BOUND", held.get(known.name), "no pixel errs by more"),
        ):
            if (card := _card(key, value)) is not None:
                card.comment = comment
                header.append(card)
        header.add_history(re.sub("[^ -~]", "?", about["history"]))
    return header


def _begun(original: Header) -> str | None:
    """Return the original's DATE-OBS, half an exposure before T_OBS, as FITS writes UTC; None without one."""
    for key in ("DATE-OBS", "DATE_OBS"):
        if not np.isnat(time := time_of(original, key)):
            text = str(original[key])
            # What says its zone, or has a second 60, is for others to read once it is written anew.
            plain = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{1,9})?", text, re.ASCII)
            utc = time == parse_t_obs([text])[0]
            return text if plain and utc else str(np.datetime_as_string(time, unit="ms"))
    return None


def _card(key: str, value: str | int | float | bool | None) -> Any | None:
    """Make a card of an original keyword, or None where FITS cannot hold it."""
    from astropy.io import fits

    if not re.fullmatch(r"[A-Z0-9_-]{1,8}", key) or value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # Of more digits than a card has room for astropy leaves some out, and so makes another number.
    if isinstance(value, int) and abs(value) >= 10**69:
        return None
    if isinstance(value, str) and not re.fullmatch(r"[ -~]{0,68}", value):
        return None
    try:
        card = fits.Card(key, value)
        # Astropy finds only while formatting that a number is too long for its card.
        return card if len(str(card)) == 80 else None
    except ValueError:
        return None


def _observer(time: np.datetime64, original: Header) -> tuple[dict[str, float], list[str]]:
    """Where the Sun was seen from: the original's keywords, or the Earth's centre's, and which these are.

    Of the Sun's distance and its size in the sky one gives the other, and is then not the Earth's.

    SDO is within 3e-4 of the Sun's distance from there. The Earth's place follows Meeus, Astronomical
    Algorithms (1998), chapters 25 (low accuracy, 0.01°) and 29.
    """
    days = (time - np.datetime64("2000-01-01T12:00", "ms")) / np.timedelta64(1, "D")
    century = days / 36525
    anomaly = math.radians(357.52911 + 35999.05029 * century)
    centre = (1.914602 - 0.004817 * century) * math.sin(anomaly) + 0.019993 * math.sin(2 * anomaly)
    longitude = math.radians(280.46646 + 36000.76983 * century + centre)
    eccentricity = 0.016708634 - 0.000042037 * century
    true_anomaly = anomaly + math.radians(centre)
    distance = 1.000001018 * (1 - eccentricity**2) / (1 + eccentricity * math.cos(true_anomaly)) * _AU_M
    node = math.radians(73.6667 + 1.3958333 * (days + 2451545 - 2396758) / 36525)
    latitude = math.asin(math.sin(longitude - node) * math.sin(math.radians(7.25)))

    def given(key: str, low: float, high: float) -> float | None:
        value = original.get(key)
        return float(value) if _is_number(value) and low <= float(value) <= high else None  # type: ignore[arg-type]

    found = {
        "RSUN_OBS": given("RSUN_OBS", 900, 1020),
        "DSUN_OBS": given("DSUN_OBS", 1.4e11, 1.6e11),
        "HGLN_OBS": given("HGLN_OBS", -10, 10),
        "HGLT_OBS": given("HGLT_OBS", -10, 10),
    }
    carrington = given("CRLN_OBS", -360, 360), given("CRLT_OBS", -10, 10)
    if found["HGLT_OBS"] is None:
        found["HGLT_OBS"] = carrington[1]
    if "HGLN_OBS" not in original and None not in carrington:
        # These tell the place as well; a HGLN_OBS beside them would be taken in their stead.
        del found["HGLN_OBS"]
    rsun = found["RSUN_OBS"]
    # So far away that the disk is as large as it is: else limbs would be drawn beside it.
    far = float(distance) if rsun is None else RSUN_M / math.radians(rsun / 3600)
    dsun = found["DSUN_OBS"] or far
    earth = {
        "RSUN_OBS": math.degrees(RSUN_M / dsun) * 3600,
        "DSUN_OBS": far,
        "HGLN_OBS": 0.0,
        "HGLT_OBS": math.degrees(latitude),
    }
    observer = {key: earth[key] if value is None else value for key, value in found.items()}
    told = {key for key, value in found.items() if value is not None}
    if told & {"RSUN_OBS", "DSUN_OBS"}:
        told |= {"RSUN_OBS", "DSUN_OBS"}
    return observer, [key for key in found if key not in told]


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
