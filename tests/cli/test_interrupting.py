"""Ctrl-C twice, on a terminal: the process ends at once and leaves the terminal as it was."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

RUN = """
import asyncio, os, signal
from crucible_tinkex.cli.terminal.live import LiveTable
from crucible_tinkex.registry import TrialRecord
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.views.view import SweepView, TrialView
from crucible_tinkex.sweep.signals import Signals

async def run():
    table = LiveTable(Objective("eval/nll", "min"))
    trial = TrialView(TrialRecord("t", 1, "0001-rank=4", {"lora.rank": 4}, 0, 9), {})
    with table, Signals(lambda: None, table.close):
        table.show(SweepView("s", "training", [trial]))
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.1)

asyncio.run(run())
"""
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def test_the_second_leaves_the_terminal_in_order() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:  # Linux says so where the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 130
    assert HIDE in seen, "the table was there"
    assert seen.rindex(SHOW) > seen.rindex(HIDE), "the cursor is back"
    assert seen.rindex(b"stopped at once") > seen.rindex(SHOW), "below the table, not above it"
