"""What the service keeps of an account (sessions, training runs, checkpoints, download URLs), and
the requests that search and change it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from crucible_tinkex.client.lenient import Time
from crucible_tinkex.client.wire import Wire


class Checkpoint(Wire):
    """`time` and `expires_at` are ISO 8601."""

    checkpoint_id: str
    checkpoint_type: str
    time: Time = None
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: Time = None


class Cursor(Wire):
    """Where a page stands in the whole listing."""

    offset: int = 0
    limit: int = 0
    total_count: int | None = None


class SessionList(Wire):
    sessions: list[str]


class SessionRecord(Wire):
    training_run_ids: list[str] = Field(default_factory=list)
    sampler_ids: list[str] = Field(default_factory=list)
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class SamplerRecord(Wire):
    """What a sampling session samples from; `model_path` is None for the base model."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class TraceExport(Wire):
    status: Literal["pending", "ready", "failed"]
    url: str | None = None
    error: str | None = None


class TrainingRun(Wire):
    """`last_request_time` is ISO 8601."""

    training_run_id: str
    base_model: str
    model_owner: str | None = None
    is_lora: bool = True
    lora_rank: int | None = None
    corrupted: bool = False
    last_request_time: Time = None
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRunPage(Wire):
    training_runs: list[TrainingRun]
    cursor: Cursor | None = None


class CheckpointPage(Wire):
    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class ArchiveUrl(Wire):
    url: str
    expires: str | None = None


class FileUrls(Wire):
    """Signed URLs by the file's path below the checkpoint."""

    urls: dict[str, str]
    expires: str | None = None


class TtlRequest(Wire):
    ttl_seconds: int | None
    """None: for ever. Unlike elsewhere, the null is sent."""

    def body(self) -> bytes:
        return self.model_dump_json().encode()


class ProjectRequest(Wire):
    project_id: str


class CopyWeightsRequest(Wire):
    source_path: str
    destination_project_id: str | None = None
    ttl_seconds: int | None = None


class CopyWeightsResponse(Wire):
    tinker_path: str


class SaveExternalRequest(Wire):
    """`path` is a name, as in `SaveWeightsRequest`."""

    model_id: str
    path: str
    seq_id: int
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


class JoinSamplingRequest(Wire):
    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


class JoinSamplingResponse(Wire):
    """`client_counter`: the how manieth further client this one is, from 1."""

    client_counter: int = Field(ge=1, le=2**31)


# --- searching ---------------------------------------------------------------------------------


class SessionQuery(Wire):
    """Which sessions: all that is given must hold, but either of `session_id` and `display_name`
    (words of it) is enough. `statuses` are `active`, `cancelled`, `failed`, `client_finished`."""

    session_id: str | None = None
    display_name: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    owner: Literal["own", "accessible"] = "own"
    statuses: list[str] | None = None


class SessionSummary(Wire):
    """`created_at` is ISO 8601; `status` says how the session stands or ended."""

    session_id: str
    created_at: str
    owner: str | None = None
    project_id: str | None = None
    status: dict[str, Any] | None = None
    checkpoints_count: int = 0
    checkpoint_storage_bytes: int | None = None
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None


class SessionSearchRequest(Wire):
    session_id: str | None = None
    display_name: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str]
    owner: dict[str, str]
    statuses: list[dict[str, str]] | None = None
    limit: int
    cursor: dict[str, Any] | None = None


class SessionSearchPage(Wire):
    """`next_cursor` is handed back as it came."""

    sessions: list[SessionSummary]
    next_cursor: dict[str, Any] | None = None
