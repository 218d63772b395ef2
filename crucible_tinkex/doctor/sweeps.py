"""The sweeps of a storage: whether it takes files, whether each journal can be read, and whether
the events tell of the same steps."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from crucible_tinkex.doctor.finding import Note
from crucible_tinkex.errors import CorruptLogError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, INTERRUPTED, SweepState
from crucible_tinkex.storage import check_writable
from crucible_tinkex.sweep.launch import NEED_BYTES
from crucible_tinkex.sweep.orders.hints import sweep_arguments
from crucible_tinkex.sweep.results.views.summary import read_state, sweep_state
from crucible_tinkex.telemetry.query import query

STEPS = """
SELECT trial_id, count(DISTINCT step) AS steps, min(step) AS first, max(step) AS last FROM events
WHERE kind = 'training_step' GROUP BY trial_id
"""


def storage(folder: Path) -> str:
    """Prove that `folder` takes files, without making it. Raises `StorageError`."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    check_writable(existing, need_bytes=NEED_BYTES)
    free = shutil.disk_usage(existing).free
    return f"{folder}: writable, {free / 1e9:,.1f} GB free"


def sweep(paths: SweepPaths, *, deep: bool) -> str:
    """Read its journal; `deep` also its events, all of them. Raises `CorruptLogError` that names
    what is damaged or missing."""
    state = read_state(paths)
    counts = Counter(trial.state for trial in state.trials.values())
    word = sweep_state(state, paths)
    says = ", ".join((word, *(f"{count} {name}" for name, count in sorted(counts.items()))))
    if deep:
        says += f"; {_recorded(state, paths)} steps in its events"
    if word == INTERRUPTED:
        return Note(f"{says}; go on: crucible resume {sweep_arguments(paths)}")
    return says


def _recorded(state: SweepState, paths: SweepPaths) -> int:
    """How many steps the events have; those of trials that are done must be whole."""
    found = {row.pop("trial_id"): row for row in query(paths.events, STEPS).to_pylist()}
    for trial in state.trials.values():
        has = found.get(trial.trial_id, {"steps": 0, "first": 0, "last": 0})
        whole = has["last"] == trial.step and has["steps"] == trial.step - has["first"] + 1
        if trial.state == DONE and trial.step and not whole:
            raise CorruptLogError(
                f"{paths.events}: trial {trial.trial_id} did {trial.step} steps, and the events "
                f"have {has['steps']} up to step {has['last']}; its results stand in the journal"
            )
    return sum(row["steps"] for row in found.values())
