"""Films to learn from: what is known of a frame is what those tell of it that a codec leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.family import Float, Known, Latents
from sunzip.codec.order import order
from sunzip.codec.wavelet import WaveletFamily
from sunzip.errors import InputError
from sunzip.nn.context import Context
from sunzip.nn.exact import LAYERS
from sunzip.nn.planes import WIDTHS
from sunzip.normalize import Stabiliser
from sunzip.pyramid import woven
from sunzip.rotation import foretold, turned
from sunzip.train import wavelet as wavelet_module
from sunzip.train.films import LENGTH, Films, as_coded, as_they_were, follow, shots_of, stable
from sunzip.train.frames import Frames
from sunzip.train.pyramids import Pyramids, pyramid
from sunzip.train.pyramids import WaveletFamily as Training
from sunzip.train.wavelet import COARSEST, SPREADS, coded, integers, network_of, steps
from sunzip.weights import Model

UNITS = Stabiliser.for_channels(NAMES)
SIDE = 32

#: Minutes at which the frames below are: two runs a fortnight apart, an empty frame in the second.
MINUTES = [0, 12, 24, 20_000, 20_060, 20_120, 20_180]


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Seven frames over all channels, but that the second lacks two and the sixth has none."""
    rng = np.random.default_rng(2)
    pixels = rng.gamma(2.0, 40.0, (len(MINUTES), 12, SIDE, SIDE)).astype(np.float16)
    present = np.ones((len(MINUTES), 12), bool)
    present[1, [0, 4]], present[5] = False, False
    pixels[~present] = np.nan
    pixels[3, 2, :3] = np.nan
    time = np.datetime64("2014-01-01", "ms") + np.array(MINUTES) * np.timedelta64(1, "m")
    return Frames(pixels, present, time)


def test_frames_follow_each_other_unless_too_far_apart_or_without_a_common_channel(frames: Frames) -> None:
    assert follow(frames) == {1: 12, 2: 12, 4: 60}


def test_films_are_runs_of_frames_with_the_channels_that_all_have(frames: Frames) -> None:
    shots = shots_of(frames, 100, 0)
    assert sorted(shot.rows for shot in shots) == [[0, 1, 2], [1, 2], [2], [3, 4], [4], [6]]
    for shot in shots:
        assert len(shot.rows) <= LENGTH
        lacking = {0, 4} if 1 in shot.rows else set()
        assert set(shot.channels) == set(range(12)) - lacking
        images, channels = shot.read(frames, UNITS)
        assert channels == shot.channels
        for row, image in zip(shot.rows, images, strict=True):
            assert np.isfinite(image).all()
            assert not image[list(lacking)].any()
            shown = UNITS.forward(frames[row].pixels.astype(np.float32))[channels]
            there = ~np.isnan(shown)
            np.testing.assert_array_equal(image[channels][there], shown[there])
    assert [s.rows for s in shots_of(frames, 3, 0)] == [s.rows for s in shots[:3]]
    assert [s.rows for s in shots] != [s.rows for s in shots_of(frames, 100, 1)]


def test_a_first_model_knows_frames_before_as_they_were(frames: Frames) -> None:
    before = as_they_were(frames, UNITS)
    assert before(0) is before(3) is before(6) is None
    for row, minutes in ((1, 12), (2, 12), (4, 60)):
        left = before(row)
        assert left is not None
        has, images = stable(frames, row - 1, UNITS)
        shared = [c for c in has if frames[row].present[c]]
        assert (left.channels, left.step) == (shared, None)
        expected = turned(images[[has.index(c) for c in shared]], minutes)
        assert (expected != images[[has.index(c) for c in shared]]).any()
        np.testing.assert_array_equal(left.images, expected)


def test_a_second_model_knows_them_as_the_codec_leaves_them(frames: Frames, wavelet_model: Model) -> None:
    family = WaveletFamily(wavelet_model)
    shots = [s for s in shots_of(frames, 100, 0) if s.rows in ([1, 2], [3, 4])]
    told: list[tuple[int, int]] = []
    left = as_coded(family, frames, UNITS, shots, 7, lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]
    assert set(left) == {2, 4}
    for row, found in left.items():
        # Two frames do not tell how alike they are: both are of their block's quality.
        (quality,) = (q for q in range(101) if np.array_equal(found.step, steps()[q, found.channels]))
        names = [NAMES[c] for c in found.channels]
        has, images = stable(
            frames, row - 1, UNITS
        )  # with something where pixels are missing, as a film has it
        images = images[[has.index(c) for c in found.channels]]
        pixels = UNITS.subset(found.channels).inverse(images)[None]
        codec = Codec(wavelet_model, quality)
        decoded = codec.decode(codec.encode(pixels, names), names, (SIDE, SIDE))[0]
        shown = UNITS.subset(found.channels).forward(decoded)
        expected = turned(shown, MINUTES[row] - MINUTES[row - 1])
        np.testing.assert_allclose(found.images, expected, rtol=2e-3, atol=0.1)


def test_some_films_go_on_from_frame_to_frame_and_others_not(
    frames: Frames, wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WaveletFamily, "likeness", lambda *frames: 1.0)
    family = WaveletFamily(wavelet_model)
    (shot,) = (s for s in shots_of(frames, 100, 0) if s.rows == [0, 1, 2])
    film = shot.read(frames, UNITS)
    assert MINUTES[:3] == [0, 12, 24]
    kinds = set()
    for seed in range(6):
        left = as_coded(family, frames, UNITS, [shot], seed, lambda *now: None)
        assert set(left) == {1, 2}
        for row in (1, 2):
            assert left[row].channels == shot.channels
        matches = set()
        for chained in (False, True):
            # Those that go on from frame to frame are all of their block's quality.
            depths = ((1, 0), (2, 0)) if chained else ((1, 2), (2, 1))
            like = 0.0 if chained else 1.0
            for quality in range(101):
                if not all(
                    np.array_equal(
                        left[row].step, steps()[family.own_quality(quality, depth, like), shot.channels]
                    )
                    for row, depth in depths
                ):
                    continue
                shown = {s.place: s.images for s in coded(family, film, quality, chained=chained)}
                middle = [(shown[0], 12)] if chained else [(shown[0], 12), (shown[2], -12)]
                last = [(shown[1], 12)] if chained else [(shown[0], 24)]
                if all(
                    np.allclose(left[row].images, foretold(those)[shot.channels], rtol=2e-3, atol=0.1)
                    for row, those in ((1, middle), (2, last))
                ):
                    matches.add(chained)
        assert len(matches) == 1
        kinds |= matches
    assert kinds == {False, True}


@pytest.mark.parametrize("like", [0.0, 0.6, 1.0])
def test_a_film_is_coded_as_a_block_is(
    frames: Frames, wavelet_model: Model, like: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[bytes]] = []

    def alike(self: WaveletFamily, three: Sequence[Latents], quality: int, known: Known) -> float:
        asked.append([latents.main.tobytes() for latents in three])
        return like

    monkeypatch.setattr(WaveletFamily, "likeness", alike)
    family, quality = WaveletFamily(wavelet_model), 60
    (shot,) = (s for s in shots_of(frames, 100, 0) if s.rows == [0, 1, 2])
    images, channels = shot.read(frames, UNITS)
    images = [*images, images[1], images[0]]
    pixels = np.stack([frames[row].pixels[channels] for row in (0, 1, 2, 1, 0)]).astype(np.float32)
    assert np.isfinite(pixels).all()
    found = list(coded(family, (images, channels), quality))
    places = list(order(5, False, like))
    assert [shown.place for shown in found] == [step.place for step in places]
    times = [0, 100, 300, 310, 360]
    for n, (shown, step) in enumerate(zip(found, places, strict=True)):
        assert shown.quality == family.own_quality(quality, step.depth, like)
        wanted = [place for place in step.builds_on if place is not None]
        assert [place for place, _ in shown.builds_on] == wanted
        earlier = {other.place: other.images for other in found[:n]}
        for place, image in shown.builds_on:
            np.testing.assert_array_equal(image, earlier[place])
        known = shown.foretold(times)
        if not wanted:
            assert known is None
        else:
            sources = [(earlier[place], times[shown.place] - times[place]) for place in wanted]
            np.testing.assert_array_equal(known, foretold(sources))
    # The same to a codec, but for what undoing the stabilisation rounds.
    codec = Codec(wavelet_model, quality)
    names = [NAMES[c] for c in channels]
    decoded = codec.decode(codec.encode(pixels, names, frames_per_block=5), names, (SIDE, SIDE))
    for shown in found:
        expected = UNITS.subset(channels).forward(decoded[shown.place])
        np.testing.assert_allclose(shown.images[channels], expected, rtol=1e-3, atol=1e-2)
    count = len(asked) // 2
    assert asked[:count] == asked[count:]
    one_by_one = list(coded(family, (images, channels), quality, chained=True))
    assert [shown.place for shown in one_by_one] == list(range(5))
    assert [[place for place, _ in shown.builds_on] for shown in one_by_one] == [[], [0], [1], [2], [3]]
    assert all(shown.quality == quality for shown in one_by_one)
    assert len(asked) == 2 * count


def test_pyramids_are_made_of_them_in_eight_symmetries(frames: Frames) -> None:
    films = Films(frames, UNITS, [1, 3], as_they_were(frames, UNITS))
    assert len(films) == 16
    assert all(p.before is not None and p.channels == films[0].channels for p in films[:8])
    assert all(p.before is None and len(p.channels) == 12 for p in films[8:])
    assert len({p.bands[-1].tobytes() for p in films}) == 16


def test_the_field_is_learned_as_waves_and_as_points(frames: Frames) -> None:
    films = Films(frames, UNITS, [1, 3], as_they_were(frames, UNITS))
    lazy = [p for p in films if p.lazy.any()]
    assert 0 < len(lazy) < len(films)
    for p in lazy:
        assert {c for c, is_lazy in zip(p.channels, p.lazy, strict=True) if is_lazy} == {9, 10, 11} & set(
            p.channels
        )
    whole = next(p for p in lazy if len(p.channels) == 12)
    low = whole.low[9:]
    for bands in whole.bands:
        low = woven(low, np.moveaxis(bands[9:], 1, 0))
    # Pixels change places with neighbours and strong ones grow; mirrors turn signs. Small ones stay as large.
    images = stable(frames, 3, UNITS)[1][9:]
    assert low.shape == images.shape
    weak = np.abs(low) < 1
    assert weak.any()
    assert np.isin(np.abs(low[weak]), np.abs(images)).all()


def test_a_model_of_any_channels_and_gaps_can_be_learned_from(frames: Frames) -> None:
    rows = [n for n in range(len(frames)) if frames.present[n].any()]
    bank = Films(frames, UNITS, rows, as_they_were(frames, UNITS))
    torch.manual_seed(0)
    family = Training(Pyramids([(1.0, bank)], 3, 0), UNITS)
    for step in range(4):
        loss, statistics = family.losses([torch.from_numpy(a) for a in family.batches(step)], 1.0)
        assert torch.isfinite(loss)
        assert torch.isfinite(statistics).all()


def samples(side: int, rough: slice) -> Iterator[tuple[Float, Float, list[Float]]]:
    """Yield told and true steps and tiles of each level, of 193 Å and 211 Å, alike but for a rough place."""
    y, x = np.indices((side, side)) / side
    images = np.stack([40 * np.sin(9 * x + 5 * y + 3 * x * y)] * 2).astype(np.float32)
    images[1, rough, rough] += np.random.default_rng(0).normal(0, 300, images[1, rough, rough].shape)
    one = pyramid(images, [3, 4], None, None, 0, 0)
    batches = Pyramids([(1.0, [one])], 1, 0)
    for step in range(40):
        _, channels, told, _, *levels = batches(step)
        if len(channels) == 2:
            # A level's planes, values and tiles are the second, third and last of six.
            ratio = one.bands[2] / levels[6 * 2 + 2]
            yield told, np.nanmedian(ratio, (1, 2, 3)), levels[5::6]


def test_places_are_learned_only_where_encoders_code_them() -> None:
    shares = []
    for _, step, shown in samples(128, slice(24, 36)):
        for level in shown:
            assert level[0].all()  # Nothing tells of it.
        assert all(level[1].all() for level in shown[:4])  # Too small for tiles.
        finest = shown[-1][1, 0]
        assert np.array_equal(finest, finest[::16, ::16].repeat(16, 0).repeat(16, 1))
        if step[1] < 60:
            assert finest[13:17, 13:17].all()
        shares.append(float(finest.mean()))
    assert min(shares) == 0
    assert any(0 < share <= 0.5 for share in shares)


@pytest.mark.parametrize(("side", "factor"), [(512, 1.0), (128, 4.0)])
def test_small_pictures_of_the_whole_sun_are_told_as_coarser(side: int, factor: float) -> None:
    ratios = set()
    for told, step, _ in samples(side, slice(0, 0)):
        most = (np.array(COARSEST) * np.array(SPREADS))[3:5]
        ratios |= set(np.round(np.exp(told) / step, 2)[step * factor < most].tolist())
        assert (np.exp(told) <= np.maximum(most, step) * 1.001).all()
    assert ratios == {1.0, factor}


def test_a_models_integers_become_the_network_that_they_stand_for(
    wavelet_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wavelet_module, "_FITTING", 400)
    torch.manual_seed(1)
    network = network_of(wavelet_model)
    assert isinstance(network, Context)
    before, after = wavelet_model.arrays("context"), integers(network, steps())
    assert before.keys() == after.keys()
    for n in range(len(WIDTHS)):
        for layer, (names, place) in LAYERS.items():
            both = [(a, 2.0 ** a[f"{n}.{layer}.shift"].astype(float)) for a in (before, after)]
            # Another power of two may suit a bias that is not quite the same.
            coarse = 1 / both[1][1].min()
            for name in names:
                first, second = (a[f"{n}.{name}"] / power[:, None, None, None] for a, power in both)
                np.testing.assert_allclose(first, second, atol=coarse)
            if place is not None:
                first, second = (a[f"bias.{n}"][..., place, :] / power for a, power in both)
                assert np.sqrt(np.square(first - second).mean()) < 0.2 * first.std() + 0.5


def test_no_other_family_has_such_a_network(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not wavelet"):
        network_of(tiny_model)
