"""A server in a process of its own, started for a benchmark and ended with it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ChildServer:
    base_url: str
    api_key_file: str
    process: psutil.Process

    @property
    def key(self) -> str:
        return Path(self.api_key_file).read_text().strip()

    def cpu_s(self) -> float:
        """User and system time so far, from the scheduler's account of every thread."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(t.read_text().split()[0]) for t in tasks) / 1e9

    def memory_mb(self) -> float:
        """Proportional set size: shared pages are counted in shares."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("Pss:"))


@contextmanager
def started(module: str, *args: str) -> Iterator[ChildServer]:
    """`python -m module FOLDER *args`, which writes `ready.json` there and ends with its stdin."""
    with tempfile.TemporaryDirectory() as folder:
        command: Sequence[str] = [sys.executable, "-m", module, folder, *args]
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            ready = Path(folder) / "ready.json"
            while not ready.exists():
                if child.poll() is not None:
                    raise RuntimeError(f"{module} did not start")
                time.sleep(0.05)
            found = json.loads(ready.read_text())
            process = psutil.Process(child.pid)
            yield ChildServer(found["base_url"], found["api_key_file"], process)
        finally:
            assert child.stdin
            child.stdin.close()
            child.wait()
