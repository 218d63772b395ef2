"""Request bodies that only servers need; what clients of ours send as well is in `client.wire`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from crucible_tinkex.client.wire import CreateSessionRequest as SessionRequest
from crucible_tinkex.client.wire import LoadWeightsRequest as Loaded
from crucible_tinkex.client.wire import OptimStepRequest as OptimRequest
from crucible_tinkex.client.wire import SampleRequest as Sampled
from crucible_tinkex.client.wire import SaveWeightsForSamplerRequest as SavedForSampler
from crucible_tinkex.client.wire import SaveWeightsRequest as Saved
from crucible_tinkex.client.wire import TensorData, Wire


class CreateSessionRequest(SessionRequest):
    project_id: str | None = None
    display_name: str | None = None


class SampleRequest(Sampled):
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0


class OptimStepRequest(OptimRequest):
    """`adam_params` missing means another optimizer, which we do not have."""

    optimizer_params: dict[str, Any] | None = None


class LoadWeightsRequest(Loaded):
    user_metadata: dict[str, Any] | None = None


class SaveWeightsRequest(Saved):
    user_metadata: dict[str, Any] | None = None


class SaveForSamplerRequest(SavedForSampler):
    user_metadata: dict[str, Any] | None = None


class SaveExternalRequest(Wire):
    model_id: str
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    user_metadata: dict[str, Any] | None = None


class CopyWeightsRequest(Wire):
    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    ttl_seconds: int | None = None


class FuturesTarget(Wire):
    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = 0


class RetrieveFuturesRequest(Wire):
    target: FuturesTarget
    prev_cursor: int = 0
    timeout: float | None = None


class SamplerRequest(Wire):
    sampling_session_id: str


class CancelRequest(Wire):
    request_id: str


class TtlRequest(Wire):
    ttl_seconds: int | None = None


class ProjectRequest(Wire):
    project_id: str


class FinishRequest(Wire):
    reason: dict[str, Any] = Field(default_factory=lambda: {"type": "success"})
    detail: str | None = None
