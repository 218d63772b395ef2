"""A trial of a sweep as a registered model, with all that is known of where it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from crucible_tinkex.config.sweep.search import TRAINING_DATA
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import CheckpointRecord, SweepState, TrialRecord
from crucible_tinkex.registry.models import ModelRegistry, ModelVersion
from crucible_tinkex.sweep.results.leaderboard import Objective, best
from crucible_tinkex.sweep.results.trained import counting_checkpoint


def register_best(state: SweepState, paths: SweepPaths) -> ModelVersion | None:
    """What `models.auto_register` asks for, once the sweep has ended; None where it asks for
    nothing or no configuration is complete. Doing it again changes nothing."""
    asked: dict[str, Any] = state.meta["experiment"].get("models", {})
    name = asked.get("auto_register")
    winner = best(state) if name and state.complete else None
    if winner is None or name is None:
        return None
    trial = winner.best_trial
    if not trial.all_checkpoints:
        return None
    return register_trial(state, paths, trial, name, tags=asked.get("tags", ()))


def register_trial(
    state: SweepState,
    paths: SweepPaths,
    trial: TrialRecord,
    name: str,
    *,
    tags: Collection[str] = (),
) -> ModelVersion:
    """A new version of the model `name` in the sweep's storage. Raises `ConfigError` for a trial
    without a checkpoint."""
    objective = Objective.of(state)
    checkpoint = counting_checkpoint(trial, objective)
    entry = _entry(state, trial, checkpoint, objective)
    models = ModelRegistry.open(paths.root.parent)
    return models.register_model(name, {**entry, "tags": tuple(tags)})


def _entry(
    state: SweepState, trial: TrialRecord, checkpoint: CheckpointRecord, objective: Objective
) -> dict[str, Any]:
    meta = state.meta
    return {
        "checkpoint_path": checkpoint.path,
        "base_model": meta["experiment"]["model"]["base"],
        "lora_rank": trial.values.get("lora.rank", meta["experiment"].get("lora", {}).get("rank")),
        "metrics": dict(trial.results.get(checkpoint.step) or objective.metrics(trial)),
        "sweep": meta["sweep"],
        "sweep_id": meta.get("sweep_id"),
        "trial_id": trial.trial_id,
        "step": checkpoint.step,
        "seed": trial.seed,
        "config": dict(trial.values),
        "data_fingerprint": _fingerprint(meta, trial),
        "service": meta.get("service"),
        "metadata": {"versions": meta.get("versions", {})},
    }


def _fingerprint(meta: Mapping[str, Any], trial: TrialRecord) -> str:
    """Of the rows that the trial was trained on."""
    sets: Mapping[str, str] = meta.get("fingerprints", {})
    found: str = sets.get(str(trial.values.get(TRAINING_DATA)), meta["fingerprint"])
    return found
