"""Images of Suns that never were, drawn from a model's latent space, and how far they are from real ones."""

from __future__ import annotations

import io
import os
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sunzip import quicklook, weights
from sunzip.api import Alignment, OnProgress, Progress, open_series, replacing
from sunzip.channels import NAMES, channel
from sunzip.codec import Codec, codec_for
from sunzip.codec.lanes import side_by_side
from sunzip.cube import DISK_RADIUS, PIXEL_OF_512, Cube, Header, Scale
from sunzip.display import Report
from sunzip.errors import InputError, OutputError
from sunzip.normalize import Stabiliser
from sunzip.sinks.base import Target
from sunzip.sinks.sdoml_v2 import SdomlV2Sink
from sunzip.studies.density import MIN_FRAMES, Mixture, library
from sunzip.studies.extractors import decoded
from sunzip.studies.realism import Looks, distance, nearest
from sunzip.sun import Sun
from sunzip.sun import open as open_sun
from sunzip.times import format_utc, parse_date, t_obs_keyword
from sunzip.weights import Model

if TYPE_CHECKING:
    from PIL.Image import Image

Density = Literal["prior", "posterior"]
Float = npt.NDArray[np.float32]

#: Samples have no time, but a store wants one of each: from here on, ten years before SDO, they are numbered.
FIRST_TIME = np.datetime64("2000-01-01T00:00:00.000", "ms")
_STEP = np.timedelta64(12, "m")

#: More pages than this make a picture that no viewer opens.
MAX_PAGES = 24

# Latents that are held at a time: 256 MB.
_MAX_NUMBERS = 1 << 26

# Frames of either kind that realism is measured on.
_MAX_COMPARED = 256

# Frames that are decoded side by side before the first of them is written.
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class GenerateReport(Report):
    """What `generate` wrote.

    Attributes
    ----------
    path, count, channels, shape
        The target, and the frames in it.
    model, model_sha256
        What decoded them.
    kind
        ``"prior"``, ``"posterior"`` or ``"between"``.
    seed
        Of the samples; None between two dates, where nothing is drawn.
    density
        What was fitted for ``"posterior"``: ``frames`` of the archive, ``dimensions`` and the share of the
        variance ``kept`` in them, Gaussian ``components``.
    first, last
        Times under which a store holds the frames.
    realism
        See `Comparison.result`; None if nothing was compared.
    seconds
        Wall time.
    """

    path: str
    count: int
    channels: tuple[str, ...]
    shape: tuple[int, int]
    model: str
    model_sha256: str
    kind: str
    seed: int | None
    density: dict[str, Any] | None
    first: str
    last: str
    realism: dict[str, Any] | None
    seconds: float


def generate(
    out: str | os.PathLike[str],
    *,
    model: str | Path | Model | None = None,
    count: int = 1,
    seed: int = 0,
    density: Density = "prior",
    latents: str | os.PathLike[str] | None = None,
    between: tuple[str, str] | None = None,
    compare: str | os.PathLike[str] | None = None,
    hmi: str | None = None,
    anon: bool = False,
    force: bool = False,
    progress: OnProgress | None = None,
) -> GenerateReport:
    """Draw latents, decode them to physical units, and write the images; say how real they look.

    Parameters
    ----------
    out
        ``*.png``, a page with a panel per channel for each frame, or ``*.zarr``, a store in the layout of
        SDOML v2 whose attributes and keywords say that nothing in it was observed.
    model
        Needed unless `latents` is given, whose model is used then.
    count
        Frames; between two dates both ends count.
    seed
        Of the draws. The frame of a number is the same however many are drawn.
    density
        ``"prior"``: z ~ N(0, I), which only a σ-VAE has. ``"posterior"``: a mixture of Gaussians, fitted to
        the latents of an archive.
    latents
        The archive.
    between
        Two times: instead of drawing, go in a straight line from the latents of the archive's frame
        nearest to the one to those of the frame nearest to the other.
    compare
        Archive (``*.lat``) or source of frames that training did not see, to measure realism against.
    hmi
        Of that source, as in `sunzip.api.open_series`.
    anon
        Read what is on S3 without credentials.
    force
        Replace what is at `out`.
    progress
        Called with a `Progress` at the beginning and after each frame.

    Raises
    ------
    InputError
        If the arguments do not go together, the model has no prior, the archive has too few frames or an
        optional package is missing.
    OutputError, DamagedError, ModelNotFoundError
        See `sunzip.errors`.

    References
    ----------
    Figure 3 and section 3.2 of Brown et al., "Learning the solar latent space".
    """
    begin = clock.monotonic()
    path = os.fspath(out).rstrip("/")
    form = path.lower().rpartition(".")[2]
    if form not in ("png", "zarr"):
        raise OutputError(f"{path}: a picture or a store is written; name it *.png or *.zarr")
    if count < 1 or (between is not None and count < 2):
        raise InputError(f"{count} frames; there must be at least {1 if between is None else 2}")
    if form == "png" and count > MAX_PAGES:
        raise InputError(f"{path}: {count} frames are too many for a picture; write a *.zarr")
    if latents is None:
        if between is not None or density == "posterior":
            what = "interpolation" if between is not None else "the posterior"
            raise InputError(f"{what} needs the latents of an archive; name one")
        if model is None:
            raise InputError("no model named, nor an archive that names one")
        plan = _Plan.of_prior(_codec_of(model), count, seed)
    else:
        with open_sun(latents, model=model, anon=anon) as sun:
            if between is not None:
                plan = _Plan.between(sun, between, count)
            elif density == "posterior":
                plan = _Plan.of_posterior(sun, count, seed)
            else:
                plan = _Plan.of_prior(sun.codec, count, seed)
            # With a wavelet model these are whole images of the archive, all of them decoded.
            if compare is not None and plan.known is None:
                plan.known = plan.space.known(sun)
    comparison = None if compare is None else Comparison(plan, compare, hmi=hmi, anon=anon)
    with replacing(path, force) as target:
        sink = _Pages(target, plan) if form == "png" else _Store(target, plan)
        with sink:
            if progress:
                progress(Progress(0, count, 0, 0))
            for i, frame in enumerate(plan.frames()):
                sink.write(i, frame)
                if comparison:
                    comparison.add(i, frame)
                if progress:
                    progress(Progress(i + 1, count, (i + 1) * frame.nbytes, 0))
    first, last = format_utc(plan.time[[0, -1]])
    return GenerateReport(
        path=path,
        count=count,
        channels=plan.channels,
        shape=plan.shape,
        model=plan.codec.model.name,
        model_sha256=plan.codec.model.sha256,
        kind=plan.kind,
        seed=plan.seed,
        density=plan.density,
        first=first,
        last=last,
        realism=comparison.result() if comparison else None,
        seconds=clock.monotonic() - begin,
    )


def _codec_of(model: str | Path | Model) -> Codec:
    found = model if isinstance(model, Model) else weights.load(model)
    weights.register(found)
    return codec_for(found.sha256)


@dataclass(frozen=True, slots=True)
class _Space:
    """Where frames are drawn: a model's latents, or pictures in units of noise.

    The latter stand for a wavelet model, which is one step of arithmetic away from them; what `Sun.latents`
    gives of it is a small picture, from which no frame can be made.

    Attributes
    ----------
    codec, channels, shape
        The model, and the frames.
    """

    codec: Codec
    channels: tuple[str, ...]
    shape: tuple[int, int]

    @property
    def of_pictures(self) -> bool:
        return self.codec.model.family == "wavelet"

    @property
    def _stabiliser(self) -> Stabiliser:
        return self.codec.family.stabiliser.subset([NAMES.index(n) for n in self.channels])

    def frames(self, sun: Sun, numbers: Sequence[int]) -> Float:
        """Return (N, …) float32 of some frames, by rising numbers, of an archive with the same channels."""
        if not self.of_pictures:
            return sun.latents.take(numbers)
        out = np.empty((len(numbers), len(self.channels), *self.shape), np.float32)
        for i, images in enumerate(decoded(sun, numbers, self.channels)):
            out[i] = self.frame(images)
        return out

    def frame(self, frame: Float) -> Float:
        """Return the same of a (C, Y, X) frame in DN/s (2×2 means) and G."""
        if self.of_pictures:
            return self._stabiliser.forward(np.nan_to_num(frame))
        found: Float = self.codec.latents(self.codec.encode(frame[None], self.channels), self.shape)[0]
        return found

    def decode(self, z: Float) -> Float:
        """Turn one point into a frame: (C, Y, X) in DN/s (2×2 means) and G."""
        images = z
        if not self.of_pictures:
            indexes = [NAMES.index(n) for n in self.channels]
            images = self.codec.family.show(z, indexes, indexes, self.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.nan_to_num(self._stabiliser.inverse(images))

    def known(self, sun: Sun) -> Float:
        """Return (N, …) of an archive's frames that hold all its channels, thinned if they are too many.

        Frames that are stored as pixels have no latents and are left out.
        """
        whole = np.flatnonzero(sun.archive.valid.all(1))
        size = np.prod((len(self.channels), *self.shape) if self.of_pictures else sun.latents.shape[1:])
        found = self.frames(sun, _thinned(whole, max(MIN_FRAMES, _MAX_NUMBERS // int(size))).tolist())
        return found[np.isfinite(found).all(axis=tuple(range(1, found.ndim)))]


@dataclass(slots=True)
class _Plan:
    """The latents of all frames to come, and what to do with them.

    Attributes
    ----------
    space
        Where they are, and how they are decoded.
    kind, seed, density
        See `GenerateReport`.
    z
        (count, …) float32 latents.
    time
        (count,) datetime64[ms].
    known
        (N, …) latents of the archive's frames, of which there may be none; None without an archive, or where
        nobody asks for them.
    """

    space: _Space
    kind: str
    seed: int | None
    density: dict[str, Any] | None
    z: Float
    time: npt.NDArray[np.datetime64]
    known: Float | None = None

    @property
    def codec(self) -> Codec:
        return self.space.codec

    @property
    def channels(self) -> tuple[str, ...]:
        return self.space.channels

    @property
    def shape(self) -> tuple[int, int]:
        return self.space.shape

    @classmethod
    def of_prior(cls, codec: Codec, count: int, seed: int) -> _Plan:
        if codec.model.family != "sigma-vae":
            raise InputError(
                f"model {codec.model.name} has no prior of whole frames, as only σ-VAEs have; "
                "draw from the posterior of an archive's latents"
            )
        codec.family.load()  # which says so if PyTorch is not installed
        from sunzip.nn.sigma_vae import SIZE

        shape = codec.family.latent_shape(SIZE, SIZE)
        z = np.stack([_rng(seed, i).standard_normal(shape, np.float32) for i in range(count)])
        return cls(_Space(codec, NAMES, (SIZE, SIZE)), "prior", seed, None, z, _numbered(count))

    @classmethod
    def of_posterior(cls, sun: Sun, count: int, seed: int) -> _Plan:
        library()
        space = _Space(sun.codec, sun.channels, sun.archive.shape)
        known = space.known(sun)
        if len(known) < MIN_FRAMES:
            raise InputError(
                f"{sun.archive.path}: {len(known)} frames hold all of its channels, as latents; "
                f"a density needs at least {MIN_FRAMES}"
            )
        mixture = Mixture.fit(known.reshape(len(known), -1))
        z = np.stack([mixture.sample(_rng(seed, i)) for i in range(count)]).reshape(count, *known.shape[1:])
        found = {
            "frames": len(known),
            "dimensions": len(mixture.axes),
            "kept": mixture.kept,
            "components": len(mixture.weights),
        }
        return cls(space, "posterior", seed, found, z, _numbered(count), known)

    @classmethod
    def between(cls, sun: Sun, times: tuple[str, str], count: int) -> _Plan:
        first, last = (sun.frames(parse_date(t, name="time")) for t in times)
        if first == last:
            raise InputError(
                f"{sun.archive.path}: {times[0]} and {times[1]} are nearest to the same frame, "
                f"{sun.time[first]}; name two dates of the archive"
            )
        # A store goes forward in time, whichever way the line does.
        first, last = sorted((first, last))
        for i in first, last:
            absent = [n for n, there in zip(sun.channels, sun.archive.valid[i], strict=True) if not there]
            if absent:
                raise InputError(
                    f"{sun.archive.path}: the frame of {sun.time[i]} has no image of {absent[0]} to "
                    "interpolate from; name another date"
                )
        space = _Space(sun.codec, sun.channels, sun.archive.shape)
        ends = space.frames(sun, [first, last])
        if not np.isfinite(ends).all():
            raise InputError(
                f"{sun.archive.path}: a frame to interpolate from is stored as pixels and has no latents; "
                "name another date"
            )
        along = np.linspace(0, 1, count)
        way = along.astype(np.float32).reshape(-1, *[1] * (ends.ndim - 1))
        span = (sun.time[last] - sun.time[first]).astype("m8[ms]").astype(np.int64)
        time = sun.time[first] + np.rint(along * span).astype(np.int64).astype("m8[ms]")
        z = ends[0] * (1 - way) + ends[1] * way
        return cls(space, "between", None, None, z, time)

    def frames(self) -> Iterator[Float]:
        """Yield the frames: (C, Y, X) in DN/s (2×2 means) and G, the same on any number of cores."""
        for begin in range(0, len(self.z), _TOGETHER):
            yield from side_by_side(self._decode, range(begin, min(begin + _TOGETHER, len(self.z))))

    def _decode(self, i: int) -> Float:
        return self.space.decode(self.z[i])

    def describe(self, i: int) -> str:
        """Say in one line what frame `i` is."""
        how = {
            "prior": f"drawn from N(0, I), seed {self.seed}",
            "posterior": f"drawn from a density of an archive's latents, seed {self.seed}",
            "between": f"between two dates, as of {_second(self.time[i])} UTC",
        }[self.kind]
        return f"generated by {self.codec.model.name}, {how}, {i + 1} of {len(self.z)}"


def _second(time: np.datetime64) -> str:
    """Return a time as people write it."""
    return str(time.astype("datetime64[s]")).replace("T", " ")


def _rng(seed: int, i: int) -> np.random.Generator:
    """Return the generator of one frame's draws, so that a frame does not depend on how many there are."""
    return np.random.default_rng([seed, i])


def _numbered(count: int) -> npt.NDArray[np.datetime64]:
    return FIRST_TIME + np.arange(count) * _STEP


def _thinned(numbers: npt.NDArray[np.intp], room: int) -> npt.NDArray[np.intp]:
    """Return at most `room` of some numbers, evenly spaced."""
    if len(numbers) <= room:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, room).round().astype(np.intp)]


class _Store:
    """The frames as a store in the layout of SDOML v2, each image saying that it was made up."""

    def __init__(self, path: str, plan: _Plan) -> None:
        self._plan = plan
        model = plan.codec.model
        self._sink = SdomlV2Sink(
            path,
            channels=plan.channels,
            shape=plan.shape,
            about={
                "generated": True,
                "description": "Images generated by sunzip; none of them is an observation, and times only "
                "number them" + (" between two real frames" if plan.kind == "between" else ""),
                "model": model.name,
                "model_sha256": model.sha256,
                "kind": plan.kind,
                "seed": plan.seed,
            },
        )

    def __enter__(self) -> _Store:
        self._sink.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sink.__exit__(*error)

    def write(self, i: int, frame: Float) -> None:
        """Append frame `i`."""
        time = self._plan.time[i : i + 1]
        observed = np.repeat(time[:, None], len(frame), axis=1)
        headers = [[self._header(name, i) for name in self._plan.channels]]
        valid = np.ones(observed.shape, bool)
        self._sink.write(Cube(frame[None], self._plan.channels, time, observed, valid, headers, Scale.MEAN))

    def _header(self, name: str, i: int) -> Header:
        what = channel(name)
        header: dict[str, str | int | float | bool | None] = {
            "T_OBS": t_obs_keyword(self._plan.time[i], what.instrument),
            # What tells instruments apart by these must not take it for one of theirs.
            "TELESCOP": "none: generated",
            "ORIGIN": "sunzip generate",
            "COMMENT": f"not an observation: {self._plan.describe(i)}",
            "WAVELNTH": what.wavelength,
            "WAVEUNIT": "angstrom",
            "PIXLUNIT": "DN/s" if what.instrument == "AIA" else "Gauss",
        }
        y, x = self._plan.shape
        if x == y:
            pixel = PIXEL_OF_512 * 512 / x
            for axis, kind in ((1, "HPLN-TAN"), (2, "HPLT-TAN")):
                header |= {
                    f"CTYPE{axis}": kind,
                    f"CUNIT{axis}": "arcsec",
                    f"CDELT{axis}": pixel,
                    f"CRPIX{axis}": (x + 1) / 2,
                    f"CRVAL{axis}": 0.0,
                }
            header |= {"RSUN_OBS": DISK_RADIUS, "R_SUN": DISK_RADIUS / pixel}
        return header


class _Pages(Target):
    """The frames as one PNG: a page of panels each, one below the other."""

    _is_file = True

    def __init__(self, path: str, plan: _Plan) -> None:
        self._plan = plan
        self._pages: list[Image] = []
        super().__init__(path)

    def write(self, i: int, frame: Float) -> None:
        """Draw frame `i`."""
        page = io.BytesIO()
        quicklook.render({"not an observation": frame}, self._plan.channels, self._plan.describe(i), page)
        # What draws brings it along.
        from PIL import Image

        self._pages.append(Image.open(page).convert("RGB"))

    def _begin(self) -> None:
        pass

    def _finish(self) -> None:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        width, height = self._pages[0].size
        whole = Image.new("RGB", (width, height * len(self._pages)))
        for i, page in enumerate(self._pages):
            whole.paste(page, (0, i * height))
        note = PngInfo()
        note.add_text("Description", f"not an observation: {self._plan.describe(0)}")
        note.add_text("Software", "sunzip generate")
        whole.save(self._partial, format="png", pnginfo=note)


class Comparison:
    """Generated frames held against held-out ones; those that a model would store as pixels are left out.

    Parameters
    ----------
    plan
        What is generated.
    path
        Archive or source of the held-out frames.
    hmi, anon
        As in `sunzip.api.open_series`.

    Raises
    ------
    InputError
        If the frames have another size or lack channels, or there are fewer than two.
    """

    def __init__(
        self, plan: _Plan, path: str | os.PathLike[str], *, hmi: str | None = None, anon: bool = False
    ) -> None:
        self._plan = plan
        self._path = os.fspath(path)
        self._ours = Looks(plan.channels, plan.shape)
        held = [(frame, z) for frame, z in self._held_out(hmi, anon) if np.isfinite(z).all()]
        if len(held) < 2:
            raise InputError(
                f"{self._path}: {len(held)} frames hold {' '.join(plan.channels)}, as latents; two are needed"
            )
        self._latents = np.stack([z for _, z in held])
        self._looks = Looks(plan.channels, plan.shape)
        # Halves in time: neighbours are too much alike to tell how different Suns are.
        halves = Looks(plan.channels, plan.shape), Looks(plan.channels, plan.shape)
        for n, (frame, _) in enumerate(held):
            self._looks.add(frame)
            halves[2 * n // len(held)].add(frame)
        self._among, self._among_correlation = distance(*halves)

    def _held_out(self, hmi: str | None, anon: bool) -> Iterator[tuple[Float, Float]]:
        """Yield frames and their latents."""
        space, names, shape = self._plan.space, self._plan.channels, self._plan.shape
        if self._path.lower().endswith(".lat"):
            with open_sun(self._path, anon=anon) as sun:
                if sun.archive.shape != shape:
                    raise InputError(_other_size(self._path, sun.archive.shape, shape))
                lacking = [n for n in names if n not in sun.channels]
                if lacking:
                    raise InputError(f"{self._path}: has no {lacking[0]}, which is generated")
                # What was coded by the same model need not be coded again.
                same = (
                    not space.of_pictures
                    and sun.archive.model["sha256"] == space.codec.model.sha256
                    and sun.channels == names
                )
                columns = [sun.channels.index(n) for n in names]
                whole = np.flatnonzero(sun.archive.valid[:, columns].all(1))
                numbers = _thinned(whole, _MAX_COMPARED).tolist()
                for i, frame in zip(numbers, decoded(sun, numbers, names), strict=True):
                    yield frame, space.frames(sun, [i])[0] if same else space.frame(frame)
            return
        size = shape[0] if shape[0] == shape[1] else None
        align = Alignment(channels=names, missing="drop", size=size)
        series = open_series(self._path, hmi=hmi, anon=anon, align=align)
        if series.shape != shape:
            raise InputError(_other_size(self._path, series.shape, shape))
        for i in map(int, _thinned(np.arange(len(series)), _MAX_COMPARED)):
            cube = series.read(i, i + 1).to_scale(Scale.MEAN)
            if cube.valid.all():
                yield cube.data[0], space.frame(cube.data[0])

    def add(self, i: int, frame: Float) -> None:
        """Add generated frame `i`; beyond the first 256 they are not looked at."""
        if i < _MAX_COMPARED:
            self._ours.add(frame)

    def result(self) -> dict[str, Any]:
        """Return how real the frames look.

        Returns
        -------
        realism
            ``held_out`` (the path), ``frames`` and ``held_out_frames`` (how many were looked at);
            ``channels``: by name ``values`` (see `distance`) and ``slope`` (exponent of the power spectrum);
            ``correlation`` (see `distance`); ``nearest``: median distance to the nearest latents of the
            archive that the model was trained on, None without one. Beside each stands the same
            ``…_held_out``: of the held-out frames, or between their first and second half.
        """
        values, correlation = distance(self._ours, self._looks)
        rows = zip(
            self._plan.channels, values, self._among, self._ours.slopes(), self._looks.slopes(), strict=True
        )
        known = self._plan.known
        return {
            "held_out": self._path,
            "frames": len(self._ours.values),
            "held_out_frames": len(self._looks.values),
            "channels": {
                name: {"values": v, "values_held_out": w, "slope": s, "slope_held_out": t}
                for name, v, w, s, t in rows
            },
            "correlation": correlation,
            "correlation_held_out": self._among_correlation,
            "nearest": None if known is None else nearest(self._plan.z[:_MAX_COMPARED], known),
            "nearest_held_out": None if known is None else nearest(self._latents, known),
        }


def _other_size(path: str, theirs: tuple[int, int], ours: tuple[int, int]) -> str:
    there, here = ("×".join(map(str, shape)) for shape in (theirs, ours))
    return f"{path}: has frames of {there} pixels, those that are generated have {here}"
