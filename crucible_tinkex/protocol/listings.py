"""The checkpoints that a service keeps, and where to download them."""

from __future__ import annotations

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
    ttl_seconds: int | None = None
    """None: for ever. Unlike elsewhere, the null is sent."""

    def body(self) -> bytes:
        return self.model_dump_json().encode()
