"""Who takes the places of a population's worst: clones of its best, with other settings.

Population based training (Jaderberg et al. 2017, arXiv 1711.09846): truncation selection by a fifth
(exploit), settings times 0.8 or 1.2 (explore). Where the paper's members draw one of the best fifth
whenever they are ready, here all wait for each other: when the last member stands at a rung, the
worst fifth ends, and each of the best is cloned once, warm, from its checkpoint there. Nothing is
drawn anew from the space, which the paper leaves open.
What shapes the adapter is inherited, because weights are. A pure function of the state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from crucible_tinkex.config import SearchSection
from crucible_tinkex.registry import Origin, SweepState, TrialRecord
from crucible_tinkex.search.stopping import fifth
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.training.plan import TrialPlan

FACTORS = (0.8, 1.2)
PERTURBED = ("optimizer.learning_rate", "optimizer.weight_decay")
"""The second only where the search varies it."""
MOST = {"optimizer.learning_rate": 10.0}


def replacements(
    state: SweepState, planner: Planner, ranked: Sequence[TrialRecord], step: int
) -> dict[str, TrialPlan]:
    """By id of one that ends, the clone that follows it. `ranked`: all that were measured at the
    rung `step`, the best first. A best one without a checkpoint there has no clone."""
    count = fifth(len(ranked))
    worst = ranked[len(ranked) - count :]
    found: dict[str, TrialPlan] = {}
    for loser, parent in zip(worst, ranked, strict=False):
        path = next((c.path for c in parent.checkpoints if c.step == step), None)
        if path is not None:
            found[loser.trial_id] = planner.plan(
                {**parent.values, **_perturbed(planner, parent, step)},
                parent.seed,
                index=len(state.trials) + len(found),
                origin=Origin(parent.trial_id, step, path),
            )
    return found


def _perturbed(planner: Planner, parent: TrialRecord, step: int) -> Mapping[str, Any]:
    optimizer = planner.of(parent).experiment.optimizer
    search = planner.experiment.search
    keys = [key for key in PERTURBED if key == PERTURBED[0] or key in search.space]
    changed = {}
    for key in keys:
        value = getattr(optimizer, key.partition(".")[2])
        factor = FACTORS[_drawn(search, parent.trial_id, step, key)]
        changed[key] = min(value * factor, MOST.get(key, value * factor))
    return changed


def _drawn(search: SearchSection, *what: object) -> int:
    """0 or 1, by the search's seed."""
    text = repr((search.seed, *what)).encode()
    return hashlib.blake2b(text, digest_size=1).digest()[0] % 2
