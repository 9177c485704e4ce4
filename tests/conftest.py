"""Models small enough for tests, the real code with random weights; and a way to run commands."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sunzip.added import VARIABLE
from sunzip.channels import NAMES
from sunzip.codec import processes
from sunzip.normalize import Stabiliser
from sunzip.weights import Model

#: What spreads stabilised pixels to about 1, so that random networks give latents worth coding.
_SPREAD = np.array([2, 4, 30, 35, 20, 20, 4, 30, 60, 3, 3, 5], np.float32)


def pytest_configure(config: pytest.Config) -> None:
    """Keep to this checkout: no models of the user's own, and the entry points that an installed one has."""
    models = TemporaryDirectory()
    config.add_cleanup(models.cleanup)
    # Before tests are imported, some of which keep the environment for the programs that they start.
    os.environ[VARIABLE] = models.name
    try:
        distribution("sunzip-codec")
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        folder = TemporaryDirectory()
        info = Path(folder.name) / "sunzip_codec-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        sys.path.append(folder.name)
        config.add_cleanup(folder.cleanup)
        # Zarr, of which pytest loads a plugin, has looked for them already.
        from zarr.registry import register_codec

        from sunzip.zarr import NAME, SunzipCodec

        register_codec(NAME, SunzipCodec)


class _NeedsTorch(pytest.Module):
    def collect(self) -> NoReturn:
        pytest.skip("needs PyTorch", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip files of tests that import PyTorch, or `sunzip.train`, where it is not installed."""
    text = module_path.read_text(encoding="utf-8")
    if find_spec("torch") or not re.search(r"^(import|from) (torch|sunzip\.train)\b", text, re.MULTILINE):
        return None
    return _NeedsTorch.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True, scope="session")
def _no_processes() -> Iterator[None]:
    """Have lanes do all work themselves, as tests change what they do; tests of processes ask for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "PATIENCE", math.inf)
        yield


def _hyperprior(name: str, seed: int) -> Model:
    torch = pytest.importorskip("torch")

    from sunzip.nn.hyperprior import Hyperprior
    from sunzip.train.export import export_hyperprior

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Hyperprior(wide=16, deep=16, latents=8, hyper=4, hyper_wide=24)
        with torch.no_grad():
            # Random weights shrink what passes through them; symbols other than 0 are what tests need.
            network.analysis[-1].weight *= 20
            network.hyper_analysis[-1].weight *= 20
            for layer in network.hyper_synthesis:
                layer.weight *= 2
            network.hyper_synthesis[-1].bias[8:] += 30  # the middle of the scale tables
    stabiliser = Stabiliser.for_channels(NAMES)
    stabiliser = Stabiliser(stabiliser.a, stabiliser.b, _SPREAD)
    return export_hyperprior(network.eval(), stabiliser, name, default_quality=50, notes={})


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    """A hyperprior model of 8 latents, registered under its sha256 as embedded models are."""
    from sunzip import weights

    model = _hyperprior("tiny", 1)
    weights.register(model)
    return model


@pytest.fixture(scope="session")
def other_model() -> Model:
    """Another model of the same shape, registered nowhere."""
    return _hyperprior("other", 2)


@pytest.fixture(scope="session")
def sigma_model() -> Model:
    """The paper's σ-VAE with 8 latents; its 34 million other weights make it slow: use it sparingly."""
    torch = pytest.importorskip("torch")

    from sunzip.nn.sigma_vae import SigmaVAE
    from sunzip.train.export import export_sigma_vae

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = SigmaVAE(8).eval()
        with torch.no_grad():
            network.mean.weight *= 50
    stabiliser = Stabiliser.for_channels(NAMES)
    rng = np.random.default_rng(3)
    return export_sigma_vae(
        network,
        Stabiliser(stabiliser.a, stabiliser.b, _SPREAD),
        rng.normal(0, 0.1, (50, 8)).astype(np.float32),
        np.full(8, 1e-2, np.float32),
        "tiny-sigma-vae",
        notes={},
    )


@pytest.fixture(scope="session")
def wavelet_model() -> Model:
    """A wavelet model with random networks, registered under its sha256 as embedded models are."""
    torch = pytest.importorskip("torch")

    from sunzip import weights
    from sunzip.nn.context import Context
    from sunzip.nn.planes import GATES
    from sunzip.train.wavelet import export_wavelet

    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = Context(len(NAMES))
        with torch.no_grad():
            network.flags.normal_(0, 0.3)
            for level in network.levels:
                # Outputs begin near nothing; tests need means, gates and scales that differ everywhere.
                for out in (level.first_out, level.second_out, level.settle_out):
                    out.weight *= 15
                    out.bias[GATES] += 0.5
    model = export_wavelet(
        network, Stabiliser.for_channels(NAMES), "tiny-wavelet", default_quality=50, notes={}
    )
    weights.register(model)
    return model


@pytest.fixture
def heard(number: signal.Signals) -> Iterator[None]:
    """Have a signal heard by what is tested, though the tests themselves run where it is ignored (nohup)."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.fixture(scope="session")
def sunzip() -> Callable[..., Result]:
    """Run a command in this process and hold it to its exit code and to one line of error."""
    from sunzip.cli import program

    def run(*args: object, code: int = 0) -> Result:
        result = CliRunner().invoke(program, [str(a) for a in args])
        assert result.exit_code == code, result.output
        if code == 0:
            assert result.stderr == ""
        else:
            kind = "interrupted" if code == 130 else "error: "
            assert result.stderr.startswith(f"sunzip: {kind}")
            assert result.stderr.count("\n") == 1
            assert result.stderr.endswith("\n")
        return result

    return run


@pytest.fixture(scope="session")
def frames_of() -> Callable[..., np.ndarray]:
    """Make smooth positive images with noise: (t, c, y, x) float32, different in every frame and channel."""

    def make(t: int, c: int, y: int, x: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        up, right = np.meshgrid(np.linspace(0, 3, y), np.linspace(0, 3, x), indexing="ij")
        phase = rng.uniform(0, 6, (2, t, c, 1, 1))
        waves = np.sin(up + phase[0]) * np.cos(right * 2 + phase[1])
        return (100 + 80 * waves + rng.normal(0, 5, (t, c, y, x))).astype(np.float32)

    return make


@pytest.fixture
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the models and networks that this process has met, as a new process would."""
    from sunzip import codec, weights

    monkeypatch.setattr(weights, "_REGISTERED", {})
    codec._codec.cache_clear()
    yield
    codec._codec.cache_clear()


@pytest.fixture(scope="session")
def zarr_codec() -> str:
    """Make zarr know the codec, which an installed package does by its entry point."""
    from zarr.registry import register_codec

    from sunzip.zarr import NAME, SunzipCodec

    register_codec(NAME, SunzipCodec)
    return NAME
