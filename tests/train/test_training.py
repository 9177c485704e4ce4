"""Training: seeded examples, gradients where pixels count, and a rate that the exported model keeps."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sunzip import weights
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.cube import Cube, Scale
from sunzip.errors import InputError
from sunzip.frame import Block
from sunzip.nn.hyperprior import REACH, Hyperprior
from sunzip.nn.sigma_vae import SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.train.data import Example, Loader, View, examples, spread, view
from sunzip.train.export import export_hyperprior, export_sigma_vae, fit_tables, write
from sunzip.train.loop import Recipe, principal_components, rate_distortion, train

UNITS = Stabiliser.for_channels(NAMES)


def example(seed: int = 0, side: int = 192, present: tuple[int, ...] = tuple(range(12))) -> Example:
    rng = np.random.default_rng(seed)
    pixels = rng.normal(100, 30, (12, side, side)).astype(np.float16)
    there = np.zeros(12, bool)
    there[list(present)] = True
    pixels[~there] = np.nan
    return Example(pixels, there)


def network(seed: int = 0) -> Hyperprior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Hyperprior(wide=8, deep=8, latents=6, hyper=4, hyper_wide=24)


# --- examples --------------------------------------------------------------------------------------------


def cube(data: np.ndarray, channels: tuple[str, ...], scale: Scale = Scale.MEAN) -> Cube:
    t, c = data.shape[:2]
    return Cube(
        data.astype(np.float32),
        channels,
        np.datetime64("2014-01-01", "ms") + np.arange(t),
        np.full((t, c), np.datetime64("2014-01-01", "ms")),
        ~np.isnan(data).all((2, 3)),
        [[{} for _ in range(c)] for _ in range(t)],
        scale,
    )


def test_examples_are_over_all_channels_in_means() -> None:
    data = np.stack([np.full((2, 4, 4), 8.0), np.full((2, 4, 4), 1e9)])
    data[1, 1] = np.nan
    first, second = examples(cube(data, ("171A", "Bz"), Scale.SUM))
    assert np.flatnonzero(first.present).tolist() == [2, 11]
    assert np.flatnonzero(second.present).tolist() == [2]
    assert (first.pixels[2] == 2).all()  # sums of four
    assert (first.pixels[11] == 8).all()  # fields are no sums
    assert (second.pixels[2] == 60000).all()  # within half precision
    assert np.isnan(first.pixels[0]).all()
    assert np.isnan(second.pixels[11]).all()


def test_spread_is_the_deviation_averaged_over_banks_that_hold_the_channel() -> None:
    banks = [[example(0), example(1)], [example(2, present=(2, 3))]]
    found = spread(banks, UNITS)
    y = [[UNITS.forward(e.pixels.astype(np.float32)) for e in bank] for bank in banks]
    assert found[0] == pytest.approx(np.std([y[0][0][0], y[0][1][0]]), rel=1e-4)
    assert found[2] == pytest.approx((np.std([f[2] for f in y[0]]) + np.std(y[1][0][2])) / 2, rel=1e-4)


@pytest.mark.parametrize(
    "bad", [example(present=(1, 2)), Example(np.ones((12, 8, 8), "f2"), np.ones(12, bool))]
)
def test_spread_of_nothing_is_refused(bad: Example) -> None:
    with pytest.raises(InputError, match="show nothing of 94A"):
        spread([[bad]], UNITS)


def test_views_are_functions_of_the_generator() -> None:
    how = View(crop=32)
    views = [view(example(), how, 2, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(views[0][0], views[1][0])
    np.testing.assert_array_equal(views[0][1], views[1][1])
    assert not np.array_equal(views[0][0], views[2][0])
    assert views[0][0].shape == (12, 32, 32)
    assert views[0][0].dtype == np.float32
    assert views[0][0].flags.c_contiguous


def test_views_cut_shrink_and_scale_but_invent_nothing() -> None:
    e = example(side=64)
    plain = View(crop=32, gain_jitter=0, drop=0)
    pixels = e.pixels.astype(np.float32)
    means = pixels.reshape(12, 32, 2, 32, 2).mean((2, 4))
    for seed in range(8):
        cut, present = view(e, plain, 2, np.random.default_rng(seed))
        assert present.all()
        turned = [np.rot90(m, k, (1, 2)) for m in (means, means[:, ::-1]) for k in range(4)]
        sign = np.ones((12, 1, 1))
        sign[9:] = np.sign(cut[9].mean())  # a field may be reversed, as a whole
        assert any(np.allclose(cut, t * sign, rtol=1e-5) for t in turned)
    # An image that is too small to be shrunk is cut as it is.
    assert view(e, View(crop=64), 4, np.random.default_rng(0))[0].shape == (12, 64, 64)


def test_views_drop_channels_but_never_all_or_absent_ones() -> None:
    e = example(present=(1, 4, 9), side=32)
    how = View(crop=16, drop=1.0)
    kept = [view(e, how, 1, np.random.default_rng(seed))[1] for seed in range(40)]
    assert {int(k.sum()) for k in kept} == {1, 2}
    assert set(np.flatnonzero(np.any(kept, axis=0))) == {1, 4, 9}
    alone = view(example(present=(3,), side=32), how, 1, np.random.default_rng(0))[1]
    assert np.flatnonzero(alone).tolist() == [3]


def loader(seed: int = 0, **more: object) -> Loader:
    banks = [(0.7, [example(0), example(1, present=(2, 3))]), (0.3, [example(2, side=200)]), (0.0, [])]
    return Loader(banks, UNITS, batch=1, seed=seed, **more)


def test_batches_are_functions_of_the_seed() -> None:
    runs = [list(itertools.islice(loader(seed), 6)) for seed in (0, 0, 1)]
    for one, two in zip(runs[0], runs[1], strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(runs[0], runs[2], strict=True))
    one = loader()
    again = [next(iter(one))[0] for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_batches_show_what_counts() -> None:
    for images, masks, finite in itertools.islice(loader(3), 4):
        assert images.shape == finite.shape
        assert images.shape[:2] == masks.shape
        assert images.dtype == masks.dtype == finite.dtype == np.float32
        assert np.isfinite(images).all()
        assert (images[finite == 0] == 0).all()
        assert (finite <= masks[:, :, None, None]).all()


def test_loaders_end_with_their_use() -> None:
    before = threading.active_count()
    for _ in loader():
        break
    assert threading.active_count() == before


def test_errors_of_the_thread_are_raised_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = loader()
    monkeypatch.setattr(broken, "_sample", lambda rng: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(broken))


@pytest.mark.parametrize("banks", [[], [(1.0, [])], [(1.0, [example(side=128)])], [(0.0, [example()])]])
def test_loaders_without_anything_to_cut_are_refused(banks: list) -> None:
    with pytest.raises(InputError, match="192×192"):
        Loader(banks, UNITS, batch=1, seed=0)


# --- the loss --------------------------------------------------------------------------------------------


def batch(missing: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.randn(2, 12, 32, 48, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(2, 12)
    masks[:, missing] = 0
    images[:, missing] = 0
    return images, masks, masks[:, :, None, None].expand_as(images).clone()


def test_masked_channels_get_no_gradient() -> None:
    model = network()
    images, masks, finite = batch(5)
    bits, _, error = rate_distortion(model, images, masks, finite, torch.tensor([50.0, 80.0]))
    assert bits.shape == error.shape == (2,)
    error.sum().backward()
    last = model.synthesis[-2].weight.grad  # before the pixel shuffle: 16 rows a channel
    assert last is not None
    by_channel = last.reshape(12, -1).abs().sum(1)
    assert by_channel[5] == 0
    assert (by_channel[torch.arange(12) != 5] > 0).all()
    linear = model.linear_synthesis.weight.grad
    assert linear is not None
    assert linear.reshape(12, -1).abs().sum(1)[5] == 0


def test_missing_pixels_do_not_count() -> None:
    model = network().eval()
    images, masks, finite = batch()
    finite[:, 2, :16] = 0
    torch.manual_seed(1)
    _, _, error = rate_distortion(model, images, masks, finite, torch.tensor([50.0, 50.0]))
    torch.manual_seed(1)
    everything = torch.ones_like(finite)
    _, _, more = rate_distortion(model, images, masks, everything, torch.tensor([50.0, 50.0]))
    assert (error < more).all()
    torch.manual_seed(1)
    _, _, none = rate_distortion(model, images, masks, everything * 0, torch.tensor([50.0, 50.0]))
    assert (none == 0).all()


@pytest.mark.parametrize("quality", [20, 60, 75])
def test_the_estimated_rate_is_what_the_exported_codec_takes(quality: int) -> None:
    """Tables, gains or orders that differ between training and coding would show here."""
    model = network(2).eval().requires_grad_(False)
    with torch.no_grad():
        # Latents and hyper-latents as wide as those of trained networks.
        for layer, factor in (
            (model.analysis[-1], 1.5),
            (model.linear_analysis, 1.5),
            (model.hyper_analysis[-1], 20),
        ):
            layer.weight *= factor
        model.hyper_synthesis[-1].bias[6:] += 32
        model.prior_log_scale += 1.0
        # The exported transforms are in half precision: so must be those that the estimate uses.
        for name, p in model.named_parameters():
            if not name.startswith(("hyper_synthesis", "prior_", "log_")):
                p.copy_(p.half().float())
    stabiliser = Stabiliser(UNITS.a, UNITS.b, np.full(12, 20, np.float32))
    codec = Codec(export_hyperprior(model, stabiliser, "rate", default_quality=50, notes={}), quality)
    rng = np.random.default_rng(quality)
    x = (40 * rng.standard_normal((1, 12, 256, 256))).astype(np.float32)
    payload = Block.unpack(codec.encode(x, NAMES)[0]).payloads[0]
    images, mask, at = (
        torch.from_numpy(stabiliser.forward(x)),
        torch.ones(1, 12),
        torch.tensor([REACH * quality]),
    )
    gain, _ = model.gains(at)
    y = model.analyse(images, mask) * gain
    z = model.hyper_analyse(y).round()
    mean, scale = model.hyper_synthesise(z, gain, *y.shape[-2:])
    whole = model.prior_bits(z).sum() + model.latent_bits((y - mean).round(), scale).sum()
    assert len(payload) > 500
    assert 8 * len(payload) == pytest.approx(whole.item(), rel=0.01)
    # What training reports has noise in place of rounding in the hyper-latents alone.
    torch.manual_seed(quality)
    seen, _, _ = rate_distortion(model, images, mask, torch.ones_like(images), at)
    assert 8 * len(payload) == pytest.approx(seen.item(), rel=0.04)


# --- the loop --------------------------------------------------------------------------------------------


def test_training_moves_the_weights_and_returns_their_average(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen: list[int] = []
    steps = itertools.count()
    # The wall clock that the recipe goes by: two steps, then the time is up.
    clock = iter([0.0, 0.0, *[20.0] * 2, *[70.0] * 10])
    monkeypatch.setattr("sunzip.train.loop.time.monotonic", lambda: next(clock))
    found = train(
        model,
        loader(),
        Recipe(minutes=1.0),
        save=lambda m: seen.append(next(steps)),
    )
    assert not found.training
    assert found is not model
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {"analysis_stem.weight", "synthesis.7.weight", "hyper_synthesis.0.weight", "log_gain"} <= moved
    average = found.state_dict()
    assert any(not torch.equal(average[k], v) for k, v in model.state_dict().items())
    assert all(torch.isfinite(v).all() for v in average.values())


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    model = network()
    with torch.no_grad():
        model.analysis[-1].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        train(model, loader(), Recipe(minutes=1.0))


def test_principal_components_are_those_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Images that are multiples of one pattern of a block have one component: that pattern.
    monkeypatch.setattr("sunzip.train.loop.STRIDE", 4)  # 192 numbers a block instead of 3072
    pattern = np.random.default_rng(0).normal(size=(12, 4, 4)).astype(np.float32)
    amounts = np.random.default_rng(1).normal(size=(4, 1, 3, 1, 2, 1)).astype(np.float32)
    images = (amounts * pattern[None, :, None, :, None, :]).reshape(4, 12, 12, 8)
    ones = np.ones((4, 12), np.float32)
    components, deviations = principal_components([(images, ones, images)] * 3, 2, 2)  # type: ignore[arg-type]
    assert components.shape == (2, 192)
    flat = torch.nn.functional.pixel_unshuffle(torch.from_numpy(pattern[None]), 4).ravel()
    cosine = (components[0] @ flat / flat.norm()).abs()
    assert cosine.item() == pytest.approx(1, abs=1e-4)
    assert deviations[0].item() == pytest.approx(float(np.sqrt((amounts**2).mean()) * flat.norm()), rel=1e-3)
    assert deviations[1] < 0.01 * deviations[0]


# --- export ----------------------------------------------------------------------------------------------


def test_exported_models_are_found_and_code(tmp_path: Path, frames_of: object) -> None:
    model = export_hyperprior(
        network().eval(), UNITS, "made", default_quality=33, notes={"minutes": 1, "why": "σ"}
    )
    assert model.config["training"] == {"minutes": 1, "why": "σ"}
    again = export_hyperprior(
        network().eval(), UNITS, "made", default_quality=33, notes={"minutes": 1, "why": "σ"}
    )
    assert again.sha256 == model.sha256
    write(model, tmp_path / "made")
    codec = Codec(weights.load(tmp_path / "made"))
    assert codec.quality == 33
    x = frames_of(1, 2, 32, 32)  # type: ignore[operator]
    y = codec.decode(codec.encode(x, ("171A", "Bz")), ("171A", "Bz"), (32, 32))
    assert np.isfinite(y).all()
    assert not [k for k in codec.model.arrays("network") if k.startswith(("hyper_synthesis", "prior", "log"))]


def test_fitted_tables_code_such_frames_in_fewer_bytes_and_change_nothing_else(frames_of: object) -> None:
    model = export_hyperprior(network(2).eval(), UNITS, "made", default_quality=50, notes={})
    x = frames_of(6, 12, 64, 64)  # type: ignore[operator]
    images, present = UNITS.forward(x), np.ones((6, 12), np.float32)
    fitted = fit_tables(model, [(images[:3], present[:3]), (images[3:], present[3:])], [20, 50, 80], bands=2)
    before, after = Codec(model), Codec(fitted)
    sizes = [sum(map(len, codec.encode(x, NAMES))) for codec in (before, after)]
    assert sizes[1] < 0.95 * sizes[0]
    assert fitted.config == model.config
    changed = [k for k in ("network", "hyper_synthesis") if _differ(model.arrays(k), fitted.arrays(k))]
    assert changed == []
    latents = [codec.latents(codec.encode(x, NAMES), (64, 64)) for codec in (before, after)]
    np.testing.assert_array_equal(*latents)
    # Symbols that no training frame showed can still be coded.
    strange = (1000 * np.random.default_rng(0).standard_normal((1, 12, 32, 32))).astype(np.float32)
    np.testing.assert_array_equal(
        after.latents(after.encode(strange, NAMES), (32, 32)),
        before.latents(before.encode(strange, NAMES), (32, 32)),
    )
    # Tables that nothing was coded with stay as they were, but for rounding.
    same, old = (m.arrays("main_tables") for m in (fit_tables(model, [], [50], bands=1), model))
    np.testing.assert_allclose(same["frequencies"] / 2**24, old["frequencies"] / 2**24, atol=1e-4)


def _differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() != b.keys() or any(not np.array_equal(a[k], b[k]) for k in a)


def test_exported_transforms_are_the_networks_own_in_half_precision() -> None:
    trained = network().eval().requires_grad_(False)
    codec = Codec(export_hyperprior(trained, UNITS, "made", default_quality=50, notes={}))
    images, masks, _ = batch()
    latents = codec.family.analyse(images.numpy(), masks.numpy(), 50)
    gain, _ = trained.gains(torch.tensor([REACH * 50]))
    expected = (trained.analyse(images, masks) * gain).numpy()
    np.testing.assert_allclose(np.stack([m for m, _ in latents]), expected, atol=0.01)


@pytest.mark.parametrize("sigma", ["scalar", "per-channel"])
def test_sigma_vae_steps_follow_the_posterior(sigma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        network = SigmaVAE(3, sigma)  # type: ignore[arg-type]
    # Only its entropy side is looked at: what the weights are does not matter.
    state = {"log_sigma": torch.zeros(network.log_sigma.shape)}
    monkeypatch.setattr(network, "state_dict", lambda: state)
    rng = np.random.default_rng(0)
    means = (rng.normal(size=(400, 3)) * [10, 1, 0]).astype(np.float32)
    log_variances = np.log(np.full((400, 3), [0.04, 0.25, 1])).astype(np.float32)
    model = export_sigma_vae(network, UNITS, means, log_variances, "s", coarseness=2.0, notes={})
    codec = Codec(model)
    np.testing.assert_allclose(codec.family.steps, [0.4, 1.0, 2.0], rtol=1e-5)
    index = np.tile(np.arange(3), (400, 1))
    symbols = np.rint(means / codec.family.steps).astype(np.int32)
    bits = [codec.family.tables.cost_bits(symbols[:, i], index[:, i]) / 400 for i in range(3)]
    # Entropy of a Gaussian of deviation d in steps: log2(d · √(2πe)) bits; a collapsed latent is free.
    assert bits[0] == pytest.approx(np.log2(25 * 4.1327), abs=0.4)  # 400 draws know that many symbols little
    assert bits[1] == pytest.approx(np.log2(4.1327), abs=0.2)
    assert bits[2] < 0.05
    assert model.arrays("network")["log_sigma"].shape == tuple(network.log_sigma.shape)
