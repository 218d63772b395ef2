"""The object that `status --json` prints, and what it is made of."""

from __future__ import annotations

from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import SweepPaths, plain
from crucible_tinkex.registry import INTERRUPTED, PENDING, RUNNING, SweepState, TrialRecord
from crucible_tinkex.registry.resolved import read_resolved
from crucible_tinkex.storage import is_locked, storage_errors
from crucible_tinkex.sweep.orders.hints import no_sweep
from crucible_tinkex.sweep.results.leaderboard import (
    Configuration,
    Objective,
    best,
    configurations,
    ranked,
)
from crucible_tinkex.sweep.results.quality import quality_summary
from crucible_tinkex.sweep.results.views.kept import checkpoint_counts


def existing_sweep(storage: str, name: str) -> SweepPaths:
    """Where a sweep lies. Raises `ConfigError` if there is none, `StorageError` if that cannot be
    known."""
    paths = SweepPaths.of(storage, name)
    with storage_errors(paths.root):
        if paths.root.exists() and not paths.root.is_dir():
            raise ConfigError(f"{paths.root} is a file, not the folder of a sweep")
        if not (paths.journal.is_dir() or paths.resolved.exists()):
            raise no_sweep(paths)
    return paths


def read_state(paths: SweepPaths) -> SweepState:
    """What the journal says; of a sweep that is only starting, what it was asked for. Where no
    process lives to train them, trials are pending, not running. Raises `CorruptLogError` that
    names the damaged file."""
    state = SweepState.read(paths) if paths.journal.is_dir() else SweepState()
    settle(state, paths)
    return state


def settle(state: SweepState, paths: SweepPaths) -> list[TrialRecord]:
    """What the journal alone does not say, as `read_state` has it; the trials whose state it
    changed."""
    if not state.meta:
        state.meta = read_resolved(paths)
    if is_locked(paths.lock):
        return []
    abandoned = [trial for trial in state.open.values() if trial.state == RUNNING]
    for trial in abandoned:
        trial.state = PENDING
    return abandoned


def sweep_state(state: SweepState, paths: SweepPaths) -> str:
    """running only while a live process owns the sweep; pending where no run ever began, as that
    was refused."""
    if state.state in (RUNNING, PENDING) and state.runs and not is_locked(paths.lock):
        return INTERRUPTED
    return state.state


def summary(state: SweepState, paths: SweepPaths) -> dict[str, Any]:
    """Stable: keys are only ever added."""
    objective = Objective.of(state)
    winner = best(state)
    return {
        "sweep": paths.root.name,
        "state": sweep_state(state, paths),
        "ended": state.ended,
        "ended_by": state.ended_by or None,
        "paused": state.held,
        "metric": objective.metric,
        "direction": objective.direction,
        "at": objective.at,
        "trials": [trial_summary(t, objective) for t in ranked(state)],
        "configurations": [configuration_summary(c) for c in configurations(state)],
        "best": trial_summary(winner.best_trial, objective) if winner else None,
        "best_configuration": configuration_summary(winner) if winner else None,
        "conclusion": _concluded(state),
        "quality": quality_summary(state, paths),
        "checkpoints": checkpoint_counts(state),
        "waiting": waits(state, paths),
        "faults": list(faults(paths)),
        "spent": {**vars(state.spent), "wall_seconds": round(state.wall_s, 1)},
        "proofs": {**vars(state.proofs)},
        "runs": len(state.runs),
    }


def _concluded(state: SweepState) -> dict[str, Any]:
    from crucible_tinkex.sweep.results.conclusion import conclusion

    return conclusion(state).to_dict()


def waits(state: SweepState, paths: SweepPaths) -> dict[str, dict[str, Any]]:
    """What the service keeps trials waiting for, by trial id; nothing unless the sweep runs."""
    if sweep_state(state, paths) != RUNNING or not paths.events.is_dir():
        return {}
    from crucible_tinkex.telemetry.query import waiting

    return waiting(paths.events)


def faults(paths: SweepPaths) -> tuple[str, ...]:
    """Views (TensorBoard) that were behind the events when the log was last rolled."""
    from crucible_tinkex.telemetry.recorder import stored_faults

    return stored_faults(paths)


def trial_summary(trial: TrialRecord, objective: Objective) -> dict[str, Any]:
    return {
        "id": trial.trial_id,
        "name": trial.run_name,
        "state": trial.state,
        "reference": trial.reference,
        "seed": trial.seed,
        "phase": trial.phase,
        "parent": trial.origin.parent if trial.origin else None,
        "forked_at": trial.origin.step if trial.origin and trial.origin.warm else None,
        "config": trial.values,
        "step": trial.step,
        "total_steps": trial.total_steps,
        "metrics": plain(objective.metrics(trial)),
        "metrics_step": objective.step(trial),
        "checkpoints": [{"step": c.step, "path": c.path} for c in trial.checkpoints],
        "samplers": [{"step": c.step, "path": c.path} for c in trial.samplers],
        "attempts": trial.attempt,
        "error": trial.error,
        "spent": {**vars(trial.spent)},
        "decisions": [
            {"kind": d.kind, "to_step": d.to_step, "reason": d.reason} for d in trial.decisions
        ],
    }


def configuration_summary(configuration: Configuration) -> dict[str, Any]:
    return {
        "config": dict(configuration.values),
        "reference": configuration.reference,
        "phase": configuration.phase,
        "complete": configuration.complete,
        "n": len(configuration.done),
        "missing_seeds": list(configuration.missing_seeds),
        "mean": plain(configuration.mean),
        "sd": plain(configuration.spread),
        "half_width": configuration.half_width,
        "trials": [t.trial_id for t in configuration.trials],
    }
