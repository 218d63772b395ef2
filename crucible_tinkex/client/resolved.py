"""The one service of a sweep: found out by the driver, carried to every session process.

Holds the place of the key, never the key; picklable. Whoever has it reads no environment for the
address (law of the house: sessions train on the service that the driver checked).
"""

from __future__ import annotations

from dataclasses import dataclass

from crucible_tinkex.client.choose import ServiceTransport, hold_back, open_service
from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.client.interface import TrainingService


@dataclass(frozen=True)
class ResolvedService:
    """Where a sweep trains."""

    base_url: str
    api_key_file: str | None = None
    transport: ServiceTransport = "http"
    allow_http: bool | tuple[str, ...] = False

    @classmethod
    def of(
        cls,
        base_url: str | None,
        *,
        api_key_file: str | None,
        transport: ServiceTransport,
        allow_http: bool | tuple[str, ...] = False,
    ) -> ResolvedService:
        """Without `base_url`: TINKER_BASE_URL of this process, else hosted Tinker."""
        address = Address.parse(base_url, allow_http=allow_http)
        return cls(str(address), api_key_file, transport, allow_http)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return Address.parse(self.base_url, allow_http=self.allow_http).is_loopback

    def connect(self, observer: Observer | None = None) -> TrainingService:
        """A new session's client; the caller closes it."""
        return open_service(
            self.base_url,
            api_key_file=self.api_key_file,
            transport=self.transport,
            allow_http=self.allow_http,
            observer=observer,
        )

    def hold_back(self, until: float) -> None:
        """Let all sessions of this process send nothing before `until` (Unix seconds)."""
        hold_back(
            self.base_url,
            api_key_file=self.api_key_file,
            until=until,
            allow_http=self.allow_http,
        )
