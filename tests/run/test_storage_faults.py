"""Disks that are full, small, read-only or damaged, and too few file handles: a named error before
anything is spent, or a sweep that goes on once it is mended, with the same numbers."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nano_sweeps import LOCAL, FinishedRun, Workspace, final_weights, outcome

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState
from crucible_tinkex.storage import SegmentLog

LONGER = ("--set", "train.max_steps=30")
Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mounts a file system in memory; skips the test where that is not permitted."""
    places: list[Path] = []

    def mounted(place: Path, options: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
        if "remount" not in options:
            places.append(place)

    yield mounted
    for place in reversed(places):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def amended(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The undisturbed sweep, gone on with for some more steps."""
    folder = tmp_path_factory.mktemp("amended") / "copy"
    shutil.copytree(finished.workspace.folder, folder)
    workspace = Workspace(folder)
    result = workspace.here("run", "nano.toml", "--quiet", *LOCAL, *LONGER)
    assert result.returncode == 0, result.stderr
    return workspace


def attempts(workspace: Workspace) -> int:
    state = SweepState.read(SweepPaths(workspace.sweep()))
    return sum(t.attempt for t in state.trials.values())


def test_more_steps_are_an_amendment_and_recorded(
    finished: FinishedRun, amended: Workspace
) -> None:
    """What is trained already is not trained again: its trials go on where they ended."""
    summary = amended.status()
    assert {t["id"] for t in summary["trials"]} == set(outcome(finished.summary))
    assert {t["step"] for t in summary["trials"] if not t["reference"]} == {30}
    for trial in summary["trials"]:
        steps = [c["step"] for c in trial["checkpoints"]]
        assert steps == ([] if trial["reference"] else [6, 12, 18, 24, 30])
    state = SweepState.read(SweepPaths(amended.sweep()))
    assert ["train.max_steps" in a["changed"] for a in state.amendments] == [True]


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [shutil.rmtree, flip_a_bit], ids=["missing", "damaged"])
def test_missing_or_damaged_checkpoints_cost_the_steps_after_the_one_before(
    copied: Workspace, amended: Workspace, spoil: Callable[[Path], None]
) -> None:
    checkpoints = copied.sweep() / "service" / "checkpoints"
    for step in (18, 24):
        for folder in checkpoints.glob(f"*/weights/*-step{step:08d}"):
            spoil(folder)
    result = copied.here("run", "nano.toml", "--json", *LOCAL, *LONGER)
    assert result.returncode == 0, result.stderr
    assert outcome(json.loads(result.stdout)) == outcome(amended.status())
    assert final_weights(copied.sweep(), step=30) == final_weights(amended.sweep(), step=30)


def test_a_full_disk_of_the_service_stops_the_sweep_and_loses_no_trial(
    workspace: Workspace, finished: FinishedRun, mount: Mount
) -> None:
    service = workspace.sweep() / "service"
    mount(service, "size=700k")
    (workspace.sweep() / "lock").touch()  # a folder that is ours
    full = workspace.crucible("run", "nano.toml", *LOCAL, "--set", "run.max_attempts=2")
    assert full.returncode == 5, full.stderr
    assert "No space left" in full.stderr
    assert "Traceback" not in full.stderr
    status = workspace.status()
    assert status["state"] == "interrupted"
    assert {t["state"] for t in status["trials"]} <= {"pending", "done"}
    mount(service, "remount,size=100m")
    again = workspace.crucible("run", "nano.toml", "--json", *LOCAL)
    assert again.returncode == 0, again.stderr
    assert outcome(json.loads(again.stdout)) == outcome(finished.summary)
    assert final_weights(workspace.sweep()) == final_weights(finished.workspace.sweep())


@pytest.mark.parametrize(("room", "size"), [("events", "64k"), ("journal", "32k")])
def test_a_disk_of_ours_that_fills_ends_the_run_soon(
    workspace: Workspace, finished: FinishedRun, mount: Mount, room: str, size: str
) -> None:
    mount(workspace.sweep() / room, f"size={size}")
    (workspace.sweep() / "lock").touch()
    began = time.monotonic()
    full = workspace.here("run", "nano.toml", "--quiet", *LOCAL)
    assert time.monotonic() - began < 60
    assert full.returncode == 5, full.stderr
    assert f"{workspace.sweep() / room}" in full.stderr
    assert "No space left" in full.stderr and "Traceback" not in full.stderr
    assert {t["state"] for t in workspace.status()["trials"]} <= {"pending", "done"}
    mount(workspace.sweep() / room, "remount,size=50m")
    again = workspace.here("run", "nano.toml", "--json", *LOCAL)  # this process holds nothing
    assert again.returncode == 0, again.stderr
    assert outcome(json.loads(again.stdout)) == outcome(finished.summary)


@pytest.mark.parametrize(
    ("options", "message"),
    [("size=1m", "are needed"), ("size=100m,ro", "Read-only file system")],
    ids=["small", "read-only"],
)
def test_a_storage_that_cannot_hold_a_sweep_is_refused_at_once(
    workspace: Workspace, mount: Mount, options: str, message: str
) -> None:
    mount(workspace.folder / "runs", options)
    result = workspace.here("run", "nano.toml")
    assert result.returncode == 5, result.stderr
    assert message in result.stderr
    assert str(workspace.folder / "runs") in result.stderr
    assert "Traceback" not in result.stderr


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def damage_journal(sweep: Path) -> Path:
    file = min((sweep / "journal").glob("*.log"))
    flip(file, 200)
    return file


def damage_wal(sweep: Path) -> Path:
    with SegmentLog(sweep / "events" / "_wal") as log:
        log.append([b"a record of an event log", b"another"])
    newest = log.path.rename(log.path.with_name("009999.log"))  # one that no part covers
    flip(newest, 12)
    return newest


@pytest.mark.parametrize("damage", [damage_journal, damage_wal])
def test_damage_is_noticed_before_anything_is_spent(
    copied: Workspace, damage: Callable[[Path], Path]
) -> None:
    before = 0 if damage is damage_journal else attempts(copied)
    file = damage(copied.sweep())
    result = copied.here("run", "nano.toml", *LOCAL, *LONGER)
    assert result.returncode == 5, result.stderr
    assert f"{file} is damaged at byte" in result.stderr
    assert "Traceback" not in result.stderr
    assert damage is damage_journal or attempts(copied) == before


@pytest.mark.parametrize("count", [40, 100])
def test_too_few_file_handles_are_named(workspace: Workspace, count: int) -> None:
    limit = (count, count)
    result = workspace.crucible(
        *("run", "nano.toml", "--quiet", *LOCAL),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
    )
    assert "Traceback" not in result.stderr
    if result.returncode:
        assert result.returncode in (4, 5), result.stderr
        assert "ulimit -n" in result.stderr
