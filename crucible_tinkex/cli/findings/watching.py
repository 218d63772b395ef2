"""`crucible watch` in the terminal: best so far, ranking, spend and what waits, drawn again and
again from the sweeps' folders. The tables are those of `status` and `run`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crucible_tinkex.cli.findings.concluding import concluded
from crucible_tinkex.cli.terminal.live import duration, trials_table
from crucible_tinkex.cli.terminal.tables import (
    STYLES,
    leaderboard_table,
    plain_console,
    verdict,
    wait_lines,
)
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, INTERRUPTED, TERMINAL, SweepState
from crucible_tinkex.sweep.deciding.prices import Price, price_of
from crucible_tinkex.sweep.orders.hints import going_on
from crucible_tinkex.sweep.results.leaderboard import Objective
from crucible_tinkex.sweep.results.quality import quality_lines
from crucible_tinkex.sweep.results.views.following import Followed, open_trials
from crucible_tinkex.sweep.results.views.summary import (
    existing_sweep,
    faults,
    sweep_state,
)
from crucible_tinkex.sweep.results.views.view import TrialView

REFRESH_S = 2.0
PATIENCE = 4
"""Times as long as a look took, until the next: a long sweep is not read without a pause."""
MOST_OPEN = 8
MOST_LINES = 4
"""Of what is said of the best, of the targets, and of why trials wait."""
FEWEST_ROWS = 3
_AROUND_RANKING, _AROUND_OPEN = 6, 5
"""Lines of a table that are no rows."""


def watch_in_terminal(sweeps: Sequence[str], *, storage: str, once: bool) -> int:
    """Draws on stdout until Ctrl-C, or until all sweeps are done; the last frame stays. `once`, or
    where stdout is no terminal: one frame. Returns the exit code."""
    found = [Watched(existing_sweep(storage, name)) for name in dict.fromkeys(sweeps)]
    console = plain_console()
    if not once and console.is_terminal:
        try:
            _follow(found, console)
        except KeyboardInterrupt:
            print("no longer watched; the sweep itself goes on", file=sys.stderr)
            return 0
    frame, _ = _frame(found, console, height=None)
    console.print(frame)
    return 0


class Watched:
    """A sweep that is looked at again and again."""

    def __init__(self, paths: SweepPaths) -> None:
        self.paths = paths
        self._followed = Followed(paths)
        self._price: Price | None = None
        self._is_priced = False

    def look(self) -> Look:
        state = self._followed.read()
        if state.meta and not self._is_priced:
            self._price, self._is_priced = _price(state, self.paths), True
        return Look(self.paths, state, sweep_state(state, self.paths), self._price)


class Look(NamedTuple):
    """What was seen of it."""

    paths: SweepPaths
    state: SweepState
    name: str
    """Of the sweep's state."""
    price: Price | None


def _follow(sweeps: Sequence[Watched], console: Console) -> None:
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            frame, is_over = _frame(sweeps, console, height=console.height)
            live.update(frame, refresh=True)
            if is_over:
                return
            time.sleep(max(REFRESH_S, PATIENCE * (time.monotonic() - began)))


def _frame(
    sweeps: Sequence[Watched], console: Console, *, height: int | None
) -> tuple[Group, bool]:
    """What is to be seen now, in about so many lines (None: as many as it needs), and whether
    nothing will change any more."""
    parts: list[RenderableType] = []
    states = []
    for place, watched in enumerate(sweeps):
        look = watched.look()
        states.append(look.name)
        parts += [""] if place else []
        parts += _sweep(look, console, None if height is None else height // len(sweeps))
    return Group(*parts), all(state == DONE for state in states)


def _sweep(look: Look, console: Console, height: int | None) -> list[RenderableType]:
    state, paths = look.state, look.paths
    views = open_trials(state, paths)
    head = [_head(look), _progress(state, views, console.width)]
    head += [*_told(state, paths), *_waits(look, views)]
    if not state.trials:
        return head
    taken = len(console.render_lines(Group(*head)))
    room = None if height is None else height - taken - _AROUND_RANKING
    shown = views[: MOST_OPEN if room is None else max(1, min(MOST_OPEN, room // 3))]
    below = len(shown) + _AROUND_OPEN if shown else 0
    rows = None if room is None else max(FEWEST_ROWS, room - below)
    ranking = leaderboard_table(state, width=console.width, rows=rows)
    if not shown:
        return [*head, ranking]
    table = trials_table(shown, Objective.of(state), width=console.width)
    table.caption = f"and {len(views) - len(shown)} more" if len(views) > len(shown) else None
    return [*head, ranking, table]


def _head(look: Look) -> Text:
    state, name = look.state, look.name
    why = f", by {state.ended}" if state.ended_by else ", paused" if state.held else ""
    ended = sum(t.state in TERMINAL for t in state.trials.values())
    parts = [f"{ended} of {len(state.trials)} trials ended", *_spent(state, look.price)]
    head = Text.assemble((f"{look.paths.root.name}: ", "bold"), (name, STYLES.get(name, "bold")))
    return head.append(" | ".join([why, *parts]))


def _price(state: SweepState, paths: SweepPaths) -> Price | None:
    """Read once: neither the base nor what it costs changes while one looks."""
    try:
        return price_of(Experiment.loaded(state.meta["experiment"], folder=paths.root))
    except ConfigError:  # its price table is gone, or too old: what it cost is not known
        return None


def _spent(state: SweepState, price: Price | None) -> list[str]:
    spent = state.spent
    said = [f"{spent.tokens:,} tokens", f"{duration(spent.seconds)} of sessions"]
    dollars = price.of(spent) if price else 0.0
    return [*said, f"${dollars:,.2f}"] if dollars else said


def _progress(state: SweepState, views: Sequence[TrialView], width: int) -> RenderableType:
    """Steps of all trials there are; those that ended count as the rest of theirs."""
    steps = {view.record.trial_id: view.step for view in views}
    total = sum(t.total_steps for t in state.trials.values())
    done = sum(steps.get(t.trial_id, t.total_steps) for t in state.trials.values())
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, total), completed=done, width=width // 2)
    row.add_row(bar, f"{done:,} of {total:,} steps")
    return row


def _told(state: SweepState, paths: SweepPaths) -> list[RenderableType]:
    """The best so far, the verdict with its interval, the targets."""
    lines = verdict(state).splitlines()
    shown = lines[:MOST_LINES]
    shown += [f"and {len(lines) - len(shown)} more"] if len(lines) > len(shown) else []
    found = concluded(state)
    told = [found.verdict] if found else []
    said = [*shown, *told, *quality_lines(state, paths)[:MOST_LINES]]
    return [Text(line, overflow="fold") for line in said]


def _waits(look: Look, views: Sequence[TrialView]) -> list[RenderableType]:
    lines = wait_lines(view.waiting for view in views if view.waiting)[:MOST_LINES]
    lines += faults(look.paths)
    if look.name == INTERRUPTED:
        again = going_on(look.state, look.paths)
        lines.append(f"nobody trains it now; continue: {again}")
    return [Text(line, style="yellow", overflow="fold") for line in lines]
