"""Training: examples, the loop, and the export of what it yields."""

from importlib.util import find_spec

from sunzip.errors import needing

with needing("train", "training needs"):
    # Not imported: processes that read frames do without it, and would each take seconds and 0.2 GB for it.
    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
