"""`crucible watch` in the terminal: what a running, an interrupted and an ended sweep look like at
80 columns, and that it ends as it should."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.cli.findings.reporting import in_terminal
from crucible_tinkex.cli.findings.watching import watch_in_terminal
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.events import EventWriter
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry.journal import JournalWriter
from crucible_tinkex.storage import Lock
from crucible_tinkex.telemetry.log.event_log import EventLog

COMMAND = [sys.executable, "-m", "crucible_tinkex", "watch", "s", "--storage", "runs"]


def written(folder: Path, *, configurations: int = 3, running: int = 2, done: bool = False) -> None:
    """A sweep `s`: all its configurations have two seeds done, and `running` trials go on."""
    paths = SweepPaths.of(folder / "runs", "s")
    raw = {"name": "s", "model": {"base": "nano"}, "data": {"train": "x", "eval": "y"}}
    space = {"lora.rank": list(range(1, configurations + running + 1))}
    experiment = Experiment.build({**raw, "search": {"seeds": [0, 1], "space": space}})
    records: list[dict[str, Any]] = []

    def tell(kind: str, **fields: Any) -> None:
        records.append({"type": kind, "time": 0.0, "epoch": 1, **fields})

    tell("created", meta={"sweep": "s", "experiment": experiment.stored(paths.root)}, v=2)
    tell("run", run="r")
    tell("sweep", state="running")
    events = EventWriter("s", "s")
    steps = []
    for index in range(2 * configurations + running):
        rank, seed = (
            (index // 2 + 1, index % 2)
            if index < 2 * configurations
            else (index - configurations + 1, 0)
        )
        name = f"{index:04}-rank={rank}-s{seed}"
        trial = {"trial_id": f"t{index}", "index": index, "run_name": name, "seed": seed}
        trial |= {"values": {"lora.rank": rank}, "total_steps": 10}
        decision = {"kind": "start", "trial_id": f"t{index}", "to_step": 10, "total_steps": 10}
        tell("decision", decision={**decision, "reason": "next", "trial": trial})
        tell("attempt", trial_id=f"t{index}", attempt=1)
        if index < 2 * configurations:
            loss = 2.0 + rank + 0.01 * seed * rank
            tell("result", trial_id=f"t{index}", step=10, metrics={"eval/nll": loss})
            spent = {"train_tokens": 1000, "seconds": 30.0}
            tell("finished", trial_id=f"t{index}", state="done", error=None, spent=spent)
        else:
            about = {"trial_id": f"t{index}", "attempt": 1, "step": 4}
            steps.append(events.event("training_step", name="train/nll", value=1.2345, **about))
    if running:
        wait = {"reason": "capacity of the service"}
        about = {"trial_id": f"t{index}", "attempt": 1}
        steps.append(events.event("queue_state", name="paused", extra=wait, **about))
    if done:
        tell("decision", decision={"kind": "end", "reason": "no trial is left"})
        tell("sweep", state="done", wall_s=12.0)
    writer = JournalWriter(paths.journal)
    writer.stage(records)
    writer.write()
    writer.close()
    with EventLog(paths.events) as log:
        log.append(steps)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    written(tmp_path)
    lock = Lock(SweepPaths.of(tmp_path / "runs", "s").lock)
    yield tmp_path
    lock.close()


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *sweeps: str) -> str:
    storage = str(folder / "runs")
    assert watch_in_terminal(sweeps or ["s"], storage=storage, once=True) == 0
    return capsys.readouterr().out


def test_a_running_sweep_at_80_columns(running: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(running, capsys)
    assert "s: running | 6 of 8 trials ended | 6,000 tokens | 3:00 of sessions" in text
    assert "68 of 80 steps" in text, "four of the ten of each that runs"
    assert "best: lora.rank = 1\n      eval/nll 3.0050 ± " in text
    assert "rank = 1" in text and re.search(r"winner|not enough evidence|tie", text)
    assert re.search(r"^ 1 +\d +1 +3\.0050", text, re.MULTILINE)
    assert re.search(r"0006-rank=4-s0 +4/10 .* 1\.2345 .*running", text)
    assert re.search(r"0007-rank=5-s0 +4/10 .* 1\.2345 .*paused", text)
    assert "1 trial waits, paused: capacity of the service" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_an_interrupted_sweep_says_how_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path)
    text = shown(tmp_path, capsys)
    assert "s: interrupted" in text and "nobody trains it now; continue: crucible resume s" in text
    assert "running" not in text


def test_several_sweeps_and_one_that_only_starts(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SweepPaths.of(running / "runs", "s")
    starts = SweepPaths.of(running / "runs", "starts")
    starts.root.mkdir()
    experiment = Experiment.build(
        {"name": "starts", "model": {"base": "nano"}, "data": {"train": "x", "eval": "y"}}
    )
    meta = {"sweep": "starts", "fingerprint": "f", "experiment": experiment.stored(source.root)}
    starts.resolved.write_text(json.dumps(meta))
    found = shown(running, capsys, "s", "starts", "s")
    assert found.count("s: running") == 1, "one that is named twice is shown once"
    assert "0 of 0 trials ended" in found and "no configuration is complete yet" in found


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep 'x'"):
        watch_in_terminal(["x"], storage=str(tmp_path), once=False)


def test_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert in_terminal(None, None), "no screen, no browser"
    assert not in_terminal(None, 8088) and not in_terminal(False, None)
    assert in_terminal(True, None)
    with pytest.raises(ConfigError, match="--port is of the page"):
        in_terminal(True, 8088)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not in_terminal(None, None), "a script that waits for the address still gets it"


class Watched:
    """The command on a terminal of 80 x 24."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        size = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*COMMAND, "--terminal"],
            cwd=folder,
            env={**os.environ, **size},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def until(self, wanted: str, within_s: float = 40) -> None:
        deadline = time.monotonic() + within_s
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            self.text += self._read()

    def rest(self) -> str:
        self.process.wait(20)
        while new := self._read():
            self.text += new
        os.close(self.master)
        return self.text

    def _read(self) -> str:
        try:
            return os.read(self.master, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return ""


def plain(text: str) -> str:
    """Without colours and moves of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


LEAVES = "\x1b[?1049l"
"""The screen that was there before comes back."""


def test_it_ends_with_the_sweep_and_the_last_frame_stays(tmp_path: Path) -> None:
    written(tmp_path, running=0, done=True)
    text = Watched(tmp_path).rest()
    stays = plain(text.split(LEAVES)[1])
    assert "s: done" in stays and "best: lora.rank" in stays


def test_a_tall_sweep_fits_and_ctrl_c_gives_the_screen_back(tmp_path: Path) -> None:
    written(tmp_path, configurations=40, running=20)
    lock = Lock(SweepPaths.of(tmp_path / "runs", "s").lock)
    watched = Watched(tmp_path)
    watched.until("0080-rank=41")
    watched.process.send_signal(signal.SIGINT)
    text = watched.rest()
    lock.close()
    assert watched.process.returncode == 0
    assert LEAVES in text and "the sweep itself goes on" in text and "Traceback" not in text
    drawn = plain(text.split(LEAVES)[0])
    assert "best: lora.rank" in drawn and "trial waits" in drawn
    assert re.search(r"and \d+ more; --json", drawn)
