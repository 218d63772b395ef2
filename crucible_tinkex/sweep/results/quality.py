"""Whether a sweep's best trial reaches the targets of `[quality]`, on the rows on which it was
evaluated at the step that counts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from crucible_tinkex.config import EvaluationSection, QualitySection
from crucible_tinkex.config.sweep.quality import TRAINING_TARGETS
from crucible_tinkex.metrics import SCORE, direction_of
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import SweepState, TrialRecord
from crucible_tinkex.scoring.quality import MISSED, Assessment, assess, overall
from crucible_tinkex.sweep.results.leaderboard import Objective, best


def quality(state: SweepState, paths: SweepPaths) -> list[Assessment]:
    """One for each target, in their order; nothing is measured while no configuration is
    complete."""
    targets = _section(state).resolved
    if not targets:
        return []
    from crucible_tinkex.sweep.results.measured import examples_of, measured
    from crucible_tinkex.telemetry.query import read_evaluations

    objective, winner = Objective.of(state), best(state)
    found: dict[str, Any] = {}
    if winner is not None:
        trial = winner.best_trial
        metrics = objective.metrics(trial)
        step = objective.step(trial)
        rows = read_evaluations(paths.events, trial_id=trial.trial_id, step=step)
        asked = state.meta["experiment"].get("evaluation") or {}
        section = EvaluationSection.model_validate(asked)
        found = measured(metrics, examples_of(rows), section)
        if any(name.rpartition("/")[2] in TRAINING_TARGETS for name in targets):
            found |= _of_training(paths, trial, step)
    assessments = []
    for name, target in targets.items():
        tag = known_as(name, found)
        value = found.get(tag)
        told = {} if value is None else {n: getattr(value, n) for n in ("value", "low", "high")}
        rows_of = value.n if value is not None and math.isfinite(value.low) else None
        assessments.append(
            assess(
                tag,
                target.target,
                target.direction or direction_of(tag),
                **told,
                n=rows_of,
                min_n=target.min_n,
            )
        )
    return assessments


def _of_training(paths: SweepPaths, trial: TrialRecord, step: int | None) -> dict[str, Any]:
    """`train/loss_reduction` and `train/convergence_steps` up to the step that counts, of what was
    minimised."""
    from crucible_tinkex.telemetry.query import read_events
    from crucible_tinkex.training.progress import progress

    for name in ("train/loss", "train/nll"):
        table = read_events(paths.events, trial_id=trial.trial_id, name=name)
        rows = [r for r in table.to_pylist() if step is None or r["step"] <= step]
        if rows:
            told = progress([r["step"] for r in rows], [r["value"] for r in rows])
            return {f"train/{tag}": value for tag, value in told.items()}
    return {}


def known_as(name: str, metrics: Iterable[str]) -> str:
    """The metric that a target means: itself, or it below `eval/`, `eval/score/` or `train/`."""
    among = set(metrics)
    return next((tag for tag in tags_of(name) if tag in among), name)


def tags_of(name: str) -> tuple[str, ...]:
    """What a target's name may mean, the first that is measured first."""
    return (name, f"eval/{name}", f"{SCORE}{name}", f"train/{name}")


def quality_summary(state: SweepState, paths: SweepPaths) -> dict[str, Any] | None:
    """For JSON; None without targets."""
    found = quality(state, paths)
    if not found:
        return None
    return {
        "status": overall(found),
        "required": _section(state).required,
        "targets": [assessment.to_dict() for assessment in found],
    }


def quality_lines(state: SweepState, paths: SweepPaths) -> list[str]:
    """A line for each target."""
    return [f"quality: {assessment}" for assessment in quality(state, paths)]


def misses_required(state: SweepState, paths: SweepPaths) -> bool:
    """Whether the experiment asks for an exit code, and a target is missed."""
    return _section(state).required and overall(quality(state, paths)) == MISSED


def _section(state: SweepState) -> QualitySection:
    return QualitySection.model_validate(state.meta["experiment"].get("quality") or {})
