"""Clients that pass every operation on and tell a bridge when it starts, and how it ends.

An operation starts when it is submitted and stops when its answer is there, however many calls over
HTTP that takes; `duration_s` is the time between. A wait that is cancelled tells nothing: the
operation goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import Unpack

from crucible_tinkex.client.interface import (
    CROSS_ENTROPY,
    LossOptions,
    SampleOptions,
    SamplingClient,
    TrainingClient,
)
from crucible_tinkex.errors import error_type
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    ModelInfo,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
)
from crucible_tinkex.telemetry.bridge.bridge import Bridge

if TYPE_CHECKING:
    from crucible_tinkex.client.model.custom_loss import CustomLoss

T = TypeVar("T")
Told = Callable[[T], Mapping[str, Any]]
Clock = Callable[[], float]


class _Teller:
    def __init__(self, bridge: Bridge, clock: Clock) -> None:
        self._bridge = bridge
        self._clock = clock

    def tell(
        self,
        operation: str,
        submit: Callable[[], Awaitable[T]],
        told: Told[T] = lambda _: {},
        **metadata: Any,
    ) -> Awaitable[T]:
        """Submit at once; the awaitable may be awaited again, as the client's own."""
        started = self._clock()
        self._bridge.execute(f"{operation}_start", **metadata)
        try:
            answer = asyncio.ensure_future(submit())
        except BaseException as error:
            self._failed(operation, started, error, metadata)
            raise
        answer.add_done_callback(lambda done: self._done(operation, started, done, told, metadata))
        return answer

    def _done(
        self,
        operation: str,
        started: float,
        answer: asyncio.Future[T],
        told: Told[T],
        metadata: Mapping[str, Any],
    ) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if error is not None:
            self._failed(operation, started, error, metadata)
            return
        measured = {"duration_s": self._clock() - started, **told(answer.result())}
        self._bridge.execute(f"{operation}_stop", measured, **metadata)

    def _failed(
        self, operation: str, started: float, error: BaseException, metadata: Mapping[str, Any]
    ) -> None:
        self._bridge.execute(
            f"{operation}_exception",
            {"duration_s": self._clock() - started},
            **metadata,
            error=str(error),
            error_type=error_type(error),
        )


class BridgedTraining:
    """A `TrainingClient`."""

    def __init__(
        self, client: TrainingClient, bridge: Bridge, clock: Clock = time.perf_counter
    ) -> None:
        self._client = client
        self._bridge = bridge
        self._clock = clock
        self._tell = _Teller(bridge, clock).tell

    @property
    def model_id(self) -> str:
        return self._client.model_id

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._tell(
            "forward_backward",
            lambda: self._client.forward_backward(data, **loss),
            _metrics,
            loss_fn=loss.get("loss_fn", CROSS_ENTROPY),
            rows=len(data),
        )

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._tell(
            "forward_backward",
            lambda: self._client.forward_backward_custom(data, loss_fn),
            _metrics,
            loss_fn="custom",
            rows=len(data),
        )

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._tell(
            "forward",
            lambda: self._client.forward(data, **loss),
            _metrics,
            loss_fn=loss.get("loss_fn", CROSS_ENTROPY),
            rows=len(data),
        )

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        return self._tell(
            "optim_step",
            lambda: self._client.optim_step(params),
            lambda answer: dict(answer.metrics or {}),
            learning_rate=params.learning_rate,
        )

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._tell(
            "save_weights",
            lambda: self._client.save_state(name, ttl_s=ttl_s),
            checkpoint=name,
            checkpoint_kind="state",
        )

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._tell(
            "save_weights",
            lambda: self._client.save_for_sampler(name, ttl_s=ttl_s),
            checkpoint=name,
            checkpoint_kind="sampler",
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        return self._tell(
            "load_weights",
            lambda: self._client.load_state(path, optimizer=optimizer),
            path=path,
            optimizer=optimizer,
        )

    async def sampler(self) -> SamplingClient:
        return BridgedSampling(await self._client.sampler(), self._bridge, self._clock)

    async def info(self) -> ModelInfo:
        return await self._client.info()


class BridgedSampling:
    """A `SamplingClient`."""

    def __init__(
        self, client: SamplingClient, bridge: Bridge, clock: Clock = time.perf_counter
    ) -> None:
        self._client = client
        self._tell = _Teller(bridge, clock).tell

    async def sample(
        self, prompt: Sequence[int], params: SamplingParams, **how: Unpack[SampleOptions]
    ) -> SampleResponse:
        return await self._tell(
            "sample",
            lambda: self._client.sample(prompt, params, **how),
            lambda answer: {"tokens": sum(len(s.tokens) for s in answer.sequences)},
            prompt_tokens=len(prompt),
            num_samples=how.get("num_samples", 1),
        )

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        return await self._tell(
            "sample",
            lambda: self._client.compute_logprobs(tokens),
            lambda answer: {"tokens": 0},
            prompt_tokens=len(tokens),
            num_samples=0,
        )


def _metrics(output: ForwardBackwardOutput) -> Mapping[str, Any]:
    return dict(output.metrics)
