"""Images as sunpy Maps and series of them as NDCubes: what astronomers work with, of decoded frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sunzip.channels import channel
from sunzip.cube import DISK_RADIUS, PIXEL_OF_512, RSUN_M, Cube, Scale
from sunzip.errors import InputError, needing
from sunzip.imports import without_home
from sunzip.sinks.base import taken_at
from sunzip.sinks.fits import header_of

if TYPE_CHECKING:
    from ndcube import NDCube
    from sunpy.map import GenericMap, MapSequence


def image_map(cube: Cube, frame: int = 0, about: Mapping[str, Any] | None = None) -> GenericMap:
    """Make a Map of one image of a cube of one channel, with the header that it has as a FITS file.

    Parameters
    ----------
    cube, frame
        The cube, and the image's number.
    about
        What is to be said of its pixels, as `sunzip.archive.Archive.origin` has it.

    Raises
    ------
    InputError
        If the image is missing or not square, or sunpy is not installed.
    """
    with needing("sunpy", "Maps need"), without_home():
        import sunpy.map
    side = _side(cube)
    if not cube.valid[frame, 0]:
        raise InputError(f"there is no image of {cube.channels[0]} at {cube.time[frame]}")
    data = cube.to_scale(Scale.MEAN).data[frame, 0]
    known, taken = channel(cube.channels[0]), taken_at(cube, frame, 0)
    header = header_of(known, taken, side, cube.headers[frame][0], about)
    return sunpy.map.Map(data, header)


def sequence(cube: Cube, about: Mapping[str, Any] | None = None) -> MapSequence:
    """Make a MapSequence of those images of a cube of one channel that are there.

    Raises
    ------
    InputError
        If none is, or as `image_map`.
    """
    there = np.flatnonzero(cube.valid[:, 0])
    if not len(there):
        raise InputError(f"there is no image of {cube.channels[0]} among these {len(cube)} frames")
    maps = [image_map(cube, int(t), about) for t in there]
    from sunpy.map import MapSequence

    return MapSequence(*maps)


def ndcube(cube: Cube, about: Mapping[str, Any] | None = None) -> NDCube:
    """Make an NDCube (time, y, x) of a cube of one channel.

    All frames share one geometry, that of an archive's x and y: the disk is centred and has a radius of 976″,
    as SDOML scales it, seen from where the Sun is that large and from the latitude of the middle frame. Times
    are the frames' nominal ones, in a table, so that they may have gaps.

    Raises
    ------
    InputError
        If there is no frame, images are not square, or ndcube is not installed.
    """
    with needing("sunpy", "NDCubes need"), without_home():
        import sunpy.coordinates  # noqa: F401 (teaches astropy the Sun's coordinate systems)
        from ndcube import NDCube
        from ndcube.extra_coords import TimeTableCoordinate
        from ndcube.wcs.wrappers import CompoundLowLevelWCS
    from astropy import units
    from astropy.time import Time
    from astropy.wcs import WCS

    side, known = _side(cube), channel(cube.channels[0])
    if not len(cube):
        raise InputError(f"there are no frames of {known.name} between these times")
    middle = len(cube) // 2
    seen = header_of(known, cube.time[middle], side, cube.headers[middle][0])
    sky = WCS(naxis=2)
    sky.wcs.ctype = "HPLN-TAN", "HPLT-TAN"
    sky.wcs.cunit = "arcsec", "arcsec"
    sky.wcs.cdelt = [PIXEL_OF_512 * 512 / side] * 2
    sky.wcs.crpix = [(side + 1) / 2] * 2
    sky.wcs.dateobs = seen["DATE-OBS"]
    # SDO is within 0.02° of the Earth's longitude, if the header has but that of Carrington.
    sky.wcs.aux.hgln_obs, sky.wcs.aux.hglt_obs = seen.get("HGLN_OBS", 0.0), seen["HGLT_OBS"]
    sky.wcs.aux.rsun_ref = RSUN_M
    sky.wcs.aux.dsun_obs = RSUN_M / math.sin(math.radians(DISK_RADIUS / 3600))
    sky.wcs.set()
    times = TimeTableCoordinate(
        Time(cube.time.astype("datetime64[ms]").astype(str), scale="utc"), names="time", physical_types="time"
    )
    data = cube.to_scale(Scale.MEAN).data[:, 0]
    meta: dict[str, Any] = {
        "channel": known.name,
        "instrument": known.instrument,
        "wavelength": known.wavelength * units.AA,
        "geometry": f"nominal: centred, disk of radius {DISK_RADIUS:g} arcsec, latitude of frame {middle}",
        "t_obs": cube.t_obs[:, 0],
        "headers": [row[0] for row in cube.headers],
        **(about or {}),
    }
    return NDCube(
        data,
        wcs=CompoundLowLevelWCS(sky, times.wcs),
        unit=units.Unit(known.unit),
        mask=np.isnan(data),
        meta=meta,
    )


def _side(cube: Cube) -> int:
    """Return the side of square images of one channel, the only ones that SDOML's geometry is known of."""
    _, channels, height, width = cube.data.shape
    if channels != 1:
        raise ValueError("a map is made of a cube of one channel")
    if height != width:
        raise InputError(f"maps are of square images, and these are of {height}×{width} pixels")
    return int(width)
