"""The Dataset in a training loop: the same items however they are read, in real workers, fit for training."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, StackDataset, Subset

import sunzip
from sunzip import api, weights
from sunzip.codec import Codec
from sunzip.cube import Scale
from sunzip.errors import DamagedError, InputError, ModelNotFoundError
from sunzip.normalize import Stabiliser
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic
from sunzip.torch import LatDataset
from sunzip.weights import Model, write

FRAMES, SIZE = 9, 32
CHANNELS = ("171A", "304A", "Bz")


class Patchy(Synthetic):
    """Frame 3 has no image, frame 5 lacks 304 Å, and in frame 6 a pixel is missing at 171 Å."""

    def read(self, channel: str, row: int) -> np.ndarray:
        rng = np.random.default_rng([row, len(channel), ord(channel[1])])
        up, right = np.mgrid[:SIZE, :SIZE] / SIZE * 6
        waves = np.sin(up + rng.uniform(0, 6)) * np.cos(right + rng.uniform(0, 6))
        pixels = (100 + 80 * waves + rng.normal(0, 5, (SIZE, SIZE))).astype(np.float32)
        if row == 3 or (row, channel) == (5, "304A"):
            pixels[:] = np.nan
        if (row, channel) == (6, "171A"):
            pixels[4, 9] = np.nan
        return pixels


@pytest.fixture(scope="module")
def lat(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with its model inside, so that workers that were spawned have it."""
    path = tmp_path_factory.mktemp("torch") / "sun.lat"
    source = Patchy(frames=FRAMES, size=SIZE, start=np.datetime64("2014-01-01", "ms"), channels=CHANNELS)
    api.compress(join([source]), path, model=tiny_model, block=2, embed_model=True)
    return path


@pytest.fixture(scope="module")
def pixels(lat: Path) -> np.ndarray:
    with sunzip.open(lat) as sun:
        return sun[:]


def threads(item: torch.Tensor) -> torch.Tensor:
    """A transform that tells where it ran: spawned workers need one that has a name."""
    return torch.tensor(
        [item.nansum(), torch.get_num_threads(), multiprocessing.parent_process() is not None]
    )


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    """Several frames in one run may be summed in another order than one alone."""
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-3)


# --- decoding several frames at once ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", list(Scale))
def test_tensors_are_the_decoded_pixels(tiny_model: Model, frames_of, scale: Scale) -> None:
    data = frames_of(5, 3, 40, 56)
    data[1] = np.nan
    data[2, 1] = np.nan
    data[3, 2, 4:9, 5] = np.nan
    codec = Codec(tiny_model)
    blocks = codec.encode(data, CHANNELS, scale, frames_per_block=2)
    for channels in (CHANNELS, ("304A",)):
        expected = codec.decode(blocks, channels, (40, 56), scale, frames=[3, 1, 2, 2])
        found = codec.decode_tensor(
            blocks, channels, (40, 56), scale, frames=[3, 1, 2, 2], frames_per_block=2
        )
        assert found.dtype == torch.float32
        close(found, expected)


def test_tensors_of_the_paper_s_model_are_the_decoded_pixels(sigma_model: Model, frames_of) -> None:
    codec = Codec(sigma_model)
    blocks = codec.encode(frames_of(3, 2, 128, 128), ("193A", "By"))
    close(
        codec.decode_tensor(blocks, ("193A", "By"), (128, 128)),
        codec.decode(blocks, ("193A", "By"), (128, 128)),
    )


def test_a_batch_is_one_run_of_the_network(lat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sunzip.codec.lanes_here", lambda: 1)
    frames = LatDataset(lat)
    family = frames._sun.codec.family
    runs = []
    synthesise = family.synthesise_tensor
    monkeypatch.setattr(
        family, "synthesise_tensor", lambda y, *rest: runs.append(len(y)) or synthesise(y, *rest)
    )
    frames.__getitems__([0, 4, 8, 3])
    assert runs == [3]  # frame 3 has nothing to decode
    frames[2]
    assert runs == [3, 1]


def test_large_frames_go_through_the_network_one_by_one_on_a_cpu(tiny_model: Model, frames_of) -> None:
    codec = Codec(tiny_model)
    blocks = codec.encode(frames_of(3, 1, 272, 256), ("171A",))
    runs = []
    synthesise = codec.family.synthesise_tensor
    codec.family.synthesise_tensor = lambda y, *rest: runs.append(len(y)) or synthesise(y, *rest)
    codec.decode_tensor(blocks, ("171A",), (272, 256))
    assert runs == [1, 1, 1]


def test_who_keeps_an_item_does_not_keep_those_decoded_with_it(lat: Path) -> None:
    for frames in (LatDataset(lat), LatDataset(lat, latents=True)):
        for item in (*frames.__getitems__([0, 4, 8]), *frames, frames[2]):
            assert item.untyped_storage().nbytes() == item.nbytes


def test_damage_is_told_with_the_frame(lat: Path, tmp_path: Path) -> None:
    with sunzip.open(lat) as sun:
        block = sun.archive.block(2)
    data = bytearray(lat.read_bytes())
    data[data.index(block) + len(block) // 2] ^= 1
    (tmp_path / "a.lat").write_bytes(data)
    frames = LatDataset(tmp_path / "a.lat")
    frames[0]
    with pytest.raises(DamagedError, match="frame 4: "):
        frames[4]


# --- items ------------------------------------------------------------------------------------------------


def test_items_are_frames(lat: Path, pixels: np.ndarray) -> None:
    frames = LatDataset(lat)
    assert len(frames) == FRAMES
    close(torch.stack(list(frames)), pixels)
    close(frames[-1], pixels[-1])
    close(frames[np.int64(2)], pixels[2])
    close(torch.stack(frames.__getitems__([7, 0, 7])), pixels[[7, 0, 7]])
    assert frames.__getitems__([]) == []
    with pytest.raises(IndexError):
        frames[FRAMES]


def test_items_know_their_times_and_what_is_missing(lat: Path) -> None:
    frames = LatDataset(lat, ["Bz", "304A"], start="2014-01-01T00:36", stop=7)
    np.testing.assert_array_equal(
        frames.time, np.arange(4) * np.timedelta64(12, "m") + np.datetime64("2014-01-01T00:36", "ms")
    )
    np.testing.assert_array_equal(frames.valid, [[False] * 2, [True] * 2, [True, False], [True] * 2])
    assert len(Subset(frames, np.flatnonzero(frames.valid.all(1)))) == 2


def test_channels_come_in_the_order_asked_for(lat: Path, pixels: np.ndarray) -> None:
    frames = LatDataset(lat, ["bz", "0171"])
    assert frames.channels == ("Bz", "171A")
    close(frames[1], pixels[1, [2, 0]])


def test_normalised_items_lead_back_to_units(lat: Path, pixels: np.ndarray) -> None:
    frames = LatDataset(lat, ["304A", "171A"], normalised=True)
    item = frames[1].numpy()
    assert 0.1 < np.abs(item).mean() < 30
    np.testing.assert_allclose(frames.stabiliser.inverse(item), pixels[1, [1, 0]], rtol=1e-4, atol=1e-3)
    assert not np.allclose(item, pixels[1, [1, 0]], rtol=0.1)
    assert isinstance(frames.stabiliser, Stabiliser)


def test_only_families_that_divide_by_a_spread_give_items_of_about_unit_size() -> None:
    # docs/how-to/torch.md says so of the models that are shipped.
    spread = {
        name: np.array(json.loads(weights.load(name).files["config.json"])["stabiliser"]["spread"])
        for name in ("wavelet-12", "hyperprior-12")
    }
    assert (spread["wavelet-12"] == 1).all()
    assert spread["hyperprior-12"].max() > 100


def test_normalised_items_do_not_depend_on_the_scale(tiny_model: Model, frames_of) -> None:
    codec = Codec(tiny_model)
    blocks = codec.encode(frames_of(1, 3, 32, 32), CHANNELS)
    means, sums = (codec.decode_tensor(blocks, CHANNELS, (32, 32), scale, normalised=True) for scale in Scale)
    assert torch.equal(means, sums)


def test_what_is_missing_is_filled(lat: Path) -> None:
    assert LatDataset(lat)[3].isnan().all()
    frames = LatDataset(lat, fill=-7.0)
    assert (frames[3] == -7).all()
    assert (frames[5][1] == -7).all()
    assert frames[6][0, 4, 9] == -7
    assert not (frames[6][1:] == -7).any()
    assert (LatDataset(lat, latents=True, fill=0)[3] == 0).all()


def test_latents_need_no_network(lat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = LatDataset(lat, latents=True, start=2)
    monkeypatch.setattr(type(frames._sun.codec.family), "network", property(lambda _: pytest.fail("loaded")))
    with sunzip.open(lat) as sun:
        expected = sun.latents[:]
    assert frames[0].shape == (8, 2, 2)
    np.testing.assert_array_equal(torch.stack(list(frames)), expected[2:])
    np.testing.assert_array_equal(torch.stack(frames.__getitems__([6, 0])), expected[[8, 2]])


def test_a_transform_sees_each_item(lat: Path, pixels: np.ndarray) -> None:
    frames = LatDataset(lat, ["304A"], transform=lambda x: (x * 2, x.shape))
    item, shape = frames.__getitems__([0, 1])[1]
    close(item, 2 * pixels[1, 1:2])
    assert shape == (1, SIZE, SIZE)


def test_items_can_be_trained_on(lat: Path) -> None:
    # What a network in inference mode returns must not reach a backward pass.
    layer = torch.nn.Conv2d(3, 2, 3)
    for options in ({}, {"normalised": True}, {"normalised": True, "fill": 0.0}):
        layer(torch.nan_to_num(LatDataset(lat, **options)[2])[None]).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


# --- loaders and workers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_items(lat: Path, method: str) -> None:
    expected = [x.clone() for x in DataLoader(LatDataset(lat, transform=threads), 4)]
    frames = LatDataset(lat, transform=threads)
    frames[0]  # forked workers inherit the open file and the network
    loader = DataLoader(frames, 4, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    for _ in range(2):
        found = list(loader)
        assert len(found) == 3
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=1e-5)
            assert (a[:, 1] == 1).all()
            assert (a[:, 2] == 1).all()
            assert (b[:, 2] == 0).all()


def test_a_pickled_dataset_is_the_same(lat: Path) -> None:
    frames = LatDataset(lat, ["Bz", "171A"], normalised=True, fill=0.0, start=1, stop=4)
    again = pickle.loads(pickle.dumps(frames))
    assert repr(again) == repr(frames)
    assert len(pickle.dumps(frames)) < 4096
    assert torch.equal(again[1], frames[1])
    assert again._sun.codec.family is frames._sun.codec.family


def test_items_can_be_stacked_with_others(lat: Path) -> None:
    frames = LatDataset(lat, latents=True)
    pairs = StackDataset(frames, torch.from_numpy(frames.time.astype(np.int64)))
    latents, times = next(iter(DataLoader(pairs, FRAMES)))
    assert latents.shape == (FRAMES, 8, 2, 2)
    np.testing.assert_array_equal(times, frames.time.astype(np.int64))


def test_workers_are_refused_another_device(lat: Path) -> None:
    frames = LatDataset(lat, ["171A"])
    frames.device = torch.device("cuda")
    with pytest.raises(InputError, match="take num_workers=0"):
        next(iter(DataLoader(frames, 2, num_workers=1, multiprocessing_context="fork")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_pixels_of_the_cpu(lat: Path, pixels: np.ndarray) -> None:
    frames = LatDataset(lat, device="cuda")
    found = torch.stack(frames.__getitems__(range(FRAMES)))
    assert found.device.type == "cuda"
    np.testing.assert_array_equal(np.isnan(found.cpu().numpy()), np.isnan(pixels))
    np.testing.assert_allclose(found.cpu().numpy(), pixels, rtol=1e-2, atol=1)
    with torch.backends.cudnn.flags(allow_tf32=False):
        close(torch.stack(frames.__getitems__(range(FRAMES))), pixels)
    assert LatDataset(lat, latents=True, device="cuda")[0].device.type == "cuda"


# --- mistakes ---------------------------------------------------------------------------------------------


def test_mistakes_are_told_at_once(lat: Path) -> None:
    with pytest.raises(InputError, match="has no 193A; it holds 171A 304A Bz"):
        LatDataset(lat, ["193A"])
    with pytest.raises(InputError, match="no frame from 2015-01-01 to its end"):
        LatDataset(lat, start="2015-01-01")
    with pytest.raises(InputError, match="no frame from its start to 0"):
        LatDataset(lat, stop=0)
    for options in ({"channels": ["171A"]}, {"normalised": True}):
        with pytest.raises(InputError, match="latents are of all channels together"):
            LatDataset(lat, latents=True, **options)
    for device in ("nix", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used: "):
            LatDataset(lat, device=device)


@pytest.mark.usefixtures("nothing_registered")
def test_a_model_that_is_not_at_hand_is_told_at_once(tiny_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.lat"
    source = Patchy(frames=1, size=SIZE, channels=CHANNELS)
    api.compress(join([source]), path, model=tiny_model)
    with pytest.raises(ModelNotFoundError, match="was coded with model tiny"):
        LatDataset(path)
    write(tiny_model, tmp_path / "model")
    assert LatDataset(path, model=tmp_path / "model")[0].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(("module", "extra"), [("sunzip.torch", "torch"), ("sunzip.train", "train")])
def test_without_pytorch_one_line_says_so(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(InputError, match=rf"needs torch, which is not installed; .*\.\[{extra}\]"):
        import_module(module)
