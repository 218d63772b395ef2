"""The recorded curves as a search meets them: points, losses by step, tokens by step.

A `Surface` is one task with one seed, or with the mean of its seeds (then the surface has less
noise, and a trial stands for one with every seed).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

RECORDED = Path(__file__).parent / "recorded" / "curves.parquet"
HELD_OUT = RECORDED.with_name("held_out.parquet")
"""Recorded when the numbers of `auto` stood: to judge, not to choose."""
KEYS = {
    "learning_rate": "optimizer.learning_rate",
    "rank": "lora.rank",
    "batch_size": "train.batch_size",
    "schedule": "optimizer.schedule",
}
WITHIN = 0.005
"""How near to the best final loss counts as having found it."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """`losses`: (points, evaluations), a row per point, a column per evaluated step."""

    task: str
    seed: str
    points: tuple[dict[str, Any], ...]
    steps: tuple[int, ...]
    losses: Floats
    tokens: Floats
    """Training tokens of all steps, by point."""

    @property
    def total(self) -> int:
        return self.steps[-1]

    @cached_property
    def best(self) -> int:
        return int(np.argmin(self.losses[:, -1]))

    @cached_property
    def good(self) -> npt.NDArray[np.bool_]:
        """Which points end within `WITHIN` of the best."""
        final = self.losses[:, -1]
        return np.asarray(final <= final.min() * (1 + WITHIN))

    def number(self, point: Mapping[str, Any]) -> int:
        return self._numbers[_key(point)]

    @cached_property
    def _numbers(self) -> dict[tuple[Any, ...], int]:
        return {_key(point): i for i, point in enumerate(self.points)}

    def loss(self, point: int, step: int) -> float:
        """At the first evaluation at or after `step`."""
        return float(self.losses[point, bisect_left(self.steps, step)])


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(point[key] for key in sorted(point))


def surfaces(path: Path = RECORDED) -> Iterator[Surface]:
    """Of every task: each seed, then the mean over seeds."""
    rows = pq.read_table(path).to_pylist()
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        keys = list(dict.fromkeys(tuple(row[k] for k in KEYS) for row in of_task))
        steps = tuple(sorted({row["step"] for row in of_task}))
        seeds = sorted({row["seed"] for row in of_task})
        losses = np.full((len(seeds), len(keys), len(steps)), np.nan)
        tokens = np.zeros(len(keys))
        place = {key: i for i, key in enumerate(keys)}
        for row in of_task:
            i = place[tuple(row[k] for k in KEYS)]
            losses[seeds.index(row["seed"]), i, steps.index(row["step"])] = row["eval_nll"]
            tokens[i] = max(tokens[i], row["tokens"])
        points = tuple(dict(zip(KEYS.values(), key, strict=True)) for key in keys)
        for seed in seeds:
            yield Surface(task, str(seed), points, steps, losses[seeds.index(seed)], tokens)
        yield Surface(task, "mean", points, steps, losses.mean(axis=0), tokens)


@dataclass
class Ledger:
    """What one search has trained and paid for. Training goes on where it stopped."""

    surface: Surface
    spent: float = 0.0
    reached: float | None = None
    """Tokens spent when the first good point was trained to its end."""
    at: dict[int, int] = field(default_factory=dict)
    """Steps of every point that was started."""

    def train(self, point: int, step: int) -> float:
        """Train up to `step` (rounded up to an evaluated one); the loss there."""
        surface = self.surface
        step = surface.steps[bisect_left(surface.steps, step)]
        before = self.at.get(point, 0)
        if step > before:
            self.spent += surface.tokens[point] * (step - before) / surface.total
            self.at[point] = step
        if step == surface.total and self.reached is None and surface.good[point]:
            self.reached = self.spent
        return surface.loss(point, step)

    @property
    def killed(self) -> bool:
        """Whether the point that would have been best was started and not finished."""
        return 0 < self.at.get(self.surface.best, 0) < self.surface.total

    @property
    def found(self) -> bool:
        """Whether what was finished holds a good point."""
        return self.reached is not None
