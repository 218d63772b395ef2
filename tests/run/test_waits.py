"""A service that slows down and pauses: all processes wait, people see it, nothing fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gated_server import RETRY_AFTER_S
from nano_sweeps import LOCAL, Workspace

pytestmark = pytest.mark.ray
Reap = Callable[[subprocess.Popen[str]], None]
SPREADS_WITHIN_S = 8.0
"""Half a second to be sent, half a second to be polled; the rest is for a busy machine."""


@contextmanager
def _gated(folder: Path, *arguments: str) -> Iterator[Path]:
    """The folder of a running gated server."""
    folder.mkdir()
    script = str(Path(__file__).with_name("gated_server.py"))
    with subprocess.Popen(
        [sys.executable, script, str(folder), *arguments], stdin=subprocess.PIPE
    ) as process:
        try:
            _wait_for(folder / "ready.json", process)
            yield folder
        finally:
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    with _gated(tmp_path / "gate") as folder:
        yield folder


def _requests(gate: Path) -> list[dict[str, Any]]:
    log = gate / "gate.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _refused_at(gate: Path) -> float:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for request in _requests(gate):
            if request["did"] == "refused":
                return float(request["at"])
        time.sleep(0.1)
    raise AssertionError("no optim_step was refused")


def test_a_back_off_reaches_every_process_and_is_shown(
    workspace: Workspace, gate: Path, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", *_settings(gate, sessions_per_actor=1))
    reap(driver)
    refused = _refused_at(gate)
    time.sleep(max(0.0, refused + SPREADS_WITHIN_S - time.time()))
    status = workspace.status()
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err

    silent = [
        r
        for r in _requests(gate)
        if refused + SPREADS_WITHIN_S < r["at"] < refused + RETRY_AFTER_S - 0.1
        and r["path"] != "session_heartbeat"
    ]
    assert silent == []
    assert status["state"] == "running"
    waiting = [t for t in status["trials"] if t["id"] in status["waiting"]]
    assert len(waiting) >= 2  # not only the one that was refused
    for wait in status["waiting"].values():
        assert wait["state"] == "paused_rate_limit"
        assert wait["resume_at"] == pytest.approx(refused + RETRY_AFTER_S, abs=2)
    assert "paused_rate_limit: HTTP 429" in err
    assert "paused_capacity: the cluster is full" in err
    assert _states(workspace) == {"paused_rate_limit", "paused_capacity", "active"}


def test_a_sweep_drains_while_the_service_refuses_for_ever(
    workspace: Workspace, tmp_path: Path, reap: Reap
) -> None:
    with _gated(tmp_path / "gate", "100000") as gate:
        settings = _settings(gate, sessions_per_actor=1)
        driver = workspace.start("run", "nano.toml", *LOCAL, *settings)
        reap(driver)
        _refused_at(gate)
        driver.send_signal(signal.SIGINT)
        _, err = driver.communicate(timeout=40)
    assert driver.returncode == 130, err
    assert "draining" in err
    assert "Traceback" not in err
    assert workspace.status()["state"] == "interrupted"


def test_trials_queue_for_a_service_with_few_places(
    workspace: Workspace, tmp_path: Path, reap: Reap
) -> None:
    """A cap on sessions makes trials wait for each other; it fails none of them."""
    server = workspace.start(
        *("serve", "--model", "nano", "--dtype", "fp32", "--threads", "1", "--port", "0"),
        *("--max-sessions", "2", "--data-dir", str(tmp_path / "data")),
        *("--ready-file", str(tmp_path / "ready.json"), "--exit-with-parent"),
        stdin=subprocess.PIPE,
    )
    reap(server)
    _wait_for(tmp_path / "ready.json", server)
    result = workspace.here("run", "nano.toml", *LOCAL, *_settings(tmp_path, sessions_per_actor=4))
    assert result.returncode == 0, result.stderr
    assert "no room" in result.stderr or "2 sessions" in result.stderr
    assert "paused_rate_limit" in _states(workspace)
    assert {t["attempts"] for t in workspace.status()["trials"]} == {1}


def _settings(folder: Path, *, sessions_per_actor: int) -> list[str]:
    ready = json.loads((folder / "ready.json").read_text())
    settings = {
        "service.base_url": ready["base_url"],
        "service.api_key_file": ready["api_key_file"],
        "service.attest": False,  # what waits here is the training, not the proof before it
        "run.sessions_per_actor": sessions_per_actor,
    }
    return [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]


def _states(workspace: Workspace) -> set[str]:
    seen = workspace.here(
        "query", "nano", "--json", "select distinct name from events where kind = 'queue_state'"
    )
    return {row["name"] for row in json.loads(seen.stdout)}


def _wait_for(ready: Path, server: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 180
    while not ready.exists():
        assert server.poll() is None and time.monotonic() < until
        time.sleep(0.05)
