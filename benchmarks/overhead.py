"""What the runner costs: 64 trials x 20 steps of 0.2 s take 4 s if driving them is free."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.overhead_modes import STEPS
from benchmarks.process_tree import ProcessTree
from benchmarks.standin import STEP_S

MODES = ("ours-16", "ours-1", "tune")
IDEAL_S = STEPS * STEP_S
SETTLE_S = 10.0
"""Ray's processes go on dying for a while after their driver."""


def measure(mode: str) -> dict[str, float]:
    """Run one mode against a fresh stand-in."""
    with tempfile.TemporaryDirectory() as folder:
        service_folder = Path(folder) / "service"
        service_folder.mkdir()
        service = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.standin", str(service_folder)],
            stdin=subprocess.PIPE,
        )
        ready = service_folder / "ready.json"
        while not ready.exists():
            if service.poll() is not None:
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.05)
        started = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.overhead_modes", mode, str(ready), folder]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, **quiet)
        with ProcessTree(process.pid) as tree, ProcessTree(service.pid) as service_tree:
            process.wait()
        total_s = time.perf_counter() - started
        assert service.stdin
        service.stdin.close()
        service.wait()
        if process.returncode:
            raise RuntimeError(f"{mode} ended with {process.returncode}")
        found: dict[str, float] = json.loads((Path(folder) / "result.json").read_text())
    return {
        **found,
        "total_s": total_s,
        "cpu_s": tree.cpu_s,
        "peak_mb": tree.peak_mb,
        "service_cpu_s": service_tree.cpu_s,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: seconds, and how often the ideal."""
    lines = [
        f"64 trials x {STEPS} steps of {STEP_S} s (ideal {IDEAL_S:.1f} s); Ray started before:",
        "",
        "| | from cold | x ideal | on warm actors | x ideal | CPU s | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, r in results.items():
        warm = r.get("warm_s")
        cells = [
            mode,
            f"{r['cold_s']:.1f} s",
            f"{r['cold_s'] / IDEAL_S:.2f}",
            f"{warm:.1f} s" if warm else "-",
            f"{warm / IDEAL_S:.2f}" if warm else "-",
            f"{r['cpu_s']:.0f}",
            f"{r['peak_mb']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run() -> dict[str, dict[str, float]]:
    results = {}
    for mode in MODES:
        print(f"measuring {mode} ...", file=sys.stderr, flush=True)
        results[mode] = measure(mode)
        time.sleep(SETTLE_S)
    return results
