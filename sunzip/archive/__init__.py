"""The archive `.lat`: stores coded blocks and what is known of their images, and gives them back at random.

Specified in docs/reference/format-v1.md, section "Archive". It knows nothing of models: what a block's bytes
mean is the codec's matter. `summary` reads no array, so that it needs neither zarr nor numcodecs.
"""

from sunzip.archive._layout import FORMAT, STATS, ArchiveSpec, ShardTable
from sunzip.archive._left import remove_left, size_if_complete
from sunzip.archive._place import absolute, exists, partial_of, unfinished
from sunzip.archive._read import Archive, open_archive, summary
from sunzip.archive._repair import RepairReport, repair
from sunzip.archive._verify import Problem, VerifyReport, verify
from sunzip.archive._write import ArchiveWriter
from sunzip.archive._zip import begins_as_archive, ends_as_archive, is_archive, names_archive

__all__ = [
    "FORMAT",
    "STATS",
    "Archive",
    "ArchiveSpec",
    "ArchiveWriter",
    "Problem",
    "RepairReport",
    "ShardTable",
    "VerifyReport",
    "absolute",
    "begins_as_archive",
    "ends_as_archive",
    "exists",
    "is_archive",
    "names_archive",
    "open_archive",
    "partial_of",
    "remove_left",
    "repair",
    "size_if_complete",
    "summary",
    "unfinished",
    "verify",
]
