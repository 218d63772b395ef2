"""States of sweeps for pages, folded from records as a journal has them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, STOPPED, SweepState

RANKS = (2, 8)


def folded(
    folder: Path, *, rates: int = 3, seeds: tuple[int, ...] = (0, 1), steps: int = 6
) -> tuple[SweepState, SweepPaths]:
    """A grid of ranks and rates; the worst rate is stopped at its first rung, a trial failed."""
    experiment = Experiment.build(
        {
            "name": "s",
            "model": {"base": "nano"},
            "data": {"train": "x", "eval": "y"},
            "search": {"seeds": list(seeds), "space": {"lora.rank": list(RANKS)}},
        }
    )
    paths = SweepPaths.of(folder, "s")
    state = SweepState()
    meta = {"sweep": "s", "experiment": experiment.stored(paths.root), "versions": {"python": "3"}}

    def tell(kind: str, **fields: Any) -> None:
        state.apply({"type": kind, "time": 0.0, "epoch": 1, **fields})

    tell("created", meta={**meta, "fingerprint": "f", "service": "embedded"}, v=2)
    tell("run", run="r")
    points = itertools.product(RANKS, [10.0 ** -(i + 1) for i in range(rates)], seeds)
    for index, (rank, rate, seed) in enumerate(points):
        values = {"lora.rank": rank, "optimizer.learning_rate": rate}
        trial_id = f"t{index:04}"
        declared = {"trial_id": trial_id, "index": index, "run_name": f"run </script> {index}"}
        trial = {**declared, "values": values, "seed": seed, "total_steps": steps}
        decision = {"kind": "start", "trial_id": trial_id, "to_step": steps, "total_steps": steps}
        tell("decision", decision={**decision, "reason": "next", "trial": trial})
        tell("attempt", trial_id=trial_id, attempt=1)
        lags = rate == 0.1
        for step in range(1, (steps // 2 if lags else steps) + 1):
            loss = 1.0 + abs(math.log10(rate) + 2) + 0.1 / rank + 0.01 * seed + 1 / step
            tell("result", trial_id=trial_id, step=step, metrics={"eval/nll": loss})
        failed = index == len(RANKS) * rates * len(seeds) - 1
        ended = "failed" if failed else STOPPED if lags else DONE
        why = "train/nll became nan at step 3" if failed else "place 6 of 6" if lags else None
        spent = {"train_tokens": 100, "seconds": 1.5}
        tell("finished", trial_id=trial_id, state=ended, error=why, spent=spent)
    tell("decision", decision={"kind": "end", "reason": "no trial is left"})
    tell("sweep", state="done", wall_s=12.0)
    return state, paths
