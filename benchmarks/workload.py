"""What a benchmark of the runner drives: so many trials of so many steps, each a fixed wait."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Workload:
    """Trials differ in their learning rate only. `at_once` of them have a session at a time."""

    trials: int = 64
    steps: int = 20
    step_s: float = 0.2
    at_once: int = 64

    @property
    def ideal_s(self) -> float:
        """If driving them were free."""
        return -(-self.trials // self.at_once) * self.steps * self.step_s

    @property
    def rates(self) -> list[float]:
        return [1e-5 * 1.001**i for i in range(self.trials)]

    def __str__(self) -> str:
        shape = f"{self.trials:,} trials x {self.steps} steps of {self.step_s} s"
        return f"{shape}, {self.at_once} at a time (ideal {self.ideal_s:.1f} s)"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        return cls(**json.loads(text))
