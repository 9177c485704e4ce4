import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from sunzip.errors import InputError, needing, without_secrets

_ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "package"),
    [("sklearn", "scikit-learn"), ("yaml", "PyYAML"), ("matplotlib.figure", "matplotlib"), ("dask", "dask")],
)
def test_a_missing_package_is_named_with_who_needs_it_and_its_extra(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught, needing("plot", "a test needs"):
        __import__(module)
    assert str(caught.value) == (
        f"a test needs {package}, which is not installed; in a checkout of sunzip: pip install '.[plot]'"
    )


@pytest.mark.parametrize(
    ("package", "extra", "line"),
    [
        ("torch", "torch", "import sunzip.torch"),
        ("xarray", "xarray", "from sunzip import xarray"),
        ("torch", "train", "cli.program.main(['train', 'a', '--out', 'b', '--model', 'wavelet'])"),
        ("torch", "torch", "extractors.load_resnet('weights')"),
    ],
)
def test_what_as_a_whole_needs_an_optional_package_names_its_extra(
    package: str, extra: str, line: str
) -> None:
    code = f"import sys\nsys.modules['{package}'] = None\n"
    code += "from sunzip import cli\nfrom sunzip.studies import extractors\n"
    # Importers, as pytest's importorskip, pass over what cannot be imported.
    code += f"try:\n    {line}\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True)
    said = (done.stdout or done.stderr).removeprefix("sunzip: error: ")
    assert said.endswith(
        f" {package}, which is not installed; in a checkout of sunzip: pip install '.[{extra}]'\n"
    )


def test_needs_within_needs_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with (
        pytest.raises(InputError, match=r"^a part needs torch, "),
        needing("plot", "a whole needs"),
        needing("torch", "a part needs"),
    ):
        __import__("torch")


def test_a_package_that_is_there_and_fails_is_not_called_missing() -> None:
    with pytest.raises(InputError) as caught, needing("plot", "a test needs"):
        from email import no_such_name  # type: ignore[attr-defined] # noqa: F401
    assert str(caught.value).startswith(
        "a test needs packages of which one cannot be imported here (cannot import name 'no_such_name' from "
    )
    assert str(caught.value).endswith("; install them again; in a checkout of sunzip: pip install '.[plot]'")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:word@host:80/a.lat: is", "https://host:80/a.lat: is"),
        ("https://token@host/a.lat", "https://host/a.lat"),
        ("sftp://me:w@rd@host/a.lat", "sftp://host/a.lat"),
        ("https://host?by=me@home&sig=0", "https://host?by=me@home&sig=…"),
        ("github://org:repo@main/a.lat", "github://org:repo@main/a.lat"),
        ("zip://a.lat::sftp://me:w%40rd@host/a@b.zip", "zip://a.lat::sftp://host/a@b.zip"),
        (
            "a https://h/a?X-Amz-Signature=0f%2F&v=2 + https://h/b",
            "a https://h/a?X-Amz-Signature=…&v=2 + https://h/b",
        ),
        ("https://h/a.lat?sv=1&sig=a%3D: is", "https://h/a.lat?sv=1&sig=…: is"),
        ("abfs://container@account/a.lat", "abfs://container@account/a.lat"),
        ("https://h:8080/a@b?versionId=3", "https://h:8080/a@b?versionId=3"),
    ],
)
def test_what_lets_others_in_is_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == str(InputError(text)) == shown


@pytest.mark.parametrize("part", ["?sig", "?", "://a:", "&sig=:"])
def test_what_strangers_may_have_in_messages_is_looked_through_at_once(part: str) -> None:
    begin = time.process_time()
    without_secrets(part * 20_000)
    assert time.process_time() - begin < 1


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), needing("plot", "a test needs"):
        1 / 0


def test_packages_that_need_their_docstrings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def imports() -> None:
        with needing("plot", "a test needs"):
            raise TypeError("unsupported operand")

    with pytest.raises(TypeError):
        imports()
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=2))
    with pytest.raises(InputError, match=r"without docstrings .*run Python without -OO"):
        imports()


def test_every_extra_that_a_message_names_exists() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for folder in ("sunzip", "benchmarks")
        for path in (_ROOT / folder).rglob("*.py")
        for extra in re.findall(r"""(?:needing|how_to_install)\(["'](\w+)""", path.read_text())
    }
    assert len(named) > 5
    assert named <= project["optional-dependencies"].keys()


def test_errors_can_be_named_before_anything_is_loaded() -> None:
    # A handler is looked at when something else failed, too, before any name of sunzip was used.
    code = (
        "import sunzip\ntry:\n    {}['']\n"
        "except sunzip.errors.SunzipError:\n    pass\nexcept KeyError:\n    print('it')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("it\n", "")


def test_type_checkers_know_what_names_there_are(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text("import sunzip\n\nsunzip.open, sunzip.errors, sunzip.zarr\nsunzip.opne\n")
    own = str(_ROOT / "sunzip" / "__init__.py")
    options = ["--follow-imports=skip", "--strict", "--cache-dir", str(tmp_path), "--config-file", ""]
    said, wrong, _ = mypy.run([*options, own, str(program)])
    assert re.findall(r"program.py:(\d+): error: (.*)", said) == [
        ("4", 'Module has no attribute "opne"  [attr-defined]')
    ], said + wrong
