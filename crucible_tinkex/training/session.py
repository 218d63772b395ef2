"""One trial's live training session: its whole loop, rung by rung, without the driver.

Guarantees: the numbers of a trial are a function of (experiment, seed, step), so an attempt that
resumes from a checkpoint repeats the lost steps exactly; a checkpoint is announced before it is
saved, and committed only after the service acknowledged it and after all telemetry up to it is
durable; the last step of a rung is always evaluated and checkpointed. A checkpoint that the service
cannot load any more costs the steps after the one before it, never the trial. Knows nothing of Ray,
datasets or losses (`recipe`), and owns the service it is given only until `leave`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping

from crucible_tinkex.client.interface import EndReason, TrainingClient, TrainingService
from crucible_tinkex.client.wire import LoraConfig
from crucible_tinkex.errors import CrucibleError, StaleAttemptError, TrialFailedError
from crucible_tinkex.names import TinkerPath, checkpoint_name
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    PENDING,
    STOPPED,
    AttemptGrant,
    CheckpointRecord,
    RegistryPort,
)
from crucible_tinkex.training.drain import DrainedError, unless_drained
from crucible_tinkex.training.measurements import Measurements
from crucible_tinkex.training.meter import Meter, MeteredTraining
from crucible_tinkex.training.outcome import Progress, speaks_of_checkpoint
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Recipe
from crucible_tinkex.training.reporter import Reporter
from crucible_tinkex.training.stepping import StepResult, next_milestone, stepped

log = logging.getLogger(__name__)

_END_REASONS: dict[str, EndReason] = {DONE: "success", STOPPED: "success", FAILED: "errored"}


class Session:
    """Trains one `TrialPlan`. Use: `open`, `advance` once per rung, `close` or `leave`."""

    def __init__(
        self,
        plan: TrialPlan,
        recipe: Recipe,
        *,
        service: TrainingService,
        registry: RegistryPort,
        reporter: Reporter,
        drain: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._recipe = recipe
        self._service = service
        self._registry = registry
        self._report = reporter
        self._drain = drain
        self._clock = clock
        self._meter = Meter(clock)
        self._found = Measurements()
        self._training: TrainingClient | None = None
        self._saved_step = 0
        self._last_time = 0.0

    @property
    def attempt(self) -> int:
        """0 before the registry granted one."""
        return self._report.attempt

    @property
    def step(self) -> int:
        """Steps whose results are known."""
        return self._report.step

    @property
    def is_held(self) -> bool:
        """The service keeps it waiting."""
        return self._report.is_held

    # --- its beginning -------------------------------------------------------------------------

    async def open(self) -> None:
        """Claim the next attempt; start fresh or from the newest checkpoint that can be loaded."""
        grant = await self._registry.start_attempt(self._plan.trial_id)
        self._report.attempt = grant.attempt
        training = await self._start(grant)
        await self._delete(grant.orphans)
        self._training = MeteredTraining(training, self._meter)
        self._report.emit(
            "session_start",
            extra={
                "run_name": self._plan.run_name,
                "hparams": {**self._plan.values, "seed": self._plan.seed},
                "config": self._plan.experiment.model_dump(mode="json", exclude_none=True),
                "resumed_step": self.step,
                "model_id": training.model_id,
            },
        )

    async def _start(self, grant: AttemptGrant) -> TrainingClient:
        """From the newest checkpoint that can be loaded, else from the base.

        A checkpoint counts as lost only once something else could be opened: where nothing can,
        the service is at fault.
        """
        lost: list[tuple[CheckpointRecord, CrucibleError]] = []
        training = None
        for checkpoint in grant.checkpoints:
            try:
                training = await self._service.create_training_from_state(checkpoint.path)
            except CrucibleError as error:
                if not speaks_of_checkpoint(error):
                    raise
                lost.append((checkpoint, error))
            else:
                self._saved_step = self._report.step = checkpoint.step
                self._found.restore(checkpoint.metrics)
                break
        training = training or await self._create()
        for checkpoint, reason in lost:
            await self._registry.lose_checkpoint(
                self._plan.trial_id, self.attempt, checkpoint.path, str(reason)
            )
        return training

    async def _delete(self, orphans: Iterable[str]) -> None:
        """Free what an attempt had saved, or nearly, when it ended. What cannot be deleted now is
        left to the next attempt."""
        for path in orphans:
            try:
                await self._service.delete_checkpoint(path)
            except CrucibleError as e:
                log.warning("%s is of no use and could not be deleted: %s", path, e)
            else:
                await self._registry.lose_checkpoint(
                    self._plan.trial_id, self.attempt, path, "never committed; deleted"
                )

    async def _create(self) -> TrainingClient:
        experiment, lora = self._plan.experiment, self._plan.experiment.lora
        return await self._service.create_training(
            base_model=experiment.model.base,
            lora=LoraConfig(
                rank=lora.rank,
                seed=self._plan.seed if lora.seed is None else lora.seed,
                train_attn=lora.train_attn,
                train_mlp=lora.train_mlp,
                train_unembed=lora.train_unembed,
            ),
            user_metadata={"trial_id": self._plan.trial_id},
        )

    # --- a rung --------------------------------------------------------------------------------

    async def advance(self, to_step: int) -> Progress:
        """Train up to `to_step` (a rung), or until asked to drain; ends in a milestone.

        A rung that was reached before is answered from memory.
        """
        self._last_time = self._clock()
        await self._milestone(to_step)  # what an earlier attempt did not get to
        while self.step < to_step and not self._drain.is_set():
            await self._train(self._next_milestone(to_step))
            await self._milestone(to_step)
        return self.progress(drained=self.step < to_step or self._owes_evaluation(to_step))

    def progress(self, *, drained: bool) -> Progress:
        metrics = dict(self._found.metrics)
        return Progress(self._plan.trial_id, self.attempt, self.step, metrics, drained)

    async def _train(self, until: int) -> None:
        results = stepped(
            self._recipe,
            self._client,
            range(self.step + 1, until + 1),
            ahead=self._plan.experiment.train.submit_ahead,
            is_over=self._drain.is_set,
        )
        async with contextlib.aclosing(results):
            async for step in results:
                self._complete(step)

    def _complete(self, step: StepResult) -> None:
        now = self._clock()
        seconds, self._last_time = now - self._last_time, now
        measured = self._recipe.measure(step.update, step.backward)
        self._report.step = step.number
        self._report.measure("training_step", measured)
        tokens_per_s = step.update.tokens / max(seconds, 1e-9)
        self._report.measure(
            "training_step", {"perf/step_s": seconds, "perf/tokens_per_s": tokens_per_s}
        )
        self._report.measure("optimizer_step", {"optim/lr": step.update.adam.learning_rate})
        told = {f"optim/{k.replace(':', '_')}": v for k, v in (step.optim.metrics or {}).items()}
        self._report.measure("optimizer_step", told)
        self._found.stepped(measured, step.update.weight)
        self._check_finite(measured)

    def _check_finite(self, measured: Mapping[str, float]) -> None:
        for name, value in measured.items():
            if not math.isfinite(value):
                raise TrialFailedError(
                    f"{name} became {value} at step {self.step}; try a lower learning rate"
                )

    # --- milestones ----------------------------------------------------------------------------

    def _next_milestone(self, to_step: int) -> int:
        train = self._plan.experiment.train
        return next_milestone(self.step, to_step, train.eval_every, train.checkpoint_every)

    def _owes_evaluation(self, to_step: int) -> bool:
        every = self._plan.experiment.train.eval_every
        is_due = every > 0 and self.step > 0 and self.step % every == 0
        is_missing = is_due and self._found.evaluated_step != self.step
        return is_missing or self.step >= to_step > self._found.evaluated_step

    def _is_checkpoint_due(self, to_step: int) -> bool:
        every = self._plan.experiment.train.checkpoint_every
        is_end = self.step == to_step or self._drain.is_set()
        return is_end or (every > 0 and self.step % every == 0)

    async def _milestone(self, to_step: int) -> None:
        """Evaluate if due and not done yet; then save, so that the checkpoint has the metrics."""
        if self._owes_evaluation(to_step) and not self._drain.is_set():
            with contextlib.suppress(DrainedError):
                await unless_drained(self._evaluate(), self._drain)
        if self.step > self._saved_step and self._is_checkpoint_due(to_step):
            await self._save()
        self._last_time = self._clock()

    async def _evaluate(self) -> None:
        """Record the step's result: means over the newest steps, and all held-out metrics."""
        started = self._clock()
        found = await self._recipe.evaluate(self._client, self._report.evaluating)
        if found.metrics:
            self._report.measure("evaluation", found.metrics)
            self._report.measure("evaluation", {"perf/eval_s": self._clock() - started})
            self._report.examples(found.examples)
            self._report.training()
        self._check_finite(found.metrics)
        await self._registry.record_result(
            self._plan.trial_id,
            self.attempt,
            self.step,
            {**self._found.means(), **found.metrics},
            self._meter.spent(),
        )
        # Known only now: an evaluation that a drain cuts off before is done again.
        self._found.evaluated(self.step, found.metrics)

    async def _save(self) -> None:
        trial_id, attempt, step = self._plan.trial_id, self.attempt, self.step
        name = checkpoint_name(trial_id, attempt, step)
        intended = TinkerPath(self._client.model_id, "weights", name)
        await self._registry.intend_checkpoint(trial_id, attempt, str(intended))
        path = await self._client.save_state(name)
        self._report.emit("checkpoint_saved", name=name, extra={"path": path})
        await self._report.flush()
        checkpoint = CheckpointRecord(trial_id, attempt, step, path, self._found.carried())
        try:
            await self._registry.commit_checkpoint(checkpoint, self._meter.spent())
        except StaleAttemptError:  # whoever replaced this attempt may have looked too early
            with contextlib.suppress(CrucibleError):
                await self._service.delete_checkpoint(path)
            raise
        self._saved_step = step

    # --- its end -------------------------------------------------------------------------------

    async def close(self, state: str, error: str | None = None) -> None:
        """Tell telemetry, then the registry, how the attempt ended; leave the service anyway."""
        try:
            await self._end(state, error, is_durable=True)
        finally:
            await self.leave(state)

    async def give_up(self, error: str) -> None:
        """The infrastructure failed: as `close`, without waiting for telemetry."""
        try:
            await self._end(PENDING, error, is_durable=False)
        finally:
            await self.leave(PENDING)

    async def _end(self, state: str, error: str | None, *, is_durable: bool) -> None:
        if not self.attempt:
            return
        self._report.emit("session_end", extra={"state": state, "error": error})
        if is_durable:
            await self._report.flush()
        await self._registry.finish(
            self._plan.trial_id, self.attempt, state, error, self._meter.spent()
        )

    async def leave(self, state: str) -> None:
        """Finish the service's session without a word to anybody else."""
        await self._service.close(reason=_END_REASONS.get(state, "interrupted"))

    @property
    def _client(self) -> TrainingClient:
        if self._training is None:
            raise RuntimeError("open the session first")
        return self._training
