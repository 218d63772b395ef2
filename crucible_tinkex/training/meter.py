"""Counts what an attempt uses: a `TrainingClient` that passes every call on and adds up its tokens.

Tokens count when they are submitted, whatever becomes of them: of an operation that fails after a
service took it, nobody knows whether it is billed. A call that the client repeats counts once,
because the service does it once. Samples count when they arrive.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from crucible_tinkex.client.interface import (
    LossOptions,
    SampleOptions,
    SamplingClient,
    TrainingClient,
)
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    ModelInfo,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
)
from crucible_tinkex.registry import Spent

if TYPE_CHECKING:
    from crucible_tinkex.client.model.custom_loss import CustomLoss


class Meter:
    """The sums of one attempt. Seconds run from its making."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self.train = self.prefill = self.sampled = self.steps = 0

    def spent(self) -> Spent:
        return Spent(
            self.train, self.prefill, self.sampled, self._clock() - self._started, self.steps
        )


def cost_of(data: Sequence[Datum], *, custom: bool) -> Spent:
    """Of a step on these rows, before it is sent; see `MeteredTraining`."""
    tokens = _tokens(data)
    return Spent(train_tokens=tokens, prefill_tokens=tokens if custom else 0, steps=1)


def _tokens(data: Sequence[Datum]) -> int:
    return sum(len(chunk.tokens) for d in data for chunk in d.model_input.chunks)


class MeteredTraining:
    """A `TrainingClient`."""

    def __init__(self, client: TrainingClient, meter: Meter) -> None:
        self._client = client
        self._meter = meter

    @property
    def model_id(self) -> str:
        return self._client.model_id

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        answer = self._client.forward_backward(data, **loss)
        self._meter.train += _tokens(data)
        return answer

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        answer = self._client.forward_backward_custom(data, loss_fn)
        self._meter.prefill += _tokens(data)  # its forward pass comes first
        self._meter.train += _tokens(data)
        return answer

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        answer = self._client.forward(data, **loss)
        self._meter.prefill += _tokens(data)
        return answer

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        self._meter.steps += 1
        return self._client.optim_step(params)

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._client.save_state(name, ttl_s=ttl_s)

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._client.save_for_sampler(name, ttl_s=ttl_s)

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        return self._client.load_state(path, optimizer=optimizer)

    async def sampler(self) -> SamplingClient:
        return MeteredSampling(await self._client.sampler(), self._meter)

    async def info(self) -> ModelInfo:
        return await self._client.info()


class MeteredSampling:
    """A `SamplingClient`."""

    def __init__(self, client: SamplingClient, meter: Meter) -> None:
        self._client = client
        self._meter = meter

    async def sample(
        self, prompt: Sequence[int], params: SamplingParams, **how: Unpack[SampleOptions]
    ) -> SampleResponse:
        self._meter.prefill += len(prompt)
        response = await self._client.sample(prompt, params, **how)
        self._meter.sampled += sum(len(s.tokens) for s in response.sequences)
        return response

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        self._meter.prefill += len(tokens)
        return await self._client.compute_logprobs(tokens)
