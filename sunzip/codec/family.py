"""What the codec asks of a family of models, whatever its networks look like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.codec.lanes import alone
from sunzip.errors import DamagedError, InputError, needing
from sunzip.normalize import Stabiliser
from sunzip.weights import TENSORS, Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Network = TypeVar("Network", bound=nn.Module)
else:
    Network = TypeVar("Network")

_T = TypeVar("_T")

Float = npt.NDArray[np.float32]

#: No symbol is larger in size.
SYMBOL_LIMIT = float(2**30)

#: Pixels a side below which images are too small for networks that make a pixel of 16×16.
_LEAST = 16

#: Of each network, its copies on accelerators: loaded once for the whole process, like the network itself.
_copies: WeakKeyDictionary[nn.Module, dict[torch.device, nn.Module]] = WeakKeyDictionary()


class Latents(NamedTuple):
    """One frame after the analysis transform, before quantisation.

    Attributes
    ----------
    main
        float32 of the family's shape, in units of the quantisation step.
    side
        float32: what the entropy model wants to know beside them (hyper-latents); may be empty.
    """

    main: Float
    side: Float


class Reference(NamedTuple):
    """A decoded frame, as those have it that build on it.

    Attributes
    ----------
    pictures
        (n, Y, X) stabilised images of the channels that it has, continued to the size that the family codes.
    coarse
        (n, y, x) those of their latents that make small pictures, for a first look.
    channels
        Those n.
    """

    pictures: Float
    coarse: Float
    channels: Sequence[int]

    def picture(self, channel: int) -> Float:
        """Return the image (1, Y, X) of a channel."""
        n = self.channels.index(channel)
        return self.pictures[n : n + 1]

    def places(self, channels: Sequence[int]) -> list[int]:
        """Return where among the images those of some channels are."""
        return [self.channels.index(c) for c in channels]


class Known(NamedTuple):
    """What the encoder and the decoder of a frame both know.

    Attributes
    ----------
    channels
        Indexes of those that the frame has, rising.
    shape
        (Y, X) of its images.
    before, after
        A frame before it in its block, and one after it, on which it may build; None where there is none, or
        where the family codes each frame alone.
    back, ahead
        How many frames before and after it they are.
    missing
        (n, Y, X) where its images hold no measurement; None if all do. Encoders alone are told: what stands
        there in their stead is nothing to be true to.
    """

    channels: tuple[int, ...]
    shape: tuple[int, int]
    before: Reference | None = None
    after: Reference | None = None
    back: int = 1
    ahead: int = 1
    missing: npt.NDArray[np.bool_] | None = None


class Written(NamedTuple):
    """A coded frame: its payload, and what `Family.decode` makes of it if that came out by the way."""

    payload: bytes
    decoded: Float | None = None


class Family(ABC):
    """A loaded model: networks for images ↔ latents, an entropy model for latents ↔ bytes.

    The entropy half uses integers only. Those whose other half needs PyTorch load it when that is first used:
    see `NetworkFamily`.

    Attributes
    ----------
    stabiliser
        For the model's own channels, all 12.
    default_quality
        What is used when the user names none.
    has_qualities
        Whether qualities differ in anything.
    sequential
        Whether a frame is coded given others of its block.
    exact
        Whether pixels, and not only what is coded, are the same bits on every machine.
    latents_coded
        Whether the latents that a user gets are what is coded, so that their sizes compare.
    """

    stabiliser: Stabiliser
    default_quality: int
    has_qualities: bool = True
    sequential: bool = False
    exact: bool = False
    latents_coded: bool = True

    def load(self) -> None:  # noqa: B027  # families without a network of floats have loaded all
        """Load what else is loaded when it is first used, to see that all of the model can be.

        Raises
        ------
        DamagedError
            If something cannot.
        """

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image size that the model cannot code: by default one of less than 16×16.

        Raises
        ------
        InputError
            If so; the message says which sizes it can.
        """
        if min(height, width) < _LEAST:
            raise InputError(
                f"images of {height}×{width} pixels are smaller than the model's {_LEAST}×{_LEAST}; "
                f"take larger ones, or a --size of {_LEAST} or more"
            )

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of what `latents` gives."""

    def latents(self, payload: bytes, quality: int, known: Known) -> Float:
        """Entropy-decode what stands for a frame as a whole; where `decode` gives more, without the rest.

        Raises
        ------
        DamagedError
            As `decode`.
        """
        return self.decode(payload, quality, known)

    @abstractmethod
    def analyse(self, images: Float, present: Float, quality: int) -> Sequence[Latents]:
        """Run the analysis transform.

        Parameters
        ----------
        images
            (N, 12, Y, X) stabilised, as `sunzip.codec.images.stable_of` has them; channels that are missing
            are 0.
        present
            (N, 12) 1 where a channel is there.
        quality
            0 to 100.
        """

    @abstractmethod
    def encode(self, latents: Latents, quality: int, known: Known, own: int | None = None) -> Written:
        """Quantise and entropy-code one frame's latents.

        Parameters
        ----------
        latents
            What `analyse` made of it.
        quality
            Of its block.
        known
            What its decoder will know.
        own
            The frame's own quality, where the family is sequential and it is another one.
        """

    def links(self, payload: bytes) -> tuple[int, int]:
        """Return how many frames before and after it those are that a frame builds on; 0 for none."""
        return 0, 0

    def likeness(self, three: Sequence[Latents], quality: int, known: Known) -> float:
        """Return how much of a frame those around it tell: 0 is nothing, 1 is all.

        Parameters
        ----------
        three
            Frames that follow each other.
        quality
            With which they are to be coded.
        known
            Channels and shape.
        """
        return 0.0

    def own_quality(self, quality: int, depth: int, likeness: float) -> int:
        """Return with which quality a frame of a film is coded best, to go with those of its block's quality.

        Parameters
        ----------
        quality
            Of the block.
        depth
            See `sunzip.codec.order.Step`.
        likeness
            Of its frames.
        """
        return quality

    def leans(self, likeness: float) -> bool:
        """Tell whether frames of such a likeness are to be `steadied`."""
        return False

    def steadied(
        self,
        latents: Latents,
        others: Iterable[tuple[Latents, Sequence[int], int]],
        quality: int,
        known: Known,
        likeness: float,
    ) -> Latents:
        """Return a frame that others build on as it serves all of them best, where frames lean on each other.

        Parameters
        ----------
        latents
            Of the frame.
        others
            Latents and channels of frames around it, and how many frames each is after it; less than 0 if
            before.
        quality
            Of their block.
        known
            What its decoder will know.
        likeness
            Of the block's frames.
        """
        return latents

    @abstractmethod
    def decode(self, payload: bytes, quality: int, known: Known) -> Float:
        """Entropy-decode one frame to dequantised latents in the network's units.

        Raises
        ------
        DamagedError
            If the payload is not one that `encode` makes.
        """

    @abstractmethod
    def unquantised(self, latents: Latents, quality: int) -> Float:
        """Return what `decode` would give if quantisation were free: the paper's float32 means."""

    def reference(self, latents: Float, channels: Sequence[int], shape: tuple[int, int]) -> Reference:
        """Return what others build on, where the family is sequential, of a frame's decoded latents.

        Parameters
        ----------
        latents
            What `decode` gave.
        channels, shape
            The frame's.
        """
        raise NotImplementedError

    @abstractmethod
    def show(
        self, latents: Float, channels: Sequence[int], wanted: Sequence[int], shape: tuple[int, int]
    ) -> Float:
        """Return the stabilised images (n, Y, X) of some channels of a frame, from its decoded latents.

        Parameters
        ----------
        latents
            What `decode` gave.
        channels, shape
            The frame's.
        wanted
            Some of its channels.
        """

    @abstractmethod
    def synthesise_tensor(self, latents: Tensor, present: Tensor, height: int, width: int) -> Tensor:
        """Turn (N, …) latents and (N, 12) presence into (N, 12, Y, X) stabilised images, on their device."""


class NetworkFamily(Family, Generic[Network]):
    """A family whose transforms are a network of floats, in PyTorch."""

    model: Model

    @abstractmethod
    def _loaded(self) -> Network:
        """Return the network, in evaluation mode; PyTorch is not imported before."""

    @cached_property
    def network(self) -> Network:
        """The float transforms, in evaluation mode.

        Raises
        ------
        DamagedError
            If the model's arrays do not make it.
        InputError
            If PyTorch is not installed.
        """
        with needing("torch", f"models of the family {self.model.family} need"):
            return self._loaded()

    def load(self) -> None:
        """See `Family.load`."""
        _ = self.network

    def show(
        self, latents: Float, channels: Sequence[int], wanted: Sequence[int], shape: tuple[int, int]
    ) -> Float:
        """See `Family.show`."""
        present = np.zeros((1, len(NAMES)), np.float32)
        present[0, list(channels)] = 1
        return self.synthesise(latents[None], present, *shape)[0, list(wanted)]

    def synthesise(self, latents: Float, present: Float, height: int, width: int) -> Float:
        """Do as `synthesise_tensor` with arrays."""
        with self._running():
            import torch

            given = torch.from_numpy(latents), torch.from_numpy(present)
            return self.synthesise_tensor(*given, height, width).contiguous().numpy()

    @contextmanager
    def _running(self) -> Iterator[Network]:
        """Hold the network while it runs: without gradients and, in a lane, on one thread."""
        network = self.network
        import torch

        alone()
        with torch.inference_mode():
            yield network


def quality_arrays(
    model: Model, wanted: Iterable[tuple[str, tuple[int, ...], type[np.generic]]], most: float
) -> dict[str, npt.NDArray[Any]]:
    """Return a model's arrays ``quality.{name}``.

    Parameters
    ----------
    model
        Has them.
    wanted
        Name, shape and dtype of each.
    most
        What all their values stay below, in size.

    Raises
    ------
    DamagedError
        If one is missing or is not as wanted.
    """
    arrays, found = model.arrays("quality"), {}
    for name, shape, dtype in wanted:
        array = arrays.get(name)
        if (
            array is None
            or array.dtype != dtype
            or array.shape != shape
            or not (np.isfinite(array) & (np.abs(array) < most)).all()
        ):
            raise DamagedError(f"model {model.name}: quality.{name} is missing or of a wrong shape")
        found[name] = array
    return found


def part(build: Callable[[Mapping[str, npt.NDArray[Any]]], _T], model: Model, name: str) -> _T:
    """Return what a model's arrays of a name make.

    Parameters
    ----------
    build
        Makes it of them, and knows what is wrong with them, not whose they are.
    model, name
        See `Model.arrays`.

    Raises
    ------
    DamagedError
        If they do not make it.
    """
    arrays = model.arrays(name)
    try:
        return build(arrays)
    except DamagedError as error:
        raise DamagedError(
            f"model {model.name}: {TENSORS} holds no usable {name} ({error}); fetch the model again"
        ) from None


def symbols(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """Round to int32; a network gone wild (infinite, NaN) still gives symbols that can be coded."""
    finite = np.nan_to_num(np.rint(values), nan=0.0, posinf=SYMBOL_LIMIT, neginf=-SYMBOL_LIMIT)
    whole: npt.NDArray[np.int32] = np.clip(finite, -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)
    return whole


def placed(network: Network, device: torch.device) -> Network:
    """Return a network on a device: itself on the CPU, elsewhere a copy that stays there."""
    if device.type == "cpu":
        return network
    copies = _copies.setdefault(network, {})
    if device not in copies:
        copies[device] = deepcopy(network).to(device)
    return copies[device]  # type: ignore[return-value]


def load_network(build: Callable[[], Network], model: Model, unused: tuple[str, ...] = ()) -> Network:
    """Build a network with a model's weights, in evaluation mode.

    It is built without memory, which then comes with the weights: a model from a stranger takes no more than
    its file has, nothing is initialised in vain, and the caller's random numbers are left alone.

    Parameters
    ----------
    build
        Makes the network.
    model
        Has the weights under ``network.``.
    unused
        How the names of those begin that it need not have.

    Raises
    ------
    DamagedError
        If they are not the network's.
    """
    import torch

    with torch.device("meta"):
        network = build().float()  # whatever the process takes where no type is named
    arrays, expected = model.arrays("network"), network.state_dict()
    wrong = [k for k in expected.keys() - arrays.keys() if not k.startswith(unused)]
    wrong += arrays.keys() - expected.keys()
    if wrong:
        raise DamagedError(f"model {model.name}: network weights {min(wrong)} are missing or unknown")
    try:
        state = {name: torch.tensor(v, dtype=expected[name].dtype) for name, v in arrays.items()}
        network.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, TypeError) as error:
        raise DamagedError(f"model {model.name}: {str(error).splitlines()[-1].strip()}") from None
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)
