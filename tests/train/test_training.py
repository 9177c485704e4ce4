"""What is learned from and exported: seeded views, gradients where pixels count, rates that models keep."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sunzip import weights
from sunzip.channels import NAMES
from sunzip.codec import Codec, trellis
from sunzip.cube import Cube, Scale
from sunzip.errors import DivergedError, InputError
from sunzip.frame import Block
from sunzip.metrics import Accumulator
from sunzip.nn.hyperprior import REACH, Hyperprior
from sunzip.nn.sigma_vae import SigmaVAE
from sunzip.normalize import Stabiliser
from sunzip.train.data import View, Views, WholeFrames, ahead, spread, turned, view
from sunzip.train.export import export_hyperprior, export_sigma_vae, fit_tables, varied
from sunzip.train.families import SigmaVaeFamily, principal_components, rate_distortion
from sunzip.train.frames import Example, Frames, examples
from sunzip.train.measure import pixels_of, posteriors, quantisation_steps, worst_change
from sunzip.weights import write

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
        # A field may be reversed, as a whole.
        signs = (np.ones((12, 1, 1)), np.where(np.arange(12) < 9, 1, -1)[:, None, None])
        turns = [turned(means, k, mirror) * sign for k in range(4) for mirror in (0, 1) for sign in signs]
        assert any(np.allclose(cut, t, rtol=1e-5) for t in turns)
        same, _ = view(e, View(crop=64, augment=False), 1, np.random.default_rng(seed))
        np.testing.assert_array_equal(same, pixels)
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


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_fields_point_where_the_turned_sun_says(quarters: int, mirror: bool) -> None:
    y, x = np.mgrid[-2:3, -2:3].astype(np.float32)
    sun = np.zeros((12, 5, 5), np.float32)
    sun[0], sun[11] = x + 10 * y, x
    radial, swirl = sun.copy(), sun.copy()
    radial[9:11], swirl[9:11] = (x, y), (-y, x)
    for field, sign in ((radial, 1), (swirl, -1 if mirror else 1)):
        before = field.copy()
        out = turned(field, quarters, mirror)
        np.testing.assert_array_equal(field, before)
        # However it is turned, what pointed away from the centre does so, and a mirrored swirl is reversed.
        np.testing.assert_array_equal(out[9:11], sign * before[9:11])
        expected = np.rot90(before, quarters, (1, 2))
        np.testing.assert_array_equal(out[[0, 11]], (expected[:, ::-1] if mirror else expected)[[0, 11]])


def views(seed: int = 0) -> Views:
    banks = [(0.7, [example(0), example(1, present=(2, 3))]), (0.3, [example(2, side=200)]), (0.0, [])]
    return Views(banks, UNITS, batch=1, seed=seed)


def test_batches_of_views_are_functions_of_seed_step_and_rank() -> None:
    for step in range(4):
        for a, b in zip(views()(step), views()(step), strict=True):
            np.testing.assert_array_equal(a, b)
    others = [views()(0, 1, 2), views()(1), views(1)(0)]
    assert not any(np.array_equal(views()(0)[0], other[0]) for other in others)


def test_batches_of_views_show_what_counts() -> None:
    for step in range(4):
        images, masks, finite = views(3)(step)
        assert images.shape == finite.shape
        assert images.shape[:2] == masks.shape
        assert images.dtype == masks.dtype == finite.dtype == np.float32
        assert np.isfinite(images).all()
        assert (images[finite == 0] == 0).all()
        assert (finite <= masks[:, :, None, None]).all()


@pytest.mark.parametrize("banks", [[], [(1.0, [])], [(1.0, [example(side=128)])], [(0.0, [example()])]])
def test_views_without_anything_to_cut_are_refused(banks: list) -> None:
    with pytest.raises(InputError, match="192×192"):
        Views(banks, UNITS, batch=1, seed=0)


def frames(count: int, side: int = 8, **more: tuple[int, ...]) -> Frames:
    bank = [example(n, side, **more) for n in range(count)]
    time = np.datetime64("2014-01-01", "ms") + np.arange(count) * np.timedelta64(1, "D")
    return Frames(np.stack([e.pixels for e in bank]), np.stack([e.present for e in bank]), time)


def test_epochs_show_every_frame_once_over_all_ranks() -> None:
    some = frames(8)
    whole = WholeFrames(some, batch=2, seed=5, augment=False)
    orders = []
    for epoch in range(2):
        seen = np.concatenate([whole(2 * epoch + s, rank, 2)[0] for s in range(2) for rank in range(2)])
        orders.append([next(i for i, e in enumerate(some) if np.array_equal(e.pixels, x)) for x in seen])
        assert sorted(orders[-1]) == list(range(8))
    assert orders[0] != orders[1]


def test_augmented_frames_keep_their_centre_and_are_functions_of_the_seed() -> None:
    some = frames(1)
    pixels = some[0].pixels
    whole = WholeFrames(some, batch=1, seed=0, augment=True)
    seen = [whole(step)[0][0] for step in range(60)]
    np.testing.assert_array_equal(whole(7)[0], whole(7)[0])
    reverse = np.where(np.arange(12) < 9, 1, -1)[:, None, None]
    wanted = [turned(pixels, 2 * h, m) * s for h in (0, 1) for m in (False, True) for s in (1, reverse)]
    found = {next(i for i, w in enumerate(wanted) if np.array_equal(x, w)) for x in seen}
    assert found == set(range(8))


def test_batches_come_in_order_and_their_threads_end() -> None:
    before = threading.active_count()
    batches = ahead(lambda n: n * n, 3)
    assert list(itertools.islice(batches, 20)) == [n * n for n in range(3, 23)]
    batches.close()
    assert threading.active_count() == before


def test_errors_of_threads_are_raised_not_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        next(ahead(lambda n: 1 // n, 0))


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


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The σ-VAE with a sixteenth of its filters."""
    from sunzip.nn import sigma_vae

    monkeypatch.setattr(sigma_vae, "_LAYERS", tuple((f // 32, k, s) for f, k, s in sigma_vae._LAYERS))
    monkeypatch.setattr(sigma_vae, "_FEATURES", (16, 4, 4))


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("settled", [False, True])
def test_batchnorm_of_a_settled_network_learns_but_does_not_measure(settled: bool) -> None:
    whole = WholeFrames(frames(2, 128), batch=2, seed=0, augment=False)
    family = SigmaVaeFamily(whole, UNITS, 4, "scalar", settled=settled)
    family.train(family.network)
    family.losses([torch.from_numpy(a) for a in family.batches(0, 0, 1)], 1.0)[0].backward()
    for norm in family.network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            assert norm.num_batches_tracked == (0 if settled else 1)
            assert norm.weight.grad is not None


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("mode", ["scalar", "optimal", "per-channel", "beta"])
def test_missing_images_and_pixels_neither_cost_nor_teach(mode: str) -> None:
    some = frames(2, 128, present=tuple(range(11)))
    torch.manual_seed(0)
    family = SigmaVaeFamily(WholeFrames(some, batch=2, seed=0, augment=False), UNITS, 4, mode)  # type: ignore[arg-type]
    pixels, present = (torch.from_numpy(a) for a in family.batches(0, 0, 1))
    pixels[:, 2, :64] = float("nan")
    found = []
    for absurd in (0.0, 30000.0):
        pixels[:, 11] = absurd
        family.network.zero_grad()
        torch.manual_seed(1)
        loss, statistics = family.losses((pixels, present), 1.0)
        loss.backward()
        assert torch.isfinite(statistics).all()
        last = family.network.synthesis[-1]
        found.append((loss.item(), last.bias.grad.clone(), last.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    _, bias, weight = found[1]
    assert bias[11] == 0
    assert (weight[:, 11] == 0).all()
    assert (bias[:11] != 0).all()
    # Half of channel 2 counts: its bias learns from that half alone.
    assert torch.isfinite(bias).all()


@pytest.mark.usefixtures("thin")
def test_the_kl_divergence_warms_up() -> None:
    scaled = Stabiliser(UNITS.a, UNITS.b, np.full(12, 100, np.float32))
    family = SigmaVaeFamily(WholeFrames(frames(2, 128), batch=2, seed=0, augment=False), scaled, 4, "scalar")
    with torch.no_grad():
        family.network.log_variance.bias.fill_(-25)  # as much divergence as shows beside the error
    batch = [torch.from_numpy(a) for a in family.batches(0, 0, 1)]
    losses = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(1)
        loss, statistics = family.losses(batch, weight)
        losses.append(loss.item())
    assert losses[2] - losses[0] == pytest.approx(statistics[0].item() / (12 * 128 * 128), rel=1e-2)
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)


def test_principal_components_are_those_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Images that are multiples of one pattern of a block have one component: that pattern.
    monkeypatch.setattr("sunzip.train.families.STRIDE", 4)  # 192 numbers a block instead of 3072
    pattern = np.random.default_rng(0).normal(size=(12, 4, 4)).astype(np.float32)
    amounts = np.random.default_rng(1).normal(size=(4, 1, 3, 1, 2, 1)).astype(np.float32)
    images = (amounts * pattern[None, :, None, :, None, :]).reshape(4, 12, 12, 8)
    components, deviations = principal_components(lambda step: (images,), 2, 2)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("analysis.0.first.weight", 1e6, "weights of analysis.0.first.weight are too large for half"),
        ("hyper_synthesis.0.weight", 6e4, "integer network: layer 0 could exceed"),
    ],
)
def test_hyperpriors_whose_last_steps_were_wild_are_told_to_have_diverged(
    name: str, value: float, message: str
) -> None:
    trained = network().eval().requires_grad_(False)
    dict(trained.named_parameters())[name].fill_(value)
    with pytest.raises(DivergedError, match=f"training diverged: {message}.*and a lower --rate"):
        export_hyperprior(trained, UNITS, "made", default_quality=50, notes={})


class Linear(torch.nn.Module):
    """Stands for a σ-VAE: two latents for each channel, each a pattern of its own."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        patterns = np.zeros((24, 12, 16, 16), np.float32)
        for j in range(24):
            patterns[j, j // 2] = rng.normal(size=(16, 16))
        self.patterns = torch.from_numpy(patterns)
        self.log_sigma = torch.full((12,), -1.0)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.einsum("nchw,jchw->nj", x, self.patterns) / self.patterns.square().sum((1, 2, 3))
        return z, torch.full_like(z, -4.0)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nj,jchw->nchw", z, self.patterns)


def test_steps_are_as_coarse_as_each_channel_bears() -> None:
    network, rng = Linear(), np.random.default_rng(6)
    z = torch.from_numpy(rng.normal(0, 3, (300, 24)).astype(np.float32))
    # Odd channels are mostly what no latent tells: what coding adds to that is nothing to them.
    rough = rng.normal(0, np.where(np.arange(12) % 2, 4, 0.3)[:, None, None], (300, 12, 16, 16))
    y = network.decode(z).numpy() + rough.astype(np.float32)
    frames = Frames(UNITS.inverse(y), np.ones((300, 12), bool), np.arange(300).astype("datetime64[h]"))
    steps = quantisation_steps(network, UNITS, frames)  # type: ignore[arg-type]
    assert steps.shape == (24,)
    assert steps.dtype == np.float32

    def loss(steps: np.ndarray) -> float:
        means, _ = posteriors(network, UNITS, frames)  # type: ignore[arg-type]
        on = varied(means, steps)
        coded = trellis.dequantise(trellis.quantise(means / steps, on), on) * steps
        exact, found = Accumulator(NAMES), Accumulator(NAMES)
        for total, of in ((exact, means), (found, coded)):
            total.add(
                pixels_of(frames, slice(None))[0],
                UNITS.inverse(network.decode(torch.from_numpy(of)).numpy()),
                frames.present,
            )
        return worst_change(exact, found)[0]

    assert 0.003 < loss(steps) < 0.015  # that of one channel is a matter of luck, too
    assert steps.reshape(12, 2)[1::2].min() > 1.5 * steps.reshape(12, 2)[::2].max()
    # The same number of bits, evenly spread, loses more.
    assert loss(np.full(24, np.exp(np.log(steps).mean()), np.float32)) > 0.05


@pytest.mark.parametrize("sigma", ["scalar", "per-channel"])
def test_tables_of_a_sigma_vae_are_those_of_its_symbols(sigma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        network = SigmaVAE(3, sigma)  # type: ignore[arg-type]
    # Only its entropy side is looked at: what the weights are does not matter.
    state = {"log_sigma": torch.zeros(network.log_sigma.shape)}
    monkeypatch.setattr(network, "state_dict", lambda: state)
    rng = np.random.default_rng(0)
    means = (rng.normal(size=(400, 3)) * [10, 1, 0]).astype(np.float32)
    steps = np.array([0.4, 1.0, 2.0], np.float32)
    model = export_sigma_vae(network, UNITS, means, steps, "s", notes={})
    codec = Codec(model)
    np.testing.assert_array_equal(codec.family.steps, steps)
    index = np.tile(np.arange(3), (400, 1))
    assert codec.family.on_trellis.tolist() == [True, True, False]
    symbols = trellis.quantise(means / codec.family.steps, codec.family.on_trellis)
    bits = [codec.family.tables.cost_bits(symbols[:, i], index[:, i]) / 400 for i in range(3)]
    # Entropy of a Gaussian of deviation d in steps: log2(d · √(2πe)) bits; a collapsed latent is free.
    assert bits[0] == pytest.approx(np.log2(25 * 4.1327), abs=0.4)  # 400 draws know that many symbols little
    assert bits[1] == pytest.approx(np.log2(4.1327), abs=0.2)
    assert bits[2] < 0.05
    assert model.arrays("network")["log_sigma"].shape == tuple(network.log_sigma.shape)
    # One that lies far off costs no memory for what lies between.
    means[0, 2] = 2e7
    tracemalloc.start()
    export_sigma_vae(network, UNITS, means, steps, "s", notes={})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2e7
