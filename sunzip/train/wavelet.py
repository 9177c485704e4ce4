"""Make a wavelet model of a trained context network: integers, tables fitted to real symbols, steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load
from torch import Tensor
from torch.nn import functional as F

from sunzip.channels import CHANNELS, NAMES
from sunzip.codec.family import Float, Known, Reference
from sunzip.codec.order import likeness, order
from sunzip.codec.symbols import CENTRED, SHIFT_MOST, VARIANTS, Int, Sets, Writer
from sunzip.codec.wavelet import WaveletFamily
from sunzip.entropy.tables import Tables
from sunzip.errors import DivergedError, InputError
from sunzip.limb import KNOTS
from sunzip.nn.context import (
    ACTIVATION_UNIT,
    OFFSET,
    OFFSET_CENTRED,
    PLANE_UNIT,
    SCALE_OFFSET,
    Context,
    LevelNet,
)
from sunzip.nn.exact import EXACT, LAYERS, MAX_SHIFT, QUALITIES, WEIGHT_MAX, parts_of
from sunzip.nn.planes import LEVELS, LOG_RATIO, LOG_SMALLEST, SCALES, TRUST_MOST, WEIGHT_MOST, WIDTHS
from sunzip.nn.planes import network_of as network_number
from sunzip.normalize import Stabiliser
from sunzip.pyramid import MAX_DEPTH
from sunzip.rotation import foretold
from sunzip.train.export import Histogram, stabiliser_numbers
from sunzip.weights import CONFIG_VERSION, TENSORS, Model, pack

Float64 = npt.NDArray[np.float64]

#: Steps in which what channel, level and step add is fitted to its table.
_FITTING = 3000

#: Steps at quality 100, in units of noise: what rounding then adds is a third of the noise's variance.
FINEST = 2.0

#: Steps at quality 0, in standard deviations of the stabilised channel on the whole Sun; last the field's.
COARSEST = tuple(20.0 if c.instrument == "HMI" else 13.0 for c in CHANNELS)

#: Those standard deviations, in units of noise, from the synthetic and the real Sun.
SPREADS = (6.5, 25.0, 130.0, 150.0, 110.0, 110.0, 35.0, 205.0, 510.0, 1.2, 1.2, 2.5)

#: How far tables reach on each side; what lies further is escaped.
_REACH = 300

#: Numbers that the outputs' integers are multiples of: means in 64ths, gates in 16ths, scales as they are.
_OUTPUT_FACTORS = (64.0,) * 3 + (16.0,) * 6 + (4.0,) * 3
_OUTPUT_OFFSETS = (0.0,) * 9 + (SCALE_OFFSET,) * 3


def steps() -> Float:
    """Return the (101, 12) steps of each quality and channel, in units of noise, geometric in quality."""
    q = np.arange(QUALITIES)[:, None] / (QUALITIES - 1)
    coarsest = np.array(COARSEST) * np.array(SPREADS)
    found: Float = np.exp(np.log(coarsest) * (1 - q) + np.log(FINEST) * q).astype(np.float32)
    return found


@torch.no_grad()
def integers(network: Context, step: Float) -> dict[str, npt.NDArray[Any]]:
    """Round a trained network to the integers of `sunzip.nn.exact.ExactContext`.

    Each output has the finest power of two with which its weights and its sums keep their bounds.

    Raises
    ------
    DivergedError
        If the weights are too large for any.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    log_step = torch.from_numpy(np.log(step))
    channels = torch.arange(len(NAMES))
    for n, (width, module) in enumerate(zip(WIDTHS, network.levels, strict=True)):
        assert isinstance(module, LevelNet)
        depths = range(LEVELS - len(WIDTHS) + 1) if n == 0 else [n + LEVELS - len(WIDTHS)]
        tabled = (
            np.stack(
                [
                    [network.biases(channels, d, row, width).transpose(0, 1).numpy() for d in depths]
                    for row in log_step
                ]
            ).transpose(0, 2, 1, 3, 4)
            / ACTIVATION_UNIT
        )  # (101, 12, depths, 4, width)
        flags = network.flags[list(depths), :, :width].numpy() / ACTIVATION_UNIT
        shapes = parts_of(width, WIDTHS[max(n - 1, 0)])
        scaled_table, scaled_flags = np.zeros(tabled.shape, np.int32), np.zeros(flags.shape, np.int32)
        for layer, (names, place) in LAYERS.items():
            factor, bias = _outputs(layer, shapes[names[0]][0][0])
            weights = {}
            for name in names:
                convolution = getattr(module, name)
                scale = (factor * _unit(name))[:, None, None, None]
                weights[name] = convolution.weight.double().numpy() * scale
                if convolution.bias is not None:
                    bias = bias + convolution.bias.double().numpy() * factor
            most = sum(np.abs(w).sum((1, 2, 3)) * shapes[k][1] for k, w in weights.items()) + np.abs(bias)
            if place is not None:
                most = most + np.abs(tabled[..., place, :]).max((0, 1, 2))
            if layer == "enter":
                most = most + np.abs(flags).sum(1).max(0)
            largest = np.max([np.abs(w).max((1, 2, 3)) for w in weights.values()], axis=0)
            # Rounding may add half a unit to each weight.
            room = EXACT - 2.0**MAX_SHIFT - sum(shapes[k][1] * w[0].size for k, w in weights.items())
            shift = np.minimum(np.log2(WEIGHT_MAX / (largest + 1e-9)), np.log2(room / (most + 1e-9)))
            shift = np.floor(np.minimum(shift, MAX_SHIFT))
            if (shift < 0).any():
                raise DivergedError(
                    f"training diverged: weights of {n}.{layer} are too large for integers; begin anew with "
                    "--force and a lower --rate"
                )
            power = 2.0**shift
            for name, weight in weights.items():
                arrays[f"{n}.{name}"] = np.rint(weight * power[:, None, None, None]).astype(np.int16)
            arrays[f"{n}.{layer}.shift"] = shift.astype(np.uint8)
            arrays[f"{n}.{layer}.bias"] = np.rint(bias * power).astype(np.int32)
            if place is not None:
                scaled_table[..., place, :] = np.rint(tabled[..., place, :] * power)
            if layer == "enter":
                scaled_flags[...] = np.rint(flags * power)
        arrays[f"bias.{n}"], arrays[f"flags.{n}"] = scaled_table, scaled_flags
    return arrays


def check_wavelet(model: Model) -> None:
    """Refuse a model of another family.

    Raises
    ------
    InputError
        If it is one.
    """
    if model.family != "wavelet":
        raise InputError(f"model {model.name} is of the family {model.family}, not wavelet; name another")


def network_of(model: Model) -> Context:
    """Return the network that a wavelet model's integers stand for, to be trained on.

    The integers tell weights to eight bits. What channel, level and step add is tabled for every quality; the
    small network that made that table is fitted to it anew.

    Raises
    ------
    InputError
        If the model is no wavelet model.
    DamagedError
        If it is damaged.
    """
    check_wavelet(model)
    family = WaveletFamily(model)
    arrays = model.arrays("context")
    network = Context(len(NAMES))
    wanted = torch.zeros(LEVELS, QUALITIES, len(NAMES), 4, max(WIDTHS))
    with torch.no_grad():
        for n, module in enumerate(network.levels):
            assert isinstance(module, LevelNet)
            width = WIDTHS[n]
            depths = list(range(LEVELS - len(WIDTHS) + 1)) if n == 0 else [n + LEVELS - len(WIDTHS)]
            for layer, (names, place) in LAYERS.items():
                power = 2.0 ** arrays[f"{n}.{layer}.shift"].astype(np.float64)
                factor, offset = _outputs(layer, len(power))
                bias = arrays[f"{n}.{layer}.bias"] / power
                for name in names:
                    convolution = getattr(module, name)
                    scale = (power * factor * _unit(name))[:, None, None, None]
                    convolution.weight.copy_(torch.from_numpy(arrays[f"{n}.{name}"] / scale))
                    if convolution.bias is not None:
                        convolution.bias.copy_(torch.from_numpy((bias - offset) / factor))
                if place is not None:
                    tabled = arrays[f"bias.{n}"][..., place, :] / power * ACTIVATION_UNIT
                    wanted[depths, ..., place, :width] = torch.from_numpy(tabled).float().movedim(2, 0)
                if layer == "enter":
                    flags = torch.from_numpy(arrays[f"flags.{n}"] / power * ACTIVATION_UNIT).float()
                    network.flags[depths, : flags.shape[1], :width] = flags
    _fit_biases(network, torch.from_numpy(np.log(family.step)), wanted)
    return network


def _fit_biases(network: Context, log_step: Tensor, wanted: Tensor) -> None:
    """Fit what a network adds by channel, level and step to (LEVELS, 101, 12, 4, width)."""
    parameters = [*network.condition.parameters(), network.channel.weight, network.depth.weight]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _FITTING, 1e-5)
    channels = torch.arange(len(NAMES)).repeat(QUALITIES)
    own = [WIDTHS[network_number(level + 1)] for level in range(LEVELS)]
    for _ in range(_FITTING):
        loss = torch.zeros(())
        for level, width in enumerate(own):
            found = network.biases(channels, level, log_step.flatten(), width)
            target = wanted[level, ..., :width].flatten(0, 1).transpose(0, 1)
            loss = loss + F.mse_loss(found, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _unit(name: str) -> float:
    """Return what an integer that these weights are applied to stands for."""
    return PLANE_UNIT if name in ("now", "time", "beside", "after") else ACTIVATION_UNIT


def _outputs(layer: str, count: int) -> tuple[Float64, Float64]:
    """Return what a layer's sums are multiplied by to become integers, and what is added."""
    if layer.endswith("_out"):
        return np.array(_OUTPUT_FACTORS[:count]), np.array(_OUTPUT_OFFSETS[:count])
    return np.full(count, 1 / ACTIVATION_UNIT), np.zeros(count)


def laplace_tables() -> Tables:
    """Return the tables that training assumes: Laplace distributions over cells, the middle one wider."""
    rows, lowest = [], []
    for variant in range(VARIANTS):
        mean = 0 if variant in CENTRED else variant % 5 / 8
        for number in range(SCALES):
            b = math.exp(LOG_SMALLEST + LOG_RATIO * number)
            reach = min(max(math.ceil(14 * b), 2), _REACH)
            symbols = np.arange(-reach, reach + 1)
            offset = OFFSET_CENTRED if variant in CENTRED else OFFSET
            cell = np.where(symbols < 0, offset, 1 - offset)
            upper = symbols + (0.5 if variant >= 5 and variant not in CENTRED else cell)
            cumulative = np.append(_laplace_cdf((upper[0] - 1 - mean) / b), _laplace_cdf((upper - mean) / b))
            rows.append(np.maximum(np.diff(cumulative), 1e-9))
            lowest.append(-reach)
    return Tables.from_probabilities(rows, lowest, [1e-5] * len(rows))


def trust_tables() -> Tables:
    """Return tables by which trusts mostly stay as they are from level to level."""
    changes = range(-TRUST_MOST, TRUST_MOST + 1)
    near = [(0.5 if n else 4.0) * 0.6 ** abs(n) for n in changes]
    count = 4 * len(NAMES)
    return Tables.from_probabilities([near] * count, [changes[0]] * count, [1e-4] * count)


def _laplace_cdf(z: npt.ArrayLike) -> npt.NDArray[np.float64]:
    z = np.asarray(z, np.float64)
    found: npt.NDArray[np.float64] = np.where(
        z < 0, 0.5 * np.exp(np.minimum(z, 0)), 1 - 0.5 * np.exp(-np.maximum(z, 0))
    )
    return found


class _Counter(Writer):
    """Counts what a writer would write by tables of the model's own."""

    def __init__(self, family: WaveletFamily) -> None:
        super().__init__(None, family.tables, family.bits, family.shifted)
        tables = family.tables._asdict()
        self.found = {kind: Histogram(of) for kind, of in tables.items() if of is not None}

    def put(self, kind: str, index: Int, entries: Int) -> None:
        if kind in self.found:
            self.found[kind].add(entries, index)


def _table_arrays(found: Mapping[str, Tables]) -> dict[str, npt.NDArray[Any]]:
    """Return the tables of `sunzip.codec.symbols.Sets` as a model keeps them."""
    return {
        f"{kind}_tables.{key}": np.ascontiguousarray(values)
        for kind, tables in found.items()
        for key, values in tables.to_arrays().items()
    }


def export_wavelet(
    network: Context, stabiliser: Stabiliser, name: str, *, default_quality: int, notes: Mapping[str, Any]
) -> Model:
    """Make a model of a trained network, with the tables that its training assumed."""
    step = steps()
    quiet = Tables.from_probabilities(
        [[0.5**n for n in range(MAX_DEPTH + 1)]] * (11 * len(NAMES)),
        [0] * (11 * len(NAMES)),
        [1e-4] * (11 * len(NAMES)),
    )
    near = [0.6 ** abs(n) for n in range(-2 * WEIGHT_MOST, 2 * WEIGHT_MOST + 1)]
    change = Tables.from_probabilities([near] * 24, [-2 * WEIGHT_MOST] * 24, [1e-4] * 24)
    moves = range(-2 * SHIFT_MOST, 2 * SHIFT_MOST + 1)
    still = [(0.5 if n else 8.0) * 0.6 ** abs(n) for n in moves]
    moved = Tables.from_probabilities([still] * len(NAMES), [moves[0]] * len(NAMES), [1e-4] * len(NAMES))
    scale = np.exp(LOG_SMALLEST + LOG_RATIO * np.arange(SCALES))
    rows = []
    for b in scale:
        reach = min(max(math.ceil(14 * b), 2), 4 * _REACH)
        upper = np.arange(-reach, reach + 1) + 0.5
        rows.append(np.maximum(np.diff(_laplace_cdf(np.append(upper[0] - 1, upper) / b)), 1e-9))
    base = Tables.from_probabilities(rows, [-(len(r) // 2) for r in rows], [1e-4] * len(rows))
    # Half of a channel's spread is between its halves.
    wide = 0.5 * np.array(SPREADS)[:, None] * 2.0 ** np.arange(MAX_DEPTH + 1) / step[:, :, None]
    index = [np.log(np.maximum(wide * share, 1e-6)) for share in (1.0, 0.1)]
    numbers = np.clip(np.rint((np.stack(index) - LOG_SMALLEST) / LOG_RATIO), 0, SCALES - 1).astype(np.int32)
    arrays: dict[str, npt.NDArray[Any]] = {f"context.{k}": v for k, v in integers(network, step).items()}
    steep = [[0.9 ** abs(n) for n in range(-_REACH, _REACH + 1)]] * len(KNOTS)
    disks = Tables.from_probabilities(steep, [-_REACH] * len(KNOTS), [1e-4] * len(KNOTS))
    sets = Sets(laplace_tables(), base, quiet, change, moved, disks, trust_tables())
    arrays |= _table_arrays(sets._asdict())
    arrays |= {
        "quality.step": step,
        "quality.base_mean": np.array(SPREADS, np.float32),
        "quality.relation": np.array(SPREADS, np.float32),
        "quality.halved": np.rint(100 * math.log(2) / np.log(step[0] / step[-1])).astype(np.int32),
        "quality.base_index": numbers,
        "quality.silent_index": (np.arange(QUALITIES) // 10).astype(np.int32),
    }
    config = {
        "version": CONFIG_VERSION,
        "name": name,
        "family": "wavelet",
        "default_quality": default_quality,
        "stabiliser": stabiliser_numbers(stabiliser),
        "parameters": sum(p.numel() for p in network.parameters()),
        "training": dict(notes),
    }
    return pack(config, arrays)


#: Frames that follow each other, stabilised images (12, Y, X), and their channels.
Film = tuple[Sequence[Float], Sequence[int]]


class Shown(NamedTuple):
    """A frame of a film, coded.

    Attributes
    ----------
    place
        Its number.
    images
        (12, Y, X) stabilised, as they are decoded.
    quality
        Its own.
    step
        (12,) with which its channels are coded.
    builds_on
        Numbers and decoded images of those that it may build on.
    """

    place: int
    images: Float
    quality: int
    step: Float
    builds_on: list[tuple[int, Float]]

    def foretold(self, minutes: Sequence[int]) -> Float | None:
        """Return what those foretell of it, (12, Y, X), if frames are taken at such times."""
        sources = [(images, minutes[self.place] - minutes[n]) for n, images in self.builds_on]
        return foretold(sources) if sources else None


def coded(
    family: WaveletFamily,
    film: Film,
    quality: int,
    counter: Writer | None = None,
    chained: bool = False,
) -> Iterator[Shown]:
    """Code the frames of a film as a block's, and yield them in the order in which they are coded.

    Parameters
    ----------
    family
        The codec.
    film
        The frames.
    quality
        Of the block.
    counter
        Is given the symbols in place of an encoder.
    chained
        Whether each builds on the one before, as frames do that are added one by one.
    """
    images, channels = film
    shown = np.zeros((1, len(NAMES)), np.float32)
    shown[0, list(channels)] = 1
    writer = Writer(None, family.tables, family.bits, family.shifted) if counter is None else counter
    left: dict[int, Reference] = {}
    shape = images[0].shape[-2], images[0].shape[-1]
    found = [family.analyse(image[None], shown, quality)[0] for image in images]
    known = Known(tuple(channels), shape)
    like = 0.0 if chained else likeness(found, lambda three: family.likeness(three, quality, known))

    def pictures(place: int) -> Float:
        out = np.zeros((len(NAMES), *shape), np.float32)
        out[list(left[place].channels)] = left[place].pictures[:, : shape[0], : shape[1]]
        return out

    for step in order(len(images), False, like):
        before, after = (None if n is None else left[n] for n in step.builds_on)
        known = Known(tuple(channels), shape, before, after, step.back, step.ahead)
        own = family.own_quality(quality, step.depth, like)
        _, decoded = family.write(writer, found[step.place], quality, known, own)
        left[step.place] = family.reference(decoded, channels, shape)
        builds_on = [(n, pictures(n)) for n in step.builds_on if n is not None]
        yield Shown(step.place, pictures(step.place), own, family.quality_of(own, known).step, builds_on)


def fit_tables(model: Model, films: Iterable[Film], qualities: Sequence[int]) -> Model:
    """Replace a model's tables by what its symbols on training frames ask for.

    Parameters
    ----------
    model
        What `export_wavelet` or this function returned.
    films
        Training frames.
    qualities
        Each film is coded at the next of them, round and round.
    """
    family = WaveletFamily(model)
    low: list[list[float]] = [[] for _ in NAMES]

    def noted() -> Iterator[Film]:
        for film in films:
            yield film
            for image in film[0]:
                for c in film[1]:
                    low[c].append(float(image[c].mean()))

    found = _fitted(family, noted(), qualities)
    arrays = dict(load(model.files[TENSORS]))
    arrays |= _table_arrays(found)
    arrays["quality.base_mean"] = np.array(
        [np.median(v) if v else old for v, old in zip(low, family.base_mean, strict=True)], np.float32
    )
    return pack(model.config, arrays)


def add_trusts(model: Model, films: Iterable[Film], qualities: Sequence[int]) -> Model:
    """Give a model tables of trusts, and fit those of symbols that count from a mean anew.

    All else stays as it is, and so does every frame that builds on none.

    Parameters
    ----------
    model, films, qualities
        As in `fit_tables`; the model may have such tables.
    """
    arrays = dict(load(model.files[TENSORS]))
    if WaveletFamily(model).tables.trusts is None:
        arrays |= _table_arrays({"trusts": trust_tables()})
    family = WaveletFamily(pack(model.config, arrays))
    found = _fitted(family, films, qualities)
    bands = found["bands"]
    # Models from before have none that count from a mean.
    old, begin = family.tables.bands, int(bands.length[: CENTRED[0] * SCALES].sum())
    frequencies = np.concatenate([old.frequencies[:begin], bands.frequencies[begin:]])
    kept = {"bands": Tables(frequencies, old.lowest, old.length), "trusts": found["trusts"]}
    return pack(model.config, arrays | _table_arrays(kept))


def _fitted(family: WaveletFamily, films: Iterable[Film], qualities: Sequence[int]) -> dict[str, Tables]:
    """Return a model's tables fitted to its symbols on films, each at the next of some qualities."""
    counter = _Counter(family)
    for n, film in enumerate(films):
        for _ in coded(family, film, qualities[n % len(qualities)], counter):
            pass
    return {kind: histogram.tables() for kind, histogram in counter.found.items()}
