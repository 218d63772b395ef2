"""Tables and sentences about a sweep's results, for people; made to be read at 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from textwrap import TextWrapper
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crucible_tinkex.names import short_keys
from crucible_tinkex.registry import (
    CONFIRM,
    DONE,
    FAILED,
    LOST,
    PAUSED,
    PERSON,
    RUNNING,
    STOPPED,
    SweepState,
)
from crucible_tinkex.sweep.results.leaderboard import (
    Configuration,
    Objective,
    best,
    configurations,
    placed_by_shared_seeds,
    places,
    tied,
)

SHOWN_ROWS = 40
STYLES = {
    DONE: "green",
    STOPPED: "yellow",
    PAUSED: "yellow",
    FAILED: "bold red",
    LOST: "red",
    RUNNING: "cyan",
}


def print_table(table: Table) -> None:
    """To stdout; as wide as it needs where stdout is no terminal."""
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=max(80, console.measure(table, options=WIDE).maximum))
    console.print(table)


def print_rows(table: Table) -> None:
    """As `print_table`, of rows that people copy from: where it is wider than the terminal, a block
    of lines for each row, and nothing is cut. Cells are text."""
    console = plain_console()
    if not console.is_terminal or console.measure(table, options=WIDE).maximum <= console.width:
        print_table(table)
        return
    names = [str(column.header) for column in table.columns]
    width = max(map(len, names))
    for number, row in enumerate(zip(*(column.cells for column in table.columns), strict=True), 1):
        print(f"--- {number}")
        for name, value in zip(names, row, strict=True):
            print(f"{name:<{width}}  {value}")


def print_sentences(text: str, *, to_stderr: bool = False) -> None:
    """To stdout or stderr, lines broken between words at the width of a terminal; as they are
    elsewhere."""
    console = plain_console(stderr=to_stderr)
    wrapper = TextWrapper(console.width, break_long_words=False, break_on_hyphens=False)
    for line in text.splitlines():
        print(wrapper.fill(line) if console.is_terminal else line, file=console.file, flush=True)


def plain_console(**options: Any) -> Console:
    """Shows text as it is: a model id has `:train:` in it, which Rich would take for an emoji."""
    return Console(markup=False, emoji=False, highlight=False, **options)


WIDE = plain_console(width=10_000).options


def plain_table(**options: Any) -> Table:
    """Columns two spaces apart, a rule below the head."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), **options)


def print_leaderboard(state: SweepState) -> None:
    """To stdout, as wide as the terminal; 80 columns where there is none."""
    console = plain_console()
    print_table(leaderboard_table(state, width=console.width if console.is_terminal else 80))


def leaderboard_table(state: SweepState, *, width: int = 80, rows: int | None = None) -> Table:
    """One row per configuration, the best first (at most `rows` of them): what varied, the mean of
    the objective over the seeds with its interval, further metrics as far as they fit in `width`.
    What varied shares one column, that may wrap, where its own columns would not fit."""
    found = configurations(state)
    most = SHOWN_ROWS if rows is None else min(rows, SHOWN_ROWS)
    objective = Objective.of(state)
    names = {m for c in found for t in c.trials for m in objective.metrics(t)}
    metrics = [objective.metric, *sorted(names - {objective.metric})]
    for count in range(len(metrics), 0, -1):
        table = _leaderboard(state, found, metrics[:count], most)
        if plain_console().measure(table, options=WIDE).maximum <= width:
            return table
    return _leaderboard(state, found, metrics[:1], most, one_column=True)


def _leaderboard(
    state: SweepState,
    rows: Sequence[Configuration],
    metrics: Sequence[str],
    most: int,
    *,
    one_column: bool = False,
) -> Table:
    axes = short_keys(dict.fromkeys(k for c in rows for k in c.values))
    seeded = any(len({*(t.seed for t in c.trials), *c.missing_seeds}) > 1 for c in rows)
    interval = ", ± 95 % over seeds" if any(c.spread is not None for c in rows) else ""
    shared = "; placed on shared seeds" if placed_by_shared_seeds(rows) else ""
    table = plain_table(title=f"{state.meta['sweep']}: by {Objective.of(state)}{interval}{shared}")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("trial", justify="right", no_wrap=True)
    if one_column:
        table.add_column("configuration", overflow="fold")
    else:
        _add_columns(table, axes.values())
    _add_columns(table, metrics[:1])
    _add_columns(table, ["seeds"] if seeded else [])
    confirmed = any(c.phase == CONFIRM for c in rows)
    _add_columns(table, ["phase"] if confirmed else [])
    _add_columns(table, [*metrics[1:], "step"])
    table.add_column("state", no_wrap=True)
    for place, found in list(zip(places(rows), rows, strict=True))[:most]:
        best_style = "bold green" if place and place.number == 1 else None
        values = [value_text(found.values.get(a)) for a in axes]
        if one_column:
            named = zip(axes.values(), values, strict=True)
            values = [", ".join(f"{name} {value}" for name, value in named if value != "-")]
        cells = [
            str(place or "-"),
            _name(found),
            *values,
            *_measured_cells(found, metrics, seeded, confirmed),
        ]
        state_cell = Text(found.state, style=STYLES.get(found.state, ""))
        table.add_row(*cells, state_cell, style="dim" if found.reference else best_style)
    if len(rows) > most:
        table.caption = f"and {len(rows) - most} more; --json has all"
    return table


def _add_columns(table: Table, names: Iterable[str]) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _name(found: Configuration) -> str:
    return "base" if found.reference else str(found.best_trial.index)


def _measured_cells(
    found: Configuration, metrics: Sequence[str], seeded: bool, confirmed: bool
) -> list[str]:
    """The objective, over how many of its seeds and which, other metrics, the step of all."""
    trial = found.best_trial
    asked = len(found.done) + len(found.missing_seeds)
    seeds = f"{len(found.done)}/{asked}" if found.missing_seeds else str(asked)
    step = found.objective.step(trial)
    return [
        _measured(found, metrics[0]),
        *([seeds] if seeded else []),
        *([found.phase] if confirmed else []),
        *(_measured(found, metric) for metric in metrics[1:]),
        f"{trial.step if step is None else step}/{trial.total_steps}",
    ]


def _measured(found: Configuration, metric: str) -> str:
    values = found.metric(metric)
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.4f}"
    if metric == found.objective.metric and (half := found.half_width) is not None:
        return f"{mean} ± {half:.4f}"
    return mean


def value_text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def wait_lines(waiting: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per reason why trials do not move, the most common first."""
    resume_at: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for wait in waiting:
        why = f"{wait['state']}: {wait['reason']}" if wait.get("reason") else wait["state"]
        counts[why] += 1
        resume_at[why] = max(resume_at.get(why, 0.0), wait.get("resume_at") or 0.0)
    return [
        f"{count} {'trial waits' if count == 1 else 'trials wait'}, {why}{_again(resume_at[why])}"
        for why, count in counts.most_common()
    ]


def _again(resume_at: float) -> str:
    return f" (again at {datetime.fromtimestamp(resume_at):%H:%M:%S})" if resume_at else ""


def verdict(state: SweepState) -> str:
    """Which configuration is best, against what; what was stopped, failed or lost."""
    winner = best(state)
    lines = [_best_line(state, winner)] if winner else []
    if winner:
        lines += [f"tied with it: {_values(c)}" for c in tied(state, winner)]
    trials = state.trials.values()
    stopped = [t for t in trials if t.state == STOPPED]
    by_hand = sum(t.hold == PERSON for t in stopped)
    if stopped:
        whose = f", {by_hand} by hand" if by_hand else ""
        lines.append(f"stopped early: {len(stopped)} of {len(trials)} trials{whose}")
    for label in (FAILED, LOST):
        lines += [f"{label}: {t.run_name}: {t.error}" for t in trials if t.state == label]
    return "\n".join(lines) or "no configuration is complete yet"


def _best_line(state: SweepState, winner: Configuration) -> str:
    objective = winner.objective
    value = _measured(winner, objective.metric)
    seeds = len(winner.done)
    fresh = "fresh " if winner.phase == CONFIRM else ""
    over = f" over {seeds} {fresh}{'seed' if seeds == 1 else 'seeds'}" if seeds > 1 or fresh else ""
    base = next((t for t in state.trials.values() if t.reference), None)
    untrained = objective.value(base) if base else None
    against = "" if untrained is None else f", untrained {untrained:.4f}"
    return f"best: {_values(winner)}\n      {objective.metric} {value}{over}{against}"


def _values(configuration: Configuration) -> str:
    found = ", ".join(f"{k} = {value_text(v)}" for k, v in configuration.values.items())
    return found or "the one configuration"
