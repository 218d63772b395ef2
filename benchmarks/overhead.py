"""What the runner costs: 64 trials x 20 steps of 0.2 s take 4 s if driving them is free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.child_server import started
from benchmarks.process_tree import ProcessTree
from benchmarks.workload import Workload

MODES = ("ours-16", "ours-1", "tune")
LOAD = Workload()
SETTLE_S = 10.0
"""Ray's processes go on dying for a while after their driver."""


@dataclass(frozen=True)
class Measured:
    """One mode in a process of its own, against a fresh stand-in."""

    found: dict[str, float]
    cpu_of: dict[str, float]
    """CPU seconds by who used them; `service` is the stand-in."""
    peak_mb: float
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    """What the machine had to do in the last minute, this included."""

    @property
    def cpu_s(self) -> float:
        return sum(seconds for name, seconds in self.cpu_of.items() if name != "service")


def measure(mode: str, load: Workload, folder: Path) -> Measured:
    """Run one mode; the sweeps lie in `folder` afterwards."""
    with started("benchmarks.standin", str(load.step_s)) as service:
        ready = folder / "endpoint.json"
        endpoint = {"base_url": service.base_url, "api_key_file": service.api_key_file}
        ready.write_text(json.dumps(endpoint))
        arguments = [mode, str(ready), str(folder), load.to_json()]
        command = [sys.executable, "-m", "benchmarks.overhead_modes", *arguments]
        with open(folder / "output.txt", "w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            with ProcessTree(process.pid) as tree:
                process.wait()
        if process.returncode:
            text = (folder / "output.txt").read_text()[-2000:]
            raise RuntimeError(f"{mode} ended with {process.returncode}: {text}")
        found: dict[str, float] = json.loads((folder / "result.json").read_text())
        return Measured(found, {**tree.cpu_of, "service": service.cpu_s()}, tree.peak_mb)


def table(results: dict[str, Measured]) -> str:
    """Markdown: seconds, and how often the ideal."""
    lines = [
        f"{LOAD}; Ray started before:",
        "",
        "| | from cold | x ideal | on warm actors | x ideal | CPU s | peak MB | machine's load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode, r in results.items():
        cold, warm = r.found["cold_s"], r.found.get("warm_s")
        cells = [
            mode,
            f"{cold:.1f} s",
            f"{cold / LOAD.ideal_s:.2f}",
            f"{warm:.1f} s" if warm else "-",
            f"{warm / LOAD.ideal_s:.2f}" if warm else "-",
            f"{r.cpu_s:.0f}",
            f"{r.peak_mb:.0f}",
            f"{r.load:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run() -> dict[str, Measured]:
    results = {}
    for mode in MODES:
        print(f"measuring {mode} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[mode] = measure(mode, LOAD, Path(folder))
        time.sleep(SETTLE_S)
    return results
