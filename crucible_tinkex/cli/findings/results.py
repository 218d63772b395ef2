"""Commands that look at sweeps: `status`, `list`."""

from __future__ import annotations

import json as json_module
from collections import Counter
from pathlib import Path

from crucible_tinkex.cli.findings.concluding import print_findings
from crucible_tinkex.cli.terminal.tables import plain_table, print_table, wait_lines
from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, FAILED, STOPPED, SweepState
from crucible_tinkex.storage import storage_errors
from crucible_tinkex.sweep.results.views.kept import checkpoint_line
from crucible_tinkex.sweep.results.views.summary import (
    existing_sweep,
    faults,
    read_state,
    summary,
    sweep_state,
    waits,
)


def show_status(sweep: str, *, storage: str, json: bool) -> None:
    paths = existing_sweep(storage, sweep)
    state = read_state(paths)
    if json:
        print(json_module.dumps(summary(state, paths)))
        return
    why = f", by {state.ended}" if state.ended_by else ", paused" if state.held else ""
    print(f"{sweep}: {sweep_state(state, paths)}{why}")
    print_findings(state, paths)
    if kept := checkpoint_line(state):
        print(kept)
    for line in (*wait_lines(waits(state, paths).values()), *faults(paths)):
        print(line)


def show_list(storage: str, *, json: bool) -> None:
    folder = Path(storage).expanduser()
    with storage_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file, not a storage folder")
        rows = [_listed(paths) for paths in SweepPaths.below(folder)]
    if json:
        print(json_module.dumps(rows))
        return
    if not rows:
        print(f"no sweeps in {folder}")
        return
    table = plain_table()
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_table(table)


def _listed(paths: SweepPaths) -> dict[str, str | int]:
    try:
        state = read_state(paths)
        word = sweep_state(state, paths)
    except StorageError:
        state, word = SweepState(), "corrupt"
    counts = Counter(trial.state for trial in state.trials.values())
    return {
        "sweep": paths.root.name,
        "state": word,
        "trials": counts.total(),
        **{ended: counts[ended] for ended in (DONE, STOPPED, FAILED)},
    }
