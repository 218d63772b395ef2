"""Whatever is killed, the resumed sweep ends with the numbers and weights of an undisturbed one."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from curves import of_events, of_tensorboard
from nano_sweeps import (
    LOCAL,
    FinishedRun,
    Workspace,
    final_weights,
    outcome,
    processes,
    wait_for_checkpoints,
)

from crucible_tinkex.events import Event
from crucible_tinkex.telemetry.history import Telemetry
from crucible_tinkex.telemetry.query import read_events

pytestmark = pytest.mark.ray
Reap = Callable[["subprocess.Popen[str]"], None]


def assert_same_as_undisturbed(workspace: Workspace, finished: FinishedRun) -> None:
    assert outcome(workspace.status()) == outcome(finished.summary)
    mine, theirs = workspace.sweep(), finished.workspace.sweep()
    assert len(final_weights(mine)) == 4
    assert final_weights(mine) == final_weights(theirs)
    assert of_events(mine) == of_events(theirs)
    assert of_tensorboard(mine) == of_events(mine)


def test_a_killed_driver_is_resumed(
    workspace: Workspace, finished: FinishedRun, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", "--quiet")
    reap(driver)
    wait_for_checkpoints(workspace, count=2, process=driver)
    # Ray's own two agents leave by themselves, a minute after their raylet.
    agents = processes(driver.pid, "Agent")
    below = [p for p in processes(driver.pid) if p not in agents]
    driver.kill()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, "the driver left processes behind"
    left = workspace.status()
    assert left["state"] == "interrupted"
    assert "running" not in {t["state"] for t in left["trials"]}
    resumed = workspace.crucible("run", "nano.toml", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert max(t["attempts"] for t in json.loads(resumed.stdout)["trials"]) == 2
    assert_same_as_undisturbed(workspace, finished)


def test_killed_actors_are_replaced_without_anyone_asking(
    workspace: Workspace, finished: FinishedRun, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", "--quiet", "--json")
    reap(driver)
    stream = Telemetry(workspace.folder / "runs").subscribe("nano", wait_s=100)
    with ThreadPoolExecutor(1) as follower, stream:
        given = follower.submit(list, stream)
        wait_for_checkpoints(workspace, count=1, process=driver)
        processes(driver.pid, "SessionActor")[0].kill()
        processes(driver.pid, "RegistryActor")[0].kill()
        processes(driver.pid, "TelemetryActor")[0].kill()
        out, err = driver.communicate(timeout=200)
        assert driver.returncode == 0, err
        followed = given.result(30)
    assert max(t["attempts"] for t in json.loads(out)["trials"]) == 2
    assert_same_as_undisturbed(workspace, finished)
    assert_followed(followed, workspace)


def assert_followed(given: list[Event], workspace: Workspace) -> None:
    """A subscriber that watched all this got what is stored, once, each writer's in its order."""
    stored = read_events(workspace.sweep() / "events", all_attempts=True)
    ids = [event.event_id for event in given]
    assert sorted(ids) == sorted(stored["event_id"].to_pylist())
    newest: dict[str, int] = {}
    for event in given:
        assert newest.get(event.writer, 0) < event.seq
        newest[event.writer] = event.seq


def test_a_killed_server_is_started_again(
    workspace: Workspace, finished: FinishedRun, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", "--quiet", *LOCAL)
    reap(driver)
    wait_for_checkpoints(workspace, count=1, process=driver)
    processes(driver.pid, "crucible_tinkex serve")[0].kill()
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    assert_same_as_undisturbed(workspace, finished)


def test_the_first_interrupt_drains_and_resume_goes_on(
    workspace: Workspace, finished: FinishedRun, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml")
    reap(driver)
    wait_for_checkpoints(workspace, count=1, process=driver)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 130, err
    assert "draining" in err
    status = workspace.status()
    assert status["state"] == "interrupted"
    for trial in status["trials"]:
        saved = max((c["step"] for c in trial["checkpoints"]), default=0)
        assert trial["reference"] or not trial["attempts"] or saved == trial["step"]
    resumed = workspace.crucible("resume", "nano")
    assert resumed.returncode == 0, resumed.stderr
    assert outcome(workspace.status()) == outcome(finished.summary)


def test_the_last_trial_outlives_its_packed_actor(workspace: Workspace, reap: Reap) -> None:
    """Its actor has other, free slots, which are gone with it."""
    one = ("--set", 'search.space={"lora.rank" = [8]}', "--set", "run.max_concurrent=2")
    driver = workspace.start("run", "nano.toml", "--quiet", "--json", *one)
    reap(driver)
    wait_for_checkpoints(workspace, count=1, process=driver)
    (actor,) = processes(driver.pid, "SessionActor")
    actor.kill()
    out, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert {t["state"] for t in trials} == {"done"}
    assert max(t["attempts"] for t in trials) == 2


def test_death_of_rays_head_is_named_and_the_sweep_goes_on(
    workspace: Workspace, finished: FinishedRun, reap: Reap
) -> None:
    driver = workspace.start("run", "nano.toml", "--quiet")
    reap(driver)
    wait_for_checkpoints(workspace, count=1, process=driver)
    (head,) = [p for p in processes(driver.pid, "gcs_server") if p.name() == "gcs_server"]
    head.kill()
    _, err = driver.communicate(timeout=120)
    if driver.returncode:  # a sweep that trains to its end without its head is as good
        assert driver.returncode == 4, err
        assert "has not answered for" in err
        assert "run the same command to continue" in err
    assert "Traceback" not in err
    resumed = workspace.here("run", "nano.toml", "--quiet", *LOCAL)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_as_undisturbed(workspace, finished)
