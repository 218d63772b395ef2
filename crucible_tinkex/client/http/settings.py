"""The bounds of a `TinkexService`: times, retries, connections, encoding."""

from __future__ import annotations

from dataclasses import dataclass, field

from crucible_tinkex.client.http.encoding import Preference
from crucible_tinkex.client.http.exchange import Limits
from crucible_tinkex.client.http.retry import Clock, RetryPolicy


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Bounds and time; the defaults are for production."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    limits: Limits = field(default_factory=Limits)
    clock: Clock = field(default_factory=Clock)
    heartbeat_s: float = 10.0
    heartbeat_warning_s: float = 120.0
    """Silence on the heartbeat after which a warning is logged."""
    contact_s: float = 30.0
    """How long `capabilities`, usually the first call, tries: a wrong address shows soon."""
    encoding: Preference = "auto"
    """`json` or `protobuf` skip the negotiation (`client.http.encoding`)."""
    config_s: float = 10.0
    """How long the first session asks what the service understands."""
    close_s: float = 5.0
    """How long `close` tries to tell the service."""
