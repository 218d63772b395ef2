"""What a training's own losses say of it: how far they fell, and by which step they had.

`loss_reduction` is the share by which the mean over the last steps is below that over the first, a
tenth of all steps each and at most `TRAIN_WINDOW_STEPS` (one batch says more about the batch than
about the model). `convergence_steps` is the step of `bench.analyze`; where the losses had not
settled by the last step, all that is known is that it is later.

The original's targets on them could not be missed: the reduction was an absolute difference of sums
over unequal batches, and a number of steps that was in no result counted as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from crucible_tinkex.bench.means import Measured, reduction
from crucible_tinkex.metrics import TRAIN_WINDOW_STEPS

REDUCTION, CONVERGENCE = "loss_reduction", "convergence_steps"


def progress(steps: Sequence[int], losses: Sequence[float]) -> dict[str, Measured]:
    """By name, with `n` the number of steps; nothing that cannot be told of so few of them. A loss
    is a mean, so that batches of any size compare."""
    kept = [(s, x) for s, x in zip(steps, losses, strict=True) if math.isfinite(x)]
    if len(kept) < 2:
        return {}
    at, values = zip(*kept, strict=True)
    found = {}
    window = max(1, min(TRAIN_WINDOW_STEPS, len(values) // 10))
    if all(value > 0 for value in values):  # a loss below zero has no share
        fell = reduction(values[:window], values[-window:])
        found[REDUCTION] = Measured(fell.value, fell.low, fell.high, len(values), fell.clusters)
    settled = _settled(at, values)
    if settled is not None:
        found[CONVERGENCE] = settled
    return found


def _settled(steps: Sequence[int], losses: Sequence[float]) -> Measured | None:
    from crucible_tinkex.bench.analysis import analyze

    rows = [{"step": s, "loss": x} for s, x in zip(steps, losses, strict=True)]
    found = analyze(rows, ("convergence",)).metrics["loss"]["convergence"]
    n = len(losses)
    if "level" not in found:  # too few to see
        return None
    if found["step"] is None:
        return Measured(float(steps[-1]), float(steps[-1]), math.inf, n, n)
    return Measured(found["step"], found["step"], found["step"], n, n)
