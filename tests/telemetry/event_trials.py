"""Makes the events of one trial's attempts with little typing."""

from __future__ import annotations

from typing import Any

from crucible_tinkex.events import Event, EventWriter


class Trial:
    def __init__(self, trial_id: str = "t1") -> None:
        self.trial_id = trial_id
        self.writer = EventWriter("sweep", "experiment")

    def start(self, attempt: int, resumed_step: int, **extra: Any) -> Event:
        return self.writer.event(
            "session_start",
            trial_id=self.trial_id,
            attempt=attempt,
            step=resumed_step,
            extra={
                "resumed_step": resumed_step,
                "run_name": f"run-{self.trial_id}",
                "hparams": {"optimizer.learning_rate": 0.01, "lora.rank": 8},
                "config": {"name": "x"},
                **extra,
            },
        )

    def end(self, attempt: int, step: int, state: str) -> Event:
        return self.writer.event(
            "session_end",
            trial_id=self.trial_id,
            attempt=attempt,
            step=step,
            extra={"state": state},
        )

    def loss(self, attempt: int, step: int, value: float, name: str = "train/nll") -> Event:
        kind = "evaluation" if name.startswith("eval/") else "training_step"
        return self.writer.event(
            kind, trial_id=self.trial_id, attempt=attempt, step=step, name=name, value=value
        )
