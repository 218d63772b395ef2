"""`crucible conclude` and `compare`: what a sweep's numbers support, in words or as JSON."""

from __future__ import annotations

import json as json_module
import math
from typing import TYPE_CHECKING

from crucible_tinkex.cli.terminal.tables import (
    SHOWN_ROWS,
    plain_table,
    print_leaderboard,
    print_sentences,
    print_table,
    verdict,
)
from crucible_tinkex.cli.weights.numbers import number_text
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import TERMINAL, SweepState
from crucible_tinkex.sweep.orders.hints import surer
from crucible_tinkex.sweep.results.leaderboard import Objective, configurations
from crucible_tinkex.sweep.results.quality import quality_lines, quality_summary
from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state

if TYPE_CHECKING:
    from crucible_tinkex.bench import Conclusion


def concluded(state: SweepState) -> Conclusion | None:
    """Nothing where there is only one configuration, or none has ended yet."""
    found = [c for c in configurations(state) if not c.reference]
    if len(found) < 2 or not any(t.state in TERMINAL for c in found for t in c.trials):
        return None
    from crucible_tinkex.sweep.results.conclusion import conclusion

    return conclusion(state)


def print_findings(state: SweepState, paths: SweepPaths) -> Conclusion | None:
    """Of a sweep that runs or ran: the leaderboard, the verdict, the conclusion, the targets.
    Gives the conclusion back, which takes a while where there are many seeds."""
    if state.trials:
        print_leaderboard(state)
    said = concluded(state)
    lines = [said.verdict, *(f"- {note}" for note in said.notes)] if said else []
    print_sentences("\n".join((verdict(state), *lines, *quality_lines(state, paths))))
    return said


def show_conclusion(sweep: str, *, storage: str, json: bool) -> None:
    from crucible_tinkex.api import Sweep  # brings Ray along, which `status` can do without

    paths = existing_sweep(storage, sweep)
    found, state = Sweep(paths).conclusion(), read_state(paths)
    if json:
        print(json_module.dumps({**found.to_dict(), "quality": quality_summary(state, paths)}))
        return
    print_sentences(found.verdict)
    if found.rivals:
        table = plain_table(title=f"behind {found.leader}, by {Objective.of(state)}")
        for column in ("configuration", "seeds", "mean", "behind by", "at least", "at most"):
            left = column == "configuration"
            table.add_column(column, justify="left" if left else "right", overflow="fold")
        for rival in found.rivals[:SHOWN_ROWS]:
            numbers = (rival.mean, rival.behind_by, rival.low, rival.high)
            table.add_row(rival.name, str(rival.shared), *map(number_text, numbers))
        print_table(table)
    said = [f"- {note}" for note in found.notes]
    said += [f"left out: {one.name}: {one.reason}" for one in found.left_out[:SHOWN_ROWS]]
    if said := [*said, *quality_lines(state, paths)]:
        print_sentences("\n".join(said))
    if command := surer(state, paths, found):
        print(f"to be surer: {command}")


def show_comparison(sweep: str, a: str, b: str, *, storage: str, json: bool) -> None:
    from crucible_tinkex.api import Sweep

    paths = existing_sweep(storage, sweep)
    found = Sweep(paths).compare(a, b)
    if json:
        print(json_module.dumps(found.to_dict()))
        return
    seeds = "1 shared seed" if found.seeds == 1 else f"{found.seeds} shared seeds"
    of = f"{Objective.of(read_state(paths)).metric} of {a} less that of {b}"
    effect = f"effect size {found.effect_size:.2g}; " if math.isfinite(found.effect_size) else ""
    pairs = f"{of}; {effect}{found.pairs} pairs of {found.examples} examples, {seeds}"
    print_sentences("\n".join([found.verdict, pairs, *(f"- {note}" for note in found.notes)]))
