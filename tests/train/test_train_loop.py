"""The loop: killed and resumed it ends the same, several processes agree, and what diverges stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sunzip.errors import DamagedError, DivergedError, InputError, OutputError
from sunzip.train import checkpoint
from sunzip.train.families import Family
from sunzip.train.journal import Journal
from sunzip.train.loop import CHECKPOINT, Advance, Place, Recipe, bf16_is_faster, check_settings, fit

CPU = Place(torch.device("cpu"))


class Line(Family):
    """Three layers that learn a noisy line: all that the loop needs, in no time."""

    statistics = ("mse",)

    def __init__(self, bad_step: int | None = None, drift: float = 0.0) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)
        )
        self.bad_step, self.drift, self.calls = bad_step, drift, 0

    def batches(self, step: int, rank: int, world: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([step, rank, world])
        x = rng.normal(size=(4, 2, 8, 8)).astype(np.float32)
        if step == self.bad_step:
            x[:] = np.nan
        return (x * np.float32(1 + self.drift * step),)

    def losses(self, batch: Any, kl_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        (x,) = batch
        # Noise that must be the same after resuming.
        error = (self.network(x) - x + 0.1 * torch.randn_like(x)).square().mean()
        return error, error.detach()[None]

    def reconstruct(self, *_: Any) -> Any:
        raise NotImplementedError

    def calibrate(self, network: torch.nn.Module, batch: Any) -> None:
        self.calls += 1
        with torch.no_grad():
            network(batch[0])


def run(family: Family, folder: Path, **more: Any) -> Any:
    folder.mkdir(exist_ok=True)
    recipe = more.pop("recipe", None) or Recipe(steps=more.pop("steps", 30), minutes=None, batch=4, seed=7)
    return fit(family, recipe, more.pop("place", CPU), folder, settings={"who": "test"}, half=False, **more)


def same(a: Path, b: Path) -> bool:
    one, two = (load_file(p / CHECKPOINT) for p in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


# --- resuming --------------------------------------------------------------------------------------------

_SCRIPT = """
import sys, time
from pathlib import Path
sys.modules["torch.utils.tensorboard"] = None  # takes long to load
sys.path.insert(0, {here!r})
from test_train_loop import Line, run
def slow(now):
    print(now.step, flush=True)
    time.sleep(0.02)
run(Line(), Path(sys.argv[1]), resume=True, save_minutes=0, progress=slow)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With other threads, sums may be of another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    script = _SCRIPT.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout
    for line in process.stdout:
        if int(line) == 11:
            process.kill()
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    at = checkpoint.read_state(tmp_path / "killed" / CHECKPOINT)["step"]
    assert 10 <= at < 30
    log = tmp_path / "killed" / "log.jsonl"
    log.write_text(
        log.read_text() + '{"step": 20, "loss": 1}\n{"step": 2'
    )  # what comes after, and half a line
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    run(Line(), tmp_path / "whole")
    assert same(tmp_path / "killed", tmp_path / "whole")
    lines = [
        [{k: v for k, v in json.loads(line).items() if k != "elapsed"} for line in p.read_text().splitlines()]
        for p in (log, tmp_path / "whole" / "log.jsonl")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [10, 20, 30]


def test_seeds_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(Line(), tmp_path / name, recipe=Recipe(steps=5, minutes=None, batch=4, seed=seed))
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_leaves_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def end(now: Advance) -> None:
        if now.step == 5:
            # Twice, as `timeout` and shells send them.
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as raised:
        run(Line(), tmp_path / "a", progress=end)
    assert raised.value.args == (number,)
    assert signal.getsignal(number) is before
    assert checkpoint.read_state(tmp_path / "a" / CHECKPOINT)["step"] == 5
    run(Line(), tmp_path / "a", resume=True)
    run(Line(), tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_request_to_end_while_the_last_checkpoint_is_written_counts(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def slow(*args: Any) -> None:
        os.kill(os.getpid(), number)
        save(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    with pytest.raises(KeyboardInterrupt) as raised:
        run(Line(), tmp_path, steps=2)
    assert raised.value.args == (number,)
    assert checkpoint.read_state(tmp_path / CHECKPOINT)["step"] == 2


@pytest.mark.parametrize("what", ["permission", "memory"])
def test_a_checkpoint_that_cannot_be_read_is_not_called_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run(Line(), tmp_path, steps=2)
    opened, denied = Path.open, f"{CHECKPOINT}: the checkpoint cannot be read: "

    def refused(path: Path, *args: Any, **more: Any) -> Any:
        if path.name == CHECKPOINT:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    def no_room(*_: object) -> None:
        raise OSError("Cannot allocate memory (os error 12)")

    if what == "permission":
        monkeypatch.setattr(Path, "open", refused)
        denied += "Permission denied$"
    else:
        monkeypatch.setattr(checkpoint, "safe_open", no_room)
        denied += "Cannot allocate memory"
    with pytest.raises(InputError, match=denied):
        run(Line(), tmp_path, resume=True)
    network = Line().network
    optimiser = torch.optim.Adam(network.parameters())
    with pytest.raises(InputError, match=denied):
        checkpoint.restore(tmp_path / CHECKPOINT, network, network, optimiser, step=2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exp_avg", None),
        ("step", None),
        ("step", torch.ones(3)),
        ("step", torch.tensor(-1.0)),
        ("step", torch.tensor(True)),
        ("exp_avg_sq", torch.tensor(1.0)),
        ("other", torch.tensor(1.0)),
    ],
)
def test_a_checkpoint_of_another_optimiser_is_refused(
    tmp_path: Path, key: str, value: torch.Tensor | None
) -> None:
    run(Line(), tmp_path, steps=2)
    path = tmp_path / CHECKPOINT
    state, tensors = checkpoint.read_state(path), load_file(path)
    parameter = next(name for name in tensors if name.startswith("optimiser.step.")).split(".", 2)[2]
    name = f"optimiser.{key}.{parameter}"
    tensors.pop(name, None)
    save_file(tensors | ({} if value is None else {name: value}), path, {"sunzip": json.dumps(state)})
    with pytest.raises(DamagedError, match="the checkpoint does not fit the network"):
        run(Line(), tmp_path, steps=4, resume=True)


def test_finished_trainings_resume_to_nothing_more(tmp_path: Path) -> None:
    first = run(Line(), tmp_path / "a", steps=4)
    again = run(Line(), tmp_path / "a", steps=4, resume=True)
    assert (first.steps, again.steps) == (4, 4)
    for a, b in zip(first.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_other_settings_are_no_resumption(tmp_path: Path) -> None:
    run(Line(), tmp_path / "a", steps=2)
    with pytest.raises(InputError, match=r"begun with who 'test', not 'me'"):
        fit(
            Line(), Recipe(2, None, 4), CPU, tmp_path / "a", settings={"who": "me"}, half=False, resume=True
        )  # fmt: skip
    before: dict[str, Any] = {"who": "test", "recipe": {"steps": 2, "seed": 0}}
    check_settings(before, before, tmp_path)
    with pytest.raises(InputError, match=r"begun with steps 2, not 3;"):
        check_settings(before, {"who": "test", "recipe": {"steps": 3, "seed": 0}}, tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x10" + 7 * b"\0" + b"{}" + 14 * b" "])
def test_damaged_checkpoints_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(DamagedError, match="is no checkpoint"):
        run(Line(), tmp_path, resume=True)


@pytest.mark.parametrize(
    "change",
    [{"smooth": None}, {"step": "3"}, {"step": -5}, {"step": 2.5}, {"elapsed": [1]}, {"settings": [1]}],
    ids=str,
)
def test_checkpoints_that_tell_no_state_are_told(tmp_path: Path, change: dict[str, Any]) -> None:
    run(Line(), tmp_path, steps=2)
    tensors, state = load_file(tmp_path / CHECKPOINT), checkpoint.read_state(tmp_path / CHECKPOINT)
    save_file(tensors, tmp_path / CHECKPOINT, {"sunzip": json.dumps(state | change)})
    with pytest.raises(DamagedError, match="is no checkpoint"):
        run(Line(), tmp_path, steps=4, resume=True)


def test_checkpoints_of_another_network_are_told(tmp_path: Path) -> None:
    run(Line(), tmp_path, steps=2)
    tensors = load_file(tmp_path / CHECKPOINT)
    state = checkpoint.read_state(tmp_path / CHECKPOINT)
    for broken in (
        {k: v for k, v in tensors.items() if k != "average.0.bias"},
        tensors | {"network.0.bias": torch.zeros(9)},
        tensors | {"optimiser.exp_avg.9.weight": torch.zeros(2)},
        tensors | {"optimiser.exp_avg.0.weight": torch.zeros(2)},
        tensors | {"odd": torch.zeros(2)},
        # Adam would begin anew, with steps as large as the first ones.
        {k: v for k, v in tensors.items() if not k.startswith("optimiser.")},
    ):
        save_file(broken, tmp_path / CHECKPOINT, {"sunzip": json.dumps(state)})
        with pytest.raises(DamagedError, match="does not fit"):
            run(Line(), tmp_path, resume=True)


# --- going on --------------------------------------------------------------------------------------------


def test_training_learns_and_averages(tmp_path: Path) -> None:
    family = Line()
    before = {k: v.clone() for k, v in family.network.state_dict().items()}
    seen: list[Advance] = []
    recipe = Recipe(steps=60, minutes=None, batch=4, rate=0.03)
    outcome = run(family, tmp_path, recipe=recipe, progress=seen.append)
    assert [a.step for a in seen] == list(range(1, 61))
    assert seen[-1].values["mse"] < 0.8 * seen[0].values["mse"]
    assert not outcome.network.training
    now, average = family.network.state_dict(), outcome.network.state_dict()
    weights = [k for k in now if k.endswith("weight")]
    assert all(not torch.equal(now[k], before[k]) for k in weights)
    assert all(not torch.equal(now[k], average[k]) for k in weights)
    # Batchnorm's statistics are measured anew, as plain means over as many batches as there were.
    assert family.calls == 60
    assert average["1.num_batches_tracked"] == 60


class Settled(Line):
    """Keeps batchnorm as it began."""

    def train(self, network: torch.nn.Module) -> None:
        super().train(network)
        network[1].eval()  # type: ignore[index]


def test_statistics_that_a_family_keeps_are_not_measured_anew(tmp_path: Path) -> None:
    family = Settled()
    before = {k: v.clone() for k, v in family.network.state_dict().items()}
    after = run(family, tmp_path).network.state_dict()
    assert family.calls == 0
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(after[name], before[name])
    assert not torch.equal(after["1.weight"], before["1.weight"])


def test_time_ends_training_too(tmp_path: Path) -> None:
    outcome = run(Line(), tmp_path, recipe=Recipe(steps=100_000, minutes=0.003, batch=4))
    assert 1 <= outcome.steps < 100_000
    assert 0.18 <= outcome.seconds < 5


def test_held_out_frames_are_looked_at_and_written_down(tmp_path: Path) -> None:
    looked = []

    def look(network: torch.nn.Module, step: int, journal: Journal) -> dict[str, float | None]:
        looked.append((step, network.training))
        return {"171A": 0.5, "Bz": None}

    seen: list[Advance] = []
    run(Line(), tmp_path, look=look, progress=seen.append)
    assert looked == [(10, False), (30, False)]
    assert seen[8].worst is None
    assert seen[9].worst == ("171A", 0.5)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 10, "held_out_r": {"171A": 0.5, "Bz": None}}


def test_a_damaged_log_keeps_what_can_be_read(tmp_path: Path) -> None:
    good = [b'{"step": 5, "loss": 1.0}\n', b'{"step": 10, "loss": NaN}\n']
    bad = [
        b"\n",
        b"\xff\xfe\n",
        b'{"loss": 1}\n',
        b"[5]\n",
        b'{"step": "5"}\n',
        b"[" * 9999 + b"\n",
        b"\0\0\n",
    ]
    later, half = b'{"step": 20}\n', b'{"step": 7}'
    (tmp_path / "log.jsonl").write_bytes(good[0] + b"".join(bad) + good[1] + later + half)
    Journal(tmp_path, 10).close()
    assert (tmp_path / "log.jsonl").read_bytes() == b"".join(good)


def test_without_tensorboard_there_is_the_plain_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run(Line(), tmp_path, steps=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, "log.jsonl"]


def test_tensorboard_reads_the_log(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(Line(), tmp_path, steps=20)
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e.step for e in board.Scalars("loss")] == [10, 20]
    assert board.Scalars("loss")[1].value == pytest.approx(lines[1]["loss"])


@pytest.mark.parametrize("where", ["__init__", "add_scalar", "close"])
def test_what_tensorboard_cannot_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, where, full)
    with pytest.raises(OutputError, match=r"tensorboard: cannot be written: No space left on device$"):
        run(Line(), tmp_path, steps=10)


# --- diverging -------------------------------------------------------------------------------------------


def test_what_is_no_number_stops_before_it_spoils_the_weights(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"step 12: .*not a number; the last good checkpoint is .*safetens"
    ):
        run(Line(bad_step=12), tmp_path, save_minutes=0)
    assert checkpoint.read_state(tmp_path / CHECKPOINT)["step"] == 12
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / CHECKPOINT).values())


def test_divergence_before_any_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="there is no checkpoint yet"):
        run(Line(bad_step=0), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_an_error_that_grows_tenfold_stops_and_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="has grown from"):
        run(Line(drift=0.5), tmp_path, steps=3000, save_minutes=0)
    state = checkpoint.read_state(tmp_path / CHECKPOINT)
    # The one that is kept is of a time when the error was not yet twice the lowest.
    assert state["smooth"] <= 2 * state["lowest"]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert state["step"] < json.loads(lines[-1])["step"]


# --- processes and precisions ----------------------------------------------------------------------------

_RANK = """
import json, sys
from pathlib import Path
sys.modules["torch.utils.tensorboard"] = None  # takes long to load
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from test_train_loop import Line, run
from sunzip.train.loop import Place
family, folder = Line(), Path(sys.argv[1])
with Place.found("cpu") as place:
    run(family, folder / f"rank{{place.rank}}", place=place, steps=6)
    sums = [v.double().sum().item() for v in family.network.parameters()]
tasks = Path("/proc/self/task")
left = sorted(p.read_text().strip() for p in tasks.glob("*/comm")) if tasks.exists() else []
told = {{"sums": sums, "left": [name for name in left if "gloo" in name]}}
(folder / f"told{{place.rank}}.json").write_text(json.dumps(told))
"""


def test_two_processes_agree_and_one_writes(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_RANK.format(here=str(Path(__file__).parent)))
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(script), str(tmp_path),
        ],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    # A thread of the group that outlives it aborts the process now and then as the interpreter ends.
    assert told[0]["left"] == []
    assert (tmp_path / "rank0" / CHECKPOINT).exists()
    assert list((tmp_path / "rank1").iterdir()) == []
    # Two see other batches than one: otherwise it would be the same work done twice.
    alone = Line()
    run(alone, tmp_path / "alone", steps=6)
    assert told[0]["sums"] != [v.double().sum().item() for v in alone.network.parameters()]


_LEFT = """
import sys
from sunzip.errors import InputError, SunzipError
from sunzip.train.loop import Place
try:
    with Place.found("cpu") as place:
        if place.leads:
            raise InputError("why it ends")
        place.wait()
except SunzipError as error:
    print(error, flush=True)
# Its own failure would have torchrun kill the other one before that has told anything.
"""


def test_a_process_whose_others_have_ended_says_so(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(_LEFT)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(script),
        ],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "why it ends\n" in done.stdout
    assert "another process of this training has ended" in done.stdout


def test_devices_that_are_not_there_are_told() -> None:
    for name in ("abacus", "meta", "mps", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(InputError, match="not on this machine"), Place.found(name):
            pass


def test_the_trial_of_precisions_changes_nothing() -> None:
    family = Line()
    before = {k: v.clone() for k, v in family.network.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert bf16_is_faster(family, torch.device("cpu"), family.batches(0, 0, 1)) in (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in family.network.state_dict().items())
    assert all(p.grad is None for p in family.network.parameters())


def test_threads_other_than_the_first_can_train(tmp_path: Path) -> None:
    worker = threading.Thread(target=run, args=(Line(), tmp_path), kwargs={"steps": 2})
    worker.start()
    worker.join()
    assert checkpoint.read_state(tmp_path / CHECKPOINT)["step"] == 2
