"""Commands that look at sweeps: `status`, `list`, `query`, `tb`."""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from crucible_tinkex.cli.tables import leaderboard_table, print_table, verdict, wait_lines
from crucible_tinkex.errors import ConfigError, CorruptLogError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import TERMINAL, SweepState
from crucible_tinkex.sweep.summary import summary, sweep_state, waits


def _existing(sweep: str, storage: str) -> SweepPaths:
    paths = SweepPaths.of(storage, sweep)
    if not paths.journal.is_dir() and not paths.resolved.exists():
        raise ConfigError(f"no sweep {sweep!r} in {paths.root.parent}; `crucible list` shows them")
    return paths


def show_status(sweep: str, *, storage: str, json: bool) -> None:
    paths = _existing(sweep, storage)
    state = SweepState.read(paths)
    if json:
        print(json_module.dumps(summary(state, paths)))
        return
    print(f"{sweep}: {sweep_state(state, paths)}")
    print_table(leaderboard_table(state))
    print(verdict(state))
    for line in wait_lines(waits(state, paths).values()):
        print(line)


def show_list(storage: str, *, json: bool) -> None:
    rows = [_listed(path.parent) for path in sorted(Path(storage).glob("*/journal"))]
    if json:
        print(json_module.dumps(rows))
        return
    table = Table()
    for column in ("sweep", "state", "trials", "done"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row[c]) for c in ("sweep", "state", "trials", "done")))
    print_table(table)


def _listed(root: Path) -> dict[str, str | int]:
    paths = SweepPaths(root)
    try:
        state = SweepState.read(paths)
    except CorruptLogError:
        return {"sweep": root.name, "state": "corrupt", "trials": 0, "done": 0}
    return {
        "sweep": root.name,
        "state": sweep_state(state, paths),
        "trials": len(state.trials),
        "done": sum(t.state in TERMINAL for t in state.trials.values()),
    }


def show_query(sweep: str, sql: str, *, storage: str, json: bool) -> None:
    from crucible_tinkex.telemetry.query import query

    result = query(_existing(sweep, storage).events, sql)
    if json:
        print(json_module.dumps(result.to_pylist(), default=str))
        return
    table = Table()
    for column in result.column_names:
        table.add_column(column)
    for row in result.to_pylist():
        table.add_row(*(str(v) for v in row.values()))
    print_table(table)


def tensorboard(sweep: str, *, storage: str, port: int) -> int:
    """Run TensorBoard on the sweep's folder until it is interrupted."""
    folder = _existing(sweep, storage).tensorboard
    if find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed; run: pip install tensorboard")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--reload_multifile", "true"]
    return subprocess.call(command)
