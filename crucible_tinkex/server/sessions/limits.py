"""How much one server takes on, as data.

What goes beyond is refused with 429 and Retry-After, which clients of this protocol wait for; but
never the one request that a model's held ones wait for, so that a full queue always drains.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_sessions: int = 4096
    """Sessions that are not finished."""
    max_models: int = 4096
    """Models at a time; idle ones cost disk, not memory."""
    max_open: int = 50_000
    """Requests without a result."""
    max_open_bytes: int = 1024**3
    """The bodies of those requests."""
    session_idle_s: float = 6 * 3600.0
    """A session that neither asks nor beats for so long is finished."""
    max_snapshots: int = 8
    """Unnamed weights for sampling that a model keeps: those used last."""
    snapshot_idle_s: float = 6 * 3600.0
    """Unnamed weights that nobody sampled from for so long are freed."""
    retry_after_s: int = 2
    """What a 429 tells the client to wait."""
