"""Sweeps under random schedules of faults keep every invariant.

More than `make test` runs: `python tests/sweep/test_machine.py FIRST LAST` (seeds). A failure names
its seed; `LIVES=SEED:SEED+1` runs that one alone.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariants import live

FIRST, LAST = map(int, os.environ.get("LIVES", "0:240").split(":"))
PORTION = 40
FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Memory, where there is such a folder: what costs here is fsync."""


def lives(first: int, last: int) -> dict[str, list[int]]:
    """Every violation and the seeds that show it."""
    found: dict[str, list[int]] = defaultdict(list)
    for seed in range(first, last):
        folder = tempfile.mkdtemp(dir=FOLDER)
        try:
            live(Path(folder), random.Random(seed))
        except Exception as error:  # noqa: BLE001  (every kind is a finding)
            found[f"{type(error).__name__}: {str(error)[:200]}"].append(seed)
        finally:
            shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("first", range(FIRST, LAST, PORTION))
def test_no_schedule_of_faults_breaks_an_invariant(first: int) -> None:
    assert not lives(first, min(first + PORTION, LAST))


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_smallest_schedule_that_breaks_one_is_shown(rng: random.Random) -> None:
    """The same lives with Hypothesis's dice: it looks for odd ones, and shrinks what it finds."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        live(Path(folder), rng)


if __name__ == "__main__":
    began, (first, last) = time.monotonic(), map(int, sys.argv[1:3])
    violations = lives(first, last)
    print(f"{last - first} lives in {time.monotonic() - began:.0f} s")
    for text, seeds in violations.items():
        print(len(seeds), text, seeds[:8])
