"""Fixtures of the end-to-end tests: see `nano_sweeps`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nano_sweeps import FinishedRun, Workspace, make_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One undisturbed sweep, which other tests look at and compare with."""
    workspace = make_workspace(tmp_path_factory.mktemp("finished"))
    result = workspace.crucible("run", "nano.toml", "--json")
    assert result.returncode == 0, result.stderr
    return FinishedRun(workspace, json.loads(result.stdout), result.stderr)


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Workspace:
    """The undisturbed sweep once more, for a test that goes on with it."""
    shutil.copytree(finished.workspace.folder, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


@pytest.fixture
def reap() -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Registers processes that must not outlive the test."""
    started: list[subprocess.Popen[str]] = []
    yield started.append
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
