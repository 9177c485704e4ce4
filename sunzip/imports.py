"""Imports of packages that want folders in the user's home, where there is none that can be written."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_CONFIG, _CACHE = "SUNPY_CONFIGDIR", "XDG_CACHE_HOME"

# Kept to the end of the process, as sunpy keeps databases in it.
_instead: TemporaryDirectory[str] | None = None


@contextmanager
def without_home() -> Iterator[None]:
    """Hold imports of matplotlib and sunpy, so that they need no folder that can be written, nor complain.

    Matplotlib finds a folder itself and warns that it did. Sunpy fails; it is given one of this process.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    with ExitStack() as stack:
        stack.callback(log.setLevel, level)
        log.setLevel(logging.ERROR)
        if "sunpy" not in sys.modules and not _sunpy_is_at_home():
            stack.enter_context(_elsewhere())
        yield


@contextmanager
def _elsewhere() -> Iterator[None]:
    global _instead
    _instead = _instead or TemporaryDirectory(prefix="sunzip-")
    place, home = _instead.name, os.path.expanduser("~")
    if os.path.isabs(home):
        # What a user has sunpy download later must not vanish with the process.
        rules = f"[general]\nworking_dir = {home}/sunpy\n[downloads]\nremote_data_manager_dir = {place}\n"
        Path(place, "sunpyrc").write_text(rules, errors="surrogateescape")
    names = ("HOME", _CONFIG, _CACHE)
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, place))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


def _sunpy_is_at_home() -> bool:
    """Whether sunpy can write where it does when it is imported: settings, and databases."""
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        return False  # nobody's: below, "~" would become a folder here
    if sys.platform == "darwin":
        settings, cache = (os.path.join(home, "Library", name) for name in ("Application Support", "Caches"))
    else:
        settings = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        cache = os.environ.get(_CACHE) or os.path.join(home, ".cache")
    settings = os.environ.get(_CONFIG) or os.path.join(settings, "sunpy")
    try:
        for folder in (settings, cache):
            # As sunpy does: nothing else tells that it can.
            os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return all(os.access(folder, os.W_OK) for folder in (settings, cache, home))
