"""Request bodies that only servers need; what our clients send as well is in `protocol.wire`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crucible_tinkex.protocol.wire import AdamParams, ForwardInput, Wire
from crucible_tinkex.protocol.wire import CreateModelRequest as Created
from crucible_tinkex.protocol.wire import CreateSessionRequest as SessionRequest
from crucible_tinkex.protocol.wire import LoadWeightsRequest as Loaded
from crucible_tinkex.protocol.wire import SampleRequest as Sampled
from crucible_tinkex.protocol.wire import SaveWeightsForSamplerRequest as SavedForSampler
from crucible_tinkex.protocol.wire import SaveWeightsRequest as Saved


class CreateSessionRequest(SessionRequest):
    display_name: str | None = None


class SampleRequest(Sampled):
    """The last three are refused by their names."""

    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int | None = None
    record_stability_info: bool | None = None


class OptimizerConfig(Wire):
    type: str


class CreateModelRequest(Created):
    optimizer_config: OptimizerConfig | None = None


class OptimStepRequest(Wire):
    """`optimizer_params` are those of other optimizers than Adam."""

    model_id: str
    seq_id: int | None = None
    adam_params: AdamParams | None = None
    optimizer_params: OptimizerConfig | None = None


class LoadWeightsRequest(Loaded):
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None


class SaveWeightsRequest(Saved):
    user_metadata: dict[str, Any] | None = None


class SaveForSamplerRequest(SavedForSampler):
    user_metadata: dict[str, Any] | None = None


class SaveExternalRequest(Wire):
    """How newer SDKs download: an adapter saved for others, whose files then have URLs."""

    model_id: str
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    user_metadata: dict[str, Any] | None = None


class CancelRequest(Wire):
    request_id: str


class TtlRequest(Wire):
    ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A forward or forward_backward request, whichever way it was encoded."""

    model_id: str
    seq_id: int | None
    given: ForwardInput
    backward: bool
    digest: bytes
    """Equal for a repeat, even if its encoder put things into another order."""
