"""`python tests/run/campaign.py --seed 1 --runs 20`: random kills of real processes.

Each run starts a sweep, ends a random process of its tree with SIGKILL at a random time (the
driver, an actor, the embedded server, any of Ray's), does so once more sometimes, resumes until the
sweep is done, and compares metrics, weights, events and TensorBoard with an undisturbed sweep. A
run is a function of its seed, as far as the machine's timing allows. Prints a JSON line per run;
the exit code is the number of runs that ended otherwise. Not part of the tests: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from curves import of_events, of_tensorboard
from nano_sweeps import Workspace, final_weights, make_workspace, outcome, processes

MOST_RESUMES = 6
RUN_S = 300.0


def ended(workspace: Workspace, process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and last line of what it said; -99 for one that had to be ended."""
    try:
        _, err = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        return -99, f"no end within {RUN_S:.0f} s: {err[-300:]}"
    return process.returncode, (err.strip().splitlines() or [""])[-1]


def kill_one(driver: subprocess.Popen[str], draw: random.Random, within_s: float) -> str:
    """SIGKILL to a process of the tree after a random time; says to which."""
    time.sleep(draw.uniform(0.2, within_s))
    try:
        tree = [psutil.Process(driver.pid), *processes(driver.pid)]
    except psutil.NoSuchProcess:
        return "nothing: it had ended"
    victim = draw.choice(sorted(tree, key=lambda p: p.pid))
    try:
        name = " ".join(victim.cmdline()) or victim.name()
        victim.kill()
    except psutil.NoSuchProcess:
        return "nothing: it had ended"
    return _short(name) if victim.pid != driver.pid else "driver"


def _short(command: str) -> str:
    words = ("gcs_server", "raylet", "serve", "log_monitor", "Agent", "agent", "monitor")
    first = command.split("(")[0].strip() if command.startswith("ray::") else ""
    return first or next((w for w in words if w in command), command[:60])


def recorded(sweep: Path) -> dict[str, Any]:
    """All that an interruption must not change."""
    return {
        "weights": final_weights(sweep),
        "events": of_events(sweep),
        "tensorboard": of_tensorboard(sweep),
    }


def disturbed(folder: Path, seed: int, within_s: float, options: list[str]) -> Any:
    """One run: what was done to it, how often it was resumed, and how it ended."""
    draw = random.Random(seed)
    workspace = make_workspace(folder)
    kills, exits = [], []
    for resumed in range(MOST_RESUMES + 1):
        driver = workspace.start("run", "nano.toml", "--quiet", *options)
        while resumed < 2 and (not resumed or draw.random() < 0.3):
            kills.append(kill_one(driver, draw, within_s))
            if draw.random() < 0.6:
                break
        exits.append(ended(workspace, driver))
        if exits[-1][0] == 0:
            break
    return workspace, {"seed": seed, "kills": kills, "exits": exits}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--executor", choices=("ray", "local"), default="ray")
    asked = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    options = ["--set", f"run.executor={asked.executor}"]
    quiet = make_workspace(folder / "quiet")
    began = time.monotonic()
    code, said = ended(quiet, quiet.start("run", "nano.toml", "--quiet", *options))
    assert code == 0, said
    took_s = time.monotonic() - began
    wanted = {"outcome": outcome(quiet.status()), **recorded(quiet.sweep())}
    wrong = 0
    for seed in range(asked.seed, asked.seed + asked.runs):
        began = time.monotonic()
        place = folder / str(seed)
        workspace, said_of = disturbed(place, seed, took_s, options)
        found: dict[str, Any] = {}
        if said_of["exits"][-1][0] == 0:
            found = {"outcome": outcome(workspace.status()), **recorded(workspace.sweep())}
        other = [key for key in wanted if found.get(key) != wanted[key]]
        wrong += bool(other)
        said_of |= {"differs": other, "seconds": round(time.monotonic() - began)}
        print(json.dumps(said_of), flush=True)
        if not other:
            shutil.rmtree(place)
    print(f"{asked.runs - wrong} of {asked.runs} equal; kept in {folder}", file=sys.stderr)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
