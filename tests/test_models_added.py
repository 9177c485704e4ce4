"""Added models: kept by sha256, found by name everywhere, whatever breaks off or is meant to break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load

import sunzip
from sunzip import added, weights
from sunzip.errors import DamagedError, InputError, ModelNotFoundError, OutputError, UnsupportedError
from sunzip.weights import CONFIG, TENSORS, Model, pack, write

pytestmark = pytest.mark.usefixtures("nothing_registered")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are added; it does not exist yet."""
    folder = tmp_path / "data" / "models"
    monkeypatch.setenv(added.VARIABLE, str(folder))
    return folder


@pytest.fixture
def tiny(tiny_model: Model, tmp_path: Path) -> Path:
    """The folder of a model called ``tiny``."""
    write(tiny_model, tmp_path / "src" / "tiny")
    return tmp_path / "src" / "tiny"


@pytest.fixture
def twin(other_model: Model, tmp_path: Path) -> Path:
    """The folder of another model that calls itself ``tiny``."""
    folder = tmp_path / "src" / "twin"
    config = {**other_model.config, "name": "tiny"}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / TENSORS).write_bytes(other_model.files[TENSORS])
    return folder


@pytest.fixture
def archive(tiny_model: Model, tmp_path: Path) -> Callable[..., Path]:
    """Make an archive of the model ``tiny``, which embeds it or not."""

    def make(embed_model: bool) -> Path:
        path = tmp_path / f"sun{embed_model:d}.lat"
        if not path.exists():
            sunzip.compress("synthetic:frames=1,size=32", path, model=tiny_model, embed_model=embed_model)
        weights._REGISTERED.clear()
        return path

    return make


def sha256_of(folder: Path) -> str:
    return weights.read_folder(folder).sha256


# --- finding them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny_model", "wavelet_model", "sigma_model"])
def test_a_model_of_each_family_is_found_once_it_was_added(
    family: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(family)
    weights._REGISTERED.clear()
    write(model, tmp_path / "its")
    for wanted in (model.name, model.sha256, model.sha256[:12]):
        with pytest.raises(ModelNotFoundError, match=r"add it .sunzip models add"):
            weights.load(wanted)
    report = sunzip.add_model(tmp_path / "its")
    assert report.as_dict() == {
        "name": model.name,
        "family": model.family,
        "sha256": model.sha256,
        "bytes": model.nbytes,
        "path": str(home / model.sha256),
        "new": True,
        "instead_of": None,
    }
    assert sorted(os.listdir(home)) == [model.sha256]
    for wanted in (model.name, model.sha256, model.sha256[:12]):
        assert weights.load(wanted).files == model.files


def test_archives_find_added_models_by_themselves(
    home: Path, tiny: Path, archive: Callable[..., Path]
) -> None:
    path = archive(embed_model=False)
    with pytest.raises(ModelNotFoundError, match=r"was coded with model tiny: .*sunzip models add"):
        sunzip.open(path)[0]
    sunzip.add_model(tiny, name="mine")
    assert np.isfinite(sunzip.open(path)[0]).any()
    from sunzip.zarr import SunzipCodec

    weights._REGISTERED.clear()
    assert SunzipCodec("mine").model == sha256_of(tiny)


def test_names_of_what_came_with_sunzip_never_mean_another(home: Path, tiny: Path) -> None:
    with pytest.raises(InputError, match=r"^wavelet-12 is the name of a model that came with sunzip"):
        sunzip.add_model(tiny, name=weights.DEFAULT, force=True)
    assert not home.exists()
    # A sunzip that is installed later may bring one of that name.
    sunzip.add_model(tiny)
    added.call(added.entries()[0], weights.DEFAULT)
    assert weights.load(weights.DEFAULT).sha256 != sha256_of(tiny)
    assert weights.load(sha256_of(tiny)).name == "tiny"
    assert weights.names_of_added() == {}
    with pytest.raises(InputError, match=r"^wavelet-12 came with sunzip, and stays"):
        sunzip.remove_model(weights.DEFAULT)


def test_what_came_with_sunzip_need_not_be_added(home: Path) -> None:
    folder = next(p for p in weights.installed() if p.name == weights.DEFAULT)
    report = sunzip.add_model(folder)
    assert (report.name, report.path, report.new) == (weights.DEFAULT, str(folder), False)
    with pytest.raises(InputError, match="keeps that name"):
        sunzip.add_model(folder, name="mine")
    assert not home.exists()
    for wanted in (report.sha256, report.sha256[:12]):
        with pytest.raises(InputError, match="came with sunzip, and stays"):
            sunzip.remove_model(wanted)


def test_two_models_of_one_name_are_both_kept(home: Path, tiny: Path, twin: Path) -> None:
    sunzip.add_model(tiny)
    with pytest.raises(OutputError, match=rf"^tiny is .*{sha256_of(tiny)[:12]}.*--name.*--force"):
        sunzip.add_model(twin)
    assert os.listdir(home) == [sha256_of(tiny)]
    assert sunzip.add_model(twin, name="other").name == "other"
    assert [weights.load(n).sha256 for n in ("tiny", "other")] == [sha256_of(tiny), sha256_of(twin)]
    # Known under a name it keeps that, and is called otherwise only on request.
    assert sunzip.add_model(twin).name == "other"
    report = sunzip.add_model(twin, name="tiny", force=True)
    assert (report.new, report.instead_of) == (False, sha256_of(tiny))
    assert weights.load("tiny").sha256 == sha256_of(twin)
    assert weights.load(sha256_of(tiny)).sha256 == sha256_of(tiny)
    with pytest.raises(ModelNotFoundError, match=rf"added: {sha256_of(tiny)[:12]}, tiny;"):
        weights.load("other")
    with pytest.raises(OutputError, match="tiny is the name of another"):
        sunzip.add_model(tiny)
    assert sunzip.add_model(tiny, name="first").new is False
    assert weights.load("first").sha256 == sha256_of(tiny)


@pytest.mark.parametrize(
    "name",
    ["", " ", "a/b", "..", ".hidden", "a\\b", "two\nlines", "\x1b[31m", "n" * 101, "0123456789ab", "\udcff"],
)
def test_names_that_could_be_something_else_are_refused(home: Path, tiny: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be added as") as error:
        sunzip.add_model(tiny, name=name)
    assert "\n" not in str(error.value)
    assert not home.exists()


def test_the_identity_can_be_demanded(home: Path, tiny: Path, twin: Path) -> None:
    for wrong in (sha256_of(twin), sha256_of(twin)[:12]):
        with pytest.raises(InputError, match=rf"is model tiny with sha256 {sha256_of(tiny)}, not {wrong}"):
            sunzip.add_model(tiny, sha256=wrong)
    for none in ("", "abc", sha256_of(tiny)[:11], sha256_of(tiny) + "0", "x" * 64):
        with pytest.raises(InputError, match="is no sha256"):
            sunzip.add_model(tiny, sha256=none)
    assert not home.exists()
    assert sunzip.add_model(tiny, sha256=sha256_of(tiny)[:12].upper()).new


def test_the_first_digits_must_tell_one_model(home: Path, tiny: Path) -> None:
    sunzip.add_model(tiny)
    begin = sha256_of(tiny)[:12]
    shutil.copytree(home / sha256_of(tiny), home / (begin + "0" * 52))
    for use in (weights.load, sunzip.remove_model):
        with pytest.raises(InputError, match=f"several models begins with {begin}"):
            use(begin)
    assert weights.load(sha256_of(tiny)).name == "tiny"


# --- the folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/sunzip/models"),
        ("linux", {"XDG_DATA_HOME": "data"}, "/home/me/.local/share/sunzip/models"),
        ("linux", {}, "/home/me/.local/share/sunzip/models"),
        ("linux", {"HOME": "~"}, None),
        ("darwin", {"XDG_DATA_HOME": "/data"}, "/home/me/Library/Application Support/sunzip/models"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/sunzip/models"),
        ("win32", {}, "/home/me/AppData/Local/sunzip/models"),
        ("linux", {"SUNZIP_MODELS": "~/models"}, "/home/me/models"),
        ("linux", {"SUNZIP_MODELS": ""}, "/home/me/.local/share/sunzip/models"),
        ("linux", {"SUNZIP_MODELS": "s3://bucket/models"}, None),
    ],
)
def test_the_folder_is_where_the_platform_keeps_data(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    platform: str,
    environment: dict[str, str],
    expected: str | None,
) -> None:
    for name in ("SUNZIP_MODELS", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    found = added.folder()
    assert (found and found.as_posix()) == expected
    if expected is None:
        assert added.entries() == []
        with pytest.raises(
            OutputError, match=r"are kept on this machine, and .*name a folder by SUNZIP_MODELS"
        ):
            sunzip.add_model(tiny)


def test_the_variable_is_read_when_it_is_needed(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sunzip.add_model(tiny)
    monkeypatch.setenv(added.VARIABLE, str(home.parent / "others"))
    with pytest.raises(ModelNotFoundError):
        weights.load("tiny")
    monkeypatch.setenv(added.VARIABLE, str(home))
    assert weights.load("tiny").name == "tiny"


def test_a_folder_that_is_none_matters_to_nobody_else(home: Path, tiny: Path) -> None:
    home.parent.mkdir()
    home.write_text("no folder")
    assert weights.load().name == weights.DEFAULT
    with pytest.raises(ModelNotFoundError):
        weights.load("tiny")
    with pytest.raises(OutputError, match=f"{home}.*: cannot be written: .*SUNZIP_MODELS"):
        sunzip.add_model(tiny)


def test_what_is_there_is_found_on_a_disk_that_is_read_only(
    home: Path, tiny: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sunzip.add_model(tiny)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    assert weights.load("tiny").sha256 == sha256_of(tiny)
    assert not sunzip.add_model(tiny).new
    with pytest.raises(
        OutputError, match=rf"^{home}.*: cannot be written: Read-only .*; SUNZIP_MODELS can name"
    ):
        sunzip.add_model(twin, name="other")
    with pytest.raises(OutputError, match=rf"^{home}.*: cannot be removed: Read-only file system"):
        sunzip.remove_model("tiny")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_can_be_read(home: Path, tiny: Path, twin: Path) -> None:
    sunzip.add_model(tiny)
    for folder in (home / sha256_of(tiny), home):
        folder.chmod(0o555)
    try:
        assert weights.load("tiny").name == "tiny"
        assert not sunzip.add_model(tiny).new
        with pytest.raises(OutputError, match="cannot be written: Permission denied"):
            sunzip.add_model(twin, name="other")
        with pytest.raises(OutputError, match="cannot be removed: Permission denied"):
            sunzip.remove_model("tiny")
        home.chmod(0)
        with pytest.raises(ModelNotFoundError):
            weights.load("tiny")
        assert weights.load().name == weights.DEFAULT
    finally:
        for folder in (home, home / sha256_of(tiny)):
            folder.chmod(0o755)


def test_a_disk_that_takes_nothing_leaves_nothing(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=f"^{home}.*: cannot be written: No space left on device"):
        sunzip.add_model(tiny)
    assert os.listdir(home) == []


# --- what breaks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["config", "tensors", "gone", "other", "large", "file"])
def test_damage_is_told_hides_no_other_and_is_mended_by_adding_again(
    home: Path, tiny: Path, twin: Path, request: pytest.FixtureRequest, broken: str
) -> None:
    command: Callable[..., Result] = request.getfixturevalue("sunzip")
    sunzip.add_model(tiny)
    sunzip.add_model(twin, name="other")
    folder = home / sha256_of(tiny)
    whole = (folder / TENSORS).read_bytes()
    match broken:
        case "config":
            (folder / CONFIG).write_text("{")
        case "tensors":
            (folder / TENSORS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "gone":
            (folder / TENSORS).unlink()
        case "other":
            (folder / CONFIG).write_bytes((twin / CONFIG).read_bytes())
        case "large":
            os.truncate(folder / CONFIG, 1 << 30)
        case "file":
            (folder / CONFIG).unlink()
            (folder / CONFIG).mkdir()
    for wanted in ("tiny", folder.name):
        with pytest.raises(DamagedError, match=rf"^{folder}: is not the model any more .*add it again"):
            weights.load(wanted)
    assert weights.load("other").sha256 == sha256_of(twin)
    rows = json.loads(command("models", "list", "--json").stdout)["models"]
    assert [row["name"] for row in rows if "problem" in row] == ["tiny"]
    assert f"\ntiny: {folder}: is not the model any more" in command("models", "list").stdout
    if broken == "file":
        with pytest.raises(OutputError, match=f"^{folder}: cannot be written: Is a directory"):
            sunzip.add_model(tiny)
        return
    sunzip.add_model(tiny)
    assert weights.load("tiny").sha256 == folder.name
    assert sorted(os.listdir(folder)) == [CONFIG, TENSORS, "name.txt"]


def test_a_list_of_many_models_keeps_none_of_them(
    home: Path, tiny_model: Model, request: pytest.FixtureRequest
) -> None:
    command: Callable[..., Result] = request.getfixturevalue("sunzip")
    command("models", "list")  # imports
    arrays = {**load(tiny_model.files[TENSORS]), "more": np.zeros(1 << 20, np.uint8)}
    for n in range(3):
        weights.add(pack({**tiny_model.config, "name": f"tiny-{n}"}, arrays))
    tracemalloc.start()
    try:
        rows = json.loads(command("models", "list", "--json").stdout)["models"]
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [row["name"] for row in rows if row["added"]] == ["tiny-0", "tiny-1", "tiny-2"]
    assert left < 1 << 20


def test_what_is_no_entry_is_passed_over(home: Path, tiny: Path) -> None:
    sunzip.add_model(tiny)
    (home / "mine").mkdir()
    (home / ("a" * 64)).write_text("a file")
    (home / ("b" * 64)).symlink_to(home / "gone")
    (home / ("c" * 64)).mkdir()
    (home / ("c" * 64) / "name.txt").mkdir()
    os.mkfifo(home / ("c" * 64) / CONFIG)
    (home / ("d" * 64)).mkdir()
    (home / ("d" * 64) / "name.txt").write_bytes(b"\xff" * 2000)
    assert weights.load("tiny").sha256 == sha256_of(tiny)
    for digit in "abcd":
        with pytest.raises(DamagedError, match="is not the model any more"):
            weights.load(digit * 64)


def test_removing_takes_the_model_and_nothing_else(home: Path, tiny: Path, twin: Path) -> None:
    for name in ("first", None):
        sunzip.add_model(tiny, name="first")
        sunzip.add_model(twin, name="second", force=True)
        assert sunzip.remove_model(name or sha256_of(tiny)[:12]) == home / sha256_of(tiny)
        assert os.listdir(home) == [sha256_of(twin)]
        with pytest.raises(ModelNotFoundError):
            weights.load("first")
    for gone in ("first", sha256_of(tiny), "..", ""):
        with pytest.raises(ModelNotFoundError, match="only those that were added can be removed"):
            sunzip.remove_model(gone)
    (home / sha256_of(twin) / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md in it is not of sunzip"):
        sunzip.remove_model("second")
    assert weights.load("second").sha256 == sha256_of(twin)
    (home / sha256_of(twin)).rename(home.parent / "elsewhere")
    (home / sha256_of(twin)).symlink_to(home.parent / "elsewhere")
    assert weights.load("second").sha256 == sha256_of(twin)
    sunzip.remove_model("second")
    assert os.listdir(home) == []
    assert (home.parent / "elsewhere" / CONFIG).exists()


# --- several at once -------------------------------------------------------------------------------------

ADD = """
import sys, time
from sunzip import weights
from pathlib import Path
models = [weights.read_folder(Path(p)) for p in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.readline()
for model in models * 20:
    weights.add(model)
    assert weights.load(model.name).sha256 == model.sha256
"""


def test_two_that_add_the_same_at_once_do_not_disturb_each_other(home: Path, tiny: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(tiny)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
    for run in runs:
        _, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
    assert os.listdir(home) == [sha256_of(tiny)]
    assert weights.load("tiny").sha256 == sha256_of(tiny)


def test_another_may_be_faster(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(old: Path, new: Path) -> None:
        shutil.copytree(old, new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    sunzip.add_model(tiny)
    assert os.listdir(home) == [sha256_of(tiny)]
    assert weights.load("tiny").sha256 == sha256_of(tiny)


def test_a_name_that_two_take_at_once_is_nobodys(
    home: Path, tiny: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = added.put

    def meanwhile(*args: object) -> None:
        monkeypatch.setattr(added, "put", put)
        sunzip.add_model(twin)
        put(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(added, "put", meanwhile)
    with pytest.raises(OutputError, match="tiny is the name of another model"):
        sunzip.add_model(tiny)
    assert weights.load("tiny").sha256 == sha256_of(twin)
    assert weights.load(sha256_of(tiny)).sha256 == sha256_of(tiny)


def test_of_two_of_a_name_it_means_the_last_so_called(home: Path, tiny: Path, twin: Path) -> None:
    for folder in (tiny, twin):
        sunzip.add_model(folder, name=folder.name)
        added.call(added.place(sha256_of(folder)), "both")
    for late, early in ((tiny, twin), (twin, tiny)):
        for folder, when in ((late, 2e9), (early, 1e9)):
            os.utime(home / sha256_of(folder) / "name.txt", (when, when))
        assert weights.load("both").sha256 == sha256_of(late)
        assert weights.names_of_added() == {sha256_of(late): "both"}


KILLED = """
import os, signal, sys
from pathlib import Path
from sunzip import added, weights
model = weights.read_folder(Path(sys.argv[1]))
write = added.write_through
def broken(path, data):
    if path.name == weights.TENSORS:
        write(path, data[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
added.write_through = broken
weights.add(model)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells what a killed run left")
def test_an_add_that_was_killed_is_no_model_and_does_not_stay(home: Path, tiny: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny)], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert run.returncode == -signal.SIGKILL
    assert os.listdir(home) == [f"{sha256_of(tiny)}.partial"]
    with pytest.raises(ModelNotFoundError, match="installed: hyperprior-12, wavelet-12; add it"):
        weights.load("tiny")
    assert sunzip.add_model(tiny).new
    assert os.listdir(home) == [sha256_of(tiny)]
    assert weights.load("tiny").sha256 == sha256_of(tiny)


# --- where they come from --------------------------------------------------------------------------------


def test_archives_give_the_model_that_they_hold(home: Path, tiny: Path, archive: Callable[..., Path]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"sun0\.lat: does not hold its model, tiny .*--embed-model"):
        sunzip.add_model(archive(embed_model=False))
    assert not home.exists()
    path = archive(embed_model=True)
    report = sunzip.add_model(path, sha256=sha256_of(tiny))
    assert (report.name, report.new) == ("tiny", True)
    with fsspec.open("memory://models/sun.lat", "wb") as file:
        file.write(path.read_bytes())
    assert sunzip.add_model("memory://models/sun.lat").sha256 == report.sha256
    assert sunzip.add_model(f"file://{path}").sha256 == report.sha256
    data = bytearray(path.read_bytes())
    at = data.index((tiny / TENSORS).read_bytes()[-100:])
    data[at] ^= 1
    broken = path.with_name("broken.lat")
    broken.write_bytes(data)
    with pytest.raises(DamagedError, match=r"broken\.lat: .*is damaged"):
        sunzip.add_model(broken)
    with pytest.raises(InputError, match="no such file"):
        sunzip.add_model(path.with_name("gone.lat"))


def test_folders_at_urls_and_in_zips(home: Path, tiny: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in (CONFIG, TENSORS):
        memory.pipe(f"/their/tiny/{name}", (tiny / name).read_bytes())
    assert sunzip.add_model("memory://their/tiny").sha256 == sha256_of(tiny)
    assert sunzip.add_model("memory://their/tiny/").sha256 == sha256_of(tiny)
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in (CONFIG, TENSORS):
            file.write(tiny / name, f"tiny/{name}")
    assert sunzip.add_model(f"zip://tiny::{tmp_path / 'tiny.zip'}").sha256 == sha256_of(tiny)
    with pytest.raises(ModelNotFoundError, match=r"no model there \(config\.json is missing\)"):
        sunzip.add_model(f"zip://::{tmp_path / 'tiny.zip'}")
    memory.rm(f"/their/tiny/{TENSORS}")
    with pytest.raises(ModelNotFoundError, match=r"no model there \(model\.safetensors is missing\)"):
        sunzip.add_model("memory://their/tiny")
    with pytest.raises(InputError, match="cannot be opened"):
        sunzip.add_model("nowhere://their/tiny")


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that have had enough hang up."""


@pytest.fixture
def served() -> Iterator[Callable[[Callable[..., BaseHTTPRequestHandler]], str]]:
    """Serve HTTP by a handler; returns the URL."""
    servers = []

    def serve(handler: Callable[..., BaseHTTPRequestHandler]) -> str:
        server = _Server(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _Endless(BaseHTTPRequestHandler):
    """Says that files are small and sends without end."""

    sent = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(206)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(400):
            self.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            type(self).sent += 1 << 16
        self.wfile.write(b"0\r\n\r\n")


def test_servers_need_not_know_ranges(home: Path, tiny: Path, served: Callable[..., str]) -> None:
    pytest.importorskip("aiohttp")
    url = served(partial(_Quiet, directory=str(tiny.parent)))
    assert sunzip.add_model(f"{url}/tiny").sha256 == sha256_of(tiny)
    with pytest.raises(ModelNotFoundError, match=f"^{url}/gone: no model there"):
        sunzip.add_model(f"{url}/gone")


def test_servers_that_send_without_end_are_left(home: Path, served: Callable[..., str]) -> None:
    pytest.importorskip("aiohttp")
    _Endless.protocol_version = "HTTP/1.1"
    url = served(_Endless)
    with pytest.raises(InputError, match=rf"{url}/m/config\.json: is longer than the 1048576 bytes"):
        sunzip.add_model(f"{url}/m")
    assert _Endless.sent < 20 << 20
    assert not home.exists()


def test_bombs_in_zips_are_not_unpacked(home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/config.json", bytes(1 << 26))
    with pytest.raises(InputError, match="is longer than the 1048576 bytes"):
        sunzip.add_model(f"zip://m::{tmp_path / 'bomb.zip'}")


@pytest.mark.parametrize("family", ["tiny_model", "wavelet_model"])
def test_what_does_not_load_is_not_added(
    family: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(family)
    weights._REGISTERED.clear()
    folder = tmp_path / "broken"

    def refused(config: dict[str, object], tensors: bytes, error: type[Exception], match: str) -> None:
        write(model, folder)
        (folder / CONFIG).write_text(json.dumps({**model.config, **config}))
        (folder / TENSORS).write_bytes(tensors)
        with pytest.raises(error, match=match) as caught:
            sunzip.add_model(folder)
        assert "\n" not in str(caught.value)
        assert not home.exists()

    from safetensors.numpy import load, save

    whole = model.files[TENSORS]
    refused({}, whole[: len(whole) // 2], DamagedError, "is damaged")
    refused({}, b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.", DamagedError, "is damaged")
    refused({"version": 2}, whole, UnsupportedError, "update sunzip")
    refused({"family": "fresh"}, whole, UnsupportedError, f"^{folder}: was not added: .*unknown to")
    refused({"stabiliser": {}}, whole, DamagedError, "stabiliser")
    refused({"name": "a/b"}, whole, InputError, "cannot be added as 'a/b': .*--name")
    refused({"name": weights.DEFAULT}, whole, InputError, "is the name of a model that came with sunzip")
    arrays = load(whole)
    # The last is of a network of floats, which decoding alone would ask for.
    for name in (min(arrays), max(arrays), *[n for n in arrays if n.startswith("network.")][:1]):
        refused(
            {},
            save({k: v for k, v in arrays.items() if k != name}),
            DamagedError,
            f"^{folder}: was not added: ",
        )


def test_what_is_neither_is_said_to_be_so(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is neither an archive nor a folder with config\.json"):
        sunzip.add_model(tmp_path / "a.zip")
    for none in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ModelNotFoundError, match=rf"^{none}: no model there \(config\.json is missing\)"):
            sunzip.add_model(none)
