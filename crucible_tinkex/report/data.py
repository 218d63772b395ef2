"""Everything that a page shows of one sweep, as JSON values, from its journal and its events.

Keys are only ever added: `summary.json` beside the page is this object.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.metrics import metric
from crucible_tinkex.names import SweepPaths, plain, short_keys
from crucible_tinkex.registry import CONFIRM, FAILED, LOST, STOPPED, Spent, SweepState, TrialRecord
from crucible_tinkex.report.curves import curves
from crucible_tinkex.report.importance import importance
from crucible_tinkex.report.standing import standings
from crucible_tinkex.sweep.orders.hints import is_rarely_worth, surer, sweep_arguments
from crucible_tinkex.sweep.results.conclusion import conclusion, configuration_names
from crucible_tinkex.sweep.results.leaderboard import (
    Configuration,
    Objective,
    Place,
    configurations,
    placed_by_shared_seeds,
    places,
)
from crucible_tinkex.sweep.results.quality import quality_summary
from crucible_tinkex.sweep.results.views.summary import sweep_state


def report_data(state: SweepState, paths: SweepPaths) -> dict[str, Any]:
    """See the module. Works while the sweep runs."""
    objective = Objective.of(state)
    found = configurations(state)
    rivals = [c for c in found if not c.reference]
    concluded = conclusion(state)
    standing = standings(rivals, configuration_names(rivals), concluded)
    competing = [c for c in found if c.mean is not None and math.isfinite(c.mean) and c.values]
    axes = importance([c.values for c in competing], [c.mean or 0.0 for c in competing])
    axes |= {key: 0.0 for c in found for key in c.values if key not in axes}
    spent = state.spent
    described = metric(objective.metric)
    return {
        "name": paths.root.name,
        "state": sweep_state(state, paths),
        "metric": {
            "name": objective.metric,
            "unit": described.unit,
            "about": described.about,
            "direction": objective.direction,
            "at": objective.at,
        },
        "axes": [
            {"key": key, "name": name, "importance": round(axes[key], 3)}
            for key, name in short_keys(dict.fromkeys(axes)).items()
        ],
        "verdict": concluded.verdict,
        "conclusion": concluded.to_dict(),
        "surer": surer(state, paths, concluded),
        "rarely_worth": is_rarely_worth(concluded),
        "configurations": [
            {**_place(place), **_configuration(c), **standing.get(id(c), {})}
            for place, c in zip(places(found), found, strict=True)
        ],
        "placed_by_shared_seeds": placed_by_shared_seeds(found),
        "trials": [_trial(t) for t in state.trials.values()],
        "quality": quality_summary(state, paths),
        "curves": curves(state, paths),
        "spent": {**vars(spent), "wall_s": round(state.wall_s, 1), "runs": len(state.runs)},
        "ended": state.ended,
        "failures": [_fault(t) for t in state.trials.values() if t.state in (FAILED, LOST)],
        "stopped": [_fault(t) for t in state.trials.values() if t.state == STOPPED],
        "reproduce": _reproduce(state, paths),
    }


def _place(place: Place | None) -> dict[str, Any]:
    return {"place": place and place.number, "shared": place is not None and place.shared}


def _configuration(found: Configuration) -> dict[str, Any]:
    spent = sum((t.spent for t in found.trials), Spent())
    return {
        "values": dict(found.values),
        "reference": found.reference,
        "complete": found.complete,
        "state": found.state,
        "mean": plain(found.mean),
        "sd": plain(found.spread),
        "half_width": plain(found.half_width),
        "n": len(found.done),
        "phase": found.phase,
        "seeds": {str(t.seed): plain(found.objective.value(t)) for t in found.trials},
        "fresh_seeds": [t.seed for t in found.trials if t.phase == CONFIRM],
        "missing_seeds": list(found.missing_seeds),
        "trials": [t.trial_id for t in found.trials],
        "step": found.objective.step(found.best_trial),
        "total_steps": found.best_trial.total_steps,
        "train_tokens": spent.train_tokens,
        "seconds": round(spent.seconds, 1),
    }


def _trial(trial: TrialRecord) -> dict[str, Any]:
    return {
        "id": trial.trial_id,
        "index": trial.index,
        "name": trial.run_name,
        "seed": trial.seed,
        "state": trial.state,
        "step": trial.step,
        "total_steps": trial.total_steps,
        "attempts": trial.attempt,
        "metrics": plain(trial.metrics),
        "reason": trial.decisions[-1].reason if trial.decisions else None,
        "checkpoint": trial.last_checkpoint.path if trial.last_checkpoint else None,
    }


def _fault(trial: TrialRecord) -> dict[str, Any]:
    return {
        "trial": trial.run_name,
        "index": trial.index,
        "state": trial.state,
        "step": trial.step,
        "why": trial.error,
    }


def _reproduce(state: SweepState, paths: SweepPaths) -> dict[str, Any]:
    experiment = Experiment.loaded(state.meta["experiment"], folder=paths.root)
    text = paths.experiment.read_text() if paths.experiment.exists() else ""
    return {
        "command": f"crucible run {_from_here(paths.experiment)}",
        "arguments": sweep_arguments(paths),
        "experiment": text,
        "versions": state.meta.get("versions", {}),
        "data": state.meta.get("fingerprint"),
        "service": state.meta.get("service"),
        "not_applied": experiment.not_applied(),
        "amendments": [list(a.get("changed", ())) for a in state.amendments],
    }


def _from_here(file: Path) -> str:
    """As a shell in this folder takes it."""
    here = Path.cwd()
    return shlex.quote(str(file.relative_to(here) if file.is_relative_to(here) else file))


def differing(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys that vary in any of several sweeps."""
    return list(dict.fromkeys(axis["key"] for sweep in data for axis in sweep["axes"]))
