"""Checkpoints: the whole state of a training in one safetensors file, so that nothing in it is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sunzip.errors import DamagedError, InputError, OutputError

_STATE = "sunzip"

#: What Adam keeps of each parameter that it has changed: a number, and two tensors of the parameter's shape.
_STEP, _MEANS = "step", ("exp_avg", "exp_avg_sq")

#: How the names of averaged weights begin.
AVERAGE = "average."


def save(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write a checkpoint aside and rename it, so that there is always a whole one.

    Parameters
    ----------
    path
        The file.
    network, average, optimiser
        What is trained, its moving average, and what trains it.
    state
        JSON: everything else that decides how the training goes on: ``step``, ``elapsed``, ``smooth``,
        ``lowest`` and ``settings``.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"{AVERAGE}{k}": v for k, v in average.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = value
    aside = path.with_name(f"{path.name}.new")
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside, {_STATE: json.dumps(state)}
        )
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(f"{path}: the checkpoint cannot be written: {why}") from None


def read_state(path: Path) -> dict[str, Any]:
    """Return the JSON of a checkpoint: how far the training is, and what it was begun with.

    Raises
    ------
    DamagedError
        If the file is no checkpoint.
    InputError
        If it cannot be read.
    """
    try:
        with _opened(path) as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})[_STATE])
        if not _is_state(state):
            raise ValueError
    except (SafetensorError, ValueError, KeyError, RecursionError):
        raise DamagedError(f"{path}: is no checkpoint of sunzip train; begin anew with --force") from None
    return state


def _is_state(state: object) -> bool:
    return (
        isinstance(state, dict)
        and isinstance(state.get("settings"), dict)
        and type(state.get("step")) is int
        and 0 <= state["step"] < 1 << 53
        # Before the first step the errors are no finite numbers.
        and all(type(state.get(key)) is float for key in ("elapsed", "smooth", "lowest"))
    )


def restore(
    path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, *, step: int
) -> None:
    """Put a checkpoint's tensors where they belong.

    Parameters
    ----------
    path
        The file.
    network, average, optimiser
        As in `save`.
    step
        How many the file says that there were.

    Raises
    ------
    DamagedError
        If they are not those of the network.
    InputError
        If the file cannot be read.
    """
    targets: dict[str, Tensor] = {f"network.{k}": v for k, v in network.state_dict().items()}
    targets |= {f"{AVERAGE}{k}": v for k, v in average.state_dict().items()}
    parameters = dict(network.named_parameters())
    try:
        with torch.no_grad(), _opened(path) as file:
            stored = set(file.keys())
            if lacking := targets.keys() - stored:
                raise ValueError(min(lacking))
            for name, target in targets.items():
                target.copy_(_of_shape(file.get_tensor(name), target))
            for name in stored - targets.keys():
                _, key, parameter_name = name.split(".", 2)
                parameter = parameters[parameter_name]
                value = file.get_tensor(name)
                if key == _STEP:
                    if value.ndim or not value.is_floating_point() or not value >= 0:
                        raise ValueError(name)
                else:
                    # In the parameter's own order of memory, as the optimiser would have made it.
                    value = torch.empty_like(parameter).copy_(_of_shape(value, parameter))
                optimiser.state[parameter][key] = value
            for name, parameter in parameters.items():
                if optimiser.state.get(parameter, {}).keys() not in (set(), {_STEP, *_MEANS}):
                    raise ValueError(f"optimiser.*.{name}")
            # A parameter may never have been used, but not all of them.
            if step and not any(optimiser.state.values()):
                raise ValueError("optimiser.*")
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(
            f"{path}: the checkpoint does not fit the network ({error}); begin anew with --force"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a checkpoint; of one that cannot be read nobody knows yet whether it is good."""
    try:
        # safetensors says of every file that it may not open that there is none.
        with path.open("rb") as file:
            file.read(1)
        with safe_open(path, "pt") as tensors:
            yield tensors
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be read: {error.strerror or error}") from None


def _of_shape(value: Tensor, like: Tensor) -> Tensor:
    if value.shape != like.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} for one of {tuple(like.shape)}")
    return value
