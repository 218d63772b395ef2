"""Tables and sentences about a sweep's results, for people; made to be read at 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crucible_tinkex.names import short_keys
from crucible_tinkex.registry import FAILED, LOST, STOPPED, SweepState
from crucible_tinkex.sweep.leaderboard import Configuration, Objective, best, configurations, tied

SHOWN_ROWS = 40


def print_table(table: Table) -> None:
    """To stdout; as wide as it needs where stdout is no terminal."""
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=200, no_color=True)
    console.print(table)


def plain_console(**options: Any) -> Console:
    """Shows text as it is: a model id has `:train:` in it, which Rich would take for an emoji."""
    return Console(markup=False, emoji=False, **options)


def plain_table(**options: Any) -> Table:
    """Columns two spaces apart, a rule below the head."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, **options)


def leaderboard_table(state: SweepState, *, width: int = 80) -> Table:
    """One row per configuration, the best first: what varied, the mean and spread of the objective
    over the seeds, further metrics as far as they fit in `width`."""
    rows = configurations(state)
    objective = Objective.of(state)
    names = {m for c in rows for t in c.trials for m in objective.metrics(t)}
    others = sorted(names - {objective.metric})
    while True:
        table = _leaderboard(state, rows, [objective.metric, *others])
        if not others or plain_console(width=500).measure(table).maximum <= width:
            return table
        others.pop()


def _leaderboard(state: SweepState, rows: Sequence[Configuration], metrics: Sequence[str]) -> Table:
    axes = short_keys(dict.fromkeys(k for c in rows for k in c.values))
    seeded = any(len(c.trials) > 1 for c in rows)
    table = plain_table(title=f"{state.meta['sweep']}: by {Objective.of(state)}")
    for column in ("#", "trial", *axes.values()):
        table.add_column(column, justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
        if seeded and metric == metrics[0]:
            table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    winner = best(state)
    for place, configuration in enumerate(rows[:SHOWN_ROWS], 1):
        style = "dim" if configuration.reference else None
        if winner and configuration.values == winner.values and not configuration.reference:
            style = "bold green"
        cells = _row(configuration, list(axes), metrics, seeded=seeded)
        where = "-" if configuration.reference or not configuration.complete else str(place)
        table.add_row(where, *cells, style=style)
    if len(rows) > SHOWN_ROWS:
        table.caption = f"and {len(rows) - SHOWN_ROWS} more; --json has all"
    return table


def _row(
    found: Configuration, axes: Sequence[str], metrics: Sequence[str], *, seeded: bool
) -> list[str | Text]:
    trial = found.best_trial
    name = "base" if found.reference else str(trial.index)
    cells: list[str | Text] = [name, *(value_text(found.values.get(a)) for a in axes)]
    for metric in metrics:
        cells.append(_measured(found, metric))
        if seeded and metric == metrics[0]:
            asked = len(found.done) + len(found.missing_seeds)
            cells.append(f"{len(found.done)}/{asked}" if found.missing_seeds else str(asked))
    return [*cells, f"{trial.step}/{trial.total_steps}", found.state]


def _measured(found: Configuration, metric: str) -> str:
    values = found.metric(metric)
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.4f}"
    if metric == found.objective.metric and found.spread is not None:
        return f"{mean} ± {found.spread:.4f}"
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
    stopped = sum(t.state == STOPPED for t in trials)
    if stopped:
        lines.append(f"stopped early: {stopped} of {len(trials)} trials")
    for label in (FAILED, LOST):
        lines += [f"{label}: {t.run_name}: {t.error}" for t in trials if t.state == label]
    return "\n".join(lines) or "no configuration is complete yet"


def _best_line(state: SweepState, winner: Configuration) -> str:
    objective = winner.objective
    value = _measured(winner, objective.metric)
    seeds = len(winner.done)
    over = f" over {seeds} seeds" if seeds > 1 else ""
    base = next((t for t in state.trials.values() if t.reference), None)
    untrained = objective.value(base) if base else None
    against = "" if untrained is None else f", untrained {untrained:.4f}"
    return f"best: {_values(winner)}  ({objective.metric} {value}{over}{against})"


def _values(configuration: Configuration) -> str:
    found = ", ".join(f"{k} = {value_text(v)}" for k, v in configuration.values.items())
    return found or "the one configuration"
