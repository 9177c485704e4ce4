"""The exported encoder: PyTorch's latents without PyTorch; int8 with its losses; files that are checked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sunzip import weights
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.lanes import here
from sunzip.errors import DamagedError, InputError, OutputError, UnsupportedError
from sunzip.sources.synthetic import render
from sunzip.studies import onnx, onnx_context
from sunzip.studies.encoder import encoder_of
from sunzip.studies.onnx import (
    CARD,
    FLOAT,
    INT8,
    ExportReport,
    OnnxEncoder,
    _session,
    _through_context,
    export,
)
from sunzip.studies.onnx_context import networks
from sunzip.weights import CONFIG, TENSORS, Model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIDE = 64


@pytest.fixture(scope="module")
def exported(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    folder = tmp_path_factory.mktemp("onnx") / "encoder"
    return folder, export(tiny_model, folder, size=SIDE, int8=True)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return render("2012-05-01", size=SIDE)


class TestExport:
    def test_writes_network_tables_and_card(self, exported: tuple[Path, ExportReport]) -> None:
        folder, report = exported
        assert sorted(p.name for p in folder.iterdir()) == sorted([CARD, FLOAT, INT8, CONFIG, TENSORS])
        card = json.loads((folder / CARD).read_text())
        assert card["model_sha256"] == report.model_sha256
        assert report.files[FLOAT] == (folder / FLOAT).stat().st_size
        # The tables are there, the network is not.
        from safetensors.numpy import load

        names = load((folder / TENSORS).read_bytes())
        assert any(n.startswith("main_tables.") for n in names)
        assert not [n for n in names if n.startswith("network.")]

    def test_computes_what_pytorch_computes(self, exported: tuple[Path, ExportReport]) -> None:
        _, report = exported
        assert report.agreement < 1e-5
        assert report.same_bytes > 0.5

    def test_latents_are_those_that_were_coded(
        self, exported: tuple[Path, ExportReport], tiny_model: Model, frame: np.ndarray
    ) -> None:
        folder, _ = exported
        codec = Codec(tiny_model)
        for int8 in (False, True):
            encoder = OnnxEncoder(folder, int8=int8)
            latents = encoder._codec.family.analyse(*stabilised(codec, frame), codec.quality)[0]
            coded = encoder._codec.family.quantise(latents, codec.quality)[1]  # type: ignore[attr-defined]
            block = encoder.encode(frame, NAMES)
            decoded = codec.latents([block], (SIDE, SIDE))[0]
            # What the ground decodes is, to the bit, what the encoder quantised: mean and distance from it.
            again = encoder._codec.latents([block], (SIDE, SIDE))[0]
            np.testing.assert_array_equal(decoded, again)
            assert decoded.shape == coded.symbols.shape
            assert codec.encode(frame[None], NAMES)[0] == block or int8 or report_close(codec, frame, block)

    def test_int8_is_other_and_measured(self, exported: tuple[Path, ExportReport], frame: np.ndarray) -> None:
        folder, report = exported
        assert report.int8 is not None
        assert report.tries[0]["int8_layers"] > 0
        assert set(report.tries[0]["loss"]) == {"bytes", "rmse"}
        assert OnnxEncoder(folder, int8=True).encode(frame, NAMES) != OnnxEncoder(folder).encode(frame, NAMES)

    def test_a_full_disk_leaves_nothing(
        self, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = shutil.copyfile

        def full(source: Path, target: Path, **kwargs: Any) -> Path:
            if Path(source).name == TENSORS:
                Path(target).write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            return copy(source, target, **kwargs)

        monkeypatch.setattr(shutil, "copyfile", full)
        # So that it copies by the function that is filled up here, in whatever way it copies.
        monkeypatch.setattr(shutil, "copy2", full)
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "kept").touch()
        for name in ("new", "old"):
            with pytest.raises(
                OutputError, match=rf"{name}[^\[\n]*: cannot be written: No space left[^\[\n]*$"
            ):
                export(tiny_model, tmp_path / name, size=SIDE, force=True)
        assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
            "old",
            "old/kept",
        ]

    def test_missing_channels_are_missing(
        self, exported: tuple[Path, ExportReport], tiny_model: Model, frame: np.ndarray
    ) -> None:
        folder, _ = exported
        block = OnnxEncoder(folder).encode(frame[2:4], ["171A", "193A"])
        decoded = Codec(tiny_model).decode([block], ["171A", "193A", "211A"], (SIDE, SIDE))
        assert np.isfinite(decoded[0, :2]).all()
        assert np.isnan(decoded[0, 2]).all()


def stabilised(codec: Codec, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return codec.family.stabiliser.forward(frame)[None], np.ones((1, len(NAMES)), np.float32)


def report_close(codec: Codec, frame: np.ndarray, block: bytes) -> bool:
    """Tell whether another sum's last digit moved a latent over a rounding edge, and no more than that."""
    mine = codec.latents(codec.encode(frame[None], NAMES), (SIDE, SIDE))
    return bool(np.mean(mine != codec.latents([block], (SIDE, SIDE))) < 0.01)


def test_without_pytorch_one_line_says_so(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"family hyperprior need torch, which is not installed"):
        export(tiny_model, tmp_path / "out", size=SIDE)
    assert not (tmp_path / "out").exists()


def coded_without_pytorch(folder: Path, frame: np.ndarray, scratch: Path) -> bytes:
    np.save(scratch / "frame.npy", frame)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from sunzip.channels import NAMES\n"
        "from sunzip.studies.onnx import OnnxEncoder\n"
        f"block = OnnxEncoder({str(folder)!r}).encode(np.load('frame.npy'), NAMES)\n"
        "open('block', 'wb').write(block)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=scratch,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (scratch / "block").read_bytes()


def test_runs_without_pytorch(exported: tuple[Path, ExportReport], frame: np.ndarray, tmp_path: Path) -> None:
    folder, _ = exported
    assert coded_without_pytorch(folder, frame, tmp_path) == OnnxEncoder(folder).encode(frame, NAMES)


@pytest.fixture(scope="module")
def context(wavelet_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    folder = tmp_path_factory.mktemp("onnx") / "context"
    return folder, export(wavelet_model, folder, size=SIDE)


class TestContext:
    """A wavelet model's network: integers, so that another library makes the same bytes and pixels."""

    def test_writes_all_networks_and_the_model(self, context: tuple[Path, ExportReport]) -> None:
        folder, report = context
        assert set(report.files) == {*onnx_context.files(), CONFIG, TENSORS}
        assert {p.name for p in folder.iterdir()} == {*report.files, CARD}
        assert (report.same_bytes, report.agreement) == (1, 0)

    @pytest.mark.parametrize("shape", [(16, 16), (48, 100), (130, 64)])
    def test_bytes_and_pixels_are_those_of_numpy(
        self, context: tuple[Path, ExportReport], wavelet_model: Model, shape: tuple[int, int]
    ) -> None:
        film = np.stack([render(f"2012-05-01T{h:02}", size=256) for h in range(3)])
        film = film[:, :, 60 : 60 + shape[0], 60 : 60 + shape[1]].copy()
        film[1, 3] = np.nan
        theirs = OnnxEncoder(context[0])._codec
        for quality in (10, 90):
            mine, other = Codec(wavelet_model, quality), theirs.at(quality)
            blocks = mine.encode(film, NAMES, frames_per_block=3)
            with here():
                assert other.encode(film, NAMES, frames_per_block=3) == blocks
                decoded = other.decode(blocks, NAMES, shape)
            np.testing.assert_array_equal(decoded, mine.decode(blocks, NAMES, shape))

    @pytest.mark.parametrize("threads", [1, 2])
    def test_so_are_those_of_the_default(self, threads: int, frame: np.ndarray) -> None:
        model = weights.load()
        made = {name: _session(graph, threads) for name, graph in networks(model.arrays("context"))}
        codec = Codec(model)
        with here():
            block = _through_context(codec, made).encode(frame[None], NAMES)
        assert block == codec.encode(frame[None], NAMES)

    def test_runs_without_pytorch(
        self, context: tuple[Path, ExportReport], wavelet_model: Model, frame: np.ndarray, tmp_path: Path
    ) -> None:
        (block,) = Codec(wavelet_model).encode(frame[None], NAMES)
        assert coded_without_pytorch(context[0], frame, tmp_path) == block

    def test_int8_is_refused(
        self, context: tuple[Path, ExportReport], wavelet_model: Model, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=r"holds no encoder\.int8\.onnx; [^\n]* integers already"):
            OnnxEncoder(context[0], int8=True)
        with pytest.raises(InputError, match=r"^model tiny-wavelet: [^\n]*8-bit integers already"):
            export(wavelet_model, tmp_path / "out", int8=True)
        assert not (tmp_path / "out").exists()

    def test_networks_that_compute_something_else_are_not_written(
        self, wavelet_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def other(arrays: Any) -> Any:
            arrays = dict(arrays)
            arrays["0.first_out.bias"] = arrays["0.first_out.bias"] + 2**12
            return networks(arrays)

        monkeypatch.setattr(onnx_context, "networks", other)
        with pytest.raises(InputError, match="does not compute the integers"):
            export(wavelet_model, tmp_path / "out", size=SIDE)
        assert not (tmp_path / "out").exists()

    def test_a_card_of_another_family(self, exported: tuple[Path, ExportReport], tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(exported[0], folder)
        card = json.loads((folder / CARD).read_text())
        for name in onnx_context.files():
            shutil.copyfile(folder / FLOAT, folder / name)
            card["files"][name] = 1
            card["sha256"][name] = card["sha256"][FLOAT]
        del card["files"][FLOAT]
        (folder / CARD).write_text(json.dumps(card))
        with pytest.raises(DamagedError, match="lists networks that its model has not"):
            OnnxEncoder(folder)


class TestRefusals:
    @pytest.mark.parametrize("name", [FLOAT, CONFIG, TENSORS])
    def test_altered_files(self, exported: tuple[Path, ExportReport], tmp_path: Path, name: str) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(exported[0], folder)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(DamagedError, match=f"{name}: is not what was exported"):
            OnnxEncoder(folder)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '{"version": 1}', pytest.param("[" * 100_000, id="deep")]
    )
    def test_altered_cards(self, exported: tuple[Path, ExportReport], tmp_path: Path, text: str) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(exported[0], folder)
        (folder / CARD).write_text(text)
        with pytest.raises(DamagedError, match="not that of an exported encoder"):
            OnnxEncoder(folder)

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            (FLOAT, b"no network", f"{FLOAT}: ONNX Runtime cannot load it"),
            (CONFIG, b"{", "config.json is not a sunzip model's"),
            (TENSORS, b"no tensors", "model.safetensors is damaged"),
        ],
    )
    def test_files_that_agree_with_their_card_and_are_none(
        self, exported: tuple[Path, ExportReport], tmp_path: Path, name: str, data: bytes, says: str
    ) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(exported[0], folder)
        (folder / name).write_bytes(data)
        card = json.loads((folder / CARD).read_text())
        card["sha256"][name] = hashlib.sha256(data).hexdigest()
        (folder / CARD).write_text(json.dumps(card))
        with pytest.raises(DamagedError, match=says) as error:
            OnnxEncoder(folder)
        assert "\n" not in str(error.value)
        (folder / CARD).write_text(json.dumps(card | {"model_sha256": "../.."}))
        with pytest.raises(DamagedError, match="not that of an exported encoder"):
            OnnxEncoder(folder)

    def test_networks_that_take_or_make_something_else(
        self, exported: tuple[Path, ExportReport], tmp_path: Path, frame: np.ndarray
    ) -> None:
        from onnx import TensorProto, helper

        folder = tmp_path / "copy"
        shutil.copytree(exported[0], folder)
        card = json.loads((folder / CARD).read_text())
        for name in ("frames", "gain"):
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            made = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
            graph = helper.make_graph([helper.make_node("Identity", [name], ["made"])], "g", [value], [made])
            opset = helper.make_opsetid("", 17)
            data = helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
            (folder / FLOAT).write_bytes(data)
            card["sha256"][FLOAT] = hashlib.sha256(data).hexdigest()
            (folder / CARD).write_text(json.dumps(card))
            encoder = OnnxEncoder(folder)
            with pytest.raises(DamagedError, match="not those of its model") as error:
                encoder.encode(frame, NAMES)
            assert "\n" not in str(error.value)

    def test_what_is_not_there(
        self, exported: tuple[Path, ExportReport], tmp_path: Path, frame: np.ndarray
    ) -> None:
        with pytest.raises(InputError, match="no exported encoder"):
            OnnxEncoder(tmp_path)
        with pytest.raises(InputError, match="was exported for 64"):
            OnnxEncoder(exported[0]).encode(frame[:, :32, :32], NAMES)

    def test_families_without_a_network(self) -> None:
        codec: Any = SimpleNamespace(
            family=SimpleNamespace(), model=SimpleNamespace(name="odd", family="linear")
        )
        with pytest.raises(UnsupportedError, match="model odd: the family 'linear'"):
            encoder_of(codec)

    def test_without_onnx_runtime_one_line_says_so(
        self, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(InputError, match=r"pip install '\.\[onnx\]'"):
            export(tiny_model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.fixture
def run(sunzip: Any) -> Any:
    return partial(sunzip, "models", "export")


def test_command(run: Any, tiny_model: Model, tmp_path: Path) -> None:
    from sunzip.weights import write

    write(tiny_model, tmp_path / "tiny")
    out = tmp_path / "flies"
    shown = run(tmp_path / "tiny", out, "--encoder", "--onnx", "--size", SIDE).output
    assert "encoder.onnx" in shown
    assert not (out / INT8).exists()
    with pytest.raises(InputError, match="export it with --int8"):
        OnnxEncoder(out, int8=True)
    run(tmp_path / "tiny", out, "--encoder", "--onnx", code=1)
    run(tmp_path / "tiny", out, "--encoder", code=2)
    run(tmp_path / "tiny", tmp_path / "tiny", "--encoder", "--onnx", "--force", code=1)
    assert (tmp_path / "tiny" / CONFIG).exists()


def test_an_int8_network_that_costs_too_much_is_told(exported: tuple[Path, ExportReport]) -> None:
    from sunzip.cli.export import _exported

    _, report = exported
    assert report.int8 is not None
    for much, told in ((1.01, False), (1.2, True)):
        other = replace(report, int8=report.int8 | {"bytes": much * report.float32["bytes"], "rmse": 0.0})
        assert ("float32 network instead" in "\n".join(_exported(other))) == told


def test_rounding_is_not_taken_for_a_wrong_network(tmp_path: Path) -> None:
    # As of a σ-VAE that began at principal components: linear by biases that float32 pays for in digits.
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Conv2d(12, 64, 3, 2), torch.nn.Linear(64 * 15**2, 4)
            with torch.no_grad():
                self.up.bias.fill_(1e3)
                self.down.bias.copy_(-1e3 * self.down.weight.double().sum(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.down(torch.relu(self.up(images)).flatten(1))
            return found

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Linear().eval()
        feed = {"images": torch.randn(1, 12, 32, 32).numpy()}
    onnx._export(SimpleNamespace(network=lambda: network, outputs=("mean",)), feed, tmp_path / "n.onnx")
    agreement, bound = onnx._agreement(network, tmp_path / "n.onnx", [feed])
    assert 1e-4 < agreement <= bound < 0.1
    with torch.no_grad():
        network.down.weight *= 1.5
        network.down.bias *= 1.5
    agreement, bound = onnx._agreement(network, tmp_path / "n.onnx", [feed])
    assert agreement > bound


@pytest.mark.slow
def test_sigma_vae(sigma_model: Model, tmp_path: Path) -> None:
    report = export(sigma_model, tmp_path / "flies", int8=True)
    assert report.size == 128
    assert report.agreement < 1e-5
    frame = render("2012-05-01", size=128)
    for int8 in (False, True):
        block = OnnxEncoder(tmp_path / "flies", int8=int8).encode(frame, NAMES)
        assert Codec(sigma_model).decode([block], NAMES, (128, 128)).shape == (1, 12, 128, 128)
