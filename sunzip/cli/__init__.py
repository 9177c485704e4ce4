"""The command line: `sunzip` and its commands.

Nothing heavier than click is imported before a command runs, so that help, info and errors come at once.
"""

from __future__ import annotations

import itertools
from typing import NoReturn

import click

from sunzip.cli import bench, diff, export, features, forecast, generate, jobs, looks, models, study, train
from sunzip.cli.program import Program, need_command, run

_LIBRARIES = ("numpy", "torch", "zarr", "numcodecs", "constriction", "astropy", "h5py", "fsspec")


def _versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from sunzip import __version__
    from sunzip.archive import FORMAT
    from sunzip.display import fields
    from sunzip.weights import CONFIG_VERSION

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    rows = [
        ("archive format", str(FORMAT)),
        ("model configuration", str(CONFIG_VERSION)),
        ("python", platform.python_version()),
        *((name, of(name)) for name in _LIBRARIES),
    ]
    click.echo("\n".join([f"sunzip {__version__}", *fields(rows)]))
    ctx.exit()


@click.group(
    cls=Program,
    subcommand_metavar="COMMAND [ARGS]...",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    # \b keeps click from joining the lines.
    epilog="""\b
Exit codes: 0 done, 1 bad input or target, 2 usage, 3 damaged archive,
4 model not found, 5 a difference in `diff`, or wrong pixels in `evaluate` or
`study faults`, 130 interrupted.

\b
Completion of commands and options, in bash (or zsh_source, fish_source):
  eval "$(_SUNZIP_COMPLETE=bash_source sunzip)"
""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_versions,
    help="Print the versions of sunzip, its formats and its libraries.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error.")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Compress images of the Sun with learned models, and get them back."""
    need_command(ctx)


models.models.add_command(export.export)
_SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Archives": (jobs.compress, jobs.append, jobs.decompress),
    "What is in them": (looks.info, looks.show, jobs.evaluate, diff.diff, looks.verify, looks.repair),
    "Latents": (features.features, forecast.forecast),
    "Models": (models.models, train.train, generate.generate),
    "Before you begin": (study.study, bench.bench, jobs.synth),
}
program.sections = {title: [str(c.name) for c in found] for title, found in _SECTIONS.items()}
for _command in itertools.chain(*_SECTIONS.values()):
    program.add_command(_command)


def main() -> NoReturn:
    """Run the command line; the entry point `sunzip`."""
    run(program)
