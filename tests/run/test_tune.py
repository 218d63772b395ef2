"""`crucible tune` on Ray: a budget ends it, exit code 3; the command again, with more, goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nano_sweeps import Workspace

from crucible_tinkex.config import Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState

TUNE = """
import crucible_tinkex as ct
sweep = ct.tune("digits.jsonl", base="nano", budget="10steps", trials=12, executor="ray")
raise SystemExit(sweep.exit_code)
"""


@pytest.mark.timeout(500)
def test_more_budget_goes_on_from_the_command_line(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"{i:03}>", "completion": f"{i:03}"[::-1]}) for i in range(40)]
    (tmp_path / "digits.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-c", TUNE]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 3, first.stderr
    workspace = Workspace(tmp_path)
    state = SweepState.read(SweepPaths.of(tmp_path / "runs", "tune-digits"))
    assert (state.ended_by, state.spent.steps) == ("budget", 10)
    more = workspace.crucible(
        "tune", "digits.jsonl", "--base", "nano", "--budget", "300steps", "--json"
    )
    assert more.returncode == 0, more.stderr
    found = json.loads(more.stdout)
    assert found["ended_by"] is None and found["adapter"] is not None
    assert found["spent"]["steps"] > 10 and found["runs"] == 2
    written = Experiment.from_toml(tmp_path / "runs" / "tune-digits.toml")
    assert (written.budget.steps, written.run.executor) == (300, "ray")
