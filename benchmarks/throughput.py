"""How many short trials a sweep gets through: 1,000 x 5 steps of 20 ms, 64 at a time.

A trial is then little but its overhead: a decision, a session, its telemetry, a checkpoint, its
end. CPU seconds say who spends it, and vary less than wall time where the machine has other work.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.overhead import Measured, measure
from benchmarks.workload import Workload

LOAD = Workload(trials=1000, steps=5, step_s=0.02)
MODE = "once-16"
ROLES = ("driver", "RegistryActor", "SessionActor", "TelemetryActor", "other", "service")


def run(load: Workload = LOAD) -> Measured:
    print(f"measuring {load} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return measure(MODE, load, Path(folder))


def table(measured: Measured, load: Workload = LOAD) -> str:
    seconds = measured.found["cold_s"]
    heads = ["", "wall", "ms a trial", *(f"{role}, CPU s" for role in ROLES), "machine's load"]
    cells = [MODE, f"{seconds:.1f} s", f"{1000 * seconds / load.trials:.1f}"]
    cells += [f"{measured.cpu_of.get(role, 0.0):.1f}" for role in ROLES]
    cells += [f"{measured.load:.1f}"]
    lines = [heads, ["---"] * len(heads), cells]
    rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([f"{load}; Ray started before:", "", *rows])


if __name__ == "__main__":
    shown = Workload(int(sys.argv[1]), LOAD.steps, LOAD.step_s) if len(sys.argv) > 1 else LOAD
    print(table(run(shown), shown))
