"""The seed's adapter over the Tinker API: eight pure callbacks, and the extended API.

```python
adapter = ct.TinkexAdapter()
experiment = adapter.create_experiment(name="SciFact", config={"base_model": "nano"})
with adapter.start_session(experiment) as session:
    trained = adapter.train(session, rows, epochs=3)
    print(adapter.infer(session, "Claim: ", checkpoint=trained.best_checkpoint))
```

`AsyncTinkexAdapter` is the same for code that has an event loop, with `await`. Of the extended API the original
had documented `train`, `evaluate`, `infer` and `load_checkpoint`, and written none.
"""

from __future__ import annotations

import atexit
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.datasets import Tokenizer, load_tokenizer
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import check_segment
from crucible_tinkex.protocol.wire import Datum, SamplingParams
from crucible_tinkex.telemetry.bridge import Bridge, Handler
from crucible_tinkex.training.adapter import quality
from crucible_tinkex.training.adapter.blocking import BlockingSession, LoopThread
from crucible_tinkex.training.adapter.experiment import AdapterConfig, LoraExperiment
from crucible_tinkex.training.adapter.protocol import LoraAdapter
from crucible_tinkex.training.adapter.rows import datums
from crucible_tinkex.training.losses.registry import LossRegistry, default_losses
from crucible_tinkex.training.tinkex.results import (
    Checkpoint,
    Completion,
    EvaluationResult,
    TrainResult,
)
from crucible_tinkex.training.tinkex.service.connecting import Source, connector
from crucible_tinkex.training.tinkex.service.samplers import Prompt
from crucible_tinkex.training.tinkex.service.storing import sink_of
from crucible_tinkex.training.tinkex.session import TinkexSession

_CITATIONS = "citation_validity_weight"


class TinkexCallbacks:
    """The eight callbacks of `LoraAdapter`. Inherit from it to change one of them."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | str | None = None,
        losses: LossRegistry | None = None,
    ) -> None:
        """`tokenizer`: a folder or name; by default the service's, which a session finds out."""
        self._tokenizer = tokenizer
        self.losses = losses or default_losses()

    def generate_id(self) -> str:
        """16 hex digits."""
        return secrets.token_hex(8)

    def create_experiment(
        self,
        *,
        name: str = "",
        description: str = "",
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | AdapterConfig | None = None,
    ) -> LoraExperiment:
        """Raises `ConfigError` without a name, and for every key of `config` that is wrong; what
        Tinker cannot apply is in `not_applied` of the result."""
        if not name.strip():
            raise ConfigError("experiment name is required")
        return LoraExperiment(
            id=self.generate_id(),
            name=name,
            config=AdapterConfig.build(config),
            description=description,
            tags=tuple(tags),
        )

    def batch_dataset(self, dataset: Sequence[Any], batch_size: int) -> list[list[Any]]:
        """Portions of `batch_size` in order; the last may be short, and none if there are no rows.

        Losses are means per weight, so a short batch is no cheaper than a full one: the original
        compared the sum of one row with the sum of eight."""
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} must be at least 1")
        starts = range(0, len(dataset), batch_size)
        return [list(dataset[start : start + batch_size]) for start in starts]

    def format_training_data(
        self,
        batch: Sequence[Any],
        *,
        tokenizer: Tokenizer | str | None = None,
        max_length: int | None = None,
        token_weights: str | None = None,
        weight_config: Mapping[str, float] | None = None,
        citation_validity_weight: float | None = None,
    ) -> list[Datum]:
        """A datum per row: input tokens, next-token targets, and weights that are 0 on what is only
        read. `token_weights` is a scheme of `losses`; the seed's `citation_validity_weight` alone
        chooses `citation_validity`. Raises `DataError` that names the row."""
        weights = dict(weight_config or {})
        if citation_validity_weight is not None:
            weights[_CITATIONS] = citation_validity_weight
            token_weights = token_weights or "citation_validity"
        return datums(
            batch,
            self._tokens(tokenizer),
            max_length=max_length,
            scheme=self.losses.scheme(token_weights or "uniform"),
            config=weights,
        )

    def calculate_metrics(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `quality.calculate_metrics`."""
        return quality.calculate_metrics(results)

    def validate_quality(
        self, results: Mapping[str, Any], config: Mapping[str, Any] | AdapterConfig | None = None
    ) -> dict[str, Any]:
        """See `quality.validate_quality`. `config` is a configuration, or has `quality_targets`,
        or is the targets."""
        if isinstance(config, AdapterConfig):
            targets: Any = config.quality_targets
        else:
            targets = config.get("quality_targets", config) if config is not None else None
        return quality.validate_quality(results, targets)

    def validate_training(
        self, results: Sequence[Mapping[str, Any]], targets: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """See `quality.validate_training`."""
        return quality.validate_training(results, targets)

    def sampling_params(
        self,
        *,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = -1,
        max_tokens: int = 512,
        stop: Sequence[str] | Sequence[int] | str | None = None,
        stop_sequences: Sequence[str] = (),
        seed: int | None = None,
    ) -> SamplingParams:
        """The seed's defaults. `stop_sequences` is its name of Tinker's `stop`; with neither, the
        end-of-sequence token stops."""
        for what, is_wrong in (
            (f"temperature = {temperature}", temperature < 0),
            (f"top_p = {top_p}", not 0 < top_p <= 1),
            (f"max_tokens = {max_tokens}", max_tokens < 1),
        ):
            if is_wrong:
                raise ConfigError(f"sampling: {what} is out of range")
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=max_tokens,
            stop=stop if stop is not None else (list(stop_sequences) or None),
            seed=seed,
        )

    def checkpoint_name(self, experiment_id: str, step: int) -> str:
        """`EXPERIMENT_step_00000100`: equal for equal arguments, and sorted as the steps are. The
        original's ended in the seconds of the clock, so two saves in one second collided."""
        if step < 0:
            raise ConfigError(f"step = {step} must be at least 0")
        return check_segment(f"{experiment_id}_step_{step:08d}", what="checkpoint name")

    def _tokens(self, given: Tokenizer | str | None) -> Tokenizer:
        chosen = given if given is not None else self._tokenizer
        if chosen is None:
            raise ConfigError("format_training_data needs a tokenizer: a folder or a name")
        return chosen if isinstance(chosen, Tokenizer) else load_tokenizer(str(chosen))


class AsyncTinkexAdapter(TinkexCallbacks):
    """The callbacks, and sessions for code that has an event loop."""

    def __init__(
        self,
        service: Source = None,
        *,
        tokenizer: Tokenizer | str | None = None,
        storage: str | Path | None = None,
        losses: LossRegistry | None = None,
        callbacks: LoraAdapter | None = None,
        model_registry: Any = None,
    ) -> None:
        """`service`: what sessions train on; by default what the experiment's configuration says.
        `storage`: a folder that keeps the events of sessions. `callbacks`: another adapter, whose
        callbacks sessions use in place of these."""
        super().__init__(tokenizer=tokenizer, losses=losses)
        self._service = service
        self._storage = storage
        self._callbacks = callbacks
        self._handlers: dict[str, tuple[Handler, Sequence[str] | None]] = {}
        self._sessions: list[TinkexSession] = []
        """Those that are open. One that the caller lost is closed here, and nowhere else."""
        self.model_registry = model_registry

    def attach(
        self, handler_id: str, handler: Handler, events: Sequence[str] | None = None
    ) -> None:
        """Call `handler` for the events of every session that is started from now on."""
        Bridge().attach(handler_id, handler, events)  # refuses unknown events
        self._handlers[handler_id] = (handler, events)

    def detach(self, handler_id: str) -> bool:
        return self._handlers.pop(handler_id, None) is not None

    def session(self, experiment: LoraExperiment) -> TinkexSession:
        """One that is not open yet: `async with adapter.session(experiment) as session`."""
        connect = connector(self._service, experiment.config)
        bridge = Bridge(experiment.id)
        for handler_id, (handler, events) in self._handlers.items():
            bridge.attach(handler_id, handler, events)
        return TinkexSession(
            experiment,
            self._callbacks or self,
            connect,
            tokenizer=self._tokenizer,
            bridge=bridge,
            sink=sink_of(self._storage, experiment.id),
            losses=self.losses,
            model_registry=self.model_registry,
        )

    async def start_session(self, experiment: LoraExperiment) -> TinkexSession:
        """An open session. Close it, or use it as a context manager."""
        session = await self.session(experiment).open()
        self._sessions = [s for s in self._sessions if not s.is_closed] + [session]
        return session

    async def train(
        self, session: TinkexSession, dataset: str | Path | Sequence[Any], **options: Any
    ) -> TrainResult:
        """See `TinkexSession.train`."""
        return await session.train(dataset, **options)

    async def evaluate(
        self, session: TinkexSession, dataset: str | Path | Sequence[Any], **options: Any
    ) -> EvaluationResult:
        """See `TinkexSession.evaluate`."""
        return await session.evaluate(dataset, **options)

    async def infer(
        self, session: TinkexSession, prompts: Prompt | Sequence[Prompt], **options: Any
    ) -> list[Completion]:
        """See `TinkexSession.infer`."""
        return await session.infer(prompts, **options)

    async def save_checkpoint(self, session: TinkexSession, step: int | None = None) -> Checkpoint:
        """See `TinkexSession.save_checkpoint`."""
        return await session.save_checkpoint(step)

    async def load_checkpoint(
        self, session: TinkexSession, checkpoint: str | Checkpoint | Mapping[str, Any], **how: Any
    ) -> None:
        """See `TinkexSession.load_checkpoint`."""
        await session.load_checkpoint(checkpoint, **how)

    async def close(self) -> None:
        """End every session of `start_session` that is still open."""
        while self._sessions:
            await self._sessions.pop().close()

    async def __aenter__(self) -> AsyncTinkexAdapter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class TinkexAdapter(TinkexCallbacks):
    """The callbacks, and sessions whose operations return when they are done."""

    def __init__(self, service: Source = None, **options: Any) -> None:
        """As `AsyncTinkexAdapter`. `close` ends what is still open; so does the interpreter."""
        self._inner = AsyncTinkexAdapter(service, **options)
        super().__init__(tokenizer=self._inner._tokenizer, losses=self._inner.losses)
        if self._inner._callbacks is None and type(self) is not TinkexAdapter:
            self._inner._callbacks = self
        self._loop: LoopThread | None = None
        self._opening = threading.Lock()
        self.attach = self._inner.attach
        self.detach = self._inner.detach

    def start_session(self, experiment: LoraExperiment) -> BlockingSession:
        """An open session. Close it, or use it as a context manager."""
        loop = self._opened()
        return BlockingSession(loop.run(self._inner.start_session(experiment)), loop)

    def train(
        self, session: BlockingSession, dataset: str | Path | Sequence[Any], **options: Any
    ) -> TrainResult:
        """See `TinkexSession.train`."""
        return session.train(dataset, **options)

    def evaluate(
        self, session: BlockingSession, dataset: str | Path | Sequence[Any], **options: Any
    ) -> EvaluationResult:
        """See `TinkexSession.evaluate`."""
        return session.evaluate(dataset, **options)

    def infer(
        self, session: BlockingSession, prompts: Prompt | Sequence[Prompt], **options: Any
    ) -> list[Completion]:
        """See `TinkexSession.infer`."""
        return session.infer(prompts, **options)

    def save_checkpoint(self, session: BlockingSession, step: int | None = None) -> Checkpoint:
        """See `TinkexSession.save_checkpoint`."""
        return session.save_checkpoint(step)

    def load_checkpoint(
        self, session: BlockingSession, checkpoint: str | Checkpoint | Mapping[str, Any], **how: Any
    ) -> None:
        """See `TinkexSession.load_checkpoint`."""
        session.load_checkpoint(checkpoint, **how)

    def close(self) -> None:
        """End every session that is still open."""
        if self._loop is None:
            return
        atexit.unregister(self.close)
        self._loop.run(self._inner.close())
        self._loop.close()
        self._loop = None

    def __enter__(self) -> TinkexAdapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> LoopThread:
        with self._opening:  # a harness's cells begin in threads
            if self._loop is None:
                self._loop = LoopThread()
                atexit.register(self.close)
            return self._loop
