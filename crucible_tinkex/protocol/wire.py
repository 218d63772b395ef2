"""The Tinker protocol's JSON bodies as pydantic models, shared by our client and our server.

Unknown fields are ignored in both directions, because they appear every few releases of the
official SDK; unusual values are read where that is safe (`protocol.lenient`). Field names are the
protocol's. Tokens are ints, losses are nats, times are seconds. What a service says of itself is in
`protocol.capabilities`, what it keeps in `protocol.listings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from crucible_tinkex.protocol import lenient

API = "/api/v1"
KEY_HEADER = "X-API-Key"


class Wire(BaseModel):
    """Base of all bodies: unknown fields are ignored, nulls are not sent."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), defer_build=True)

    def body(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


# --- data ------------------------------------------------------------------------------------


class TensorData(Wire):
    """A tensor, flattened row by row; a sparse matrix holds the listed values only (CSR)."""

    data: list[int] | list[float]
    dtype: lenient.DType
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Chunk(Wire):
    type: str = "encoded_text"
    tokens: list[int] = Field(default_factory=list)


class ModelInput(Wire):
    chunks: list[Chunk]

    @classmethod
    def from_tokens(cls, tokens: list[int]) -> ModelInput:
        return cls(chunks=[Chunk(tokens=tokens)])

    def tokens(self) -> list[int]:
        return [t for c in self.chunks for t in c.tokens]

    @property
    def length(self) -> int:
        """How many tokens; nothing is copied."""
        return sum(len(c.tokens) for c in self.chunks)


class Datum(Wire):
    """One row: `model_input` of N tokens; per-loss inputs of N or N x K (`target_tokens`, ...)."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]


# --- sessions and models ---------------------------------------------------------------------


class CreateSessionRequest(Wire):
    display_name: str | None = None
    tags: list[str] = Field(default_factory=list)
    user_metadata: dict[str, Any] | None = None
    sdk_version: str
    type: Literal["create_session"] = "create_session"


class CreateSessionResponse(Wire):
    session_id: str
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None


class SessionRequest(Wire):
    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishReason(Wire):
    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSessionRequest(Wire):
    reason: FinishReason = Field(default_factory=FinishReason)
    detail: str | None = None


class LoraConfig(Wire):
    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Wire):
    type: str


class CreateModelRequest(Wire):
    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfig
    optimizer_config: OptimizerConfig | None = None
    type: Literal["create_model"] = "create_model"


class CreateModelResponse(Wire):
    model_id: str
    type: str = "create_model"


class ModelRequest(Wire):
    model_id: str
    type: str | None = None


class ModelData(Wire):
    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class ModelInfo(Wire):
    model_id: str
    model_data: ModelData
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None


# --- training --------------------------------------------------------------------------------


class ForwardInput(Wire):
    data: list[Datum]
    loss_fn: str = "cross_entropy"
    loss_fn_config: dict[str, float] | None = None


class ForwardBackwardRequest(Wire):
    model_id: str
    seq_id: int | None = None
    forward_backward_input: ForwardInput


class ForwardRequest(Wire):
    model_id: str
    seq_id: int | None = None
    forward_input: ForwardInput


class ForwardBackwardOutput(Wire):
    """Per datum `logprobs` [N] of the targets; metrics such as `loss:sum`."""

    loss_fn_output_type: str = "logprobs"
    loss_fn_outputs: Annotated[list[dict[str, TensorData]], lenient.Rows]
    metrics: lenient.Metrics = Field(default_factory=dict)


class AdamParams(Wire):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStepRequest(Wire):
    """`optimizer_params` are those of other optimizers than Adam."""

    model_id: str
    seq_id: int | None = None
    adam_params: AdamParams | None = None
    optimizer_params: OptimizerConfig | None = None
    type: Literal["optim_step"] = "optim_step"


class OptimStepResponse(Wire):
    metrics: lenient.SomeMetrics = None


class SaveWeightsRequest(Wire):
    """`path` is a NAME chosen by the client; the server answers with the `tinker://` path."""

    model_id: str
    path: str | None = None
    seq_id: int | None = None
    ttl_seconds: int | None = None
    overwrite: bool | None = None
    user_metadata: dict[str, Any] | None = None
    type: Literal["save_weights"] = "save_weights"


class SaveWeightsForSamplerRequest(Wire):
    """Either `path` (a name) or `sampling_session_seq_id` (answered by a sampling session).

    `kind` None is a snapshot, as before the field was: a strict older service refuses it.
    """

    model_id: str
    path: str | None = None
    seq_id: int | None = None
    sampling_session_seq_id: int | None = None
    ttl_seconds: int | None = None
    kind: str | None = None
    user_metadata: dict[str, Any] | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveExternalRequest(Wire):
    """How newer SDKs download: an adapter saved for others, whose files then have URLs."""

    model_id: str
    path: str
    seq_id: int | None = None
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    user_metadata: dict[str, Any] | None = None


class SaveWeightsResponse(Wire):
    path: str | None = None
    sampling_session_id: str | None = None
    type: str | None = None


class LoadWeightsRequest(Wire):
    """A new model from a checkpoint (`session_id`, `model_seq_id`), or a load into `model_id`."""

    path: str
    optimizer: bool = False
    session_id: str | None = None
    model_seq_id: int | None = None
    model_id: str | None = None
    seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: OptimizerConfig | None = None
    type: Literal["load_weights"] = "load_weights"


class LoadWeightsResponse(Wire):
    path: str | None = None
    model_id: str | None = None
    type: str | None = None


# --- sampling --------------------------------------------------------------------------------


class CreateSamplingSessionRequest(Wire):
    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class CreateSamplingSessionResponse(Wire):
    sampling_session_id: str


class SamplingParams(Wire):
    """`stop` None: the end-of-sequence token stops; []: only `max_tokens` stops."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: lenient.Stop = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class SampleRequest(Wire):
    """Our server refuses `target_prompt_logprobs`, `prompt_alt_tokens_k` and
    `record_stability_info` by their names, and our client does not send them."""

    sampling_session_id: str | None = None
    seq_id: int | None = None
    base_model: str | None = None
    model_path: str | None = None
    num_samples: int = 1
    prompt: ModelInput
    sampling_params: SamplingParams = Field(default_factory=SamplingParams)
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int | None = None
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int | None = None
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


class SampledSequence(Wire):
    stop_reason: lenient.StopReason
    tokens: list[int]
    logprobs: list[float] | None = None
    topk_logprobs: list[list[tuple[int, float]] | None] | None = None


class SampleResponse(Wire):
    """`prompt_logprobs` has len(prompt) entries, the first None."""

    sequences: list[SampledSequence]
    prompt_logprobs: list[float | None] | None = None
    topk_prompt_logprobs: list[list[tuple[int, float]] | None] | None = None
    prompt_cache_hit_tokens: int | None = None
    type: Literal["sample"] = "sample"


# --- futures ---------------------------------------------------------------------------------


class FutureEnvelope(Wire):
    request_id: str
    model_id: str | None = None
    sample_sequence_ids: list[str] | None = None


class RequestId(Wire):
    """Of `retrieve_future` and `cancel_future`."""

    request_id: str


class TryAgain(Wire):
    """The long-poll ended without a result; ask again. Sent with HTTP 408."""

    request_id: str | None = None
    queue_state: str = "active"
    queue_state_reason: str | None = None
    type: Literal["try_again"] = "try_again"


# --- checkpoints (REST) ----------------------------------------------------------------------


class WeightsInfoRequest(Wire):
    tinker_path: str


class WeightsInfo(Wire):
    base_model: str
    is_lora: bool = True
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
