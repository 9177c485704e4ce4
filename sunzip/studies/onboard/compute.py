"""What coding a frame costs: products and memory traffic as the model runs; time and energy elsewhere."""

from __future__ import annotations

import tracemalloc
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sunzip.codec import Codec
from sunzip.codec.lanes import here
from sunzip.codec.wavelet import WaveletFamily
from sunzip.pyramid import grid_of
from sunzip.studies.encoder import CountingContext, encoder_of, through
from sunzip.studies.onboard.mission import Mission

#: Processor cycles of a scalar core for each sample that is stabilised (a square root, a few products), and
#: for each symbol that is entropy-coded (a table look-up, a division or its reciprocal). Assumed.
CYCLES_SAMPLE, CYCLES_SYMBOL = 40, 120

#: Share of a memory's peak rate that is reached. Assumed.
BANDWIDTH_REACHED = 0.5


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor that flies, or could.

    Attributes
    ----------
    key, name
        Its names.
    macs
        Multiplications with addition per second, at most, in the arithmetic that it is best at.
    arithmetic
        That arithmetic.
    efficiency
        Share of it that convolutions reach.
    bandwidth
        Bytes per second to external memory, at most.
    width
        Bytes of an activation and of a weight in that arithmetic.
    clock
        Hz of the core that stabilises and entropy-codes.
    watts
        While it works.
    source, assumed
        Where the numbers come from, and which are assumed.
    """

    key: str
    name: str
    macs: float
    arithmetic: str
    efficiency: float
    bandwidth: float
    width: int
    clock: float
    watts: float
    source: str
    assumed: str


PROCESSORS = (
    Processor(
        "gr740",
        "GR740, 4 × LEON4FT at 250 MHz",
        macs=4 * 250e6 / 2,
        arithmetic="float32",
        efficiency=0.25,
        bandwidth=800e6,
        width=4,
        clock=250e6,
        watts=2.0,
        source="GR740 data sheet and user's manual (GR740-UM-DS): four cores at 250 MHz, each with a "
        "pipelined "
        "floating-point unit that ends one operation a cycle; 64-bit PC100 SDRAM",
        assumed="a product and a sum are two operations; a quarter of the peak, for want of loads; 2 W",
    ),
    Processor(
        "myriad-x",
        "Myriad X, neural compute engine",
        macs=1e12 / 2,
        arithmetic="float16",
        efficiency=0.2,
        bandwidth=6.4e9,
        width=2,
        clock=700e6,
        watts=1.5,
        source="Intel's announcement of 2017: more than 1 TOPS of the neural compute engine, 1.5 W; "
        "RaVAEn flew a VAE on one",
        assumed="a fifth of the peak; 6.4 GB/s to LPDDR4; a scalar core of 700 MHz beside the engine",
    ),
    Processor(
        "zynq",
        "Zynq UltraScale+, one DPU B4096 at 300 MHz",
        macs=4096 / 2 * 300e6,
        arithmetic="int8",
        efficiency=0.5,
        bandwidth=19.2e9,
        width=1,
        clock=1.2e9,
        watts=6.75,
        source="AMD PG338: 4096 operations a cycle; UG1354: two at 300 MHz give 2.4 TOPS and reach half to "
        "two thirds "
        "of it in wide convolutions; Antunes et al. 2026 (arXiv 2603.14091): 1.5 to 6.75 W on a ZCU104",
        assumed="half of the peak; the highest power measured; 64-bit DDR4-2400; an Arm core at 1.2 GHz",
    ),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What coding one measured frame takes.

    Attributes
    ----------
    macs
        Products with a sum in the networks, those of exact integer ones included.
    traffic
        Bytes that the operations of the networks read and write as float32, each once: caches only lessen it.
    activations
        Most bytes of float32 that are alive at once; of a wavelet model, of all arrays that coding takes.
    weights
        Bytes of the model's file.
    symbols, samples
        That are entropy-coded, at most; that are stabilised.
    """

    macs: int
    traffic: int
    activations: int
    weights: int
    symbols: int
    samples: int

    def as_dict(self) -> dict[str, int]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def count(codec: Codec, channels: tuple[str, ...], side: int) -> Cost:
    """Count while the model codes one frame of `side`² pixels.

    Raises
    ------
    InputError
        If the model cannot code frames of that size.
    """
    codec.family.check_size(side, side)
    # Random pixels: a frame of nothing could be coded without ever looking at it.
    frame = np.random.default_rng(0).uniform(0, 500, (1, len(channels), side, side)).astype(np.float32)
    tally: Any
    if isinstance(codec.family, WaveletFamily):
        tally = CountingContext(codec.model.arrays("context"))
        codec = through(codec, tally)
        # All coefficients of the channels, as those of random pixels are; of a Sun the finest are left out.
        grid = grid_of(side, side)
        integer, symbols, counted = 0, len(channels) * grid.height * grid.width, _Arrays()
    else:
        tally = counted = _tally()
        encoder = encoder_of(codec)
        integer, symbols = encoder.integer_macs(side, side), encoder.symbols(side, side)
    with here():
        # The first frame loads the network, which is no part of what a frame costs.
        codec.encode(frame, channels)
        tally.macs = tally.traffic = 0
        with counted:
            codec.encode(frame, channels)
    return Cost(
        macs=tally.macs + integer,
        traffic=tally.traffic,
        activations=counted.peak,
        weights=codec.model.nbytes,
        symbols=symbols,
        samples=frame.size,
    )


class _Arrays:
    """Counts, while it is entered, the most bytes that arrays have at once beside those that were there."""

    peak = 0

    def __enter__(self) -> None:
        self._began = not tracemalloc.is_tracing()
        if self._began:
            tracemalloc.start()
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]

    def __exit__(self, *_: object) -> None:
        self.peak = tracemalloc.get_traced_memory()[1] - self._before
        if self._began:
            tracemalloc.stop()


def _tally() -> Any:
    """Return a mode of PyTorch's dispatcher that counts what passes through it; made here to load it late."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    convolutions = {aten.convolution, aten._convolution, aten.mkldnn_convolution, aten.conv2d}
    # Where the matrix stands among the arguments.
    products = {aten.addmm: 1, aten.baddbmm: 1, aten.mm: 0, aten.bmm: 0, aten.linear: 0, aten.matmul: 0}

    class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.macs = self.traffic = self.peak = self._alive = 0
            self._known: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            packet = func.overloadpacket
            results = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            if packet in convolutions:
                weight = args[1]
                positions = args[0] if len(args) > 6 and args[6] is True else results[0]
                self.macs += positions.numel() // positions.shape[1] * weight.numel()
            elif packet in products:
                self.macs += results[0].numel() * args[products[packet]].shape[-1]
            # A view moves nothing.
            if not func.is_view:
                given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
                self.traffic += sum(t.numel() * t.element_size() for t in (*given, *results))
            for t in results:
                self._follow(t.untyped_storage())
            return out

        def _follow(self, storage: Any) -> None:
            if storage.data_ptr() in self._known:
                return
            place, size = storage.data_ptr(), storage.nbytes()
            self._known.add(place)
            self._alive += size
            self.peak = max(self.peak, self._alive)
            weakref.finalize(storage, self._freed, place, size)

        def _freed(self, place: int, size: int) -> None:
            self._known.discard(place)
            self._alive -= size

    return Tally()


@dataclass(frozen=True, slots=True)
class Effort:
    """What coding a frame of the mission takes on one processor.

    Attributes
    ----------
    processor
        Its name.
    seconds
        For a frame of all channels.
    network, traffic, scalar
        Seconds of the network at the rate of its arithmetic; at the rate of its memory, of which the slower
        counts; and of stabilising and entropy coding, which come on top.
    joules
        Energy of a frame.
    watts
        Mean power at the mission's cadence; None where coding does not keep up.
    keeps_cadence, within_power, within_memory
        Whether it does; the last two None where the mission sets no limit.
    memory
        Bytes: the model and the activations of one measured frame, which is coded as a tile.
    """

    processor: str
    seconds: float
    network: float
    traffic: float
    scalar: float
    joules: float
    watts: float | None
    keeps_cadence: bool
    within_power: bool | None
    within_memory: bool | None
    memory: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def effort(processor: Processor, cost: Cost, tiles: float, mission: Mission) -> Effort:
    """Scale the cost of a measured frame to a frame of the mission on a processor.

    The network takes as long as the slower of arithmetic and memory (Williams, Waterman and Patterson 2009,
    Commun. ACM 52, 65: the roofline). Traffic and activations shrink with the width of the arithmetic.
    """
    network = tiles * cost.macs / (processor.macs * processor.efficiency)
    traffic = tiles * cost.traffic * processor.width / 4 / (processor.bandwidth * BANDWIDTH_REACHED)
    scalar = tiles * (cost.samples * CYCLES_SAMPLE + cost.symbols * CYCLES_SYMBOL) / processor.clock
    seconds = max(network, traffic) + scalar
    keeps = seconds <= mission.cadence
    joules = seconds * processor.watts
    watts = joules / mission.cadence if keeps else None
    memory = cost.weights + cost.activations * processor.width / 4
    return Effort(
        processor=processor.name,
        seconds=seconds,
        network=network,
        traffic=traffic,
        scalar=scalar,
        joules=joules,
        watts=watts,
        keeps_cadence=keeps,
        within_power=None if mission.power is None else processor.watts <= mission.power,
        within_memory=None if mission.memory is None else memory <= mission.memory,
        memory=memory,
    )
