"""Hold the synthetic Sun against the real one: statistics, profiles, spectra, histograms, correlations.

Run as ``python -m benchmarks.synthetic_sun --real ../shared/data/real``: writes
benchmarks/results/synthetic_sun.json and the plots of docs/explanation/synthetic-sun.md.
"""

from __future__ import annotations

import resource
import time as clock
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import scipy.special

from benchmarks.common import command, keep
from sunzip.channels import NAMES
from sunzip.cube import DISK_RADIUS_512
from sunzip.sources import open_source
from sunzip.sources.series import join
from sunzip.sources.synthetic import render

IMAGES = Path(__file__).parents[1] / "docs" / "images"

#: Mean, standard deviation and maximum of 16,893 aligned frames of SDOML v2, 2010-14.
TABLE: dict[str, tuple[float, float, float]] = {
    "94A": (0.53, 1.11, 12657), "131A": (3.23, 4.84, 6171), "171A": (109.5, 124.6, 40492),
    "193A": (117.3, 155.9, 39819), "211A": (34.2, 59.3, 5831), "304A": (28.6, 33.3, 16093),
    "335A": (2.02, 5.00, 6720), "1600A": (35.8, 37.2, 5671), "1700A": (445.0, 470.0, 29253),
    "Bx": (0.09, 41.4, 4151), "By": (-0.01, 40.2, 4437), "Bz": (-0.06, 14.1, 3330),
}  # fmt: skip

#: The 12-channel day of which the real Sun gives eight.
DAY = "2024-10-04T16:17"
EIGHT = ("131A", "171A", "193A", "211A", "304A", "335A", "1600A", "1700A")
#: Edges of rings in solar radii, and percentiles of histograms.
RINGS = np.r_[np.arange(0, 0.9, 0.1), 0.9, 0.94, 0.97, 0.99, np.arange(1.01, 1.29, 0.03)]
PERCENT = (0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)
HOURS = (1, 2, 4, 8, 12, 24)

Image = npt.NDArray[np.float32]


def radius(n: int) -> npt.NDArray[np.float64]:
    """(n, n) distance from the middle of the disk in solar radii."""
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    out: npt.NDArray[np.float64] = np.hypot(x, y) / (DISK_RADIUS_512 * n / 512)
    return out


def profile(image: Image) -> npt.NDArray[np.float64]:
    """Mean of each ring, in units of the mean of the disk."""
    r = radius(image.shape[0])
    which = np.digitize(r, RINGS) - 1
    inside = which < len(RINGS) - 1
    total = np.bincount(which[inside], image[inside], len(RINGS) - 1)
    out: npt.NDArray[np.float64] = total / np.bincount(which[inside], minlength=len(RINGS) - 1)
    return out / image[r < 1].mean()


def spectrum(image: Image, root: bool = True) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Power by spatial frequency (cycles per pixel) of the middle half of the image, Hann-windowed.

    AIA images are taken to the square root, which makes their noise even, and divided by their mean.
    """
    n = image.shape[0]
    part = image[n // 4 : -n // 4, n // 4 : -n // 4].astype(np.float64)
    if root:
        part = np.sqrt(np.maximum(part, 0))
        part = part / part.mean()
    m = part.shape[0]
    window = np.hanning(m)
    power = np.abs(np.fft.rfft2((part - part.mean()) * np.outer(window, window))) ** 2
    k = np.hypot(np.fft.fftfreq(m)[:, None], np.fft.rfftfreq(m)[None, :])
    edges = np.geomspace(0.012, 0.5, 16)
    which = np.digitize(k, edges)
    mean = np.array([power[which == j].mean() for j in range(1, len(edges))])
    return np.sqrt(edges[:-1] * edges[1:]), mean


def slope(k: npt.NDArray[np.float64], power: npt.NDArray[np.float64]) -> float:
    """Exponent of the power law between 0.02 and 0.25 cycles per pixel."""
    use = (k > 0.02) & (k < 0.25)
    return float(np.polyfit(np.log(k[use]), np.log(power[use]), 1)[0])


def correlations(frame: dict[str, Image]) -> list[list[float]]:
    """Correlation of the square roots of every two images."""
    flat = np.stack([np.sqrt(np.maximum(image, 0)).ravel() for image in frame.values()])
    return np.corrcoef(flat).round(4).tolist()


def frame(when: str | np.datetime64, seed: int, size: int = 512) -> dict[str, Image]:
    """One synthetic frame by channel."""
    return dict(zip(NAMES, render(when, size=size, seed=seed), strict=True))


def statistics(frames: int) -> dict[str, Any]:
    """Mean and standard deviation over the years of the table, of several Suns."""
    start = np.datetime64("2010-06-01T00:00:00")
    span = (np.datetime64("2014-12-31") - start) / np.timedelta64(1, "s")
    sums = np.zeros((3, len(NAMES)))
    sums[2] = -np.inf
    for i in range(frames):
        # Four dates from each Sun, all over the span.
        when = start + np.timedelta64(int(span * (i * 0.618034 % 1)), "s")
        image = render(when, size=512, seed=100 + i // 4).astype(np.float64).reshape(len(NAMES), -1)
        sums[:2] += image.mean(1), (image**2).mean(1)
        sums[2] = np.maximum(sums[2], np.abs(image).max(1))
    mean = sums[0] / frames
    std = np.sqrt(sums[1] / frames - mean**2)
    return {
        name: {
            "table": TABLE[name], "mean": m, "std": s, "max": top,
            "mean_ratio": m / TABLE[name][0] if name[0] != "B" else None, "std_ratio": s / TABLE[name][1],
        }
        for name, m, s, top in zip(NAMES, mean, std, sums[2], strict=True)
    }  # fmt: skip


def compare(real: dict[str, list[Image]], synthetic: list[dict[str, Image]]) -> dict[str, Any]:
    """Profile, spectrum and histogram of each channel of which there is a real image."""
    inner = radius(512) < 0.97
    out: dict[str, Any] = {}
    for name, images in real.items():
        found: dict[str, Any] = {}
        for who, these in (("real", images), ("synthetic", [s[name] for s in synthetic])):
            root = name[0] != "B"
            spectra = [spectrum(image, root) for image in these]
            power = np.exp(np.mean([np.log(p) for _, p in spectra], axis=0))
            found[who] = {
                "images": len(these),
                "power": power.tolist(),
                "slope": slope(spectra[0][0], power),
                "slopes": [slope(*s) for s in spectra],
                "percentiles": np.percentile(np.stack([i[inner] for i in these]), PERCENT).tolist(),
            }
            if root:
                found[who]["profile"] = np.mean([profile(i) for i in these], axis=0).tolist()
        out[name] = {"k": spectra[0][0].tolist(), **found}
    return out


def change(series: dict[int, Image]) -> list[float]:
    """Share of variance that is new after each of `HOURS`: 1 − r of frames so far apart."""
    out = []
    for lag in HOURS:
        pairs = [(series[t], series[t + lag]) for t in series if t + lag in series]
        out.append(float(1 - np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])))
    return out


def hours(real: Path) -> dict[str, Any]:
    """How fast 171 Å changes, in the hourly series of August 2017 at 128²."""
    with np.load(real / "aia171_hourly_8bit_128px.npz") as file:
        when = file["dates"].astype("M8[h]")
        known = dict(zip((when - when[0]).astype(int).tolist(), file["images"], strict=True))
    start = np.datetime64("2017-08-07T00:00:00")
    made = []
    for seed in range(4):
        at = [0, 1, 2, 4, 8, 12, 24, 25, 26, 28, 32, 36, 48]
        made.append(
            change({h: render(start + np.timedelta64(h, "h"), size=128, seed=200 + seed)[2] for h in at})
        )
    return {"hours": HOURS, "real": change(known), "synthetic": np.mean(made, axis=0).tolist(), "suns": made}


def speed(frames: int) -> dict[str, Any]:
    """Frames per second of two threads at 512² × 12, at a cadence of an hour, and CPU seconds per frame."""
    start = np.datetime64("2014-02-01T00:00:00")
    render(start, size=512, seed=300)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), clock.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda h: render(start + np.timedelta64(h, "h"), size=512, seed=300), range(frames)))
    seconds, after = clock.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "frames": frames,
        "frames_per_second": frames / seconds,
        "cpu_seconds_per_frame": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        / frames,
    }


def measure(real: Path, frames: int) -> dict[str, Any]:
    """All comparisons."""
    store = open_source(str(real / "sdomlv2_real.zarr"))
    october = join([store], start="2024-01-01").read(0, 1)
    day = {name: october.data[0, october.channels.index(name)] for name in EIGHT}
    january = join([store], stop="2018-01-01")
    quiet = [f for t in range(len(january)) for f in january.read(t, t + 1).data[0] if np.isfinite(f).any()]
    bz = join([open_source(str(real / "sdoml_v1"))]).read(0, 1).data[0, 0]
    days = [frame(DAY, 400 + s) for s in range(8)]
    quiet_days = [
        {"193A": frame(np.datetime64("2017-01-03T23:00") + np.timedelta64(4 * s, "D"), 500 + s)["193A"]}
        for s in range(7)
    ]
    return {
        "speed": speed(12),
        "statistics": {"frames": frames, "channels": statistics(frames)},
        "rings": ((RINGS[:-1] + RINGS[1:]) / 2).tolist(),
        "percent": PERCENT,
        "2024-10-04": compare({name: [image] for name, image in day.items()}, days),
        "2017-01": compare({"193A": quiet}, quiet_days),
        "2013-01-31": compare({"Bz": [bz]}, [frame("2013-01-31T00:00", 600 + s) for s in range(6)]),
        "correlations": {
            "channels": EIGHT,
            "real": correlations(day),
            "synthetic": np.mean([correlations({n: d[n] for n in EIGHT}) for d in days], axis=0).tolist(),
        },
        "hours": hours(real),
    }


def _axes(count: int, columns: int, width: float = 2.6, height: float = 2.1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def _keep(figure: Any, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"synthetic-sun-{name}.png", dpi=90, pil_kwargs={"optimize": True})


# What stands along the axes of the plots that have a panel for each channel.
_LABELS = {
    "profiles": ("distance from the middle of the disk, in its radii", "brightness, in the disk's mean"),
    "spectra": ("cycles per pixel", "power; slopes: real / synthetic"),
    "histograms": ("pixels of the disk below, on a normal scale", "DN/s, Bz G"),
}


def draw(result: dict[str, Any]) -> None:
    """Draw all plots: real black, synthetic orange."""
    figure, (axis,) = _axes(1, 1, 7.5, 3.0)
    channels = result["statistics"]["channels"]
    at = np.arange(len(NAMES))
    axis.axhspan(1 / 1.5, 1.5, color="0.92")
    axis.axhline(1, color="0.6", lw=0.8)
    for key, marker in (("mean_ratio", "o"), ("std_ratio", "s")):
        axis.plot(at, [channels[n][key] or np.nan for n in NAMES], marker, label=key.replace("_ratio", ""))
    axis.set(
        xticks=at, xticklabels=NAMES, ylabel="synthetic / SDOML v2 2010-14", yscale="log", ylim=(0.4, 2.5)
    )
    axis.set_yticks([0.5, 0.67, 1, 1.5, 2], ["0.5", "0.67", "1", "1.5", "2"], minor=False)
    axis.minorticks_off()
    axis.legend()
    _keep(figure, "statistics")

    dates = ("2024-10-04", "2017-01", "2013-01-31")
    day = {f"{name} {date}": c for date in dates for name, c in result[date].items()}
    looks = {"real": {"color": "k", "lw": 1.4}, "synthetic": {"color": "C1", "lw": 1.4}}
    euv = {n: c for n, c in day.items() if "profile" in c["real"]}
    for name, what in (("profiles", euv), ("spectra", day), ("histograms", day)):
        figure, axes = _axes(len(what), 5)
        for axis, (title, c) in zip(axes, what.items(), strict=True):
            for who, look in looks.items():
                if name == "profiles":
                    axis.plot(result["rings"], c[who]["profile"], **look)
                elif name == "spectra":
                    axis.loglog(c["k"], c[who]["power"], **look)
                else:
                    axis.plot(
                        scipy.special.ndtri(np.array(result["percent"]) / 100), c[who]["percentiles"], **look
                    )
            axis.set_title(title, fontsize=9)
            axis.tick_params(which="both", labelsize=7)
            if name == "profiles":
                axis.set(yscale="log", ylim=(0.02, 5))
            elif name == "spectra":
                told = f"slope {c['real']['slope']:.2f} / {c['synthetic']['slope']:.2f}"
                axis.set_xticks([0.02, 0.1, 0.4], ["0.02", "0.1", "0.4"])
                axis.minorticks_off()
                axis.text(0.05, 0.08, told, transform=axis.transAxes, fontsize=7)
            else:
                axis.set_yscale("symlog" if title.startswith("Bz") else "log")
                axis.set_xticks(
                    scipy.special.ndtri([0.001, 0.1, 0.5, 0.9, 0.999]), ["0.1", "10", "50", "90", "99.9 %"]
                )
        across, up = _LABELS[name]
        figure.supxlabel(across, fontsize=9)
        figure.supylabel(up, fontsize=9)
        figure.legend(axes[0].lines, looks, loc="outside upper right", ncols=2, fontsize=8)
        _keep(figure, name)

    figure, axes = _axes(2, 2, 3.6, 3.2)
    found = result["correlations"]
    for axis, who in zip(axes, looks, strict=True):
        picture = axis.imshow(found[who], vmin=0, vmax=1, cmap="viridis")
        ticks = np.arange(len(found["channels"]))
        axis.set_xticks(ticks, found["channels"], rotation=90, fontsize=7)
        axis.set_yticks(ticks, found["channels"], fontsize=7)
        axis.set_title(who, fontsize=9)
        for i in ticks:
            for j in ticks:
                v = found[who][i][j]
                axis.text(
                    j, i, f"{v:.2f}", ha="center", va="center", fontsize=5.5, color="w" if v < 0.6 else "k"
                )
    figure.colorbar(picture, ax=axes, shrink=0.8)
    _keep(figure, "correlations")

    figure, (axis,) = _axes(1, 1, 4.5, 3.0)
    for who, look in looks.items():
        axis.loglog(HOURS, result["hours"][who], "o-", label=who, **look)
    for sun in result["hours"]["suns"]:
        axis.loglog(HOURS, sun, color="C1", lw=0.5)
    axis.set_xticks(HOURS, list(map(str, HOURS)))
    axis.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
    axis.minorticks_off()
    axis.set(xlabel="hours", ylabel="1 − r, 171 Å at 128²")
    axis.legend()
    _keep(figure, "hours")


def picture() -> None:
    """Draw the 12 channels of one frame."""
    import matplotlib as mpl
    from PIL import Image as Pillow

    from sunzip.channels import CHANNELS

    rows = []
    image = render("2014-02-01T00:00:00", size=512, seed=1)
    for known, values in zip(CHANNELS, image, strict=True):
        small = values.reshape(256, 2, 256, 2).mean((1, 3))[::-1]
        if known.unit == "G":
            shade, colours = (small.clip(-150, 150) + 150) / 300, mpl.colormaps["gray"]
        else:
            import sunpy.visualization.colormaps  # noqa: F401 - registers the instruments' colours

            low, high = np.percentile(small, [20, 99.8])
            shade, colours = (
                np.sqrt((small - low).clip(0, high - low) / (high - low)),
                mpl.colormaps[known.cmap],
            )
        rows.append((colours(shade)[..., :3] * 255).astype(np.uint8))
    sheet = np.concatenate([np.concatenate(rows[i : i + 4], axis=1) for i in (0, 4, 8)])
    Pillow.fromarray(sheet).save(IMAGES / "synthetic-sun.jpg", quality=80, optimize=True)


@click.command()
@click.option("--real", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--frames", default=48, show_default=True, help="Synthetic frames for the statistics.")
def main(real: Path, frames: int) -> None:
    """Compare, keep the numbers and draw the plots."""
    result = {"command": command("synthetic_sun"), **measure(real, frames)}
    click.echo(f"{keep('synthetic_sun', result)}: kept")
    draw(result)
    picture()


if __name__ == "__main__":
    main()
