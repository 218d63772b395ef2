"""Population based training, live, on the tasks of the recorded curves: recorded curves have no
forks, so this rule cannot be replayed.

    nice -n 15 python -m benchmarks.population     # about two minutes of one core

Eight random points of the recorded grid, which clone the best and drop the worst at every sixth of
the way, against the whole grid with the same seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import crucible_tinkex as ct
from benchmarks.record_curves import EVERY, STEPS, experiment
from benchmarks.recorded_grid import WITHIN, Surface, surfaces
from crucible_tinkex.config import StoppingSection
from crucible_tinkex.registry import DONE, SweepState

MEMBERS = 8
SIXTH = STEPS // 6
COLUMNS = ("task", "search seed", "all it trains, of the grid", "answer worse by", "found")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def run(surface: Surface, seed: int, work: Path) -> SweepState:
    """One sweep. `seed`: of the search; the trials have the surface's."""
    declared = experiment(surface.task, work, seeds=(int(surface.seed),))
    search = declared.search.model_copy(
        update={
            "strategy": "random",
            "trials": MEMBERS,
            "seed": seed,
            "stopping": StoppingSection(rule="population", every=SIXTH),
        }
    )
    train = declared.train.model_copy(update={"checkpoint_every": SIXTH, "eval_every": EVERY})
    sweep = ct.run(declared.model_copy(update={"search": search, "train": train}))
    return SweepState.read(sweep.paths)


def row(surface: Surface, seed: int, state: SweepState) -> str:
    trained = state.spent.train_tokens / surface.tokens.sum()
    ended = [t.metrics["eval/nll"] for t in state.trials.values() if t.state == DONE]
    regret = min(ended) / surface.losses[:, -1].min() - 1
    found = "yes" if regret <= WITHIN else "no"
    return f"| {surface.task} | {seed} | {trained:.3f} | {regret:+.1%} | {found} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="searches of each task")
    options = parser.parse_args()
    print(HEAD)
    for surface in surfaces():
        if surface.seed != "0":
            continue
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as work:
                print(row(surface, seed, run(surface, seed, Path(work))), flush=True)


if __name__ == "__main__":
    main()
