"""The radio flux of the synthetic Sun: what regions, spots and network add to the quiet Sun's 30 and 10.7 cm.

The slowly varying component of decimetric flux is the thermal emission of the plasma over plage and network,
and, more so at 10.7 cm than at 30 cm, the gyroresonance of strong fields over spots (Tapping 2013, Space
Weather 11, 394; Dudok de Wit & Bruinsma 2017, J. Space Weather Space Clim. 7, A9). All three follow from the
magnetic state that the images show, so that regions brighten the flux when they emerge or rotate into view,
and are seen a little beyond the limb, as their plasma stands above it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sunzip.sources._sun.field import (
    GAUSS_PER_1E21_MX,
    MAX_TRANSPORT_DAYS,
    Doubles,
    Window,
    normal,
    rotation,
    solar_radius_arcsec,
    strength,
    tilt_b0,
    to_sky,
)


@dataclass(frozen=True, slots=True)
class Band:
    """How the Sun shines at one wavelength, in solar flux units (1e-22 W m⁻² Hz⁻¹) at 1 au.

    Attributes
    ----------
    quiet
        Without any activity.
    plage, spot, network
        Of 1e21 Mx in a region's plage, in spots, and in what has left its region.
    noise
        Standard deviation of a daily value, as a share of it.
    """

    quiet: float
    plage: float
    spot: float
    network: float
    noise: float


#: F10.7 is fitted to the yearly means and the day-to-day changes of the observed one in 2010-18; F30 has the
#: shares that Dudok de Wit & Bruinsma (2017) describe: more of plage and network, less of spots.
BANDS = {
    "f30": Band(quiet=54.0, plage=0.62, spot=0.7, network=0.04, noise=0.010),
    "f107": Band(quiet=66.0, plage=0.75, spot=2.4, network=0.02, noise=0.010),
}

#: Scale heights in solar radii of what stands over plage and over spots.
_PLAGE_HEIGHT, _SPOT_HEIGHT = 0.05, 0.025


def _seen(z: Doubles, thin: float, height: float) -> Doubles:
    """Share of an emission that reaches the observer from where the cosine of the heliocentric angle is `z`.

    A share `thin` of it is optically thin, the rest foreshortened; beyond the limb one sees what of the
    former stands higher than the limb hides.
    """
    hidden = 1 / np.sqrt(np.maximum(1 - np.minimum(z, 0) ** 2, 1e-6)) - 1
    out: Doubles = np.where(z > 0, thin + (1 - thin) * z, thin * np.exp(-hidden / height))
    return out


def components(windows: list[Window], t: float) -> Doubles:
    """Return (3,) what is seen of plage, spots and network at `t`, in 1e21 Mx.

    Parameters
    ----------
    windows
        All that reach back ``MAX_TRANSPORT_DAYS``.
    t
        Days since 2000-01-01 UTC.
    """
    total = np.zeros(3)
    for w in windows:
        age = t - w.birth
        here = (age > 0) & (age < MAX_TRANSPORT_DAYS)
        if not here.any():
            continue
        flux = w.flux / GAUSS_PER_1E21_MX
        still = flux * strength(w, age)
        since = np.maximum(age - w.rise, 0)
        # Spots have the share of a region that `make_window` gives them, and go sooner than its plage.
        share = np.clip(0.16 * np.log2(np.maximum(flux, 0.1) / 2.0), 0, 0.28) * np.exp(
            -since / (1.5 * w.decay)
        )
        gone = flux * (1 - np.exp(-since / w.decay)) * np.exp(-age / 120)
        z = to_sky(w.lat, w.lon + rotation(w.lat) * age, tilt_b0(t))[2]
        parts = (
            still * (1 - share) * _seen(z, 0.5, _PLAGE_HEIGHT),
            still * share * _seen(z, 0.4, _SPOT_HEIGHT),
            # By the time it is network it has spread far over the Sun.
            gone * (1 + z) / 2,
        )
        total += [float(part[here].sum()) for part in parts]
    return total


def flux(seen: Doubles, t: float, band: Band, seed: int) -> tuple[float, float]:
    """Return the flux at `t` as observed at the Earth, and adjusted to 1 au: both in solar flux units.

    Parameters
    ----------
    seen
        See `components`.
    t
        Days since 2000-01-01 UTC.
    band
        The wavelength.
    seed
        Of the noise, which is the same whenever the same instant is asked for.
    """
    adjusted = band.quiet + float(seen @ (band.plage, band.spot, band.network))
    adjusted *= 1 + band.noise * float(normal(seed, round(t * 1440), round(band.quiet * 10), 41))
    return adjusted * (solar_radius_arcsec(t) / 959.63) ** 2, adjusted
