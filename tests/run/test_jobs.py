"""The same run as a Ray job: submitted, stopped in the middle, submitted again, finished."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nano_sweeps import Workspace, make_workspace, wait_for_checkpoints

pytestmark = pytest.mark.ray
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A Ray head of this test alone."""

    address: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head`, in a folder and on ports of its own, its jobs finding our python."""
    dashboard = free_port()
    folder = tmp_path_factory.mktemp("r")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(folder),
    }
    environment.pop("RAY_ADDRESS", None)
    head = Head(f"http://127.0.0.1:{dashboard}", environment)
    ports = ["--port", str(free_port()), "--dashboard-port", str(dashboard)]
    ports += ["--dashboard-agent-listen-port", str(free_port())]
    started = head.ray("start", "--head", *ports, "--disable-usage-stats")
    assert started.returncode == 0, started.stdout + started.stderr
    yield head
    stopped = head.ray("stop", "--force")
    assert stopped.returncode == 0, stopped.stderr


def submit(workspace: Workspace, head: Head, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = ["submit", "nano.toml", "--address", head.address, "--storage", "runs", *options]
    return subprocess.run(
        [sys.executable, "-m", "crucible_tinkex", *arguments],
        cwd=workspace.folder,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_job_is_stopped_and_goes_on(tmp_path: Path, head: Head) -> None:
    workspace = make_workspace(tmp_path, steps=120)  # long enough to be stopped in the middle
    first = submit(workspace, head, "--no-wait")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == "nano-a001"
    wait_for_checkpoints(workspace, count=1)

    again = submit(workspace, head, "--no-wait")
    assert again.stdout.strip() == "nano-a001", "a live attempt is followed, not doubled"

    stopped = head.ray("job", "stop", "nano-a001", "--address", head.address)
    assert stopped.returncode == 0, stopped.stderr
    deadline = time.monotonic() + 60
    while workspace.status()["state"] == "running":
        assert time.monotonic() < deadline, "the stopped job still owns the sweep"
        time.sleep(0.5)
    assert workspace.status()["state"] == "interrupted"

    second = submit(workspace, head)
    assert second.returncode == 0, second.stderr + second.stdout
    assert "nano-a002" in second.stderr
    assert "best: lora.rank" in second.stdout
    status = workspace.status()
    assert status["state"] == "done"
    assert {t["step"] for t in status["trials"] if not t["reference"]} == {120}
    assert max(t["attempts"] for t in status["trials"]) == 2


def test_ray_job_submit_runs_the_command_itself(workspace: Workspace, head: Head) -> None:
    command = ["python", "-m", "crucible_tinkex", "run", str(workspace.file), "--json"]
    command += ["--storage", str(workspace.folder / "runs")]
    ran = head.ray("job", "submit", "--address", head.address, "--", *command)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert workspace.status()["state"] == "done"
