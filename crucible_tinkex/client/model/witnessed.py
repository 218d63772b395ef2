"""Clients that pass every operation on through a witness, who counts, tells or measures it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from typing_extensions import Unpack

from crucible_tinkex.client.interface import (
    CROSS_ENTROPY,
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

if TYPE_CHECKING:
    from crucible_tinkex.client.model.custom_loss import CustomLoss

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One operation, as it is asked for."""

    operation: str
    about: Mapping[str, Any]
    """For people: names, sizes, settings."""
    data: Sequence[Datum] = ()
    prompt: Sequence[int] = ()
    custom: bool = False
    """Whether its loss is computed here, behind a forward pass of its own."""


class Witness(Protocol):
    def around(self, asked: Asked, submit: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Submit at once, and give the answer, which may be awaited again."""
        ...


class WitnessedTraining:
    """A `TrainingClient`."""

    def __init__(self, client: TrainingClient, witness: Witness) -> None:
        self._client = client
        self._witness = witness

    @property
    def model_id(self) -> str:
        return self._client.model_id

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._witness.around(
            _pass("forward_backward", data, loss.get("loss_fn", CROSS_ENTROPY)),
            lambda: self._client.forward_backward(data, **loss),
        )

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._witness.around(
            _pass("forward_backward", data, "custom", custom=True),
            lambda: self._client.forward_backward_custom(data, loss_fn),
        )

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._witness.around(
            _pass("forward", data, loss.get("loss_fn", CROSS_ENTROPY)),
            lambda: self._client.forward(data, **loss),
        )

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        return self._witness.around(
            Asked("optim_step", {"learning_rate": params.learning_rate}),
            lambda: self._client.optim_step(params),
        )

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._witness.around(
            Asked("save_weights", {"checkpoint": name, "checkpoint_kind": "state"}),
            lambda: self._client.save_state(name, ttl_s=ttl_s),
        )

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._witness.around(
            Asked("save_weights", {"checkpoint": name, "checkpoint_kind": "sampler"}),
            lambda: self._client.save_for_sampler(name, ttl_s=ttl_s),
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        return self._witness.around(
            Asked("load_weights", {"path": path, "optimizer": optimizer}),
            lambda: self._client.load_state(path, optimizer=optimizer),
        )

    async def sampler(self) -> SamplingClient:
        return WitnessedSampling(await self._client.sampler(), self._witness)

    async def info(self) -> ModelInfo:
        return await self._client.info()


class WitnessedSampling:
    """A `SamplingClient`."""

    def __init__(self, client: SamplingClient, witness: Witness) -> None:
        self._client = client
        self._witness = witness

    async def sample(
        self, prompt: Sequence[int], params: SamplingParams, **how: Unpack[SampleOptions]
    ) -> SampleResponse:
        return await self._witness.around(
            _sampling(prompt, how.get("num_samples", 1)),
            lambda: self._client.sample(prompt, params, **how),
        )

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        return await self._witness.around(
            _sampling(tokens, 0), lambda: self._client.compute_logprobs(tokens)
        )


def _pass(operation: str, data: Sequence[Datum], loss_fn: str, *, custom: bool = False) -> Asked:
    return Asked(operation, {"loss_fn": loss_fn, "rows": len(data)}, data, custom=custom)


def _sampling(prompt: Sequence[int], count: int) -> Asked:
    return Asked("sample", {"prompt_tokens": len(prompt), "num_samples": count}, prompt=prompt)
