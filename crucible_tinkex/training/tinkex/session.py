"""The seed's session: one model in training, its samplers and checkpoints, without Ray.

It trains through an adapter's callbacks and by the loop, schedule and evaluation that sweeps use.
`session_end` is told exactly once, also when the session failed or could not begin. What the
original got wrong is said in `states` and `running`; besides: every wait is awaited here, losses
and norms are read from the metrics that a service really sends, the service decides paths, and a
checkpoint holds weights and optimizer (to go on) as well as the weights for sampling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import ConfigError, CrucibleError, SessionStateError
from crucible_tinkex.protocol.wire import Datum
from crucible_tinkex.registry import Spent
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.adapter.experiment import LoraExperiment
from crucible_tinkex.training.adapter.protocol import LoraAdapter
from crucible_tinkex.training.adapter.rows import load, tokenised
from crucible_tinkex.training.losses.registry import LossRegistry
from crucible_tinkex.training.outcome import speaks_of_checkpoint
from crucible_tinkex.training.recipes.datums import total_weight
from crucible_tinkex.training.recipes.recipe import Update
from crucible_tinkex.training.recipes.schedule import adam_params
from crucible_tinkex.training.tinkex.driving import drive
from crucible_tinkex.training.tinkex.evaluating import Scorer, asked, measured, named_scorers
from crucible_tinkex.training.tinkex.gradient import Gradient
from crucible_tinkex.training.tinkex.keeping import SessionCheckpoints
from crucible_tinkex.training.tinkex.options import RecoveryPolicy, TrainOptions, optimizer
from crucible_tinkex.training.tinkex.recipe import AdapterRecipe, resolved, scheme_of
from crucible_tinkex.training.tinkex.results import (
    Checkpoint,
    Completion,
    EvaluationResult,
    StepRow,
    TrainResult,
)
from crucible_tinkex.training.tinkex.running import TrainingRun
from crucible_tinkex.training.tinkex.service.connecting import Connect
from crucible_tinkex.training.tinkex.service.live import LiveModel
from crucible_tinkex.training.tinkex.service.samplers import Prompt, as_prompts, complete
from crucible_tinkex.training.tinkex.service.storing import Sink
from crucible_tinkex.training.tinkex.states import State, States, told


class TinkexSession:
    """See the module. Use: `open`, the operations of `states`, `close`; or `async with`."""

    def __init__(
        self,
        experiment: LoraExperiment,
        adapter: LoraAdapter,
        connect: Connect,
        *,
        tokenizer: Tokenizer | str | None,
        bridge: Bridge,
        sink: Sink,
        losses: LossRegistry,
        model_registry: Any,
    ) -> None:
        self.experiment = experiment
        self.experiment_id, self.config = experiment.id, experiment.config
        self.adapter = adapter
        self.bridge = bridge
        self.losses = losses
        self.model_registry = model_registry
        """For the caller, as in the seed's example; the session never looks at it."""
        self.started_at = datetime.now(UTC)
        self._states = States()
        self._live = LiveModel(
            experiment, adapter, connect, tokenizer=tokenizer, bridge=bridge, sink=sink
        )
        self.checkpoint_manager = SessionCheckpoints(
            experiment.checkpoints, self._live, self.bridge, self._states.check_open
        )
        self._run: TrainingRun | None = None
        self._gradient = Gradient(self._live)

    # --- what it is ----------------------------------------------------------------------------

    @property
    def status(self) -> State:
        return self._states.state

    @property
    def is_closed(self) -> bool:
        return self._states.is_closed

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights, as far as their results are known."""
        return self._live.step if self._run is None else self._run.session_step

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return list(self.experiment.checkpoints)

    @property
    def metrics(self) -> list[StepRow]:
        """A row per step."""
        return list(self.experiment.metrics)

    @property
    def spent(self) -> Spent:
        return self._live.meter.spent()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._live.tokenizer

    # --- its beginning and end -----------------------------------------------------------------

    async def open(self) -> TinkexSession:
        """Connect and make the model. What goes wrong is raised, and `session_end` told."""
        try:
            with self._placed("open"):
                await self._live.open()
        except BaseException as error:
            self._states.fail(error)
            await self.close()
            raise
        self._states.recovered()
        return self

    async def close(self) -> None:
        """End the session on the service; a second call does nothing."""
        if self._states.is_closed:
            return
        if self._states.state in ("training", "evaluating"):
            self._states.fail(SessionStateError("closed while it was at work"))
        self._states.close()
        error = None if self.status == "completed" else told(self._states.error)
        await self._live.close(self.status, error)

    async def __aenter__(self) -> TinkexSession:
        """Of `start_session` it is open already."""
        return await self.open() if self.status == "initializing" else self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.status == "ready":
            self._states.fail(error)
        await self.close()

    # --- training ------------------------------------------------------------------------------

    async def train(
        self,
        /,
        dataset: str | Path | Sequence[Any],
        *,
        eval_dataset: str | Path | Sequence[Any] | None = None,
        start_step: int = 0,
        **options: Any,
    ) -> TrainResult:
        """Train on rows or a file of them; `options` are those of `TrainOptions`.

        `start_step`: steps of this very training that the weights have behind them already (after
        `load_checkpoint`). Raises `ConfigError` before anything is sent for what is wrong.
        """
        self._states.check()
        asked, config = TrainOptions.of(options), self.experiment.config
        recipe = AdapterRecipe(
            self.adapter,
            load(dataset),
            asked,
            losses=self.losses,
            optimizer=optimizer(config.optimizer, asked.adam_params),
            tokenizer=self.tokenizer,
            max_length=config.max_length,
            seed=config.seed if asked.seed is None else asked.seed,
            held_out=None
            if eval_dataset is None
            else tokenised(load(eval_dataset), self.tokenizer, max_length=config.max_length),
        )
        if not 0 <= start_step <= min(self.step, recipe.total_steps):
            raise ConfigError(
                f"start_step = {start_step}, but the session is at step {self.step} and the "
                f"training has {recipe.total_steps}; load the checkpoint of that step first"
            )
        run = TrainingRun(
            recipe,
            asked,
            first=self.step - start_step,
            start=start_step,
            report=self._live.report,
            bridge=self.bridge,
        )
        with self._states.working("training", changes_weights=True), self._placed("train"):
            self._live.epoch_of = lambda step: recipe.epoch(max(step - run.first, 0))
            self._run = run
            try:
                await drive(self._live, run, asked.recovery, self.bridge)
            finally:
                self._live.step, self._run = run.session_step, None
                kept = [row for row in self.experiment.metrics if row["step"] <= run.first]
                self.experiment.metrics[:] = [*kept, *run.rows.values()]
        return TrainResult(
            results=list(run.rows.values()),
            metrics=self.adapter.calculate_metrics(list(run.rows.values())),
            checkpoints=list(run.checkpoints),
            final_metrics=dict(run.found.metrics),
            best_metric="eval/nll" if recipe.is_evaluating else "train/nll",
            trace_id=f"{self.experiment.id}-{self._live.report.attempt}",
        )

    def stop(self) -> None:
        """Let `train` finish what was sent, save and return."""
        if self._run is not None:
            self._run.is_stopping = True

    async def forward_backward(
        self,
        /,
        data: Sequence[Any],
        *,
        loss_fn: Any = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Add the gradient of rows, or of datums. `loss` is the mean per weight, in nats."""
        asked = TrainOptions.of({"loss_fn": loss_fn, "loss_fn_config": loss_fn_config, **options})
        batch = self._datums(data, asked)
        loss = resolved(asked, self.losses)
        adam = adam_params(self.experiment.config.optimizer, step=1, total_steps=1)
        update = Update(
            batch, adam, total_weight(batch), loss.service, loss_fn_config, custom=loss.custom
        )
        with self._working("training", "forward_backward", changes_weights=True):
            return await self._gradient.add(update)

    def _datums(self, data: Sequence[Any], options: TrainOptions) -> list[Datum]:
        self._states.check()
        if all(isinstance(item, Datum) for item in data) and data:
            return list(data)
        return list(
            self.adapter.format_training_data(
                load(data),
                tokenizer=self.tokenizer,
                max_length=self.experiment.config.max_length,
                token_weights=scheme_of(options, resolved(options, self.losses)),
                weight_config=options.weighing,
            )
        )

    async def optim_step(self, adam: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Apply the gradient. `adam` has the seed's names or ours."""
        settings = optimizer(self.experiment.config.optimizer, adam)
        with self._working("training", "optim_step", changes_weights=True):
            return await self._gradient.apply(settings)

    # --- checkpoints and samplers --------------------------------------------------------------

    async def save_checkpoint(
        self, step: int | None = None, *, metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Save the weights as they are, to go on from and for sampling. `step` is a label; by
        default the step where they are. While it trains, `checkpoint_every` saves."""
        with self._working("training", "save_checkpoint"):
            return await self._live.save(self.step if step is None else step, metrics or {})

    async def load_checkpoint(
        self,
        checkpoint: str | Checkpoint | Mapping[str, Any],
        *,
        optimizer: bool = True,
        step: int | None = None,
    ) -> None:
        """Put a checkpoint's weights in place of those here. A name is one of this session's; of a
        path that it does not know, say the `step`. One that is gone leaves the weights alone."""
        found = self._live.find(checkpoint, step)
        try:
            with self._working("training", "load_checkpoint", changes_weights=True):
                await self._live.load(found, optimizer=optimizer)
        except CrucibleError as error:
            if speaks_of_checkpoint(error) and self.status == "failed":
                self._states.recovered()
            raise

    async def recover(self, policy: RecoveryPolicy | None = None) -> None:
        """Bring a failed session back: another one on the service, from a checkpoint."""
        if self.status != "failed" or self._states.is_closed:
            raise SessionStateError(f"the session is {self.status}; nothing is to be recovered")
        with self._placed("recover"):
            await self._live.reopen(policy or RecoveryPolicy(), None)
        self._gradient.forget()
        self._states.recovered()

    async def create_sampler(self, checkpoint: str | Checkpoint) -> SamplingClient:
        """A client that samples from a checkpoint of this session, or from a path."""
        self._states.check_open()
        with self._placed("create_sampler"):
            return await self._live.sampler_of(self._live.find(checkpoint, None))

    async def infer(
        self,
        /,
        prompts: Prompt | Sequence[Prompt],
        *,
        checkpoint: str | Checkpoint | None = None,
        num_samples: int = 1,
        **sampling: Any,
    ) -> list[Completion]:
        """`num_samples` completions of every prompt (text or tokens), from the weights as they are
        or from a checkpoint; `sampling` are those of `sampling_params`."""
        params = self.adapter.sampling_params(**sampling)
        asked = as_prompts(prompts)
        if checkpoint is None:
            self._states.check()
            sampler = await self._live.current_sampler()
        else:
            sampler = await self.create_sampler(checkpoint)
        with self._placed("infer"):
            return await complete(sampler, self.tokenizer, asked, params, num_samples)

    # --- evaluation ----------------------------------------------------------------------------

    async def evaluate(
        self,
        /,
        dataset: str | Path | Sequence[Any],
        *,
        checkpoint: str | Checkpoint | None = None,
        adapter_name: str = "default",
        generate: bool = True,
        max_rows: int | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        **options: Any,
    ) -> EvaluationResult:
        """Held-out metrics of the weights as they are, or of a checkpoint: those of sweeps, and the
        mean of each scorer over greedy completions. `options`: `metrics`, `samples`, `answer` and
        `right_by` of `[evaluation]`, and those of `sampling_params`. Every row is kept.

        The original reported numbers that stood in its source.
        """
        section, sampling = asked(generate, options)
        named = named_scorers(scorers)
        rows = load(dataset)[:max_rows]
        chosen = None if checkpoint is None else self._live.find(checkpoint, None)
        with self._working("evaluating", "evaluate"):
            found = await measured(
                self._live,
                rows,
                chosen,
                section,
                max_length=self.experiment.config.max_length,
                scorers=named,
                params=self.adapter.sampling_params(**sampling),
            )
        if chosen is None:
            self._live.report.measure("evaluation", found.metrics)
            self._live.report.examples(found.examples)
        self.bridge.execute("evaluation_complete", found.metrics, step=self.step)
        own, name = self.experiment_id, None if chosen is None else chosen.name
        return EvaluationResult(own, adapter_name, found.metrics, found.examples, name)

    @contextlib.contextmanager
    def _working(
        self, state: Any, operation: str, *, changes_weights: bool = False
    ) -> Iterator[None]:
        with self._states.working(state, changes_weights=changes_weights), self._placed(operation):
            yield

    @contextlib.contextmanager
    def _placed(self, operation: str) -> Iterator[None]:
        """Errors say where they happened."""
        try:
            yield
        except CrucibleError as error:
            error.with_context(experiment=self.experiment.id, operation=operation, step=self.step)
            raise
