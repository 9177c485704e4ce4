"""The float network: shapes, masks, gains, and its agreement with what is exported from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sunzip.entropy.tables import PRECISION, Tables
from sunzip.nn.hyperprior import QUALITY_MAX, REACH, SCALE_RANGE, SCALES, Hyperprior, scale_table
from sunzip.nn.integer import ACTIVATION_BITS


@pytest.fixture(scope="module")
def network() -> Hyperprior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Hyperprior(wide=8, deep=8, latents=6, hyper=4, hyper_wide=24).eval().requires_grad_(False)


ONE = torch.ones(1, 6, 1, 1)


def images(n: int = 2, y: int = 64, x: int = 96) -> Tensor:
    return torch.randn(n, 12, y, x, generator=torch.Generator().manual_seed(1))


def test_shapes(network: Hyperprior) -> None:
    mask = torch.ones(2, 12)
    y = network.analyse(images(), mask)
    assert y.shape == (2, 6, 4, 6)
    z = network.hyper_analyse(y)
    assert z.shape == (2, 4, 1, 2)
    mean, scale = network.hyper_synthesise(z, ONE, 4, 6)
    assert mean.shape == scale.shape == y.shape
    assert network.synthesise(y, mask).shape == (2, 12, 64, 96)


def test_the_mask_matters_on_both_ways(network: Hyperprior) -> None:
    x, all_there, few = images(1), torch.ones(1, 12), torch.zeros(1, 12)
    few[:, 2] = 1
    y = network.analyse(x, all_there)
    assert not torch.allclose(y, network.analyse(x, few))
    assert not torch.allclose(network.synthesise(y, all_there), network.synthesise(y, few))


def test_exported_hyper_synthesis_stays_close_to_the_float_one(network: Hyperprior) -> None:
    exact = network.export_hyper_synthesis()
    z = torch.randint(-20, 21, (4, 3, 5), generator=torch.Generator().manual_seed(2))
    mean, scale = network.hyper_synthesise(z[None].float(), ONE, 12, 20)
    out = exact(z.numpy().astype(np.int32)) / 2**ACTIVATION_BITS
    assert out.shape == (12, 12, 20)
    expected = torch.cat((mean, scale), 1)[0].numpy()
    assert np.abs(expected).max() > 2  # far more than what is tolerated
    # 12 fraction bits of weights and 8 of activations, over 24 · 9 products of values up to 20.
    np.testing.assert_allclose(out, expected, atol=0.05)
    assert np.abs(out - expected).mean() < 0.01


def test_gains_go_through_their_anchors_and_are_geometric_between(network: Hyperprior) -> None:
    anchors = network.log_gain.shape[0]
    at = torch.linspace(0, QUALITY_MAX, anchors)
    gain, inverse = network.gains(at)
    assert gain.shape == inverse.shape == (anchors, 6, 1, 1)
    torch.testing.assert_close(gain[..., 0, 0], network.log_gain.exp())
    torch.testing.assert_close(inverse[..., 0, 0], network.log_inverse_gain.exp())
    middle, _ = network.gains((at[:1] + at[1:2]) / 2)
    torch.testing.assert_close(middle[0], (gain[0] * gain[1]).sqrt())


def test_tables_of_gains_are_those_that_training_used(network: Hyperprior) -> None:
    tables = {name: table.numpy() for name, table in network.export_gains().items()}
    assert {t.shape for t in tables.values()} == {(101, 6)}
    z = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(4))
    _, unmoved = network.hyper_synthesise(z, ONE, 4, 4)
    for quality in (0, 37, 100):
        gain, inverse = network.gains(torch.tensor([REACH * quality]))
        np.testing.assert_allclose(tables["gain"][quality], gain[0, :, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(tables["inverse"][quality], inverse[0, :, 0, 0], rtol=1e-6)
        _, moved = network.hyper_synthesise(z, gain, 4, 4)
        offset = tables["index_offset"][quality] / 2**ACTIVATION_BITS
        np.testing.assert_allclose((moved - unmoved)[0, :, 0, 0], offset, atol=2**-8)


def test_it_can_begin_as_a_linear_transform_codec() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Hyperprior(wide=8, deep=8, latents=6, hyper=4, hyper_wide=24).eval()
        components = torch.linalg.qr(torch.randn(12 * 256, 6))[0].T
    deviations = torch.tensor([8.0, 4, 2, 1, 0.5, 0.25])
    network.begin_as(components, deviations)
    x, mask = images(1), torch.ones(1, 12)
    with torch.no_grad():
        y = network.analyse(x, mask)
        expected = torch.einsum("mk,nkhw->nmhw", components, torch.nn.functional.pixel_unshuffle(x, 16))
        assert (y - expected).std() < 0.05 * expected.std()
        _, index = network.hyper_synthesise(torch.zeros(1, 4, 1, 1), ONE, 4, 4)
    table = torch.tensor(scale_table())
    torch.testing.assert_close(table[index.round().long()[0, :, 0, 0]], deviations, rtol=0.15, atol=0)


def test_prior_is_a_distribution_over_integers(network: Hyperprior) -> None:
    p = network.prior_probabilities(128)
    assert p.shape == (4, 257)
    torch.testing.assert_close(p.sum(1), torch.ones(4), atol=1e-4, rtol=0)
    z = torch.arange(-3.0, 4).expand(1, 4, 1, 7)
    torch.testing.assert_close(network.prior_bits(z)[0, :, 0], -torch.log2(p[:, 125:132]))


def test_prior_bits_are_finite_far_away(network: Hyperprior) -> None:
    bits = network.prior_bits(torch.full((1, 4, 1, 1), 1e6))
    assert torch.isfinite(bits).all()
    assert (bits > 20).all()


def test_latent_bits_are_those_of_the_tables_that_code_them() -> None:
    tables = Tables.gaussian(scale_table())
    for k in (5, 20, 40, 60):
        lowest, begin = int(tables.lowest[k]), int(tables.offsets[k])
        deviation = torch.arange(0, min(4, -lowest + 1)).float()
        bits = Hyperprior.latent_bits(deviation, torch.full_like(deviation, k))
        f = tables.frequencies[begin - lowest : begin - lowest + len(deviation)].astype(float)
        coded = PRECISION - np.log2(f)
        likely = coded < 14  # beyond, the share of the escape shows
        np.testing.assert_allclose(bits.numpy()[likely], coded[likely], atol=0.05)


def test_scale_table_is_geometric() -> None:
    table = np.array(scale_table())
    assert len(table) == SCALES
    assert (table[0], table[-1]) == pytest.approx(SCALE_RANGE)
    np.testing.assert_allclose(
        np.diff(np.log(table)), math.log(SCALE_RANGE[1] / SCALE_RANGE[0]) / (SCALES - 1)
    )


def test_scale_index_is_limited_to_the_table() -> None:
    one = torch.ones(1)
    for inside, outside in ((0, -100), (SCALES - 1, 1000)):
        torch.testing.assert_close(
            Hyperprior.latent_bits(one, one * inside), Hyperprior.latent_bits(one, one * outside)
        )


def test_sizes_that_the_hyper_latents_do_not_divide_are_padded(network: Hyperprior) -> None:
    y = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(3))
    z = network.hyper_analyse(y)
    assert z.shape[-2:] == (2, 2)
    padded = torch.zeros(1, 6, 8, 8)
    padded[..., :5, :7] = y
    torch.testing.assert_close(network.hyper_analyse(padded), z)
    mean, _ = network.hyper_synthesise(z, ONE, 5, 7)
    assert mean.shape == (1, 6, 5, 7)
