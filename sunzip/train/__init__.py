"""Training: examples, the loop, and the export of what it yields."""

from sunzip.errors import needing

with needing("train", "training needs"):
    import torch  # noqa: F401
