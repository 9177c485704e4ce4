"""Encoder and Decoder: symbols to bytes and back, with integer tables and an rANS coder.

The bytes are specified in docs/reference/format-v1.md, section "Entropy coding". constriction does the
arithmetic; its models are built so that they hold the integers of `Tables` unchanged.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import constriction
import numpy as np
import numpy.typing as npt

from sunzip.entropy.tables import Tables, escape_code, escape_decode
from sunzip.errors import DamagedError

#: Bytes of the escape code, all equally likely.
_BYTE = constriction.stream.model.Uniform(256)
_ESCAPE_BYTES = 5
#: The state in which the encoder begins and the decoder must end. Below the frequency of a usual last symbol
#: it costs no bit. 0 would check little: the states of a decoder that ran dry gather there.
_START = 0x7A73
_INT32 = np.iinfo(np.int32)

_models: WeakKeyDictionary[Tables, dict[int, Any]] = WeakKeyDictionary()


class _Runs(NamedTuple):
    """Symbols ordered by table, those of one after those of another.

    Attributes
    ----------
    order
        (N,) where each stood.
    tables, counts
        (K,) the tables, and how many symbols each has.
    models
        Those of constriction for the K tables.
    """

    order: npt.NDArray[np.intp]
    tables: npt.NDArray[np.intp]
    counts: npt.NDArray[np.intp]
    models: list[Any]


def _model(tables: Tables, k: int) -> Any:
    """Return constriction's model of table k."""
    begin = int(tables.offsets[k])
    frequencies = tables.frequencies[begin : begin + int(tables.length[k])]
    # constriction gives each of the L entries 1 and shares the remaining 2**24 − L in proportion to the
    # weights. With weights f − 1 the share is exactly one per unit, so it arrives at f with no rounding.
    return constriction.stream.model.Categorical(frequencies.astype(np.float64) - 1, perfect=False)


def _runs(index: npt.NDArray[np.integer], tables: Tables) -> _Runs:
    """Order (N,) symbols by table, keeping their order within each.

    A frame has hundreds of calls, half of them for one or two symbols; so arrays' own methods are called,
    each of which is twice as fast on few elements as the function of numpy that calls it.
    """
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(tables):
        raise ValueError(f"index must be from 0 to {len(tables) - 1}")
    # numpy sorts 16-bit integers by radix: ten times faster here than wider ones.
    order = index.astype(np.uint16).argsort(kind="stable")
    counts = np.bincount(index)
    which = counts.nonzero()[0]
    built = _models.setdefault(tables, {})
    names = which.tolist()
    for k in names:
        if k not in built:
            built[k] = _model(tables, k)
    return _Runs(order, which, counts[which], [built[k] for k in names])


class Encoder:
    """Collects symbols and codes them all at once: the coder is a stack, and must begin with the last.

    Examples
    --------
    >>> tables = Tables.gaussian([1.0, 3.0])
    >>> encoder = Encoder()
    >>> encoder.push(np.array([0, -1, 7], np.int32), np.array([0, 0, 1]), tables)
    >>> data = encoder.finish()
    >>> decoder = Decoder(data)
    >>> decoder.pop(np.array([0, 0, 1]), tables).tolist()
    [0, -1, 7]
    >>> decoder.finish()
    """

    def __init__(self) -> None:
        self._runs: list[tuple[npt.NDArray[np.int32], Any]] = []

    def push(
        self,
        symbols: npt.NDArray[np.integer],
        index: npt.NDArray[np.integer],
        tables: Tables,
        *,
        first: bool = False,
    ) -> None:
        """Add symbols, which the decoder pops in the same order of calls.

        Parameters
        ----------
        symbols
            Integers within int32, of any shape.
        index
            Integers of the same shape: the table of each symbol.
        tables
            The tables.
        first
            Whether the decoder pops them before all that was pushed so far.

        Raises
        ------
        ValueError
            If the shapes differ, a symbol is no 32-bit integer or there is no such table.
        """
        if symbols.shape != index.shape:
            raise ValueError(f"symbols {symbols.shape} and index {index.shape} differ in shape")
        symbols, index = symbols.ravel(), index.ravel()
        if symbols.size == 0:
            return
        if not (_INT32.min <= int(symbols.min()) and int(symbols.max()) <= _INT32.max):
            raise ValueError("symbols must be 32-bit integers")
        runs = _runs(index, tables)
        symbols, index = symbols[runs.order], np.repeat(runs.tables, runs.counts)
        entries, outside = tables.entries(symbols, index)
        narrow, ends = entries.astype(np.int32), np.cumsum(runs.counts).tolist()
        parts = (narrow[begin:end] for begin, end in pairwise([0, *ends]))
        found: list[tuple[npt.NDArray[np.int32], Any]] = list(zip(parts, runs.models, strict=True))
        where = index[outside]
        codes = escape_code(
            symbols[outside].astype(np.int64),
            tables.lowest[where].astype(np.int64),
            tables.length[where].astype(np.int64),
        )
        while codes.size:
            more = codes > 0x7F
            found.append(((codes & 0x7F | more << 7).astype(np.int32), _BYTE))
            codes = codes[more] >> 7
        place = 0 if first else len(self._runs)
        self._runs[place:place] = found

    def finish(self) -> bytes:
        """Code everything pushed and return the payload."""
        coder = constriction.stream.stack.AnsCoder(np.array([_START], np.uint32))
        for symbols, model in reversed(self._runs):
            coder.encode_reverse(symbols, model)
        # The state never falls to 0, so the last word has a byte to stop at.
        return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class Decoder:
    """Gives back the symbols of a payload, in the order in which they were pushed.

    Parameters
    ----------
    data
        What `Encoder.finish` returned.

    Raises
    ------
    DamagedError
        If the payload cannot have been written by an encoder.
    """

    def __init__(self, data: bytes) -> None:
        if data[-1:] == b"\0":
            raise DamagedError("entropy-coded payload ends in a zero byte, which no encoder writes")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)

    def pop(self, index: npt.NDArray[np.integer], tables: Tables) -> npt.NDArray[np.int32]:
        """Decode the symbols of one push.

        Parameters
        ----------
        index
            Integers of any shape: the table of each symbol, as pushed.
        tables
            The tables.

        Returns
        -------
        int32 symbols of `index`'s shape. Damage may show as wrong symbols here; `finish` tells.

        Raises
        ------
        DamagedError
            If an escape code is too long or leads outside int32.
        """
        runs = _runs(index.ravel(), tables)
        if not runs.models:
            return np.empty(index.shape, np.int32)
        counts = runs.counts
        parts = [self._coder.decode(m, n) for m, n in zip(runs.models, counts.tolist(), strict=True)]
        values: npt.NDArray[np.int32] = np.concatenate(parts)
        lowest, length = (of[runs.tables].repeat(counts) for of in (tables.lowest, tables.length))
        outside = (values == length - 1).nonzero()[0]
        values += lowest
        if outside.size:
            length = length[outside].astype(np.int64)
            escapes = self._escapes(outside.size)
            escaped = escape_decode(escapes, lowest[outside].astype(np.int64), length)
            if int(escaped.min()) < _INT32.min or int(escaped.max()) > _INT32.max:
                raise DamagedError("entropy-coded payload: an escaped symbol lies outside 32 bits")
            values[outside] = escaped
        symbols = np.empty(values.size, np.int32)
        symbols[runs.order] = values
        return symbols.reshape(index.shape)

    def _escapes(self, count: int) -> npt.NDArray[np.int64]:
        """Decode (count,) escape codes: the first byte of each, then the second of those that go on."""
        codes = np.zeros(count, np.int64)
        going = np.arange(count)
        for position in range(_ESCAPE_BYTES):
            read = self._coder.decode(_BYTE, going.size).astype(np.int64)
            codes[going] |= (read & 0x7F) << (7 * position)
            if position and not read.all():
                raise DamagedError("entropy-coded payload: an escape code is longer than it needs to be")
            going = going[read > 0x7F]
            if not going.size:
                return codes
        raise DamagedError(f"entropy-coded payload: an escape code has more than {_ESCAPE_BYTES} bytes")

    def finish(self) -> None:
        """Check that the payload is used up and the coder back in the state where the encoder began.

        This finds an index or tables other than the encoder's, too, for they lead to another state.

        Raises
        ------
        DamagedError
            If not.
        """
        if self._coder.pos() != (0, _START):
            raise DamagedError("entropy-coded payload does not end where its symbols end; it is damaged")
