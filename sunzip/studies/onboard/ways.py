"""The ways in which a frame may be sent: as it is, losslessly coded as missions do, or with a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.errors import how_to_install
from sunzip.studies.onboard.camera import Raw

#: Samples of a CCSDS 121 block and blocks between reference samples.
_BLOCK, _REFERENCE = 32, 128


@dataclass(frozen=True, slots=True)
class Peer:
    """A coder that missions fly.

    Attributes
    ----------
    key, title
        Its names.
    encode
        Bytes of one (Y, X) uint16 image; None if no library for it is at hand.
    note
        Which library, or why there is none.
    """

    key: str
    title: str
    encode: Callable[[npt.NDArray[np.uint16]], int] | None
    note: str


def _imagecodecs(name: str) -> Any:
    try:
        import imagecodecs

        coder = getattr(imagecodecs, name)
    except ImportError:
        return None
    return coder if coder.available else None


def peers(bits: int) -> list[Peer]:
    """Return the coders that missions fly, those without a library included.

    Parameters
    ----------
    bits
        Of a pixel.
    """
    absent = f"imagecodecs is not installed or lacks it; {how_to_install('onboard')}"
    aec, j2k = _imagecodecs("AEC"), _imagecodecs("JPEG2K")

    def ccsds121(image: npt.NDArray[np.uint16]) -> int:
        import imagecodecs

        flags = int(imagecodecs.AEC.FLAG.DATA_PREPROCESS)
        coded = imagecodecs.aec_encode(
            image, bitspersample=bits, flags=flags, blocksize=_BLOCK, rsi=_REFERENCE
        )
        return len(coded)

    def jpeg2000(image: npt.NDArray[np.uint16]) -> int:
        import imagecodecs

        return len(imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="J2K"))

    def version(call: str) -> str:
        import imagecodecs

        return str(getattr(imagecodecs, call)())

    return [
        Peer(
            "ccsds121",
            "CCSDS 121 (Rice)",
            ccsds121 if aec else None,
            f"{version('aec_version')}, lossless, blocks of {_BLOCK}" if aec else absent,
        ),
        Peer(
            "jpeg2000",
            "JPEG 2000 lossless",
            jpeg2000 if j2k else None,
            f"{version('jpeg2k_version')}, reversible 5/3 wavelet" if j2k else absent,
        ),
        Peer(
            "ccsds122",
            "CCSDS 122",
            None,
            "no library that Python reaches has it; JPEG 2000 does somewhat better on images of this kind",
        ),
    ]


def lossy_jpeg2000(
    raw: Raw,
    stable: Callable[[Raw], npt.NDArray[np.float64]],
    undo: Callable[[npt.NDArray[np.float64]], Raw],
    wanted: int,
) -> Raw | None:
    """Code (C, Y, X) images with JPEG 2000 in about as many bytes as something else took.

    Parameters
    ----------
    raw
        The images.
    stable, undo
        To whole numbers in which noise is even, as the square-root tables of missions do, and back.
    wanted
        Bytes of all images together.

    Returns
    -------
    The decoded images; None without a library. All images get the same peak signal-to-noise ratio, which is
    searched until the bytes agree within 2 %.
    """
    if _imagecodecs("JPEG2K") is None:
        return None
    import imagecodecs

    numbers = np.rint(stable(raw)).astype(np.uint16)
    low, high = 20.0, 110.0
    best: tuple[list[bytes], int] | None = None
    for _ in range(10):
        level: Any = (low + high) / 2  # dB, of which it takes fractions whatever its annotation says
        coded = [
            bytes(imagecodecs.jpeg2k_encode(i, level=level, reversible=False, codecformat="J2K"))
            for i in numbers
        ]
        size = sum(map(len, coded))
        if best is None or abs(size - wanted) < abs(best[1] - wanted):
            best = coded, size
        if abs(size - wanted) <= 0.02 * wanted:
            break
        low, high = (level, high) if size < wanted else (low, level)
    assert best is not None
    decoded = np.stack([imagecodecs.jpeg2k_decode(c) for c in best[0]])
    return undo(decoded.astype(np.float64))
