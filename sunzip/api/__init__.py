"""The main jobs: sources into archives, archives into sinks and arrays, and what was lost on the way."""

from sunzip.api._append import append
from sunzip.api._compress import Block, compress, longest_block, sampled
from sunzip.api._decompress import decompress, replacing
from sunzip.api._diff import diff
from sunzip.api._evaluate import evaluate, judging
from sunzip.api._models import add_model
from sunzip.api._reports import (
    CompressReport,
    DecompressReport,
    DiffReport,
    EvaluateReport,
    OnProgress,
    OnStep,
    Progress,
)
from sunzip.api._sample import Sample
from sunzip.api._series import Alignment, Sources, open_series, source_of
from sunzip.sun import Sun, open
from sunzip.tasks import Task
from sunzip.weights import AddReport

__all__ = [
    "AddReport",
    "Alignment",
    "Block",
    "CompressReport",
    "DecompressReport",
    "DiffReport",
    "EvaluateReport",
    "OnProgress",
    "OnStep",
    "Progress",
    "Sample",
    "Sources",
    "Sun",
    "Task",
    "add_model",
    "append",
    "compress",
    "decompress",
    "diff",
    "evaluate",
    "judging",
    "longest_block",
    "open",
    "open_series",
    "replacing",
    "sampled",
    "source_of",
]
