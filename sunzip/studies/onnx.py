"""The encoder alone as ONNX: exported, checked against sunzip itself, made int8, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import time as clock
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip import weights
from sunzip.api import Alignment, open_series, replacing
from sunzip.channels import NAMES
from sunzip.codec import Codec
from sunzip.codec.family import Latents
from sunzip.codec.images import stable_frame
from sunzip.codec.lanes import here
from sunzip.codec.wavelet import WaveletFamily
from sunzip.cube import Scale
from sunzip.display import Report
from sunzip.errors import DamagedError, InputError, SunzipError, needing
from sunzip.sinks.base import Target
from sunzip.sources.synthetic import render
from sunzip.studies import onnx_context
from sunzip.studies.encoder import copied, encoder_of, through
from sunzip.studies.noise import noise_error
from sunzip.weights import CONFIG, TENSORS, Model

Float = npt.NDArray[np.float32]

#: Files of an exported encoder.
FLOAT, INT8, CARD = "encoder.onnx", "encoder.int8.onnx", "encoder.json"
_VERSION = 1

#: Largest change of bytes and of noise-weighted error for which an int8 network is taken.
TOLERANCE = 0.03

#: How far the outputs of ONNX Runtime and of PyTorch may differ: of their largest magnitude, or by so many
#: times what PyTorch's are off those in double precision. Biases that keep a σ-VAE linear, which began at
#: principal components, cost float32 some digits in either.
_AGREEMENT, _ROUNDINGS = 1e-4, 4.0

# Frames that scales are found on, and others on which the losses are measured.
_CALIBRATED, _CHECKED = 8, 6
_TIMED = 9


@dataclass(frozen=True, slots=True)
class ExportReport(Report):
    """What `export` wrote.

    Attributes
    ----------
    path
        The folder.
    model, model_sha256, family, size, quality
        What was exported, for images of which size; the quality at which losses were measured. A wavelet
        model's network takes images of any size, and was measured at this one.
    files
        Name → bytes.
    agreement
        Largest difference of any output from PyTorch's, as a share of the output's largest magnitude; 0 of a
        wavelet model, whose outputs are NumPy's.
    same_bytes
        Share of the checked frames whose blocks are those that sunzip itself makes.
    float32, int8
        Mean bytes of a frame, ``rmse`` after decoding in units of noise, and seconds on one and on two cores:
        of the network, which is run once a frame, or of all encoding with that of a wavelet model.
    kept_float
        Layers that stay float32 in the int8 network.
    tries
        What was tried, with its losses, in order.
    frames
        Where calibration and check frames came from.
    """

    path: str
    model: str
    model_sha256: str
    family: str
    size: int
    quality: int
    files: dict[str, int]
    agreement: float
    same_bytes: float
    float32: dict[str, float]
    int8: dict[str, float] | None
    kept_float: list[str]
    tries: list[dict[str, Any]]
    frames: str


def _runtime() -> Any:
    with needing("onnx", "an exported encoder needs"):
        import onnxruntime
    return onnxruntime


def _session(network: bytes, threads: int = 1) -> Any:
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return runtime.InferenceSession(network, options, providers=["CPUExecutionProvider"])


class OnnxEncoder:
    """Codes frames with an exported encoder, without PyTorch.

    Parameters
    ----------
    folder
        What `export` wrote.
    int8
        Use the int8 network.
    quality
        As `sunzip.codec.Codec`.
    threads
        Of ONNX Runtime.

    Raises
    ------
    InputError
        If ONNX Runtime is not installed, or the folder holds no such network.
    DamagedError
        If a file is not the one that was exported, or none that can be used.
    UnsupportedError
        If the model is of a newer version.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        int8: bool = False,
        quality: int | None = None,
        threads: int = 1,
    ) -> None:
        place = self._place = Path(folder)
        card = _card(place)
        exact = onnx_context.files()[0] in card["files"]
        names = onnx_context.files() if exact else [INT8 if int8 else FLOAT]
        if int8 and INT8 not in card["files"]:
            remedy = "its network is one of 8-bit integers already" if exact else "export it with --int8"
            raise InputError(f"{place}: holds no {INT8}; {remedy}")
        files = {}
        for each in (*names, CONFIG, TENSORS):
            try:
                files[each] = (place / each).read_bytes()
            except OSError as error:
                raise InputError(f"{place / each}: cannot be read: {error.strerror}") from None
            if hashlib.sha256(files[each]).hexdigest() != card["sha256"].get(each):
                raise DamagedError(f"{place / each}: is not what was exported; export the encoder again")
        # The identity is that of the whole model, by which blocks name it and the ground finds it.
        tables = Model.from_files({k: files[k] for k in (CONFIG, TENSORS)}, str(place))
        model = replace(tables, sha256=card["model_sha256"])
        #: Pixels along a side of the images that it takes; None for any.
        self.size: int | None = None if exact else card["size"]
        codec, sessions = Codec(model, quality), {}
        for name in names:
            try:
                sessions[name] = _session(files[name], threads)
            except InputError:
                raise
            except Exception as error:  # ONNX Runtime has a class of its own for each way to fail
                why = " ".join(str(error).split())[:200]
                raise DamagedError(
                    f"{place / name}: ONNX Runtime cannot load it ({why}); export the encoder again"
                ) from None
        if exact:
            if not isinstance(codec.family, WaveletFamily):
                raise DamagedError(f"{place / CARD}: lists networks that its model has not; export it again")
            self._codec = _through_context(codec, sessions)
        else:
            self._codec = _through(codec, sessions[names[0]])

    def encode(self, frame: Float, channels: Sequence[str], scale: Scale = Scale.MEAN) -> bytes:
        """Code one frame, (C, Y, X) in DN/s and G, to a block that any `Codec` of the model decodes.

        Raises
        ------
        InputError
            As `Codec.encode`; also if the frame has another size than the exported network.
        DamagedError
            If the networks are not such as the model needs.
        """
        if self.size is not None and frame.shape[-2:] != (self.size, self.size):
            raise InputError(
                f"frames of {frame.shape[-2]}×{frame.shape[-1]} pixels; the encoder was exported for "
                f"{self.size}"
            )
        try:
            with here():
                (block,) = self._codec.encode(frame[None], channels, scale)
        except (SunzipError, MemoryError):
            raise
        except Exception as error:  # networks of a stranger may take, and make, anything
            why = " ".join(str(error).split())[:200]
            raise DamagedError(
                f"{self._place}: its networks are not those of its model ({why}); export the encoder again"
            ) from None
        return block


def _card(place: Path) -> dict[str, Any]:
    try:
        card = json.loads((place / CARD).read_bytes())
        known = card["version"] == _VERSION and all(
            isinstance(card[k], t) for k, t in (("model_sha256", str), ("size", int), ("files", dict),
                                                ("sha256", dict))
        ) and re.fullmatch("[0-9a-f]{64}", card["model_sha256"])  # fmt: skip
    except OSError:
        raise InputError(f"{place}: holds no exported encoder ({CARD} is missing)") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise DamagedError(f"{place / CARD}: is not that of an exported encoder; export it again")
    return dict(card)


def _through(codec: Codec, session: Any) -> Codec:
    """Return the codec with its analysis network replaced by a session."""
    encoder = encoder_of(codec)
    names = [node.name for node in session.get_inputs()]

    def analyse(images: Float, present: Float, quality: int) -> Sequence[Latents]:
        found = []
        for image, shown in zip(images, present, strict=True):
            feed = encoder.feed(image[None], shown[None], quality)
            found.append(encoder.latents(session.run(None, {n: feed[n] for n in names}), quality))
        return found

    other = copied(codec)
    other.family.analyse = analyse  # type: ignore[method-assign]
    return other


def _through_context(codec: Codec, sessions: Mapping[str, Any]) -> Codec:
    """Return the codec with its context network replaced by sessions."""
    return through(codec, onnx_context.OnnxContext(codec.model.arrays("context"), sessions))


def export(
    model: str | Path | Model,
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    int8: bool = False,
    quality: int | None = None,
    source: str | None = None,
    hmi: str | None = None,
    anon: bool = False,
    force: bool = False,
    progress: Callable[[str], object] | None = None,
) -> ExportReport:
    """Write the encoder of a model to a folder: ONNX, the entropy coder's tables, and what was measured.

    Parameters
    ----------
    model
        The model.
    out
        The folder.
    size
        Pixels along a side of the images that the network will take; default 512, or 128 for a σ-VAE. That
        of a wavelet model takes any; it is measured at this size.
    int8
        Write an int8 network, too: static, with a scale for each output channel of the weights. Layers stay
        float32 as far as bytes and error would change by more than `TOLERANCE` otherwise.
    quality
        At which losses are measured; default the model's.
    source
        Where calibration and check frames come from; default the synthetic Sun, quiet and active.
    hmi, anon
        Of that source.
    force
        Replace what is at `out`.
    progress
        Told what is done.

    Raises
    ------
    InputError
        If a package is missing, the source has too few frames, int8 is asked of a network of integers, or
        ONNX Runtime does not compute what sunzip itself computes.
    UnsupportedError
        If the family has no analysis network.
    """
    _needed()
    tell = progress or (lambda what: None)
    found = model if isinstance(model, Model) else weights.load(model)
    codec = Codec(found, quality)
    exact = isinstance(codec.family, WaveletFamily)
    if exact and int8:
        raise InputError(
            f"model {found.name}: its network is one of 8-bit integers already; export it without --int8"
        )
    side = size or (512 if exact else encoder_of(codec).size)
    codec.family.check_size(side, side)
    codec.family.load()  # which says so if PyTorch is not installed
    tell("making frames")
    frames, channels, told = _frames(source, side, hmi, anon)
    with TemporaryDirectory() as scratch:
        place = Path(scratch) / "made"
        place.mkdir()
        if exact:
            names, measured = _export_context(codec, place, frames[_CALIBRATED:], channels, tell)
        else:
            names, measured = _export_network(codec, place, frames, channels, int8, Path(scratch), tell)
        report = ExportReport(
            path=os.fspath(out),
            model=found.name,
            model_sha256=found.sha256,
            family=found.family,
            size=side,
            quality=codec.quality,
            files={name: (place / name).stat().st_size for name in names},
            frames=told,
            **measured,
        )
        card = {
            "version": _VERSION,
            "sha256": {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in names},
            **{k: v for k, v in report.as_dict().items() if k != "path"},
        }
        (place / CARD).write_text(json.dumps(card, indent=1) + "\n")
        # Nothing is at the target before all of it was checked.
        with replacing(os.fspath(out), force) as target, _Folder(target) as folder:
            folder.write(place)
    return report


class _Folder(Target):
    """An exported encoder being written."""

    def write(self, made: Path) -> None:
        """Copy the files of a folder that holds nothing else."""
        with self._one_line():
            for path in made.iterdir():
                shutil.copyfile(path, self._partial / path.name)

    def _begin(self) -> None:
        pass

    def _finish(self) -> None:
        pass


def _export_network(
    codec: Codec,
    place: Path,
    frames: Sequence[Float],
    channels: tuple[str, ...],
    int8: bool,
    scratch: Path,
    tell: Callable[[str], object],
) -> tuple[list[str], dict[str, Any]]:
    """Export the analysis network of a family that has one; return the files, and what was measured."""
    encoder = encoder_of(codec)
    feeds = [encoder.feed(*_stabilised(codec, frame, channels), codec.quality) for frame in frames]
    tell("exporting")
    _export(encoder, feeds[0], place / FLOAT)
    agreement, bound = _agreement(encoder.network(), place / FLOAT, feeds)
    if not agreement <= bound:
        raise InputError(
            f"model {codec.model.name}: ONNX Runtime is {agreement:.2g} off what PyTorch computes; "
            "this pair of versions cannot export it"
        )
    check = frames[_CALIBRATED:]
    tell("measuring float32")
    blocks = _coded(_through(codec, _session((place / FLOAT).read_bytes())), check, channels)
    float32 = _measured(codec, blocks, check, channels)
    chosen: dict[str, float] | None = None
    kept: tuple[str, ...] = ()
    tries: list[dict[str, Any]] = []
    if int8:
        for kept in encoder.kept_float():
            tell(f"int8, try {len(tries) + 1}")
            tried = scratch / f"{len(tries)}.onnx"
            quantised = _quantise(place / FLOAT, tried, feeds[:_CALIBRATED], kept)
            small = _coded(_through(codec, _session(tried.read_bytes())), check, channels)
            row = _measured(codec, small, check, channels)
            loss = {k: row[k] / float32[k] - 1 for k in ("bytes", "rmse")}
            tries.append({"kept_float": list(kept), "int8_layers": quantised, **row, "loss": loss})
            chosen = row
            if all(v <= TOLERANCE for v in loss.values()):
                break
        (place / INT8).write_bytes(tried.read_bytes())
    tell("timing")
    times = _times({n: place / n for n in ((FLOAT, INT8) if int8 else (FLOAT,))}, feeds[0])
    _tables(codec.model, encoder.network_arrays, place)
    return [FLOAT, *([INT8] if int8 else []), CONFIG, TENSORS], {
        "agreement": agreement,
        "same_bytes": _share_equal(codec.encode(np.stack(check), channels), blocks),
        "float32": float32 | times[FLOAT],
        "int8": None if chosen is None else chosen | times[INT8],
        "kept_float": list(kept),
        "tries": tries,
    }


def _export_context(
    codec: Codec,
    place: Path,
    check: Sequence[Float],
    channels: tuple[str, ...],
    tell: Callable[[str], object],
) -> tuple[list[str], dict[str, Any]]:
    """Export the context network of a wavelet model; return the files, and what was measured."""
    tell("exporting")
    names = []
    for name, content in onnx_context.networks(codec.model.arrays("context")):
        (place / name).write_bytes(content)
        names.append(name)
    # The tables of the network's biases are most of the model, and the rest of it is what proves them.
    for name in (CONFIG, TENSORS):
        (place / name).write_bytes(codec.model.files[name])
    throughs = {
        threads: _through_context(codec, {n: _session((place / n).read_bytes(), threads) for n in names})
        for threads in (1, 2)
    }
    tell("measuring")
    blocks, shape = _coded(throughs[1], check, channels), (check[0].shape[1], check[0].shape[2])
    same = _share_equal(codec.encode(np.stack(check), channels), blocks)
    if same == 1:
        with here():
            decoded = throughs[1].decode(blocks, channels, shape)
    if same < 1 or not np.array_equal(decoded, codec.decode(blocks, channels, shape), equal_nan=True):
        raise InputError(
            f"model {codec.model.name}: ONNX Runtime does not compute the integers that NumPy computes; "
            "this pair of versions cannot export it"
        )
    tell("timing")
    seconds: dict[str, float] = {}
    for threads, other in throughs.items():
        with here():
            times = [_clocked(partial(other.encode, check[0][None], channels)) for _ in range(_TIMED)]
        seconds[f"seconds_{threads}"] = min(times)
    return [*names, CONFIG, TENSORS], {
        "agreement": 0.0,
        "same_bytes": same,
        "float32": _measured(codec, blocks, check, channels) | seconds,
        "int8": None,
        "kept_float": [],
        "tries": [],
    }


def _share_equal(a: Sequence[bytes], b: Sequence[bytes]) -> float:
    return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))


def _needed() -> None:
    _runtime()
    with needing("onnx", "exporting needs"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401


def _frames(
    source: str | None, side: int, hmi: str | None, anon: bool
) -> tuple[list[Float], tuple[str, ...], str]:
    """Return frames to calibrate on, then others to check with; both of a quiet and of an active Sun."""
    count = _CALIBRATED + _CHECKED
    if source is None:
        quiet, active = (np.datetime64(d, "ms") for d in ("2009-01-01", "2013-11-01"))
        step = np.timedelta64(23 * 24 + 7, "h")
        dates = [(quiet, active)[n % 2] + n * step for n in range(count)]
        return [render(d, size=side) for d in dates], NAMES, f"synthetic Sun, {count} dates of 2009 to 2014"
    series = open_series(source, hmi=hmi, anon=anon, align=Alignment(size=side))
    if len(series) < count:
        raise InputError(f"{source}: {len(series)} frames; calibration and check need {count}")
    rows = np.linspace(0, len(series) - 1, count).round().astype(int)
    # Checks lie between the frames that scales were found on.
    order = sorted(range(count), key=lambda n: (n % 7 in (1, 3, 5), n))
    found = [series.read(n, n + 1).to_scale(Scale.MEAN).data[0] for n in rows[order].tolist()]
    if any(np.isnan(frame).all() for frame in found):
        raise InputError(
            f"{source}: a frame of those to calibrate and check with, evenly spread over it, is empty; "
            "take another stretch"
        )
    return found, series.channels, f"{count} of {len(series)} frames of {source}"


def _stabilised(codec: Codec, frame: Float, channels: tuple[str, ...]) -> tuple[Float, Float]:
    """Return (1, 12, Y, X) and (1, 12), as the codec hands frames to a family."""
    at = [NAMES.index(name) for name in channels]
    images = np.zeros((1, len(NAMES), *frame.shape[1:]), np.float32)
    images[0, at] = stable_frame(frame, at, codec.family.stabiliser)
    present = np.zeros((1, len(NAMES)), np.float32)
    present[0, at] = ~np.isnan(frame).all((1, 2))
    return images, present


def _export(encoder: Any, feed: dict[str, Float], path: Path) -> None:
    import torch

    arguments = tuple(torch.from_numpy(np.ascontiguousarray(v)) for v in feed.values())
    with _hushed():
        program = torch.onnx.export(
            encoder.network(),
            arguments,
            input_names=list(feed),
            output_names=list(encoder.outputs),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), include_initializers=True)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what exporters say of themselves from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _agreement(network: Any, path: Path, feeds: Sequence[dict[str, Float]]) -> tuple[float, float]:
    """Return how far ONNX Runtime is at most off PyTorch, of an output's largest magnitude, and may be."""
    import torch

    session, exact = _session(path.read_bytes()), deepcopy(network).double()
    names = [node.name for node in session.get_inputs()]
    agreement = rounding = 0.0
    for feed in feeds[:2]:
        given = [torch.from_numpy(np.ascontiguousarray(v)) for v in feed.values()]
        with torch.inference_mode():
            wanted, precise = network(*given), exact(*(v.double() for v in given))
        if not isinstance(wanted, tuple):
            wanted, precise = (wanted,), (precise,)
        found = session.run(None, {n: feed[n] for n in names})
        for mine, theirs, true in zip(found, wanted, precise, strict=True):
            scale = float(theirs.abs().max()) or 1.0
            agreement = max(agreement, float(np.abs(mine - theirs.numpy()).max()) / scale)
            rounding = max(rounding, float((theirs - true).abs().max()) / scale)
    return agreement, max(_AGREEMENT, _ROUNDINGS * rounding)


def _coded(through: Codec, frames: Sequence[Float], channels: tuple[str, ...]) -> list[bytes]:
    """Code frames one by one through networks of ONNX Runtime."""
    with here():
        return [through.encode(frame[None], channels)[0] for frame in frames]


def _measured(
    codec: Codec, blocks: Sequence[bytes], frames: Sequence[Float], channels: tuple[str, ...]
) -> dict[str, float]:
    """Return mean bytes of blocks, and the error of what is decoded of them in units of noise."""
    decoded = codec.decode(blocks, channels, (frames[0].shape[1], frames[0].shape[2]))
    errors = [noise_error(a, b, channels) for a, b in zip(decoded, frames, strict=True)]
    return {"bytes": float(np.mean([len(b) for b in blocks])), "rmse": float(np.mean(errors))}


def _times(paths: dict[str, Path], feed: dict[str, Float]) -> dict[str, dict[str, float]]:
    """Return each network's seconds on one and on two cores: turn about, and the best of some."""
    found: dict[str, dict[str, float]] = {name: {} for name in paths}
    for threads in (1, 2):
        sessions = {name: _session(path.read_bytes(), threads) for name, path in paths.items()}
        for turn in range(_TIMED + 1):
            for name, session in sessions.items():
                wanted = {node.name: feed[node.name] for node in session.get_inputs()}
                seconds = _clocked(partial(session.run, None, wanted))
                key = f"seconds_{threads}"
                # The first run prepares.
                if turn:
                    found[name][key] = min(seconds, found[name].get(key, seconds))
    return found


def _clocked(work: Callable[[], object]) -> float:
    begin = clock.perf_counter()
    work()
    return clock.perf_counter() - begin


def _quantise(path: Path, out: Path, feeds: Sequence[dict[str, Float]], kept: tuple[str, ...]) -> int:
    """Make an int8 network, the kept layers excepted; return how many layers are int8."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Frames(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: Sequence[str]) -> None:
            self._names, self._left = names, iter(feeds)

        def get_next(self) -> dict[str, Float] | None:
            feed = next(self._left, None)
            return None if feed is None else {n: feed[n] for n in self._names}

    ready = out.with_suffix(".ready.onnx")
    with _hushed():
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        graph = onnx.load(str(ready)).graph
        layers = {n.name: n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
        left = [
            name
            for name, weight in layers.items()
            if any(f".{k}." in f".{weight}." or f".{k}_" in f".{weight}" for k in kept)
        ]
        # What only joins or clips the outputs of float layers would round them to 8 bits after all.
        made = {output: n.name for n in graph.node for output in n.output}
        beside = [
            n.name
            for n in graph.node
            if n.op_type in ("Add", "Relu") and {made.get(i) for i in n.input} & {*left}
        ]
        quantize_static(
            str(ready),
            str(out),
            Frames([i.name for i in graph.input]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Add", "Gemm"],
            nodes_to_exclude=[*left, *beside],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    return len(layers) - len(left)


def _tables(model: Model, dropped: str, place: Path) -> None:
    """Write the model without its network: what the entropy coder needs."""
    from safetensors.numpy import load, save

    arrays = {k: v for k, v in load(model.files[TENSORS]).items() if not k.startswith(dropped)}
    (place / TENSORS).write_bytes(save(arrays))
    (place / CONFIG).write_bytes(model.files[CONFIG])
