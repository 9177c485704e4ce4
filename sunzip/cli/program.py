"""The program around every command: a line for each error, its exit code, what Ctrl-C and signals do."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from sunzip.cli.output import one_line
from sunzip.errors import InputError, SunzipError

NAME = "sunzip"

#: What a shell reports of a program that Ctrl-C ended, as click tells of it before a command runs.
INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C, or another request to end; its text says what is left and how to go on.

    Parameters
    ----------
    left
        What is left.
    by
        What was raised at the request, with the number of the signal unless that is Ctrl-C's.
    """

    def __init__(self, left: str, by: KeyboardInterrupt) -> None:
        number = next((a for a in by.args if isinstance(a, int)), int(signal.SIGINT))
        how = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        super().__init__(f"interrupted{how}; {left}")
        #: What a shell reports of a program that the signal ended.
        self.exit_code = 128 + number


class Program(click.Group):
    """The group of all commands. `main` never returns: it exits with the code that design and docs state."""

    #: Names of commands under what they are for, in the order in which the help shows them.
    sections: Mapping[str, Sequence[str]] = {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what they are for, as the alphabet mixes those that go together."""
        width = max(map(len, self.commands))
        for title, names in self.sections.items():
            rows = [(name, self.commands[name].get_short_help_str(90)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C becomes `Interrupted`, before click can say something else of it."""
        try:
            _need_folder()
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # What could not be cleaned up is noted where that was tried.
            left = "; ".join(getattr(error, "__notes__", [])) or "nothing was left behind"
            raise Interrupted(left, error) from None

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run the program with the given arguments, or those of the process."""
        words = list(sys.argv[1:] if args is None else args)
        debug = _take_debug(words)
        for stream in (sys.stdout, sys.stderr):
            # A terminal that knows no × must not turn a finished job into a failed one.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        # Pictures are files; what a notebook names to its programs as screen may be unknown to this Python.
        os.environ["MPLBACKEND"] = "agg"
        extra |= {"prog_name": NAME, "standalone_mode": False}
        with warnings.catch_warnings(), _threads(debug):
            if not debug:
                warnings.simplefilter("ignore")
            try:
                code = super().main(words, **extra) or 0
            except Exception as error:
                if debug:
                    traceback.print_exc()
                message, code = _explain(error, debug, self._options(words))
                # Who is told by SIGHUP that the terminal is gone cannot write to it.
                with contextlib.suppress(OSError):
                    click.echo(f"{NAME}: {one_line(message)}", err=True)
        # Under `python -m` Python ends by SIGINT, whatever the code, if an interrupt came out of code in a
        # text, as it makes dataclasses during imports. With the next such code it forgets that.
        exec("")
        sys.exit(code)

    def _options(self, words: Sequence[str]) -> set[str]:
        """Return the options of the command that words name."""
        command: click.Command = self
        for word in words:
            if isinstance(command, click.Group):
                command = command.commands.get(word, command)
        return {option for parameter in command.params for option in parameter.opts}


def _need_folder() -> None:
    """Refuse to run in a folder that is gone: relative names lead nowhere, and oneMKL ends the process there.

    Raises
    ------
    InputError
        If it is.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder does not exist any more; change to one that does (cd)") from None


def need_command(ctx: click.Context) -> None:
    """Print the help of a group that was called without a command, as a usage error."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


def refuse_idle(when: str, *options: str) -> None:
    """Refuse options that were given though they do nothing, which whoever gave them does not know.

    Parameters
    ----------
    when
        When they do nothing, as in "without --compare".
    options
        Their names, as a user writes them.
    """
    ctx = click.get_current_context()
    for parameter in ctx.command.params:
        given = parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and {*parameter.opts} & {*options}:
            raise click.UsageError(f"{parameter.opts[0]} does nothing {when}")


@contextlib.contextmanager
def _threads(debug: bool) -> Iterator[None]:
    """Keep back the tracebacks of threads, as TensorBoard's on a full disk: who waits for one is told why."""
    before = threading.excepthook
    if not debug:
        threading.excepthook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook = before


def _take_debug(words: list[str]) -> bool:
    """Remove ``--debug`` from the arguments, wherever it stands: people add it to the end of what failed."""
    end = words.index("--") if "--" in words else len(words)
    found = "--debug" in words[:end]
    words[:end] = [w for w in words[:end] if w != "--debug"]
    return found


def _explain(error: Exception, debug: bool, options: Collection[str]) -> tuple[str, int]:
    """Return what to print after the program's name, and the exit code, for a command with such options."""
    match error:
        case Interrupted():
            return str(error), error.exit_code
        case click.Abort():
            return "interrupted", INTERRUPTED
        case click.UsageError():
            path = error.ctx.command_path if error.ctx else NAME
            return f"error: {error.format_message().rstrip('.')}; see {path} --help", error.exit_code
        case click.ClickException():
            return f"error: {error.format_message()}", error.exit_code
        case SunzipError():
            return f"error: {error}", error.exit_code
        case MemoryError():
            return f"error: {_short_of_memory('machine', options)}", 1
        case RuntimeError() if any(words in str(error) for words in _NO_MEMORY):
            where = "GPU" if "CUDA" in str(error) else "machine"
            return f"error: {_short_of_memory(where, options)}", 1
        case RuntimeError() if "start new thread" in str(error):
            return f"error: {_THREADS}", 1
        case ImportError() if not (error.name or "").startswith(NAME):
            return f"error: {_IMPORT.format(error)}", 1
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"error: {where}{error.strerror or error}", 1
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    how = "" if debug else "; run again with --debug and report what it prints"
    return f"error: internal: {what}{how}", 1


def _short_of_memory(where: str, options: Collection[str]) -> str:
    """Say that memory is short, and which of a command's options take less."""
    less = [f"{what} ({option})" for option, what in _LESS.items() if option in options]
    said = f"the memory of this {where} is not enough"
    if not less:
        return said
    *first, last = less
    return f"{said}; take {', '.join(first)}{' or ' if first else ''}{last}"


#: What PyTorch says where memory is short, on a GPU too; the last is all that oneDNN tells, by which it
#: convolves.
_NO_MEMORY = ("allocate memory", "out of memory", "could not create a primitive")

#: What takes less memory, by the options that ask for it.
_LESS = {
    "--batch": "fewer samples in a step",
    "--size": "smaller images",
    "--channels": "fewer channels",
    "--block": "fewer frames in a block",
}
_THREADS = (
    "no more threads can be started here; allow more of them (ulimit -u, a container's pids), or more "
    "address space (ulimit -v) with smaller stacks (ulimit -s), or take fewer (OMP_NUM_THREADS=1)"
)
_IMPORT = (
    "a package that is needed cannot be imported ({}); install sunzip again, with all that it needs, or "
    "allow more address space (ulimit -v)"
)


def run(program: Program) -> NoReturn:
    """Run a program as the process's only purpose."""
    # What is ignored stays so: Ctrl-C in the background of a shell, SIGHUP under nohup.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for number in _ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    program.main()


#: What asks a program to end besides Ctrl-C; Windows knows no SIGHUP.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _interrupt(number: int, _: object) -> NoReturn:
    # The first one winds up in order. A second Ctrl-C ends the process, whatever the first one waits for; but
    # `timeout` sends SIGTERM twice at once, and shells SIGHUP, and mean one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for other in _ENDS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)
