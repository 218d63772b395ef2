"""Tables and sentences about a sweep's results, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from crucible_tinkex.leaderboard import Objective, best, ranked
from crucible_tinkex.registry import FAILED, SweepState, TrialRecord


def print_table(table: Table) -> None:
    """To stdout; as wide as it needs where stdout is no terminal."""
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=200, no_color=True)
    console.print(table)


def plain_console(**options: Any) -> Console:
    """Shows text as it is: a model id has `:train:` in it, which Rich would take for an emoji."""
    return Console(markup=False, emoji=False, **options)


def leaderboard_table(state: SweepState) -> Table:
    """All trials, the best first, with what varied and every held-out metric."""
    trials = ranked(state)
    axes = list(dict.fromkeys(k for t in trials for k in t.values))
    objective = Objective.of(state)
    metrics = [objective.metric]
    metrics += sorted({m for t in trials for m in t.metrics} - set(metrics))
    many_seeds = len({t.seed for t in trials}) > 1
    table = Table(title=f"{state.meta['sweep']}: by {objective.metric} ({objective.direction})")
    for column in ("#", "trial", *axes, *(["seed"] if many_seeds else []), *metrics):
        table.add_column(column, justify="left" if column == "trial" else "right", no_wrap=True)
    table.add_column("step", justify="right")
    table.add_column("state")
    winner = best(state)
    for place, trial in enumerate(trials, 1):
        row = _row(place, trial, axes, metrics, many_seeds=many_seeds)
        style = "bold green" if trial is winner else "dim" if trial.reference else None
        table.add_row(*row, style=style)
    return table


def _row(
    place: int, trial: TrialRecord, axes: Sequence[str], metrics: Sequence[str], *, many_seeds: bool
) -> list[str | Text]:
    name = "untrained base model" if trial.reference else f"{trial.index:04d}"
    cells = [str(place), name, *(_value(trial.values.get(a)) for a in axes)]
    cells += [str(trial.seed)] if many_seeds else []
    cells += ["-" if m not in trial.metrics else f"{trial.metrics[m]:.4f}" for m in metrics]
    return [*cells, f"{trial.step}/{trial.total_steps}", trial.state]


def _value(value: Any) -> str:
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
    """Which configuration is best, against what, and what failed."""
    objective = Objective.of(state)
    winner = best(state)
    lines = []
    if winner:
        config = ", ".join(f"{k} = {_value(v)}" for k, v in winner.values.items())
        value = winner.metrics[objective.metric]
        lines.append(f"best: {config or 'the one configuration'}  ({objective.metric} {value:.4f}")
        base = next((t for t in state.trials.values() if t.reference), None)
        if base and objective.metric in base.metrics:
            lines[-1] += f", untrained {base.metrics[objective.metric]:.4f}"
        lines[-1] += ")"
    failed = [t for t in state.trials.values() if t.state == FAILED]
    lines += [f"failed: {t.run_name}: {t.error}" for t in failed]
    return "\n".join(lines) or "no trial has finished yet"
