"""Rotation: against sines and cosines of the mathematics library, at the limb, back, and between two."""

from __future__ import annotations

import hashlib
import math
import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sunzip import rotation
from sunzip.cube import DISK_RADIUS_512
from sunzip.recent import Recent
from sunzip.rotation import MAX_MINUTES, foretold, turned


def degrees_a_day(sine: float) -> float:
    """Return the synodic rotation at the latitude of that sine (Snodgrass and Ulrich 1990)."""
    return 14.71 - 0.9856 - 2.39 * sine**2 - 1.78 * sine**4


def keys(distance: float) -> float:
    """Return the kernel of cubic convolution (Keys 1981, a = −1/2)."""
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def expected(image: np.ndarray, minutes: int) -> np.ndarray:
    """Turn an image pixel by pixel in longitudes, with the mathematics library's functions."""
    height, width = image.shape
    radius = DISK_RADIUS_512 / 512 * min(height, width)
    out = np.empty((height, width))
    for i in range(height):
        y = i - (height - 1) / 2
        angle = math.radians(degrees_a_day(y / radius) * minutes / 1440)
        for j in range(width):
            x = j - (width - 1) / 2
            source = float(j)
            if x * x + y * y < radius * radius:
                ring = math.sqrt(radius**2 - y**2)
                longitude = math.asin(x / ring) - angle
                if longitude > -math.pi / 2:
                    source = ring * math.sin(longitude) + (width - 1) / 2
            source = min(max(source, 1), width - 3)
            left = math.floor(source)
            out[i, j] = sum(image[i, left + k] * keys(source - left - k) for k in range(-1, 3))
    return out


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(100, 20, (1, height, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "minutes"),
    [(48, 48, 12), (48, 48, 1440), (33, 40, MAX_MINUTES), (40, 33, 600), (8, 8, 2880)],
)
def test_it_is_the_rotation_of_a_sphere(height: int, width: int, minutes: int) -> None:
    image = picture(height, width)
    np.testing.assert_allclose(turned(image, minutes)[0], expected(image[0], minutes), atol=2e-3)
    # Backwards it is that of the Sun in a mirror.
    back = expected(image[0, :, ::-1], minutes)[:, ::-1]
    np.testing.assert_allclose(turned(image, -minutes)[0], back, atol=2e-3)


def test_no_time_is_the_identity() -> None:
    image = picture(32, 32)
    assert (turned(image, 0) == image).all()


def test_a_spot_on_the_equator_goes_west_by_its_longitude() -> None:
    side = 129
    x, y = np.meshgrid(np.arange(side) - 64.0, np.arange(side) - 64.0)
    spot = np.exp(-(x**2 + y**2) / 18).astype(np.float32)
    for minutes in (360, 1440, 2880, -360, -2880):
        row = turned(spot[None], minutes)[0, 64]
        wanted = DISK_RADIUS_512 / 512 * side * math.sin(math.radians(degrees_a_day(0) * minutes / 1440))
        assert (row * x[0]).sum() / row.sum() == pytest.approx(wanted, abs=0.3)


def test_beyond_the_limb_and_where_the_far_side_comes_round_all_stays() -> None:
    side, minutes = 64, 2880
    image = picture(side, side)
    x, y = np.meshgrid(np.arange(side) - 31.5, np.arange(side) - 31.5)
    radius = DISK_RADIUS_512 / 512 * side
    beyond = x**2 + y**2 > radius**2
    beyond[:, [0, -2, -1]] = False  # which take the nearest that has four neighbours
    after = turned(image, minutes)
    assert (after[0][beyond] == image[0][beyond]).all()
    # The eastern limb two days on: 27° have come round.
    assert (after[0, 32, 7:9] == image[0, 32, 7:9]).all()
    assert (after[0, 32, 24:40] != image[0, 32, 24:40]).all()
    assert (after[0, :, 0] == image[0, :, 1]).all()
    assert (after[0, :, -2:] == image[0, :, -3:-2]).all()


def test_a_constant_stays_and_narrow_pictures_are_left_alone() -> None:
    np.testing.assert_allclose(turned(np.full((1, 32, 32), 7, np.float32), 1000), 7, rtol=1e-6)
    narrow = picture(16, 7)
    assert (turned(narrow, 1440) == narrow).all()


def test_channels_are_turned_one_by_one_and_inputs_left_alone() -> None:
    images = np.concatenate([picture(24, 32, seed) for seed in range(3)])
    kept = images.copy()
    for minutes in (720, -720):
        together = turned(images, minutes)
        assert (images == kept).all()
        assert (turned(np.asfortranarray(images), minutes) == together).all()
        for image, result in zip(images, together, strict=True):
            assert (turned(image[None], minutes)[0] == result).all()


def test_back_and_forth_is_the_same_away_from_the_limb() -> None:
    side = 129
    x, y = np.meshgrid(np.arange(side) - 64.0, np.arange(side) - 64.0)
    smooth = (100 + 50 * np.sin(x / 9) * np.cos(y / 9)).astype(np.float32)[None]
    there = turned(smooth, 1440)
    inner = (x**2 + y**2 < 35**2)[None]
    assert np.abs(there - smooth)[inner].max() > 10
    assert np.abs(turned(there, -1440) - smooth)[inner].max() < 1


def test_one_picture_foretells_what_it_turns_to() -> None:
    image = picture(32, 40)
    for minutes in (0, 360, -360):
        assert (foretold([(image, minutes)]) == turned(image, minutes)).all()


@given(st.integers(0, MAX_MINUTES), st.integers(0, MAX_MINUTES))
def test_two_pictures_foretell_the_more_the_nearer_they_are(early: int, late: int) -> None:
    # Pictures that are the same everywhere stay so; what is made of them shows their shares.
    first, second = (np.full((2, 16, 16), value, np.float32) for value in (1, 0))
    kept = first.copy(), second.copy()
    share = late / (early + late) if early + late else 0.5
    np.testing.assert_allclose(foretold([(first, early), (second, -late)]), share, atol=1e-5)
    np.testing.assert_allclose(foretold([(second, early), (first, -late)]), 1 - share, atol=1e-5)
    assert (first == kept[0]).all()
    assert (second == kept[1]).all()


def test_two_pictures_are_turned_to_the_time_between_them() -> None:
    first, second = picture(48, 48, 1), picture(48, 48, 2)
    found = foretold([(first, 360), (second, -1080)])
    expected = 0.75 * turned(first, 360).astype(float) + 0.25 * turned(second, -1080)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (foretold([(first, 0), (second, -600)]) == first).all()
    # Whichever is told first.
    np.testing.assert_allclose(foretold([(second, -1080), (first, 360)]), found, rtol=1e-5)


def test_every_machine_gets_these_bits() -> None:
    image = (np.arange(64 * 64, dtype=np.int64) ** 2 % 1009).reshape(1, 64, 64).astype(np.float32)
    digest = hashlib.sha256(b"".join(turned(image, m).tobytes() for m in (6, 360, 5760)))
    assert digest.hexdigest()[:16] == "4c87d451268b04ea"
    both = foretold([(image, 360), (image[..., ::-1], -660)])
    assert (
        hashlib.sha256(turned(image, -360).tobytes() + both.tobytes()).hexdigest()[:16] == "87ab772baedca40a"
    )


def test_what_was_found_is_kept_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(24, 300)
    monkeypatch.setattr(rotation, "_found", Recent(1 << 20))
    monkeypatch.setattr(rotation, "_AT_ONCE", 1000)  # some rows at a time, and the last ones fewer
    first = turned(image, 60)
    np.testing.assert_allclose(first[0], expected(image[0], 60), atol=1e-3)
    held = rotation._found.get((24, 300, 60))
    assert held is not None
    monkeypatch.setattr(rotation, "_found", Recent(5 * sum(part.nbytes for part in held)))

    def known() -> list[int]:
        return [key[2] for key in rotation._found._held]

    for minutes in (-12, 12, 24, 36, 60, 48, 72):
        turned(image, minutes)
    assert known() == [24, 36, 60, 48, 72]
    monkeypatch.setattr(rotation, "_found", Recent(0, fewest=4))
    for minutes in (12, 24, 36, 60):
        turned(image, minutes)
    assert (turned(image, 60) == first).all()
    assert (turned(image, -96)[..., ::-1] == turned(image[..., ::-1], 96)).all()
    assert known() == [36, 60, -96, 96]


def test_a_fork_while_another_thread_holds_what_was_found_goes_on() -> None:
    image = picture(16, 16)
    with rotation._found._lock:
        child = os.fork()
        if not child:
            signal.alarm(20)
            turned(image, 30)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
