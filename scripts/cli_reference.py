"""Write docs/reference/cli.md from the commands themselves, so that the reference cannot say anything else.

Run as ``python scripts/cli_reference.py``; a test holds the page against what this gives.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from sunzip.cli import program

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"

_HEAD = """\
# The command line

<!-- Written by scripts/cli_reference.py; do not edit. -->

Results go to stdout: text, or one JSON object with `--json`. Progress goes to stderr, if that is a terminal.
An error is one line on stderr; `--debug`, anywhere on the line, adds the traceback. Nothing that exists is
replaced without `--force`, and with it only what an earlier run of sunzip wrote: a file that says so, or a
folder of nothing else; a table of features, which has no place for that, if its columns are exactly those
that sunzip writes. A result has its name only once it is complete.

| exit code | meaning |
|---:|---|
| 0 | done |
| 1 | the input or the target of a valid command cannot be used |
| 2 | the command line itself is wrong |
| 3 | an archive or a model is damaged, or newer than this sunzip; or pixels are wrong on this machine |
| 4 | a model is not on this machine |
| 5 | `diff` found that two do not hold the same, `evaluate` found pixels beyond the archive's \
bounds (is the source what it was made of?), or `study faults` decoded frames that are not what was sent \
(a defect: report it) |
| 130 | interrupted by Ctrl-C; by SIGTERM 143, by SIGHUP 129 |

Every command has `-h` and `--help`. Times are UTC, as `2014-01-31T06:00`. Spans are a number and a unit, as
`12min`, `6h`, `1d`, `30s`. The channels are `94A 131A 171A 193A 211A 304A 335A 1600A 1700A Bx By Bz`; other
customary spellings, as `0171` and `bz`, are understood. `sunzip --help` tells how a shell learns to complete
commands and options.
"""


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and those below it, with their full names."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, f"{path} {name}")


def section(path: str, command: click.Command) -> Iterator[str]:
    """Yield the lines on one command."""
    usage = command.collect_usage_pieces(click.Context(command, info_name=path))
    yield f"\n## {path}\n"
    yield f"    {' '.join([path, *usage])}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    if options:
        yield "| option | default | meaning |"
        yield "|---|---|---|"
        yield from map(row, options)


def row(option: click.Option) -> str:
    """Return the line of one option. Click's own help text differs between its versions; this does not."""
    parts = [(option.help or "").rstrip(".")]
    value = option.metavar or ""
    if isinstance(option.type, click.Choice):
        value = "|".join(option.type.choices)
    elif isinstance(option.type, click.types.IntParamType):
        value = value or "N"
    elif not option.is_flag:
        # Without one it would look like a switch.
        value = value or ("X" if isinstance(option.type, click.types.FloatParamType) else "NAME")
    if isinstance(option.type, click.IntRange) and not re.search(rf"\b{option.type.min}\b", parts[0]):
        low, high = option.type.min, option.type.max
        parts.append(f"at least {low}" if high is None else f"{low} to {high}")
    # A bare | would end the table's cell.
    names = ", ".join([*option.opts, *option.secondary_opts])
    name = " ".join(filter(None, [names, value])).replace("|", "\\|")
    default = "(required)" if option.required else option.default if option.show_default else ""
    if option.secondary_opts:
        default = f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    return f"| `{name}` | {default} | {'; '.join(filter(None, parts))} |"


def page() -> str:
    """Return the whole page."""
    lines = [_HEAD.rstrip()]
    for path, command in commands(program, "sunzip"):
        lines += section(path, command)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
