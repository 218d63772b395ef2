"""What a large sweep costs to look at and to take up again: nothing may grow with the square.

First a journal of 10,000 ended trials is written as the registry writes it, then read, shown
(`crucible status --json`, a process of its own) and taken up by a registry. Then a sweep of 2,000
trials is driven, whose driver may grow by a tenth from trial 200 on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.throughput import run
from benchmarks.workload import Workload
from crucible_tinkex.config import Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import CheckpointRecord, Registry, Spent, SweepState
from crucible_tinkex.registry.journal import JournalWriter
from crucible_tinkex.registry.records import declared
from crucible_tinkex.storage import write_atomic
from crucible_tinkex.sweep.deciding.planner import Planner

TRIALS = (2_000, 10_000)
GROWN = Workload(trials=2000, steps=2, step_s=0.01)


def write_sweep(paths: SweepPaths, trials: int) -> None:
    """A sweep that ended in order."""
    rates = [1e-5 * 1.0001**i for i in range(trials)]
    experiment = Experiment.build(
        {
            "name": "old",
            "model": {"base": "nano"},
            "data": {"train": "rows.jsonl"},
            "train": {"max_steps": 5},
            "search": {"metric": "train/nll", "space": {"optimizer.learning_rate": rates}},
        }
    )
    meta = {
        "sweep": "old",
        "sweep_id": "old-1",
        "fingerprint": "f",
        "experiment": experiment.stored(paths.root),
    }
    planner = Planner(experiment, rows=160, fingerprint="f")
    common = {"v": 2, "epoch": 1, "time": 0.0}
    records: list[dict[str, Any]] = [
        {"type": "run", "run": "first", "follows": None},
        {"type": "created", "meta": meta},
    ]
    for index, rate in enumerate(rates):
        plan = planner.plan({"optimizer.learning_rate": rate}, 0, index=index)
        records += trial_records(plan.trial_id, declared(plan))
    records += [
        {"type": "decision", "decision": {"kind": "end", "reason": "no trial is left"}},
        {"type": "sweep", "state": "done", "wall_s": 1.0},
    ]
    writer = JournalWriter(paths.journal)
    writer.stage([{**record, **common} for record in records])
    writer.write()
    writer.close()
    write_atomic(paths.resolved, json.dumps(meta).encode())


def trial_records(trial_id: str, declaration: Any) -> list[dict[str, Any]]:
    """All that the journal gets of a trial of one rung."""
    metrics, spent = {"train/nll": 1.0, "train/accuracy": 0.5}, vars(Spent(100, 0, 0, 1.0))
    start = {"kind": "start", "trial_id": trial_id, "to_step": 5, "total_steps": 5}
    carried = {**metrics, **{f"_carried/{k}/train/nll": 1.0 for k in range(5)}}
    checkpoint = CheckpointRecord(trial_id, 1, 5, f"tinker://m/weights/{trial_id}-1-5", carried)
    found: list[dict[str, Any]] = [
        {"type": "decision", "decision": {**start, "reason": "next", "trial": declaration}},
        {"type": "attempt", "attempt": 1, "grant": f"g{trial_id}"},
        {"type": "result", "step": 5, "metrics": metrics, "spent": spent},
        {"type": "intent", "path": checkpoint.path},
        {"type": "checkpoint", "checkpoint": vars(checkpoint), "spent": spent},
        {"type": "finished", "state": "done", "error": None, "spent": spent},
    ]
    return [{"trial_id": trial_id, **record} for record in found]


def looked_at(trials: int) -> list[str]:
    """Seconds and megabytes for one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = SweepPaths.of(folder, "old")
        write_sweep(paths, trials)
        before, started = _rss_mb(), time.perf_counter()
        state = SweepState.read(paths)
        fold_s, grown_mb = time.perf_counter() - started, _rss_mb() - before
        assert len(state.trials) == trials
        started = time.perf_counter()
        Registry(paths, "second").shut()
        open_s = time.perf_counter() - started
        command = ["status", "old", "--storage", name, "--json"]
        started = time.perf_counter()
        _crucible(command)
        status_s = time.perf_counter() - started
        started = time.perf_counter()
        _crucible(["--help"])
        bare_s = time.perf_counter() - started
    times = [f"{s:.2f}" for s in (fold_s, open_s, status_s, bare_s)]
    return [f"{trials:,}", *times, f"{grown_mb:.0f}"]


def _crucible(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "crucible_tinkex", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")


def _rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def journals() -> str:
    heads = ["trials", "fold, s", "registry opens, s", "`status --json`, s", "`--help`, s", "MB"]
    lines = [heads, ["---"] * len(heads), *map(looked_at, TRIALS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def growth(load: Workload = GROWN) -> str:
    found = run(load).found
    settled, most = found["settled_mb"], found["most_mb"]
    return (
        f"Driver over {load}: {settled:.0f} MB at trial 200, {most:.0f} MB at most "
        f"({100 * (most / settled - 1):+.0f} %), {found['cold_s']:.0f} s"
    )


if __name__ == "__main__":
    print(journals())
