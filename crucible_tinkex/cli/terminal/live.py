"""Progress of a running sweep on stderr: a live Rich table on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crucible_tinkex.cli.terminal.tables import STYLES, plain_console, plain_table, wait_lines
from crucible_tinkex.registry import RUNNING, TrialRecord
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.views.view import SweepView, TrialView
from crucible_tinkex.training.attempt.reporter import EVALUATING, TRAINING

PLAIN_EVERY_S = 10.0
SHOWN_REASONS = 3


def _waits(view: SweepView) -> list[str]:
    return wait_lines(trial.waiting for trial in view.trials if trial.waiting)


def duration(seconds: float) -> str:
    """`3:07` or `1:02:45`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _eta(view: SweepView) -> str:
    """Empty while nothing is known, or the end is near; says what it leaves out."""
    left = view.eta_s
    if left is None or view.phase != TRAINING:
        return ""
    return f"ETA {duration(left)}{' + evaluations' if view.evaluations_unknown else ''}"


class LiveTable:
    """Redraws a table of all trials; the best of a tall sweep stay on the screen.

    Until there are trials, phases are plain lines: the server's download has the screen.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._console = plain_console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._phase = ""

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the table away and show the cursor again; closing twice is harmless."""
        self._live.stop()

    def show(self, view: SweepView) -> None:
        if view.trials:
            self._live.start()
            waits = [Text(line, style="yellow") for line in _waits(view)[:SHOWN_REASONS]]
            self._live.update(Group(self._head(view), self._table(view), *waits))
        elif view.phase not in (self._phase, TRAINING):
            self._console.print(f"{view.name}: {view.phase} ...", style="bold")
            self._phase = view.phase

    def _head(self, view: SweepView) -> Text:
        parts = [f"{view.name}: {view.phase}", f"elapsed {duration(view.elapsed_s)}"]
        if view.trials:
            parts.insert(1, f"{_ended(view)} of {view.total_trials} trials done")
            eta = _eta(view)
            parts += [eta] if eta else []
        parts += view.faults
        return Text(" | ".join(parts), style="bold")

    def _table(self, view: SweepView) -> Table:
        table = trials_table(self._visible(view), self._objective, width=self._console.width)
        hidden = view.total_trials - len(table.rows)
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
                t.state != RUNNING,
                self._objective.key(t.metric(self._objective.metric)),
            ),
        )
        return order[:room]


def trials_table(trials: Sequence[TrialView], objective: Objective, *, width: int) -> Table:
    """How far each is, and its newest numbers."""
    narrow = width < 100
    table = plain_table(expand=False)
    for column in ("trial", "step", "", "train/nll", objective.metric):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    # Rich shortens what may wrap: here the names alone, which have no space to wrap at.
    names = table.columns[0]
    names.justify, names.no_wrap, names.overflow = "left", False, "ellipsis"
    if not narrow:
        table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for trial in trials:
        table.add_row(*_row(trial, objective, narrow=narrow))
    return table


def _row(trial: TrialView, objective: Objective, *, narrow: bool) -> list[str | Text | ProgressBar]:
    record = trial.record
    width = 6 if narrow else 12
    cells: list[str | Text | ProgressBar] = [
        Text(_name(record), no_wrap=True, overflow="ellipsis"),
        f"{trial.step}/{record.total_steps}",
        ProgressBar(total=max(1, record.total_steps), completed=trial.step, width=width),
        number(trial.metric("train/nll")),
        number(trial.metric(objective.metric)),
    ]
    if not narrow:
        cells.append(number(trial.metric("perf/tokens_per_s"), digits=0))
    return [*cells, Text(_doing(trial), style=_style(trial))]


def _name(record: TrialRecord) -> str:
    return "base model" if record.reference else record.run_name


def _doing(trial: TrialView) -> str:
    """What the trial does now, in a word or two."""
    phase = trial.phase
    state = str(trial.waiting["state"]) if trial.waiting else trial.state
    if phase.get("phase") == EVALUATING:
        state = f"eval {phase.get('done', 0)}/{phase.get('of', 0)}"
    retries = trial.record.retries
    return f"{state} (try {1 + retries})" if retries else state


def _style(trial: TrialView) -> str:
    return "yellow" if trial.waiting else STYLES.get(trial.state, "")


def _ended(view: SweepView) -> int:
    return sum(t.ended for t in view.trials)


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
        self.close()

    def close(self) -> None:
        """Nothing is left on the screen."""

    def show(self, view: SweepView) -> None:
        now = time.monotonic()
        waits = _waits(view)
        is_news = view.phase != self._phase or waits != self._waits
        if self._quiet or not (is_news or now >= self._next):
            return
        self._phase, self._waits, self._next = view.phase, waits, now + PLAIN_EVERY_S
        line = f"[{duration(view.elapsed_s)}] {view.name}: {view.phase}"
        if view.trials:
            line += f", {_ended(view)} of {view.total_trials} trials"
            line += f", {view.steps_done} of {view.steps_total} steps"
            evaluating = sum(t.phase.get("phase") == EVALUATING for t in view.trials)
            line += f", {evaluating} evaluating" if evaluating else ""
            eta = _eta(view)
            line += f", {eta}" if eta else ""
            line += "".join(f"; {wait}" for wait in waits[:SHOWN_REASONS])
        print(line, file=sys.stderr, flush=True)
