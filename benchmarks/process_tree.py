"""CPU seconds and peak memory of a process and all its descendants, sampled from outside."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil

CPU_EVERY_S = 0.5
MEMORY_EVERY_S = 2.0


class ProcessTree:
    """Samples in a thread between `__enter__` and `__exit__`.

    `cpu_s` adds up what every process of the tree had used when last seen, so a process that lives
    for less than half a second is missed. `peak_mb` is the largest sum of proportional set
    sizes (shared pages are counted once).
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[int, float] = {}
        self._titles: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_mb = 0.0

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    @property
    def cpu_of(self) -> dict[str, float]:
        """CPU seconds by who used them: `driver` (the root), an actor's class, `other`."""
        found: dict[str, float] = {}
        for pid, seconds in self._cpu.items():
            name = "driver" if pid == self._root.pid else _role(self._titles[pid])
            found[name] = found.get(name, 0.0) + seconds
        return found

    def _sample(self) -> None:
        next_memory = 0.0
        while not self._stop.wait(CPU_EVERY_S):
            processes = self._processes()
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._titles[process.pid] = " ".join(process.cmdline()[:1])
                    self._cpu[process.pid] = times.user + times.system
            if time.monotonic() >= next_memory:
                self.peak_mb = max(self.peak_mb, sum(_pss_mb(p.pid) for p in processes))
                next_memory = time.monotonic() + MEMORY_EVERY_S

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []

    def __enter__(self) -> ProcessTree:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def _role(title: str) -> str:
    """Of a process of Ray, which names its workers `ray::Class` or `ray::Class.method`."""
    kind = title.removeprefix("ray::").split(".")[0] if title.startswith("ray::") else ""
    return kind if kind.endswith("Actor") else "other"


def _pss_mb(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    line = next((x for x in rollup.splitlines() if x.startswith("Pss:")), "Pss: 0")
    return int(line.split()[1]) / 1024
