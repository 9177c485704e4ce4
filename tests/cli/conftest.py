"""What these tests share: a tiny untrained model, a small store and its archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

Sunzip = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def disks_that_hurry() -> Iterator[None]:
    """Wait for no disk: what survives losing power is not tested here, and waiting takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hyperprior of the smallest widths with random weights: bad pictures, quickly."""
    torch = pytest.importorskip("torch")

    from sunzip.channels import NAMES
    from sunzip.nn.hyperprior import Hyperprior
    from sunzip.normalize import Stabiliser
    from sunzip.train.export import export_hyperprior
    from sunzip.weights import write

    torch.manual_seed(0)
    network = Hyperprior(wide=8, deep=8, latents=8, hyper=4).eval()
    with torch.no_grad():
        # Without training latents are near 0: larger ones tell one frame from another.
        network.log_gain += 4
        network.log_inverse_gain -= 4
    units = Stabiliser.for_channels(NAMES)
    units.spread[:] = 5
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write(export_hyperprior(network, units, "tiny", default_quality=50, notes={}), folder)
    return folder


@pytest.fixture(scope="session")
def store(sunzip: Sunzip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of 32×32 in all channels, as SDOML v2. Not to be written to."""
    path = tmp_path_factory.mktemp("store") / "sun.zarr"
    sunzip("synth", path, "--frames", 6, "--size", 32)
    return path


@pytest.fixture(scope="session")
def archive(sunzip: Sunzip, model: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store, compressed with the tiny model, which it holds. Not to be written to."""
    path = tmp_path_factory.mktemp("archive") / "sun.lat"
    sunzip("compress", store, path, "--model", model, "--embed-model")
    return path
