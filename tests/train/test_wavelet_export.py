"""Wavelet models: integers stay near the network that they stand for, tables follow what is coded."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load

from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.family import Float, Known
from sunzip.codec.symbols import CENTRED
from sunzip.codec.wavelet import WaveletFamily
from sunzip.entropy.tables import Tables
from sunzip.errors import DivergedError
from sunzip.frame import Block
from sunzip.nn.context import (
    ACTIVATION_UNIT,
    OFFSET,
    OFFSET_CENTRED,
    Context,
    Foretold,
    LevelNet,
    foretell,
    laplace_bits,
)
from sunzip.nn.exact import QUALITIES, ExactContext
from sunzip.nn.planes import (
    COUNT_NOW,
    CROSS,
    GATES,
    LOG_RATIO,
    LOG_SMALLEST,
    MEANS,
    SCALES,
    TRUST_MOST,
    UNCERTAIN,
    WIDE,
    decoded_planes,
    network_of,
)
from sunzip.normalize import Stabiliser
from sunzip.pyramid import grid_of
from sunzip.train.wavelet import (
    FINEST,
    Film,
    add_trusts,
    export_wavelet,
    fit_tables,
    integers,
    laplace_tables,
    steps,
)
from sunzip.weights import TENSORS, Model, pack

CHANNELS = [3, 0, 11]


@pytest.fixture(scope="module")
def network() -> Context:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        network = Context(len(NAMES)).requires_grad_(False)
        network.flags.normal_(0, 0.3)
        for level in network.levels:
            assert isinstance(level, LevelNet)
            for out in (level.first_out, level.second_out, level.settle_out):
                out.weight *= 8
                out.bias.normal_(0, 0.3)
    return network


@pytest.fixture(scope="module")
def exact(network: Context) -> ExactContext:
    return ExactContext(integers(network, steps()))


def planes_of(*shape: int, seed: int = 0) -> Float:
    """Return small planes and a few large ones, as of coefficients."""
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(rng.laplace(0, 8, shape)), -127, 127).astype(np.float32)


def rounded(values: Float, mean: Float, timed: bool) -> Float:
    """Return what symbols tell of values: these count from the mean where other frames foretell it."""
    origin = mean if timed else 0
    apart = values - origin
    offset = OFFSET_CENTRED if timed else OFFSET
    found: Float = (origin + np.copysign(np.floor(np.abs(apart) + offset), apart)).astype(np.float32)
    return found


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(("level", "quality"), [(2, 0), (5, 50), (7, 100), (8, 30)])
def test_integers_foretell_what_the_network_does(
    network: Context, exact: ExactContext, level: int, quality: int, timed: bool
) -> None:
    rng = np.random.default_rng(level)
    h, w = 8, 12
    planes = planes_of(3, COUNT_NOW, h, w)
    flags = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]], np.float32)
    flags[:, 2] *= timed
    past = rng.laplace(0, 1, (3, 3, h, w)).astype(np.float32)
    cross = rng.laplace(0, 1, past.shape).astype(np.float32)
    values = (past + rng.laplace(0, 0.8, past.shape)).astype(np.float32)
    # Other frames tell nothing of the first channel, something of the second, nearly all of the third.
    values[0] = rng.laplace(0, 0.8, past[0].shape)
    values[1] -= 0.5 * past[1]
    values[2] = past[2] + 0.2 * (values[2] - past[2])
    reference = past if timed else None
    time = decoded_planes(past) if timed else None
    coarser = None if time is None else time[..., ::2, ::2].copy()
    which, here = (CHANNELS, quality), np.arange(h * w)
    small = planes[..., ::2, ::2].copy()
    below, _ = exact.enter(level - 1, *which, flags, small, coarser, None, np.arange(1))
    log_step = torch.from_numpy(np.log(steps()[quality, CHANNELS]))
    coded, features = foretell(
        network,
        torch.tensor(CHANNELS),
        level,
        log_step,
        torch.from_numpy(flags),
        torch.from_numpy(planes),
        None if time is None else torch.from_numpy(time),
        None if reference is None else torch.from_numpy(reference),
        torch.from_numpy(cross),
        torch.from_numpy(values),
        torch.ones(3, 1, h, w),
        torch.from_numpy(below * np.float32(ACTIVATION_UNIT)),
    )

    trusts: list[list[float]] = []

    def mean_of(out: Float, here: npt.NDArray[np.bool_]) -> Float:
        mean = out[:, MEANS] / 64 + np.clip(out[:, CROSS], 0, 16) / 16 * cross
        if reference is not None:
            mean += np.clip(out[:, GATES], 0, 16) / 16 * reference
        # So many eighths of the way to what other frames tell, where these are known and that is nearest.
        way = past - mean if timed else np.zeros_like(mean)
        weight = here / (2 * np.exp(LOG_SMALLEST + LOG_RATIO * np.clip(out[:, WIDE], 0, 63)) ** 2 + UNCERTAIN)
        along, size = ((weight * way * other).sum((1, 2, 3)) for other in (values - mean, way))
        trust = np.clip(np.rint(8 * along / (size + 1e-6)), 0, TRUST_MOST)[:, None, None, None]
        trusts.append(trust.ravel().tolist())
        return np.asarray(np.floor((mean + trust / 8 * way) * 8 + 0.5) / 8)

    found, first = exact.enter(level, *which, flags, planes, time, below, here)
    first = first.reshape(3, 12, h, w)
    board = (np.arange(h)[:, None] + np.arange(w)) % 2 == 0
    begin = mean_of(first, board)
    half = np.where(board, rounded(values, begin, timed), 0).astype(np.float32)
    second = exact.beside(level, *which, found, decoded_planes(half), here).reshape(3, 12, h, w)
    # Weights have eight bits, activations are rounded after each layer: that is all that may differ.
    assert np.abs(found - features.detach().numpy() / ACTIVATION_UNIT).mean() < 1
    out = np.where(board, first, second)
    mean = np.where(board, begin, mean_of(second, ~board))
    for little, some, all_of_it in trusts if timed else ():
        assert little <= 1 < some < 8 == all_of_it
    symbols = rounded(values, mean, timed)
    last = exact.settle(level, *which, found, decoded_planes(symbols), None).reshape(3, 9, h, w)
    settled = last[:, MEANS] / 64 + np.clip(last[:, CROSS], 0, 16) / 16 * (cross - symbols)
    if reference is not None:
        settled += np.clip(last[:, GATES], 0, 16) / 16 * (reference - symbols)
    apart = np.clip(settled, -0.75, 0.75)
    decoded = symbols + apart
    scale = LOG_SMALLEST + LOG_RATIO * np.clip(out[:, WIDE], 0, SCALES - 1)
    told = Foretold(*(torch.from_numpy(x).float() for x in (mean, scale)))
    if timed:
        told = told._replace(mean=torch.zeros_like(told.mean))
    counted = torch.from_numpy(symbols - mean if timed else symbols).float()
    bits = laplace_bits(counted, told, OFFSET_CENTRED if timed else OFFSET).numpy()
    # All of them tell far more apart than what is tolerated.
    for each, least in ((mean, 0.3), (out[:, WIDE], 0.5), (coded.bits.numpy(), 1), (apart, 0.2)):
        assert np.std(each) > least
    assert np.abs(bits - coded.bits.numpy()).mean() < 0.08
    # A coefficient between two symbols may fall to either side.
    off = np.abs(decoded - coded.decoded.numpy())
    assert off.mean() < 0.07
    assert np.median(off) < 0.03


@pytest.mark.parametrize("timed", [True, False])
def test_tiles_that_are_not_coded_cost_nothing_and_are_as_others_tell(network: Context, timed: bool) -> None:
    rng = np.random.default_rng(0)
    past, cross, values = (
        torch.from_numpy(rng.laplace(0, 1, (3, 3, 8, 8)).astype(np.float32)) for _ in "abc"
    )
    planes = torch.from_numpy(planes_of(3, COUNT_NOW, 8, 8))
    shown = torch.zeros(3, 1, 8, 8)
    shown[1, :, :, 4:] = 1
    coded, features = foretell(
        network,
        torch.tensor(CHANNELS),
        5,
        torch.from_numpy(np.log(steps()[40, CHANNELS])),
        torch.ones(3, 4),
        planes,
        decoded_planes(past) if timed else None,
        past if timed else None,
        cross,
        values,
        shown,
        None,
    )
    out = shown.expand(-1, 3, -1, -1) == 0
    assert (coded.bits[out] == 0).all()
    assert (coded.decoded[out] == (past if timed else cross)[out]).all()
    assert (features * (1 - shown) == 0).all()
    assert (coded.bits[~out] > 0).all()
    assert features[1].any()


@pytest.mark.parametrize("timed", [True, False])
def test_gradients_pass_through_what_is_rounded(network: Context, timed: bool) -> None:
    network = copy.deepcopy(network).requires_grad_(True)
    rng = np.random.default_rng(0)
    past, cross, values = (rng.laplace(0, 1, (3, 3, 8, 8)).astype(np.float32) for _ in range(3))
    coded, _ = foretell(
        network,
        torch.tensor(CHANNELS),
        5,
        torch.from_numpy(np.log(steps()[40, CHANNELS])),
        torch.ones(3, 4),
        torch.from_numpy(planes_of(3, COUNT_NOW, 8, 8)),
        torch.from_numpy(decoded_planes(past)) if timed else None,
        torch.from_numpy(past) if timed else None,
        torch.from_numpy(cross),
        torch.from_numpy(values),
        torch.ones(3, 1, 8, 8),
        None,
    )
    level = network.levels[network_of(5)]
    assert isinstance(level, LevelNet)
    # Only where symbols count from the mean does what is decoded move with it, and by how far it is then put.
    for out, what, moves in (
        (level.first_out, coded.bits, True),
        (level.first_out, coded.decoded, timed),
        (level.settle_out, coded.decoded, True),
        (level.settle_out, coded.bits, False),
    ):
        network.zero_grad()
        what.sum().backward(retain_graph=True)
        grad = out.weight.grad
        assert (grad is not None and bool(grad[MEANS].abs().sum() > 0)) == moves


def test_how_memory_lies_does_not_matter(network: Context) -> None:
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    stabiliser = Stabiliser.for_channels(NAMES)
    models = [export_wavelet(n, stabiliser, "m", default_quality=50, notes={}) for n in (network, last)]
    assert models[0].sha256 == models[1].sha256


def test_networks_too_wild_for_integers_are_refused(network: Context) -> None:
    level = network.levels[2]
    assert isinstance(level, LevelNet)
    weight = level.deep.weight
    kept = weight.clone()
    try:
        weight[3, 5, 1, 1] = 1e9
        with pytest.raises(DivergedError, match=r"weights of 2\.deep are too large"):
            integers(network, steps())
    finally:
        weight.copy_(kept)


def test_steps_are_geometric_and_end_at_the_noise() -> None:
    found = steps()
    assert found.shape == (QUALITIES, 12)
    np.testing.assert_allclose(found[-1], FINEST, rtol=1e-6)
    ratio = np.broadcast_to((found[-1] / found[0]) ** 0.01, (QUALITIES - 1, 12))
    np.testing.assert_allclose(found[1:] / found[:-1], ratio, rtol=1e-5)


def test_tables_are_the_distributions_that_training_assumes() -> None:
    tables = laplace_tables()
    symbols = np.arange(-1, 3)
    for variant, mean, whole in ((0, 0.0, 0), (3, 0.375, 0), (7, 0.25, 5), (10, 0.0, 0), (11, 0.0, 0)):
        for scale in (20, 40):
            index = np.full(4, scale + SCALES * variant)
            coded = [tables.cost_bits(symbols[i : i + 1], index[:1]) for i in range(4)]
            assumed = laplace_bits(
                torch.from_numpy(symbols + whole).float(),
                Foretold(torch.full((4,), mean + whole), torch.full((4,), LOG_SMALLEST + LOG_RATIO * scale)),
                OFFSET_CENTRED if variant >= 10 else OFFSET,
            )
            if whole == 0:
                np.testing.assert_allclose(coded, assumed, atol=0.05)
            else:  # further out cells are of one width
                assert np.argmin(coded) == np.argmin(assumed.numpy())


def films(side: int) -> list[Film]:
    found: list[Film] = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        up, right = np.mgrid[:side, :side] / 5
        picture = 100 + 60 * np.sin(up + rng.uniform(0, 6, (12, 1, 1))) * np.cos(right)
        now, then = (picture + rng.normal(0, 1, (2, 12, side, side))).astype(np.float32)
        found.append(((then, now) if seed else (now,), (2, 3, 5, 11)))
    return found


@pytest.mark.parametrize(
    "side", [32, 128]
)  # of the larger some bands are in tiles, whose tables are no model's
def test_fitted_tables_save_bytes(wavelet_model: Model, side: int) -> None:
    fitted = fit_tables(wavelet_model, films(side), [30, 60])
    assert fitted.sha256 != wavelet_model.sha256
    before, after = WaveletFamily(wavelet_model), WaveletFamily(fitted)
    shown = np.zeros((1, 12), np.float32)
    shown[0, [2, 3, 5, 11]] = 1
    sizes = []
    for family in (before, after):
        known = Known((2, 3, 5, 11), (side, side))
        latents = family.analyse(films(side)[0][0][0][None], shown, 30)[0]
        written = family.encode(latents, 30, known)
        assert (family.decode(written.payload, 30, known) == written.decoded).all()
        sizes.append(len(written.payload))
    assert sizes[1] < 0.95 * sizes[0]
    # The usual brightness is learned; channels that no frame had keep theirs.
    assert after.base_mean[[2, 3]] == pytest.approx(100, abs=30)
    assert (after.base_mean[[0, 10]] == before.base_mean[[0, 10]]).all()
    for name, array in wavelet_model.arrays("context").items():
        assert np.array_equal(array, fitted.arrays("context")[name])


@pytest.mark.parametrize("learned", [True, False])
def test_trusts_are_added_to_a_model_whose_frames_that_build_on_none_stay(
    wavelet_model: Model, learned: bool
) -> None:
    arrays = {k: v for k, v in load(wavelet_model.files[TENSORS]).items() if "trusts" not in k}
    if not learned:
        # As it was before symbols counted from a mean.
        count = CENTRED[0] * SCALES
        bands = WaveletFamily(wavelet_model).tables.bands
        size = int(bands.length[:count].sum())
        parts = (bands.frequencies[:size], bands.lowest[:count], bands.length[:count])
        arrays |= {f"bands_tables.{k}": v for k, v in Tables(*parts).to_arrays().items()}
    plain = pack(wavelet_model.config, arrays)
    model = add_trusts(plain, films(32)[1:], [30, 60])
    again = add_trusts(model, films(32)[1:], [30, 60])
    for before, after in ((plain, model), (model, again)):
        old, new = (load(m.files[TENSORS]) for m in (before, after))
        changed = {k for k in new if k not in old or not np.array_equal(old[k], new[k])}
        assert "trusts_tables.frequencies" in changed
        others = {k for k in changed if "trusts" not in k}
        assert others == ({"bands_tables.frequencies"} if learned else set())
    x = films(32)[1][0][0][None]
    payloads = [Block.unpack(Codec(m).encode(x, NAMES)[0]).payloads for m in (plain, model, again)]
    assert payloads[1] == payloads[2]
    # With trusts come levels, and only these differ.
    known = Known(tuple(range(len(NAMES))), (x.shape[2], x.shape[3]))
    decoded = [
        WaveletFamily(m).decode(payload, Codec(m).quality, known)
        for m, (payload,) in zip((plain, model), payloads, strict=False)
    ]
    height, width = grid_of(*known.shape).level(0)
    for pyramid in decoded:
        pyramid[:, :height, :width] -= pyramid[:, :1, :1]
    np.testing.assert_allclose(decoded[0], decoded[1], rtol=1e-5, atol=1e-3)
