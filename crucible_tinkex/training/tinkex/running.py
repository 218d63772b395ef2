"""One call of `train`: steps to the next milestone, then evaluate and save; the last is both.

The loop itself is `stepping.take_steps`, which a sweep's trials run too. Steps are numbered from 1
within the call; `first` is where the session stood before it. A step that was lost and trained
again after a recovery replaces its row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from crucible_tinkex.client.interface import TrainingClient
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.attempt.measurements import Measurements
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.attempt.stepping import (
    StepResult,
    check_finite,
    next_milestone,
    take_steps,
)
from crucible_tinkex.training.losses.gradient_hooks import GradientHooks, grad_norm, seen
from crucible_tinkex.training.tinkex.options import TrainOptions
from crucible_tinkex.training.tinkex.recipe import AdapterRecipe
from crucible_tinkex.training.tinkex.results import Checkpoint, StepRow


class TrainingRun:
    """See the module. `step` is the last local step whose result is known."""

    def __init__(
        self,
        recipe: AdapterRecipe,
        options: TrainOptions,
        *,
        first: int,
        start: int,
        report: Reporter,
        bridge: Bridge,
    ) -> None:
        self._recipe = recipe
        self._options = options
        self._report = report
        self._bridge = bridge
        self._last_time = time.perf_counter()
        self.first = first
        self.step = self._start = start
        self._saved_step = first + start
        self.found = Measurements()
        self.rows: dict[int, StepRow] = {}
        """By the session's step."""
        self.checkpoints: list[Checkpoint] = []
        self.hooks = GradientHooks(options.gradient_hooks)
        self.is_stopping = False

    @property
    def session_step(self) -> int:
        return self.first + self.step

    @property
    def is_done(self) -> bool:
        return self.step >= self._recipe.total_steps or self.is_stopping

    def rewind(self, session_step: int, metrics: Mapping[str, float]) -> None:
        """Go on after `session_step`; the rows of later steps are trained again."""
        self.step = max(0, session_step - self.first)
        self.rows = {step: row for step, row in self.rows.items() if step <= session_step}
        self._saved_step = session_step
        self.found = Measurements()
        self.found.restore(metrics)

    async def to_milestone(self, client: TrainingClient) -> None:
        """Train up to the next checkpoint or evaluation, or to the end."""
        options, last = self._options, self._recipe.total_steps
        until = next_milestone(self.step, last, options.checkpoint_every, options.eval_every)
        self._last_time = time.perf_counter()
        await take_steps(
            self._recipe,
            client,
            range(self.step + 1, until + 1),
            self._complete,
            ahead=options.submit_ahead,
            is_over=lambda: self.is_stopping,
        )

    async def _complete(self, result: StepResult) -> None:
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        measured = await self._recipe.measure(result.update, result.backward)
        self.step = result.number
        row = self._row(result, measured, seconds)
        self.rows[self.session_step] = row
        self._report.step = self.session_step
        self._report.stepped(result, measured, seconds)
        check_finite(measured, self.session_step)
        self.found.stepped(measured, result.update.weight)
        if self._options.on_step_end is not None:
            self._options.on_step_end(row)
        epoch, is_last = self._recipe.epoch(self.step), self.step >= self._recipe.total_steps
        if is_last or self._recipe.epoch(self.step + 1) > epoch:
            self._end_epoch(epoch + 1)

    def _end_epoch(self, epoch: int) -> None:
        self._bridge.execute("epoch_complete", {"epoch": epoch, "step": self.session_step})
        if self._options.on_epoch_end is not None:
            self._options.on_epoch_end(epoch)

    def _row(self, result: StepResult, measured: Mapping[str, float], seconds: float) -> StepRow:
        loss = measured.get("train/loss", measured["train/nll"])
        row: dict[str, Any] = {
            "step": self.first + result.number,
            "epoch": self._recipe.epoch(result.number) + 1,
            "loss": loss,
            "loss_sum": loss * result.update.weight,
            "weight": result.update.weight,
            "grad_norm": grad_norm(result.optim),
            "learning_rate": result.update.adam.learning_rate,
            "tokens": result.update.tokens,
            "seconds": seconds,
            "timestamp": datetime.now(UTC).isoformat(),
            "metrics": {**result.backward.metrics, **measured},
        }
        if self._recipe.measures_citations:
            row["citation_invalid_rate"] = self._recipe.citation_invalid_rate(result.number)
        if self.hooks:
            row["gradients"] = self.hooks.run(
                seen(row["step"], result.update.batch, result.backward, result.optim)
            )
        return row

    # --- milestones ----------------------------------------------------------------------------

    @property
    def owes_evaluation(self) -> bool:
        return (
            self._is_due(self._options.eval_every)
            and self.found.evaluated_step != self.session_step
        )

    @property
    def owes_checkpoint(self) -> bool:
        return self._is_due(self._options.checkpoint_every) and self.session_step > self._saved_step

    def _is_due(self, every: int) -> bool:
        is_regular = every > 0 and self.step % every == 0 and self.step > self._start
        return self.step > 0 and (self.is_done or is_regular)

    async def evaluate(self, client: TrainingClient) -> None:
        started = time.perf_counter()
        found = await self._recipe.evaluate(client, self._report.evaluating)
        self.found.evaluated(self.session_step, found.metrics)
        if not self._recipe.is_evaluating:
            return
        seconds = time.perf_counter() - started
        self._report.evaluated(found, seconds)
        self._bridge.execute(
            "evaluation_complete",
            {**found.metrics, "duration_s": seconds},
            step=self.session_step,
        )
        heard = self._options.on_evaluation
        if heard is not None and heard(self.session_step, found.metrics) == "fail":
            self.is_stopping = True

    def saved(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self._saved_step = checkpoint.step
        if self._options.on_checkpoint is not None:
            self._options.on_checkpoint(checkpoint)
