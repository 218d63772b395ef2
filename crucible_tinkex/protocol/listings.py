"""What the service keeps: sessions, training runs, checkpoints, and where to download them."""

from __future__ import annotations

from pydantic import Field

from crucible_tinkex.protocol.lenient import Time
from crucible_tinkex.protocol.wire import Wire


class Checkpoint(Wire):
    """`time` and `expires_at` are ISO 8601."""

    checkpoint_id: str
    checkpoint_type: str
    time: Time = None
    tinker_path: str
    size_bytes: int | None = None
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
