"""From sources to a model's folder: what `sunzip train` does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sunzip import weights
from sunzip.api import Alignment, Sources, open_series
from sunzip.arguments import positive, whole
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.wavelet import WaveletFamily as WaveletCodec
from sunzip.display import Report
from sunzip.errors import InputError, OutputError, without_secrets
from sunzip.files import locked
from sunzip.nn.context import Context
from sunzip.nn.hyperprior import Hyperprior
from sunzip.nn.sigma_vae import BOTTLENECKS, SIZE, SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.sources.series import Series
from sunzip.times import format_utc
from sunzip.train import checkpoint
from sunzip.train.card import card, versions
from sunzip.train.data import View, Views, WholeFrames, spread
from sunzip.train.export import export_hyperprior, export_sigma_vae, fit_tables, halved
from sunzip.train.families import Family, HyperpriorFamily, Mode, SigmaVaeFamily, principal_components
from sunzip.train.films import Films, as_coded, as_they_were, shots_of
from sunzip.train.frames import Example, Frames, cached, forget_others, held_out
from sunzip.train.journal import BOARD, LOG, PICTURES, Journal
from sunzip.train.loop import CHECKPOINT, Advance, Outcome, Place, Recipe, bf16_is_faster, check_settings, fit
from sunzip.train.measure import (
    active_units,
    correlations,
    measure,
    pixels_of,
    posteriors,
    quantisation_steps,
)
from sunzip.train.pyramids import Pyramids, WaveletFamily
from sunzip.train.wavelet import Film, check_wavelet, export_wavelet, network_of
from sunzip.train.wavelet import fit_tables as fit_wavelet_tables
from sunzip.weights import Model, write

#: What can be trained.
MODELS = (*(f"sigma-vae-{b}" for b in BOTTLENECKS), "hyperprior", "wavelet")

#: Where a training keeps its state, beside the model.
TRAINING = "training"

#: Frames that the spread of channels, entropy tables, quantisation steps and final metrics are taken from,
#: evenly spread.
_SPREAD_FRAMES, _TABLE_FRAMES, _STEP_FRAMES, _MEASURED_FRAMES = 256, 2048, 128, 64

#: Pixels of held-out frames that are looked at by the way, per channel.
_LOOK_PIXELS = 1 << 18

#: Batches that the hyperprior's linear transforms begin with, and that its tables are fitted to, at these
#: qualities and in so many bands.
COMPONENT_BATCHES, _TABLE_BATCHES, _QUALITIES, _BANDS = 120, 30, range(3, 101, 7), 5

#: Films of which a wavelet model learns what an earlier frame tells, and the share of samples that are of
#: these; films that its tables are fitted to, twice, and the qualities at which, in turn.
_FILMS, _FILM_SHARE, _TABLE_FILMS = 60, 0.7, 15
_FILM_QUALITIES = (5, 95, 35, 65, 15, 80, 50, 25, 100, 45, 0, 70, 55, 90, 30)

#: Quality that a wavelet model has by default.
_WAVELET_QUALITY = 35

#: Frames at a time from which a σ-VAE's principal components are found, and how often each is seen if varied.
_COMPONENT_BATCH, _COMPONENT_VARIANTS = 32, 2

#: Sources that a model's notes name, and characters of the command that they keep: of thousands of files the
#: configuration would be longer than any that is read.
_SOURCES, _COMMAND = 100, 10_000

#: Samples of a step and peak learning rate of each model; of the σ-VAEs under "".
_DEFAULTS = {"hyperprior": (4, 8e-4), "wavelet": (3, 1e-3), "": (32, 1e-3)}

#: Least side of frames that a wavelet model learns from.
_SMALLEST = 32

#: How much less errors of the transverse field count in the hyperprior, as a factor of their spread: they are
#: mostly noise.
_TRANSVERSE = 4.0


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a part of the work before or after training has come."""

    what: str
    done: int
    total: int


Progress = Callable[[Stage | Advance], object]


@dataclass(frozen=True, slots=True)
class TrainReport(Report):
    """What a training came to.

    Attributes
    ----------
    path, model, sha256
        The folder, the kind of model, and its identity.
    model_bytes
        Of the model's files.
    steps, seconds
        Of training.
    train_frames
        Frames that were learned from.
    notes
        As the configuration keeps them.
    measured
        See `sunzip.train.measure.Measured`.
    began
        The same of the model that it began with, at the quality that the other was measured at; None if there
        was none.
    """

    path: str
    model: str
    sha256: str
    model_bytes: int
    steps: int
    seconds: float
    train_frames: int
    notes: dict[str, Any]
    measured: dict[str, Any]
    began: dict[str, Any] | None = None


def train(
    src: Sources,
    out: str | os.PathLike[str],
    *,
    model: str,
    sigma: Literal["scalar", "optimal", "per-channel"] | None = None,
    beta: float | None = None,
    hmi: str | None = None,
    anon: bool = False,
    degradation: str | None = None,
    align: Alignment | None = None,
    hold_out: Sequence[str] = (),
    fit_all: bool = False,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    rate: float | None = None,
    init: Literal["random", "pca"] | None = None,
    begin_with: str | None = None,
    augment: bool = True,
    seed: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    save_minutes: float = 10.0,
    resume: bool = False,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> TrainReport | None:
    """Train a model and write its folder.

    Frames are read by processes. As with all that Python spawns, a script must do its work under
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    src, hmi, anon, degradation, align
        As in `sunzip.api.open_series`.
    out
        The model's folder. What training itself needs is in its folder ``training``.
    model
        One of `MODELS`.
    sigma
        How the σ-VAE's loss sets σ; ``"scalar"``, the paper's, if absent.
    beta
        Eq. 1 of the paper with this factor of the KL divergence, in place of any σ.
    hold_out
        Rules for the frames that are never learned from, see `sunzip.train.frames.held_out`.
    fit_all
        Learn from all frames, and measure on them, as the paper does.
    steps, epochs, minutes
        When to end: whichever is first; at least one. 0 steps leave the network as it begins.
    batch, rate
        Samples of a step (of each process), and peak learning rate; by default the model's, which for a
        σ-VAE that begins at principal components is a thirtieth of the other.
    init
        Where the σ-VAE begins: at ``"random"`` weights, the default, or at the principal components of the
        frames, see `sunzip.train.initial`.
    begin_with
        Name or folder of the wavelet model whose network a wavelet model begins with, and which codes the
        frames before those that are learned from. Without one, frames before are taken as they were, which
        makes a model that such a second training needs.
    augment
        Whether frames are varied as the Sun itself varies, see `sunzip.train.data`. Wavelet models always
        see them mirrored and turned.
    seed
        Of everything random.
    precision, device
        ``"auto"`` takes what is faster, and a GPU if there is one.
    cache
        Folder for the frames as they are learned from; by default in ``training``.
    save_minutes
        Between checkpoints.
    resume
        Go on from the last checkpoint.
    force
        Replace what an earlier training wrote.
    command
        For the card.
    progress
        Called as the work goes on.

    Returns
    -------
    TrainReport
        None in all processes but the first.

    Raises
    ------
    InputError
        If an argument makes no sense or a source cannot be used.
    OutputError
        If the target cannot be written, or exists.
    DivergedError
        If training diverged.
    """
    mode = _mode(model, sigma, beta)
    if init and mode is None:
        raise InputError("--init belongs to the σ-VAE; other models begin in their own way")
    if begin_with and model != "wavelet":
        raise InputError("--from belongs to wavelet models; others cannot begin with a model's weights")
    coder = weights.load(begin_with) if begin_with else None
    if coder is not None:
        check_wavelet(coder)
    if steps is None and epochs is None and minutes is None:
        raise InputError("nothing says when training ends; give --steps, --epochs or --time-limit")
    numbers = {"--epochs": epochs, "--time-limit": minutes, "--rate": rate, "--beta": beta}
    epochs, minutes, rate, beta = (
        # NaN passes for a number in comparisons.
        None if number is None else positive(number, option)
        for option, number in numbers.items()
    )
    if steps is not None:
        steps = whole(steps, "--steps", 0)
    if batch is not None:
        # Batchnorm has no statistics of one sample.
        batch = whole(batch, "--batch", 2)
    seed = whole(seed, "--seed", 0, 2**32 - 1)
    if fit_all and hold_out:
        raise InputError("--fit-all learns from all frames, --hold-out from some; give one of them")
    out, name = Path(out), Path(out).resolve().name
    folder = out / TRAINING
    if not weights.is_name(name):
        raise OutputError(
            f"{out}: a model is called as its folder is, and {name!r} is no name of up to "
            f"{weights.LONGEST_NAME} printable characters; choose another"
        )
    series = open_series(src, hmi=hmi, anon=anon, degradation=degradation, align=align)
    _check_side(model, series.shape)
    _check_channels(model, series)
    _split(series.time, hold_out, fit_all=fit_all)
    tell = progress or (lambda _: None)
    with Place.found(device) as place, ExitStack() as ends:
        if place.leads:
            _claim(out, folder, ends, resume=resume, force=force)
        fingerprint = series.fingerprint()
        if place.leads and not resume:
            # They may be far larger than all else, and nothing would name them any more.
            forget_others(series, folder, fingerprint)
        settings: dict[str, Any] = {
            "model": model,
            "mode": mode,
            "beta": beta,
            "init": init or (coder.sha256 if coder else "random"),
            "frames": fingerprint[:16],
            "hold_out": ["all"] if fit_all else list(hold_out),
            "augment": augment,
            "processes": place.world,
        }
        old = folder / CHECKPOINT
        begun = None
        if resume:
            state = checkpoint.read_state(old) if old.exists() else None
            _check_shared(old, state, place)
            begun = state and state["settings"]
        if begun is not None:
            _check_begun(old, begun, settings)
        kept = partial(cached, series, Path(cache or folder), fingerprint=fingerprint)
        if place.leads:
            kept(progress=lambda done, total: tell(Stage("reading frames", done, total)))
        place.wait()
        frames = kept()
        # Reading may have told of fewer that are whole.
        held = _split(frames.time, hold_out, fit_all=fit_all)
        # Of a frame without any image there is nothing to learn, and nothing to measure.
        some = frames.present.any(1)
        kinds = ~held, held if held.any() else ~held
        learned, measured_on = (frames.take(np.flatnonzero(some & rows)) for rows in kinds)
        if not len(learned):
            raise InputError(f"{series.urls[0]}: no frame to train on has an image with measurements")
        if not len(measured_on):
            raise InputError(f"{series.urls[0]}: no frame held out has an image with measurements")
        if init == "pca" and len(learned) < 2:
            raise InputError("one frame to train on has no principal components; give more, or leave --init")
        stabiliser = stabiliser_of(model, [learned.spread_out(_SPREAD_FRAMES)])
        size = batch or _DEFAULTS.get(model, _DEFAULTS[""])[0]
        torch.manual_seed(seed)
        family: Family
        if model == "wavelet":
            family = _wavelet(learned, stabiliser, coder, batch=size, seed=seed, tell=tell)
        elif mode is None:
            views = Views([(1.0, learned)], stabiliser, batch=size, seed=seed, augment=augment)
            family = HyperpriorFamily(views)
        else:
            examples = WholeFrames(learned, batch=size, seed=seed, augment=augment)
            bottleneck = int(model.rpartition("-")[2])
            family = SigmaVaeFamily(
                examples, stabiliser, bottleneck, mode, beta or 1.0, settled=init == "pca"
            )
        recipe = Recipe(
            steps=_last_step(steps, epochs, len(learned) / (size * place.world)),
            minutes=minutes,
            batch=size,
            rate=rate or (3e-5 if init == "pca" else _DEFAULTS.get(model, _DEFAULTS[""])[1]),
            seed=seed,
        )
        half = _is_half(precision, begun, family, place, tell)
        if isinstance(family, HyperpriorFamily) and begun is None:
            tell(Stage("principal components", 0, 1))
            latents = family.network.shape["latents"]
            family.network.begin_as(*principal_components(family.views, latents, COMPONENT_BATCHES))
        if isinstance(family, SigmaVaeFamily) and init == "pca" and place.leads and begun is None:
            _begin(family, learned, augment=augment, seed=seed, tell=tell)
        place.wait()
        settings |= {
            "train_frames": len(learned),
            "recipe": asdict(recipe),
            "precision": "bf16" if half else "fp32",
        }
        outcome = fit(
            family,
            recipe,
            place,
            folder,
            settings=settings,
            half=half,
            resume=resume,
            save_minutes=save_minutes,
            # What the wavelet network foretells cannot be looked at.
            look=None if model == "wavelet" else _look(family, measured_on),
            progress=tell,
        )
        report = None
        if place.leads:
            notes: dict[str, Any] = {
                "model": model,
                "command": _shortened(without_secrets(command)),
                "data": {
                    "sources": list(series.urls[:_SOURCES]),
                    "more_sources": max(len(series.urls) - _SOURCES, 0),
                    "first": format_utc(frames.time[:1])[0],
                    "last": format_utc(frames.time[-1:])[0],
                    "size": list(series.shape),
                    "train_frames": len(learned),
                    "held_out_frames": int((some & held).sum()),
                    "held_out": _told(fit_all, hold_out, frames.time, held),
                    "fit_all": fit_all,
                },
                "recipe": asdict(recipe),
                "init": settings["init"],
                "augment": augment,
                "precision": settings["precision"],
                "device": _named(place),
                "steps": outcome.steps,
                "seconds": round(outcome.seconds, 1),
                "versions": versions(),
            }
            if mode is not None:
                notes["loss"] = {"sigma": mode} if mode != "beta" else {"beta": beta}
            made = _made(outcome.network, family, stabiliser, learned, name, notes, seed, tell)
            report = _judged(made, coder, measured_on, out, outcome, len(learned), tell)
        place.wait()
    return report


def _last_step(steps: int | None, epochs: float | None, per_epoch: float) -> int | None:
    """Return the step that ends a training by itself or by passes through all frames, whichever is first."""
    # More passes than anybody waits for may be more steps than a float tells.
    passes = max(1, round(min(epochs * per_epoch, 2**53))) if epochs else None
    return min((n for n in (steps, passes) if n is not None), default=None)


def _is_half(
    precision: str, begun: dict[str, Any] | None, family: Family, place: Place, tell: Progress
) -> bool:
    """Return whether to train in bfloat16: as asked for, as a training was begun, or as is faster here."""
    if precision != "auto":
        return precision == "bf16"
    if begun is not None:
        return begun.get("precision") == "bf16"
    tell(Stage("trying precisions", 0, 1))
    (faster,) = place.agree([float(bf16_is_faster(family, place.device, family.batches(0, 0, 1)))])
    return bool(faster)


def _shortened(command: str) -> str:
    return command if len(command) <= _COMMAND else f"{command[:_COMMAND]} …"


def _made(
    network: nn.Module,
    family: Family,
    stabiliser: Stabiliser,
    learned: Frames,
    name: str,
    notes: dict[str, Any],
    seed: int,
    tell: Progress,
) -> Model:
    """Make a model of a trained network, with what it learned from."""
    if isinstance(network, SigmaVAE):
        return finish_sigma_vae(network, stabiliser, learned, name, notes, tell)
    if isinstance(network, Context):
        shots = shots_of(learned, _TABLE_FILMS, seed + 1)
        shown = [partial(shot.read, learned, stabiliser) for shot in shots]
        return finish_wavelet(network, stabiliser, shown, name, notes, tell)
    assert isinstance(family, HyperpriorFamily)
    return finish_hyperprior(network, family.views, name, notes, tell)


def _judged(
    made: Model,
    coder: Model | None,
    frames: Frames,
    out: Path,
    outcome: Outcome,
    learned: int,
    tell: Progress,
) -> TrainReport:
    """Measure a model, and the one that it began with if there is one, on frames; write it with its card."""
    judged = frames.spread_out(_MEASURED_FRAMES)
    codec = Codec(made)
    measured = measure(codec, judged, lambda n, of: tell(Stage("measuring", n, of)))
    began = None
    if coder is not None:
        # Whether it was worth while is told at one quality, where steps are the same.
        began = measure(
            Codec(coder, codec.quality),
            judged,
            lambda n, of: tell(Stage("measuring the model that it began with", n, of)),
        )
    notes = made.config["training"]
    write(made, out, card(made, notes, measured, began))
    return TrainReport(
        os.fspath(out),
        notes["model"],
        made.sha256,
        made.nbytes,
        outcome.steps,
        outcome.seconds,
        learned,
        dict(notes),
        measured.as_dict(),
        None if began is None else began.as_dict(),
    )


def _begin(family: SigmaVaeFamily, learned: Frames, *, augment: bool, seed: int, tell: Progress) -> None:
    """Set a σ-VAE to the principal components of frames, each of which is seen a few times if varied."""
    whole = learned.take(np.flatnonzero(learned.present.all(1)))
    # What is missing is 0: a component would be spent on telling that.
    used = whole if len(whole) > family.network.bottleneck else learned
    batches = WholeFrames(used, batch=min(_COMPONENT_BATCH, len(used)), seed=seed, augment=augment)
    count = -(-len(used) * (_COMPONENT_VARIANTS if augment else 1) // batches.batch)
    family.begin(batches, count, seed=seed, progress=lambda n, of: tell(Stage("components", n, of)))


def finish_sigma_vae(
    network: SigmaVAE,
    stabiliser: Stabiliser,
    learned: Frames,
    name: str,
    notes: dict[str, Any],
    tell: Progress,
) -> Model:
    """Make a model of a trained σ-VAE: steps and tables are of frames that it learned from, too."""
    with torch.no_grad():
        # As the file will hold them, so that all that follows is of the model itself.
        for key, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(halved(key, parameter))
    means, log_variances = posteriors(
        network,
        stabiliser,
        learned.spread_out(_TABLE_FRAMES),
        lambda n, of: tell(Stage("entropy tables", n, of)),
    )
    found = quantisation_steps(
        network,
        stabiliser,
        learned.spread_out(_STEP_FRAMES),
        lambda n, of: tell(Stage("quantisation steps", n, of)),
    )
    deviations = np.sqrt(np.mean(np.exp(log_variances.astype(np.float64)), axis=0))
    notes = notes | {
        "active_units": active_units(means),
        "coarseness": float(np.median(found / deviations)),
    }
    return export_sigma_vae(network.cpu(), stabiliser, means, found, name, notes=notes)


def finish_hyperprior(
    network: nn.Module, views: Views, name: str, notes: dict[str, Any], tell: Progress
) -> Model:
    """Make a model of a trained hyperprior: an integer network, half precision, tables fitted to views."""
    assert isinstance(network, Hyperprior)
    plain = export_hyperprior(
        network.cpu(), views.stabiliser, name, default_quality=HyperpriorFamily.SHOWN, notes=notes
    )

    def shown() -> Any:
        for n in range(_TABLE_BATCHES):
            tell(Stage("entropy tables", n, _TABLE_BATCHES))
            images, masks, _ = views(n)
            yield images, masks

    return fit_tables(plain, shown(), _QUALITIES, bands=_BANDS)


def finish_wavelet(
    network: Context,
    stabiliser: Stabiliser,
    films: Sequence[Callable[[], Film]],
    name: str,
    notes: dict[str, Any],
    tell: Progress,
) -> Model:
    """Make a model of a trained context network: integers, tables fitted to films.

    What an encoder chooses depends on its tables, so that they are fitted once more to what it chooses then.
    """
    made = export_wavelet(network.cpu(), stabiliser, name, default_quality=_WAVELET_QUALITY, notes=notes)
    for turn in range(2):

        def shown(turn: int = turn) -> Iterator[Film]:
            for n in range(len(films)):
                tell(Stage("entropy tables", turn * len(films) + n, 2 * len(films)))
                # Each film at another quality than before.
                yield films[(n + 7 * turn) % len(films)]()

        made = fit_wavelet_tables(made, shown(), _FILM_QUALITIES)
    return made


def _wavelet(
    learned: Frames, stabiliser: Stabiliser, coder: Model | None, *, batch: int, seed: int, tell: Progress
) -> WaveletFamily:
    """Return what trains a wavelet model: beginning with a coder's network, on what that leaves of frames."""
    rows = np.flatnonzero(learned.present.any(1)).tolist()
    if coder is None:
        banks = [(1.0, Films(learned, stabiliser, rows, as_they_were(learned, stabiliser)))]
        return WaveletFamily(Pyramids(banks, batch, seed), stabiliser)
    left = as_coded(
        WaveletCodec(coder),
        learned,
        stabiliser,
        shots_of(learned, _FILMS, seed),
        seed,
        lambda n, of: tell(Stage("coding films", n, of)),
    )
    banks = [(1 - _FILM_SHARE, Films(learned, stabiliser, rows))]
    if left:
        banks.append((_FILM_SHARE, Films(learned, stabiliser, list(left), left.get)))
    family = WaveletFamily(Pyramids(banks, batch, seed), stabiliser)
    tell(Stage("a network of integers", 0, 1))
    family.network = network_of(coder)
    return family


def _mode(model: str, sigma: str | None, beta: float | None) -> Mode | None:
    """Return how the loss sets σ; None for the hyperprior, which has none."""
    if model not in MODELS:
        raise InputError(f"there is no model {model!r} to train; there are {', '.join(MODELS)}")
    if not model.startswith("sigma-vae"):
        if sigma or beta is not None:
            raise InputError(f"--sigma and --beta belong to the σ-VAE; {model} has neither")
        return None
    if beta is not None:
        if sigma:
            raise InputError(
                "--beta is the loss without σ (Eq. 1), --sigma the one with it; give one of them"
            )
        return "beta"
    if sigma not in (None, "scalar", "optimal", "per-channel"):
        raise InputError(f"sigma must be scalar, optimal or per-channel, not {sigma!r}")
    return sigma or "scalar"  # type: ignore[return-value]


def _split(
    time: npt.NDArray[np.datetime64], hold_out: Sequence[str], *, fit_all: bool
) -> npt.NDArray[np.bool_]:
    """Tell which frames are held out, or refuse those that leave nothing on one side."""
    held = np.zeros(len(time), bool) if fit_all else held_out(time, hold_out)
    if held.all() or not (held.any() or fit_all):
        raise InputError(f"{len(time)} frames cannot be split by date; give more, or use --fit-all")
    return held


def _check_side(model: str, side: tuple[int, int]) -> None:
    """Refuse a size that cannot be learned from before any frame is read."""
    crop = View().crop
    if model == "wavelet" and (side[0] != side[1] or side[0] < _SMALLEST or side[0] & side[0] - 1):
        raise InputError(
            f"wavelet models learn from square images whose side is a power of two from {_SMALLEST} on, not "
            f"from {side[0]}×{side[1]}; average larger ones, as with --size {SIZE}; "
            "what is learned serves any size"
        )
    if model.startswith("sigma-vae") and side != (SIZE, SIZE):
        raise InputError(
            f"the σ-VAE takes images of {SIZE}×{SIZE} pixels, not {side[0]}×{side[1]}; "
            f"average larger ones with --size {SIZE}"
        )
    if model == "hyperprior" and min(side) < crop:
        raise InputError(
            f"the hyperprior learns from {crop}×{crop} pixels at a time, not from {side[0]}×{side[1]}; "
            "give larger images"
        )


def _check_channels(model: str, series: Series) -> None:
    """Refuse channels that are too few to learn from before any frame is read."""
    lacking = [name for name in NAMES if name not in series.channels]
    if lacking and model != "wavelet":
        raise InputError(
            f"{series.urls[0]}: shows nothing of {' '.join(lacking)}; this model learns from all channels: "
            "add sources that hold them, or train a wavelet model"
        )


def stabiliser_of(model: str, banks: Sequence[Sequence[Example]]) -> Stabiliser:
    """Return the transform that gives every channel the standard deviation 1, as the mean over banks."""
    units = Stabiliser.for_channels(NAMES)
    if model == "wavelet":
        return units  # its steps are in units of noise
    width = spread(banks, units)
    if model == "hyperprior":
        width[[NAMES.index("Bx"), NAMES.index("By")]] *= _TRANSVERSE
    return Stabiliser(units.a, units.b, width)


def _claim(out: Path, folder: Path, held: ExitStack, *, resume: bool, force: bool) -> None:
    """Make the target's folders, or refuse one that exists and was not meant, or that another run writes."""
    try:
        os.fspath(out).encode()
    except UnicodeEncodeError:
        raise OutputError(f"{out}: no checkpoint can be written there, as the path is not UTF-8") from None
    if os.path.lexists(out):
        if not out.is_dir() or (any(out.iterdir()) and not folder.is_dir()):
            raise OutputError(f"{out}: exists and is no folder of an earlier training; choose another name")
        if any(out.iterdir()) and not (resume or force):
            raise OutputError(f"{out}: exists; use --resume to go on, --force to begin anew, or another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder)
        if lock is not None:
            held.callback(os.close, lock)
        if not resume:
            for left in (CHECKPOINT, LOG):
                (folder / left).unlink(missing_ok=True)
            for left in (PICTURES, BOARD):
                shutil.rmtree(folder / left, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made: {error.strerror or error}") from None


def _check_begun(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume with settings that are not those of a checkpoint: frames may take hours to read.

    `fit` looks at all settings; these are known before any frame is read.
    """
    # Of frames the settings keep a digest, which would tell nobody what is other.
    alike = now | {"frames": before.get("frames")}
    check_settings({key: before.get(key) for key in now}, alike, path)
    if alike != now:
        raise InputError(
            f"{path}: was begun with other frames than the sources give now; give those that it was begun "
            "with and choose from them by the same options (--cadence, --size, …), or begin anew with --force"
        )


def _check_shared(path: Path, state: dict[str, Any] | None, place: Place) -> None:
    """Refuse to resume where the processes of a training see other checkpoints, or some of them none.

    Each would train weights of its own, with gradients of the others'.
    """
    # Checkpoints of two trainings may be of one step, but took other times to come there, to the nanosecond.
    mine = [-1.0, 0.0] if state is None else [float(state["step"]), state["elapsed"]]
    if place.agree(mine) != mine:
        raise InputError(
            f"{path}: is not the checkpoint that the first process of the training has; name by --out a "
            "folder that the processes of all machines see, or begin anew with --force"
        )


def _look(family: Family, frames: Frames) -> Callable[[nn.Module, int, Journal], dict[str, float | None]]:
    """Return what looks at held-out frames by the way."""
    y, x = frames.side
    few = frames.spread_out(max(2, _LOOK_PIXELS // (y * x)))

    def look(network: nn.Module, step: int, journal: Journal) -> dict[str, float | None]:
        pixels, present = pixels_of(few, slice(None))
        shown = np.concatenate(
            [
                family.reconstruct(network, pixels[i : i + 4], present[i : i + 4])
                for i in range(0, len(few), 4)
            ]
        )
        shown[np.isnan(pixels)] = np.nan
        middle = len(few) // 2
        journal.picture(step, pixels[middle], shown[middle], few.time[middle])
        return correlations((pixels, shown))

    return look


def _told(fit_all: bool, rules: Sequence[str], time: Any, held: Any) -> str:
    """Say in words which frames are held out."""
    if fit_all:
        return "none"
    if rules:
        return ", ".join(rules)
    return f"from {np.datetime_as_string(time[held][0], 'm')}, the last tenth"


def _named(place: Place) -> str:
    if place.device.type == "cuda":
        return f"{place.world} × {torch.cuda.get_device_name(place.device)}"
    return f"CPU, {place.world} × {torch.get_num_threads()} threads"
