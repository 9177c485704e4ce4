"""The context network of a wavelet model as ONNX: the same integers, by another library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.nn.exact import ACTIVATION_MAX, ExactContext, depth_of
from sunzip.nn.planes import COUNT_NOW, COUNT_TIME, WIDTHS, Places, network_of

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

#: What is done at each level, in order: `ExactContext` has a method of each name.
STAGES = ("enter", "beside", "settle")

#: Of both branches: the weights of the planes, the layer, and which of the tabled biases it has.
_BRANCHES = {"beside": ("beside", "second", 2), "settle": ("after", "settle", 3)}

#: Versions of ONNX that runtimes of 2022 and later read.
_OPSET, _IR = 17, 8


def files() -> list[str]:
    """Return the names of the files of all networks."""
    return [file_of(n, stage) for n in range(len(WIDTHS)) for stage in STAGES]


def file_of(n: int, stage: str) -> str:
    """Return the name of the file that holds a stage of network n, 0 the coarsest."""
    return f"context.{n}.{stage}.onnx"


class _Graph:
    """A network in the making."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], n: int) -> None:
        self._arrays, self._n = arrays, n
        self.nodes: list[Any] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.constants[name] = values
        return name

    def convolve(self, name: str, source: str) -> str:
        weight = self._arrays[f"{self._n}.{name}"].astype(np.float32)
        side = weight.shape[-1] // 2
        return self.add("Conv", [source, self.constant(f"{name}.weight", weight)], pads=[side] * 4)

    def finish(self, total: str, layer: str, clip: bool) -> str:
        """Divide sums by their powers of two and round, as `ExactContext` does."""
        bias = self._arrays[f"{self._n}.{layer}.bias"].astype(np.float32)
        power = np.ldexp(1.0, -self._arrays[f"{self._n}.{layer}.shift"].astype(np.int32))
        total = self.add("Add", [total, self.constant(f"{layer}.bias", bias[:, None, None])])
        scale = power.astype(np.float32)[:, None, None]
        total = self.add("Mul", [total, self.constant(f"{layer}.scale", scale)])
        total = self.add(
            "Floor", [self.add("Add", [total, self.constant("half", np.array(0.5, np.float32))])]
        )
        if not clip:
            return total
        return self.add(
            "Clip",
            [
                total,
                self.constant("least", np.array(0, np.float32)),
                self.constant("most", np.array(ACTIVATION_MAX, np.float32)),
            ],
        )

    def model(self, inputs: Mapping[str, int], outputs: Mapping[str, str]) -> bytes:
        """Return the file: inputs by name with their numbers of planes, outputs by name."""
        from onnx import TensorProto, helper, numpy_helper

        def value(name: str, planes: int | None = None) -> Any:
            sides = [None, None] if planes is None or not name.endswith("_bias") else [1, 1]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, planes, *sides])

        nodes = [*self.nodes]
        for name, source in outputs.items():
            nodes.append(helper.make_node("Identity", [source], [name]))
        graph = helper.make_graph(
            nodes,
            f"sunzip context {self._n}",
            [value(name, planes) for name, planes in inputs.items()],
            [value(name) for name in outputs],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in self.constants.items()],
        )
        found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
        return bytes(found.SerializeToString())


def networks(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a model's context network: names and contents.

    Parameters
    ----------
    arrays
        As of `sunzip.nn.exact.ExactContext`.
    """
    for n, width in enumerate(WIDTHS):
        g = _Graph(arrays, n)
        total = g.add("Add", [g.convolve("now", "planes"), g.convolve("time", "time")])
        carry = g.convolve("carry", "carry")
        # Each place of the coarser level goes on in four of this one.
        wide = g.add(
            "Resize",
            [carry, "", "", g.add("Shape", [total])],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        total = g.add("Add", [g.add("Add", [total, wide]), "enter_bias"])
        deep = g.convolve("deep", g.finish(total, "enter", clip=True))
        features = g.finish(g.add("Add", [deep, "deep_bias"]), "deep", clip=True)
        first = g.finish(g.convolve("first", features), "first", clip=True)
        outputs = g.finish(g.convolve("first_out", first), "first_out", clip=False)
        inputs = {
            "planes": COUNT_NOW,
            "time": COUNT_TIME,
            "carry": WIDTHS[max(n - 1, 0)],
            "enter_bias": width,
            "deep_bias": width,
        }
        yield file_of(n, "enter"), g.model(inputs, {"features": features, "outputs": outputs})
        for stage, (near, layer, _) in _BRANCHES.items():
            g = _Graph(arrays, n)
            total = g.add("Add", [g.convolve(near, "known"), g.convolve(layer, "features")])
            hidden = g.finish(g.add("Add", [total, "layer_bias"]), layer, clip=True)
            outputs = g.finish(g.convolve(f"{layer}_out", hidden), f"{layer}_out", clip=False)
            inputs = {"known": COUNT_TIME, "features": width, "layer_bias": width}
            yield file_of(n, stage), g.model(inputs, {"outputs": outputs})


class OnnxContext(ExactContext):
    """`ExactContext` by ONNX Runtime.

    Parameters
    ----------
    arrays
        As of `ExactContext`, which proves their bounds.
    sessions
        A session for each of `files`.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], sessions: Mapping[str, Any]) -> None:
        super().__init__(arrays)
        self._sessions = sessions

    def enter(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        flags: Float,
        planes: Float,
        time: Float | None,
        carry: Any,
        here: Places,
    ) -> tuple[Any, Float]:
        """See `ExactContext.enter`; features are arrays."""
        n, depth = network_of(level), depth_of(level)
        tabled = self._tabled(level, channels, quality)
        count, _, h, w = planes.shape
        if time is None:
            time = np.zeros((count, COUNT_TIME, h, w), np.float32)
        if carry is None:
            carry = np.zeros((count, WIDTHS[max(n - 1, 0)], 1, 1), np.float32)
        flagged = (flags[:, :, None] * self._arrays[f"flags.{n}"][depth]).sum(1, dtype=np.float32)
        feed = {
            "planes": planes,
            "time": time,
            "carry": carry,
            "enter_bias": (tabled[:, 0] + flagged)[:, :, None, None],
            "deep_bias": tabled[:, 1, :, None, None],
        }
        features, outputs = self._sessions[file_of(n, "enter")].run(["features", "outputs"], feed)
        return features, _taken(outputs, here)

    def beside(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        features: Any,
        known: Float,
        here: Places,
    ) -> Float:
        """See `ExactContext.beside`."""
        return _taken(self._run("beside", level, channels, quality, features, known), here)

    def settle(
        self,
        level: int,
        channels: Sequence[int],
        quality: int | Int,
        features: Any,
        known: Float,
        here: Places | None,
    ) -> Float:
        """See `ExactContext.settle`."""
        return _taken(self._run("settle", level, channels, quality, features, known), here)

    def _run(
        self, stage: str, level: int, channels: Sequence[int], quality: int | Int, features: Any, known: Float
    ) -> Float:
        bias = self._tabled(level, channels, quality)[:, _BRANCHES[stage][2], :, None, None]
        feed = {"known": known, "features": features, "layer_bias": bias}
        (found,) = self._sessions[file_of(network_of(level), stage)].run(["outputs"], feed)
        outputs: Float = found
        return outputs

    def _tabled(self, level: int, channels: Sequence[int], quality: int | Int) -> Float:
        """Return the (C, 4, width) biases of the channels."""
        tables = self._arrays[f"bias.{network_of(level)}"]
        found: Float = tables[quality, list(channels), depth_of(level)].astype(np.float32)
        return found


def _taken(outputs: Float, here: Places | None) -> Float:
    """Return outputs (C, K, h, w) at some places, (N,) or (C, N), or at all, as (C, K, N)."""
    rows = outputs.reshape(*outputs.shape[:2], -1)
    if here is None:
        return rows
    return rows.take(here, -1) if here.ndim == 1 else np.take_along_axis(rows, here[:, None], -1)
