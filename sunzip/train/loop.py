"""The training loop: one for every family, on one device or several, bearing to be killed and resumed."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sunzip.errors import DivergedError, InputError, SunzipError
from sunzip.train import checkpoint
from sunzip.train.data import ahead
from sunzip.train.families import Family
from sunzip.train.journal import Journal

CHECKPOINT = "checkpoint.safetensors"

#: Steps between reports, the first steps after which held-out frames are looked at, and those between.
_REPORT = 10
_LOOKS = (10, 30, 100, 300)
_LOOK_EVERY = 1000

#: Steps over which the learning rate rises to its peak, or share of the run if that is sooner; and the share
#: of the peak that is left in the end.
_WARM_UP, _WARM_UP_SHARE = 200, 0.05
_LAST_RATE = 0.02

#: The squared error, smoothed over about 50 steps, may exceed the lowest so far by these factors before
#: checkpoints stop, and before the training does.
_SMOOTH = 0.98
_WORRY, _DIVERGED = 2.0, 10.0

#: Samples from which the averaged network takes its batchnorm statistics in the end, if training saw as many.
_CALIBRATION_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how to train.

    Attributes
    ----------
    steps, minutes
        What ends the training; the learning rate follows a cosine until whichever is first. At least one;
        0 steps train nothing.
    batch
        Samples of one process's step.
    rate
        Peak learning rate of AdamW.
    decay
        Of the exponential moving average of weights that is kept in the end.
    clip
        Largest norm of the gradient.
    kl_warm_up
        Share of the run in which the KL divergence's weight grows from 0 to 1.
    seed
        Of everything random.
    """

    steps: int | None
    minutes: float | None
    batch: int
    rate: float = 1e-3
    decay: float = 0.999
    clip: float = 1.0
    kl_warm_up: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process of the training runs.

    Attributes
    ----------
    device
        Of this process.
    rank, world
        Its number and how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    @contextmanager
    def found(cls, wanted: str) -> Iterator[Place]:
        """Yield the place that a device's name and torchrun's environment tell.

        Raises
        ------
        InputError
            If there is no such device.
        SunzipError
            If another process of the training has ended before this one.
        """
        kind = wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(kind)
            # Others that PyTorch knows by name fail once frames are read.
            if device.type != "cpu" and not (
                device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
            ):
                raise RuntimeError
        except RuntimeError:
            raise InputError(f"device {wanted!r} is not on this machine; use cpu") from None
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            yield cls(device)
            return
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # Optimisers load it, and default arguments of its functions are the group that there is at that time:
        # the group, and the threads that wait for its messages, would outlive their end. One that frees a
        # tensor while the interpreter ends aborts the process; torchrun then kills the leader as it saves.
        import_module("torch.distributed.nn")
        # While one reads frames for hours, the others wait.
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=2))
        try:
            yield cls(device, distributed.get_rank(), world)
        except RuntimeError as error:
            # Gloo's have no type of their own; they begin with the path of its source.
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
                raise
            raise SunzipError(
                "another process of this training has ended or cannot be reached; what it said itself tells "
                "why, and nothing where it was killed, as happens where memory is short"
            ) from error
        finally:
            distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            distributed.barrier()

    def agree(self, values: Sequence[float]) -> list[float]:
        """Return the leader's numbers."""
        if self.world == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return [float(v) for v in told.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes."""
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return values


@dataclass(frozen=True, slots=True)
class Advance:
    """How a training goes on.

    Attributes
    ----------
    step, steps
        Steps done, and how many there will be if that is known.
    progress
        Share of the run.
    elapsed
        Seconds of training, those before a resume included.
    frames_per_second
        Samples of all processes in the latest step, looking at frames and saving left out.
    values
        The latest report: loss and the family's statistics.
    worst
        Channel with the lowest correlation of held-out frames, and that; None before the first look.
    """

    step: int
    steps: int | None
    progress: float
    elapsed: float
    frames_per_second: float
    values: dict[str, float]
    worst: tuple[str, float] | None


#: Returns r by channel of held-out frames, and draws one of them.
Look = Callable[[nn.Module, int, Journal], dict[str, float | None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to: the averaged network in evaluation mode, and how long it took."""

    network: nn.Module
    steps: int
    seconds: float


class _Objective(nn.Module):
    """The loss as a module, which is what torch distributes."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.network = family.network
        self._losses = family.losses

    def forward(self, batch: Sequence[Tensor], kl_weight: float) -> tuple[Tensor, Tensor]:
        return self._losses(batch, kl_weight)


def bf16_is_faster(family: Family, device: torch.device, batch: Sequence[npt.NDArray[Any]]) -> bool:
    """Return whether training in bfloat16 is faster here than in float32, by trying both on copies.

    Parameters
    ----------
    family
        What will be trained; left as it is.
    device
        Where.
    batch
        Arrays of one batch, of which a few samples are used.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    trial = copy.copy(family)
    trial.network = copy.deepcopy(family.network).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    tensors = [torch.from_numpy(a) for a in family.few(batch)]
    seconds = []
    with torch.random.fork_rng():
        for half in (False, True):
            taken = []
            for _ in range(3):
                begin = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss, _ = trial.losses(tensors, 1.0)
                loss.backward()  # type: ignore[no-untyped-call]
                taken.append(time.perf_counter() - begin)
            # The first one prepares.
            seconds.append(min(taken[1:]))
    return seconds[1] < seconds[0]


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Note Ctrl-C and a request to end instead of obeying at once, so that a step is never cut in two."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, _: object) -> None:
        # A second Ctrl-C ends the process, whatever the first one waits for; the others come twice at once.
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        seen.append(number)

    known = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    wanted = [n for n in known if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, note) for n in wanted}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fit(
    family: Family,
    recipe: Recipe,
    place: Place,
    folder: Path,
    *,
    settings: dict[str, Any],
    half: bool,
    resume: bool = False,
    save_minutes: float = 10.0,
    look: Look | None = None,
    progress: Callable[[Advance], object] | None = None,
) -> Outcome:
    """Train a family's network.

    Every random number is a function of the seed, the step and the rank, so that a run that was killed
    and resumed goes through the same numbers as one that was not; with `recipe.minutes` the time that has
    passed decides, too.

    Parameters
    ----------
    family
        What to train. Its network is moved to the place's device.
    recipe, place
        How and where.
    folder
        For checkpoint, log and pictures.
    settings
        JSON that must be the same when resuming.
    half
        Whether layers run in bfloat16.
    resume
        Whether to go on from the folder's checkpoint, if there is one.
    save_minutes
        Between checkpoints.
    look
        Called now and then with the averaged network.
    progress
        Called after every step.

    Raises
    ------
    DivergedError
        If the loss is no number any more, or the error has grown tenfold; the message names the last
        good checkpoint.
    KeyboardInterrupt
        On Ctrl-C, SIGTERM or SIGHUP, once a checkpoint is written.
    InputError, DamagedError
        If the checkpoint is of other settings, or damaged.
    """
    network = family.network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    family.train(network)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(family.groups(), lr=recipe.rate, weight_decay=0.0)
    path = folder / CHECKPOINT
    step, elapsed, smooth, lowest = 0, 0.0, math.nan, math.inf
    if resume and path.exists():
        state = checkpoint.read_state(path)
        check_settings(state["settings"], settings, path)
        checkpoint.restore(path, network, average, optimiser, step=state["step"])
        step, elapsed, smooth, lowest = (state[k] for k in ("step", "elapsed", "smooth", "lowest"))
    journal = Journal(folder, step) if place.leads else None
    objective: nn.Module = _Objective(family)
    if place.world > 1:
        ids = [place.device.index] if place.device.type == "cuda" else None
        objective = DistributedDataParallel(objective, device_ids=ids, find_unused_parameters=family.partial)
    averaged, trained = list(average.parameters()), list(network.parameters())
    batches = ahead(lambda n: family.batches(n, place.rank, place.world), step)
    worst: tuple[str, float] | None = None
    last_save = clock = time.monotonic()

    def save() -> None:
        state = {"step": step, "elapsed": elapsed, "smooth": smooth, "lowest": lowest, "settings": settings}
        checkpoint.save(path, network, average, optimiser, state)

    def diverged(why: str) -> DivergedError:
        good = f"the last good checkpoint is {path}" if path.exists() else "there is no checkpoint yet"
        return DivergedError(
            f"training diverged at step {step}: {why}; {good}; begin anew with a lower --rate"
        )

    try:
        with _deferred_signals() as signals:
            while True:
                share, stop, due = place.agree(
                    [
                        _share(recipe, step, elapsed),
                        bool(signals),
                        time.monotonic() - last_save >= 60 * save_minutes,
                    ]
                )
                if stop or share >= 1:
                    break
                begin = time.monotonic()
                batch = [_moved(a, place.device) for a in next(batches)]
                _seed(recipe.seed, step, place.rank)
                for group in optimiser.param_groups:
                    group["lr"] = group["share"] * recipe.rate * _rate(step, share)
                with torch.autocast(place.device.type, torch.bfloat16, enabled=half):
                    loss, statistics = objective(batch, min(1.0, share / recipe.kl_warm_up))
                optimiser.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
                numbers = place.mean(torch.cat([loss.detach().float()[None], statistics]))
                shown = [*numbers.tolist(), float(norm)]
                if not np.isfinite(shown).all():
                    raise diverged("the loss or its gradient is not a number")
                optimiser.step()
                decay = min(recipe.decay, (1 + step) / (10 + step))
                with torch.no_grad():
                    torch._foreach_lerp_(averaged, trained, 1 - decay)
                    for kept, now in zip(average.buffers(), network.buffers(), strict=True):
                        kept.lerp_(now, 1 - decay) if kept.is_floating_point() else kept.copy_(now)
                step += 1
                error = shown[len(family.statistics)]
                smooth = error if math.isnan(smooth) else _SMOOTH * smooth + (1 - _SMOOTH) * error
                lowest = min(lowest, smooth)
                if smooth > _DIVERGED * lowest:
                    raise diverged(f"the squared error has grown from {lowest:.3g} to {smooth:.3g}")
                end = time.monotonic()
                elapsed, clock = elapsed + end - clock, end
                if not place.leads:
                    continue
                assert journal is not None
                values = dict(zip(("loss", *family.statistics, "gradient"), shown, strict=True))
                if step % _REPORT == 0:
                    journal.report(step, {**values, "rate": _rate(step, share), "elapsed": round(elapsed, 3)})
                if look and (step in _LOOKS or step % _LOOK_EVERY == 0):
                    found = look(average, step, journal)
                    journal.report(step, {"held_out_r": found})
                    known = {k: v for k, v in found.items() if v is not None}
                    worst = min(known.items(), key=lambda item: item[1]) if known else None
                if progress:
                    speed = len(batch[0]) * place.world / (end - begin)
                    progress(Advance(step, recipe.steps, share, elapsed, speed, values, worst))
                if due and smooth <= _WORRY * lowest:
                    save()
                    last_save = time.monotonic()
            if place.leads:
                save()
            # Asked for in the meantime, it is not to be lost either.
            (stop,) = place.agree([bool(signals)])
        if stop:
            # Which it was; none if another process of the training was asked.
            raise KeyboardInterrupt(*signals[:1])
    finally:
        batches.close()
        if journal:
            journal.close()
    if place.leads:
        _calibrate(family, average, min(step, -(-_CALIBRATION_SAMPLES // recipe.batch)), place.device)
    return Outcome(average.eval(), step, elapsed)


def check_settings(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Refuse to resume what was begun otherwise.

    Raises
    ------
    InputError
        That names the first setting that differs.
    """
    for key in (*now, *before):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            check_settings(old, new, path)
        elif old != new:
            raise InputError(
                f"{path}: was begun with {key} {old!r}, not {new!r}; resume with the same settings, or begin "
                "anew with --force"
            )


def _share(recipe: Recipe, step: int, elapsed: float) -> float:
    """Return how much of the run is over."""
    if recipe.steps is not None and step >= recipe.steps:
        return 1.0
    by_steps = step / recipe.steps if recipe.steps else 0.0
    by_time = elapsed / (60 * recipe.minutes) if recipe.minutes else 0.0
    return max(by_steps, by_time)


def _rate(step: int, share: float) -> float:
    """Return the learning rate over its peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return min(1.0, max((step + 1) / _WARM_UP, share / _WARM_UP_SHARE)) * (
        _LAST_RATE + (1 - _LAST_RATE) * cosine
    )


def _seed(seed: int, step: int, rank: int) -> None:
    words = np.random.SeedSequence([seed, step, rank, 2]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def _moved(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _calibrate(family: Family, average: nn.Module, batches: int, device: torch.device) -> None:
    """Measure the averaged weights' own batchnorm statistics; averaged ones are of other weights."""
    family.train(average)
    norms = [m for m in average.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    if not norms or not batches:
        return
    for norm in norms:
        norm.reset_running_stats()
        # Without momentum every batch counts the same.
        norm.momentum = None
    for step in range(batches):
        family.calibrate(average, [_moved(a, device) for a in family.batches(step, 0, 1)])
