"""Pictures and Maps are made where no home can be written, as in containers, and in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sunpy.map")
pytest.importorskip("ndcube")

PICTURE = """
import numpy as np
from sunzip.quicklook import render
render({"x": np.ones((1, 8, 8), np.float32)}, ("171A",), "t", "x.png")
"""
MAPS = """
import sunzip.maps
from sunzip.api import open_series
cube = open_series("synthetic:frames=1,size=32").read(0, 1).pick(("171A",))
sunzip.maps.image_map(cube)
sunzip.maps.ndcube(cube)
"""
PLOT = """
from sunzip.studies.figures import need_matplotlib
need_matplotlib()
"""
AFTER = """
import logging, os
assert (os.environ["HOME"], os.environ.get("XDG_CACHE_HOME")) == (home, None)
assert "SUNPY_CONFIGDIR" not in os.environ
assert logging.getLogger("matplotlib").level == logging.NOTSET
"""


@pytest.mark.parametrize("code", [PICTURE, MAPS, PLOT], ids=["picture", "maps", "plot"])
def test_no_home_is_needed(code: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "scratch").mkdir()
    home = str(tmp_path / "file" / "home")
    done = subprocess.run(
        [sys.executable, "-c", f"home = {home!r}\n{code}\n{AFTER}"],
        cwd=tmp_path,
        env={
            "HOME": home,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "TMPDIR": str(tmp_path / "scratch"),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_settings_of_the_user_are_kept(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.mkdir()
    (settings / "sunpyrc").write_text("[general]\nworking_dir = /of/the/user\n")
    code = f"{PICTURE}\nimport sunpy\nprint(sunpy.config.get('general', 'working_dir'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "SUNPY_CONFIGDIR": str(settings),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "/of/the/user\n", "")
