"""The same run as a Ray job: submitted, stopped in the middle, submitted again, finished."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from nano_sweeps import Workspace, make_workspace, wait_for_checkpoints
from ray_head import Head, ray_head

from crucible_tinkex.runtime.jobs import attempt_number

SUBMIT = """
import sys
from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.runtime.jobs import submit_job
try:
    job = submit_job(sys.argv[1], sweep=sys.argv[2], arguments=sys.argv[3:])
except CrucibleError as e:
    sys.exit(f"{type(e).__name__}: {e}")
print(job.submission_id)
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not in pytest's folder: the path of Ray's sockets would be too long for the system.
    folder = TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as name, ray_head(Path(name)) as started:
        yield started


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


def submit_command(
    environment: dict[str, str], address: str, sweep: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SUBMIT, address, sweep, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_attempt_belongs_to_one_sweep() -> None:
    assert attempt_number("a-a001", "a") == 1
    assert attempt_number("a-a1234", "a") == 1234
    assert attempt_number("a-b-a001", "a") is None, "another sweep's, whose name begins alike"
    assert attempt_number("a-b-a001", "a-b") == 1
    assert attempt_number("a-a001-a002", "a") is None
    assert attempt_number("aXa001", "a.") is None


@pytest.mark.ray
def test_the_address_that_was_asked_for_is_used(head: Head) -> None:
    elsewhere = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:2"}
    first = submit_command(head.environment | elsewhere, head.address, "a-b", "--help")
    assert first.stdout.strip() == "a-b-a001", first.stderr
    other = submit_command(head.environment, head.address, "a", "--help")
    assert other.stdout.strip() == "a-a001", "the sweep a-b is another"


@pytest.mark.ray
@pytest.mark.parametrize("token", [None, "/nonexistent/token"])
def test_a_token_that_is_missing_is_named(head: Head, token: str | None) -> None:
    environment = head.without_token
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    refused = submit_command(environment, head.address, "a", "--help")
    assert refused.returncode == 1
    assert refused.stderr.startswith("AuthenticationError"), refused.stderr
    assert "RAY_AUTH_MODE=token" in refused.stderr and "RAY_AUTH_TOKEN_PATH" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.ray
def test_an_address_without_a_dashboard_is_named(head: Head) -> None:
    nobody = submit_command(head.environment, "http://127.0.0.1:9", "a", "--help")
    assert nobody.stderr.startswith("ServiceUnavailableError: no Ray dashboard answers at http://")
    wrong = submit_command(head.environment, "127.0.0.1:8265", "a", "--help")
    assert wrong.stderr.startswith("ConfigError: --address '127.0.0.1:8265'")


@pytest.mark.ray
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


@pytest.mark.ray
def test_ray_job_submit_runs_the_command_itself(workspace: Workspace, head: Head) -> None:
    command = ["python", "-m", "crucible_tinkex", "run", str(workspace.file), "--json"]
    command += ["--storage", str(workspace.folder / "runs")]
    ran = head.ray("job", "submit", "--address", head.address, "--", *command)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert workspace.status()["state"] == "done"
