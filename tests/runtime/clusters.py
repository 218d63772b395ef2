"""Ray clusters of several nodes on this machine, a service that they all reach, and drivers."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState

HERE = Path(__file__).parent
EXPERIMENT = """
name = "nano"
[service]
base_url = "{url}"
api_key_file = "{key}"
allow_http = true
[model]
base = "nano"
[data]
train = "train.jsonl"
eval = "eval.jsonl"
[train]
max_steps = {steps}
epochs = 1000
batch_size = 4
max_length = 32
checkpoint_every = 10
[search.space]
"lora.rank" = [2, 8]
"optimizer.learning_rate" = [1e-6, 3e-3]
[run]
max_concurrent = 5
"""
SOON_LOST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
}
"""A node that is dead is so within seconds; Ray takes a quarter of a minute by itself."""


def own_address() -> str:
    """An address of this machine that is not loopback, as other nodes would see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        address: str = probe.getsockname()[0]
        return address


@contextmanager
def service(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server of its own on an address that every node reaches; its URL and its key's file."""
    key, ready = folder / "key", folder / "ready.json"
    key.write_text("tml-a-key-of-this-test-alone-0123456789")
    key.chmod(0o600)
    command = [sys.executable, "-m", "crucible_tinkex", "serve", "--model", "nano", "--port", "0"]
    command += ["--host", own_address(), "--api-key-file", str(key), "--ready-file", str(ready)]
    command += ["--data-dir", str(folder / "service"), "--dtype", "fp32", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 180
            while not ready.exists():
                assert process.poll() is None and time.monotonic() < deadline, "no server"
                time.sleep(0.05)
            yield json.loads(ready.read_text())["base_url"], key
        finally:
            process.terminate()


def write_experiment(folder: Path, *, url: str, key: Path, steps: int) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcd", k=5)) for _ in range(80)]
    rows = [json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) for w in words]
    (folder / "train.jsonl").write_text("\n".join(rows[:60]))
    (folder / "eval.jsonl").write_text("\n".join(rows[60:]))
    file = folder / "nano.toml"
    file.write_text(EXPERIMENT.format(url=url, key=key, steps=steps))
    return file


def _environment() -> dict[str, str]:
    """Without the token that a Ray of the test process itself may have left."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TINKER_"))}


def start_driver(file: Path, storage: Path, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "drive_sweep.py"), str(file), str(storage), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def wait_for_checkpoints(sweep: Path, trained: int, process: subprocess.Popen[str]) -> None:
    """Until `trained` trials have committed one each; the driver must not end before. A number of
    checkpoints would not do: on a busy machine one trial has several before another's session
    has started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if (sweep / "journal").is_dir():
            trials = SweepState.read(SweepPaths(sweep)).trials.values()
            if sum(bool(trial.checkpoints) for trial in trials) >= trained:
                return
        time.sleep(0.05)
    raise AssertionError("not every trial has a checkpoint")


def results(sweep: Path) -> dict[str, Any]:
    """What must not depend on where a trial ran, nor on what was lost on the way."""
    state = SweepState.read(SweepPaths(sweep))
    return {t.trial_id: (t.state, t.step, t.metrics) for t in state.trials.values()}


@dataclass(frozen=True)
class RayCluster:
    """Nodes of two cores each, on this machine."""

    address: str
    raylets: list[psutil.Process]
    """The head's first."""
    head: psutil.Process
    """Ray's global control service."""


@contextmanager
def cluster(nodes: int) -> Iterator[RayCluster]:
    """A cluster of this test alone."""
    command = [sys.executable, str(HERE / "ray_cluster.py"), str(nodes)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment() | SOON_LOST,
    ) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        raylets = [psutil.Process(pid) for pid in found["raylets"]]
        yield RayCluster(found["address"], raylets, psutil.Process(found["head"]))


def session_actors(raylet: psutil.Process) -> int:
    """How many session actors a node holds now."""
    children = raylet.children(recursive=True)
    return sum("SessionActor" in " ".join(p.cmdline()) for p in children)
