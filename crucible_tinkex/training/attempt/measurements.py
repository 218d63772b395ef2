"""What a trial has measured so far: the newest evaluation, and means over its newest steps.

The loss of one step is the loss of one batch, too noisy to rank trials by; so the result of a trial
has the mean over its last `TRAIN_WINDOW_STEPS` steps, weighted by what each step learnt from. A
checkpoint carries the window, as numbers below `resume/` beside its metrics, and a resumed trial
goes on with the very same means. Keys below `resume/` are for nobody else (`public`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from crucible_tinkex.metrics import TRAIN_WINDOW_STEPS

_CARRIED = "resume/"
_EVALUATED = f"{_CARRIED}evaluated_step"


class Measurements:
    """Belongs to one session; `evaluated_step` is -1 before the first evaluation."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.evaluated_step = -1
        self._window: deque[dict[str, float]] = deque(maxlen=TRAIN_WINDOW_STEPS)

    def stepped(self, measured: Mapping[str, float], weight: float) -> None:
        self._window.append({**measured, "": weight})

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The result of `step`: the means over the newest steps, and what was evaluated."""
        self.metrics = {**self.means(), **metrics}
        self.evaluated_step = step

    def means(self) -> dict[str, float]:
        names = sorted({name for step in self._window for name in step} - {""})
        return {name: self._mean(name) for name in names}

    def _mean(self, name: str) -> float:
        steps = [step for step in self._window if name in step]
        weight = math.fsum(step[""] for step in steps)
        return math.fsum(step[name] * step[""] for step in steps) / weight

    def carried(self) -> dict[str, float]:
        """What a checkpoint keeps; `restore` takes it."""
        window = {
            f"{_CARRIED}{age}/{name}": value
            for age, step in enumerate(reversed(self._window))
            for name, value in step.items()
        }
        return {**self.metrics, _EVALUATED: float(self.evaluated_step), **window}

    def restore(self, carried: Mapping[str, float]) -> None:
        """Go on from a checkpoint. One of version 0.1 carries metrics only."""
        self.metrics = public(carried)
        self.evaluated_step = int(carried.get(_EVALUATED, -1))
        steps: dict[int, dict[str, float]] = {}
        for key, value in carried.items():
            if key.startswith(_CARRIED) and key != _EVALUATED:
                age, _, name = key.removeprefix(_CARRIED).partition("/")
                steps.setdefault(int(age), {})[name] = value
        self._window.clear()
        self._window.extend(steps[age] for age in sorted(steps, reverse=True))


def public(carried: Mapping[str, float]) -> dict[str, float]:
    """The metrics among what a checkpoint carries."""
    return {name: value for name, value in carried.items() if not name.startswith(_CARRIED)}
