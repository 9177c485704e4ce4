"""The record of a training: reports as JSON lines and for TensorBoard, and pictures of held-out frames."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sunzip.channels import NAMES
from sunzip.errors import InputError, OutputError
from sunzip.files import put

LOG, PICTURES, BOARD = "log.jsonl", "pictures", "tensorboard"


class Journal:
    """Writes into a folder. TensorBoard's files come too if tensorboard is installed (``[train]``).

    Parameters
    ----------
    folder
        Of the training.
    step
        Reports of later steps, left by a run that was broken off, are taken out.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._log = folder / LOG
        kept = []
        if step and self._log.exists():
            kept = [line for line in self._log.read_bytes().splitlines(keepends=True) if _is_of(line, step)]
        put({self._log: b"".join(kept)})
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board: Any = None
        else:
            with self._writing_board():
                self._board = SummaryWriter(str(folder / BOARD), purge_step=step)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Add a report: numbers, or numbers by name.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        try:
            with self._log.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise OutputError(f"{self._log}: {error.strerror or error}") from None
        if self._board:
            with self._writing_board():
                for key, value in values.items():
                    if isinstance(value, dict):
                        for name, number in value.items():
                            if number is not None:
                                self._board.add_scalar(f"{key}/{name}", number, step)
                    else:
                        self._board.add_scalar(key, value, step)

    def picture(
        self,
        step: int,
        original: npt.NDArray[np.float32],
        reconstruction: npt.NDArray[np.float32],
        time: np.datetime64,
    ) -> None:
        """Draw a frame (12, Y, X), what became of it and the difference; nothing without ``[plot]``.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        from sunzip.quicklook import render

        rows = {"original": original, "reconstruction": reconstruction}
        title = f"step {step}, held out {np.datetime_as_string(time, 'm')} UTC"
        page = io.BytesIO()
        try:
            render(rows, NAMES, title, page)
        except InputError:
            # The package for pictures is not installed: the numbers tell the same.
            return
        folder = self._folder / PICTURES
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror or error}") from None
        put({folder / f"step-{step:07d}.png": page.getvalue()})

    def close(self) -> None:
        """Write out what is left."""
        if self._board:
            with self._writing_board():
                self._board.close()

    @contextmanager
    def _writing_board(self) -> Iterator[None]:
        """Name the folder in what TensorBoard raises: what its thread met, often many reports ago."""
        try:
            yield
        except OSError as error:
            folder = self._folder / BOARD
            raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _is_of(line: bytes, step: int) -> bool:
    """Whether a line reports of a step up to this one: the last may be half a line, any may be damaged."""
    try:
        found = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return line.endswith(b"\n") and type(found) is int and found <= step
