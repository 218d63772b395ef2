"""Places that refuse: a small disk, a folder of another user, a process without file handles."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import few_handles
import pytest
from faulty_files import FaultyFiles
from s3_server import BUCKET, s3_served

NOBODY = 65534


@pytest.fixture
def disk() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A folder in which an ordinary user may do nothing, and the test is that user."""
    place = Path(tempfile.mkdtemp())
    inner = place / "closed"
    inner.mkdir()
    place.chmod(0o755)
    inner.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    yield inner
    if root:
        os.seteuid(0)
    inner.chmod(0o700)
    shutil.rmtree(place)


@pytest.fixture
def without_handles() -> Callable[[int], AbstractContextManager[None]]:
    """In its context the process can open only as many more files as are `left`."""
    return few_handles.without_handles


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of a real S3 server, with one bucket."""
    try:
        with s3_served(BUCKET) as url:
            yield url
    except RuntimeError as e:
        pytest.skip(str(e))
