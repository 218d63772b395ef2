"""One trial's live training session: its whole loop, rung by rung, without the driver.

Guarantees: the numbers of a trial are a function of (experiment, seed, step), so an attempt that
resumes from a checkpoint repeats the lost steps exactly; a checkpoint is announced before it is
saved, and committed only after the service acknowledged it and after all telemetry up to it is
durable; the last step of a rung is always evaluated and checkpointed, that of the trial also for
sampling. A checkpoint that the service cannot load any more costs the steps after the one before
it, never the trial (`beginning`). Knows nothing of Ray, datasets or losses (`recipe`), and owns the
service it is given only until `leave`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import asdict

from crucible_tinkex.client.http.watch import QueueState
from crucible_tinkex.client.interface import EndReason, TrainingClient, TrainingService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.errors import CrucibleError, StaleAttemptError, StaleEpochError
from crucible_tinkex.names import TinkerPath, checkpoint_name
from crucible_tinkex.registry import (
    DONE,
    FAILED,
    PENDING,
    STOPPED,
    CheckpointRecord,
    RegistryPort,
)
from crucible_tinkex.telemetry.bridge import Bridge, Teller
from crucible_tinkex.training.attempt.allowance import Purse
from crucible_tinkex.training.attempt.beginning import Beginning
from crucible_tinkex.training.attempt.drain import DrainedError, unless_drained
from crucible_tinkex.training.attempt.measurements import Measurements
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.attempt.sampler_checkpoint import save_for_sampling
from crucible_tinkex.training.attempt.stepping import (
    StepResult,
    check_finite,
    next_milestone,
    take_steps,
)
from crucible_tinkex.training.outcome import After, Progress
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.recipes.recipe import Recipe

DELETE_TRIES = 5
LISTING_S = 5.0
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
        after: After | None,
        trained: Callable[[int], None],
        bridge: Bridge,
    ) -> None:
        """`drain` is set to have it finish its step, save, and stop. `after` is called on the
        weights of the trial's last step, when they are saved; `trained` with the tokens of every
        step that is done; the handlers of `bridge` hear what the attempt does."""
        self._plan = plan
        self._recipe = recipe
        self._service = service
        self._registry = registry
        self._report = reporter
        self.drain = drain
        self._clock = clock
        self._after = after
        self._trained = trained
        self._meter = Meter(clock)
        self._bridge = bridge
        teller = Teller(bridge, clock) if bridge.handlers() else None
        self._beginning = Beginning(plan, recipe, service, registry, self._meter, teller)
        self.context = copy_context()
        """What its work runs in: what a handler sets at `session_start` holds for all of it."""
        self._has_end = False
        self._purse = Purse(plan, registry, self._meter, self.drain, reporter.waiting)
        self._found = Measurements()
        self._training: TrainingClient | None = None
        self._saved_step = 0
        self._kept_step = 0
        self._last_time = 0.0

    @property
    def trial_id(self) -> str:
        return self._plan.trial_id

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

    @property
    def waits_for_place(self) -> QueueState | None:
        """What the service said when it kept it waiting for its model, which it has not yet."""
        return self._report.last_wait if self._training is None else None

    # --- its beginning -------------------------------------------------------------------------

    async def open(self) -> None:
        """Claim the next attempt; start fresh or from the newest checkpoint that can be loaded."""
        grant = await self._registry.start_attempt(self._plan.trial_id)
        self._report.attempt = grant.attempt
        self._tell_start()
        begun = await self._beginning.begin(grant)
        self._training = begun.training
        self._saved_step = self._report.step = begun.step
        if begun.metrics is not None:
            self._found.restore(begun.metrics)
        elif begun.step:
            self._found.evaluated(begun.step, {})  # the parent did
        self._report.emit(
            "session_start",
            extra={
                "run_name": self._plan.run_name,
                "hparams": {**self._plan.values, "seed": self._plan.seed},
                "config": self._plan.experiment.model_dump(mode="json", exclude_none=True),
                "resumed_step": self.step,
                "model_id": begun.training.model_id,
            },
        )

    def _tell_start(self) -> None:
        hparams = {f"hparams/{name}": value for name, value in self._plan.values.items()}
        base = self._plan.experiment.model.base
        self._bridge.execute(
            "session_start",
            attempt=self.attempt,
            base_model=base,
            seed=self._plan.seed,
            total_steps=self._plan.total_steps,
            **hparams,
        )

    async def _fingerprint(self) -> float | None:
        if not self._plan.experiment.run.verify_resume:
            return None
        return await self._recipe.fingerprint(self._client)

    # --- a rung --------------------------------------------------------------------------------

    async def advance(self, to_step: int) -> Progress:
        """Train up to `to_step` (a rung), or until asked to drain; ends in a milestone.

        A rung that was reached before is answered from memory.
        """
        self._last_time = self._clock()
        await self._milestone(to_step)  # what an earlier attempt did not get to
        while self.step < to_step and not self.drain.is_set():
            await self._train(self._next_milestone(to_step))
            await self._milestone(to_step)
        is_drained = self.step < to_step or self._owes_evaluation(to_step)
        if not is_drained and self.step >= self._plan.total_steps:
            await self._keep()
            if self._after is not None:
                await self._after(self._client, self._report, dict(self._found.metrics))
        return self.progress(drained=is_drained)

    def progress(self, *, drained: bool) -> Progress:
        metrics = dict(self._found.metrics)
        return Progress(self._plan.trial_id, self.attempt, self.step, metrics, drained)

    async def _train(self, until: int) -> None:
        await take_steps(
            self._recipe,
            self._client,
            range(self.step + 1, until + 1),
            self._complete,
            ahead=self._plan.experiment.train.submit_ahead,
            is_over=self.drain.is_set,
            may_send=lambda update: self._purse.may_step(self.attempt, update),
        )

    async def _complete(self, step: StepResult) -> None:
        now = self._clock()
        seconds, self._last_time = now - self._last_time, now
        measured = await self._recipe.measure(step.update, step.backward)
        self._report.step = step.number
        self._report.stepped(step, measured, seconds)
        self._trained(step.update.tokens)
        self._found.stepped(measured, step.update.weight)
        check_finite(measured, self.step)

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
        is_end = self.step == to_step or self.drain.is_set()
        return is_end or (every > 0 and self.step % every == 0)

    async def _milestone(self, to_step: int) -> None:
        """Evaluate if due and not done yet; then save, so that the checkpoint has the metrics."""
        owes = self._owes_evaluation(to_step) and not self.drain.is_set()
        if owes and await self._purse.may_evaluate(self.attempt, self._recipe.evaluation_cost()):
            with contextlib.suppress(DrainedError):
                await unless_drained(self._evaluate(), self.drain)
        if self.step > self._saved_step and self._is_checkpoint_due(to_step):
            await self._save()
        self._last_time = self._clock()

    async def _evaluate(self) -> None:
        """Record the step's result: means over the newest steps, and all held-out metrics."""
        started = self._clock()
        found = await self._recipe.evaluate(self._client, self._report.evaluating)
        self._purse.evaluated()
        if found.metrics:
            self._report.evaluated(found, self._clock() - started)
            self._bridge.execute("evaluation_complete", found.metrics, step=self.step)
        check_finite(found.metrics, self.step)
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
        path, fingerprint = await asyncio.gather(self._client.save_state(name), self._fingerprint())
        self._report.emit("checkpoint_saved", name=name, extra={"path": path})
        await self._report.flush()
        checkpoint = CheckpointRecord(
            trial_id, attempt, step, path, self._found.carried(), fingerprint
        )
        try:
            await self._registry.commit_checkpoint(checkpoint, self._meter.spent())
        except (StaleAttemptError, StaleEpochError):
            await self._take_back(path)
            raise
        self._bridge.execute("checkpoint_saved", {"step": step}, checkpoint=name, path=path)
        self._saved_step = step

    async def _take_back(self, path: str) -> None:
        """Delete what was saved for an attempt that was replaced meanwhile: who replaced it may
        have looked too early, and nobody else will."""
        for _ in range(DELETE_TRIES):
            with contextlib.suppress(CrucibleError):
                await self._service.delete_checkpoint(path)
                return

    async def _keep(self) -> None:
        """Save the trained weights for sampling, once."""
        is_asked = self._plan.experiment.train.sampler_checkpoint
        if is_asked and self.step > self._kept_step:
            kept = CheckpointRecord(
                *(self._plan.trial_id, self.attempt, self.step, "", self._found.carried()),
                kind="sampler",
            )
            await save_for_sampling(
                kept, self._meter.spent(), self._client, self._service, self._registry
            )
            self._kept_step = self.step

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
        self._tell_end(state, error, await self._saved_bytes() if is_durable else {})
        self._report.emit("session_end", extra={"state": state, "error": error})
        if is_durable:
            await self._report.flush()
        await self._registry.finish(
            self._plan.trial_id, self.attempt, state, error, self._meter.spent()
        )

    async def leave(self, state: str) -> None:
        """Finish the service's session without a word to the registry."""
        self._tell_end(state, None, {})
        await self._service.close(reason=_END_REASONS.get(state, "interrupted"))

    def _tell_end(self, state: str, error: str | None, measured: Mapping[str, float]) -> None:
        """Once, and only of an attempt that began."""
        if self.attempt and not self._has_end:
            self._has_end = True
            found = {"step": self.step, **asdict(self._meter.spent()), **measured}
            self._bridge.execute("session_end", found, status=state, error=error)

    async def _saved_bytes(self) -> Mapping[str, float]:
        """Of the checkpoints that the attempt has saved, where somebody listens and the service
        lists them soon."""
        service, training = self._service, self._training
        is_asked = self._bridge.handlers() and self._saved_step > 0
        if not is_asked or training is None or not isinstance(service, TinkexService):
            return {}
        sizes = []
        with contextlib.suppress(CrucibleError, TimeoutError):
            async with asyncio.timeout(LISTING_S):
                async for checkpoint in service.rest.checkpoints(training.model_id):
                    sizes.append(checkpoint.size_bytes or 0)
        return {"checkpoint_bytes": float(sum(sizes))} if any(sizes) else {}

    @property
    def _client(self) -> TrainingClient:
        if self._training is None:
            raise RuntimeError("open the session first")
        return self._training
