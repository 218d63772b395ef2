"""Workspaces for real sweeps on base `nano`: real server, real Ray, the real command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import in_process
import psutil

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState

STEPS = 24
LOCAL = ("--set", "run.executor=local")
"""Where Ray is not the point: the same numbers without its start."""
EXPERIMENT = """
name = "nano"
[service]
base_url = "embedded"
dtype = "fp32"
threads = 1
[model]
base = "nano"
[data]
train = "train.jsonl"
eval = "eval.jsonl"
[train]
max_steps = {steps}
epochs = 100
batch_size = 4
max_length = 32
checkpoint_every = 6
eval_every = 12
[search.space]
"lora.rank" = [2, 8]
"optimizer.learning_rate" = [1e-6, 3e-3]
[run]
max_concurrent = 4
sessions_per_actor = 2
"""


@dataclass(frozen=True)
class Workspace:
    """A folder with an experiment, and the `crucible` command in it."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "nano.toml"

    def sweep(self, name: str = "nano") -> Path:
        return self.folder / "runs" / name

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "crucible_tinkex", *arguments]

    def start(
        self, *arguments: str, extra: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """`extra` are environment variables; otherwise there is none of the service."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TINKER_")}
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **(extra or {})},
            **options,
        )

    def crucible(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command in this process: for what looks, is refused, or has `LOCAL`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TINKER_")}
        with patch.dict(os.environ, environment, clear=True):
            return in_process.crucible(*arguments, folder=self.folder)

    def status(self, name: str = "nano") -> dict[str, Any]:
        found = self.here("status", name, "--json")
        assert found.returncode == 0, found.stderr
        status: dict[str, Any] = json.loads(found.stdout)
        return status


def make_workspace(folder: Path, *, steps: int = STEPS) -> Workspace:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcd", k=5)) for _ in range(80)]
    rows = [json.dumps({"prompt": f"{w}>", "completion": w[::-1]}) for w in words]
    (folder / "train.jsonl").write_text("\n".join(rows[:60]))
    (folder / "eval.jsonl").write_text("\n".join(rows[60:]))
    (folder / "nano.toml").write_text(EXPERIMENT.format(steps=steps))
    return Workspace(folder)


@dataclass(frozen=True)
class FinishedRun:
    workspace: Workspace
    summary: dict[str, Any]
    stderr: str


def outcome(summary: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on interruptions: per trial its state, steps and metrics."""
    return {t["id"]: (t["state"], t["step"], t["metrics"], t["config"]) for t in summary["trials"]}


def final_weights(sweep: Path, *, step: int = STEPS) -> dict[str, bytes]:
    """Per trial the bytes of its final adapter, as the server stored it."""
    found = {}
    for manifest in (sweep / "service" / "checkpoints").glob("*/weights/*/manifest.json"):
        path = json.loads(manifest.read_text())["tinker_path"]
        if "/sampler_weights/" in path:
            continue
        name = path.rsplit("/", 1)[1]
        trial, _, saved = name.split("-")
        if saved == f"step{step:08d}":
            found[trial] = (manifest.parent / "adapter.safetensors").read_bytes()
    return found


def processes(root: int, word: str = "") -> list[psutil.Process]:
    """The live processes below `root` whose command line has `word` in it."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for_checkpoints(
    workspace: Workspace, *, count: int, process: subprocess.Popen[str] | None = None
) -> None:
    """Until `count` checkpoints are committed; `process` must not end before."""
    paths = SweepPaths(workspace.sweep())
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, process.communicate()
        if paths.journal.is_dir():
            state = SweepState.read(paths)
            if sum(len(t.checkpoints) for t in state.trials.values()) >= count:
                return
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")
