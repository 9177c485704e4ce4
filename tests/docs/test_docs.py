"""Hold the documentation to what sunzip does: examples run, links lead somewhere, references are complete.

The examples of a page run from top to bottom in one folder with `sdoml.zarr`, `sdoml_hmi.zarr`, `sdoml_v1`,
`fits` and `cube.h5`: eight frames of 64² pixels from 2014-01-01. Fences ``python`` run as Python, or as a
doctest where they show a prompt; in fences ``console`` each line ``$ sunzip …`` runs through the real
command line and must exit with 0, or with what a following ``$ echo $?`` shows. Where output is shown, it
must be what is printed, ``…`` standing for anything. Fences of the kinds in `NOT_RUN` do not run.
"""

from __future__ import annotations

import doctest
import inspect
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click
import pytest

import sunzip
from sunzip.cli import program
from sunzip.sinks import open_sink
from sunzip.sources.series import join
from sunzip.sources.synthetic import Synthetic

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*/README.md")])
NOT_RUN = {"sh", "text", "json", "bibtex", "hex"}
AIA = ("94A", "131A", "171A", "193A", "211A", "304A", "335A", "1600A", "1700A")


@dataclass
class Fence:
    """One fenced block of a page."""

    kind: str
    line: int
    text: str


def fences(page: Path) -> Iterator[Fence]:
    lines = page.read_text(encoding="utf-8").splitlines()
    begin = None
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if begin is None:
                begin = number
            else:
                yield Fence(lines[begin - 1][3:].strip(), begin, "\n".join(lines[begin : number - 1]) + "\n")
                begin = None
    assert begin is None, f"{page}:{begin}: a fence without end"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_EXAMPLES = [page for page in PAGES if any(f.kind in ("python", "console") for f in fences(page))]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for path, layout, channels in (
        ("sdoml.zarr", "sdoml-v2", AIA),
        ("sdoml_hmi.zarr", "sdoml-v2", ("Bx", "By", "Bz")),
        ("sdoml_v1", "sdoml-v1", ("171A", "Bz")),
        ("fits", "fits", ("171A", "193A", "Bz")),
        ("cube.h5", "hdf5", ("171A",)),
    ):
        series = join([Synthetic(frames=8, size=64, start="2014-01-01", channels=channels)])
        with open_sink(
            folder / path, layout, channels=channels, shape=series.shape, scale=series.scale
        ) as sink:
            sink.write(series.read(0, len(series)))
    return folder


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_run(
    page: Path,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for fence in fences(page):
        where = f"{name_of(page)}:{fence.line}"
        if fence.kind == "console":
            run_console(fence.text, where, capfd)
        elif fence.kind == "python" and ">>> " in fence.text:
            test = doctest.DocTestParser().get_doctest(fence.text, names, where, str(page), fence.line)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            failed = runner.run(test, clear_globs=False).failed
            assert not failed, f"{where}:\n{capfd.readouterr().out}"
            names |= test.globs
        elif fence.kind == "python":
            exec(compile("\n" * fence.line + fence.text, str(page), "exec"), names)


def run_console(text: str, where: str, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[str, list[str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            assert steps, f"{where}: output before any command"
            steps[-1][1].append(line.rstrip())
    code = 0
    for number, (command, shown) in enumerate(steps):
        if command == "echo $?":
            assert shown == [str(code)], f"{where}: exit code {code}, not {shown}"
            continue
        words = shlex.split(command, comments=True)
        assert words[0] == "sunzip", f"{where}: only sunzip runs in a console; fence {command!r} as sh"
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            program.main(words[1:])
        code = int(exit_.value.code or 0)
        printed = "".join(capfd.readouterr())
        checked = number + 1 < len(steps) and steps[number + 1][0] == "echo $?"
        assert checked or code == 0, f"{where}: {command}: exit code {code}: {printed}"
        if shown:
            pattern = ".*".join(map(re.escape, "\n".join(shown).strip().split("…")))
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{where}: {command} prints\n{printed}"


def test_fences_are_of_known_kinds() -> None:
    kinds = {(name_of(p), f.line): f.kind for p in PAGES for f in fences(p)}
    unknown = {at: kind for at, kind in kinds.items() if kind not in NOT_RUN | {"python", "console"}}
    assert not unknown


def anchors(page: Path) -> set[str]:
    """Return the fragments of a page's headings, as GitHub makes them."""
    code = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+?) *$", code.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, fragment = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        ours = there.is_relative_to(ROOT) and there.exists() and (not fragment or fragment in anchors(there))
        if not target.startswith("https://") and not ours:
            broken.append(target)
    assert not broken


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if not link.startswith("https://")]
    assert not set(PAGES) - reached


def test_cli_reference_is_current() -> None:
    spec = spec_from_file_location("cli_reference", ROOT / "scripts" / "cli_reference.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python scripts/cli_reference.py"


def test_cli_reference_has_every_option_and_tells_switches_from_those_with_a_value() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    waiting: list[tuple[str, click.Command]] = [("sunzip", program)]
    while waiting:
        path, command = waiting.pop()
        text = page.split(f"\n## {path}\n")[1].split("\n## ")[0]
        for option in (p for p in command.params if isinstance(p, click.Option)):
            names = ", ".join([*option.opts, *option.secondary_opts])
            found = re.search(rf"^\| `{re.escape(names)}( [^`]+)?` \|", text, re.MULTILINE)
            assert found, f"{path} {names}"
            assert bool(found[1]) is not option.is_flag, f"{path} {names}"
            row = text[found.start() :].partition("\n")[0]
            default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[2:4])
            assert (default == "(required)") is option.required, f"{path} {names}"
            assert meaning, f"{path} {names}"
            if isinstance(option.type, click.IntRange):
                assert re.search(rf"\b{option.type.min}\b", row), f"{path} {names}"
        if isinstance(command, click.Group):
            waiting += [(f"{path} {name}", below) for name, below in command.commands.items()]


def test_every_command_that_is_named_exists() -> None:
    wrong = []
    for path in [*PAGES, *ROOT.glob("sunzip/**/*.py")]:
        for words in re.findall(r"`sunzip ([a-z]+(?: [a-z]+)?)\b", path.read_text(encoding="utf-8")):
            command: click.Command | None = program
            for word in words.split():
                if isinstance(command, click.Group):
                    command = command.commands.get(word)
            if command is None:
                wrong.append(f"{name_of(path)}: sunzip {words}")
    assert not wrong


def test_python_reference_has_every_name_and_parameter() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^    sunzip\.(\w+)\((.*?)\)(?: -> [^\n]*)?$", page, re.MULTILINE | re.DOTALL))
    for name in sunzip.__all__:
        thing = getattr(sunzip, name)
        if callable(thing) and name != "Sun":
            assert " ".join(stated[name].split()) == parameters(thing)
        else:
            assert f"`sunzip.{name}`" in page


def parameters(function: object) -> str:
    """Return a signature without its annotations, as the page has it."""
    assert callable(function)
    bare = [
        p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(bare)).strip("()")


def test_layers_of_the_architecture_page_are_those_of_the_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", page, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [
        re.findall(r"sunzip\.(\w+)", la) for la in layers
    ]


def test_set_up_takes_each_python_that_is_tested_where_no_other_is(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    matrix = (ROOT / "scripts" / "matrix.sh").read_text(encoding="utf-8")
    names = [f"python{version}" for version in sorted(set(re.findall(r'"(3\.\d+) ', matrix)))]
    assert names
    for name in names:
        (folder := tmp_path / name).mkdir()
        (folder / name).write_text(f"#!{bash}\n", encoding="utf-8")  # to what it is asked it says yes
        (folder / name).chmod(0o755)
        found = subprocess.run(
            [bash, "-c", "source scripts/_setup.sh && find_python"],
            cwd=ROOT,
            env={"PATH": str(folder)},
            capture_output=True,
            text=True,
        )
        assert (found.stdout, found.stderr) == (f"{name}\n", "")


def test_costs_of_the_codec_page_are_those_of_the_network() -> None:
    torch = pytest.importorskip("torch")
    from sunzip.nn.hyperprior import Hyperprior

    network, side = Hyperprior().eval(), 64
    macs = [0]

    def count(layer: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        macs[0] += layer.weight.numel() * (output.shape[-2] * output.shape[-1] if output.ndim == 4 else 0)

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    mask = torch.ones(1, 12)
    found = {}
    with torch.inference_mode():
        y = network.analyse(torch.zeros(1, 12, side, side), mask)
        found["analysis"], macs[0] = macs[0], 0
        network.hyper_analyse(y)
        found["hyper-analysis"], macs[0] = macs[0], 0
        network.synthesise(y, mask)
        found["synthesis"] = macs[0]
    found["hyper-synthesis"], grid = 0, side // 64
    for layer in network.export_hyper_synthesis().layers:
        found["hyper-synthesis"] += layer.weight.size * grid**2
        grid *= layer.shuffle
    page = (ROOT / "docs" / "explanation" / "codec.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+) \|.*\| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    stated = {name: (int(per_pixel), int(per_sample)) for name, per_pixel, per_sample in rows}
    assert stated == {k: (round(n / side**2), round(n / side**2 / 12)) for k, n in found.items()}


def test_cards_tell_how_long_models_were_trained() -> None:
    config = json.loads((ROOT / "models" / "wavelet-12" / "config.json").read_text(encoding="utf-8"))
    card = (ROOT / "models" / "wavelet-12" / "README.md").read_text(encoding="utf-8")
    assert f" {config['training']['steps']:,} more, at commit" in card
    limits = [
        set(
            re.findall(
                r"--precision bf16 --time-limit (\d+)", (ROOT / "docs" / page).read_text(encoding="utf-8")
            )
        )
        for page in ("explanation/sigma-vae-256.md", "how-to/train.md", "how-to/reproduce-the-paper.md")
    ]
    assert limits[0]
    assert limits[0] == limits[1] == limits[2]


def test_readme_has_the_places_that_benchmarks_fill() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("main-job", "linear-cost"):
        assert text.count(f"<!-- table:{name} -->") == 1
    assert text.count("<!-- /table:") == text.count("<!-- table:")


def test_every_table_of_the_benchmarks_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.tables import PAGES, TABLES

    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in TABLES:
        assert text.count(f"<!-- table:{name} -->") == 1, name
    assert text.count("<!-- /table:") == text.count("<!-- table:")
