"""What a session holds on the service: its clients, its checkpoints, and the step they are at.

It is opened, and opened again after a loss; `session` decides when.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from crucible_tinkex.client.http.watch import Observers
from crucible_tinkex.client.interface import SamplingClient, TrainingClient, TrainingService
from crucible_tinkex.client.model.witnessed import WitnessedTraining
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError, CrucibleError
from crucible_tinkex.names import NOT_FOR_TRAINING, TinkerPath
from crucible_tinkex.protocol.wire import AdamParams
from crucible_tinkex.telemetry.bridge import Bridge, Teller
from crucible_tinkex.training.adapter.experiment import LoraExperiment
from crucible_tinkex.training.adapter.protocol import LoraAdapter
from crucible_tinkex.training.attempt.beginning import lora_config
from crucible_tinkex.training.attempt.measurements import public
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.outcome import speaks_of_checkpoint
from crucible_tinkex.training.tinkex.options import RecoveryPolicy
from crucible_tinkex.training.tinkex.results import Checkpoint, best
from crucible_tinkex.training.tinkex.running import TrainingRun
from crucible_tinkex.training.tinkex.service.connecting import Connect, tokenizer_of
from crucible_tinkex.training.tinkex.service.samplers import Samplers
from crucible_tinkex.training.tinkex.service.storing import Sink

T = TypeVar("T")


class LiveModel:
    """See the module."""

    def __init__(
        self,
        experiment: LoraExperiment,
        adapter: LoraAdapter,
        connect: Connect,
        *,
        tokenizer: Tokenizer | str | None,
        bridge: Bridge,
        sink: Sink,
    ) -> None:
        self._experiment = experiment
        self._adapter = adapter
        self._connect = connect
        self._given = tokenizer
        self._bridge = bridge
        self._sink = sink
        self.sleep = asyncio.sleep
        self.step = 0
        self.epoch_of: Callable[[int], int] = lambda step: 0
        """Of the training under way."""
        self.meter = Meter(time.perf_counter)
        self.report = Reporter(
            sink, experiment.id, lambda step: self.epoch_of(step), time.perf_counter
        )
        self._tokenizer: Tokenizer | None = None
        self._service: TrainingService | None = None
        self._client: TrainingClient | None = None
        self._samplers = Samplers(bridge, self.meter)
        self._carried: dict[str, Mapping[str, float]] = {}

    @property
    def client(self) -> TrainingClient:
        return _there(self._client)

    @property
    def service(self) -> TrainingService:
        return _there(self._service)

    @property
    def tokenizer(self) -> Tokenizer:
        return _there(self._tokenizer)

    # --- opening and closing -------------------------------------------------------------------

    async def open(self) -> None:
        self._experiment.status = "running"
        service = self._opened()
        self._tokenizer = await tokenizer_of(service, self._experiment.config, self._given)
        self._adopt(await self._create(service))
        self._bridge.execute("session_start", **self._about())

    def _opened(self) -> TrainingService:
        self._service = self._connect(Observers(self.report, self._bridge))
        return self._service

    async def _create(self, service: TrainingService) -> TrainingClient:
        config = self._experiment.config
        training = await service.create_training(
            base_model=config.base_model,
            lora=lora_config(config.lora_config, config.seed),
            user_metadata={**config.user_metadata, "experiment_id": self._experiment.id},
        )
        found, rank = (await training.info()).lora_rank, config.lora_config.rank
        if found not in (None, rank):
            raise ConfigError(f"rank {rank} was asked for and the service made {found}")
        return training

    def _adopt(self, training: TrainingClient) -> None:
        metered = WitnessedTraining(training, self.meter)
        self._client = WitnessedTraining(metered, Teller(self._bridge))
        self._begin(training.model_id)

    def _begin(self, model_id: str) -> None:
        """Stored for every opening and loading: what was measured after this step is replaced."""
        self.report.attempt += 1
        self.report.step = self.step
        extra = {**self._about(), "resumed_step": self.step, "model_id": model_id}
        self.report.emit("session_start", extra=extra)

    def _about(self) -> dict[str, Any]:
        config = self._experiment.config
        return {
            "run_name": self._experiment.name,
            "hparams": {"lora.rank": config.lora_config.rank, "seed": config.seed},
            "config": {
                "model": {"base": config.base_model},
                **config.model_dump(mode="json", exclude_none=True, exclude={"user_metadata"}),
            },
            "not_applied": config.not_applied,
            "tags": list(self._experiment.tags),
        }

    async def reopen(self, policy: RecoveryPolicy, run: TrainingRun | None) -> None:
        """Another session on the service, from the checkpoint that the policy names, or an older
        one if that is gone; from the base only where nothing had been trained before `run`."""
        if self._service is not None:
            await self._service.close(reason="errored", detail="recovering")
        self._samplers.forget()
        service = self._opened()
        least = 0 if run is None else run.first
        candidates = [c for c in self._candidates(policy) if c.step >= least]
        for checkpoint in candidates:
            try:
                training = await service.create_training_from_state(
                    checkpoint.path, optimizer=policy.restore_optimizer
                )
            except CrucibleError as error:
                if not speaks_of_checkpoint(error) or checkpoint is candidates[-1]:
                    raise
                continue
            self.step = checkpoint.step
            break
        else:
            if least > 0:
                raise ConfigError("there is no checkpoint to recover from")
            training, self.step = await self._create(service), 0
        if run is not None:
            carried = next((c.name for c in candidates if c.step == self.step), "")
            run.rewind(self.step, self._carried.get(carried, {}))
        self._adopt(training)
        self._bridge.execute("recovery_completed", {"step": self.step})

    def _candidates(self, policy: RecoveryPolicy) -> list[Checkpoint]:
        saved: list[Checkpoint] = sorted(self._experiment.checkpoints, key=lambda c: -c.step)
        if policy.checkpoint == "latest":
            return saved
        if policy.checkpoint == "best":
            metric = "eval/nll" if any("eval/nll" in c.metrics for c in saved) else "train/nll"
            found = best(saved, metric)
            return [found] if found else saved
        return [self.find(policy.checkpoint, None)]

    async def close(self, status: str, error: str | None) -> None:
        self._experiment.status = "completed" if status == "completed" else "failed"
        state = "done" if status == "completed" else "failed"
        if self.report.attempt:
            self.report.emit("session_end", extra={"state": state, "error": error})
        self._bridge.execute(
            "session_end",
            {"step": self.step, **asdict(self.meter.spent())},
            status=status,
            error=error,
        )
        try:
            await self._sink.aclose()
        finally:
            if self._service is not None:
                reason = "success" if status == "completed" else "errored"
                await self._service.close(reason=reason)  # type: ignore[arg-type]

    # --- steps ---------------------------------------------------------------------------------

    def stepped(self, row: Mapping[str, Any], params: AdamParams, loss: float | None) -> None:
        """An optimizer step that was asked for by itself."""
        self.report.step = self.step
        if loss is not None:
            self.report.measure("training_step", {"train/nll": loss})
        self.report.measure("optimizer_step", {"optim/lr": params.learning_rate})
        self._experiment.metrics.append({**row, "loss": loss, "epoch": None})

    # --- checkpoints ---------------------------------------------------------------------------

    async def save(self, step: int, carried: Mapping[str, float]) -> Checkpoint:
        """Weights and optimizer, and the weights for sampling, under one name."""
        plain = self._adapter.checkpoint_name(self._experiment.id, step)
        taken = {c.name for c in self._experiment.checkpoints}
        others = (f"{plain}_r{again}" for again in itertools.count(2))
        name = next(n for n in itertools.chain([plain], others) if n not in taken)
        state = asyncio.ensure_future(self.client.save_state(name))
        sampler = asyncio.ensure_future(self.client.save_for_sampler(name))
        path, sampler_path = await asyncio.gather(state, sampler)
        checkpoint = Checkpoint(name, step, path, sampler_path, public(carried))
        self.report.emit("checkpoint_saved", name=name, extra={"path": path})
        await self.report.flush()
        self._carried[name] = dict(carried)
        self._experiment.checkpoints.append(checkpoint)
        self._bridge.execute("checkpoint_saved", {"step": step}, checkpoint=name, path=path)
        return checkpoint

    def find(self, wanted: str | Checkpoint | Mapping[str, Any], step: int | None) -> Checkpoint:
        """A checkpoint by name, by path, or as it was written down. Raises `ConfigError`."""
        if isinstance(wanted, Checkpoint):
            return wanted
        if isinstance(wanted, Mapping):
            return Checkpoint(**wanted)
        for known in self._experiment.checkpoints:
            if wanted in (known.name, known.path, known.sampler_path):
                return known  # type: ignore[no-any-return]
        if not wanted.startswith("tinker://"):
            names = ", ".join(c.name for c in self._experiment.checkpoints) or "none"
            is_copy = "/" in wanted
            why = "; copies cannot be loaded: the Tinker API takes no uploads" if is_copy else ""
            raise ConfigError(f"there is no checkpoint {wanted!r}; saved: {names}{why}")
        path = TinkerPath.read(wanted)
        is_sampler = path.kind in NOT_FOR_TRAINING
        return Checkpoint(path.name, step or 0, wanted, wanted if is_sampler else None)

    async def load(self, checkpoint: Checkpoint, *, optimizer: bool) -> None:
        if TinkerPath.read(checkpoint.path).kind in NOT_FOR_TRAINING:
            raise ConfigError(
                f"{checkpoint.path} holds weights for sampling only; load one of weights/"
            )
        await self.client.load_state(checkpoint.path, optimizer=optimizer)
        self.step = checkpoint.step
        self._begin(self.client.model_id)
        self._bridge.execute("checkpoint_loaded", {"step": self.step}, path=checkpoint.path)

    # --- samplers ------------------------------------------------------------------------------

    async def sampler_of(self, checkpoint: Checkpoint) -> SamplingClient:
        path = checkpoint.sampler_path or checkpoint.path
        return await self._samplers.of_checkpoint(self.service, path)

    async def current_sampler(self) -> SamplingClient:
        version = (self.step, self.report.attempt)
        return await self._samplers.of_weights(self.client, version)

    async def to_evaluate(
        self, checkpoint: Checkpoint | None, *, samples: bool
    ) -> tuple[TrainingClient, SamplingClient | None]:
        """Clients of the weights as they are, or of a checkpoint."""
        if checkpoint is None:
            return self.client, await self.current_sampler() if samples else None
        loaded = await self.service.create_training_from_state(checkpoint.path, optimizer=False)
        return WitnessedTraining(loaded, self.meter), (
            await self.sampler_of(checkpoint) if samples else None
        )


def _there(value: T | None) -> T:
    if value is None:
        raise RuntimeError("open the session first")
    return value
