"""Starting Ray: off the event loop, to be cancelled at once, with errors that have a name."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from crucible_tinkex.errors import ConfigError, RayStartError
from crucible_tinkex.runtime import cluster
from crucible_tinkex.runtime.cluster import HEAD_PORT, connect
from crucible_tinkex.runtime.placement import Turns, local_cores

HERE = Path(__file__).parent


def start_ray(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, str(HERE / "start_ray.py"), *arguments],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def processes_of(folder: str) -> list[str]:
    """The processes of the Ray that lives in a folder."""
    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line for line in lines if folder in line and "ray" in line]


def test_an_address_where_nobody_listens_fails_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RayStartError, match=r"127\.0\.0\.1:1: .*refused.*ray start --head"):
        connect("127.0.0.1:1")
    assert time.monotonic() - began < 5
    assert RayStartError("").exit_code == 4


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://h:10001", "head", "head:x"])
def test_what_cannot_be_an_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        connect(address)


def test_garbage_of_another_thread_does_not_end_the_process_while_ray_is_left() -> None:
    """The thread that draws the live table makes garbage when Ctrl-C has drained a sweep."""
    done = start_ray("litter")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left"] > 0  # it was still at it


@pytest.mark.parametrize("failures", [1, 2])
def test_ray_that_dies_while_starting_is_started_again_once(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    ports: list[str] = []

    def init(**options: Any) -> None:
        assert options["address"] == "local"
        ports.append(os.environ[HEAD_PORT])
        if len(ports) <= failures:
            raise RuntimeError("The head died.\nAnd more.")

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if failures == 1:
        connect(None)
    else:
        with pytest.raises(RayStartError, match=r"did not start on this machine: The head died\.;"):
            connect(None)
    assert len(ports) == 2 and len(set(ports)) == 1
    assert HEAD_PORT not in os.environ


@pytest.mark.ray
def test_ray_starts_beside_the_event_loop() -> None:
    """`ray.init` blocked it for seconds, on a loaded machine for minutes."""
    started = start_ray("start")
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["turns"] > 50, "though Ray holds the interpreter at times"


@pytest.mark.ray
def test_a_start_is_cancelled_at_once_and_leaves_nothing() -> None:
    # Not in pytest's folder: the path of Ray's sockets would be too long for the system.
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cancelled = start_ray("cancel", RAY_TMPDIR=folder)
        assert cancelled.returncode == 0, cancelled.stderr
        assert json.loads(cancelled.stdout)["cancel_s"] < 1
        deadline = time.monotonic() + 20
        while processes_of(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes_of(folder)


@pytest.mark.ray
def test_a_start_has_a_deadline() -> None:
    """A port that answers and is no Ray: C++ logs for two minutes before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        late = start_ray("deadline", f"127.0.0.1:{listener.getsockname()[1]}")
    assert late.returncode == 4
    assert "RayStartError: cannot join the Ray cluster at 127.0.0.1" in late.stderr
    assert "no answer within 2 s" in late.stderr
    assert time.monotonic() - began < 60


def test_cores_are_those_of_the_control_group(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    assert local_cores(limit) == len(os.sched_getaffinity(0)), "no control group"
    limit.write_text("max 100000\n")
    assert local_cores(limit) == len(os.sched_getaffinity(0))
    limit.write_text("100000 100000\n")
    assert local_cores(limit) == 1
    limit.write_text("50000 100000\n")
    assert local_cores(limit) == 1


def test_session_actors_take_nodes_in_turn_by_their_cores() -> None:
    turns = Turns()
    assert [turns.chosen({"a": 2, "b": 2, "c": 0}) for _ in range(4)] == ["a", "b", "a", "b"]
    small_and_large = Turns()
    taken = [small_and_large.chosen({"head": 1, "large": 3}) for _ in range(8)]
    assert (taken.count("head"), taken.count("large")) == (2, 6)
    assert turns.chosen({"a": 2, "new": 2}) == "new", "a node that joins gets what it lacks"
    assert Turns().chosen({"only": 0}) == "only"
