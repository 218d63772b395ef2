"""What a training session needs from a training service, and nothing of how it gets it.

Implementations: `client.service.TinkexService` (HTTP) and `testing.FakeService` (in memory).
All raise `crucible_tinkex.errors` only. None may be pickled or used from two event loops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from crucible_tinkex.protocol.capabilities import ServerCapabilities
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInfo,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
)

if TYPE_CHECKING:
    from crucible_tinkex.client.model.custom_loss import CustomLoss

CROSS_ENTROPY = "cross_entropy"
EndReason = Literal["success", "errored", "interrupted"]


class LossOptions(TypedDict, total=False):
    """The keywords of `forward_backward` and `forward`, for those who pass them on."""

    loss_fn: str
    loss_fn_config: Mapping[str, float] | None


class SampleOptions(TypedDict, total=False):
    """The keywords of `sample`, for those who pass them on."""

    num_samples: int
    prompt_logprobs: bool
    topk_prompt_logprobs: int
    topk_sample_logprobs: int


class SamplingClient(Protocol):
    """Samples from fixed weights. Calls may overlap."""

    async def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> SampleResponse:
        """Exactly `num_samples` sequences. With a seed, the same set again, all different."""
        ...

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        """One per token; the first, which follows nothing, is None."""
        ...


class TrainingClient(Protocol):
    """One model in training. Operations take effect in the order of the calls.

    The methods that return an Awaitable submit at once, before it is awaited: call
    `forward_backward` and `optim_step` back to back, then await both. The arguments are copied.
    Each awaitable may be awaited again; a cancelled wait does not cancel the operation. Once an
    operation could not be submitted, all later ones raise that first error.
    """

    @property
    def model_id(self) -> str: ...

    def forward_backward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = CROSS_ENTROPY,
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        """Adds to the gradient. One output per datum, in order; losses are sums over tokens."""
        ...

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        """Applies the gradient and clears it."""
        ...

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        """A loss computed here from the logprobs; `loss:sum` is its value."""
        ...

    def forward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = CROSS_ENTROPY,
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        """As `forward_backward`, without a gradient."""
        ...

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        """Saves weights and optimizer; the `tinker://` path. Kept for ever without `ttl_s`."""
        ...

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        """Saves the weights for sampling; the `tinker://` path. Kept for ever without `ttl_s`."""
        ...

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]: ...

    async def sampler(self) -> SamplingClient:
        """Samples from the weights as they are now; keeps no named checkpoint."""
        ...

    async def info(self) -> ModelInfo: ...


class TrainingService(Protocol):
    """One session on a training service. Whoever makes it closes it."""

    async def capabilities(self) -> ServerCapabilities: ...

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> TrainingClient: ...

    async def create_training_from_state(
        self, path: str, *, optimizer: bool = True
    ) -> TrainingClient:
        """A new model that continues from a `state` checkpoint."""
        ...

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> SamplingClient:
        """Exactly one of the two is given."""
        ...

    async def delete_checkpoint(self, path: str) -> None:
        """Deleting what is already gone succeeds."""
        ...

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        """Ends the session on the service; never raises because the service is out of reach."""
        ...
