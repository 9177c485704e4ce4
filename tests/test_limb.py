"""The disk: where it is, that it is told by its numbers, and that those make the same picture for ever."""

import hashlib

import numpy as np
import pytest

from sunzip.channels import NAMES
from sunzip.cube import disk_radius
from sunzip.limb import KNOTS, disk, fitted, shows_disk
from sunzip.normalize import Stabiliser
from sunzip.sources.synthetic import render


@pytest.mark.parametrize("shape", [(512, 512), (128, 128), (100, 260)])
def test_a_disk_is_told_by_its_numbers(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).uniform(0, 1000, (2, len(KNOTS))).astype(np.float32)
    values[:, -3:] = 5
    images = disk(values, *shape)
    assert images.shape == (2, *shape)
    assert images.dtype == np.float32
    again = disk(fitted(images).astype(np.float32), *shape)
    # Neighbouring knots at the limb of small pictures have hardly a pixel each.
    assert np.abs(again - images).mean() < 2


def test_it_is_what_the_picture_is_on_average_around_the_centre() -> None:
    side = 256
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    r = np.hypot(y, x) / disk_radius(side)
    ring = np.where(r < 1, 100 * (1 - 0.5 * r**2), 3)
    image = (ring + np.random.default_rng(1).normal(0, 20, r.shape)).astype(np.float32)[None]
    found = disk(fitted(image).astype(np.float32), side, side)[0]
    inside, outside = r < 0.97, r > 1.03
    assert np.abs(found - ring)[inside].mean() < 1.5
    assert np.abs(found - ring)[outside].mean() < 1.5


def test_a_constant_picture_and_one_that_is_0() -> None:
    for value in (0.0, 7.0):
        image = np.full((1, 64, 64), value, np.float32)
        np.testing.assert_allclose(fitted(image), value, atol=0.05)


def test_every_machine_gets_these_bits() -> None:
    values = (np.arange(2 * len(KNOTS), dtype=np.int64) ** 2 % 449 - 224).astype(np.float32).reshape(2, -1)
    digest = hashlib.sha256(disk(values / 7, 67, 90).tobytes())
    assert digest.hexdigest()[:16] == "f7a078583c48ddf7"


@pytest.fixture(scope="module")
def sun() -> np.ndarray:
    """(12, 128, 128) of the whole Sun, in units of noise."""
    return Stabiliser.for_channels(NAMES).forward(render(np.datetime64("2014-03-05"), size=128, seed=5))


@pytest.mark.parametrize("channels", [range(12), *([c] for c in range(12))])
def test_the_whole_sun_is_told_from_its_parts(sun: np.ndarray, channels: list[int]) -> None:
    images = sun[list(channels)]
    assert shows_disk(images)
    assert shows_disk(images[:, 2:126:2, 2:126:2])
    assert not any(
        shows_disk(images[:, y : y + 64, x : x + 64]) for y in range(0, 65, 16) for x in range(0, 65, 16)
    )
    assert not shows_disk(np.roll(images, 32, 2))


@pytest.mark.parametrize("shape", [(1, 64, 64), (12, 16, 16), (3, 2, 64), (1, 1, 1)])
def test_where_there_is_no_sun_none_is_found(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for images in (noise, np.zeros_like(noise), np.ones_like(noise), np.full_like(noise, np.inf)):
        assert not shows_disk(images)
