"""Pictures drawn alike for everyone: matplotlib without what a user has set for figures of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Settings are the process's: who sets them back must not set back what another thread has set meanwhile.
_DRAWING = threading.Lock()


@contextmanager
def as_designed() -> Iterator[None]:
    """Hold matplotlib's settings at its own defaults, but for the fonts, which may have what a title needs.

    A user's grid would lie over images, their bounding box cut margins off, and LaTeX choke on the names of
    files, where it is installed at all.
    """
    import matplotlib as mpl

    with _DRAWING, mpl.rc_context():
        # Of the keys that begin so, those that hold lists name families.
        fonts = {k: v for k, v in mpl.rcParams.items() if k.startswith("font.") and isinstance(v, list)}
        mpl.rcdefaults()
        mpl.rcParams.update(fonts)
        yield
