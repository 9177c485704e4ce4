"""The exception tree: grouped by what a caller would do, each with the exit code the command line returns."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Packages that are not called as they are imported.
_CALLED = {"sklearn": "scikit-learn", "yaml": "PyYAML"}

#: What in URLs lets others in: a user's password, and values of a query that sign it or are keys.
_SECRET = re.compile(
    r"(?<!github://)(?<=://)[^\s/?#@:]*:[^\s/?#]*@"
    r"|(?<=http://)[^\s/?#]+@|(?<=https://)[^\s/?#]+@"
    # No part may go beyond where another match can begin: texts of strangers can be long.
    r"|(?P<name>[?&](?=[^\s=&?]*(?:sig|token|key|credential|secret|passw))[^\s=&?]*=)[^\s&]*[^\s&:;,)'\"]",
    re.IGNORECASE,
)


#: What to do about an archive that is damaged.
MEND = "fetch it again, repair it, or compress its source again"


def without_secrets(text: str) -> str:
    """Return text without the passwords and signatures in its URLs: messages and archives go to others.

    Examples
    --------
    >>> without_secrets("https://me:word@host/sun.lat?X-Amz-Signature=1f&part=2: cannot be read")
    'https://host/sun.lat?X-Amz-Signature=…&part=2: cannot be read'
    """
    return _SECRET.sub(lambda found: f"{found['name']}…" if found["name"] else "", text)


class SunzipError(Exception):
    """Base of every error that sunzip raises on purpose; its text is one line that a user can act on."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_secrets(arg) if isinstance(arg, str) else arg for arg in args))


class InputError(SunzipError):
    """The input or an argument cannot be used: missing, empty, of a wrong layout, dtype or shape. Fix it."""


class UnreadableError(InputError):
    """A file of one image is damaged, where others may be whole. It may be left out, or fetched again."""


class NotInstalledError(InputError, ImportError):
    """A package that is optional cannot be imported. Install it; importers see that an import failed."""


class OutputError(SunzipError):
    """The target cannot be written: it exists, is not writable, or the disk is full. Fix the target."""


class DamagedError(SunzipError):
    """An archive, block or model has bytes that do not agree with themselves.

    Fetch it again; of an archive `sunzip repair` saves what can be saved.
    """

    exit_code = 3


class UnsupportedError(SunzipError):
    """The bytes are of a newer format version or use a feature unknown here. Update sunzip."""

    exit_code = 3


class ModelNotFoundError(SunzipError):
    """The model that an archive or a caller names is not on this machine. Name a folder that holds it."""

    exit_code = 4


class BoundNotMetError(SunzipError):
    """Something was decoded as what it is not, or farther from it than was promised: report it."""

    exit_code = 5


class DifferentError(SunzipError):
    """Two that should hold the same do not, or not all of them could be looked at. Keep both."""

    exit_code = 5


class DivergedError(SunzipError):
    """A training went astray: its loss is no number any more or has left all it had learned."""


def how_to_install(extra: str) -> str:
    """Say how the packages of an extra are had. The name `sunzip` on PyPI belongs to another program."""
    return f"in a checkout of sunzip: pip install '.[{extra}]'"


@contextmanager
def needing(extra: str, who: str) -> Iterator[None]:
    """Hold imports of optional packages: of one that fails, say why, who needs it and how it is had.

    Parameters
    ----------
    extra
        Of pyproject.toml.
    who
        The beginning of the sentence, such as "a plot needs".

    Raises
    ------
    NotInstalledError
        If an import fails.
    """
    try:
        yield
    except NotInstalledError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        package = _CALLED.get(package, package)
        raise NotInstalledError(f"{who} {package}, which is not installed; {how_to_install(extra)}") from None
    except ImportError as error:
        # It is there, but not whole, or of a release that does not go with the others.
        raise NotInstalledError(
            f"{who} packages of which one cannot be imported here ({error}); install them again; "
            f"{how_to_install(extra)}"
        ) from None
    except (TypeError, AttributeError) as error:
        # Sunpy adds to its docstrings when it is imported.
        if sys.flags.optimize < 2:
            raise
        raise NotInstalledError(
            f"{who} packages that cannot be imported without docstrings ({error}); run Python without -OO or "
            "PYTHONOPTIMIZE=2"
        ) from None
