"""The options of compress that choose: blocks and qualities in words, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from sunzip.cli import jobs
from sunzip.sinks import LAYOUTS

Sunzip = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1234", 1234),
        ("12 B", 12),
        ("500MB", 500_000_000),
        ("1.5gb", 1_500_000_000),
        ("0.25k", 250),
        ("2TB", 2_000_000_000_000),
        (None, None),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | None, size: int | None) -> None:
    assert jobs._bytes(None, None, text) == size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target-bytes", "5 apples"], "'5 apples' is no size; write it as 500MB"),
        (["--target-bytes", "-3"], "is no size"),
        (["--target-bytes", "5MiB"], "is no size"),
        (["--target-bytes", "0"], "'0' is no size"),
        (["--target-bytes", "9" * 400 + "TB"], "is no size"),
        (["--block", "121"], "neither auto nor a number from 1 to 120"),
        (["--block", "0"], "neither auto nor"),
        (["--block", "many"], "neither auto nor"),
        (["--quality", "5", "--target-ratio", "9"], "--quality and --target-ratio exclude each other"),
        (["--target-bytes", "5MB", "--target-ratio", "9"], "--target-ratio and --target-bytes exclude"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(
    sunzip: Sunzip, tmp_path: Path, options: list[str], says: str
) -> None:
    found = sunzip("compress", tmp_path / "none.zarr", tmp_path / "a.lat", *options, code=2)
    assert says in found.stderr


def test_a_target_is_said_with_what_came_out(
    sunzip: Sunzip, model: Path, store: Path, tmp_path: Path
) -> None:
    options = [store, tmp_path / "a.lat", "--model", model, "--force"]
    found = json.loads(sunzip("compress", *options, "--target-bytes", "60kB", "--json").stdout)
    assert found["target_bytes"] == 60_000
    assert found["archive_bytes"] == (tmp_path / "a.lat").stat().st_size
    assert found["block"] == 1
    ratio = found["raw_bytes"] / 60_000
    text = sunzip("compress", *options, "--target-ratio", ratio, "--dry-run").stdout
    assert f"quality {found['quality']}, chosen for 60.0 kB: " in text
    assert "% of that" in text
    assert "blocks" in text
    refused = sunzip("compress", *options, "--target-bytes", "1kB", code=1)
    assert "a.lat: cannot be held to 1,000 bytes: it would have about" in refused.stderr


def test_every_layout_that_is_written_can_be_asked_for() -> None:
    # Named twice, as the command's help must not wait for what writes them.
    assert jobs._LAYOUTS == LAYOUTS
