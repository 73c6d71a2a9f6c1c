"""The memory that a program can still use."""

import os
import pathlib

MEMORY_INFO = pathlib.Path("/proc/meminfo")
CONTROL_GROUP = pathlib.Path("/sys/fs/cgroup")
# Files of a control group's limit and use, and the entry of memory.stat for files read lately,
# which count as used but make room: of version 2 and of version 1 of control groups.
CONTAINER_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_memory() -> int | None:
    """Return the number of bytes that this process can still allocate, None if it is unknown.

    On Linux it is what the machine and the container have left; elsewhere, the machine's memory.
    """
    limits = [_machine(), *(_container(*files) for files in CONTAINER_FILES)]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine() -> int | None:
    """Return the memory that the machine has left."""
    try:
        return 1024 * _entries(MEMORY_INFO.read_text())["MemAvailable:"]
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no `sysconf`
        return None


def _container(limit: str, used: str, statistics: str, cached: str) -> int | None:
    """Return the memory that the process's control group has left, if that is limited."""
    try:
        left = int((CONTROL_GROUP / limit).read_text()) - int((CONTROL_GROUP / used).read_text())
        return max(left + _entries((CONTROL_GROUP / statistics).read_text())[cached], 0)
    except (OSError, KeyError, ValueError):  # the text "max" where there is no limit
        return None


def _entries(text: str) -> dict[str, int]:
    """Return the numbers of a file with a name and a number in each line."""
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.strip()}
