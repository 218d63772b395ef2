"""What this machine has of what a run needs."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crucible_tinkex.doctor.finding import Note
from crucible_tinkex.runtime.cluster import STORE_BYTES
from crucible_tinkex.version import VERSION

TESTED_PYTHON = (3, 11)
ENOUGH_FILES = 1024
SHARED_MEMORY = Path("/dev/shm")
"""Where Ray's object store lies."""


def software() -> str:
    """Versions of what runs."""
    python = f"Python {platform.python_version()}"
    parts = [f"crucible {VERSION}", python, f"ray {version('ray')}", _torch()]
    says = ", ".join(parts)
    if platform.python_version_tuple()[:2] != tuple(map(str, TESTED_PYTHON)):
        return Note(f"{says}; tested with Python {'.'.join(map(str, TESTED_PYTHON))} only")
    return says


def _torch() -> str:
    try:
        return f"torch {version('torch')}"
    except PackageNotFoundError:
        return "no torch (only the embedded server needs it)"


def room() -> str:
    """Cores, memory, and the limits that Ray runs into."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    says = f"{len(os.sched_getaffinity(0))} cores, {memory / 1e9:.0f} GB, {soft} open files"
    if soft < ENOUGH_FILES:
        return Note(f"{says}: few for Ray; raise it with `ulimit -n 4096`")
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).total < STORE_BYTES:
        return Note(
            f"{says}; {SHARED_MEMORY} has less than the {STORE_BYTES >> 20} MB of Ray's object "
            "store, which then lies on the disk: give the container more "
            "(`docker run --shm-size=1g`)"
        )
    return says
