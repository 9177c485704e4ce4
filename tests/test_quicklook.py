"""Pictures are judged by eye; held here is that nothing in them is upside down, rescaled, lost or global."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sunzip import quicklook
from sunzip.channels import NAMES
from sunzip.errors import InputError, OutputError

matplotlib_image = pytest.importorskip("matplotlib.image")
pytest.importorskip("sunpy.visualization.colormaps")

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

REAL = Path(__file__).parents[2] / "shared" / "data" / "real" / "sdomlv2_real.zarr" / "2024"


def sun(channels: int, n: int = 32) -> np.ndarray:
    """(C, n, n): a gradient, brightest in the north-east, different in each channel."""
    y, x = np.mgrid[:n, :n] / n
    return np.stack([(100 * (i + 1) * (0.2 + 2 * y + 0.5 * x)) for i in range(channels)]).astype(np.float32)


def draw(rows: dict[str, np.ndarray], names: tuple[str, ...], **kwargs: object) -> np.ndarray:
    """Return the picture, (height, width, 3), row 0 at the top."""
    file = io.BytesIO()
    quicklook.render(rows, names, kwargs.pop("title", "a title"), file, **kwargs)
    file.seek(0)
    return matplotlib_image.imread(file, format="png")[:, :, :3]


def panel(picture: np.ndarray, count: int, i: int, n: int = 0, *, compared: bool = False) -> np.ndarray:
    """Cut the n-th panel of the i-th channel out, some pixels in from its edge."""
    layout = quicklook._Layout(count, compared=compared)
    left, top = layout.group(i)
    left += n * (layout.side + quicklook._GAP)
    if n == 2:
        left += quicklook._BAR + quicklook._TICKS
    top += quicklook._HEADER
    cut = picture[top + 4 : top + layout.side - 4, left + 4 : left + layout.side - 4]
    assert cut.shape[0] == cut.shape[1] == layout.side - 8
    return cut


def test_twelve_panels_have_the_promised_size() -> None:
    picture = draw({"original": sun(12)}, NAMES)
    height, width, _ = picture.shape
    assert 1550 <= width <= 1650
    assert 1150 <= height <= 1300
    assert picture[:5].max() < 0.1  # the page is dark
    for i in range(12):
        assert panel(picture, 12, i).std() > 0.02, NAMES[i]


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("compared", [False, True])
def test_panels_of_any_number_of_channels_stay_on_the_page_and_apart(count: int, compared: bool) -> None:
    layout = quicklook._Layout(count, compared=compared)
    corners = [layout.group(i) for i in range(count)]
    wide = (3 if compared else 1) * layout.side
    assert len(set(corners)) == count
    for left, top in corners:
        assert left >= 0
        assert left + wide + quicklook._BAR + quicklook._TICKS <= layout.width
        assert top + quicklook._HEADER + layout.side <= layout.height
        for other_left, other_top in corners:
            if (left, top) != (other_left, other_top):
                apart = abs(left - other_left) >= wide or abs(top - other_top) >= layout.side
                assert apart
    assert layout.width <= 2200


def test_row_0_is_south() -> None:
    image = np.ones((1, 32, 32), np.float32)
    image[0, :16] = 1000
    seen = panel(draw({"x": image}, ("171A",)), 1, 0)
    half = len(seen) // 2
    assert seen[half + 20 :].mean() > 5 * seen[: half - 20].mean()


def test_column_0_is_on_the_left() -> None:
    image = np.ones((1, 32, 32), np.float32)
    image[0, :, :16] = 1000
    seen = panel(draw({"x": image}, ("171A",)), 1, 0)
    half = len(seen) // 2
    assert seen[:, : half - 20].mean() > 5 * seen[:, half + 20 :].mean()


def test_decoded_has_the_limits_of_the_original() -> None:
    x = sun(1)
    picture = draw({"original": x, "decoded": x / 4}, ("193A",), times=None)
    original, decoded = (panel(picture, 1, 0, n, compared=True) for n in (0, 1))
    alone = panel(draw({"original": x, "decoded": x}, ("193A",)), 1, 0, 0, compared=True)
    np.testing.assert_array_equal(original, alone)
    assert decoded.mean() < 0.8 * original.mean()


def test_equal_images_differ_nowhere() -> None:
    x = sun(2)
    picture = draw({"original": x, "decoded": x.copy()}, ("193A", "Bz"))
    for i in range(2):
        np.testing.assert_array_equal(
            panel(picture, 2, i, 0, compared=True), panel(picture, 2, i, 1, compared=True)
        )
        assert np.ptp(panel(picture, 2, i, 2, compared=True), axis=(0, 1)).max() == 0


def test_difference_shows_sign_and_a_single_wrong_pixel() -> None:
    x = sun(1)
    x_hat = x.copy()
    x_hat[0, 4, 4] += 50
    x_hat[0, 28, 4] -= 50
    seen = panel(draw({"original": x, "decoded": x_hat}, ("171A",)), 1, 0, 2, compared=True)
    half = len(seen) // 2
    red, blue = seen[half:], seen[:half]
    assert (red[:, :, 0] - red[:, :, 2]).max() > 0.2
    assert (blue[:, :, 2] - blue[:, :, 0]).max() > 0.2


@pytest.mark.parametrize("compared", [False, True])
def test_missing_image_says_so(compared: bool) -> None:
    x = sun(3)
    x[1] = np.nan
    rows = {"original": x, "decoded": x} if compared else {"original": x}
    picture = draw(rows, ("171A", "193A", "Bz"))
    gap = panel(picture, 3, 1, compared=compared)
    # A flat panel, but for a few letters in its middle.
    assert np.ptp(gap[: len(gap) // 3], axis=(0, 1)).max() == 0
    assert 0 < (gap.max(axis=2) > 0.3).mean() < 0.02


def test_image_missing_in_the_original_only() -> None:
    x = np.full((1, 16, 16), np.nan, np.float32)
    picture = draw({"original": x, "decoded": sun(1, 16)}, ("171A",))
    assert panel(picture, 1, 0, 1, compared=True).std() > 0.02
    assert (panel(picture, 1, 0, 2, compared=True).max(axis=2) > 0.3).mean() < 0.02


@pytest.mark.parametrize("value", [0.0, 1e-30, -5.0, 3e38])
def test_flat_and_extreme_images_are_drawn(value: float) -> None:
    x = np.full((3, 16, 16), value, np.float32)
    x[:, 0, 0] = np.nan
    x[:, 0, 1] = np.inf
    draw({"original": x, "decoded": -x}, ("171A", "1600A", "Bz"))


def test_title_is_no_formula_and_long_ones_stay_on_the_page() -> None:
    draw({"x": sun(1)}, ("171A",), title=r"$\frac{ costs 5$ _^")
    draw({"x": sun(1)}, ("171A",), title="no UTF-8 \udcff.lat")
    picture = draw({"x": sun(1)}, ("171A",), title="/data/SDO/archive_of_2014.lat " * 4)
    assert picture[10:50, -10:].max() < 0.1


def test_times_are_shown() -> None:
    x = sun(2)
    times = np.array(["2014-05-01T12:12:03.5", "NaT"], "datetime64[ms]")
    with_times, without = (draw({"x": x}, ("171A", "Bz"), times=t) for t in (times, None))
    changed = (with_times != without).any(axis=2)
    layout = quicklook._Layout(2, compared=False)
    assert changed[:, : layout.group(1)[0]].any()
    assert not changed[:, layout.group(1)[0] :].any()


def test_no_global_state_is_left() -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    draw({"x": sun(1)}, ("171A",))
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_what_a_user_has_set_for_other_figures_changes_nothing() -> None:
    import matplotlib as mpl

    rows, names = {"a_$x$": sun(2, 16)[:, :8]}, ("171A", "Bz")
    plain = draw(rows, names)
    theirs = {
        "text.usetex": True,
        "axes.grid": True,
        "image.aspect": "auto",
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "savefig.dpi": 300,
    }
    with mpl.rc_context(theirs):
        assert np.array_equal(draw(rows, names), plain)
        assert mpl.rcParams["savefig.dpi"] == 300


def test_same_picture_twice() -> None:
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        quicklook.render({"x": sun(2)}, ("171A", "Bz"), "t", file)
    assert first.getvalue() == second.getvalue()


def test_path_is_written(tmp_path: Path) -> None:
    # The name need not end in .png: the caller writes aside.
    target = tmp_path / "look.png.partial"
    quicklook.render({"x": sun(1)}, ("171A",), "t", target)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [target]


def test_unwritable_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot write the picture .*look\.png: [^\n]+$"):
        quicklook.render({"x": sun(1)}, ("171A",), "t", tmp_path / "absent" / "look.png")


@pytest.mark.parametrize("module", ["matplotlib.figure", "sunpy.visualization.colormaps"])
def test_without_the_libraries(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    package = module.split(".")[0]
    with pytest.raises(InputError, match=rf"^pictures need {package}, .*pip install '\.\[plot\]'$"):
        draw({"x": sun(1)}, ("171A",))


@pytest.mark.parametrize(
    ("rows", "names", "times"),
    [
        ({}, ("171A",), None),
        ({"a": sun(1), "b": sun(1), "c": sun(1)}, ("171A",), None),
        ({"a": sun(1), "b": sun(1, 16)}, ("171A",), None),
        ({"a": sun(2)}, ("171A",), None),
        ({"a": sun(1)[0]}, ("171A",), None),
        ({"a": np.zeros((1, 0, 4), np.float32)}, ("171A",), None),
        ({"a": sun(2)}, ("Bz", "171A"), None),
        ({"a": sun(1)}, ("172A",), None),
        ({"a": sun(1)}, ("171A",), np.zeros(2, "datetime64[ms]")),
    ],
)
def test_wrong_input_is_one_line(rows: dict, names: tuple, times: np.ndarray | None) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        draw(rows, names, times=times)


def test_importing_it_loads_no_plotting_library() -> None:
    code = "import sys, sunzip.quicklook; print(*{'matplotlib', 'sunpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the real SDOML v2 frames are not there")
def test_real_frame_fills_its_panels() -> None:
    import zarr

    group = zarr.open_group(REAL, mode="r")
    names = tuple(n for n in NAMES if n in group)
    x = np.stack([group[n][0] for n in names])
    picture = draw({"2024-10-04": x}, names)
    for i, name in enumerate(names):
        seen = panel(picture, len(names), i)
        third = len(seen) // 3
        # The disk is brighter than the corners and has structure.
        assert (
            seen[third : 2 * third, third : 2 * third].mean() > 1.3 * seen[: third // 3, : third // 3].mean()
        ), name
        assert seen.std() > 0.05, name


def test_a_weak_field_on_the_disk_is_shown_and_what_is_off_it_is_not() -> None:
    from sunzip.quicklook import _off_disk

    image = np.zeros((128, 128))
    image[0, 0], image[0, 1], image[64, 64] = 0.3, -40, 0.3
    found = _off_disk(image)
    assert found[0, 0]
    assert not found[0, 1]
    assert not found[40:90, 40:90].any()


def decoded_magnetogram() -> tuple[np.ndarray, np.ndarray]:
    """A magnetogram, 0 off the disk, and as a codec gives it: with ripples there, a few of several gauss."""
    y, x = np.mgrid[:64, :64] - 31.5
    original = np.where(np.hypot(y, x) < 25, 300 * np.sin(y / 3) * np.cos(x / 3), 0).astype(np.float32)
    ripples = np.where((y + x) % 16 == 0, 5, 0.3).astype(np.float32)
    return original[None], (original + ripples)[None]


def test_a_decoded_magnetogram_ends_at_the_limb() -> None:
    original, decoded = decoded_magnetogram()
    alone = panel(draw({"decoded": decoded}, ("Bz",)), 1, 0)
    beside = panel(draw({"original": original, "decoded": decoded}, ("Bz",)), 1, 0, 1, compared=True)
    for seen in (alone, beside):
        corner = seen[: len(seen) // 8, : len(seen) // 8]
        assert np.ptp(corner, axis=(0, 1)).max() == 0
        assert corner.max() < 0.2
        assert seen[len(seen) // 2].max() > 0.5


def test_a_magnetogram_of_zeros_is_a_disk() -> None:
    seen = panel(draw({"decoded": np.zeros((1, 64, 64), np.float32)}, ("Bz",)), 1, 0)
    assert seen[: len(seen) // 8, : len(seen) // 8].max() < 0.2
    assert seen[len(seen) // 2, len(seen) // 2].min() > 0.4


def test_a_part_of_the_sun_keeps_its_corners() -> None:
    from sunzip.quicklook import _off_disk

    noise = np.random.default_rng(0).normal(0, 5, (64, 64))
    assert not _off_disk(noise).any()
    noise[:8] = np.nan
    assert not _off_disk(noise).any()
