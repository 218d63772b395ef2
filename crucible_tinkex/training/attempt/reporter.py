"""The telemetry of one attempt: what it measures, what it waits for, which phase it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crucible_tinkex.client.http.watch import ACTIVE, Observer, QueueState, RequestRecord
from crucible_tinkex.events import EventSink
from crucible_tinkex.training.attempt.stepping import StepResult
from crucible_tinkex.training.recipes.recipe import Evaluation, Example

TRAINING, EVALUATING = "training", "evaluating"
TOLD_EVERY_S = 2.0
"""How often the progress of an evaluation is told."""


class Reporter(Observer):
    """Emits events that know where the trial stands; the session keeps `attempt` and `step`."""

    def __init__(
        self,
        sink: EventSink,
        trial_id: str,
        epoch: Callable[[int], int],
        clock: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._trial_id = trial_id
        self._epoch = epoch
        self._clock = clock
        self._told_at = 0.0
        self.attempt = 0
        self.step = 0
        self.is_held = False
        """The service lets nothing through."""
        self.last_wait: QueueState | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        self._sink.emit(
            kind,
            trial_id=self._trial_id,
            attempt=self.attempt,
            step=self.step,
            epoch=self._epoch(self.step),
            **fields,
        )

    def measure(self, kind: str, measured: Mapping[str, float]) -> None:
        for name, value in measured.items():
            self.emit(kind, name=name, value=float(value))

    def stepped(self, step: StepResult, measured: Mapping[str, float], seconds: float) -> None:
        """What a step measured, its speed, and what the optimizer told."""
        tokens = step.update.tokens
        speed = {"perf/step_s": seconds, "perf/tokens_per_s": tokens / max(seconds, 1e-9)}
        told = {f"optim/{k.replace(':', '_')}": v for k, v in (step.optim.metrics or {}).items()}
        self.measure("training_step", {**measured, **speed})
        self.measure("optimizer_step", {"optim/lr": step.update.adam.learning_rate, **told})

    def evaluated(self, found: Evaluation, seconds: float) -> None:
        """An evaluation, with its rows; training goes on."""
        self.measure("evaluation", {**found.metrics, "perf/eval_s": seconds})
        self.examples(found.examples)
        self.emit("phase", name=TRAINING, extra={"phase": TRAINING})

    def examples(self, found: Sequence[Example]) -> None:
        for example in found:
            self.emit(
                "example",
                name=example.example_id,
                value=example.nll,
                extra=details(example),
            )

    def evaluating(self, done: int, of: int) -> None:
        """Told at the start, at the end, and now and then in between."""
        now = self._clock()
        if 0 < done < of and now - self._told_at < TOLD_EVERY_S:
            return
        self._told_at = now
        extra = {"phase": EVALUATING, "done": done, "of": of}
        self.emit("phase", name=EVALUATING, extra=extra)

    async def flush(self) -> None:
        await self._sink.flush()

    def on_request(self, record: RequestRecord) -> None:
        """Only of requests that had trouble."""
        if record.attempts > 1 or record.error is not None:
            self.emit(
                "request",
                name=f"request/{record.operation}",
                value=record.duration_s,
                extra={
                    "path": record.path,
                    "attempts": record.attempts,
                    "queued_s": record.queued_s,
                    "status": record.status,
                    "error": record.error,
                },
            )

    def on_queue_state(self, state: QueueState) -> None:
        self.is_held = state.state != ACTIVE.state
        if self.is_held:
            self.last_wait = state
        self.waiting(state)

    def waiting(self, state: QueueState) -> None:
        """For something that is not the service: it can be drained like any other."""
        extra = {"reason": state.reason, "resume_at": state.resume_at}
        self.emit("queue_state", name=state.state, extra=extra)


def details(example: Example) -> dict[str, Any]:
    """What an evaluation found on a row, besides its likelihood; what was not asked is left out."""
    found = {"tokens": example.tokens, "correct": example.correct, "text": example.text}
    asked = {
        "group": example.group,
        "expected": example.expected,
        "answers": list(example.answers),
        "scores": dict(example.scores),
    }
    return found | {name: value for name, value in asked.items() if value}
