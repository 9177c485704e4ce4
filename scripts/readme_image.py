"""Draw the README's picture: a frame of the synthetic Sun, as it was, as decoded, and the difference.

Run as ``python scripts/readme_image.py``. The frame is coded with all its channels; four of them are shown.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from sunzip import quicklook, weights
from sunzip.channels import NAMES, canonical
from sunzip.codec import Codec
from sunzip.sources.synthetic import render

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "quicklook.jpg"

#: Not among the Suns and dates that the default model was trained on.
TIME, SEED = "2014-02-01", 4_000_000

SHOWN = canonical(["171A", "304A", "1700A", "Bz"])


def main() -> None:
    """Code, decode and draw."""
    original = render(TIME, size=512, seed=SEED)
    codec = Codec(weights.load())
    blocks = codec.encode(original[None], NAMES)
    decoded = codec.decode(blocks, NAMES, (512, 512))[0]
    ratio = original.nbytes / sum(map(len, blocks))
    picked = [NAMES.index(name) for name in SHOWN]
    png = io.BytesIO()
    quicklook.render(
        {"original": original[picked], "decoded": decoded[picked]},
        SHOWN,
        f"A synthetic Sun, 12 channels in {sum(map(len, blocks)):,} bytes: 1/{ratio:.0f} of float32",
        png,
    )
    PICTURE.parent.mkdir(exist_ok=True)
    picture = Image.open(png).convert("RGB")
    picture.save(PICTURE, quality=82, optimize=True)
    print(f"{PICTURE}: {picture.width}×{picture.height}, {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
