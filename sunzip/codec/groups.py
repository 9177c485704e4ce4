"""Control groups of Linux, by which containers, batch systems and services hold a process to a share."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

#: Where the system tells of control groups, and of which of them this process is in.
_GROUPS = Path("/sys/fs/cgroup")
_GROUPS_OF_THIS = Path("/proc/self/cgroup")


def folders_of(kind: str) -> tuple[list[Path], list[Path]]:
    """Return the folders that tell what a process may have of a kind, as ``"memory"``; there may be none.

    In a container the group is the root of what can be seen; that of a batch system's job, or of a service,
    is far below it, and any group above it may have the limit.

    Returns
    -------
    second, first
        Of version 2 and of version 1 of control groups, which name files otherwise.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = _GROUPS_OF_THIS.read_text(errors="surrogateescape").splitlines()
    # A line is as in 0::/system.slice/job or, of version 1, in 4:cpu,cpuacct:/slurm/job.
    told = [line.split(":", 2) for line in lines if line.count(":") > 1]
    of = {name: path for _, names, path in told for name in names.split(",")}

    def upwards(folder: Path, path: str) -> list[Path]:
        group = Path(path.lstrip("/"))
        return [folder / name for name in (group, *group.parents)]

    # Version 2 counts groups below one with it, version 1 under names of their own.
    return upwards(_GROUPS, of.get("", "/")), upwards(_GROUPS / kind, of.get(kind, "/"))
