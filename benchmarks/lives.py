"""Whole lives of sweeps in which nothing matters: how often does one ever say that something does?

Each is decided by the sweep's own policy and judged by the sweep's own conclusion after every round
of sessions, from its first trial over rungs, confirmations and amendments to its end. The units are
those of `benchmarks.honesty`: what a seed does to all alike has sd 1, and so has what it does to
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from benchmarks.played import PlayedSweep
from benchmarks.rates import Rate, in_processes
from crucible_tinkex.config import Experiment
from crucible_tinkex.registry import TrialRecord
from crucible_tinkex.sweep.results.conclusion import conclusion

KEPT = 0.8
"""Correlation of a trial's values at two rungs that follow each other."""
FIVE = {"seeds": [0, 1, 2, 3, 4]}
PRUNED = {"stopping": {"rule": "halving", "eta": 2, "first_rung": 4}}
LIVES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "6 pruned, the best 2 confirmed; 3 more, pruned, the best 2 confirmed": (
        {"of": 6, **PRUNED},
        {"of": 9, **PRUNED},
    ),
    "2 with five seeds, confirmed": ({"of": 2, **FIVE},),
    "2 with five seeds; then confirmed": ({"of": 2, **FIVE, "confirm": 0}, {"of": 2, **FIVE}),
    "2 with five seeds; 2 more; 2 more, all confirmed": (
        {"of": 2, **FIVE},
        {"of": 4, **FIVE},
        {"of": 6, **FIVE},
    ),
    "2 with five seeds, confirmed; trained on; trained on": tuple(
        {"of": 2, **FIVE, "steps": steps} for steps in (8, 16, 32)
    ),
}
"""What is declared first, and what an amendment makes of it."""
WHOLE, *_ = LIVES


@dataclass(frozen=True)
class Lived:
    """What became of many of one life."""

    winners: Rate
    """In which a winner was declared, ever."""
    trials: float
    bias: float
    """Of the value that is claimed in the end, in standard deviations of one value; positive:
    claimed to be better than it is."""
    covered: Rate


@dataclass
class _Noise:
    """A value is the same whenever it is asked for."""

    rng: np.random.Generator
    common: dict[tuple[int, int], float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)

    def __call__(self, trial: TrialRecord, step: int) -> float:
        own, before = float(self.rng.normal()), self.own.get(trial.trial_id)
        if before is not None:
            own = KEPT * before + math.sqrt(1 - KEPT**2) * own
        self.own[trial.trial_id] = own
        place = trial.seed, step
        if place not in self.common:
            self.common[place] = float(self.rng.normal())
        return own + self.common[place]


def lived(life: str, sweeps: int, *, first: int = 0, processes: int = 1) -> Lived:
    """`first`: the number of the first; each has its own random numbers."""
    numbers = range(first, first + sweeps)
    found = in_processes(processes, _life, [life] * sweeps, numbers)
    winners, trials, errors, covered = zip(*found, strict=True)
    return Lived(
        Rate(sum(winners), sweeps),
        float(np.mean(trials)),
        float(np.mean(errors)) / math.sqrt(2),
        Rate(sum(covered), sweeps),
    )


def _life(life: str, number: int) -> tuple[bool, int, float, bool]:
    """Whether a winner was declared; trials; of the last value, its error, and whether its interval
    covers."""
    first, *amendments = _declared(life)
    noise = _Noise(np.random.default_rng([number, *life.encode()]))
    sweep = PlayedSweep(first, noise, slots=1000)
    has_winner = _judged(sweep)
    for asked in amendments:
        sweep.amend(asked)
        has_winner |= _judged(sweep)
    value = conclusion(sweep.state).value
    assert value is not None
    return has_winner, len(sweep.state.trials), -value.value, value.low <= 0 <= value.high


def _judged(sweep: PlayedSweep) -> bool:
    """Whether a look ever finds a winner."""
    return "winner" in {conclusion(state).kind for state in sweep.run()}


@cache
def _declared(life: str) -> Sequence[Experiment]:
    return [_experiment(**changes) for changes in LIVES[life]]


def _experiment(*, of: int, steps: int = 8, **search: Any) -> Experiment:
    return Experiment.build(
        {
            "name": "life",
            "model": {"base": "nano"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "train": {"max_steps": steps, "batch_size": 4},
            "search": {
                "space": {"optimizer.eps": [10.0**-i for i in range(1, of + 1)]},
                "metric": "eval/nll",
                "reference": False,
                "confirm": "auto",
                "confirm_top": 2,  # of whom a false winner has the least to beat
                "confirm_max_seeds": 6,
                "indifference": 0.1,
                **search,
            },
        }
    )
