"""Encoder and Decoder: symbols to bytes and back, with integer tables and an rANS coder.

The bytes are specified in docs/reference/format-v1.md, section "Entropy coding". constriction does the
arithmetic; its models are built so that they hold the integers of `Tables` unchanged.
"""

from __future__ import annotations

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


class _Run(NamedTuple):
    """Symbols of one table, one after the other."""

    table: int
    model: Any
    where: slice


def _model(tables: Tables, k: int) -> Any:
    """Return constriction's model of table k."""
    begin = int(tables.offsets[k])
    frequencies = tables.frequencies[begin : begin + int(tables.length[k])]
    # constriction gives each of the L entries 1 and shares the remaining 2**24 − L in proportion to the
    # weights. With weights f − 1 the share is exactly one per unit, so it arrives at f with no rounding.
    return constriction.stream.model.Categorical(frequencies.astype(np.float64) - 1, perfect=False)


def _runs(index: npt.NDArray[np.integer], tables: Tables) -> tuple[npt.NDArray[np.intp], list[_Run]]:
    """Order (N,) symbols by table, keeping their order within each; name each table's run."""
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < len(tables):
        raise ValueError(f"index must be from 0 to {len(tables) - 1}")
    # numpy sorts 16-bit integers by radix: ten times faster here than wider ones.
    order = np.argsort(index.astype(np.uint16), kind="stable")
    counts = np.bincount(index, minlength=len(tables))
    # Each model is built once.
    models = _models.setdefault(tables, {})
    runs, begin = [], 0
    for k in np.flatnonzero(counts).tolist():
        if k not in models:
            models[k] = _model(tables, k)
        end = begin + int(counts[k])
        runs.append(_Run(k, models[k], slice(begin, end)))
        begin = end
    return order, runs


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

    def push(self, symbols: npt.NDArray[np.integer], index: npt.NDArray[np.integer], tables: Tables) -> None:
        """Add symbols, which the decoder pops in the same order of calls.

        Parameters
        ----------
        symbols
            Integers within int32, of any shape.
        index
            Integers of the same shape: the table of each symbol.
        tables
            The tables.

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
        order, runs = _runs(index, tables)
        symbols, index = symbols[order], index[order]
        entries, outside = tables.entries(symbols, index)
        entries32 = entries.astype(np.int32)
        self._runs.extend((entries32[run.where], run.model) for run in runs)
        where = index[outside]
        codes = escape_code(
            symbols[outside].astype(np.int64),
            tables.lowest[where].astype(np.int64),
            tables.length[where].astype(np.int64),
        )
        while codes.size:
            more = codes > 0x7F
            self._runs.append(((codes & 0x7F | more << 7).astype(np.int32), _BYTE))
            codes = codes[more] >> 7

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
        flat = index.ravel()
        order, runs = _runs(flat, tables)
        values = np.empty(flat.size, np.int32)
        outside = []
        for run in runs:
            part = self._coder.decode(run.model, run.where.stop - run.where.start)
            beyond = part == tables.length[run.table] - 1
            if beyond.any():
                outside.append(run.where.start + np.flatnonzero(beyond))
            np.add(part, tables.lowest[run.table], out=values[run.where])
        if outside:
            where = np.concatenate(outside)
            table = flat[order[where]]
            lowest, length = tables.lowest[table].astype(np.int64), tables.length[table].astype(np.int64)
            escaped = escape_decode(self._escapes(where.size), lowest, length)
            if int(escaped.min()) < _INT32.min or int(escaped.max()) > _INT32.max:
                raise DamagedError("entropy-coded payload: an escaped symbol lies outside 32 bits")
            values[where] = escaped
        symbols = np.empty(flat.size, np.int32)
        symbols[order] = values
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
