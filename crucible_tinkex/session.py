"""One trial's live training session: the whole loop of a rung, without the driver.

Guarantees: the numbers of a trial are a function of (experiment, seed, step), so an attempt that
resumes from a checkpoint repeats the lost steps exactly; a checkpoint is committed to the registry
only after the service acknowledged it and after all telemetry up to it is durable; the final step
is always evaluated and checkpointed. Knows nothing of Ray, and owns the service it is given only
until `close`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crucible_tinkex.client.interface import TrainingClient, TrainingService
from crucible_tinkex.client.loss import loss_of
from crucible_tinkex.client.watch import Observer, QueueState, RequestRecord
from crucible_tinkex.client.wire import (
    AdamParams,
    ForwardBackwardOutput,
    LoraConfig,
    OptimStepResponse,
)
from crucible_tinkex.datasets import TokenisedDataset, batch_indices, epoch_of
from crucible_tinkex.datums import datum, token_count, total_weight
from crucible_tinkex.errors import TrialFailedError
from crucible_tinkex.evaluation import evaluate
from crucible_tinkex.events import EventSink
from crucible_tinkex.names import checkpoint_name
from crucible_tinkex.registry import DONE, PENDING, CheckpointRecord, RegistryPort
from crucible_tinkex.schedule import learning_rate
from crucible_tinkex.trial import TrialPlan


@dataclass(frozen=True)
class SweepData:
    """The tokenised rows that all trials of a sweep share."""

    train: TokenisedDataset
    eval: TokenisedDataset | None


@dataclass(frozen=True)
class Progress:
    """Where a session stands after `advance`."""

    trial_id: str
    attempt: int
    step: int
    metrics: Mapping[str, float]
    drained: bool
    """Stopped before its target because it was asked to drain."""


class DrainSignal(Protocol):
    """Says whether sessions should finish their step, save and stop (an `asyncio.Event` is one)."""

    def is_set(self) -> bool: ...


@dataclass
class _Step:
    """A step that was sent and not yet awaited."""

    number: int
    rate: float
    tokens: int
    weight: float
    backward: asyncio.Future[ForwardBackwardOutput]
    optim: asyncio.Future[OptimStepResponse]

    def cancel(self) -> None:
        self.backward.cancel()
        self.optim.cancel()


class _Telling(Observer):
    """Makes events of what a session waits for, and of the requests that had trouble."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit

    def on_request(self, record: RequestRecord) -> None:
        if record.attempts > 1 or record.error is not None:
            self._emit(
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
        extra = {"reason": state.reason, "resume_at": state.resume_at}
        self._emit("queue_state", name=state.state, extra=extra)


class Session:
    """Trains one `TrialPlan`. Use: `open`, `advance` once per rung, `close`.

    `connect` makes the service, which tells its observer what the session waits for.
    """

    def __init__(
        self,
        plan: TrialPlan,
        data: SweepData,
        *,
        connect: Callable[[Observer], TrainingService],
        registry: RegistryPort,
        sink: EventSink,
        drain: DrainSignal,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._plan = plan
        self._data = data
        self._service = connect(_Telling(self._emit))
        self._registry = registry
        self._sink = sink
        self._drain = drain
        self._clock = clock
        self._training: TrainingClient | None = None
        self._saved_step = 0
        self._evaluated_step = -1
        self._last_time = 0.0
        self._train_nll: float | None = None
        self.attempt = 0
        self.step = 0
        self.metrics: dict[str, float] = {}

    async def open(self) -> None:
        """Claim the next attempt; start fresh or from the trial's last checkpoint."""
        grant = await self._registry.start_attempt(self._plan.trial_id)
        self.attempt = grant.attempt
        if grant.resume is None:
            self._training = await self._create()
        else:
            self.step = self._saved_step = grant.resume.step
            self._training = await self._service.create_training_from_state(grant.resume.path)
            self.metrics = dict(grant.resume.metrics)
            self._evaluated_step = self.step if self._evaluation_due(self.step) else -1
        self._emit(
            "session_start",
            extra={
                "run_name": self._plan.run_name,
                "hparams": {**self._plan.values, "seed": self._plan.seed},
                "config": self._plan.experiment.model_dump(mode="json", exclude_none=True),
                "resumed_step": self.step,
                "model_id": self._training.model_id,
            },
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

    async def advance(self, to_step: int) -> Progress:
        """Train up to `to_step` (a rung), or until asked to drain; ends in a milestone."""
        ahead = self._plan.experiment.train.submit_ahead
        pending: deque[_Step] = deque()
        self._last_time = self._clock()
        numbers = range(self.step + 1, to_step + 1)
        if not numbers:  # the untrained base, or an attempt that ended before it was told so
            await self._milestone(save=False)
        try:
            for number in numbers:
                pending.append(self._submit(number))
                stop = number == to_step or self._drain.is_set()
                milestone = stop or self._milestone_due(number)
                while pending and (milestone or len(pending) > ahead):
                    await self._complete(pending.popleft())
                if milestone:
                    await self._milestone(save=stop or self._checkpoint_due(number))
                if stop:
                    break
        finally:
            for step in pending:
                step.cancel()
        return Progress(
            self._plan.trial_id, self.attempt, self.step, self.metrics, self.step < to_step
        )

    def _submit(self, number: int) -> _Step:
        train = self._plan.experiment.train
        rows = batch_indices(
            len(self._data.train), seed=self._plan.seed, step=number, batch_size=train.batch_size
        )
        batch = [datum(self._data.train, i) for i in rows]
        params = self._adam(number)
        client = self._client
        return _Step(
            number=number,
            rate=params.learning_rate,
            tokens=token_count(batch),
            weight=total_weight(batch),
            backward=asyncio.ensure_future(client.forward_backward(batch, loss_fn=train.loss)),
            optim=asyncio.ensure_future(client.optim_step(params)),
        )

    def _adam(self, number: int) -> AdamParams:
        optimizer = self._plan.experiment.optimizer
        rate = learning_rate(optimizer, step=number, total_steps=self._plan.total_steps)
        return AdamParams(
            learning_rate=rate,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            grad_clip_norm=optimizer.grad_clip_norm,
        )

    async def _complete(self, step: _Step) -> None:
        try:
            backward = await step.backward
            optim = await step.optim
        except BaseException:
            step.cancel()
            raise
        nll = loss_of(backward) / step.weight
        now = self._clock()
        seconds, self._last_time = now - self._last_time, now
        self.step, self._train_nll = step.number, nll
        self._measure("training_step", "train/nll", nll)
        self._measure("training_step", "perf/step_s", seconds)
        self._measure("training_step", "perf/tokens_per_s", step.tokens / max(seconds, 1e-9))
        self._measure("optimizer_step", "optim/lr", step.rate)
        for name, value in (optim.metrics or {}).items():
            self._measure("optimizer_step", f"optim/{name.replace(':', '_')}", value)
        if not math.isfinite(nll):
            raise TrialFailedError(
                f"the training loss became {nll} at step {step.number}; try a lower learning rate"
            )

    def _evaluation_due(self, step: int) -> bool:
        every = self._plan.experiment.train.eval_every
        return step == self._plan.total_steps or (every > 0 and step > 0 and step % every == 0)

    def _checkpoint_due(self, step: int) -> bool:
        every = self._plan.experiment.train.checkpoint_every
        return step == self._plan.total_steps or (every > 0 and step % every == 0)

    def _milestone_due(self, step: int) -> bool:
        return self._evaluation_due(step) or self._checkpoint_due(step)

    async def _milestone(self, *, save: bool) -> None:
        """Evaluate if due and not done yet; then save, so that the checkpoint has the metrics."""
        if self._evaluation_due(self.step) and self._evaluated_step != self.step:
            await self._evaluate()
        if save and self.step > self._saved_step:
            await self._save()
        self._last_time = self._clock()

    async def _evaluate(self) -> None:
        """Record the step's result: the last training loss and all held-out metrics."""
        metrics = {} if self._train_nll is None else {"train/nll": self._train_nll}
        if self._data.eval is not None:
            started = self._clock()
            result = await evaluate(self._client, self._data.eval, self._plan.experiment.evaluation)
            for name, value in result.metrics.items():
                self._measure("evaluation", name, value)
            self._measure("evaluation", "perf/eval_s", self._clock() - started)
            metrics |= result.metrics
        self._evaluated_step = self.step
        self.metrics = metrics
        await self._registry.record_result(
            self._plan.trial_id, self.attempt, self.step, self.metrics
        )

    async def _save(self) -> None:
        name = checkpoint_name(self._plan.trial_id, self.attempt, self.step)
        path = await self._client.save_state(name)
        self._emit("checkpoint_saved", name=name, extra={"path": path})
        await self._sink.flush()
        await self._registry.commit_checkpoint(
            CheckpointRecord(self._plan.trial_id, self.attempt, self.step, path, dict(self.metrics))
        )
        self._saved_step = self.step

    async def close(self, state: str, error: str | None = None) -> None:
        """Tell telemetry, then the registry, how the attempt ended; then leave the service."""
        self._emit("session_end", extra={"state": state, "error": error})
        await self._sink.flush()
        await self._registry.finish(self._plan.trial_id, self.attempt, state, error)
        await self.leave(state)

    async def leave(self, state: str) -> None:
        """Finish the service's session without a word to the registry."""
        reasons = {DONE: "success", PENDING: "interrupted"}
        await self._service.close(reason=reasons.get(state, "errored"))  # type: ignore[arg-type]

    @property
    def _client(self) -> TrainingClient:
        if self._training is None:
            raise RuntimeError("open the session first")
        return self._training

    def _measure(self, kind: str, name: str, value: float) -> None:
        self._emit(kind, name=name, value=float(value))

    def _emit(self, kind: str, **fields: Any) -> None:
        epoch = epoch_of(
            max(self.step, 1),
            rows=len(self._data.train),
            batch_size=self._plan.experiment.train.batch_size,
        )
        self._sink.emit(
            kind,
            trial_id=self._plan.trial_id,
            attempt=self.attempt,
            step=self.step,
            epoch=epoch,
            **fields,
        )
