"""Request bodies that only servers need; what clients of ours send as well is in `client.wire`."""

from __future__ import annotations

from typing import Any, Literal

from crucible_tinkex.client.wire import AdamParams, TensorData, Wire
from crucible_tinkex.client.wire import CreateModelRequest as Created
from crucible_tinkex.client.wire import CreateSessionRequest as SessionRequest
from crucible_tinkex.client.wire import LoadWeightsRequest as Loaded
from crucible_tinkex.client.wire import SampleRequest as Sampled
from crucible_tinkex.client.wire import SaveWeightsForSamplerRequest as SavedForSampler
from crucible_tinkex.client.wire import SaveWeightsRequest as Saved


class CreateSessionRequest(SessionRequest):
    project_id: str | None = None
    display_name: str | None = None


class SampleRequest(Sampled):
    record_stability_info: bool | None = None
    prompt_logprobs_last_n: int | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_alt_tokens_k: int = 0


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
