"""What goes wrong before the first step: Ray that hangs or dies, workers that cannot start, an
environment that says something else. Each ends soon, in a named error, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from broken_workers import CANNOT_TRAIN, DIES, ELSEWHERE, workers_that
from nano_sweeps import Workspace, processes

from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.results.leaderboard import exit_code

Reap = Callable[[subprocess.Popen[str]], None]


def ray_process(driver: subprocess.Popen[str], name: str) -> psutil.Process:
    """A process of Ray's below the driver, as soon as it is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert driver.poll() is None, driver.communicate()
        for process in processes(driver.pid):
            try:
                if process.exe().endswith(name):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.005)
    raise AssertionError(f"no {name}")


def is_alive(process: psutil.Process) -> bool:
    """One that nobody has waited for is none."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.ray
def test_while_ray_hangs_status_answers_and_ctrl_c_ends_it(
    workspace: Workspace, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml")
    reap(driver)
    head = ray_process(driver, "gcs_server")
    head.suspend()
    status = workspace.status()
    assert status["state"] == "pending"
    assert status["trials"] == []
    assert workspace.here("status", "nano").returncode == 0
    second = workspace.here("run", "nano.toml")
    assert second.returncode == 2
    assert f"in use by process {driver.pid}" in second.stderr
    below = processes(driver.pid)
    began = time.monotonic()
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert driver.returncode == 130, err
    assert "interrupted while starting" in err
    assert "Traceback" not in err
    head.resume()
    deadline = time.monotonic() + 30
    while left := [p for p in below if is_alive(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.ray
def test_sessions_that_cannot_start_end_in_an_error_with_the_reason(
    workspace: Workspace, tmp_path: Path, reap: Reap
) -> None:
    broken = workers_that(tmp_path, CANNOT_TRAIN)
    driver = workspace.start("run", "nano.toml", "--quiet", extra=broken)
    reap(driver)
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 4, err
    assert "no worker process could be started (3 times)" in err
    assert "libtrain.so.1" in err
    assert "Traceback" not in err


START = """
import asyncio
from crucible_tinkex.errors import RayStartError
from crucible_tinkex.runtime.cluster import Runtime
async def main():
    runtime = await Runtime.start()
    try:
        await runtime.ready(deadline_s=4)
    finally:
        runtime.close()
try:
    asyncio.run(main())
except RayStartError as e:
    print(e)
"""


@pytest.mark.ray
def test_ray_whose_workers_all_die_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Ray starts a dying worker again for ever, and says nothing."""
    result = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, **workers_that(tmp_path, DIES)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "none answered within 4 s" in result.stdout, result.stderr


@pytest.mark.ray
def test_ctrl_c_ends_the_wait_for_workers_that_die(
    workspace: Workspace, tmp_path: Path, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", extra=workers_that(tmp_path, DIES))
    reap(driver)
    ray_process(driver, "raylet")
    time.sleep(4)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=40)
    assert driver.returncode == 130, err
    assert "interrupted while starting" in err


@pytest.mark.ray
def test_sessions_train_on_the_service_that_the_driver_checked(
    workspace: Workspace, tmp_path: Path, reap: Reap
) -> None:
    """The address comes from the driver's environment; that of its workers says another."""
    server = workspace.start(
        *("serve", "--model", "nano", "--dtype", "fp32", "--threads", "1", "--port", "0"),
        *("--data-dir", str(tmp_path / "data"), "--exit-with-parent"),
        *("--ready-file", str(tmp_path / "ready.json")),
        stdin=subprocess.PIPE,
    )
    reap(server)
    deadline = time.monotonic() + 180
    while not (tmp_path / "ready.json").exists():
        assert server.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ready = json.loads((tmp_path / "ready.json").read_text())
    hosted = workspace.file.read_text().replace('base_url = "embedded"\n', "")
    workspace.file.write_text(hosted.replace('dtype = "fp32"\nthreads = 1\n', ""))
    environment = {
        **workers_that(tmp_path, ELSEWHERE),
        "TINKER_BASE_URL": ready["base_url"],
        "TINKER_API_KEY": Path(ready["api_key_file"]).read_text().strip(),
    }
    one = ("--set", 'search.space={"lora.rank" = [8]}', "--set", "train.max_steps=2")
    result = workspace.crucible("run", "nano.toml", "--json", "--quiet", *one, extra=environment)
    assert result.returncode == 0, result.stderr
    assert {t["state"] for t in json.loads(result.stdout)["trials"]} == {"done"}
    assert any((tmp_path / "data" / "checkpoints").rglob("manifest.json"))


def test_a_sweep_that_ended_before_its_first_record_is_not_done() -> None:
    assert exit_code(SweepState()) == 130
