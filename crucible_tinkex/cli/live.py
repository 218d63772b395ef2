"""Progress of a running sweep on stderr: a live Rich table on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crucible_tinkex.cli.tables import plain_console, wait_lines
from crucible_tinkex.leaderboard import Objective
from crucible_tinkex.registry import DONE, FAILED, RUNNING, TERMINAL
from crucible_tinkex.sweep import SweepView, TrialView

STYLES = {DONE: "green", FAILED: "bold red", RUNNING: "cyan"}
PLAIN_EVERY_S = 10.0
SHOWN_REASONS = 3


def eta_s(view: SweepView) -> float | None:
    """Seconds left, from the steps done since training began here; None while unknown."""
    total = sum(t.record.total_steps for t in view.trials)
    done = sum(t.record.total_steps if _ended(t) else t.step for t in view.trials)
    if view.steps_at_start is None or done <= view.steps_at_start or not view.training_s:
        return None
    return (total - done) * view.training_s / (done - view.steps_at_start)


def _ended(trial: TrialView) -> bool:
    return trial.record.state in TERMINAL


def _waits(view: SweepView) -> list[str]:
    return wait_lines(trial.waiting for trial in view.trials if trial.waiting)


def duration(seconds: float) -> str:
    """`3:07` or `1:02:45`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveTable:
    """Redraws a table of all trials; the best of a tall sweep stay on the screen.

    Until there are trials, phases are plain lines: the server's download has the screen.
    """

    def __init__(self, metric: str, direction: str) -> None:
        self._objective = Objective(metric, direction)
        self._console = plain_console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._phase = ""

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, view: SweepView) -> None:
        if view.trials:
            self._live.start()
            waits = [Text(line, style="yellow") for line in _waits(view)[:SHOWN_REASONS]]
            self._live.update(Group(self._head(view), self._table(view), *waits))
        elif view.phase != self._phase:
            self._console.print(f"{view.name}: {view.phase} ...", style="bold")
            self._phase = view.phase

    def _head(self, view: SweepView) -> Text:
        ended = sum(_ended(t) for t in view.trials)
        parts = [f"{view.name}: {view.phase}", f"elapsed {duration(view.elapsed_s)}"]
        if view.trials:
            parts.insert(1, f"{ended} of {len(view.trials)} trials done")
            left = eta_s(view)
            parts.append(f"ETA {duration(left)}" if left is not None else "ETA -")
        return Text(" | ".join(parts), style="bold")

    def _table(self, view: SweepView) -> Table:
        table = Table(expand=False)
        for column in ("trial", "step", "", "train/nll", self._objective.metric, "tokens/s"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        table.columns[0].justify = "left"
        table.add_column("state", no_wrap=True)
        for trial in self._visible(view):
            table.add_row(*self._row(trial))
        hidden = len(view.trials) - len(table.rows)
        if hidden > 0:
            table.caption = f"and {hidden} more"
        return table

    def _visible(self, view: SweepView) -> list[TrialView]:
        """All trials in order if they fit; else those that run, then the best."""
        room = max(5, self._console.height - 8)
        if len(view.trials) <= room:
            return list(view.trials)
        order = sorted(
            view.trials,
            key=lambda t: (
                t.record.state != RUNNING,
                self._objective.key(t.metric(self._objective.metric)),
            ),
        )
        return order[:room]

    def _row(self, trial: TrialView) -> list[str | Text | ProgressBar]:
        record = trial.record
        name = "base model" if record.reference else record.run_name
        state = trial.waiting["state"] if trial.waiting else record.state
        style = "yellow" if trial.waiting else STYLES.get(record.state, "")
        state = state if record.attempt <= 1 else f"{state} (try {record.attempt})"
        return [
            name,
            f"{trial.step}/{record.total_steps}",
            ProgressBar(total=max(1, record.total_steps), completed=trial.step, width=12),
            number(trial.metric("train/nll")),
            number(trial.metric(self._objective.metric)),
            number(trial.metric("perf/tokens_per_s"), digits=0),
            Text(state, style=style),
        ]


def number(value: float | None, *, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


class PlainProgress:
    """For logs and pipes: a line when the phase or what trials wait for changes, and one every ten
    seconds."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._phase = ""
        self._waits: list[str] = []
        self._next = 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, view: SweepView) -> None:
        now = time.monotonic()
        waits = _waits(view)
        is_news = view.phase != self._phase or waits != self._waits
        if self._quiet or not (is_news or now >= self._next):
            return
        self._phase, self._waits, self._next = view.phase, waits, now + PLAIN_EVERY_S
        line = f"[{duration(view.elapsed_s)}] {view.name}: {view.phase}"
        if view.trials:
            ended = sum(_ended(t) for t in view.trials)
            steps = sum(t.step for t in view.trials)
            total = sum(t.record.total_steps for t in view.trials)
            line += f", {ended} of {len(view.trials)} trials, {steps} of {total} steps"
            left = eta_s(view)
            line += f", ETA {duration(left)}" if left is not None else ""
            line += "".join(f"; {wait}" for wait in waits[:SHOWN_REASONS])
        print(line, file=sys.stderr, flush=True)
